//! From one image to another in place, with real processes: updated, killed, repaired, rolled back.

use std::collections::BTreeMap;
use std::fs;
use std::os::unix::fs::{MetadataExt, PermissionsExt, symlink};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use harness::{DEADLINE, Node, Process, Publisher, Server, Sizes, TreeFixture, differences, inodes, number};
use serde_json::Value;

use crate::assert_same;

/// How many kills; a few when not said.
const KILLS: &str = "SHOAL_TEST_KILLS";
const TREE: Sizes = Sizes { noise_bytes: 4 << 20, small_files: 400 };

/// Two versions of one tree, published, and a node that has the first.
struct Rollout {
    old: TreeFixture,
    new: TreeFixture,
    /// Killed when dropped.
    server: Server,
    node: Node,
    _publisher: Publisher,
}

impl Rollout {
    fn new() -> Self {
        let (old, new) = (TreeFixture::new(TREE), TreeFixture::new(TREE));
        change(&old.path(), &new.path());
        let publisher = Publisher::new();
        publisher.capture(&old.path(), "tree");
        let server = publisher.serve(&[]);
        let node = Node::new();
        install(&node, &server, "tree");
        publisher.capture(&new.path(), "tree");
        Self { old, new, server, node, _publisher: publisher }
    }
}

fn install(node: &Node, server: &Server, image: &str) {
    let arguments = ["--image", image, "--seed-for", "0s"];
    Process::start(node.install_command(&server.ticket, &arguments)).finish().expect_success();
}

/// Makes `new` a later version: files changed, added, removed, moved, and of another type.
pub(crate) fn change(_old: &Path, new: &Path) {
    let names: Vec<PathBuf> = files(new);
    for (at, path) in names.iter().enumerate() {
        match at % 9 {
            0 => fs::write(path, format!("version 2 of {}", path.display())).unwrap(),
            1 => fs::remove_file(path).unwrap(),
            2 => fs::set_permissions(path, fs::Permissions::from_mode(0o640)).unwrap(),
            _ => {}
        }
    }
    for at in 0..200 {
        let dir = new.join("added").join((at % 7).to_string());
        fs::create_dir_all(&dir).unwrap();
        fs::write(dir.join(format!("{at}")), format!("added {at}").repeat(at)).unwrap();
    }
    fs::write(new.join("was-a-directory"), "no more").unwrap();
    symlink("added", new.join("link")).unwrap();
}

/// Every regular file below, sorted.
fn files(top: &Path) -> Vec<PathBuf> {
    let mut found = Vec::new();
    let mut waiting = vec![top.to_owned()];
    while let Some(dir) = waiting.pop() {
        for entry in fs::read_dir(dir).unwrap().flatten() {
            match entry.file_type().unwrap() {
                kind if kind.is_dir() => waiting.push(entry.path()),
                kind if kind.is_file() => found.push(entry.path()),
                _ => {}
            }
        }
    }
    found.sort();
    found
}

#[test]
fn an_updated_tree_is_a_fresh_install_and_the_next_update_touches_nothing() {
    let rollout = Rollout::new();
    let (node, server) = (&rollout.node, &rollout.server);
    let plan = node.update_command(&server.ticket, &["--image", "tree", "--dry-run"]);
    let plan = Process::start(plan).finish().expect_success().stdout.concat();
    let plan: Value = serde_json::from_str(&plan).unwrap();
    assert_same(&rollout.old.path(), &node.target());

    let report = node.update(&server.ticket, "tree");
    assert_same(&rollout.new.path(), &node.target());
    let planned = |action: &str| {
        let items = plan["items"].as_array().unwrap().iter();
        items.filter(|item| item["action"] == action).count() as u64
    };
    for (action, field) in [("create", "created"), ("replace", "replaced"), ("delete", "removed")] {
        assert_eq!(planned(action), number(&report, field), "{action}");
        assert!(planned(action) > 0, "{action}");
    }
    let fetched = number(&report, "bytes_from_seeder") + number(&report, "bytes_from_peers");
    assert!(fetched < 1 << 20, "{fetched} bytes for a small change");

    let before = inodes(&node.target());
    let again = node.update(&server.ticket, "tree");
    assert_eq!(number(&again, "created") + number(&again, "replaced") + number(&again, "adjusted"), 0);
    assert_eq!(inodes(&node.target()), before);
    node.on_target(&["verify", "--all"]).expect_success();
}

