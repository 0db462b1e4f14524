//! The comparer: shares no code with what it judges.

use std::collections::BTreeMap;
use std::fs::{self, File};
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

use rustix::fs::{FileType, IFlags};

/// Every path with all that should come back, sockets left out.
pub(crate) fn snapshot(top: &Path) -> BTreeMap<PathBuf, String> {
    let mut paths = vec![PathBuf::new()];
    let mut described = BTreeMap::new();
    let mut inodes: BTreeMap<u64, Vec<PathBuf>> = BTreeMap::new();
    while let Some(path) = paths.pop() {
        let full = if path.as_os_str().is_empty() { top.to_owned() } else { top.join(&path) };
        let metadata = fs::symlink_metadata(&full).unwrap();
        let file_type = FileType::from_raw_mode(metadata.mode());
        if file_type == FileType::Socket {
            continue;
        }
        if metadata.is_dir() {
            paths.extend(fs::read_dir(&full).unwrap().map(|entry| path.join(entry.unwrap().file_name())));
        } else {
            inodes.entry(metadata.ino()).or_default().push(path.clone());
        }
        described.insert(path, describe(&full, &metadata, file_type));
    }
    for mut group in inodes.into_values() {
        group.sort();
        for path in &group {
            described.get_mut(path).unwrap().push_str(&format!(" names {group:?}"));
        }
    }
    described
}

pub(crate) fn describe(path: &Path, metadata: &fs::Metadata, file_type: FileType) -> String {
    let mut text = format!(
        "{file_type:?} {:o} {}:{} {}.{:09}",
        metadata.mode(),
        metadata.uid(),
        metadata.gid(),
        metadata.mtime(),
        metadata.mtime_nsec()
    );
    match file_type {
        FileType::Symlink => text += &format!(" -> {:?}", fs::read_link(path).unwrap()),
        FileType::CharacterDevice | FileType::BlockDevice => {
            text += &format!(" device {:x}", metadata.rdev())
        }
        FileType::RegularFile => {
            text += &format!(" size {}", metadata.size());
            if metadata.size() < 1 << 24 {
                let unreadable = |error: std::io::Error| error.to_string().into_bytes();
                text += &format!(" {}", blake3::hash(&fs::read(path).unwrap_or_else(unreadable)));
            } else {
                text += &format!(" data below {}", metadata.blocks() < 1 << 11);
            }
        }
        _ => {}
    }
    let mut list = vec![0; 4096];
    let len = rustix::fs::llistxattr(path, &mut list[..]).unwrap_or(0);
    let mut names: Vec<&[u8]> =
        list[..len].split(|byte| *byte == 0).filter(|name| !name.is_empty()).collect();
    names.sort_unstable();
    for name in names {
        let mut value = vec![0; 65_536];
        let len = rustix::fs::lgetxattr(path, name, &mut value[..]).unwrap();
        text += &format!(" {}={}", name.escape_ascii(), value[..len].escape_ascii());
    }
    if matches!(file_type, FileType::Directory | FileType::RegularFile)
        && let Ok(file) = File::open(path)
        && let Ok(flags) = rustix::fs::ioctl_getflags(&file)
    {
        let kept = IFlags::IMMUTABLE | IFlags::APPEND | IFlags::NODUMP | IFlags::NOATIME;
        text += &format!(" flags {:?}", flags & kept);
    }
    text
}
