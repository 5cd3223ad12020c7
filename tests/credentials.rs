//! Passwords that come from files, programs and libpq's files, that change while the program runs, and that nobody may see.

use crate::support::iam::{Checker, Key, Keys, write_date};
use crate::support::tls::Authority;
use crate::support::web::{Web, ok};
use crate::support::{Ambassador, Client, Dir, cluster, wait_until};
use pg_ambassador::demo::cluster::{Cluster, Options};
use std::collections::HashSet;
use std::os::unix::fs::PermissionsExt;
use std::os::unix::process::ExitStatusExt;
use std::path::Path;
use std::process::Command;
use std::sync::OnceLock;
use std::time::{Duration, SystemTime};

const LOGIN: [(&str, &str); 2] = [("user", "somebody"), ("database", "postgres")];

/// A server with roles that have to prove who they are: each has its own name as its password.
fn strict() -> &'static Cluster {
    static STRICT: OnceLock<Cluster> = OnceLock::new();
    STRICT.get_or_init(|| {
        let roles = ["filed", "vault_1", "vault_2", "passed", "served", "first", "second"];
        let names = roles.join(",");
        let cluster = cluster(&Options {
            hba: vec![format!("host all {names} 127.0.0.1/32 scram-sha-256")],
            ..Options::default()
        });
        for role in roles {
            cluster.psql(0, &format!("create role {role} login password '{role}'")).unwrap();
        }
        cluster
    })
}

fn url(user: &str, more: &str) -> String {
    format!("postgres://{user}@127.0.0.1:{}/postgres?sslmode=disable&{more}", strict().port())
}

fn console(ambassador: &Ambassador, command: &str) {
    Client::login(ambassador.port, &[("user", "ambassador"), ("database", "ambassador")]).query(command);
}

#[test]
fn a_password_file_is_followed_through_a_swapped_link_and_no_working_connection_is_dropped() {
    let dir = Dir::new();
    dir.write("old", "filed\n");
    dir.write("new", "another password\n");
    let link = dir.path().join("link");
    std::os::unix::fs::symlink("old", &link).unwrap();
    let ambassador = Ambassador::start(&[url("filed", &format!("password_file={}", link.display()))]);
    let mut working = Client::login(ambassador.port, &LOGIN);
    working.query("begin");
    let backend = working.value("select pg_backend_pid()");
    // As Kubernetes does it: the link is replaced by another.
    let next = dir.path().join("next");
    std::os::unix::fs::symlink("new", &next).unwrap();
    std::fs::rename(&next, &link).unwrap();
    strict().psql(0, "alter role filed password 'another password'").unwrap();
    // Needs a connection of its own. Whether the change was seen before or is only now, after a refusal: it works at once.
    let mut other = Client::login(ambassador.port, &LOGIN);
    assert_eq!(other.value("select current_user"), "filed");
    assert_eq!(working.value("select pg_backend_pid()"), backend);
    working.query("commit");
    strict().psql(0, "alter role filed password 'filed'").unwrap();
}

/// A program that prints what is in a file.
fn program(dir: &Dir, name: &str) -> String {
    let path = dir.write(name, &format!("#!/bin/sh\ncat {}/{name}.json\n", dir.path().display()));
    std::fs::set_permissions(&path, std::fs::Permissions::from_mode(0o700)).unwrap();
    path.display().to_string()
}

