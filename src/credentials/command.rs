//! `password_command`: a program that prints a password.

use super::engine::Fetch;
use super::file::{self, LONGEST};
use super::managed::Secret;
use super::policy::Life;
use super::spec::CommandSpec;
use crate::secret::SecretString;
use rustix::process::{Pid, Signal, kill_process_group};
use serde_json::Value;
use std::process::Stdio;
use std::time::{Duration, SystemTime};
use tokio::io::{AsyncRead, AsyncReadExt};
use tokio::process::{Child, Command};
use zeroize::Zeroizing;

/// What it may say on its error stream, as far as that is looked at.
const COMPLAINT: usize = 4096;
/// How much of that is repeated.
const QUOTED: usize = 200;

/// Ends the program and all that it has started.
struct Group(Option<Pid>);

impl Drop for Group {
    fn drop(&mut self) {
        if let Some(pid) = self.0 {
            let _ = kill_process_group(pid, Signal::KILL);
        }
    }
}

/// Runs it.
pub(super) async fn fetch(spec: CommandSpec) -> Result<Fetch<Secret>, String> {
    let name = spec.argv.first().cloned().unwrap_or_default();
    match tokio::time::timeout(spec.timeout, run(&spec)).await {
        Ok(result) => result.map_err(|error| format!("password_command {name}: {error}")),
        Err(_) => Err(format!("password_command {name}: it has not ended within {:?}", spec.timeout)),
    }
}

async fn run(spec: &CommandSpec) -> Result<Fetch<Secret>, String> {
    let (program, args) = spec.argv.split_first().ok_or("it names no program")?;
    let mut command = Command::new(program);
    command.args(args).stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped());
    // Our own settings may hold secrets that are none of its business.
    for (variable, _) in std::env::vars_os() {
        if variable.to_string_lossy().starts_with("PG") {
            command.env_remove(variable);
        }
    }
    let mut child = command.process_group(0).kill_on_drop(true).spawn().map_err(|error| error.to_string())?;
    let pid = child.id().and_then(|pid| i32::try_from(pid).ok()).and_then(Pid::from_raw);
    let mut group = Group(pid);
    let (printed, complaint) = output(&mut child).await.map_err(|error| error.to_string())?;
    if printed.len() > LONGEST {
        return Err(format!("it prints more than {LONGEST} bytes"));
    }
    let status = child.wait().await.map_err(|error| error.to_string())?;
    // Gone by itself: its number may be another's soon.
    group.0 = None;
    if !status.success() {
        return Err(match quote(&complaint) {
            said if said.is_empty() => format!("it failed with {status}"),
            said => format!("it failed with {status}: {said}"),
        });
    }
    let text = file::text(printed).map_err(|error| format!("what it prints {error}"))?;
    read(&text, spec.ttl, SystemTime::now())
}

/// What it prints, at most one byte more than it may, and how it complains.
async fn output(child: &mut Child) -> std::io::Result<(Zeroizing<Vec<u8>>, Vec<u8>)> {
    let (stdout, stderr) = (child.stdout.take(), child.stderr.take());
    let printed = read_up_to(stdout, LONGEST + 1);
    let complaint = read_up_to(stderr, COMPLAINT);
    let (printed, complaint) = tokio::join!(printed, complaint);
    Ok((printed?, complaint?.to_vec()))
}

async fn read_up_to(from: Option<impl AsyncRead + Unpin>, most: usize) -> std::io::Result<Zeroizing<Vec<u8>>> {
    let mut bytes = Zeroizing::new(vec![0; most]);
    let mut filled = 0;
    if let Some(mut from) = from {
        while filled < most {
            match from.read(&mut bytes[filled..]).await? {
                0 => break,
                read => filled += read,
            }
        }
    }
    bytes.truncate(filled);
    Ok(bytes)
}

