//! libpq's connection service file: sections with parameters, by their names.
//!
//! Source: PostgreSQL documentation, "The Connection Service File".

use super::url::Url;
use std::collections::BTreeMap;
use std::path::PathBuf;

/// Where the file is: `PGSERVICEFILE`, the user's own, or the system's in `PGSYSCONFDIR`.
fn paths(env: &BTreeMap<String, String>) -> Vec<PathBuf> {
    let named = |name: &str| env.get(name).filter(|value| !value.is_empty()).map(PathBuf::from);
    match named("PGSERVICEFILE") {
        Some(path) => vec![path],
        None => {
            let own = named("HOME").map(|home| home.join(".pg_service.conf"));
            own.into_iter().chain(named("PGSYSCONFDIR").map(|dir| dir.join("pg_service.conf"))).collect()
        }
    }
}

/// Looks a service up.
///
/// # Errors
/// It is not there, or everything that is wrong with it.
pub(super) fn look_up(name: &str, env: &BTreeMap<String, String>) -> Result<Url, Vec<String>> {
    let paths = paths(env);
    for path in &paths {
        let Ok(text) = std::fs::read_to_string(path) else { continue };
        if let Some(found) = section(&text, name) {
            let place = |(line, fault): (usize, String)| format!("{}:{line}: {fault}", path.display());
            return found.map_err(|faults| faults.into_iter().map(place).collect());
        }
    }
    let shown: Vec<String> = paths.iter().map(|path| path.display().to_string()).collect();
    let looked =
        if shown.is_empty() { "there is no service file".to_owned() } else { format!("not in {}", shown.join(", ")) };
    Err(vec![format!("service {name:?}: {looked}; PGSERVICEFILE names one")])
}

/// Faults and the lines they are on.
type Faults = Vec<(usize, String)>;

fn section(text: &str, name: &str) -> Option<Result<Url, Faults>> {
    let (mut inside, mut found) = (false, false);
    let (mut pairs, mut faults) = (Vec::new(), Vec::new());
    for (number, line) in text.lines().map(str::trim).enumerate() {
        if line.is_empty() || line.starts_with('#') {
            continue;
        }
        if let Some(title) = line.strip_prefix('[') {
            // libpq: the first section of a name counts.
            inside = !found && title.strip_suffix(']') == Some(name);
            found |= inside;
        } else if inside {
            match line.split_once('=') {
                Some((key, value)) => pairs.push((number + 1, key.trim(), value.trim())),
                None => faults.push((number + 1, "write name=value".to_owned())),
            }
        }
    }
    found.then(|| {
        let (url, more) = Url::from_parameters(pairs.into_iter());
        faults.extend(more);
        if faults.is_empty() { Ok(url) } else { Err(faults) }
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    const FILE: &str = "# services\n[other]\nhost=x\n\n[shop]\nhost = db\nport=6000\nuser=app\ndbname=shop\nsslmode=require\n\
        [shop]\nhost=second\n[bad]\nhost=a\nnonsense\nsslmod=1\n";

    #[test]
    fn a_service_is_what_its_section_says() {
        let url = section(FILE, "shop").unwrap().unwrap();
        assert_eq!(url.hosts.iter().map(ToString::to_string).collect::<Vec<_>>(), ["db:6000"]);
        assert_eq!((url.user.as_deref(), url.dbname.as_deref()), (Some("app"), Some("shop")));
        assert!(section(FILE, "nobody").is_none());
    }

    #[test]
    fn every_fault_is_named_with_its_line() {
        let faults = section(FILE, "bad").unwrap().unwrap_err();
        assert_eq!(faults.iter().map(|(line, _)| *line).collect::<Vec<_>>(), [15, 16]);
    }
}
