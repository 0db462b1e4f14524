//! The statically linked binaries, in a root directory that holds nothing else: a rescue system has no less.

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::Command;

use harness::{Process, Publisher, Sizes, TreeFixture, is_root, json, number, skipped, text};
use tempfile::TempDir;

use crate::assert_same;

/// Names a folder with the binaries that `.ci/package` built.
const STATIC_DIR: &str = "SHOAL_TEST_STATIC_DIR";
const TREE: Sizes = Sizes { noise_bytes: 3 << 20, small_files: 100 };

fn static_binary(name: &str) -> Option<PathBuf> {
    let Some(folder) = std::env::var_os(STATIC_DIR) else {
        skipped(&format!("needs {STATIC_DIR}, a folder with the binaries that .ci/package builds"));
        return None;
    };
    Some(Path::new(&folder).join(name).canonicalize().unwrap())
}

/// A root directory with a binary in it, and /proc, which every system has.
struct Root(TempDir);

impl Root {
    fn path(&self) -> &Path {
        self.0.path()
    }
}

impl Drop for Root {
    fn drop(&mut self) {
        let _ = Command::new("umount").args(["--lazy"]).arg(self.path().join("proc")).status();
    }
}

fn empty_root(binary: &Path) -> Root {
    let root = Root(tempfile::tempdir().unwrap());
    fs::copy(binary, root.path().join("binary")).unwrap();
    fs::set_permissions(root.path().join("binary"), fs::Permissions::from_mode(0o755)).unwrap();
    let proc = root.path().join("proc");
    fs::create_dir(&proc).unwrap();
    assert!(Command::new("mount").args(["-t", "proc", "proc"]).arg(&proc).status().unwrap().success());
    root
}

fn in_root(root: &Root, arguments: &[&str]) -> Process {
    let mut command = Command::new("chroot");
    command.arg(root.path()).arg("/binary").args(arguments);
    // Where `chroot` itself is found.
    command.env_clear().env("PATH", "/usr/sbin:/usr/bin:/sbin:/bin");
    Process::start(command)
}

#[test]
fn a_static_binary_asks_for_no_loader_and_no_library() {
    for name in ["shoal-node", "shoal-seeder"] {
        let Some(binary) = static_binary(name) else { return };
        let listed = Command::new("ldd").arg(&binary).output().unwrap();
        let said = String::from_utf8_lossy(&[listed.stdout, listed.stderr].concat()).into_owned();
        // The latter of one whose place in memory is random, which these are.
        assert!(said.contains("not a dynamic executable") || said.contains("statically linked"), "{said}");
        if !is_root() {
            skipped("chroot needs root");
            continue;
        }
        let version = in_root(&empty_root(&binary), &["--version"]).finish().expect_success();
        assert_eq!(version.stdout, [format!("{name} {}", env!("CARGO_PKG_VERSION"))]);
    }
}

#[test]
fn a_static_binary_alone_in_its_root_captures_serves_and_installs() {
    let (Some(node), Some(seeder)) = (static_binary("shoal-node"), static_binary("shoal-seeder")) else {
        return;
    };
    if !is_root() {
        return skipped("chroot needs root");
    }
    // Takes the turn among the tests with swarms.
    let _publisher = Publisher::new();
    let tree = TreeFixture::new(TREE);
    let (server, target) = (empty_root(&seeder), empty_root(&node));
    let source = server.path().join("source");
    assert!(Command::new("cp").arg("-a").arg(tree.path()).arg(&source).status().unwrap().success());
    in_root(&server, &["capture", "/source", "tree", "--data", "/data"]).finish().expect_success();
    let serving = in_root(&server, &["serve", "--data", "/data", "--listen", "127.0.0.1:0", "--json"]);
    serving.stdout_line(|line| line.contains("\"listening\""));

    // By a name, so that the resolver is at work too.
    fs::create_dir(target.path().join("etc")).unwrap();
    fs::write(target.path().join("etc/hosts"), "127.0.0.1 image-server\n").unwrap();
    fs::create_dir(target.path().join("target")).unwrap();
    let named = ["ticket", "--host", "image-server", "--data", "/data", "--json"];
    let ticket = in_root(&server, &named).finish().expect_success().stdout.concat();
    let ticket = text(&json(&ticket), "ticket");
    assert!(ticket.contains("image-server"), "{ticket}");
    let options = ["--image", "tree", "--target", "/target", "--data", "/data"];
    let alone = ["--listen", "127.0.0.1:0", "--seed-for", "0s", "--json"];
    let installed = in_root(&target, &[&["install", &ticket][..], &options, &alone].concat());
    let report = json(&installed.finish().expect_success().stdout.concat());
    assert_eq!(number(&report, "bytes_from_peers"), 0);
    assert_same(&source, &target.path().join("target"));
}
