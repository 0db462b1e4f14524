//! What the machine has of its own where the image has something.

use std::fs;
use std::os::unix::fs::symlink;
use std::path::Path;

use shoal_node::tree::rules::Rules;
use shoal_node::tree::update::UpdateOptions;

use crate::fixture::Scratch;
use crate::snapshot::snapshot;
use crate::{image, install, perform, prepare};

fn rules(scratch: &Scratch, target: &Path, text: &str) -> Rules {
    let file = scratch.0.path().join("rules");
    fs::write(&file, text).unwrap();
    Rules::load(target, Some(&file)).unwrap()
}

#[test]
fn an_ignored_directory_that_is_none_on_the_machine_stops_an_update_before_it_begins() {
    for plant in [
        |path: &Path| fs::write(path, "a file").unwrap(),
        |path: &Path| {
            symlink("/tmp", path).unwrap();
        },
    ] {
        let scratch = Scratch::new();
        let (old, new, target) = (scratch.dir("old"), scratch.dir("new"), scratch.dir("target"));
        for (top, version) in [(&old, "old"), (&new, "new")] {
            fs::create_dir_all(top.join("own/deep")).unwrap();
            fs::write(top.join("own/deep/managed"), version).unwrap();
            fs::write(top.join("changes"), version).unwrap();
        }
        fs::write(new.join("appears"), "new").unwrap();
        let (old, new) = (image(&scratch, "1", &old), image(&scratch, "2", &new));
        install(&old, &target);
        let rules = rules(&scratch, &target, "ignore /own\nmanaged /own/deep/managed\n");
        let options = UpdateOptions { rules, ..UpdateOptions::default() };
        fs::remove_dir_all(target.join("own")).unwrap();
        plant(&target.join("own"));
        let before = snapshot(&target);
        let update = prepare(&new, &[&old], &target, &options);
        let conflict = update.items().into_iter().find(|item| item.action == "conflict").unwrap();
        assert_eq!(conflict.path.to_string(), "own");
        let error = perform(&scratch, &new, &update).unwrap_err().to_string();
        assert_eq!(error, "own is the machine's own and no directory, so there is no place for own/deep");
        assert_eq!(snapshot(&target), before);
    }
}

#[test]
fn a_nodes_state_in_its_own_tree_is_never_removed() {
    let scratch = Scratch::new();
    let (source, target) = (scratch.dir("source"), scratch.dir("target"));
    fs::write(source.join("x"), "x").unwrap();
    let image = image(&scratch, "1", &source);
    install(&image, &target);
    fs::create_dir_all(target.join("data/node")).unwrap();
    fs::write(target.join("data/node/record"), "state").unwrap();
    fs::write(target.join("data/other"), "goes").unwrap();
    let rules = rules(&scratch, &target, "managed **\n").without(&target, &target.join("data/node"));
    for switch in [false, true] {
        let options =
            UpdateOptions { rules: rules.clone(), remove_unowned: true, switch, ..UpdateOptions::default() };
        perform(&scratch, &image, &prepare(&image, &[&image], &target, &options)).unwrap();
        assert_eq!(fs::read_to_string(target.join("data/node/record")).unwrap(), "state");
        assert!(!target.join("data/other").exists());
    }
}

#[test]
fn a_directory_that_came_after_the_plan_is_not_lost() {
    for kind in ["file", "directory", "missing"] {
        let scratch = Scratch::new();
        let (old, new, target) = (scratch.dir("old"), scratch.dir("new"), scratch.dir("target"));
        if kind != "missing" {
            fs::write(old.join("x"), "old").unwrap();
        }
        match kind {
            "directory" => {
                fs::remove_file(old.join("x")).unwrap();
                fs::create_dir(new.join("x")).unwrap();
                fs::write(new.join("x/inner"), "new").unwrap();
            }
            _ => fs::write(new.join("x"), "new").unwrap(),
        }
        let (old, new) = (image(&scratch, "1", &old), image(&scratch, "2", &new));
        install(&old, &target);
        let update = prepare(&new, &[&old], &target, &UpdateOptions::default());
        let _ = fs::remove_file(target.join("x"));
        fs::create_dir(target.join("x")).unwrap();
        fs::write(target.join("x/mine"), "mine").unwrap();
        let error = perform(&scratch, &new, &update).unwrap_err().to_string();
        assert_eq!(error, "a directory came to x meanwhile; run the update again", "{kind}");
        assert_eq!(fs::read_to_string(target.join("x/mine")).unwrap(), "mine", "{kind}");
        let again =
            perform(&scratch, &new, &prepare(&new, &[&new, &old], &target, &UpdateOptions::default()));
        assert_eq!(again.is_ok(), kind == "directory", "{kind}");
        assert_eq!(fs::read_to_string(target.join("x/mine")).unwrap(), "mine", "{kind}");
    }
}

#[test]
fn a_link_to_where_the_machine_has_its_own_content_stays() {
    let scratch = Scratch::new();
    let (source, target) = (scratch.dir("source"), scratch.dir("target"));
    for dir in ["home/user", "var/log/apt", "data", "etc"] {
        fs::create_dir_all(source.join(dir)).unwrap();
    }
    fs::write(source.join("home/user/file"), "the image's").unwrap();
    let image = image(&scratch, "1", &source);
    install(&image, &target);
    for (path, leads_to) in [("home", "data"), ("var/log", "/elsewhere"), ("etc", "data")] {
        fs::remove_dir_all(target.join(path)).unwrap();
        symlink(leads_to, target.join(path)).unwrap();
    }
    let options = UpdateOptions { rules: Rules::load(&target, None).unwrap(), ..UpdateOptions::default() };
    perform(&scratch, &image, &prepare(&image, &[&image], &target, &options)).unwrap();
    let link = |path: &str| fs::read_link(target.join(path)).ok();
    assert_eq!(link("home").as_deref(), Some(Path::new("data")));
    assert_eq!(link("var/log").as_deref(), Some(Path::new("/elsewhere")));
    assert_eq!(link("etc"), None, "what is in it is the image's");
    assert_eq!(fs::read_dir(target.join("data")).unwrap().count(), 0);
    assert!(prepare(&image, &[&image], &target, &options).plan().is_empty());
}
