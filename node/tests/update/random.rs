//! Small random trees over few names and few contents, so that two of them have much in common.

use std::fs::{self, File};
use std::os::unix::fs::{PermissionsExt, symlink};
use std::path::{Path, PathBuf};

use rand::Rng;
use rand::rngs::SmallRng;
use rustix::fs::{CWD, FileType, IFlags, Mode};

use crate::fixture::{add_flags, is_root, noise, set_time, set_xattr};

const NAMES: [&str; 5] = ["a", "b", "c", "d", "e"];
const SIZES: [usize; 6] = [0, 1, 5_000, 40_000, 300_000, 1_200_000];

pub(crate) fn make(random: &mut SmallRng, top: &Path) {
    let (mut files, mut directories) = (Vec::new(), vec![top.to_owned()]);
    fill(random, top, 0, &mut files, &mut directories);
    for _ in 0..random.random_range(0..4) {
        if files.is_empty() {
            break;
        }
        let from: &PathBuf = &files[random.random_range(0..files.len())];
        let into = &directories[random.random_range(0..directories.len())];
        let _ = fs::hard_link(from, into.join(NAMES[random.random_range(0..NAMES.len())]));
    }
    for path in &files {
        decorate(random, path);
    }
    for path in directories.iter().rev() {
        if random.random_bool(0.3) {
            fs::set_permissions(path, fs::Permissions::from_mode(0o755)).unwrap();
        }
        set_time(path, random.random_range(1..3), 0);
        if is_root() && random.random_bool(0.05) {
            add_flags(path, IFlags::IMMUTABLE);
        }
    }
}

fn fill(
    random: &mut SmallRng,
    dir: &Path,
    depth: usize,
    files: &mut Vec<PathBuf>,
    directories: &mut Vec<PathBuf>,
) {
    for name in NAMES {
        let path = dir.join(name);
        match random.random_range(0..10) {
            0..=1 if depth < 3 => {
                fs::create_dir(&path).unwrap();
                directories.push(path.clone());
                fill(random, &path, depth + 1, files, directories);
            }
            2..=4 => {
                let size = SIZES[random.random_range(0..SIZES.len())];
                let content = noise(NAMES[random.random_range(0..2)], size);
                fs::write(&path, content).unwrap();
                files.push(path);
            }
            5 => {
                let file = File::create(&path).unwrap();
                file.set_len(random.random_range(0..3) * 1_000_000).unwrap();
                files.push(path);
            }
            6 => {
                symlink(NAMES[random.random_range(0..2)], &path).unwrap();
                set_time(&path, random.random_range(1..3), 0);
            }
            7 => {
                rustix::fs::mknodat(CWD, &path, FileType::Fifo, Mode::RUSR, 0).unwrap();
                set_time(&path, random.random_range(1..3), 0);
            }
            _ => {}
        }
    }
}

fn decorate(random: &mut SmallRng, path: &Path) {
    let mode = [0o644, 0o755, 0o4755, 0o600][random.random_range(0..4)];
    if is_root() && random.random_bool(0.2) {
        std::os::unix::fs::lchown(path, Some(random.random_range(0..3)), Some(7)).unwrap();
    }
    fs::set_permissions(path, fs::Permissions::from_mode(mode)).unwrap();
    if random.random_bool(0.2) {
        set_xattr(path, b"user.x", NAMES[random.random_range(0..2)].as_bytes());
    }
    set_time(path, random.random_range(1..3), 0);
    if is_root() && random.random_bool(0.1) {
        add_flags(path, [IFlags::IMMUTABLE, IFlags::APPEND, IFlags::NODUMP][random.random_range(0..3)]);
    }
}
