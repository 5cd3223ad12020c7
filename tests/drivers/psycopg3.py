"""What programs ordinarily do with psycopg 3. usage: psycopg3.py HOST PORT DATABASE [CA]"""

import asyncio
import datetime as dt
import decimal
import sys
import threading
import uuid

import psycopg
from psycopg import errors, sql
from psycopg.rows import dict_row
from psycopg.types.json import Jsonb

HOST, PORT, DATABASE = sys.argv[1:4]
PARAMS = dict(host=HOST, port=PORT, dbname=DATABASE, user="app", password="secret of app")
if len(sys.argv) > 4:
    PARAMS |= dict(sslmode="verify-full", sslrootcert=sys.argv[4])
else:
    PARAMS |= dict(sslmode="disable")

VALUES = dict(
    i2=-32768, i4=2**31 - 1, i8=-(2**63), f8=-1.5e300, num=decimal.Decimal("12345678901234567890.0123456789"), flag=True,
    txt="naïve 'quoted' \\ \U0001f418", raw=bytes(range(256)), id=uuid.UUID("12345678-1234-5678-1234-567812345678"),
    day=dt.date(1999, 12, 31), ts=dt.datetime(2024, 2, 29, 23, 59, 59, 999999),
    tz=dt.datetime(2024, 2, 29, 23, 59, 59, 1, dt.timezone.utc), span=dt.timedelta(days=-3, seconds=7),
    ints=[1, None, -3], texts=["a", 'b"c', "d,e", ""], doc={"a": [1, 2.5, None, {"b": "ü"}]},
)
TYPES = dict(
    i2="int2", i4="int4", i8="int8", f8="float8", num="numeric", flag="bool", txt="text", raw="bytea", id="uuid", day="date",
    ts="timestamp", tz="timestamptz", span="interval", ints="int4[]", texts="text[]", doc="jsonb",
)


def same(got, wanted, what):
    if got != wanted:
        sys.exit(f"psycopg3: {what}: got {got!r:.300}, wanted {wanted!r:.300}")


def fails(kind, what, action):
    try:
        action()
    except kind as error:
        return error
    sys.exit(f"psycopg3: {what}: no {kind.__name__}")


def connect(**more):
    return psycopg.connect(**PARAMS, **more)


def types(conn):
    columns = ", ".join(f"{name} {kind}" for name, kind in TYPES.items())
    conn.execute(f"create table kinds (n serial primary key, {columns})")
    names = sql.SQL(", ").join(map(sql.Identifier, VALUES))
    insert = sql.SQL("insert into kinds ({}) values ({}) returning n").format(
        names, sql.SQL(", ").join(map(sql.Placeholder, VALUES)))
    row = VALUES | dict(doc=Jsonb(VALUES["doc"]))
    for wanted in range(1, 21):  # beyond prepare_threshold
        same(conn.execute(insert, row).fetchone(), (wanted,), "insert")
    same(conn.execute(insert, dict.fromkeys(VALUES)).fetchone(), (21,), "insert of nulls")
    for binary in (False, True):
        with conn.cursor(row_factory=dict_row, binary=binary) as cur:
            for n in range(1, 21):
                cur.execute(sql.SQL("select {} from kinds where n = %s").format(names), (n,))
                same(cur.fetchone(), VALUES, f"values, binary {binary}")
            cur.execute(sql.SQL("select {} from kinds where n = 21").format(names))
            same(cur.fetchone(), dict.fromkeys(VALUES), "nulls")
    conn.commit()


def prepared(conn):
    conn.autocommit = True
    for n in range(50):
        same(conn.execute("select %s::int4 + 1", (n,)).fetchone(), (n + 1,), "prepared after the threshold")
        same(conn.execute("select %s::text", (str(n),), prepare=True).fetchone(), (str(n),), "prepared at once")
    for n in range(300):  # more statements than the client keeps: it deallocates
        same(conn.execute(f"select {n} + %s::int4", (n,), prepare=True).fetchone(), (2 * n,), "many statements")
    conn.autocommit = False


