//! What a stranger who writes something wrong is told: every fault at once, where it is, and what would be right.

use std::io::Write;
use std::process::{Command, Stdio};

/// Runs the program in an empty environment; what it wrote to the standard error stream, and whether it succeeded.
fn run(args: &[&str], env: &[(&str, &str)]) -> (bool, String) {
    let mut command = Command::new(env!("CARGO_BIN_EXE_pg-ambassador"));
    command.args(args).env_clear().envs(env.iter().copied()).stdin(Stdio::null());
    let output = command.output().unwrap();
    (output.status.success(), String::from_utf8_lossy(&output.stderr).into_owned())
}

/// Checks a configuration file with these contents; what the program says, with the file's name in short.
fn check(text: &str) -> String {
    let mut file = tempfile(text);
    file.flush().unwrap();
    let path = file.path.to_str().unwrap().to_owned();
    let (good, said) = run(&["check", "--config", &path], &[]);
    assert!(!good, "no fault was found in:\n{text}");
    said.replace(&path, "FILE")
}

struct TempFile {
    path: std::path::PathBuf,
    file: std::fs::File,
}

impl TempFile {
    fn flush(&mut self) -> std::io::Result<()> {
        self.file.flush()
    }
}

impl Drop for TempFile {
    fn drop(&mut self) {
        let _ = std::fs::remove_file(&self.path);
    }
}

fn tempfile(text: &str) -> TempFile {
    use std::sync::atomic::{AtomicU32, Ordering};
    static NUMBER: AtomicU32 = AtomicU32::new(0);
    let number = NUMBER.fetch_add(1, Ordering::Relaxed);
    let path = std::env::temp_dir().join(format!("pg-ambassador-check-{}-{number}.toml", std::process::id()));
    let mut file = std::fs::File::create_new(&path).unwrap();
    file.write_all(text.as_bytes()).unwrap();
    TempFile { path, file }
}

#[test]
fn every_fault_of_a_file_is_reported_at_once_with_its_line_and_column() {
    let said = check(
        "url = \"postgres://db\"\npool_sze = 3\npool_size = \"many\"\nlisten = [\"0.0.0.0:6432\"]\n\
         checkout_timeout = 30\n[log]\nlevel = \"loud\"\n[databases.x]\nhots = [\"a\"]\n[tls]\ncert = \"/nope\"\n",
    );
    for expected in [
        "FILE:2:12: unknown setting pool_sze; did you mean pool_size?",
        "FILE:3:13: pool_size: expected a whole number, found a string",
        "FILE:4:10: listen: 0.0.0.0:6432 can be reached from other machines: set tls.cert and tls.key",
        "FILE:5:20: checkout_timeout: 30 needs a unit: write \"30s\"",
        "FILE:7:9: log.level: \"loud\": write error, warn, info, debug or trace",
        "FILE:8:12: database \"x\" has no host",
        "FILE:9:8: unknown setting databases.x.hots; did you mean hosts?",
        "FILE:11:8: tls.cert goes together with tls.key",
        "the configuration has 8 faults",
    ] {
        assert!(said.contains(expected), "{expected}\nis not in\n{said}");
    }
}

#[test]
fn a_file_that_is_no_toml_is_told_so_and_nothing_that_follows_from_it() {
    let said = check("pool_size = [\nurl = \"postgres://db\"\n");
    assert!(said.contains("FILE:2:"), "{said}");
    assert!(!said.contains("unknown setting") && !said.contains("nothing to connect to"), "{said}");
}

#[test]
fn settings_beside_a_missing_url_are_not_called_unknown() {
    let said = check("drain_timeout = \"1s\"\n[log]\nlevel = \"info\"\n");
    assert!(said.contains("there is nothing to connect to") && !said.contains("unknown"), "{said}");
}

#[test]
fn an_empty_url_is_a_missing_one() {
    for (args, env) in [(&["check", ""][..], &[][..]), (&["check"], &[("PG_AMBASSADOR_URL", "")])] {
        let (good, said) = run(args, env);
        assert!(!good && said.contains("there is nothing to connect to"), "{said}");
    }
}

#[test]
fn a_log_level_may_name_modules() {
    let text = "url = \"postgres://db\"\n[log]\nlevel = \"info,pg_ambassador::pool=debug\"\n";
    let file = tempfile(text);
    let (good, said) = run(&["check", "--config", file.path.to_str().unwrap()], &[]);
    assert!(good, "{said}");
}

#[test]
fn an_unknown_environment_variable_is_a_fault_that_names_the_right_one() {
    let (good, said) = run(&["check", "postgres://db"], &[("PG_AMBASSADOR_POOLSIZE", "3")]);
    assert!(!good && said.contains("PG_AMBASSADOR_POOLSIZE: unknown setting; did you mean PG_AMBASSADOR_POOL_SIZE?"));
}

