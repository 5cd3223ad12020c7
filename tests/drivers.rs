//! Client drivers at their defaults do their ordinary work, plain and over TLS.
//!
//! The programs are in tests/drivers/; `scripts/drivers` fetches the drivers. What was not fetched is skipped, and says so.

mod newest;
mod tokio_postgres;

use crate::support::{Ambassador, shared, url};
use pg_ambassador::demo::cluster::Cluster;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::OnceLock;

const ROLE: &str = "app";
const PASSWORD: &str = "secret of app";

/// How long a driver's whole program may take on a busy machine before it hangs.
const PATIENCE_WITH_A_PROGRAM: &str = "300";

/// Where `scripts/drivers` puts what it fetches.
pub fn fetched(part: &str) -> PathBuf {
    let dir = std::env::var_os("PG_AMBASSADOR_DRIVERS").map(PathBuf::from);
    dir.unwrap_or_else(|| Path::new(env!("CARGO_MANIFEST_DIR")).join(".drivers")).join(part)
}

/// Says on the terminal itself, past the test harness, that something is not tested.
pub fn skip(what: &str, why: &str) {
    use std::io::Write;
    let _ = writeln!(std::io::stderr(), "skipped {what}: {why}");
}

/// How clients come in.
#[derive(Clone, Copy, PartialEq, Eq)]
pub enum Way {
    Plain,
    Tls,
}

/// Certificates of the ambassador, good for localhost, and who may log in.
struct Files {
    dir: PathBuf,
}

impl Files {
    fn get() -> &'static Self {
        static FILES: OnceLock<Files> = OnceLock::new();
        FILES.get_or_init(|| {
            // In the cluster's directory: gone with it.
            let dir = shared().dir().join("drivers");
            std::fs::create_dir_all(&dir).unwrap();
            let names = vec!["localhost".to_owned(), "127.0.0.1".to_owned()];
            let made = rcgen::generate_simple_self_signed(names).unwrap();
            std::fs::write(dir.join("cert.pem"), made.cert.pem()).unwrap();
            std::fs::write(dir.join("key.pem"), made.signing_key.serialize_pem()).unwrap();
            std::fs::write(dir.join("users"), format!("\"{ROLE}\" \"{PASSWORD}\"\n")).unwrap();
            Self { dir }
        })
    }

    fn path(&self, name: &str) -> String {
        self.dir.join(name).to_string_lossy().into_owned()
    }
}

/// An ambassador with few servers for many clients, in front of a database of the test's own.
fn ambassador(cluster: &Cluster, database: &str, way: Way) -> Ambassador {
    let role = format!(
        "do $$ begin create role {ROLE} superuser login; exception when duplicate_object or unique_violation then end $$"
    );
    cluster.psql(0, &role).unwrap();
    cluster.psql(0, &format!("create database {database}")).unwrap();
    let files = Files::get();
    let (cert, key, users) = (files.path("cert.pem"), files.path("key.pem"), files.path("users"));
    let url = url(cluster);
    let mut args = vec![&*url, "--pool-size", "4"];
    if way == Way::Tls {
        args.extend(["--tls-cert", &cert, "--tls-key", &key, "--auth-method", "scram-sha-256", "--auth-file", &users]);
        args.extend(["--set", "tls.required=true"]);
    }
    Ambassador::start(&args)
}

/// Runs a program with the place and the certificate as its last arguments; it must succeed.
fn run(mut command: Vec<String>, env: &[(&str, PathBuf)], cluster: &Cluster, database: &str, way: Way) {
    let ambassador = ambassador(cluster, database, way);
    command.extend(["127.0.0.1".to_owned(), ambassador.port.to_string(), database.to_owned()]);
    if way == Way::Tls {
        command.push(Files::get().path("cert.pem"));
    }
    let mut program = Command::new("timeout");
    program.args(["-k", "10", PATIENCE_WITH_A_PROGRAM]).args(&command).stdin(Stdio::null());
    for (name, _) in std::env::vars_os().filter(|(name, _)| name.to_string_lossy().starts_with("PG")) {
        program.env_remove(name);
    }
    for (name, value) in env {
        program.env(name, value);
    }
    let output = program.output().unwrap();
    let text = [output.stdout, output.stderr].concat();
    assert!(
        output.status.success(),
        "{command:?}: {}\n{}\nThe ambassador's log:\n{}",
        output.status,
        String::from_utf8_lossy(&text),
        ambassador.log()
    );
    assert_eq!(ambassador.metric("pg_ambassador_panics_total"), 0.0);
}

