//! A tree in use → another image: any tree to any other one, and what must not be touched.

#![expect(clippy::unwrap_used, reason = "a test")]

#[cfg(test)]
#[path = "update/closed.rs"]
mod closed;
#[cfg(test)]
#[path = "tree/fixture.rs"]
mod fixture;
#[cfg(test)]
#[path = "update/kinds.rs"]
mod kinds;
#[cfg(test)]
#[path = "update/links.rs"]
mod links;
#[cfg(test)]
#[path = "update/machine.rs"]
mod machine;
#[cfg(test)]
#[path = "update/random.rs"]
mod random;
#[cfg(test)]
#[path = "tree/snapshot.rs"]
mod snapshot;

use std::collections::BTreeMap;
use std::fs;
use std::os::unix::fs::{MetadataExt, PermissionsExt, symlink};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use fixture::{Scratch, is_root, make_tree, noise, set_time};
use rand::SeedableRng;
use rand::rngs::SmallRng;
use shoal_node::manifest::load_manifest;
use shoal_node::store::Store;
use shoal_node::tree::apply::{Apply, ApplyOptions};
use shoal_node::tree::capture::{CaptureOptions, capture};
use shoal_node::tree::rules::Rules;
use shoal_node::tree::update::{Update, UpdateError, UpdateOptions, UpdateReport};
use shoal_node::tree::verify::{VerifyMode, verify};
use shoal_proto::image::Manifest;
use snapshot::snapshot;

/// An image and the store that has all of it.
struct Image {
    manifest: Arc<Manifest>,
    store: Store,
}

fn image(scratch: &Scratch, name: &str, source: &Path) -> Image {
    let store = Store::open(&scratch.dir(name)).unwrap();
    let options = CaptureOptions { threads: 2, ..CaptureOptions::default() };
    let captured = capture(source, &options, &store, &()).unwrap();
    let manifest = Arc::new(load_manifest(&store, &captured.root).unwrap());
    Image { manifest, store }
}

fn install(image: &Image, target: &Path) {
    let apply = Apply::create(image.manifest.clone(), target, ApplyOptions::default()).unwrap();
    let list = image.manifest.content();
    for piece in list.indexes() {
        let block = image.store.get(&list.piece(piece).cid).unwrap().unwrap();
        apply.write_piece(piece, &block.decode().unwrap()).unwrap();
    }
    apply.finish().unwrap();
}

fn prepare(goal: &Image, owners: &[&Image], target: &Path, options: &UpdateOptions) -> Update {
    let owners = owners.iter().map(|owner| owner.manifest.clone()).collect();
    Update::prepare(goal.manifest.clone(), owners, target, options, None).unwrap()
}

/// Fetches what is wanted, and nothing else, and applies.
fn perform(scratch: &Scratch, goal: &Image, update: &Update) -> Result<UpdateReport, UpdateError> {
    let fetched = Store::open(&scratch.dir("fetched")).unwrap();
    for piece in update.wanted().iter() {
        let cid = goal.manifest.content().piece(piece).cid;
        fetched.put(&goal.store.get(&cid).unwrap().unwrap()).unwrap();
    }
    let report = update.apply(&fetched);
    drop(fetched);
    fs::remove_dir_all(scratch.dir("fetched")).unwrap();
    report
}

fn assert_same(target: &Path, source: &Path, context: &str) {
    let (expected, found) = (snapshot(source), snapshot(target));
    for (path, text) in &expected {
        assert_eq!(found.get(path), Some(text), "{context}: {}", path.display());
    }
    let extra: Vec<_> = found.keys().filter(|path| !expected.contains_key(*path)).collect();
    assert!(extra.is_empty(), "{context}: {extra:?}");
}

fn inodes(top: &Path) -> BTreeMap<PathBuf, (u64, i64, i64)> {
    let mut found = BTreeMap::new();
    for path in snapshot(top).into_keys() {
        let metadata = fs::symlink_metadata(top.join(&path)).unwrap();
        found.insert(path, (metadata.ino(), metadata.ctime(), metadata.ctime_nsec()));
    }
    found
}