#[test]
fn an_unknown_setting_on_the_command_line_is_a_fault() {
    let (good, said) = run(&["check", "postgres://db", "--set", "pool_sise=3"], &[]);
    assert!(!good && said.contains("--set pool_sise: unknown setting pool_sise; did you mean pool_size?"), "{said}");
}

#[test]
fn an_address_that_is_taken_is_named_with_the_flag_that_chooses_another() {
    let taken = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let address = taken.local_addr().unwrap().to_string();
    let url = "postgres://127.0.0.1:1/?sslmode=disable";
    for (listen, admin, flag) in
        [(address.as_str(), "off", "--listen"), ("127.0.0.1:0", address.as_str(), "--admin-listen")]
    {
        let (good, said) = run(&["run", url, "--listen", listen, "--admin-listen", admin], &[]);
        assert!(!good && said.contains(&format!("cannot listen on {address}")), "{said}");
        assert!(said.trim_end().ends_with(&format!("choose another address with {flag}")), "{said}");
    }
}

#[test]
fn an_environment_that_is_no_text_does_not_stop_the_program() {
    use std::os::unix::ffi::OsStrExt;
    let mut command = Command::new(env!("CARGO_BIN_EXE_pg-ambassador"));
    command.args(["check", "postgres://db"]).env_clear().env("X", std::ffi::OsStr::from_bytes(b"\xff"));
    assert!(command.output().unwrap().status.success());
}

#[test]
fn functions_to_be_trusted_are_named_in_a_file_the_environment_or_on_the_command_line() {
    let text = "url = \"postgres://db\"\nread_functions = [\"geo.distance\", \"area\"]\n\
                [databases.x]\nhosts = [\"a\"]\n[databases.y]\nhosts = [\"a\"]\nread_functions = [\"only\"]\n";
    let file = tempfile(text);
    let mut command = Command::new(env!("CARGO_BIN_EXE_pg-ambassador"));
    let checked = |command: &mut Command| {
        let output = command.env_clear().output().unwrap();
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
        let text = String::from_utf8(output.stdout).unwrap();
        let of = |key: &str| {
            let line = text.lines().find(|line| line.split(" =").next().is_some_and(|k| k.trim() == key)).unwrap();
            line.split_once("= ").unwrap().1.split("  #").next().unwrap().to_owned()
        };
        ["read_functions", "databases.x.read_functions", "databases.y.read_functions"].map(of)
    };
    command.args(["check", "--config"]).arg(&file.path);
    assert_eq!(checked(&mut command), ["geo.distance, area", "geo.distance, area", "only"]);
    command.args(["--set", "read_functions=a.b, c"]);
    assert_eq!(checked(&mut command), ["a.b, c", "a.b, c", "only"]);
    let said = check("url = \"postgres://db\"\nread_functions = [\"f(int)\"]\n");
    assert!(said.contains("FILE:2:18: read_functions: \"f(int)\": write the name of a function"), "{said}");
    let (good, said) = run(&["check", "postgres://db"], &[("PG_AMBASSADOR_READ_FUNCTIONS", "a.b.c")]);
    assert!(!good && said.contains("environment PG_AMBASSADOR_READ_FUNCTIONS: read_functions: \"a.b.c\""), "{said}");
}

#[test]
fn a_listener_that_others_can_reach_or_that_is_there_twice_is_refused_like_the_first() {
    let said = check(
        "url = \"postgres://db\"\nlisten = [\"127.0.0.1:6432\"]\n[[listeners]]\nlisten = [\"0.0.0.0:6433\"]\nroute = \"master\"\n\
         [[listeners]]\nlisten = [\"127.0.0.1:6432\"]\nrout = \"primary\"\n[[listeners]]\nroute = \"replica\"\n\
         [users.app]\nroute = \"master\"\nconsistency = \"strong\"\n",
    );
    for expected in [
        "FILE:4:10: listeners.0.listen: 0.0.0.0:6433 can be reached from other machines: set tls.cert and tls.key",
        "FILE:5:9: listeners.0.route: \"master\": write auto, primary or replica",
        "FILE:7:10: listeners.1.listen: 127.0.0.1:6432 is listened on already",
        "FILE:8:8: unknown setting listeners.1.rout; did you mean route?",
        "FILE:9:1: a listener needs an address",
        "FILE:12:9: users.app.route: \"master\": write auto, primary or replica",
        "FILE:13:15: users.app.consistency: \"strong\": write session, eventual, primary or global",
        "the configuration has 7 faults",
    ] {
        assert!(said.contains(expected), "{expected}\nis not in\n{said}");
    }
}
