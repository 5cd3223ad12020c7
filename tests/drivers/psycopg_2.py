"""What programs ordinarily do with psycopg2 and SQLAlchemy. usage: psycopg_2.py HOST PORT DATABASE [CA]"""

import datetime as dt
import decimal
import io
import sys
import threading

import psycopg2
import psycopg2.extras
from psycopg2 import errors
import sqlalchemy as sa
from sqlalchemy import orm

HOST, PORT, DATABASE = sys.argv[1:4]
PARAMS = dict(host=HOST, port=PORT, dbname=DATABASE, user="app", password="secret of app", sslmode="disable")
if len(sys.argv) > 4:
    PARAMS |= dict(sslmode="verify-full", sslrootcert=sys.argv[4])


def same(got, wanted, what):
    if got != wanted:
        sys.exit(f"psycopg2: {what}: got {got!r:.300}, wanted {wanted!r:.300}")


def fails(kind, what, action):
    try:
        action()
    except kind as error:
        return error
    sys.exit(f"psycopg2: {what}: no {kind.__name__}")


def one(conn, query, *args):
    with conn.cursor() as cur:
        cur.execute(query, *args)
        return cur.fetchone()


def values(conn):
    row = (None, True, -5, 2**62, 1.25, decimal.Decimal("3.10"), "naïve 'q' \\", dt.date(2000, 2, 29),
           dt.datetime(2024, 1, 2, 3, 4, 5, 6), dt.timedelta(hours=-1), [1, 2, None], ["x", None, 'y"'])
    marks = ", ".join(["%s"] * len(row))
    for _ in range(10):
        same(one(conn, f"select {marks}", row), row, "values")
    data = bytes(range(256))
    same(bytes(one(conn, "select %s::bytea", (data,))[0]), data, "bytea")
    same(one(conn, "select %s::jsonb", (psycopg2.extras.Json({"a": [1, None]}),)), ({"a": [1, None]},), "jsonb")
    conn.commit()


def transactions(conn):
    with conn, conn.cursor() as cur:
        cur.execute("create table ledger (n int primary key)")
    try:
        with conn, conn.cursor() as cur:
            cur.execute("insert into ledger values (1)")
            cur.execute("insert into ledger values (1)")
    except errors.UniqueViolation as error:
        same(error.diag.constraint_name, "ledger_pkey", "constraint")
    same(one(conn, "select count(*) from ledger"), (0,), "rolled back")
    with conn.cursor() as cur:
        cur.execute("insert into ledger values (1); savepoint s")
        fails(errors.DivisionByZero, "division", lambda: cur.execute("select 1/0"))
        fails(errors.InFailedSqlTransaction, "failed", lambda: cur.execute("select 1"))
        cur.execute("rollback to s; insert into ledger values (2)")
    conn.commit()
    same(one(conn, "select array_agg(n) from ledger"), ([1, 2],), "savepoint")
    conn.rollback()
    conn.set_session(isolation_level="SERIALIZABLE", readonly=True)
    fails(errors.ReadOnlySqlTransaction, "read only", lambda: one(conn, "delete from ledger returning 1"))
    conn.rollback()
    conn.set_session(isolation_level="DEFAULT", readonly=False)
    # Two phases.
    conn.tpc_begin(conn.xid(1, f"{DATABASE} two", "phases"))
    one(conn, "insert into ledger values (9) returning n")
    conn.tpc_prepare()
    conn.tpc_rollback()
    same(one(conn, "select count(*) from ledger"), (2,), "two-phase rollback")
    conn.rollback()


def batches(conn):
    with conn, conn.cursor() as cur:
        got = psycopg2.extras.execute_values(
            cur, "insert into ledger values %s returning n", [(n,) for n in range(100, 1100)], page_size=1000, fetch=True)
        same(len(got), 1000, "execute_values")
        psycopg2.extras.execute_batch(cur, "delete from ledger where n = %s", [(n,) for n in range(100, 1100)])
        cur.execute("select count(*) from ledger")
        same(cur.fetchone(), (2,), "execute_batch")


def copies(conn):
    text = "".join(f"{n}\tline {n}\n" for n in range(20000))
    with conn, conn.cursor() as cur:
        cur.execute("create table heap (n int, t text)")
        cur.copy_expert("copy heap from stdin", io.StringIO(text))
        out = io.StringIO()
        cur.copy_expert("copy (select * from heap order by n) to stdout", out)
        same(out.getvalue() == text, True, "copy out")
    with conn.cursor() as cur:
        fails(errors.InvalidTextRepresentation, "rubbish", lambda: cur.copy_expert("copy heap from stdin", io.StringIO("x\ty\n")))
    conn.rollback()


