//! Every kind of entry where there was every other one.

use std::fs;
use std::os::unix::fs::symlink;
use std::path::Path;

use rustix::fs::{CWD, FileType, Mode};
use shoal_node::tree::update::UpdateOptions;

use crate::fixture::{Scratch, is_root};
use crate::{assert_same, image, install, perform, prepare};

const KINDS: usize = 9;

/// Makes `path` one of the kinds; `text` tells two of one kind apart.
fn make(path: &Path, kind: usize, text: &str) {
    let node = |kind, device| rustix::fs::mknodat(CWD, path, kind, Mode::RUSR, device).unwrap();
    match kind {
        0 => {}
        1 => fs::write(path, text).unwrap(),
        2 => fs::create_dir(path).unwrap(),
        3 => {
            fs::create_dir_all(path.join("in")).unwrap();
            fs::write(path.join("in").join(text), text).unwrap();
        }
        4 => symlink(text, path).unwrap(),
        // A directory of the tree, and one outside of it.
        5 => symlink("0-0-dir", path).unwrap(),
        6 => node(FileType::Fifo, 0),
        7 if is_root() => node(FileType::CharacterDevice, rustix::fs::makedev(1, 3)),
        7 => {}
        _ => {
            fs::write(path, text).unwrap();
            fs::hard_link(path, path.with_extension("twin")).unwrap();
        }
    }
}

fn clear(path: &Path) {
    for path in [path, &path.with_extension("twin")] {
        if fs::remove_file(path).is_err() {
            let _ = fs::remove_dir_all(path);
        }
    }
}

#[test]
fn every_kind_becomes_every_other_whatever_was_planted_there() {
    let scratch = Scratch::new();
    let (old, new, target) = (scratch.dir("old"), scratch.dir("new"), scratch.dir("target"));
    let outside = scratch.dir("outside");
    fs::write(outside.join("in"), "untouched").unwrap();
    for top in [&old, &new] {
        fs::create_dir(top.join("0-0-dir")).unwrap();
        fs::write(top.join("0-0-dir/x"), "x").unwrap();
    }
    let pairs: Vec<(usize, usize)> =
        (0..KINDS).flat_map(|from| (0..KINDS).map(move |to| (from, to))).collect();
    for (from, to) in &pairs {
        let name = format!("{from}-{to}");
        make(&old.join(&name), *from, "old");
        make(&new.join(&name), *to, "new");
    }
    let (old_image, new_image) = (image(&scratch, "1", &old), image(&scratch, "2", &new));
    install(&old_image, &target);
    let options = UpdateOptions::default();
    perform(&scratch, &new_image, &prepare(&new_image, &[&old_image], &target, &options)).unwrap();
    assert_same(&target, &new, "updated");
    perform(&scratch, &old_image, &prepare(&old_image, &[&new_image], &target, &options)).unwrap();
    assert_same(&target, &old, "and back");

    let options = UpdateOptions { remove_unowned: true, ..options };
    for planted in 0..=KINDS {
        for (from, to) in &pairs {
            let path = target.join(format!("{from}-{to}"));
            clear(&path);
            match planted {
                KINDS => symlink(&outside, &path).unwrap(),
                kind => make(&path, kind, "planted"),
            }
        }
        perform(&scratch, &new_image, &prepare(&new_image, &[&old_image], &target, &options)).unwrap();
        assert_same(&target, &new, &format!("over planted kind {planted}"));
        assert_eq!(fs::read_to_string(outside.join("in")).unwrap(), "untouched");
    }
    assert_eq!(fs::read_dir(&outside).unwrap().count(), 1);
}
