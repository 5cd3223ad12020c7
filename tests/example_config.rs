//! `config/ambassador.example.toml` tells the truth: every setting is in it, and with its default.

use pg_ambassador::config::{self, Config, File, Setting, Sources};
use std::path::PathBuf;

const EXAMPLE: &str = include_str!("../config/ambassador.example.toml");

fn resolve(text: String) -> Config {
    let file = Some(File { path: PathBuf::from("example.toml"), text });
    config::resolve(&Sources { file, ..Sources::default() }).unwrap_or_else(|faults| {
        let faults: Vec<String> = faults.iter().map(ToString::to_string).collect();
        panic!("{}", faults.join("\n"))
    })
}

/// The example with every default that it shows written out: prose has a space after its `#`.
fn written_out() -> String {
    let line = |line: &'static str| match line.strip_prefix('#') {
        Some(setting) if !setting.is_empty() && !setting.starts_with(' ') => setting,
        _ => line,
    };
    EXAMPLE.lines().map(line).collect::<Vec<_>>().join("\n")
}

/// A database needs a host, so the example's empty one gets one here.
fn settings() -> Vec<Setting> {
    let with_host = written_out().replacen("hosts = []", "hosts = [\"db\"]", 1);
    let with_host = with_host.replacen("\nhost = \"\"", "\nhost = \"db\"", 1);
    let with_listener = with_host.replacen("\nlisten = []", "\nlisten = [\"127.0.0.1:5433\"]", 1);
    resolve(with_listener).settings
}

#[test]
fn the_example_resolves_as_it_is() {
    assert_eq!(resolve(EXAMPLE.to_owned()).directory.databases.len(), 1);
}

#[test]
fn the_example_shows_every_setting() {
    let missing: Vec<String> =
        settings().into_iter().filter(|setting| setting.place.is_none()).map(|setting| setting.key).collect();
    assert!(missing.is_empty(), "not in the example: {missing:?}");
}

#[test]
fn the_example_shows_each_setting_with_its_default() {
    // What is no default: the URL has to be given, the hosts were put in above, and cores differ.
    let given = ["url", "databases.shop.hosts", "nodes.0.host", "listeners.0.listen", "workers"];
    let wrong: Vec<String> = settings()
        .into_iter()
        .filter(|setting| setting.value != setting.default && !given.contains(&setting.key.as_str()))
        .map(|setting| format!("{}: shown as {:?}, but it is {:?}", setting.key, setting.value, setting.default))
        .collect();
    assert!(wrong.is_empty(), "{wrong:#?}");
}

#[test]
fn the_example_shows_the_number_of_workers_that_a_machine_with_two_cores_has() {
    let setting = settings().into_iter().find(|setting| setting.key == "workers").unwrap();
    let cores = std::thread::available_parallelism().unwrap().get();
    assert_eq!((setting.value.as_str(), setting.default), ("2", cores.min(2).to_string()));
}