#[test]
fn a_role_that_comes_with_its_password_moves_to_new_connections_and_the_old_ones_end() {
    let dir = Dir::new();
    let print = |role: &str| {
        let next = dir.write("next", &format!(r#"{{"username":"{role}","password":"{role}"}}"#));
        std::fs::rename(next, dir.path().join("vault.json")).unwrap();
    };
    print("vault_1");
    let vault = program(&dir, "vault");
    let config = format!("url = \"{}\"\npassword_command = [\"{vault}\"]\npassword_ttl = \"2s\"\n", url("nobody", ""));
    let config = dir.write("ambassador.toml", &config);
    let ambassador = Ambassador::start(&["--config", config.to_str().unwrap()]);
    let mut client = Client::login(ambassador.port, &LOGIN);
    let mut working = Client::login(ambassador.port, &LOGIN);
    working.query("begin");
    assert_eq!(working.value("select current_user"), "vault_1");
    print("vault_2");
    let mut seen = HashSet::new();
    wait_until("the new role is used", || {
        seen.insert(client.value("select current_user"));
        seen.contains("vault_2")
    });
    assert_eq!(working.value("select current_user"), "vault_1", "what works is left alone");
    working.query("commit");
    wait_until("the old role's connections have ended", || {
        let sql = "select count(*) from pg_stat_activity where usename = 'vault_1'";
        client.query("select 1");
        strict().psql(0, sql).unwrap() == "0"
    });
    let row = &ambassador.show("CREDENTIALS")[0];
    assert_eq!((row[0].as_deref(), row[1].as_deref()), (Some("password_command"), Some("vault_2")));
}

#[test]
fn libpqs_passfile_and_service_file_are_read_as_libpq_reads_them() {
    let dir = Dir::new();
    let port = strict().port();
    let passfile = dir.write("pass", &format!("127.0.0.1:{port}:postgres:passed:passed\n*:*:*:served:served\n"));
    let passfile = passfile.display().to_string();
    let ambassador = Ambassador::start_with(&[url("passed", "")], &[("PGPASSFILE", &passfile)]);
    assert_eq!(Client::login(ambassador.port, &LOGIN).value("select current_user"), "passed");
    let service = dir.write(
        "services",
        &format!(
            "[shop]\nhost=127.0.0.1\nport={port}\nuser=served\ndbname=postgres\nsslmode=disable\npassfile={passfile}\n"
        ),
    );
    let service = service.display().to_string();
    for (args, more) in [(vec![], vec![("PGSERVICE", "shop")]), (vec!["postgres://?service=shop"], vec![])] {
        let env = [vec![("PGSERVICEFILE", service.as_str())], more].concat();
        let ambassador = Ambassador::start_with(&args, &env);
        assert_eq!(Client::login(ambassador.port, &LOGIN).value("select current_user"), "served");
    }
}

#[test]
fn each_user_may_be_another_role_upstream_with_a_password_of_its_own() {
    let dir = Dir::new();
    let file = dir.write("password", "first");
    let config = format!(
        "url = \"{}\"\n[users.shop]\nserver_user = \"first\"\nserver_password_file = \"{}\"\n\
         [users.reports]\nserver_user = \"second\"\nserver_password_command = [\"echo\", \"second\"]\n",
        url("passed", "password=passed"),
        file.display()
    );
    let config = dir.write("ambassador.toml", &config);
    let ambassador = Ambassador::start(&["--config", config.to_str().unwrap()]);
    for (user, role) in [("shop", "first"), ("reports", "second"), ("anybody", "passed")] {
        let mut client = Client::login(ambassador.port, &[("user", user), LOGIN[1]]);
        assert_eq!(client.value("select current_user"), role, "{user}");
    }
}

#[test]
fn what_cannot_be_a_credential_is_a_fault_with_its_place() {
    let dir = Dir::new();
    let open = dir.write("open", "secret");
    std::fs::set_permissions(&open, std::fs::Permissions::from_mode(0o666)).unwrap();
    let open = open.display();
    for (lines, place, words) in [
        ("password_file = \"/nowhere\"\n", ":2:17", "/nowhere: No such file"),
        (&*format!("password_file = \"{open}\"\n"), ":2:17", "chmod o-w"),
        (&*format!("passfile = \"{open}\"\n"), ":2:12", "chmod 0600"),
        ("password_command = [\"a\"]\npassword_file = \"/nowhere\"\n", ":2:20", "exclude each other"),
        ("credentials = \"aws_iam\"\n", ":2:15", "write one of aws_rds_iam"),
        ("password_command_timeout = 0\n", ":2:28", "cannot be off"),
        ("credentials = \"gcp_iam\"\n", ":2:15", "use sslmode=verify-full"),
        ("[users.app]\nserver_user = \"x\"\nserver_password_file = \"/nowhere\"\n", ":4:24", "/nowhere"),
        ("[users.app]\nserver_password = \"x\"\nserver_credentials = \"gcp_iam\"\n", ":4:22", "exclude each other"),
    ] {
        let text = format!("url = \"postgres://db/?sslmode=disable\"\n{lines}");
        let path = dir.write("ambassador.toml", &text);
        let output =
            Command::new(env!("CARGO_BIN_EXE_pg-ambassador")).args(["check", "--config"]).arg(&path).output().unwrap();
        let said = String::from_utf8(output.stderr).unwrap();
        assert!(!output.status.success() && said.contains(words), "{lines}: {said}");
        assert!(said.contains(&format!("{}{place}", path.display())), "{lines}: {said}");
        assert!(!said.contains("secret"));
    }
}

#[test]
fn another_authority_is_taken_over_without_dropping_a_working_connection() {
    let dir = Dir::new();
    let (old, new) = (Authority::new("old"), Authority::new("new"));
    let checker = Checker::start(&old.sign(&["127.0.0.1"]), strict().port(), |_, _| Ok(()));
    let roots = dir.write("roots.crt", &old.pem);
    let url = format!("postgres://postgres:secret@127.0.0.1:{}/postgres?sslrootcert={}", checker.port, roots.display());
    let args = [&url, "--checkout-timeout", "1s"];
    let ambassador = Ambassador::start(&args);
    let mut working = Client::login(ambassador.port, &LOGIN);
    working.query("begin");
    let backend = working.value("select pg_backend_pid()");
    checker.set_certificate(&new.sign(&["127.0.0.1"]));
    let mut other = Client::login(ambassador.port, &LOGIN);
    assert_eq!(other.try_query("select 1").err().unwrap().code(), "57P03");
    std::fs::write(&roots, &new.pem).unwrap();
    wait_until("the new authority is believed", || other.try_query("select 1").is_ok());
    assert_eq!(working.value("select pg_backend_pid()"), backend);
    console(&ambassador, "RECONNECT");
    assert_eq!(working.value("select pg_backend_pid()"), backend);
}

/// Where nobody may find a secret: everything that the program says or shows.
fn said(ambassador: &Ambassador) -> String {
    let mut all = ambassador.log();
    all.push_str(&ambassador.http("/metrics").1);
    all.push_str(&ambassador.http("/startupz").1);
    for row in ambassador.show("HELP") {
        let command = row[0].clone().unwrap();
        if let Some(table) = command.strip_prefix("SHOW ") {
            all.push_str(&format!("{:?}", ambassador.show(table)));
        }
    }
    let process = Path::new("/proc").join(ambassador.pid().to_string());
    for file in ["cmdline", "comm", "status", "environ"] {
        all.push_str(&String::from_utf8_lossy(&std::fs::read(process.join(file)).unwrap_or_default()));
    }
    all
}

#[test]
fn a_secret_is_found_nowhere_but_where_it_belongs() {
    const SECRETS: [&str; 7] =
        ["canary-url", "canary-file", "canary-command", "canary-late", "canary/key+", "canary-session", "canary-user"];
    let dir = Dir::new();
    let authority = Authority::new("ours");
    let keys = Keys::default();
    let checked = keys.clone();
    // Good for tokens; passwords are refused, so that there is something to complain of.
    let checker = Checker::start(&authority.sign(&["127.0.0.1"]), strict().port(), move |user, password| {
        checked.check(password, ("db.abc.eu-west-1.rds.amazonaws.com", 5432, "eu-west-1"), user)
    });
    let web = Web::start(move |_| {
        let expires = SystemTime::now() + Duration::from_secs(3600);
        let key = Key { secret: SECRETS[4].into(), session: Some(SECRETS[5].into()), expires: Some(expires) };
        keys.insert("ASIACANARY", key);
        ok(format!(
            r#"{{"AccessKeyId":"ASIACANARY","SecretAccessKey":"{}","Token":"{}","Expiration":"{}"}}"#,
            SECRETS[4],
            SECRETS[5],
            write_date(expires)
        ))
    });
    let roots = dir.write("roots.crt", &authority.pem);
    let file = dir.write("file", SECRETS[1]);
    dir.write("command.json", &format!(r#"{{"password":"{}"}}"#, SECRETS[2]));
    let command = program(&dir, "command");
    let place = format!("127.0.0.1:{}/postgres?sslrootcert={}", checker.port, roots.display());
    let config = format!(
        "checkout_timeout = \"1s\"\nstartup = \"listen-only\"\n[log]\nlevel = \"trace\"\n\
         [databases.url]\nurl = \"postgres://u:{}@{place}\"\n\
         [databases.file]\nurl = \"postgres://u@{place}\"\npassword_file = \"{}\"\n\
         [databases.command]\nurl = \"postgres://u@{place}\"\npassword_command = [\"{command}\"]\n\
         [databases.late]\nurl = \"postgres://u@{place}\"\npassword_command = [\"sh\", \"-c\", \"cat late; exit 1\"]\n\
         [databases.broken]\nurl = \"postgres://u@{place}\"\npassword_command = [\"cat\", \"{}/broken\"]\n\
         [databases.token]\nurl = \"postgres://postgres@{place}\"\ncredentials = \"aws_rds_iam\"\n\
         iam_host = \"db.abc.eu-west-1.rds.amazonaws.com\"\niam_port = 5432\n\
         [users.other]\npassword = \"{}\"\nserver_user = \"u\"\nserver_password = \"{}\"\n",
        SECRETS[0],
        file.display(),
        dir.path().display(),
        SECRETS[6],
        SECRETS[6],
    );
    let config = config.replace("iam_port = 5432", "iam_port = [\"5432\"]");
    dir.write("broken", &format!(r#"{{"password":"{}","#, SECRETS[3]));
    let config = dir.write("ambassador.toml", &config);
    let env = [("AWS_CONTAINER_CREDENTIALS_FULL_URI", web.url())];
    let env = env.each_ref().map(|(name, value)| (*name, value.as_str()));
    let mut ambassador = Ambassador::start_with(&["--config", config.to_str().unwrap()], &env);
    let mut all = String::new();
    for (user, database) in
        [("a", "url"), ("a", "file"), ("a", "command"), ("a", "late"), ("a", "broken"), ("other", "url")]
    {
        let error = Client::try_login(ambassador.port, &[("user", user), ("database", database)]).err().unwrap();
        assert_eq!(error.code(), "08001", "{database}: {error:?}");
        all.push_str(&format!("{error:?}"));
    }
    let mut client = Client::login(ambassador.port, &[("user", "a"), ("database", "token")]);
    assert_eq!(client.value("select current_user"), "postgres");
    std::fs::write(&config, "nonsense = \"canary-url\n").unwrap();
    ambassador.signal("HUP");
    wait_until("the reload is refused", || ambassador.log().contains("reload refused"));
    all.push_str(&said(&ambassador));
    assert!(all.contains("ASIACANARY"), "a key's id is no secret: SHOW CREDENTIALS has it");
    let seen = checker.seen();
    for secret in &SECRETS[..3] {
        assert!(seen.iter().any(|login| login.password == *secret), "{secret} was used");
        assert!(!all.contains(secret), "{secret}");
    }
    for secret in &SECRETS[3..] {
        assert!(!all.contains(secret), "{secret}");
    }
    let token = seen.iter().find(|login| login.accepted).unwrap();
    let signature = token.password.split("X-Amz-Signature=").nth(1).unwrap().split('&').next().unwrap();
    assert!(!all.contains(signature));
    // And no core file.
    let limits = std::fs::read_to_string(format!("/proc/{}/limits", ambassador.pid())).unwrap();
    let core = limits.lines().find(|line| line.starts_with("Max core file size")).unwrap();
    assert_eq!(core.split_whitespace().skip(4).take(2).collect::<Vec<_>>(), ["0", "0"]);
    ambassador.signal("ABRT");
    let status = ambassador.wait();
    assert!(status.signal() == Some(6) && !status.core_dumped(), "{status:?}");
}