/// The last line of a complaint, as far as it can be shown.
fn quote(complaint: &[u8]) -> String {
    let text = String::from_utf8_lossy(complaint);
    let line = text.lines().rfind(|line| !line.trim().is_empty()).unwrap_or_default();
    line.chars().filter(|c| !c.is_control()).take(QUOTED).collect()
}

/// Reads what it has printed: a password, or a JSON object with `password`, and `username` and `expires_at` where it has
/// them. What `vault read -format=json` prints of a database's role is understood as well.
fn read(text: &str, ttl: Option<Duration>, now: SystemTime) -> Result<Fetch<Secret>, String> {
    let until = |after: Duration| now.checked_add(after).map_or(Life::Forever, Life::Until);
    let life = ttl.map_or(Life::Forever, until);
    if !text.trim_start().starts_with('{') {
        let password = file::password(text).ok_or("it prints nothing")?;
        return Ok(Fetch { value: Secret::password(password), life });
    }
    // Never with the parser's own words: they may quote.
    let mut json: Value = serde_json::from_str(text).map_err(|_| "it prints no valid JSON".to_owned())?;
    let lease = json.get("lease_duration").and_then(Value::as_u64).filter(|lease| *lease > 0);
    let mut fields = if json.get("data").is_some_and(Value::is_object) { json["data"].take() } else { json };
    let mut field = |name: &str| match fields.get_mut(name).map(Value::take) {
        Some(Value::String(text)) if !text.is_empty() && !text.contains('\0') => Ok(Some(text)),
        None | Some(Value::Null) => Ok(None),
        Some(_) => Err(format!("the field {name} of what it prints is no text, or an empty one")),
    };
    let text = field("password")?.map(SecretString::new).ok_or("the field password is missing in what it prints")?;
    let user = field("username")?.map(Into::into);
    let life = match (field("expires_at")?, lease) {
        (Some(at), _) => Life::Until(moment(&at).ok_or("expires_at is no time as in 2026-01-31T12:00:00Z")?),
        (None, Some(lease)) => until(Duration::from_secs(lease)),
        (None, None) => life,
    };
    Ok(Fetch { value: Secret { user, text, is_token: false }, life })
}

