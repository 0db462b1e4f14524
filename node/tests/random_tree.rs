//! Any tree comes back as it was, and is the same image again.

#![expect(clippy::unwrap_used, reason = "a test")]

#[path = "tree/blocks.rs"]
mod blocks;
#[path = "tree/snapshot.rs"]
mod snapshot;

use std::ffi::OsStr;
use std::fs::{self, File};
use std::io;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::{FileExt, PermissionsExt, symlink};
use std::path::{Path, PathBuf};

use blocks::Blocks;
use proptest::collection::vec;
use proptest::prelude::*;
use rustix::fs::{AtFlags, CWD, FileType, Mode, Timespec, Timestamps, XattrFlags};
use shoal_node::tree::capture::{CaptureOptions, capture};
use shoal_node::tree::verify::{VerifyMode, verify};
use snapshot::snapshot;

/// One entry, put into one of the folders made before.
#[derive(Clone, Debug)]
struct Step {
    folder: prop::sample::Index,
    name: Vec<u8>,
    what: What,
    mode: u32,
    time: (i64, i64),
    xattrs: Vec<(Vec<u8>, Vec<u8>)>,
}

#[derive(Clone, Debug)]
enum What {
    Folder,
    /// Size, and runs of data: where, how long, of what.
    File(u32, Vec<(u32, u16, u8)>),
    Symlink(Vec<u8>),
    /// Of an entry made before.
    Link(prop::sample::Index),
    Fifo,
}

fn what() -> impl Strategy<Value = What> {
    let run = (0..600_000_u32, any::<u16>(), prop_oneof![Just(0), any::<u8>()]);
    prop_oneof![
        2 => Just(What::Folder),
        3 => (0..600_000_u32, vec(run, 0..4)).prop_map(|(size, runs)| What::File(size, runs)),
        1 => Just(What::File(0, vec![])),
        1 => vec(1_u8.., 1..200).prop_map(What::Symlink),
        2 => any::<prop::sample::Index>().prop_map(What::Link),
        1 => Just(What::Fifo),
    ]
}

fn step() -> impl Strategy<Value = Step> {
    let name = vec(any::<u8>().prop_filter("no name has these", |byte| !b"/\0".contains(byte)), 1..20);
    let xattr = (vec(1_u8.., 1..20), vec(any::<u8>(), 0..60));
    (
        any::<prop::sample::Index>(),
        name,
        what(),
        prop_oneof![Just(0o644), Just(0o755), 0..=0o7777_u32],
        (-2_000_000_000..4_000_000_000_i64, prop_oneof![Just(0), 0..1_000_000_000_i64]),
        proptest::option::weighted(0.3, vec(xattr, 1..3)).prop_map(Option::unwrap_or_default),
    )
        .prop_map(|(folder, name, what, mode, time, xattrs)| Step {
            folder,
            name,
            what,
            mode,
            time,
            xattrs,
        })
}

/// Makes what fits of the steps; a name may be taken or mean another folder.
fn grow(top: &Path, steps: &[Step]) {
    let (mut folders, mut entries) = (vec![top.to_owned()], Vec::<(PathBuf, &Step)>::new());
    for step in steps {
        let path = step.folder.get(&folders).join(OsStr::from_bytes(&step.name));
        if path.symlink_metadata().is_ok() {
            continue;
        }
        let made = match &step.what {
            What::Folder => fs::create_dir(&path).map(|()| folders.push(path.clone())),
            What::File(size, runs) => make_file(&path, *size, runs),
            What::Symlink(target) => symlink(OsStr::from_bytes(target), &path),
            What::Link(_) if entries.is_empty() => continue,
            What::Link(to) => {
                let to = &to.get(&entries).0;
                if to.is_dir() && !to.is_symlink() {
                    continue;
                }
                rustix::fs::linkat(CWD, to, CWD, &path, AtFlags::empty()).map_err(io::Error::from)
            }
            What::Fifo => {
                rustix::fs::mknodat(CWD, &path, FileType::Fifo, Mode::RWXU, 0).map_err(io::Error::from)
            }
        };
        made.unwrap_or_else(|error| panic!("{}: {error}", path.display()));
        entries.push((path, step));
    }
    // Folders after what is in them.
    for (path, step) in entries.iter().rev() {
        for (name, value) in &step.xattrs {
            let name = [b"user.", &name[..]].concat();
            // A link has none, and a file only so many.
            let _ = rustix::fs::lsetxattr(path, name, value, XattrFlags::empty());
        }
        if !path.is_symlink() {
            // This user must be able to read it.
            let bits = if path.is_dir() { 0o700 } else { 0o400 };
            fs::set_permissions(path, fs::Permissions::from_mode(step.mode | bits)).unwrap();
        }
        set_time(path, step.time);
    }
}

fn make_file(path: &Path, size: u32, runs: &[(u32, u16, u8)]) -> io::Result<()> {
    let file = File::create(path)?;
    file.set_len(size.into())?;
    for &(at, length, byte) in runs {
        file.write_all_at(&vec![byte; length.into()], at.into())?;
    }
    Ok(())
}

fn set_time(path: &Path, (seconds, nanoseconds): (i64, i64)) {
    let time = Timespec { tv_sec: seconds, tv_nsec: nanoseconds };
    let times = Timestamps { last_access: time, last_modification: time };
    rustix::fs::utimensat(CWD, path, &times, AtFlags::SYMLINK_NOFOLLOW).unwrap();
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 64, ..ProptestConfig::default() })]

    #[test]
    fn any_tree_comes_back_and_is_the_same_image_again(steps in vec(step(), 0..40), threads in 1..4_usize) {
        let scratch = tempfile::tempdir().unwrap();
        let (source, target) = (scratch.path().join("source"), scratch.path().join("target"));
        fs::create_dir(&source).unwrap();
        fs::create_dir(&target).unwrap();
        grow(&source, &steps);
        let options = CaptureOptions { threads, ..CaptureOptions::default() };
        let blocks = Blocks::default();
        let captured = capture(&source, &options, &blocks, &()).unwrap();
        let manifest = blocks.manifest(&captured.root);
        let report = blocks.apply(&manifest, &target).unwrap();
        prop_assert!(report.losses.listed.is_empty(), "{:?}", report.losses);
        prop_assert_eq!(snapshot(&target), snapshot(&source));
        prop_assert_eq!(verify(&manifest, &target, VerifyMode::Full).unwrap().drift, []);
        let again = capture(&target, &CaptureOptions::default(), &Blocks::default(), &()).unwrap();
        prop_assert_eq!(again.root, captured.root);
    }
}
