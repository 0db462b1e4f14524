//! What its owner may not read or write, and what an ordinary user may not set.

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::Path;

use shoal_node::tree::update::UpdateOptions;
use shoal_node::tree::verify::DriftKind;

use crate::fixture::{Scratch, set_time};
use crate::{assert_same, image, install, perform, prepare};

fn close(path: &Path, mode: u32) {
    fs::set_permissions(path, fs::Permissions::from_mode(mode)).unwrap();
}

/// A directory that may not be written to, with `text` in it; `gone` only in the old one.
fn closed_tree(top: &Path, old: bool) {
    let text = if old { "old" } else { "new" };
    for dir in ["closed", "closed/inner", "both", "both/inner"] {
        fs::create_dir(top.join(dir)).unwrap();
    }
    fs::write(top.join("closed/file"), text).unwrap();
    close(&top.join("closed/file"), 0o444);
    fs::write(top.join("closed/inner").join(text), text).unwrap();
    if old {
        fs::create_dir(top.join("type")).unwrap();
        fs::write(top.join("type/x"), text).unwrap();
        close(&top.join("type"), 0o555);
        fs::write(top.join("other"), text).unwrap();
    } else {
        fs::write(top.join("type"), text).unwrap();
        fs::create_dir(top.join("other")).unwrap();
        fs::write(top.join("other/x"), text).unwrap();
        close(&top.join("other"), 0o555);
    }
    for dir in ["closed/inner", "closed", "both/inner", "both", "."] {
        close(&top.join(dir), 0o555);
    }
}

#[test]
fn read_only_directories_change_too() {
    let scratch = Scratch::new();
    let (old, new, target) = (scratch.dir("old"), scratch.dir("new"), scratch.dir("target"));
    closed_tree(&old, true);
    closed_tree(&new, false);
    let (old_image, new_image) = (image(&scratch, "1", &old), image(&scratch, "2", &new));
    install(&old_image, &target);
    let options = UpdateOptions::default();
    perform(&scratch, &new_image, &prepare(&new_image, &[&old_image], &target, &options)).unwrap();
    assert_same(&target, &new, "updated");
    let options = UpdateOptions { switch: true, ..options };
    perform(&scratch, &old_image, &prepare(&old_image, &[&new_image], &target, &options)).unwrap();
    assert_same(&target, &old, "switched back");
}

#[test]
fn what_could_not_be_set_is_tried_again_only_when_the_image_changes_it() {
    let scratch = Scratch::new();
    let (old, new, target) = (scratch.dir("old"), scratch.dir("new"), scratch.dir("target"));
    for (top, mode) in [(&old, 0o600), (&new, 0o750)] {
        for name in ["changes", "stays"] {
            fs::write(top.join(name), name).unwrap();
            close(&top.join(name), 0o4755);
            set_time(&top.join(name), 1, 0);
        }
        close(&top.join("changes"), mode);
        set_time(top, 1, 0);
    }
    let (old, new) = (image(&scratch, "1", &old), image(&scratch, "2", &new));
    install(&old, &target);
    close(&target.join("stays"), 0o755);
    let options = UpdateOptions { lost: vec![DriftKind::Mode], ..UpdateOptions::default() };
    let items = |goal| prepare(goal, &[&old], &target, &options).items();
    assert!(items(&old).is_empty(), "{:?}", items(&old));
    let planned: Vec<String> = items(&new).iter().map(|item| item.path.to_string()).collect();
    assert_eq!(planned, ["changes"]);
    fs::write(target.join("stays"), "other content").unwrap();
    assert_eq!(items(&old).len(), 1);
}
