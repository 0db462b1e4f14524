//! Thirty ways in which an installed tree may drift: each is found, nothing else is, and a repair restores exactly those.

use std::collections::{BTreeMap, BTreeSet};
use std::fs::{self, File, OpenOptions};
use std::io::{Seek, SeekFrom, Write};
use std::os::unix::fs::{MetadataExt, PermissionsExt, lchown, symlink};
use std::path::Path;

use harness::{Node, Process, Publisher, inodes, is_root, number, skipped};
use rustix::fs::{
    AtFlags, CWD, FileType, IFlags, Mode, Timespec, Timestamps, XattrFlags, ioctl_getflags, ioctl_setflags,
};
use serde_json::Value;

use crate::assert_same;

/// How one path drifts, and what `verify` calls it.
struct Case {
    path: &'static str,
    kinds: &'static [&'static str],
    plant: fn(&Path),
    root: bool,
}

const fn case(path: &'static str, kinds: &'static [&'static str], plant: fn(&Path)) -> Case {
    Case { path, kinds, plant, root: false }
}

const fn by_root(path: &'static str, kinds: &'static [&'static str], plant: fn(&Path)) -> Case {
    Case { path, kinds, plant, root: true }
}

const CASES: &[Case] = &[
    case("content/one-bit", &["content"], |path| overwrite(path, 70_000, b"!")),
    case("content/first-byte", &["content"], |path| overwrite(path, 0, b"!")),
    case("content/last-byte", &["content"], |path| overwrite(path, 199_999, b"!")),
    case("content/shorter", &["size"], |path| open(path).set_len(100).unwrap()),
    case("content/longer", &["size"], |path| overwrite(path, 200_000, b"more")),
    case("content/emptied", &["size"], |path| open(path).set_len(0).unwrap()),
    case("content/hole-filled", &["content"], |path| overwrite(path, 3_000_000, b"!")),
    case("content/was-empty", &["size"], |path| overwrite(path, 0, b"!")),
    case("mode/suid", &["mode"], |path| chmod(path, 0o4755)),
    case("mode/closed", &["mode"], |path| chmod(path, 0o600)),
    case("mode/directory", &["mode"], |path| chmod(path, 0o711)),
    case("time/second", &["mtime"], |path| set_time(path, 1_000_001, 5)),
    case("time/nanosecond", &["mtime"], |path| set_time(path, 1_000_000, 6)),
    case("time/symlink", &["mtime"], |path| set_time(path, 7, 7)),
    case("time/directory", &["mtime"], |path| set_time(path, 7, 7)),
    case("missing/file", &["missing"], |path| fs::remove_file(path).unwrap()),
    case("missing/symlink", &["missing"], |path| fs::remove_file(path).unwrap()),
    case("missing/fifo", &["missing"], |path| fs::remove_file(path).unwrap()),
    case("missing/directory", &["missing"], |path| fs::remove_dir(path).unwrap()),
    case("extra/file", &["extra"], |path| fs::write(path, "extra").unwrap()),
    case("extra/directory", &["extra"], |path| fs::create_dir_all(path.join("below/it")).unwrap()),
    case("type/file-to-directory", &["type"], |path| {
        fs::remove_file(path).unwrap();
        fs::create_dir(path).unwrap();
    }),
    case("type/directory-to-file", &["type"], |path| {
        fs::remove_dir(path).unwrap();
        fs::write(path, "file").unwrap();
    }),
    case("type/file-to-symlink", &["type"], |path| {
        fs::remove_file(path).unwrap();
        symlink("/etc/passwd", path).unwrap();
    }),
    case("link/elsewhere", &["link_target"], |path| {
        let before = fs::symlink_metadata(path).unwrap();
        fs::remove_file(path).unwrap();
        symlink("elsewhere", path).unwrap();
        set_time(path, before.mtime(), before.mtime_nsec());
    }),
    case("hard/split-2", &["hard_link"], |path| {
        let (bytes, before) = (fs::read(path).unwrap(), fs::metadata(path).unwrap());
        fs::remove_file(path).unwrap();
        fs::write(path, bytes).unwrap();
        chmod(path, before.mode() & 0o7777);
        set_time(path, before.mtime(), before.mtime_nsec());
    }),
    case("hard/joined-2", &["hard_link"], |path| {
        fs::remove_file(path).unwrap();
        fs::hard_link(path.with_file_name("joined-1"), path).unwrap();
    }),
    case("xattr/new", &["xattr"], |path| set_xattr(path, b"user.new", b"x")),
    case("xattr/changed", &["xattr"], |path| set_xattr(path, b"user.old", b"changed")),
    case("xattr/gone", &["xattr"], |path| rustix::fs::removexattr(path, "user.old").unwrap()),
    by_root("root/owner", &["owner"], |path| lchown(path, Some(7), None).unwrap()),
    by_root("root/group-of-symlink", &["owner"], |path| lchown(path, None, Some(7)).unwrap()),
    by_root("root/immutable", &["flags"], |path| set_flags(path, IFlags::IMMUTABLE)),
    by_root("root/mutable", &["flags"], |path| set_flags(path, IFlags::empty())),
    by_root("root/acl", &["mode", "xattr"], |path| set_xattr(path, b"system.posix_acl_access", &ACL)),
    by_root("root/capability", &["xattr"], |path| {
        rustix::fs::removexattr(path, "security.capability").unwrap();
    }),
    by_root("root/device", &["device"], |path| {
        let before = fs::symlink_metadata(path).unwrap();
        fs::remove_file(path).unwrap();
        make_device(path, 9);
        set_time(path, before.mtime(), before.mtime_nsec());
    }),
];

/// An ACL of version 2: owner rw, user 1234 r, group r, mask r, others r.
const ACL: [u8; 44] = {
    let mut acl = [0; 44];
    acl[0] = 2;
    let entries: [(u8, u8, u32); 5] =
        [(1, 6, u32::MAX), (2, 4, 1234), (4, 4, u32::MAX), (16, 6, u32::MAX), (32, 4, u32::MAX)];
    let mut at = 0;
    while at < entries.len() {
        let (tag, permissions, id) = entries[at];
        acl[4 + 8 * at] = tag;
        acl[4 + 8 * at + 2] = permissions;
        let id = id.to_le_bytes();
        let mut byte = 0;
        while byte < 4 {
            acl[4 + 8 * at + 4 + byte] = id[byte];
            byte += 1;
        }
        at += 1;
    }
    acl
};

fn open(path: &Path) -> File {
    OpenOptions::new().write(true).open(path).unwrap()
}

fn overwrite(path: &Path, at: u64, bytes: &[u8]) {
    let mut file = open(path);
    file.seek(SeekFrom::Start(at)).unwrap();
    file.write_all(bytes).unwrap();
}

fn chmod(path: &Path, mode: u32) {
    fs::set_permissions(path, fs::Permissions::from_mode(mode)).unwrap();
}

fn set_time(path: &Path, seconds: i64, nanoseconds: i64) {
    let time = Timespec { tv_sec: seconds, tv_nsec: nanoseconds };
    let times = Timestamps { last_access: time, last_modification: time };
    rustix::fs::utimensat(CWD, path, &times, AtFlags::SYMLINK_NOFOLLOW).unwrap();
}

fn set_xattr(path: &Path, name: &[u8], value: &[u8]) {
    rustix::fs::setxattr(path, name, value, XattrFlags::empty()).unwrap();
}

fn set_flags(path: &Path, flags: IFlags) {
    let file = File::open(path).unwrap();
    let kept = ioctl_getflags(&file).unwrap() - IFlags::IMMUTABLE;
    ioctl_setflags(&file, kept | flags).unwrap();
}

fn make_device(path: &Path, minor: u32) {
    let device = rustix::fs::makedev(1, minor);
    rustix::fs::mknodat(CWD, path, FileType::CharacterDevice, Mode::RUSR | Mode::WUSR, device).unwrap();
}

/// The tree as it shall be: something at the path of each case, and as much that does not drift.
fn make_source(top: &Path, root: bool) {
    for case in CASES.iter().filter(|case| root || !case.root) {
        let path = top.join(case.path);
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        let (group, name) = case.path.split_once('/').unwrap();
        match (group, name) {
            ("extra", _) => {}
            (_, "directory" | "directory-to-file") => fs::create_dir(&path).unwrap(),
            (_, "symlink" | "elsewhere" | "group-of-symlink") => symlink("target", &path).unwrap(),
            (_, "fifo") => rustix::fs::mknodat(CWD, &path, FileType::Fifo, Mode::RUSR, 0).unwrap(),
            (_, "device") => make_device(&path, 3),
            (_, "was-empty") => fs::write(&path, "").unwrap(),
            (_, "hole-filled") => {
                fs::write(&path, "data").unwrap();
                open(&path).set_len(5_000_000).unwrap();
            }
            ("hard", _) => {
                let first = path.with_file_name(name.replace('2', "1"));
                fs::write(&first, name).unwrap();
                if name.starts_with("split") {
                    fs::hard_link(&first, &path).unwrap();
                } else {
                    fs::write(&path, name).unwrap();
                    set_time(&path, 3, 3);
                    set_time(&first, 3, 3);
                }
            }
            _ => {
                let block = format!("{}, block ", case.path);
                let text: String = (0..12_000).map(|at| format!("{block}{at}")).collect();
                fs::write(&path, &text.as_bytes()[..200_000]).unwrap();
            }
        }
        if group == "xattr" {
            set_xattr(&path, b"user.old", b"value");
            if name == "new" {
                rustix::fs::removexattr(&path, "user.old").unwrap();
            }
        }
        match name {
            "capability" => {
                let capability = [1, 0, 0, 2, 0, 4, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0];
                set_xattr(&path, b"security.capability", &capability);
            }
            "second" | "nanosecond" => set_time(&path, 1_000_000, 5),
            "mutable" => set_flags(&path, IFlags::IMMUTABLE),
            _ => {}
        }
        fs::write(path.with_file_name(format!("beside-{name}")), "as it is").unwrap();
    }
}

/// Plants every case, and gives directories the times that they had.
fn plant(target: &Path, root: bool) {
    for case in CASES.iter().filter(|case| root || !case.root) {
        let path = target.join(case.path);
        let parent = path.parent().unwrap();
        let before = fs::metadata(parent).unwrap();
        let time = fs::symlink_metadata(&path).ok();
        (case.plant)(&path);
        // Only the one kind: content changes behind the old time.
        if let (Some(time), true) = (time, fs::symlink_metadata(&path).is_ok_and(|found| found.is_file()))
            && !case.kinds.contains(&"mtime")
            && !case.kinds.contains(&"flags")
        {
            set_time(&path, time.mtime(), time.mtime_nsec());
        }
        set_time(parent, before.mtime(), before.mtime_nsec());
    }
}

#[test]
fn each_planted_drift_is_found_and_nothing_else_and_a_repair_restores_exactly_those() {
    let root = is_root();
    if !root {
        skipped("the cases of root need root");
    }
    let source = tempfile::tempdir().unwrap();
    make_source(source.path(), root);
    let publisher = Publisher::new();
    publisher.capture(source.path(), "tree");
    let server = publisher.serve(&[]);
    let node = Node::new();
    let arguments = ["--image", "tree", "--seed-for", "0s"];
    Process::start(node.install_command(&server.ticket, &arguments)).finish().expect_success();
    let whole = inodes(&node.target());
    plant(&node.target(), root);

    let verified = node.on_target(&["verify", "--json", "--all"]);
    assert_eq!(verified.status.code(), Some(3));
    let report: Value = serde_json::from_str(&verified.stdout.concat()).unwrap();
    let found: BTreeMap<&str, BTreeSet<&str>> =
        report["drift"].as_array().unwrap().iter().map(drifted).collect();
    let planted: BTreeMap<&str, BTreeSet<&str>> = CASES
        .iter()
        .filter(|case| root || !case.root)
        .map(|case| (case.path, case.kinds.iter().copied().collect()))
        .collect();
    assert_eq!(found, planted);
    assert!(planted.len() >= 30);

    let rules = node.store().with_file_name("rules");
    fs::write(&rules, "managed **\n").unwrap();
    let rules = rules.to_str().unwrap();
    let repair = ["verify", "--repair", "--delete", "--rules", rules, "--json"];
    let lacking = node.on_target(&repair);
    assert_eq!(lacking.status.code(), Some(1), "content that is nowhere here cannot be repaired alone");
    assert!(lacking.stderr.concat().contains("say --ticket"), "{:?}", lacking.stderr);
    let repaired = node.on_target(&[&repair[..], &["--ticket", &server.ticket]].concat()).expect_success();
    let report: Value = serde_json::from_str(&repaired.stdout.concat()).unwrap();
    assert_same(source.path(), &node.target());
    node.on_target(&["verify", "--all"]).expect_success();
    assert!(number(&report, "bytes_from_seeder") > 0);
    for (path, (inode, ..)) in inodes(&node.target()) {
        let relative = path.strip_prefix(node.target()).unwrap().to_str().unwrap();
        let hard = relative.starts_with("hard/");
        if !planted.contains_key(relative) && !hard {
            assert_eq!(inode, whole[&path].0, "{relative} was replaced");
        }
    }
}

fn drifted(drift: &Value) -> (&str, BTreeSet<&str>) {
    let kinds = drift["kinds"].as_array().unwrap().iter().map(|kind| kind.as_str().unwrap()).collect();
    (drift["path"].as_str().unwrap(), kinds)
}