#[test]
fn any_tree_becomes_any_other_and_the_next_run_touches_nothing() {
    for seed in 0..60 {
        let scratch = Scratch::new();
        let mut random = SmallRng::seed_from_u64(seed);
        let (old, new, target) = (scratch.dir("old"), scratch.dir("new"), scratch.dir("target"));
        random::make(&mut random, &old);
        random::make(&mut random, &new);
        let (old, new_image) = (image(&scratch, "old-store", &old), image(&scratch, "new-store", &new));
        install(&old, &target);
        let context = format!("seed {seed}");
        let options = UpdateOptions { switch: seed % 4 == 3, ..UpdateOptions::default() };
        let update = prepare(&new_image, &[&old], &target, &options);
        perform(&scratch, &new_image, &update).unwrap_or_else(|error| panic!("{context}: {error:?}"));
        assert_same(&target, &new, &context);
        let before = inodes(&target);
        let again = prepare(&new_image, &[&new_image], &target, &options);
        assert!(again.plan().is_empty(), "{context}: {:?}", again.items());
        perform(&scratch, &new_image, &again).unwrap();
        assert_eq!(inodes(&target), before, "{context}: the second run touched something");
    }
}

#[test]
fn a_tree_with_one_of_every_kind_is_made_and_unmade() {
    let scratch = Scratch::new();
    let (full, bare, target) = (scratch.dir("full"), scratch.dir("bare"), scratch.dir("target"));
    make_tree(&full);
    if !is_root() {
        fs::set_permissions(full.join("a/min+1"), fs::Permissions::from_mode(0o600)).unwrap();
    }
    fs::write(bare.join("a"), "a file where there will be a directory").unwrap();
    let (full_image, bare_image) =
        (image(&scratch, "full-store", &full), image(&scratch, "bare-store", &bare));
    install(&bare_image, &target);
    let options = UpdateOptions::default();
    let update = prepare(&full_image, &[&bare_image], &target, &options);
    perform(&scratch, &full_image, &update).unwrap();
    assert_same(&target, &full, "made");
    let update = prepare(&bare_image, &[&full_image], &target, &options);
    perform(&scratch, &bare_image, &update).unwrap();
    assert_same(&target, &bare, "unmade");
}

/// A tree with something in it that no image brought.
fn with_unowned(scratch: &Scratch) -> (Image, Image, PathBuf) {
    let (old, new, target) = (scratch.dir("old"), scratch.dir("new"), scratch.dir("target"));
    for dir in ["gone", "stays"] {
        fs::create_dir(old.join(dir)).unwrap();
        fs::write(old.join(dir).join("owned"), dir).unwrap();
    }
    fs::create_dir(new.join("stays")).unwrap();
    let (old, new) = (image(scratch, "old-store", &old), image(scratch, "new-store", &new));
    install(&old, &target);
    fs::write(target.join("gone/mine"), "mine").unwrap();
    fs::create_dir(target.join("stays/mine")).unwrap();
    fs::write(target.join("stays/mine/too"), "mine").unwrap();
    (old, new, target)
}

#[test]
fn only_what_an_image_brought_is_removed() {
    let scratch = Scratch::new();
    let (old, new, target) = with_unowned(&scratch);
    let update = prepare(&new, &[&old], &target, &UpdateOptions::default());
    let kept: Vec<String> = update.plan().kept.iter().map(ToString::to_string).collect();
    assert_eq!(kept, ["gone/mine", "stays/mine"]);
    perform(&scratch, &new, &update).unwrap();
    assert_eq!(fs::read_to_string(target.join("gone/mine")).unwrap(), "mine");
    assert_eq!(fs::read_to_string(target.join("stays/mine/too")).unwrap(), "mine");
    assert!(!target.join("gone/owned").exists() && !target.join("stays/owned").exists());

    let options = UpdateOptions { remove_unowned: true, ..UpdateOptions::default() };
    let update = prepare(&new, &[&new], &target, &options);
    perform(&scratch, &new, &update).unwrap();
    assert_eq!(verify(&new.manifest, &target, VerifyMode::Full).unwrap().drift, []);
}

#[test]
fn a_directory_that_holds_something_else_does_not_become_a_file() {
    let scratch = Scratch::new();
    let (old, _, target) = with_unowned(&scratch);
    let (holder, newer) = (scratch.dir("holder"), scratch.dir("newer"));
    fs::create_dir_all(holder.join("gone/owned-too")).unwrap();
    let holder = image(&scratch, "holder-store", &holder);
    fs::write(newer.join("gone"), "a file now").unwrap();
    let newer = image(&scratch, "newer-store", &newer);
    fs::create_dir(target.join("gone/owned-too")).unwrap();
    fs::rename(target.join("gone/mine"), target.join("gone/owned-too/mine")).unwrap();
    let update = prepare(&newer, &[&old, &holder], &target, &UpdateOptions::default());
    let before = snapshot(&target);
    let error = perform(&scratch, &newer, &update).unwrap_err().to_string();
    assert_eq!(
        error,
        "gone shall be no directory any more, and holds gone/owned-too/mine, which is not the image's"
    );
    assert_eq!(snapshot(&target), before);
    let options = UpdateOptions { remove_unowned: true, ..UpdateOptions::default() };
    perform(&scratch, &newer, &prepare(&newer, &[&old], &target, &options)).unwrap();
    assert_eq!(fs::read_to_string(target.join("gone")).unwrap(), "a file now");
}

