use std::fs::OpenOptions;
use std::os::unix::fs::{FileExt, PermissionsExt, lchown, symlink};

use rustix::fs::{
    AtFlags, CWD, FallocateFlags, FileType, IFlags, Mode, Timespec, Timestamps, XattrFlags, ioctl_getflags,
    ioctl_setflags,
};

use super::*;
use crate::{Sizes, TreeFixture, is_root, skipped};

const SIZES: Sizes = Sizes { noise_bytes: 1_000_000, small_files: 20 };

fn set_time(path: &Path, seconds: i64, nanoseconds: i64) {
    let time = Timespec { tv_sec: seconds, tv_nsec: nanoseconds };
    let times = Timestamps { last_access: time, last_modification: time };
    rustix::fs::utimensat(CWD, path, &times, AtFlags::SYMLINK_NOFOLLOW).unwrap();
}

/// Changes one thing in the second of two equal trees and returns what the comparison says of it, or `None` when
/// this user or this file system cannot have the thing.
type Case = (&'static str, fn(&Path) -> Option<()>, &'static [&'static str]);

const CASES: &[Case] = &[
    ("nothing", |_| Some(()), &[]),
    ("a file too many", |root| fs::write(root.join("zz/new"), b"").ok(), &["\"zz/new\": only in the second"]),
    (
        "a file too few",
        |root| fs::remove_file(root.join("zz/second of three")).ok(),
        &["\"zz/second of three\": only in the first"],
    ),
    ("one byte of a large file", |root| replace_byte(&root.join("noise"), 999_999), &["\"noise\": content"]),
    ("one byte of a small file", |root| replace_byte(&root.join("one byte"), 0), &["\"one byte\": content"]),
    (
        "a longer file",
        |root| {
            let file = OpenOptions::new().write(true).open(root.join("zeroes")).ok()?;
            file.set_len(300_001).ok()
        },
        &["\"zeroes\": size: 300000, 300001"],
    ),
    (
        "a mode",
        |root| fs::set_permissions(root.join("text"), fs::Permissions::from_mode(0o611)).ok(),
        &["\"text\": mode"],
    ),
    (
        "a set-uid bit",
        |root| fs::set_permissions(root.join("modes/file 4755"), fs::Permissions::from_mode(0o755)).ok(),
        &["\"modes/file 4755\": mode: 4755, 755"],
    ),
    (
        "the mode of the root",
        |root| fs::set_permissions(root, fs::Permissions::from_mode(0o711)).ok(),
        &[".: mode"],
    ),
    (
        "a nanosecond of a file",
        |root| {
            let metadata = fs::metadata(root.join("text")).ok()?;
            set_time(&root.join("text"), metadata.mtime(), metadata.mtime_nsec() ^ 1);
            Some(())
        },
        &["\"text\": time"],
    ),
    (
        "the time of a folder",
        |root| {
            set_time(&root.join("empty folder"), 1, 0);
            Some(())
        },
        &["\"empty folder\": time"],
    ),
    (
        "the time of a symlink",
        |root| {
            set_time(&root.join("links/dangling"), 1, 0);
            Some(())
        },
        &["\"links/dangling\": time"],
    ),
    (
        "a type",
        |root| {
            fs::remove_dir(root.join("empty folder")).ok()?;
            fs::write(root.join("empty folder"), b"").ok()
        },
        &["\"empty folder\": type: folder, file", "\"empty folder\": mode", "\"empty folder\": size"],
    ),
    (
        "a link target",
        |root| {
            fs::remove_file(root.join("links/dangling")).ok()?;
            symlink("/nowhere/at/alL", root.join("links/dangling")).ok()
        },
        &["\"links/dangling\": target"],
    ),
    (
        "a hard link that became a file",
        |root| {
            let path = root.join("links/second of two");
            fs::remove_file(&path).ok()?;
            fs::write(path, b"two names").ok()
        },
        &["\"links/first of two\": is the same file as", "\"links/second of two\": is the same file as"],
    ),
    (
        "a file that became a hard link",
        |root| {
            let path = root.join("links/same bytes, other file");
            fs::remove_file(&path).ok()?;
            fs::hard_link(root.join("links/first of two"), path).ok()
        },
        &[
            "\"links/same bytes, other file\": time",
            "\"links/same bytes, other file\": is the same file as: None, Some(\"links/first of two\")",
        ],
    ),
    (
        "an attribute's value",
        |root| {
            let path = root.join("attributes/file");
            rustix::fs::lsetxattr(path, "user.shoal.note", b"else", XattrFlags::REPLACE).ok()
        },
        &["\"attributes/file\": extended attributes", "\"attributes/file, twice\": extended attributes"],
    ),
    (
        "a missing access control list",
        |root| rustix::fs::lremovexattr(root.join("attributes/shared"), "system.posix_acl_access").ok(),
        &["\"attributes/shared\": extended attributes"],
    ),
    (
        "an owner",
        |root| if is_root() { lchown(root.join("links/dangling"), Some(7), None).ok() } else { None },
        &["\"links/dangling\": owner"],
    ),
    (
        "a device number",
        |root| {
            let path = root.join("root/disk");
            fs::remove_file(&path).ok()?;
            let device = rustix::fs::makedev(259, 8);
            rustix::fs::mknodat(CWD, &path, FileType::BlockDevice, Mode::from_raw_mode(0o660), device)
                .ok()?;
            fs::set_permissions(path, fs::Permissions::from_mode(0o660)).ok()
        },
        &["\"root/disk\": device"],
    ),
    (
        "a hole that is filled",
        |root| {
            let file = OpenOptions::new().write(true).open(root.join("sparse")).ok()?;
            file.write_all_at(&[0; 8192], 1 << 20).ok()
        },
        &["\"sparse\": holes: 0..20971520 is filled in the second"],
    ),
    (
        "a hole where there was room",
        |root| {
            let file = OpenOptions::new().write(true).open(root.join("zeroes")).ok()?;
            rustix::fs::fallocate(&file, FallocateFlags::PUNCH_HOLE | FallocateFlags::KEEP_SIZE, 8192, 65_536)
                .ok()
        },
        &["\"zeroes\": holes: 8192..73728 is new in the second"],
    ),
    (
        "a flag",
        |root| {
            let file = File::open(root.join("text")).ok()?;
            ioctl_setflags(&file, ioctl_getflags(&file).ok()? | IFlags::NODUMP).ok()
        },
        &["\"text\": flags: , d"],
    ),
    (
        "a flag of a folder",
        |root| {
            let file = File::open(root.join("empty folder")).ok()?;
            ioctl_setflags(&file, ioctl_getflags(&file).ok()? | IFlags::NOATIME).ok()
        },
        &["\"empty folder\": flags: , A"],
    ),
    (
        "a project",
        |root| set_project(&File::open(root.join("text")).ok()?, 42).ok(),
        &["\"text\": project: 0, 42"],
    ),
    (
        "an attribute of a link",
        |root| rustix::fs::lremovexattr(root.join("root/link with attribute"), "trusted.shoal").ok(),
        &["\"root/link with attribute\": extended attributes"],
    ),
    (
        "a mode of a fifo",
        |root| fs::set_permissions(root.join("links/fifo"), fs::Permissions::from_mode(0o600)).ok(),
        &["\"links/fifo\": mode: 640, 600", "\"links/fifo, twice\": mode: 640, 600"],
    ),
    (
        "a capability",
        |root| rustix::fs::lremovexattr(root.join("root/capable"), "security.capability").ok(),
        &["\"root/capable\": extended attributes"],
    ),
];

fn replace_byte(path: &Path, offset: u64) -> Option<()> {
    let file = OpenOptions::new().read(true).write(true).open(path).ok()?;
    let mut byte = [0];
    file.read_exact_at(&mut byte, offset).ok()?;
    file.write_all_at(&[!byte[0]], offset).ok()
}

#[test]
fn each_kind_of_difference_is_seen() {
    let first = TreeFixture::new(SIZES);
    for (name, change, expected) in CASES {
        let second = TreeFixture::new(SIZES);
        if change(&second.path()).is_none() {
            skipped(&format!("{name}: needs root, or a file system that keeps it"));
            continue;
        }
        restore_times(&first.path(), &second.path(), expected);
        let found = differences(&first.path(), &second.path()).unwrap();
        for line in *expected {
            assert!(found.iter().any(|found| found.starts_with(line)), "{name}: no {line} in {found:#?}");
        }
        assert_eq!(found.len(), expected.len(), "{name}: {found:#?}");
    }
}

/// A change in a folder is one of its time too: puts back all times but those that are the point.
fn restore_times(first: &Path, second: &Path, meant: &[&str]) {
    let mut waiting = vec![PathBuf::new()];
    while let Some(path) = waiting.pop() {
        let (from, to) = (first.join(&path), second.join(&path));
        let metadata = fs::symlink_metadata(&from).unwrap();
        if metadata.is_dir() {
            waiting.extend(fs::read_dir(&from).unwrap().map(|entry| path.join(entry.unwrap().file_name())));
        }
        if !meant.contains(&&*format!("{path:?}: time")) && fs::symlink_metadata(&to).is_ok() {
            set_time(&to, metadata.mtime(), metadata.mtime_nsec());
        }
    }
}

#[test]
fn a_project_is_seen() {
    if !is_root() {
        return skipped("needs root");
    }
    let Some(disk) = crate::Disk::new(crate::FileSystem::Xfs) else { return };
    let (first, second) = (disk.path().join("first"), disk.path().join("second"));
    for root in [&first, &second] {
        fs::create_dir(root).unwrap();
        fs::write(root.join("file"), b"").unwrap();
    }
    set_project(&File::open(second.join("file")).unwrap(), 42).unwrap();
    restore_times(&first, &second, &[]);
    assert_eq!(differences(&first, &second).unwrap(), ["\"file\": project: 0, 42"]);
}

#[test]
fn a_faithful_copy_has_no_differences() {
    let tree = TreeFixture::new(SIZES);
    let folder = tempfile::tempdir().unwrap();
    let copy = folder.path().join("copy");
    let status = std::process::Command::new("cp").arg("-a").arg(tree.path()).arg(&copy).status().unwrap();
    assert!(status.success());
    assert_eq!(differences(&tree.path(), &copy).unwrap(), [""; 0]);
    crate::tree::make_removable(&copy);
}
