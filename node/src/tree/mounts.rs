//! What is mounted inside a tree.

use std::os::unix::ffi::OsStrExt;
use std::path::Path;

use shoal_proto::image::ImagePath;

use crate::mountinfo;

/// Local file systems that a part of an image may lie on. Any other one is the machine's own.
const LOCAL: [&str; 8] = ["ext2", "ext3", "ext4", "xfs", "btrfs", "f2fs", "vfat", "jfs"];

/// A mount below the top of a tree.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Mount {
    pub(super) path: ImagePath,
    /// A whole local file system, which may hold a part of an image; no bind, pseudo or network mount.
    pub(super) local: bool,
}

/// The mounts strictly below `top`, in path order.
pub(super) fn below(top: &Path) -> Vec<Mount> {
    let Ok(top) = top.canonicalize() else { return Vec::new() };
    among(mountinfo::read(), &top)
}

fn among(all: Vec<mountinfo::Mount>, top: &Path) -> Vec<Mount> {
    let mut mounts: Vec<Mount> = Vec::new();
    for mount in all {
        let Ok(path) = mount.point.strip_prefix(top) else { continue };
        let Ok(path) = ImagePath::parse(path.as_os_str().as_bytes()) else { continue };
        // A subvolume of btrfs has a root of its own; elsewhere another root is a directory bound in.
        let whole = mount.root == Path::new("/") || mount.kind == "btrfs";
        // Of mounts over one another the last is seen.
        mounts.retain(|below| below.path != path);
        if !path.is_root() {
            mounts.push(Mount { path, local: whole && LOCAL.contains(&mount.kind.as_str()) });
        }
    }
    mounts.sort_by(|one, other| one.path.cmp(&other.path));
    mounts
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn whole_local_file_systems_are_told_from_all_others() {
        let mount = |point: &str, root: &str, kind: &str| mountinfo::Mount {
            point: point.into(),
            root: root.into(),
            kind: kind.to_owned(),
        };
        let all = vec![
            mount("/t", "/", "ext4"),
            mount("/t/boot", "/", "ext4"),
            mount("/t/bind", "/t/x", "ext4"),
            mount("/t/p", "/", "ext4"),
            mount("/t/p", "/", "proc"),
            mount("/t/vol", "/@v", "btrfs"),
            mount("/elsewhere", "/", "ext4"),
        ];
        let found: Vec<_> = among(all, Path::new("/t"))
            .into_iter()
            .map(|mount| (mount.path.to_string(), mount.local))
            .collect();
        let expected = [("bind", false), ("boot", true), ("p", false), ("vol", true)];
        assert_eq!(found, expected.map(|(path, local)| (path.to_owned(), local)));
    }
}