def transactions(conn):
    conn.execute("create table ledger (n int primary key)")
    conn.commit()
    conn.execute("insert into ledger values (1)")
    conn.rollback()
    same(conn.execute("select count(*) from ledger").fetchone(), (0,), "rollback")
    conn.commit()
    with conn.transaction():
        conn.execute("insert into ledger values (1)")
        try:
            with conn.transaction():
                conn.execute("insert into ledger values (2)")
                conn.execute("insert into ledger values (1)")
        except errors.UniqueViolation as error:
            same(error.diag.constraint_name, "ledger_pkey", "constraint of the error")
        same(conn.execute("select array_agg(n) from ledger").fetchone(), ([1],), "savepoint rolled back")
        with conn.transaction():
            conn.execute("insert into ledger values (3)")
    same(conn.execute("select array_agg(n order by n) from ledger").fetchone(), ([1, 3],), "after savepoints")
    conn.rollback()
    error = fails(errors.DivisionByZero, "division", lambda: conn.execute("select 1/0"))
    same((error.sqlstate, error.diag.severity), ("22012", "ERROR"), "diagnostics")
    fails(errors.InFailedSqlTransaction, "failed transaction", lambda: conn.execute("select 1"))
    conn.rollback()
    error = fails(errors.SyntaxError, "syntax", lambda: conn.execute("selec 1"))
    same(error.diag.statement_position, "1", "position")
    conn.rollback()
    conn.isolation_level = psycopg.IsolationLevel.SERIALIZABLE
    same(conn.execute("show transaction_isolation").fetchone(), ("serializable",), "isolation level")
    conn.rollback()
    conn.isolation_level = None


def pipelines(conn):
    with conn.pipeline():
        cursors = [conn.execute("select %s::int4", (n,)) for n in range(200)]
        same([cur.fetchone() for cur in cursors], [(n,) for n in range(200)], "pipeline")
    conn.rollback()
    conn.autocommit = True
    def broken():
        with conn.pipeline() as pipeline:
            conn.execute("select 1")
            conn.execute("select 1/0")
            conn.execute("select 2")
            pipeline.sync()
    fails(errors.DivisionByZero, "pipeline with an error", broken)
    same(conn.execute("select 5").fetchone(), (5,), "after a pipeline with an error")
    conn.autocommit = False
    with conn.cursor() as cur:
        cur.executemany("insert into ledger values (%s)", [(n,) for n in range(100, 300)])
        same(cur.rowcount, 200, "executemany")
        cur.executemany("delete from ledger where n = %s returning n", [(n,) for n in range(100, 300)], returning=True)
        same([cur.fetchone()[0] for _ in cur.results()], list(range(100, 300)), "executemany returning")
    conn.commit()


def copies(conn):
    conn.execute("create table heap (n int, t text, b bytea)")
    rows = [(n, None if n % 7 == 0 else f"row\t{n}\n\\", bytes([n % 256]) * (n % 50)) for n in range(5000)]
    with conn.cursor() as cur:
        with cur.copy("copy heap from stdin") as copy:
            for row in rows:
                copy.write_row(row)
        with cur.copy("copy heap from stdin (format binary)") as copy:
            copy.set_types(["int4", "text", "bytea"])
            for row in rows:
                copy.write_row(row)
        with cur.copy("copy (select * from heap order by n) to stdout (format binary)") as copy:
            copy.set_types(["int4", "text", "bytea"])
            same(list(copy.rows()), [row for row in rows for _ in range(2)], "copy out")
    conn.commit()
    def broken():
        with conn.cursor().copy("copy heap from stdin") as copy:
            copy.write("no number\tx\t\n")
    error = fails(errors.InvalidTextRepresentation, "copy of rubbish", broken)
    same("line 1" in error.diag.context, True, "where the copy failed")
    conn.rollback()
    def abandoned():
        with conn.cursor().copy("copy heap from stdin") as copy:
            copy.write_row(rows[0])
            raise RuntimeError("given up")
    fails(RuntimeError, "copy given up", abandoned)
    conn.rollback()
    # A copy out that is given up is cancelled by the driver.
    def left():
        with conn.cursor().copy("copy (select generate_series(1, 3000000)) to stdout") as copy:
            same(bytes(copy.read())[:2], b"1\n", "first of a long copy")
            raise RuntimeError("enough")
    fails(RuntimeError, "copy out given up", left)
    conn.rollback()
    same(conn.execute("select count(*) from heap").fetchone(), (10000,), "rows after copies")
    conn.commit()


