//! An independent comparison of two trees: its own walk, its own reading of every attribute.

use std::collections::{BTreeMap, BTreeSet};
use std::ffi::CString;
use std::fs::{self, File, Metadata};
use std::io::{self, Read};
use std::os::unix::fs::{FileTypeExt, MetadataExt};
use std::path::{Path, PathBuf};

use rustix::fs::{lgetxattr, llistxattr};

/// What differs between two trees, a line for each path and attribute; empty when they are equal.
///
/// Compares the roots and everything below: type, mode, owner, modification time to the nanosecond, size, content,
/// link target, device number, extended attributes (ACLs and capabilities are among them), and which names are one
/// file.
pub fn differences(left: &Path, right: &Path) -> io::Result<Vec<String>> {
    let (left_tree, right_tree) = (Tree::read(left)?, Tree::read(right)?);
    let mut found = Vec::new();
    let paths: BTreeSet<&PathBuf> = left_tree.entries.keys().chain(right_tree.entries.keys()).collect();
    for path in paths {
        let name = if path.as_os_str().is_empty() { ".".to_owned() } else { format!("{path:?}") };
        match (left_tree.entries.get(path), right_tree.entries.get(path)) {
            (Some(_), None) => found.push(format!("{name}: only in the first")),
            (None, Some(_)) => found.push(format!("{name}: only in the second")),
            (Some(a), Some(b)) => {
                for ((what, a), (_, b)) in a.iter().zip(b) {
                    if a != b {
                        found.push(format!("{name}: {what}: {a}, {b}"));
                    }
                }
                let both_files = a[0].1 == "file" && b[0].1 == "file";
                if both_files && !same_content(&left.join(path), &right.join(path))? {
                    found.push(format!("{name}: content"));
                }
            }
            (None, None) => {}
        }
    }
    Ok(found)
}

/// The attributes of one path, always the same ones in the same order.
type Entry = Vec<(&'static str, String)>;

#[derive(Default)]
struct Tree {
    /// By path below the root; the root's is empty.
    entries: BTreeMap<PathBuf, Entry>,
    /// The first name found for each file of several.
    first_names: BTreeMap<(u64, u64), PathBuf>,
}

impl Tree {
    fn read(root: &Path) -> io::Result<Self> {
        let mut tree = Self::default();
        let mut waiting = vec![PathBuf::new()];
        while let Some(path) = waiting.pop() {
            let full = if path.as_os_str().is_empty() { root.to_owned() } else { root.join(&path) };
            let metadata = fs::symlink_metadata(&full)?;
            if metadata.is_dir() {
                let mut names: Vec<PathBuf> = Vec::new();
                for entry in fs::read_dir(&full)? {
                    names.push(path.join(entry?.file_name()));
                }
                // The order of names decides which of several is the first.
                names.sort_unstable_by(|a, b| b.cmp(a));
                waiting.extend(names);
            }
            let entry = tree.entry(&path, &full, &metadata)?;
            tree.entries.insert(path, entry);
        }
        Ok(tree)
    }

    fn entry(&mut self, path: &Path, full: &Path, metadata: &Metadata) -> io::Result<Entry> {
        let file_type = metadata.file_type();
        let kind = match () {
            () if file_type.is_file() => "file",
            () if file_type.is_dir() => "folder",
            () if file_type.is_symlink() => "symlink",
            () if file_type.is_fifo() => "fifo",
            () if file_type.is_socket() => "socket",
            () if file_type.is_block_device() => "block device",
            () => "character device",
        };
        let is_device = file_type.is_block_device() || file_type.is_char_device();
        // A folder's size, and how many links it has, are its file system's business.
        let is_one_of_many = metadata.nlink() > 1 && !file_type.is_dir();
        let first_name = is_one_of_many.then(|| {
            let id = (metadata.dev(), metadata.ino());
            self.first_names.entry(id).or_insert_with(|| path.to_owned()).clone()
        });
        let target =
            if file_type.is_symlink() { format!("{:?}", fs::read_link(full)?) } else { String::new() };
        Ok(vec![
            ("type", kind.to_owned()),
            ("mode", format!("{:o}", metadata.mode() & 0o7777)),
            ("owner", format!("{}:{}", metadata.uid(), metadata.gid())),
            ("time", format!("{}.{:09}", metadata.mtime(), metadata.mtime_nsec())),
            ("size", if file_type.is_dir() { String::new() } else { metadata.size().to_string() }),
            ("device", if is_device { metadata.rdev().to_string() } else { String::new() }),
            ("target", target),
            ("is the same file as", format!("{first_name:?}")),
            ("extended attributes", format!("{:?}", attributes(full)?)),
        ])
    }
}

fn attributes(path: &Path) -> io::Result<BTreeMap<CString, Vec<u8>>> {
    let mut names = vec![0; 1 << 16];
    let length = match llistxattr(path, &mut names[..]) {
        Ok(length) => length,
        Err(rustix::io::Errno::OPNOTSUPP) => 0,
        Err(error) => return Err(error.into()),
    };
    let mut attributes = BTreeMap::new();
    for name in names[..length].split(|byte| *byte == 0).filter(|name| !name.is_empty()) {
        let name = CString::new(name).expect("split at every NUL");
        let mut value = vec![0; 1 << 16];
        let length = lgetxattr(path, &name, &mut value[..])?;
        value.truncate(length);
        attributes.insert(name, value);
    }
    Ok(attributes)
}

fn same_content(left: &Path, right: &Path) -> io::Result<bool> {
    let (mut left, mut right) = (File::open(left)?, File::open(right)?);
    let (mut a, mut b) = (vec![0; 1 << 18], vec![0; 1 << 18]);
    loop {
        let (read_a, read_b) = (fill(&mut left, &mut a)?, fill(&mut right, &mut b)?);
        if a[..read_a] != b[..read_b] {
            return Ok(false);
        }
        if read_a == 0 {
            return Ok(true);
        }
    }
}

fn fill(file: &mut File, buffer: &mut [u8]) -> io::Result<usize> {
    let mut filled = 0;
    while filled < buffer.len() {
        match file.read(&mut buffer[filled..])? {
            0 => break,
            read => filled += read,
        }
    }
    Ok(filled)
}

#[cfg(test)]
mod tests;