#[test]
fn a_rollback_needs_no_swarm_and_returns_the_old_tree_and_again_the_new_one() {
    let Rollout { old, new, server, node, _publisher } = Rollout::new();
    node.update(&server.ticket, "tree");
    drop(server);
    let rules = node.store().with_file_name("rules");
    let rules = rules.to_str().unwrap();
    node.on_target(&["rollback", "--rules", rules]).expect_success();
    assert_same(&old.path(), &node.target());
    node.on_target(&["verify", "--all"]).expect_success();
    node.on_target(&["rollback", "--rules", rules]).expect_success();
    assert_same(&new.path(), &node.target());
}

#[test]
fn a_rollback_without_a_previous_image_says_so() {
    let tree = TreeFixture::new(TREE);
    let publisher = Publisher::new();
    publisher.capture(&tree.path(), "tree");
    let server = publisher.serve(&[]);
    let node = Node::new();
    install(&node, &server, "tree");
    let refused = node.on_target(&["rollback"]);
    assert_eq!(refused.status.code(), Some(1));
    assert!(refused.stderr.concat().contains("has no previous image to return to"), "{:?}", refused.stderr);
}

/// The one folder of this kind below a node's state of its only tree.
fn state(node: &Node) -> PathBuf {
    let targets = node.store().with_file_name("data").join("targets");
    fs::read_dir(targets).unwrap().next().unwrap().unwrap().path()
}

#[test]
fn a_lost_previous_image_spoils_the_rollback_and_nothing_else() {
    let Rollout { server, node, _publisher, .. } = Rollout::new();
    node.update(&server.ticket, "tree");
    fs::remove_dir_all(state(&node).join("kept")).unwrap();
    let refused = node.on_target(&["rollback"]);
    assert_eq!(refused.status.code(), Some(1));
    assert!(refused.stderr.concat().contains("were not kept on this machine: update to it instead"));

    let record = fs::read_to_string(state(&node).join("record.json")).unwrap();
    let record: Value = serde_json::from_str(&record).unwrap();
    let previous = record["previous"]["image"].as_str().unwrap();
    fs::remove_dir_all(state(&node).join("images").join(previous)).unwrap();
    assert_eq!(node.on_target(&["rollback"]).status.code(), Some(1));
    fs::set_permissions(node.target().join("was-a-directory"), fs::Permissions::from_mode(0o600)).unwrap();
    node.on_target(&["verify", "--repair"]).expect_success();
    node.update(&server.ticket, "tree");
}

#[test]
fn an_unfinished_update_is_neither_verified_nor_taken_for_an_install() {
    let Rollout { server, node, _publisher, .. } = Rollout::new();
    node.update(&server.ticket, "tree");
    let path = state(&node).join("record.json");
    let record = fs::read_to_string(&path).unwrap();
    fs::write(&path, record.replace("complete", "updating")).unwrap();
    let refused = node.on_target(&["verify"]);
    assert_eq!(refused.status.code(), Some(1));
    assert!(refused.stderr.concat().contains("holds an unfinished update"), "{:?}", refused.stderr);
    let install = node.install_command(&server.ticket, &["--image", "tree", "--seed-for", "0s"]);
    let refused = Process::start(install).finish();
    assert_eq!((refused.status.code(), refused.stdout.concat().as_str()), (Some(1), ""));
    assert!(refused.stderr.concat().contains("holds an unfinished update"), "{:?}", refused.stderr);
    node.on_target(&["verify", "--repair"]).expect_success();
    node.on_target(&["verify"]).expect_success();
    fs::write(&path, record.replace("\"image\": \"b", "\"image\": \"?")).unwrap();
    let refused = node.on_target(&["verify"]);
    assert!(refused.stderr.concat().contains("an image has no valid name"), "{:?}", refused.stderr);
}

