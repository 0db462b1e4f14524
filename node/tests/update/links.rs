//! Names that share an inode, locked or with names elsewhere.

use std::fs;
use std::os::unix::fs::MetadataExt;
use std::path::Path;

use rustix::fs::IFlags;
use shoal_node::tree::rules::Rules;
use shoal_node::tree::update::UpdateOptions;

use crate::fixture::{Scratch, add_flags, is_root, noise, set_time};
use crate::{assert_same, image, install, perform, prepare};

fn flags(path: &Path) -> IFlags {
    rustix::fs::ioctl_getflags(fs::File::open(path).unwrap()).unwrap()
}

#[test]
fn an_immutable_inode_gets_and_loses_names() {
    if !is_root() {
        eprintln!("skipped: needs root: immutable files");
        return;
    }
    for lock in [IFlags::IMMUTABLE, IFlags::APPEND] {
        let scratch = Scratch::new();
        let (one, two, target) = (scratch.dir("one"), scratch.dir("two"), scratch.dir("target"));
        for top in [&one, &two] {
            fs::write(top.join("m"), "locked").unwrap();
        }
        for name in ["a", "z"] {
            fs::hard_link(two.join("m"), two.join(name)).unwrap();
        }
        fs::create_dir(two.join("new")).unwrap();
        fs::hard_link(two.join("m"), two.join("new/name")).unwrap();
        for top in [&one, &two] {
            set_time(&top.join("m"), 1, 0);
            add_flags(&top.join("m"), lock);
        }
        let (one_image, two_image) = (image(&scratch, "1", &one), image(&scratch, "2", &two));
        install(&one_image, &target);
        let options = UpdateOptions::default();
        perform(&scratch, &two_image, &prepare(&two_image, &[&one_image], &target, &options)).unwrap();
        assert_same(&target, &two, "more names");
        assert!(flags(&target.join("a")).contains(lock));
        perform(&scratch, &one_image, &prepare(&one_image, &[&two_image], &target, &options)).unwrap();
        assert_same(&target, &one, "fewer names");
    }
}

#[test]
fn what_else_names_a_replaced_inode_keeps_its_lock() {
    if !is_root() {
        eprintln!("skipped: needs root: immutable files");
        return;
    }
    let scratch = Scratch::new();
    let (old, new, target) = (scratch.dir("old"), scratch.dir("new"), scratch.dir("target"));
    for (top, version) in [(&old, "old"), (&new, "new")] {
        fs::write(top.join("replaced"), version).unwrap();
    }
    fs::write(old.join("removed"), "old").unwrap();
    let (old, new) = (image(&scratch, "1", &old), image(&scratch, "2", &new));
    install(&old, &target);
    for name in ["replaced", "removed"] {
        fs::hard_link(target.join(name), target.join(format!("mine-{name}"))).unwrap();
        add_flags(&target.join(name), IFlags::IMMUTABLE);
    }
    perform(&scratch, &new, &prepare(&new, &[&old], &target, &UpdateOptions::default())).unwrap();
    assert!(!target.join("removed").exists());
    for name in ["replaced", "removed"] {
        let mine = target.join(format!("mine-{name}"));
        assert_eq!(fs::read_to_string(&mine).unwrap(), "old");
        assert!(flags(&mine).contains(IFlags::IMMUTABLE), "{name}");
    }
}

#[test]
fn a_group_whose_first_name_is_the_machines_is_one_inode_without_it() {
    for rule in ["ignore /a\nmanaged **\n", "seed /a\nmanaged **\n", "ignore /d\nmanaged **\n"] {
        let scratch = Scratch::new();
        let (old, new, target) = (scratch.dir("old"), scratch.dir("new"), scratch.dir("target"));
        for (top, version) in [(&old, "old"), (&new, "new")] {
            fs::create_dir(top.join("d")).unwrap();
            fs::write(top.join("a"), noise(version, 100_000)).unwrap();
            for name in ["b", "c", "d/x"] {
                fs::hard_link(top.join("a"), top.join(name)).unwrap();
            }
        }
        let (old, new_image) = (image(&scratch, "1", &old), image(&scratch, "2", &new));
        install(&old, &target);
        let rules = scratch.0.path().join("rules");
        fs::write(&rules, rule).unwrap();
        let rules = Rules::load(&target, Some(&rules)).unwrap();
        let options = UpdateOptions { rules, ..UpdateOptions::default() };
        perform(&scratch, &new_image, &prepare(&new_image, &[&old], &target, &options)).unwrap();
        for name in ["b", "c"] {
            assert_eq!(fs::read(target.join(name)).unwrap(), noise("new", 100_000), "{rule}: {name}");
        }
        let inode = |name: &str| fs::metadata(target.join(name)).unwrap().ino();
        assert_eq!(inode("b"), inode("c"), "{rule}");
        let again = prepare(&new_image, &[&new_image], &target, &options);
        assert!(again.plan().is_empty(), "{rule}: {:?}", again.items());
    }
}