def cursors(conn):
    with conn.cursor("named", withhold=False) as cur:
        cur.itersize = 100
        cur.execute("select generate_series(1, 1000)")
        same(sum(row[0] for row in cur), 500500, "named cursor")
    conn.commit()


def large_objects(conn):
    with conn:
        large = conn.lobject(0, "wb")
        large.write(b"0123456789" * 10000)
        oid = large.oid
        large.close()
    with conn:
        large = conn.lobject(oid, "rb")
        large.seek(50000)
        same(large.read(10), b"0123456789", "large object")
        large.unlink()


def large_rows(conn):
    for size in (1, 8192, 65536, 1 << 20, 16 << 20):
        same(one(conn, "select %s", ("y" * size,)) == ("y" * size,), True, f"{size} bytes")
    conn.commit()


def cancels(conn):
    timer = threading.Timer(0.1, conn.cancel)
    timer.start()
    fails(errors.QueryCanceled, "cancel", lambda: one(conn, "select pg_sleep(60)"))
    timer.join()
    conn.rollback()
    same(one(conn, "select 1"), (1,), "after a cancel")
    conn.rollback()


class Base(orm.DeclarativeBase):
    pass


class Author(Base):
    __tablename__ = "author"
    id: orm.Mapped[int] = orm.mapped_column(primary_key=True)
    name: orm.Mapped[str]
    tags: orm.Mapped[list] = orm.mapped_column(sa.JSON)
    books: orm.Mapped[list["Book"]] = orm.relationship(back_populates="author")


class Book(Base):
    __tablename__ = "book"
    id: orm.Mapped[int] = orm.mapped_column(primary_key=True)
    title: orm.Mapped[str]
    price: orm.Mapped[decimal.Decimal] = orm.mapped_column(sa.Numeric(10, 2))
    author_id: orm.Mapped[int] = orm.mapped_column(sa.ForeignKey("author.id"))
    author: orm.Mapped[Author] = orm.relationship(back_populates="books")


def mapper(driver):
    query = {name: value for name, value in PARAMS.items() if name.startswith("ssl")}
    url = sa.URL.create(f"postgresql+{driver}", "app", PARAMS["password"], HOST, int(PORT), DATABASE, query)
    engine = sa.create_engine(url, pool_size=10, pool_pre_ping=True)
    Base.metadata.drop_all(engine)
    Base.metadata.create_all(engine)
    with orm.Session(engine) as session:
        for n in range(30):
            books = [Book(title=f"book {n}.{m}", price=decimal.Decimal("9.99")) for m in range(10)]
            session.add(Author(name=f"author {n}", tags=[n, "tag"], books=books))
        session.commit()
    with orm.Session(engine) as session:
        authors = session.scalars(sa.select(Author).options(orm.selectinload(Author.books)).order_by(Author.id)).all()
        same([len(author.books) for author in authors], [10] * 30, f"SQLAlchemy with {driver}: books")
        same(authors[7].tags, [7, "tag"], f"SQLAlchemy with {driver}: json")
        total = session.scalar(sa.select(sa.func.sum(Book.price)))
        same(total, decimal.Decimal("2997.00"), f"SQLAlchemy with {driver}: sum")
        with session.begin_nested() as nested:
            session.execute(sa.delete(Book))
            nested.rollback()
        authors[0].name = "renamed"
        session.commit()
        result = session.execute(sa.select(Book.id).execution_options(yield_per=50))
        same(len(result.all()), 300, f"SQLAlchemy with {driver}: server-side cursor")
    tables = sorted(sa.inspect(engine).get_table_names())
    same({"author", "book"} <= set(tables), True, f"SQLAlchemy with {driver}: reflection of {tables}")
    same([column["name"] for column in sa.inspect(engine).get_columns("book")], ["id", "title", "price", "author_id"], "columns")
    engine.dispose()


def crowd():
    faults = []
    def work(who):
        try:
            conn = psycopg2.connect(**PARAMS)
            for n in range(30):
                same(one(conn, "select %s", (f"{who}-{n}",)), (f"{who}-{n}",), "own answer")
                one(conn, "update ledger set n = n where n = 1 returning n")
                conn.commit()
            conn.close()
        except BaseException as error:  # noqa: BLE001
            faults.append(f"client {who}: {error}")
    threads = [threading.Thread(target=work, args=(who,)) for who in range(20)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    same(faults, [], "20 clients")


conn = psycopg2.connect(**PARAMS)
for part in (values, transactions, batches, copies, cursors, large_objects, large_rows, cancels):
    part(conn)
    same(conn.get_transaction_status(), psycopg2.extensions.TRANSACTION_STATUS_IDLE, f"status after {part.__name__}")
crowd()
conn.close()
for driver in ("psycopg2", "psycopg"):
    mapper(driver)
print("psycopg2", psycopg2.__version__, "SQLAlchemy", sa.__version__)
