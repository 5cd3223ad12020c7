"""What programs ordinarily do with asyncpg. usage: asyncpg_.py HOST PORT DATABASE [CA]"""

import asyncio
import datetime as dt
import decimal
import io
import json
import ssl
import sys
import uuid

import asyncpg

HOST, PORT, DATABASE = sys.argv[1:4]
PARAMS = dict(host=HOST, port=int(PORT), database=DATABASE, user="app", password="secret of app", ssl=False)
if len(sys.argv) > 4:
    PARAMS["ssl"] = ssl.create_default_context(cafile=sys.argv[4])


def same(got, wanted, what):
    if got != wanted:
        sys.exit(f"asyncpg: {what}: got {got!r:.300}, wanted {wanted!r:.300}")


async def fails(kind, what, action):
    try:
        await action
    except kind as error:
        return error
    sys.exit(f"asyncpg: {what}: no {kind.__name__}")


async def values(conn):
    cases = [
        ("int2", -32768), ("int4", 2**31 - 1), ("int8", -(2**63)), ("float8", 1e-300), ("numeric", decimal.Decimal("-1.50")),
        ("bool", False), ("text", "naïve \U0001f418"), ("bytea", bytes(range(256))), ("uuid", uuid.UUID(int=7)),
        ("date", dt.date(2000, 2, 29)), ("timestamp", dt.datetime(2024, 1, 2, 3, 4, 5, 6)),
        ("timestamptz", dt.datetime(2024, 1, 2, tzinfo=dt.timezone.utc)), ("interval", dt.timedelta(days=2, microseconds=5)),
        ("int4[]", [1, None, 3]), ("text[]", ["a", None, 'b"']), ("int4[]", [[1, 2], [3, 4]]), ("jsonb", json.dumps({"a": 1})),
        ("point", asyncpg.Point(1, 2)), ("int4range", asyncpg.Range(1, 5)), ("text", None), ("bytea", b""),
    ]
    for _ in range(5):
        for kind, value in cases:
            same(await conn.fetchval(f"select $1::{kind}", value), value, kind)
    # A type that the driver has to look up, and that changes under it.
    await conn.execute("create type mood as enum ('sad', 'happy'); create type pair as (n int4, m mood)")
    same(await conn.fetchval("select $1::mood", "happy"), "happy", "enum")
    same(tuple(await conn.fetchval("select (1, 'sad')::pair")), (1, "sad"), "composite")
    same(await conn.fetchval("select $1::mood[]", ["sad"]), ["sad"], "array of enum")


async def prepared(conn):
    statement = await conn.prepare("select $1::int4 * 2")
    for n in range(100):
        same(await statement.fetchval(n), 2 * n, "prepared")
    for n in range(250):  # the statement cache holds 100
        same(await conn.fetchval(f"select {n} + $1::int4", n), 2 * n, "cache of statements")
    same(await statement.fetchval(4), 8, "prepared, later")
    # A table that changes under cached statements.
    await conn.execute("create table moving (n int4)")
    for _ in range(3):
        same([tuple(row) for row in await conn.fetch("select * from moving")], [], "moving")
    await conn.execute("alter table moving add m text default 'm'; insert into moving values (1)")
    same([tuple(row) for row in await conn.fetch("select * from moving")], [(1, "m")], "moved")


async def transactions(conn):
    await conn.execute("create table ledger (n int primary key)")
    async with conn.transaction():
        await conn.execute("insert into ledger values (1)")
        try:
            async with conn.transaction():
                await conn.execute("insert into ledger values ($1)", 2)
                await conn.execute("insert into ledger values ($1)", 1)
        except asyncpg.UniqueViolationError as error:
            same(error.constraint_name, "ledger_pkey", "constraint")
        await conn.execute("insert into ledger values ($1)", 3)
    same([row["n"] for row in await conn.fetch("select n from ledger order by n")], [1, 3], "savepoint")
    try:
        async with conn.transaction(isolation="serializable"):
            await conn.execute("insert into ledger values (4)")
            raise KeyError
    except KeyError:
        pass
    same(await conn.fetchval("select count(*) from ledger"), 2, "rolled back")
    error = await fails(asyncpg.PostgresSyntaxError, "syntax", conn.fetch("selec 1"))
    same(error.sqlstate, "42601", "sqlstate")
    await fails(asyncpg.DivisionByZeroError, "division", conn.fetchval("select 1 / $1::int4", 0))
    async with conn.transaction(readonly=True):
        await fails(asyncpg.ReadOnlySQLTransactionError, "read only", conn.execute("delete from ledger"))


