//! What the catalogue of a real database says, and whether a real replica agrees: nothing called a read is refused there.

use crate::support::{cluster, shared, wait_until};
use pg_ambassador::demo::cluster::{Options, SUPERUSER};
use pg_ambassador::routing::{Catalogue, catalogue};
use pg_ambassador::sql::access;
use pg_ambassador::sql::reads::Run;
use tokio_postgres::{Client, NoTls};

const OBJECTS: &str = "
    CREATE SCHEMA reads; CREATE SCHEMA other; SET search_path = reads;
    CREATE SEQUENCE s; CREATE TABLE t (id serial, a int DEFAULT nextval('s'), CHECK (a > 0)); INSERT INTO t (a) VALUES (1), (2);
    CREATE FUNCTION vol(int) RETURNS int LANGUAGE plpgsql AS 'BEGIN INSERT INTO reads.t (a) VALUES ($1); RETURN $1; END';
    CREATE FUNCTION stab(int) RETURNS int STABLE LANGUAGE sql AS 'SELECT $1';
    CREATE FUNCTION other.twice(int) RETURNS int LANGUAGE sql AS 'SELECT $1';
    CREATE FUNCTION twice(int) RETURNS int STABLE LANGUAGE sql AS 'SELECT $1';
    CREATE FUNCTION with_default(int DEFAULT nextval('reads.s')) RETURNS int STABLE LANGUAGE sql AS 'SELECT 1';
    CREATE FUNCTION of_row(t) RETURNS int LANGUAGE sql AS 'SELECT nextval(''reads.s'')::int';
    CREATE VIEW v_vol AS SELECT vol(a) FROM t; CREATE VIEW v_v_vol AS SELECT * FROM v_vol;
    CREATE VIEW v_next AS SELECT nextval('reads.s'); CREATE VIEW v_ok AS SELECT stab(a), random() FROM t;
    CREATE VIEW v_lock AS SELECT * FROM t FOR UPDATE;
    CREATE MATERIALIZED VIEW m AS SELECT nextval('reads.s') AS n;
    CREATE TABLE t_policy (a int); CREATE POLICY p ON t_policy USING (vol(a) > 0);
    CREATE TABLE t_policy_next (a int); CREATE POLICY p ON t_policy_next USING (nextval('reads.s') > 0);
    CREATE TABLE t_insert (a int); CREATE POLICY p ON t_insert FOR INSERT WITH CHECK (vol(a) > 0);
    CREATE DOMAIN d_vol AS int CHECK (vol(value) > 0); CREATE DOMAIN d_ok AS int CHECK (value > 0);
    CREATE TABLE t_domain (a d_vol); CREATE FUNCTION of_domain(d_vol) RETURNS int STABLE LANGUAGE sql AS 'SELECT 1';
    CREATE TYPE pair AS (a int, b d_vol); CREATE TABLE t_pair (p pair[]);
    CREATE FUNCTION vol2(int, int) RETURNS int LANGUAGE sql AS 'SELECT reads.vol($1)';
    CREATE OPERATOR <!> (LEFTARG = int, RIGHTARG = int, FUNCTION = vol2);
    CREATE AGGREGATE agg_vol(int) (SFUNC = vol2, STYPE = int); CREATE AGGREGATE agg_ok(int) (SFUNC = int4pl, STYPE = int);
    CREATE TYPE mood AS ENUM ('a'); CREATE FUNCTION of_mood(mood) RETURNS int LANGUAGE sql AS 'SELECT reads.vol(1)';
    CREATE CAST (mood AS int) WITH FUNCTION of_mood(mood); CREATE TABLE t_mood (m mood);
    CREATE UNLOGGED TABLE u (a int);
    CREATE TABLE parent (a int) PARTITION BY LIST (a); CREATE UNLOGGED TABLE child PARTITION OF parent DEFAULT;
";

/// Texts, and whether they are to be called reads.
const TEXTS: &[(&str, bool)] = &[
    ("SELECT * FROM t", true),
    ("SELECT stab(a), twice(a) FROM t", false),
    ("SELECT stab(a), reads.twice(a) FROM t", true),
    ("SELECT other.twice(1)", false),
    ("SELECT vol(1)", false),
    ("SELECT reads.vol(1)", false),
    ("SELECT with_default()", false),
    ("SELECT t.of_row FROM t", false),
    ("SELECT ('s'::regclass).nextval", false),
    ("SELECT * FROM v_vol", false),
    ("SELECT * FROM reads.v_v_vol", false),
    ("TABLE v_next", false),
    ("TABLE v_lock", false),
    ("TABLE v_ok", true),
    ("TABLE m", true),
    ("TABLE t_policy", false),
    ("TABLE t_policy_next", false),
    ("TABLE t_insert", true),
    ("SELECT 1::d_vol", false),
    ("SELECT 1::d_ok", true),
    ("SELECT * FROM t_domain", false),
    ("SELECT of_domain(1)", false),
    ("SELECT * FROM t_pair", false),
    ("SELECT 1 <!> 2", false),
    ("SELECT 1 OPERATOR(reads.<!>) 2", false),
    ("SELECT agg_vol(a) FROM t", false),
    ("SELECT agg_ok(a), count(*) FROM t", true),
    ("SELECT m::int FROM t_mood", false),
    ("TABLE u", false),
    ("TABLE parent", false),
    ("COPY t TO STDOUT", true),
    ("COPY (SELECT vol(1)) TO STDOUT", false),
    ("EXPLAIN ANALYZE SELECT * FROM t", true),
    ("SHOW search_path", true),
    ("SELECT * FROM s", true),
    ("SELECT 1; TABLE t", true),
    ("SELECT missing(1)", false),
    ("SELECT txid_current()", false),
    ("SELECT pg_current_wal_lsn()", false),
    ("SELECT * FROM pg_settings, pg_stats LIMIT 1", true),
    ("SELECT * FROM pg_stat_activity", false),
    ("SELECT * FROM pg_locks", false),
    ("SELECT count(*) FROM information_schema.columns", true),
];

