//! Files that hold secrets: `password_file`.

use super::engine::Fetch;
use super::managed::Secret;
use super::policy::Life;
use crate::secret::SecretString;
use std::io::Read;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::time::Duration;
use zeroize::{Zeroize, Zeroizing};

/// How often a file is looked at: through symbolic links, which Kubernetes swaps, and by its contents, on any file system.
pub(super) const LOOK: Duration = Duration::from_secs(2);
/// PostgreSQL takes no longer password.
pub(super) const LONGEST: usize = 64 * 1024;
/// Permission bits.
const WORLD_WRITES: u32 = 0o002;
const WORLD_READS: u32 = 0o004;
const NOT_ONLY_OWNER: u32 = 0o077;

/// Who may have access to a file.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Access {
    /// Nobody but its owner may change it. That others may read it is common in containers.
    Unchanged,
    /// Nobody but its owner has any (libpq's rule for passfiles).
    OwnerOnly,
}

/// Reads a small file with a secret in it.
pub(super) fn read(path: &Path, access: Access, longest: usize) -> Result<Zeroizing<String>, String> {
    let what = |error: std::io::Error| format!("{}: {error}", path.display());
    let file = std::fs::File::open(path).map_err(what)?;
    let metadata = file.metadata().map_err(what)?;
    if !metadata.is_file() {
        return Err(format!("{} is no file", path.display()));
    }
    let mode = metadata.permissions().mode();
    if access == Access::Unchanged && mode & WORLD_WRITES != 0 {
        return Err(format!("{} can be changed by everybody: chmod o-w it", path.display()));
    }
    if access == Access::OwnerOnly && mode & NOT_ONLY_OWNER != 0 {
        return Err(format!("{} has group or world access: chmod 0600 it", path.display()));
    }
    // All at once: a buffer that grows leaves copies behind.
    let mut bytes = Zeroizing::new(Vec::with_capacity(longest + 1));
    file.take(longest as u64 + 1).read_to_end(&mut bytes).map_err(what)?;
    if bytes.len() > longest {
        return Err(format!("{} is longer than {longest} bytes", path.display()));
    }
    text(bytes).map_err(|error| format!("{} {error}", path.display()))
}

/// Bytes as a text that can be a password.
pub(super) fn text(mut bytes: Zeroizing<Vec<u8>>) -> Result<Zeroizing<String>, &'static str> {
    match String::from_utf8(std::mem::take(&mut *bytes)) {
        Ok(text) if text.contains('\0') => {
            drop(Zeroizing::new(text));
            Err("contains a NUL")
        }
        Ok(text) => Ok(Zeroizing::new(text)),
        Err(error) => {
            error.into_bytes().zeroize();
            Err("is not UTF-8")
        }
    }
}

/// The password that a text is: all of it but one newline at its end.
pub(super) fn password(text: &str) -> Option<SecretString> {
    let password = text.strip_suffix('\n').unwrap_or(text);
    (!password.is_empty()).then(|| SecretString::new(password))
}

fn read_password(path: &Path) -> Result<SecretString, String> {
    let text = read(path, Access::Unchanged, LONGEST)?;
    password(&text).ok_or_else(|| format!("{} is empty", path.display()))
}

pub(super) async fn fetch(path: PathBuf) -> Result<Fetch<Secret>, String> {
    // A file system may hang.
    let read = tokio::task::spawn_blocking(move || read_password(&path));
    let text = read.await.map_err(|error| error.to_string())??;
    Ok(Fetch { value: Secret::password(text), life: Life::Watched(LOOK) })
}

/// Whether a password can be read from this file, for whoever checks a configuration; and what is to be warned of.
///
/// # Errors
/// Why it cannot.
pub fn check(path: &Path) -> Result<Option<String>, String> {
    read_password(path)?;
    let mode = std::fs::metadata(path).map_or(0, |metadata| metadata.permissions().mode());
    let readable = mode & WORLD_READS != 0;
    Ok(readable.then(|| format!("{} can be read by everybody on this machine: chmod o-r it", path.display())))
}

#[cfg(test)]
mod tests {
    use super::*;

    struct Dir(PathBuf);

    impl Dir {
        fn new(name: &str) -> Self {
            let dir = std::env::temp_dir().join(format!("credentials-file-{name}-{}", std::process::id()));
            std::fs::create_dir_all(&dir).unwrap();
            Self(dir)
        }

        fn write(&self, bytes: &[u8], mode: u32) -> PathBuf {
            let path = self.0.join(format!("f{mode:o}"));
            std::fs::write(&path, bytes).unwrap();
            std::fs::set_permissions(&path, std::fs::Permissions::from_mode(mode)).unwrap();
            path
        }
    }

    impl Drop for Dir {
        fn drop(&mut self) {
            let _ = std::fs::remove_dir_all(&self.0);
        }
    }

    #[test]
    fn one_newline_at_the_end_is_dropped_and_nothing_else() {
        let dir = Dir::new("newline");
        for (bytes, password) in [
            ("secret\n", "secret"),
            ("secret", "secret"),
            ("secret\n\n", "secret\n"),
            (" s \n", " s "),
            ("s\r\n", "s\r"),
        ] {
            let path = dir.write(bytes.as_bytes(), 0o600);
            assert_eq!(read_password(&path).unwrap().expose(), password);
        }
    }

    #[test]
    fn what_cannot_be_a_password_is_refused() {
        let dir = Dir::new("bad");
        for bytes in [&b""[..], b"\n", b"a\0b", b"\xff", &[b'x'; LONGEST + 1]] {
            let error = read_password(&dir.write(bytes, 0o600)).unwrap_err();
            assert!(!error.contains('x') || bytes.len() < 4 || error.contains("longer"), "{error}");
        }
        assert!(read_password(&dir.0).is_err(), "a directory");
        assert!(read_password(&dir.0.join("missing")).is_err());
    }

    #[test]
    fn a_file_that_everybody_can_change_is_refused_and_one_that_everybody_can_read_is_warned_of() {
        let dir = Dir::new("mode");
        assert!(read_password(&dir.write(b"secret", 0o606)).unwrap_err().contains("chmod o-w"));
        assert!(check(&dir.write(b"secret", 0o644)).unwrap().unwrap().contains("chmod o-r"));
        assert_eq!(check(&dir.write(b"secret", 0o640)), Ok(None));
        assert!(read(&dir.write(b"secret", 0o640), Access::OwnerOnly, LONGEST).unwrap_err().contains("0600"));
        assert!(read(&dir.write(b"secret", 0o600), Access::OwnerOnly, LONGEST).is_ok());
    }
}