#[test]
fn rules_leave_to_the_machine_what_is_the_machines() {
    let scratch = Scratch::new();
    let (old, new, target) = (scratch.dir("old"), scratch.dir("new"), scratch.dir("target"));
    for (top, version) in [(&old, "old"), (&new, "new")] {
        fs::create_dir_all(top.join("etc/shoal")).unwrap();
        fs::create_dir_all(top.join("var/log/app")).unwrap();
        for file in ["etc/hostname", "etc/managed", "var/log/app/log", "var/log/managed"] {
            fs::write(top.join(file), version).unwrap();
        }
    }
    fs::write(new.join("etc/fstab"), "new").unwrap();
    let (old, new) = (image(&scratch, "old-store", &old), image(&scratch, "new-store", &new));
    install(&old, &target);
    fs::write(target.join("etc/hostname"), "node07").unwrap();
    fs::write(target.join("var/log/app/log"), "lines").unwrap();
    fs::write(target.join("var/log/more"), "lines").unwrap();
    fs::write(target.join("etc/shoal/rules"), "managed /var/log/managed\n").unwrap();
    let options = UpdateOptions {
        rules: Rules::load(&target, None).unwrap(),
        remove_unowned: true,
        ..UpdateOptions::default()
    };
    perform(&scratch, &new, &prepare(&new, &[&old], &target, &options)).unwrap();
    let read = |path: &str| fs::read_to_string(target.join(path)).unwrap();
    assert_eq!(read("etc/managed"), "new");
    assert_eq!(read("etc/hostname"), "node07", "a seed that is there is the machine's");
    assert_eq!(read("etc/fstab"), "new", "a seed that is absent is created");
    assert_eq!(read("var/log/app/log"), "lines");
    assert_eq!(read("var/log/more"), "lines");
    assert_eq!(read("var/log/managed"), "new", "a local rule comes before the defaults");
    assert_eq!(read("etc/shoal/rules"), "managed /var/log/managed\n");
    assert!(prepare(&new, &[&new], &target, &options).plan().is_empty());
}

#[test]
fn content_is_compared_by_hash_and_not_by_size_and_time() {
    let scratch = Scratch::new();
    let (source, target) = (scratch.dir("source"), scratch.dir("target"));
    fs::write(source.join("x"), "one").unwrap();
    set_time(&source.join("x"), 1_000_000, 5);
    let image = image(&scratch, "store", &source);
    install(&image, &target);
    fs::write(target.join("x"), "two").unwrap();
    set_time(&target.join("x"), 1_000_000, 5);
    perform(&scratch, &image, &prepare(&image, &[&image], &target, &UpdateOptions::default())).unwrap();
    assert_eq!(fs::read_to_string(target.join("x")).unwrap(), "one");
}

#[test]
fn what_is_on_the_machine_is_not_fetched() {
    let scratch = Scratch::new();
    let (old, new, target) = (scratch.dir("old"), scratch.dir("new"), scratch.dir("target"));
    let large = noise("large", 3_000_000);
    fs::create_dir(old.join("a")).unwrap();
    fs::write(old.join("a/large"), &large).unwrap();
    fs::create_dir(new.join("b")).unwrap();
    // Renamed, and with something put in front.
    fs::write(new.join("b/renamed"), &large).unwrap();
    fs::write(new.join("b/longer"), [&b"front"[..], &large].concat()).unwrap();
    fs::write(new.join("news"), noise("news", 100_000)).unwrap();
    let (old, new) = (image(&scratch, "old-store", &old), image(&scratch, "new-store", &new));
    install(&old, &target);
    let update = prepare(&new, &[&old], &target, &UpdateOptions::default());
    assert!(update.lacking_bytes() < 100_000 + (512 << 10), "{}", update.lacking_bytes());
    let report = perform(&scratch, &new, &update).unwrap();
    assert!(report.reused_bytes > 5_000_000, "{report:?}");
    assert_eq!(verify(&new.manifest, &target, VerifyMode::Full).unwrap().drift, []);
    // The blocks of the image can be made from the tree now.
    let blocks = update.blocks();
    for piece in new.manifest.content().indexes() {
        let block = blocks.piece(piece).expect("the tree has it");
        assert_eq!(block.decode().unwrap().len(), new.manifest.content().piece(piece).raw_bytes as usize);
    }
    assert_eq!(
        prepare(&new, &[&new], &target, &UpdateOptions::default()).held().count(),
        new.manifest.content().len()
    );
    fs::write(target.join("news"), "altered").unwrap();
    let lost = new.manifest.content().indexes().filter(|piece| blocks.piece(*piece).is_none()).count();
    assert_eq!(lost, 1, "a file that changed makes no block");
}