async fn client(port: u16, database: &str) -> Client {
    let config = format!("host=127.0.0.1 port={port} user={SUPERUSER} dbname={database} options='-c jit=off'");
    let (client, connection) = tokio_postgres::connect(&config, NoTls).await.unwrap();
    tokio::spawn(connection);
    client
}

async fn load(client: &Client, allowed: &[&str]) -> Catalogue {
    let [allowed, writes, harmless] = catalogue::parameters(allowed.iter().copied());
    let rows = client.query(catalogue::QUERY, &[&allowed, &writes, &harmless]).await.unwrap();
    Catalogue::from_rows(rows.iter().map(|row| (row.get(0), row.get(1), row.get(2), row.get(3))))
}

#[tokio::test]
async fn what_is_called_a_read_runs_on_a_replica_and_what_hides_a_write_is_found() {
    let cluster = cluster(&Options { replicas: 1, ..Options::default() });
    let primary = client(cluster.port(), "postgres").await;
    primary.batch_execute(OBJECTS).await.unwrap();
    let lsn = cluster.psql(0, "SELECT pg_current_wal_flush_lsn()").unwrap();
    let replayed = format!("SELECT pg_last_wal_replay_lsn() >= '{lsn}'");
    wait_until("the replica has what was made", || cluster.psql(1, &replayed).unwrap() == "t");

    // A replica can say it as well as the primary.
    let replica = client(cluster.nodes[1].port, "postgres").await;
    let catalogue = load(&replica, &[]).await;
    assert_eq!(catalogue, load(&primary, &[]).await);
    assert!(!catalogue.suspects_everything());
    replica.batch_execute("SET search_path = reads").await.unwrap();
    for (text, expected) in TEXTS {
        let reads = access(text.as_bytes(), true, &catalogue).run == Run::Read;
        assert_eq!(reads, *expected, "{text}");
        if reads && !text.starts_with("COPY") {
            let text = format!("BEGIN READ ONLY; {text}; ROLLBACK");
            replica.batch_execute(&text).await.unwrap_or_else(|error| panic!("{text}: {error:?}"));
        }
    }
}

#[tokio::test]
async fn an_operator_may_vouch_for_a_function() {
    let cluster = shared();
    cluster.psql(0, "CREATE DATABASE vouched").unwrap();
    let client = client(cluster.port(), "vouched").await;
    let functions = "CREATE FUNCTION one() RETURNS int LANGUAGE sql AS 'SELECT 1';
        CREATE FUNCTION two() RETURNS int LANGUAGE sql AS 'SELECT 2'; CREATE VIEW v AS SELECT one(), two();
        CREATE VIEW w AS SELECT one()";
    client.batch_execute(functions).await.unwrap();
    for (allowed, expected) in [
        (&[][..], [false, false, false, false]),
        (&["one"], [true, false, false, true]),
        (&["public.one", "two"], [true, true, true, true]),
        (&["other.one"], [false, false, false, false]),
    ] {
        let catalogue = load(&client, allowed).await;
        let reads = ["SELECT one()", "SELECT two()", "TABLE v", "TABLE w"]
            .map(|text| access(text.as_bytes(), true, &catalogue).run == Run::Read);
        assert_eq!(reads, expected, "{allowed:?}");
    }
}

#[tokio::test]
async fn a_cast_or_operator_that_no_text_shows_makes_everything_suspect() {
    let cluster = shared();
    for (database, what) in [
        ("hidden_cast", "CREATE CAST (text AS int) WITH FUNCTION f(text) AS ASSIGNMENT"),
        ("hidden_operator", "CREATE OPERATOR = (LEFTARG = text, RIGHTARG = int, FUNCTION = g)"),
    ] {
        cluster.psql(0, &format!("CREATE DATABASE {database}")).unwrap();
        let client = client(cluster.port(), database).await;
        let functions = "CREATE FUNCTION f(text) RETURNS int LANGUAGE plpgsql AS 'BEGIN RETURN 1; END';
            CREATE FUNCTION g(text, int) RETURNS bool LANGUAGE plpgsql AS 'BEGIN RETURN true; END'";
        client.batch_execute(functions).await.unwrap();
        assert!(!load(&client, &[]).await.suspects_everything());
        client.batch_execute(what).await.unwrap();
        assert!(load(&client, &[]).await.suspects_everything(), "{what}");
    }
}