fn program(name: &str) -> String {
    format!("{}/tests/drivers/{name}", env!("CARGO_MANIFEST_DIR"))
}

/// Runs a driver's program if its part was fetched.
fn run_fetched(part: &str, name: &str, before: &[&str], env: &str, database: &str, way: Way) {
    let dir = fetched(part);
    if !dir.join(".stamp").exists() {
        return skip(name, &format!("{} is not there: run scripts/drivers", dir.display()));
    }
    let libraries = match part {
        "java" => dir.join("*"),
        "node" => dir.join("node_modules"),
        _ => dir,
    };
    let command = before.iter().map(|&word| word.to_owned()).chain([program(name)]).collect();
    run(command, &[(env, libraries)], shared(), database, way);
}

macro_rules! drivers {
    ($($plain:ident, $tls:ident: $run:expr;)*) => {$(
        #[test]
        fn $plain() {
            $run(stringify!($plain), Way::Plain);
        }

        #[test]
        fn $tls() {
            $run(stringify!($tls), Way::Tls);
        }
    )*};
}

drivers! {
    psql_does_its_ordinary_work_plain, psql_does_its_ordinary_work_over_tls: psql;
    psycopg_does_its_ordinary_work_plain, psycopg_does_its_ordinary_work_over_tls: psycopg;
    psycopg2_and_sqlalchemy_do_their_ordinary_work_plain, psycopg2_and_sqlalchemy_do_their_ordinary_work_over_tls: psycopg2;
    asyncpg_does_its_ordinary_work_plain, asyncpg_does_its_ordinary_work_over_tls: asyncpg;
    node_postgres_does_its_ordinary_work_plain, node_postgres_does_its_ordinary_work_over_tls: node_postgres;
    postgres_js_does_its_ordinary_work_plain, postgres_js_does_its_ordinary_work_over_tls: postgres_js;
    pgjdbc_does_its_ordinary_work_plain, pgjdbc_does_its_ordinary_work_over_tls: pgjdbc;
    tokio_postgres_does_its_ordinary_work_plain, tokio_postgres_does_its_ordinary_work_over_tls: tokio_postgres::run;
}

fn psql(database: &str, way: Way) {
    let path = std::env::var_os("PATH").unwrap_or_default();
    let dirs = [shared().binaries().dir().to_owned()].into_iter().chain(std::env::split_paths(&path));
    let path = std::env::join_paths(dirs).unwrap();
    run(vec![program("psql.sh")], &[("PATH", path.into())], shared(), database, way);
}

fn psycopg(database: &str, way: Way) {
    run_fetched("python", "psycopg3.py", &["python3"], "PYTHONPATH", database, way);
}

fn psycopg2(database: &str, way: Way) {
    run_fetched("python", "psycopg_2.py", &["python3"], "PYTHONPATH", database, way);
}

fn asyncpg(database: &str, way: Way) {
    run_fetched("python", "asyncpg_.py", &["python3"], "PYTHONPATH", database, way);
}

fn node_postgres(database: &str, way: Way) {
    run_fetched("node", "node/pg.js", &["node", "--no-deprecation"], "NODE_PATH", database, way);
}

fn postgres_js(database: &str, way: Way) {
    run_fetched("node", "node/postgres.js", &["node"], "NODE_PATH", database, way);
}

fn pgjdbc(database: &str, way: Way) {
    // Quick to start rather than quick in the long run.
    run_fetched("java", "Pgjdbc.java", &["java", "-XX:TieredStopAtLevel=1"], "CLASSPATH", database, way);
}

#[test]
fn a_refused_client_is_told_how_long_it_waited_and_logged_with_its_plain_address() {
    let port = pg_ambassador::demo::cluster::free_port().unwrap();
    let url = format!("postgres://127.0.0.1:{port}/?sslmode=disable");
    let ambassador = Ambassador::start(&[&url, "--checkout-timeout", "300ms"]);
    let params = [("user", "postgres"), ("database", "postgres")];
    let error = crate::support::Client::try_login(ambassador.port, &params).err().expect("there is no server");
    assert_eq!(error.code(), "57P03");
    let detail = error.field(b'D').unwrap();
    let waited = detail.split("waited_ms=").nth(1).unwrap().split(' ').next().unwrap();
    assert!(waited.parse::<u64>().unwrap() > 0, "{detail}");
    crate::support::wait_until("the refusal is logged", || ambassador.log().contains("refused: "));
    assert!(ambassador.log().contains("peer=127.0.0.1:"), "{}", ambassador.log());
}