#[test]
fn without_an_earlier_image_nothing_is_removed_and_present_files_are_used() {
    let scratch = Scratch::new();
    let (source, target) = (scratch.dir("source"), scratch.dir("target"));
    let large = noise("large", 2_000_000);
    fs::write(source.join("large"), &large).unwrap();
    fs::write(target.join("large"), [&large[..], b"and more"].concat()).unwrap();
    fs::write(target.join("mine"), "mine").unwrap();
    symlink("large", target.join("link")).unwrap();
    let image = image(&scratch, "store", &source);
    let update = prepare(&image, &[], &target, &UpdateOptions::default());
    assert!(update.lacking_bytes() <= 256 << 10, "{}", update.lacking_bytes());
    perform(&scratch, &image, &update).unwrap();
    assert_eq!(fs::read(target.join("large")).unwrap(), large);
    assert_eq!(fs::read_to_string(target.join("mine")).unwrap(), "mine");
}

#[test]
fn a_switch_replaces_a_directory_at_the_top_in_one_call_unless_the_machine_has_a_part_of_it() {
    let scratch = Scratch::new();
    let (old, new, target) = (scratch.dir("old"), scratch.dir("new"), scratch.dir("target"));
    for top in [&old, &new] {
        for dir in ["usr/bin", "etc", "same"] {
            fs::create_dir_all(top.join(dir)).unwrap();
            fs::write(top.join(dir).join("stays"), "stays").unwrap();
        }
        set_time(&top.join("same/stays"), 1, 0);
        set_time(&top.join("same"), 1, 0);
    }
    for dir in ["usr/bin", "etc"] {
        fs::write(new.join(dir).join("new"), "new").unwrap();
        fs::write(old.join(dir).join("old"), "old").unwrap();
    }
    for top in [&old, &new] {
        for path in ["same/stays", "same"] {
            set_time(&top.join(path), 1, 0);
        }
    }
    let (old_image, new_image) = (image(&scratch, "old-store", &old), image(&scratch, "new-store", &new));
    install(&old_image, &target);
    fs::write(target.join("etc/mine"), "mine").unwrap();
    let options = UpdateOptions { switch: true, ..UpdateOptions::default() };
    let update = prepare(&new_image, &[&old_image], &target, &options);
    let steps: Vec<String> = update
        .plan()
        .steps
        .iter()
        .map(|step| new_image.manifest.entry(step.entry).path().to_string())
        .collect();
    assert!(steps.contains(&"usr".to_owned()) && !steps.contains(&"usr/bin/new".to_owned()), "{steps:?}");
    assert!(steps.contains(&"etc/new".to_owned()) && !steps.contains(&"same".to_owned()), "{steps:?}");
    perform(&scratch, &new_image, &update).unwrap();
    assert_eq!(fs::read_to_string(target.join("etc/mine")).unwrap(), "mine");
    fs::remove_file(target.join("etc/mine")).unwrap();
    set_time(&target.join("etc"), 1, 0);
    set_time(&new.join("etc"), 1, 0);
    assert_same(&target, &new, "switched");
}

#[test]
fn what_was_kept_leads_back() {
    let scratch = Scratch::new();
    let (old, new, target) = (scratch.dir("old"), scratch.dir("new"), scratch.dir("target"));
    for (top, version) in [(&old, "old"), (&new, "new")] {
        fs::write(top.join("both"), noise("both", 50_000)).unwrap();
        fs::write(top.join("changed"), noise(version, 300_000)).unwrap();
        fs::write(top.join(version), noise(version, 10)).unwrap();
    }
    let (old_image, new_image) = (image(&scratch, "old-store", &old), image(&scratch, "new-store", &new));
    install(&old_image, &target);
    let update = prepare(&new_image, &[&old_image], &target, &UpdateOptions::default());
    let kept = Arc::new(Store::open(&scratch.dir("kept")).unwrap());
    assert_eq!(update.keep_previous(&kept, 1000).unwrap(), None);
    assert_eq!(update.keep_previous(&kept, 1 << 20).unwrap(), Some(300_010));
    perform(&scratch, &new_image, &update).unwrap();
    let owners = vec![new_image.manifest.clone()];
    let options = UpdateOptions::default();
    let back = Update::prepare(old_image.manifest.clone(), owners, &target, &options, Some(kept)).unwrap();
    assert_eq!(back.wanted().count(), 0);
    perform(&scratch, &old_image, &back).unwrap();
    assert_same(&target, &old, "rolled back");
}
