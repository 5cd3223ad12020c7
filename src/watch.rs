//! Notices that files have changed, by their contents: works on every file system, and through symbolic links.

use std::collections::hash_map::DefaultHasher;
use std::hash::{Hash, Hasher};
use std::path::{Path, PathBuf};

/// Files, and what was in them.
#[derive(Debug)]
pub struct Watch(Vec<(PathBuf, Option<u64>)>);

/// A file's contents as a number; none if it cannot be read.
fn fingerprint(path: &Path) -> Option<u64> {
    let mut hasher = DefaultHasher::new();
    std::fs::read(path).ok()?.hash(&mut hasher);
    Some(hasher.finish())
}

impl Watch {
    /// Remembers what is in the files now.
    pub fn new(files: Vec<PathBuf>) -> Self {
        Self(files.into_iter().map(|path| (fingerprint(&path), path)).map(|(print, path)| (path, print)).collect())
    }

    /// A file that is not what it was.
    pub fn changed(&self) -> Option<&Path> {
        // A file that is being replaced may be missing for a moment: that is no change yet.
        let is_new = |(path, print): &&(PathBuf, Option<u64>)| fingerprint(path).is_some_and(|now| Some(now) != *print);
        self.0.iter().find(is_new).map(|(path, _)| path.as_path())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_swapped_symbolic_link_is_a_change_and_a_missing_file_is_none_yet() {
        let dir = std::env::temp_dir().join(format!("watch-{}", std::process::id()));
        std::fs::create_dir_all(&dir).unwrap();
        for (name, text) in [("a", "one"), ("b", "two")] {
            std::fs::write(dir.join(name), text).unwrap();
        }
        let link = dir.join("link");
        std::os::unix::fs::symlink(dir.join("a"), &link).unwrap();
        let watch = Watch::new(vec![link.clone()]);
        assert_eq!(watch.changed(), None);
        std::fs::remove_file(&link).unwrap();
        assert_eq!(watch.changed(), None);
        std::os::unix::fs::symlink(dir.join("b"), &link).unwrap();
        assert_eq!(watch.changed(), Some(link.as_path()));
        std::fs::remove_dir_all(&dir).unwrap();
    }
}
