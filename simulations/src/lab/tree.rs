//! Whether two trees are equal, by one reading of each: what rsync would call so with `-aHAX --checksum`.

use std::collections::BTreeMap;
use std::ffi::CString;
use std::fs::{self, File, Metadata};
use std::io;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::{FileTypeExt, MetadataExt};
use std::path::{Path, PathBuf};

use anyhow::Context;
use blake3::Hasher;
use rustix::fs::{lgetxattr, llistxattr};

/// More than the kernel keeps in one extended attribute, or in the list of their names.
const ATTRIBUTE_BYTES_MAX: usize = 1 << 16;

/// A hash of everything that a tool has to bring, by path below the root, which is empty.
#[derive(Debug, Default, PartialEq, Eq)]
pub(super) struct Tree {
    entries: BTreeMap<PathBuf, blake3::Hash>,
}

impl Tree {
    /// Reads all below `root`: type, mode, owner, time to the nanosecond, content, target of a link, device number,
    /// extended attributes (ACLs and capabilities are among them), which names are one file. Sockets belong to what
    /// made them, and are left out.
    pub(super) fn read(root: &Path) -> anyhow::Result<Self> {
        let mut tree = Self::default();
        let mut first_names = BTreeMap::new();
        let mut waiting = vec![PathBuf::new()];
        while let Some(path) = waiting.pop() {
            let at = if path.as_os_str().is_empty() { root.to_owned() } else { root.join(&path) };
            let read = || -> io::Result<_> {
                let metadata = fs::symlink_metadata(&at)?;
                let mut names = Vec::new();
                if metadata.is_dir() {
                    for entry in fs::read_dir(&at)? {
                        names.push(path.join(entry?.file_name()));
                    }
                    // The order of names decides which of several is the first.
                    names.sort_unstable_by(|a, b| b.cmp(a));
                }
                Ok((hash_of(&at, &metadata)?, names, metadata))
            };
            let (mut hash, names, metadata) =
                read().with_context(|| format!("cannot read {}", at.display()))?;
            if metadata.file_type().is_socket() {
                continue;
            }
            if !metadata.is_dir() && metadata.nlink() > 1 {
                let first = first_names.entry(metadata.ino()).or_insert_with(|| path.clone());
                hash.update(first.as_os_str().as_bytes());
            }
            waiting.extend(names);
            tree.entries.insert(path, hash.finalize());
        }
        Ok(tree)
    }

    /// The first path at which the other tree is not the same.
    pub(super) fn first_difference<'a>(&'a self, other: &'a Self) -> Option<&'a Path> {
        let (ours, theirs) = (&self.entries, &other.entries);
        let lacking = ours.iter().find(|(path, hash)| theirs.get(*path) != Some(hash)).map(|(path, _)| path);
        let surplus = theirs.keys().find(|path| !ours.contains_key(*path));
        lacking.into_iter().chain(surplus).min().map(PathBuf::as_path)
    }
}

fn hash_of(path: &Path, metadata: &Metadata) -> io::Result<Hasher> {
    let mut hash = Hasher::new();
    for number in [metadata.mode(), metadata.uid(), metadata.gid()] {
        hash.update(&number.to_le_bytes());
    }
    let times = [metadata.mtime(), metadata.mtime_nsec()];
    hash.update(&times.map(i64::to_le_bytes).concat());
    if metadata.is_file() {
        hash.update(&metadata.size().to_le_bytes());
        hash.update_reader(File::open(path)?)?;
    } else if metadata.is_symlink() {
        hash.update(fs::read_link(path)?.as_os_str().as_bytes());
    } else {
        hash.update(&metadata.rdev().to_le_bytes());
    }
    let mut buffer = vec![0; ATTRIBUTE_BYTES_MAX];
    let length = llistxattr(path, &mut buffer[..])?;
    let mut names: Vec<CString> = buffer[..length]
        .split_inclusive(|byte| *byte == 0)
        .filter_map(|name| CString::from_vec_with_nul(name.to_vec()).ok())
        .collect();
    names.sort_unstable();
    for name in names {
        let length = lgetxattr(path, &name, &mut buffer[..])?;
        hash.update(name.to_bytes_with_nul());
        hash.update(&buffer[..length]);
    }
    Ok(hash)
}

#[cfg(test)]
mod tests {
    use super::*;

    use std::os::unix::fs::{PermissionsExt, symlink};

    use crate::lab::network::run;

    fn folder(name: &str) -> PathBuf {
        let path = std::env::temp_dir().join(format!("{}-{}-{name}", crate::lab::NAME, std::process::id()));
        fs::create_dir(&path).unwrap();
        path
    }

    #[test]
    fn a_copy_is_equal_until_one_attribute_changes() {
        let top = folder("tree");
        let (a, b) = (top.join("a"), top.join("b"));
        fs::create_dir_all(a.join("etc")).unwrap();
        fs::write(a.join("etc/one"), "text").unwrap();
        fs::hard_link(a.join("etc/one"), a.join("etc/two")).unwrap();
        symlink("one", a.join("etc/link")).unwrap();
        run("cp", &["-a", a.to_str().unwrap(), b.to_str().unwrap()]).unwrap();
        let source = Tree::read(&a).unwrap();
        let difference = || source.first_difference(&Tree::read(&b).unwrap()).map(Path::to_owned);
        assert_eq!(difference(), None);

        fs::set_permissions(b.join("etc/one"), fs::Permissions::from_mode(0o600)).unwrap();
        assert_eq!(difference(), Some("etc/one".into()));
        fs::set_permissions(b.join("etc/one"), fs::metadata(a.join("etc/one")).unwrap().permissions())
            .unwrap();
        assert_eq!(difference(), None);
        // Equal in content and time, but a file of its own.
        fs::remove_file(b.join("etc/two")).unwrap();
        run("cp", &["-a", a.join("etc/two").to_str().unwrap(), b.join("etc/two").to_str().unwrap()]).unwrap();
        run("touch", &["-r", a.join("etc").to_str().unwrap(), b.join("etc").to_str().unwrap()]).unwrap();
        assert_eq!(difference(), Some("etc/one".into()));
        fs::remove_file(b.join("etc/two")).unwrap();
        fs::hard_link(b.join("etc/one"), b.join("etc/two")).unwrap();
        fs::write(b.join("etc/surplus"), "").unwrap();
        run("touch", &["-r", a.join("etc").to_str().unwrap(), b.join("etc").to_str().unwrap()]).unwrap();
        assert_eq!(difference(), Some("etc/surplus".into()));
        fs::remove_dir_all(top).unwrap();
    }
}
