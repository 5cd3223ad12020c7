//! Others who use the servers of an ambassador at the same time, with settings and statements of their own: what they
//! leave is what a session must not see, and what a session leaves they must not.

use crate::support::Random;
use crate::support::client::{Client, bind, close, execute, parse, query, sync};
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

const ZONES: [&str; 3] = ["Asia/Seoul", "America/Bogota", "Africa/Lagos"];

fn offset(zone: &str) -> &'static str {
    match zone {
        "Asia/Seoul" => "+09",
        "America/Bogota" => "-05",
        _ => "+01",
    }
}

/// Uses the ambassador's servers until it is told to stop; gives what it has seen that was not its own.
pub fn rival(seed: u64, port: u16, database: &str, stop: &AtomicBool) -> Result<(), String> {
    let mut random = Random::new(seed);
    while !stop.load(Ordering::Relaxed) {
        let name = format!("rival {}", random.below(3));
        let zone = *random.choose(&ZONES);
        // With settings of its own, or with those that many sessions have: then nothing has to be replayed between them.
        let alike = random.one_in(2);
        let own = [("application_name", name.as_str()), ("TimeZone", zone), ("search_path", "pg_catalog")];
        let more = if alike { &[("application_name", "differential")][..] } else { &own };
        let params = [&[("user", "postgres"), ("database", database)], more].concat();
        let mut client = Client::try_login(port, &params).map_err(|error| format!("login: {error:?}"))?;
        let mut secret = String::new();
        for round in 0..random.below(60) {
            if stop.load(Ordering::Relaxed) {
                return Ok(());
            }
            std::thread::sleep(Duration::from_millis(random.below(3) as u64));
            let text = format!("select 'rival {seed} {round}'");
            let (sent, expected) = match if alike { 1 + random.below(2) } else { random.below(6) } {
                0 => {
                    secret = format!("secret {seed} {round}");
                    (query(format!("select set_config('my.x', '{secret}', false)")), secret.clone())
                }
                1 => (
                    [parse("", &text), bind("", "", &[]), execute("", 0), sync()].concat(),
                    text[8..text.len() - 1].into(),
                ),
                2 => {
                    // A name that sessions use, too.
                    let named = [parse("s1", &text), bind("", "s1", &[]), execute("", 0), sync()].concat();
                    ([close(b'S', "s1"), named].concat(), text[8..text.len() - 1].into())
                }
                3 => {
                    // The same text as sessions have, under another time zone.
                    let midnight = "select timestamptz '2026-01-01'";
                    let named = [parse("m", midnight), bind("", "m", &[]), execute("", 0), close(b'S', "m"), sync()];
                    (named.concat(), format!("2026-01-01 00:00:00{}", offset(zone)))
                }
                4 => {
                    let look = "select current_user || session_user || current_setting('role') || \
                        current_setting('datestyle') || current_setting('work_mem') || \
                        current_setting('standard_conforming_strings') || current_setting('client_encoding')";
                    (query(look), "postgrespostgresnoneISO, MDY4MBonUTF8".to_owned())
                }
                _ => {
                    let look = "select current_setting('application_name') || current_setting('TimeZone') || \
                        current_setting('search_path') || coalesce(current_setting('my.x', true), '')";
                    (query(look), format!("{name}{zone}pg_catalog{secret}"))
                }
            };
            client.try_send(&sent).map_err(|error| error.to_string())?;
            let answers = client.read_until(b"Z").map_err(|error| error.to_string())?;
            let found = answers.iter().find(|message| message.tag == b'D').map(|row| row.columns()[0].clone());
            if found.as_ref() != Some(&Some(expected.clone())) || answers.iter().any(|message| message.tag == b'S') {
                return Err(format!("rival {seed} expected {expected:?}, was answered {answers:?}"));
            }
        }
    }
    Ok(())
}
