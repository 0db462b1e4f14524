//! Trees on several file systems, and on small ones.

use std::fs;
use std::os::unix::fs::MetadataExt;
use std::path::Path;
use std::process::Command;

use harness::{Disk, FileSystem, Node, Process, Publisher, Server, is_root, skipped};

use crate::assert_same;

fn run(command: &str, arguments: &[&str], path: &Path) {
    assert!(Command::new(command).args(arguments).arg(path).status().unwrap().success(), "{command}");
}

/// A node with an image of one version of a tree, and a server that has all that the caller captures.
fn installed(publisher: &Publisher, tree: &Path) -> (Server, Node) {
    publisher.capture(tree, "tree");
    let (server, node) = (publisher.serve(&[]), Node::new());
    let arguments = ["--image", "tree", "--seed-for", "0s"];
    Process::start(node.install_command(&server.ticket, &arguments)).finish().expect_success();
    (server, node)
}

#[test]
fn names_of_one_inode_on_two_file_systems_are_an_inode_on_each() {
    if !is_root() {
        return skipped("needs root");
    }
    let tree = tempfile::tempdir().unwrap();
    let path = |name: &str| tree.path().join(name);
    fs::create_dir_all(path("boot")).unwrap();
    fs::write(path("boot/kernel"), "kernel").unwrap();
    let publisher = Publisher::new();
    let (server, node) = installed(&publisher, tree.path());
    let boot = node.target().join("boot");
    let Some(_disk) = Disk::at(FileSystem::Ext4, &boot) else { return };
    node.update(&server.ticket, "tree");

    fs::write(path("a"), "several names").unwrap();
    for name in ["b", "boot/c", "boot/d"] {
        fs::hard_link(path("a"), path(name)).unwrap();
    }
    publisher.capture(tree.path(), "tree");
    node.update(&server.ticket, "tree");
    let inode =
        |name: &str| fs::metadata(node.target().join(name)).map(|found| (found.dev(), found.ino())).unwrap();
    assert_eq!(inode("a"), inode("b"));
    assert_eq!(inode("boot/c"), inode("boot/d"));
    assert_eq!(fs::read_to_string(boot.join("d")).unwrap(), "several names");
    node.on_target(&["verify", "--all"]).expect_success();
    fs::remove_file(boot.join("d")).unwrap();
    node.on_target(&["verify", "--repair"]).expect_success();
    assert_eq!(inode("boot/c"), inode("boot/d"));
    node.on_target(&["verify", "--all"]).expect_success();
}

#[test]
fn a_read_only_file_system_matters_only_when_something_on_it_changes() {
    if !is_root() {
        return skipped("needs root");
    }
    let tree = tempfile::tempdir().unwrap();
    fs::create_dir_all(tree.path().join("boot")).unwrap();
    fs::write(tree.path().join("boot/kernel"), "kernel").unwrap();
    let publisher = Publisher::new();
    let (server, node) = installed(&publisher, tree.path());
    let boot = node.target().join("boot");
    let Some(_disk) = Disk::at(FileSystem::Ext4, &boot) else { return };
    node.update(&server.ticket, "tree");
    run("mount", &["-o", "remount,ro"], &boot);

    fs::write(tree.path().join("x"), "x").unwrap();
    publisher.capture(tree.path(), "tree");
    node.update(&server.ticket, "tree");
    assert_eq!(fs::read_to_string(node.target().join("x")).unwrap(), "x");

    fs::write(tree.path().join("x"), "y").unwrap();
    fs::write(tree.path().join("boot/kernel"), "newer").unwrap();
    publisher.capture(tree.path(), "tree");
    let refused = node.update_command(&server.ticket, &["--image", "tree", "--seed-for", "0s"]);
    let refused = Process::start(refused).finish();
    assert_eq!(refused.status.code(), Some(1));
    assert!(refused.stderr.concat().contains("cannot prepare boot: Read-only file system"));
    assert_eq!(fs::read_to_string(node.target().join("x")).unwrap(), "x", "nothing changed");
    assert!(!node.target().join(".shoal-stage").exists());
    run("mount", &["-o", "remount,rw"], &boot);
    node.update(&server.ticket, "tree");
    node.on_target(&["verify", "--all"]).expect_success();
}

#[test]
fn what_a_killed_update_left_does_not_take_the_room_of_the_next() {
    if !is_root() {
        return skipped("needs root");
    }
    let tree = tempfile::tempdir().unwrap();
    fs::write(tree.path().join("old"), vec![b'o'; 1 << 20]).unwrap();
    let publisher = Publisher::new();
    publisher.capture(tree.path(), "tree");
    let (server, node) = (publisher.serve(&[]), Node::new());
    run("mount", &["-t", "tmpfs", "-o", "size=4m", "tmpfs"], &node.target());
    let arguments = ["--image", "tree", "--seed-for", "0s"];
    Process::start(node.install_command(&server.ticket, &arguments)).finish().expect_success();
    fs::create_dir(node.target().join(".shoal-stage")).unwrap();
    fs::write(node.target().join(".shoal-stage/1"), vec![b's'; 2 << 20]).unwrap();
    fs::write(tree.path().join("new"), vec![b'n'; 2 << 20]).unwrap();
    publisher.capture(tree.path(), "tree");
    node.update(&server.ticket, "tree");
    assert_same(tree.path(), &node.target());
    run("umount", &["--lazy"], &node.target());
}