/// Reads a time as RFC 3339 writes it.
fn moment(text: &str) -> Option<SystemTime> {
    let (date, time) = text.trim().split_once(['T', 't', ' '])?;
    let number = |text: &str| text.parse::<u32>().ok().filter(|_| text.bytes().all(|b| b.is_ascii_digit()));
    let (time, offset) = match time.strip_suffix(['Z', 'z']) {
        Some(time) => (time, 0_i64),
        None => {
            let at = time.rfind(['+', '-'])?;
            let (hours, minutes) = time[at + 1..].split_once(':')?;
            let seconds = i64::from(number(hours)?) * 3600 + i64::from(number(minutes)?) * 60;
            (&time[..at], if time.as_bytes()[at] == b'-' { -seconds } else { seconds })
        }
    };
    let mut date = date.splitn(3, '-').map(number);
    let (year, month, day) = (i64::from(date.next()??), i64::from(date.next()??), i64::from(date.next()??));
    let mut time = time.split('.').next()?.splitn(3, ':').map(number);
    let (hour, minute, second) = (i64::from(time.next()??), i64::from(time.next()??), i64::from(time.next()??));
    if !(1..=12).contains(&month) || !(1..=31).contains(&day) || hour > 23 || minute > 59 || second > 60 {
        return None;
    }
    // Days since 1970 from a civil date (Howard Hinnant, "chrono-Compatible Low-Level Date Algorithms").
    let year = if month <= 2 { year - 1 } else { year };
    let era = year.div_euclid(400);
    let year_of_era = year - era * 400;
    let day_of_year = (153 * (month + if month > 2 { -3 } else { 9 }) + 2) / 5 + day - 1;
    let days = era * 146_097 + year_of_era * 365 + year_of_era / 4 - year_of_era / 100 + day_of_year - 719_468;
    let seconds = days * 86_400 + hour * 3600 + minute * 60 + second - offset;
    SystemTime::UNIX_EPOCH.checked_add(Duration::from_secs(u64::try_from(seconds).ok()?))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn at(seconds: u64) -> SystemTime {
        SystemTime::UNIX_EPOCH + Duration::from_secs(seconds)
    }

    #[test]
    fn times_are_read_as_rfc_3339_writes_them() {
        for (text, seconds) in [
            ("1970-01-01T00:00:00Z", 0),
            ("2023-11-14T22:13:20Z", 1_700_000_000),
            ("2023-11-14T22:13:20.123456789Z", 1_700_000_000),
            ("2023-11-15T00:13:20+02:00", 1_700_000_000),
            ("2023-11-14 17:13:20-05:00", 1_700_000_000),
            ("2024-02-29T12:00:00z", 1_709_208_000),
        ] {
            assert_eq!(moment(text), Some(at(seconds)), "{text}");
        }
        for text in ["", "2023-11-14", "22:13:20Z", "2023-13-14T22:13:20Z", "2023-11-14T22:13:20", "x-1-1T1:1:1Z"] {
            assert_eq!(moment(text), None, "{text}");
        }
    }

    #[test]
    fn what_is_printed_is_a_password_or_says_what_it_is() {
        let now = at(1_000);
        let ttl = Some(Duration::from_secs(60));
        let read = |text: &str| {
            let Fetch { value, life } = read(text, ttl, now).unwrap();
            (value.user.as_deref().map(str::to_owned), value.text.expose().to_owned(), life)
        };
        let until = |seconds| Life::Until(at(seconds));
        assert_eq!(read("secret\n"), (None, "secret".into(), until(1_060)));
        assert_eq!(read(r#"{"password":"a"}"#), (None, "a".into(), until(1_060)));
        assert_eq!(
            read(r#"{"username":"u","password":"p","expires_at":"2023-11-14T22:13:20Z"}"#),
            (Some("u".into()), "p".into(), until(1_700_000_000))
        );
        assert_eq!(
            read(r#"{"lease_duration":3600,"data":{"username":"v-app","password":"p"}}"#),
            (Some("v-app".into()), "p".into(), until(4_600))
        );
    }

    #[test]
    fn what_is_no_password_is_refused_without_being_repeated() {
        for text in
            ["", "\n", r#"{"password":"canary"#, r#"{"password":7}"#, r#"{"user":"canary"}"#, r#"{"password":""}"#]
        {
            let error = read(text, None, at(0)).map(drop).unwrap_err();
            assert!(!error.contains("canary"), "{error}");
        }
    }

    fn spec(argv: &[&str]) -> CommandSpec {
        let argv = argv.iter().map(|&arg| arg.to_owned()).collect();
        CommandSpec { argv, timeout: Duration::from_secs(30), ttl: None }
    }

    #[tokio::test]
    async fn no_shell_looks_at_the_arguments() {
        let fetched = fetch(spec(&["echo", "$HOME;", "a  b"])).await.unwrap();
        assert_eq!(fetched.value.text.expose(), "$HOME; a  b");
    }

    #[tokio::test]
    async fn a_program_that_fails_prints_too_much_or_does_not_end_is_an_error() {
        let failed = |argv: &'static [&'static str]| async { fetch(spec(argv)).await.map(drop).unwrap_err() };
        let error = failed(&["sh", "-c", "echo canary; echo why >&2; exit 3"]).await;
        assert!(error.contains("exit status: 3") && error.ends_with("why") && !error.contains("canary"), "{error}");
        assert!(failed(&["sh", "-c", "head -c 100000 /dev/zero | tr '\\0' x"]).await.contains("more than 65536"));
        assert!(failed(&["/nowhere/at-all"]).await.contains("No such file"));
        let slow = CommandSpec { timeout: Duration::from_millis(50), ..spec(&["sh", "-c", "sleep 60 | cat"]) };
        assert!(fetch(slow).await.map(drop).unwrap_err().contains("not ended"));
    }
}