async def batches(conn):
    await conn.executemany("insert into ledger values ($1)", [(n,) for n in range(100, 2100)])
    same(await conn.fetchval("select count(*) from ledger"), 2002, "executemany")
    await fails(asyncpg.UniqueViolationError, "bad batch",
                conn.executemany("insert into ledger values ($1)", [(n,) for n in (5000, 5001, 100, 5002)]))
    same(await conn.fetchval("select count(*) from ledger"), 2002, "a bad batch leaves nothing")
    same(await conn.execute("delete from ledger where n >= 100"), "DELETE 2000", "status")


async def copies(conn):
    await conn.execute("create table heap (n int, t text, b bytea)")
    rows = [(n, None if n % 5 == 0 else f"row {n}", bytes(n % 100)) for n in range(5000)]
    same(await conn.copy_records_to_table("heap", records=rows), "COPY 5000", "copy in")
    out = io.BytesIO()
    same(await conn.copy_from_query("select n, t from heap order by n", output=out), "COPY 5000", "copy out")
    same(out.getvalue().count(b"\n"), 5000, "lines")
    out.seek(0)
    same(await conn.copy_to_table("heap", source=out, columns=["n", "t"]), "COPY 5000", "copy in again")
    await fails(asyncpg.BadCopyFileFormatError, "rubbish", conn.copy_to_table("heap", source=io.BytesIO(b"1\t2\t3\t4\n")))


async def cursors(conn):
    async with conn.transaction():
        total = 0
        async for row in conn.cursor("select generate_series(1, $1::int4)", 1000, prefetch=37):
            total += row[0]
        same(total, 500500, "cursor")
        cursor = await conn.cursor("select generate_series(1, 100)")
        same(await cursor.forward(10), 10, "forward")
        same([row[0] for row in await cursor.fetch(2)], [11, 12], "fetch")


async def large(conn):
    for size in (1, 100, 8192, 65536, 1 << 20, 16 << 20):
        data = (bytes(range(256)) * (size // 256 + 1))[:size]
        same(await conn.fetchval("select $1::bytea", data) == data, True, f"{size} bytes")


async def cancels(conn):
    await fails(asyncio.TimeoutError, "time-out", conn.fetch("select pg_sleep(60)", timeout=0.1))
    same(await conn.fetchval("select 1"), 1, "after a time-out")
    task = asyncio.create_task(conn.fetch("select pg_sleep(60)"))
    await asyncio.sleep(0.1)
    task.cancel()
    await fails(asyncio.CancelledError, "cancel", task)
    same(await conn.fetchval("select 2"), 2, "after a cancel")


async def crowd():
    async with asyncpg.create_pool(**PARAMS, min_size=20, max_size=20) as pool:
        await pool.execute("create table crowd as select 0 as n")

        async def work(who):
            for n in range(30):
                # Acquired anew each time: the pool resets the connection on release.
                async with pool.acquire() as conn, conn.transaction():
                    same(await conn.fetchval("select $1::text", f"{who}-{n}"), f"{who}-{n}", "own answer")
                    await conn.execute("update crowd set n = n + 1")

        await asyncio.gather(*(work(who) for who in range(20)))
        same(await pool.fetchval("select n from crowd"), 600, "their work")


async def main():
    conn = await asyncpg.connect(**PARAMS, server_settings={"application_name": "asyncpg", "timezone": "Asia/Tokyo"})
    same(await conn.fetchval("show timezone"), "Asia/Tokyo", "server settings")
    same(conn.get_settings().TimeZone, "Asia/Tokyo", "reported settings")
    notices = []
    conn.add_log_listener(lambda _, message: notices.append(message.message))
    await conn.execute("do $$ begin raise warning 'heed this'; end $$")
    await asyncio.sleep(0)
    same(notices, ["heed this"], "notice")
    for part in (values, prepared, transactions, batches, copies, cursors, large, cancels):
        await part(conn)
        same(conn.is_in_transaction(), False, f"transaction after {part.__name__}")
    await conn.reset()
    await conn.close()
    await crowd()
    error = await fails(asyncpg.InvalidCatalogNameError, "no such database", asyncpg.connect(**PARAMS | dict(database="nowhere")))
    print("asyncpg", asyncpg.__version__, "|", error)


asyncio.run(main())
