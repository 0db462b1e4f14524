//! An independent comparison of two trees: its own walk, its own reading of every attribute.

mod content;
mod inode;
mod ioctl;

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::fs::{self, File};
use std::io;
use std::os::fd::AsRawFd;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

use content::Content;
use inode::Inode;
pub use ioctl::set_project;

/// One way in which a path differs.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Difference {
    /// Below the root, which is empty.
    pub path: PathBuf,
    /// `only in the first`, or the attribute: `mode`, `time`, `holes`, …
    pub what: &'static str,
    /// What the first tree has and what the second; empty where that would be too long.
    pub detail: String,
}

impl fmt::Display for Difference {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.path.as_os_str().is_empty() {
            true => write!(f, ".: {}", self.what)?,
            false => write!(f, "{:?}: {}", self.path, self.what)?,
        }
        if self.detail.is_empty() { Ok(()) } else { write!(f, ": {}", self.detail) }
    }
}

/// What differs between two trees, a line for each path and attribute; empty when they are equal.
pub fn differences(left: &Path, right: &Path) -> io::Result<Vec<String>> {
    Ok(compare(left, right)?.iter().map(Difference::to_string).collect())
}

/// What differs between two trees, in path order.
///
/// Compares the roots and everything below: type, mode, owner, modification time to the nanosecond, size, content,
/// link target, device number, extended attributes (ACLs and capabilities are among them), inode flags, project, which
/// names are one file, and holes. What another file system mounted in a tree holds is not looked at.
///
/// Holes: those of the first must be in the second, and a file without one must stay so. Zeros that took room in a file
/// with holes need not in the second.
pub fn compare(left: &Path, right: &Path) -> io::Result<Vec<Difference>> {
    let (left, right) = (Tree::read(left)?, Tree::read(right)?);
    let mut found = Vec::new();
    let paths: BTreeSet<&PathBuf> = left.entries.keys().chain(right.entries.keys()).collect();
    for path in paths {
        let mut note = |what, detail| found.push(Difference { path: path.clone(), what, detail });
        match (left.entries.get(path), right.entries.get(path)) {
            (Some(_), None) => note("only in the first", String::new()),
            (None, Some(_)) => note("only in the second", String::new()),
            (Some(a), Some(b)) => {
                for ((what, a), (_, b)) in a.inode.described().zip(b.inode.described()) {
                    if a != b {
                        note(what, format!("{a}, {b}"));
                    }
                }
                if a.first_name != b.first_name {
                    note("is the same file as", format!("{:?}, {:?}", a.first_name, b.first_name));
                }
                if let (Some(a), Some(b)) = (&a.content, &b.content) {
                    if a.hash != b.hash {
                        note("content", String::new());
                    }
                    if let Some(detail) = content::filled_or_punched(a, b) {
                        note("holes", detail);
                    }
                }
            }
            (None, None) => {}
        }
    }
    Ok(found)
}

#[derive(Debug)]
struct Entry {
    inode: Inode,
    /// The first name found of a file of several.
    first_name: Option<PathBuf>,
    /// Of a regular file.
    content: Option<Content>,
}

#[derive(Debug, Default)]
struct Tree {
    /// By path below the root; the root's is empty.
    entries: BTreeMap<PathBuf, Entry>,
    first_names: BTreeMap<(u64, u64), PathBuf>,
    /// The mount that the root is on.
    mount: u64,
}

impl Tree {
    fn read(root: &Path) -> io::Result<Self> {
        let mut tree = Self { mount: inode::mount_of(root)?, ..Self::default() };
        // Through its own dot, so that a root that is a link to a folder is the folder.
        tree.add(&root.join("."), PathBuf::new())?;
        // A file whose other names are elsewhere has one name here.
        let shared: BTreeSet<PathBuf> = tree
            .entries
            .iter()
            .filter_map(|(path, entry)| entry.first_name.clone().filter(|first| first != path))
            .collect();
        for entry in tree.entries.values_mut() {
            entry.first_name = entry.first_name.take().filter(|first| shared.contains(first));
        }
        Ok(tree)
    }

    /// `near` leads to the entry in a few bytes, however long `path` is.
    fn add(&mut self, near: &Path, path: PathBuf) -> io::Result<()> {
        let metadata = fs::symlink_metadata(near)?;
        // How many links a folder has is its file system's business.
        let several = metadata.nlink() > 1 && !metadata.is_dir();
        let first_name = several.then(|| {
            let id = (metadata.dev(), metadata.ino());
            self.first_names.entry(id).or_insert_with(|| path.clone()).clone()
        });
        let content = if metadata.is_file() { Content::read(near, &metadata)? } else { None };
        let entry = Entry { inode: Inode::read(near, &metadata)?, first_name, content };
        self.entries.insert(path.clone(), entry);
        if !metadata.is_dir() || inode::mount_of(near)? != self.mount {
            return Ok(());
        }
        let folder = File::open(near)?;
        let near = PathBuf::from(format!("/proc/self/fd/{}", folder.as_raw_fd()));
        let names: io::Result<Vec<_>> = fs::read_dir(&near)?.map(|entry| Ok(entry?.file_name())).collect();
        let mut names = names?;
        // The order of names decides which of several is the first.
        names.sort_unstable();
        for name in names {
            self.add(&near.join(&name), path.join(&name))?;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests;