#[test]
fn a_killed_update_leaves_each_file_old_or_new_and_the_next_run_ends_equal() {
    let kills: u64 = std::env::var(KILLS).map_or(8, |kills| kills.parse().expect("a number"));
    let rollout = Rollout::new();
    let (node, server) = (&rollout.node, &rollout.server);
    // From the old tree to the new one and back, over and over.
    node.update(&server.ticket, "tree");
    let (mut from, mut to) = (rollout.new.path(), rollout.old.path());
    let rules = node.store().with_file_name("rules");
    let back = || {
        let mut command = node.command(&["rollback", "--rules", rules.to_str().unwrap()]);
        command.arg("--target").arg(node.target());
        command
    };
    let mut in_the_middle = 0;
    for kill in 0..kills {
        let moment = Moment::of(kill, &from, &to, &node.target());
        let process = Process::start(back());
        moment.wait();
        process.kill();
        in_the_middle +=
            u64::from(assert_old_or_new(&described(&from), &described(&to), &node.target(), kill));
        let finished = Process::start(back()).finish();
        assert!(finished.status.success(), "kill {kill}: {:?}", finished.stderr);
        if differences(&to, &node.target()).unwrap().is_empty() {
            std::mem::swap(&mut from, &mut to);
        } else {
            // It was done when it was killed, and this run has led back.
            assert_same(&from, &node.target());
        }
    }
    println!("{kills} kills, {in_the_middle} of them between the first and the last rename");
}

/// When to kill: another moment each time.
enum Moment {
    After(Duration),
    /// As soon as this path has another inode than this.
    Changed(PathBuf, Option<u64>),
}

impl Moment {
    fn of(kill: u64, from: &Path, to: &Path, target: &Path) -> Self {
        let random = |bound: u64| kill.wrapping_mul(0x9E37_79B9_7F4A_7C15).rotate_left(31) % bound;
        if kill.is_multiple_of(4) {
            return Self::After(Duration::from_micros(random(200_000)));
        }
        let changed: Vec<PathBuf> = files(to)
            .into_iter()
            .map(|path| path.strip_prefix(to).unwrap().to_owned())
            .filter(|path| fs::read(from.join(path)).ok() != fs::read(to.join(path)).ok())
            .collect();
        let path = target.join(&changed[usize::try_from(random(changed.len() as u64)).unwrap()]);
        let inode = inode(&path);
        Self::Changed(path, inode)
    }

    fn wait(&self) {
        match self {
            Self::After(time) => std::thread::sleep(*time),
            Self::Changed(path, before) => {
                let deadline = Instant::now() + DEADLINE;
                while inode(path) == *before {
                    assert!(Instant::now() < deadline, "{} does not change", path.display());
                }
            }
        }
    }
}

pub(crate) fn inode(path: &Path) -> Option<u64> {
    fs::symlink_metadata(path).map(|found| found.ino()).ok()
}

/// The files of a tree by their paths in it, each with content and metadata.
pub(crate) type Described = BTreeMap<PathBuf, (Vec<u8>, u32, u32, i64, i64)>;

pub(crate) fn described(top: &Path) -> Described {
    let describe = |path: PathBuf| {
        let metadata = fs::symlink_metadata(&path).unwrap();
        let bytes = fs::read(&path).unwrap();
        let inside = path.strip_prefix(top).unwrap().to_owned();
        (inside, (bytes, metadata.mode(), metadata.uid(), metadata.mtime(), metadata.mtime_nsec()))
    };
    files(top).into_iter().map(describe).collect()
}

/// Whether the tree is between the two: some paths old, some new.
pub(crate) fn assert_old_or_new(from: &Described, to: &Described, target: &Path, kill: u64) -> bool {
    let (mut old, mut new) = (0, 0);
    for (path, found) in described(target) {
        if path.starts_with(".shoal-stage") {
            continue;
        }
        let (before, after) = (from.get(&path), to.get(&path));
        assert!(
            before == Some(&found) || after == Some(&found),
            "kill {kill}: {} is neither old nor new: {found:?}, {before:?}, {after:?}",
            path.display()
        );
        if before != after {
            old += u64::from(before == Some(&found));
            new += u64::from(after == Some(&found));
        }
    }
    old > 0 && new > 0
}
