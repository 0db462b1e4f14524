//! Images from tars, and tars from images, with the programs.

use std::fs;
use std::path::Path;
use std::process::{Command, Stdio};

use harness::{Node, Publisher, Sizes, TreeFixture};
use serde_json::Value;

use crate::assert_same;

const TREE: Sizes = Sizes { noise_bytes: 3 << 20, small_files: 100 };

fn tar(arguments: &[&str], directory: &Path) {
    let keep = ["--xattrs", "--xattrs-include=*", "--acls", "--numeric-owner"];
    let done =
        Command::new("tar").args(arguments).args(keep).arg("-C").arg(directory).arg(".").output().unwrap();
    assert!(done.status.success(), "{}", String::from_utf8_lossy(&done.stderr));
}

/// What GNU tar cannot say: other names of fifos and devices.
fn forget_what_tar_loses(tree: &Path) {
    for path in ["links/fifo, twice", "root/null, twice"] {
        let _ = fs::remove_file(tree.join(path));
    }
}

#[test]
fn a_tar_with_attributes_holes_and_hard_links_installs_as_the_tree_that_it_was_made_of() {
    let tree = TreeFixture::new(TREE);
    forget_what_tar_loses(&tree.path());
    let folder = tempfile::tempdir().unwrap();
    let archive = folder.path().join("tree.tar");
    tar(&["-c", "-S", "--format=pax", "-f", archive.to_str().unwrap()], &tree.path());
    let publisher = Publisher::new();
    let captured = publisher.capture(&archive, "tree");
    let server = publisher.serve(&[]);
    let node = Node::new();
    let report = node.install(&server.ticket, "tree").report();
    assert_eq!(report["image"], captured["image"]);
    assert_same(&tree.path(), &node.target());
    assert_eq!(publisher.capture(&tree.path(), "directory")["image"], captured["image"]);
}

#[test]
fn a_tar_may_come_through_a_pipe_also_to_a_seeder_that_serves() {
    let tree = TreeFixture::new(TREE);
    forget_what_tar_loses(&tree.path());
    let publisher = Publisher::new();
    let expected = publisher.capture(&tree.path(), "directory")["image"].clone();
    let piped = || {
        let mut tar = Command::new("tar");
        tar.args([
            "-c",
            "-S",
            "-z",
            "--format=pax",
            "--xattrs",
            "--xattrs-include=*",
            "--acls",
            "--numeric-owner",
        ]);
        let mut tar = tar.arg("-C").arg(tree.path()).arg(".").stdout(Stdio::piped()).spawn().unwrap();
        let mut capture = publisher.command(&["capture", "-", "piped", "--json"]);
        let done = capture.stdin(tar.stdout.take().unwrap()).output().unwrap();
        assert!(done.status.success(), "{}", String::from_utf8_lossy(&done.stderr));
        assert!(tar.wait().unwrap().success());
        let report: Value = serde_json::from_slice(&done.stdout).unwrap();
        report["image"].clone()
    };
    assert_eq!(piped(), expected);
    publisher.run(&["rm", "piped"]).expect_success();
    let _server = publisher.serve(&[]);
    assert_eq!(piped(), expected);
}

#[test]
fn an_exported_image_is_the_same_image_again() {
    let tree = TreeFixture::new(TREE);
    let publisher = Publisher::new();
    let captured = publisher.capture(&tree.path(), "tree");
    let folder = tempfile::tempdir().unwrap();
    let (dir, archive) = (folder.path().join("dir"), folder.path().join("x.tar"));
    let export =
        |arguments: &[&str]| publisher.run(&[&["export", "tree"], arguments].concat()).expect_success();
    export(&[dir.to_str().unwrap()]);
    assert_same(&tree.path(), &dir);
    let again = publisher.run(&["export", "tree", dir.to_str().unwrap()]);
    assert!(again.stderr.concat().contains("dir is not empty"), "{:?}", again.stderr);
    export(&["--tar", archive.to_str().unwrap()]);
    assert_eq!(publisher.capture(&archive, "again")["image"], captured["image"]);

    let _server = publisher.serve(&[]);
    let piped = folder.path().join("piped.tar");
    let mut command = publisher.command(&["export", "tree", "--tar", "-"]);
    let done = command.stdout(fs::File::create(&piped).unwrap()).output().unwrap();
    assert!(done.status.success(), "{}", String::from_utf8_lossy(&done.stderr));
    assert!(
        fs::read(&piped).unwrap() == fs::read(&archive).unwrap(),
        "the same tar from the seeder that serves"
    );
}

#[test]
fn what_is_no_archive_is_refused_by_name() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("not-a.tar");
    fs::write(&path, "nothing").unwrap();
    let publisher = Publisher::new();
    let refused = publisher.run(&["capture", path.to_str().unwrap(), "x"]);
    assert_eq!(refused.status.code(), Some(1));
    let said = refused.stderr.concat();
    assert!(
        said.contains("not-a.tar: not a tar archive, plain or compressed with gzip, xz or zstd"),
        "{said}"
    );
    let golden = publisher.run(&["capture", "golden:x", "x"]);
    assert!(golden.stderr.concat().contains("start `shoal-seeder serve`"), "{:?}", golden.stderr);
}