def cursors(conn):
    with conn.cursor("named", scrollable=True) as cur:
        cur.itersize = 77
        cur.execute("select generate_series(1, %s)", (1000,))
        same(sum(row[0] for row in cur), 500500, "named cursor")
        cur.scroll(10, mode="absolute")
        same(cur.fetchone(), (11,), "scrolled")
    conn.commit()
    cur = conn.cursor()
    rows = cur.stream("select generate_series(1, 10000)", size=100) if psycopg.capabilities.has_stream_chunked() \
        else cur.stream("select generate_series(1, 10000)")
    same(sum(row[0] for row in rows), 50005000, "stream")
    conn.commit()


def large(conn):
    for size in (1, 100, 8192, 16384, 65536, 1 << 20, 16 << 20):
        for binary in (False, True):
            data = (bytes(range(256)) * (size // 256 + 1))[:size]
            row = conn.execute("select %s::bytea, length(%s::text)", (data, "x" * size), binary=binary).fetchone()
            same(row == (data, size), True, f"a row of {size} bytes, binary {binary}")
    conn.commit()


def cancels(conn):
    faults = []
    def cancel():
        try:
            conn.cancel_safe(timeout=20)
        except psycopg.Error as error:
            faults.append(str(error))
    timer = threading.Timer(0.1, cancel)
    started = dt.datetime.now()
    timer.start()
    fails(errors.QueryCanceled, "cancel", lambda: conn.execute("select pg_sleep(60)"))
    timer.join()
    same(faults, [], "cancel request")
    same(dt.datetime.now() - started < dt.timedelta(seconds=30), True, "cancel in time")
    conn.rollback()
    same(conn.execute("select 1").fetchone(), (1,), "after a cancel")
    conn.rollback()


def crowd():
    faults = []
    def work(who):
        try:
            with connect() as conn:
                for n in range(30):
                    with conn.transaction():
                        token = f"{who}-{n}"
                        same(conn.execute("select %s::text", (token,)).fetchone(), (token,), "own answer")
                        conn.execute("update crowd set n = n + 1")
        except BaseException as error:  # noqa: BLE001
            faults.append(f"client {who}: {error}")
    with connect(autocommit=True) as conn:
        conn.execute("create table crowd as select 0 as n")
        threads = [threading.Thread(target=work, args=(who,)) for who in range(20)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        same(faults, [], "20 clients")
        same(conn.execute("select n from crowd").fetchone(), (600,), "their work")


async def asynchronous():
    conn = await psycopg.AsyncConnection.connect(**PARAMS, autocommit=True)
    async with conn:
        for n in range(20):
            same(await (await conn.execute("select %s::int8", (n,))).fetchone(), (n,), "async")
        async with conn.pipeline():
            cursors = [await conn.execute("select %s::int4", (n,)) for n in range(50)]
            same([await cur.fetchone() for cur in cursors], [(n,) for n in range(50)], "async pipeline")
        task = asyncio.create_task(conn.execute("select pg_sleep(60)"))
        await asyncio.sleep(0.1)
        task.cancel()  # the driver sends a cancel request
        try:
            await task
            sys.exit("psycopg3: the task was not cancelled")
        except asyncio.CancelledError:
            pass
        same(await (await conn.execute("select 7")).fetchone(), (7,), "after an async cancel")


with connect(application_name="psycopg3", options="-c statement_timeout=55s") as conn:
    same(bool(conn.pgconn.ssl_in_use), len(sys.argv) > 4, "TLS")
    same(conn.execute("show statement_timeout").fetchone(), ("55s",), "options")
    same(conn.execute("show application_name").fetchone(), ("psycopg3",), "application_name")
    conn.rollback()
    notices = []
    conn.add_notice_handler(lambda diag: notices.append(diag.message_primary))
    conn.execute("do $$ begin raise notice 'heed this'; end $$")
    same(notices, ["heed this"], "notice")
    conn.rollback()
    for part in (types, prepared, transactions, pipelines, copies, cursors, large, cancels):
        part(conn)
        same(conn.info.transaction_status.name, "IDLE", f"status after {part.__name__}")
crowd()
asyncio.run(asynchronous())
error = fails(psycopg.OperationalError, "no such database", lambda: psycopg.connect(**PARAMS | dict(dbname="nowhere")))
same("nowhere" in str(error), True, f"message of {error}")
print("psycopg3", psycopg.__version__, "libpq", psycopg.pq.version())
