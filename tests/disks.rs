//! Disks made as a file declares them, with the system's own tools, on a file of our own as the disk.

use std::fs::{self, File};
use std::path::{Path, PathBuf};
use std::process::Command;

use harness::{Finished, Node, Process, Publisher, Sizes, TreeFixture, is_root, skipped};

use crate::assert_same;

const TREE: Sizes = Sizes { noise_bytes: 3 << 20, small_files: 100 };
const TOOLS: [&str; 6] = ["sfdisk", "mkfs.ext4", "mkfs.xfs", "blkid", "losetup", "wipefs"];

/// A disk of 2 GiB on a loop device. Detached when dropped.
struct LoopDisk {
    device: PathBuf,
    _folder: tempfile::TempDir,
}

impl LoopDisk {
    fn new() -> Option<Self> {
        if !is_root() {
            skipped("needs root");
            return None;
        }
        let path = std::env::var_os("PATH").unwrap_or_default();
        let is_there = |tool: &&str| std::env::split_paths(&path).any(|folder| folder.join(tool).is_file());
        if let Some(missing) = TOOLS.iter().find(|tool| !is_there(tool)) {
            skipped(&format!("needs {missing}"));
            return None;
        }
        let folder = tempfile::tempdir().unwrap();
        let file = folder.path().join("disk");
        File::create(&file).unwrap().set_len(2 << 30).unwrap();
        let mut attach = Command::new("losetup");
        attach.args(["--find", "--show", "--partscan"]).arg(&file);
        let device = Process::start(attach).finish().expect_success().stdout.concat();
        Some(Self { device: device.into(), _folder: folder })
    }

    fn partition(&self, number: u32) -> String {
        format!("{}p{number}", self.device.display())
    }

    /// A layout on this disk.
    fn layout(&self, folder: &Path, partitions: &str) -> PathBuf {
        let path = folder.join("disks.toml");
        let device = self.device.display();
        fs::write(&path, format!("[[disk]]\ndevice = \"{device}\"\nlabel = \"gpt\"\n{partitions}")).unwrap();
        path
    }
}

impl Drop for LoopDisk {
    fn drop(&mut self) {
        let _ = Command::new("losetup").arg("--detach").arg(&self.device).status();
    }
}

/// Unmounts what is mounted below a folder when dropped.
struct Unmounted(PathBuf);

impl Drop for Unmounted {
    fn drop(&mut self) {
        let _ = Command::new("umount").args(["--quiet", "--recursive"]).arg(&self.0).status();
    }
}

fn run(program: &str, arguments: &[&str], path: &Path) -> Finished {
    let mut command = Command::new(program);
    command.args(arguments).arg(path);
    Process::start(command).finish()
}

const LAYOUT: &str = r#"
[[disk.partition]]
size = "300MiB"
filesystem = "ext4"
mount = "/boot"
fs-label = "BOOT"
[[disk.partition]]
size = "rest"
filesystem = "ext4"
mount = "/"
name = "root"
[[disk.partition]]
size = "400MiB"
filesystem = "xfs"
mount = "/home"
[[disk.partition]]
size = "64MiB"
filesystem = "swap"
"#;

#[test]
fn disks_are_made_filled_kept_and_refused_while_they_are_in_use() {
    let Some(disk) = LoopDisk::new() else { return };
    let tree = TreeFixture::new(TREE);
    for folder in ["boot", "home", "etc"] {
        fs::create_dir_all(tree.path().join(folder)).unwrap();
    }
    fs::write(tree.path().join("boot/kernel"), "kernel").unwrap();
    let publisher = Publisher::new();
    publisher.capture(&tree.path(), "tree");
    let server = publisher.serve(&[]);
    let node = Node::new();
    let target = Unmounted(node.target());
    let layout = disk.layout(publisher.data(), LAYOUT);
    let install = |layout: &Path, more: &[&str]| {
        let file = layout.to_str().unwrap();
        let arguments = [&["--image", "tree", "--seed-for", "0s", "--disks", file], more].concat();
        Process::start(node.install_command(&server.ticket, &arguments)).finish()
    };

    let asked = install(&layout, &[]);
    assert_eq!(asked.status.code(), Some(2));
    assert!(asked.stderr.concat().contains("--yes does it"), "{:?}", asked.stderr);
    let dry = install(&layout, &["--dry-run"]).expect_success();
    assert!(dry.stdout.iter().any(|line| line.contains("/home")), "{:?}", dry.stdout);
    assert!(!Path::new(&disk.partition(1)).exists());

    let done = install(&layout, &["--yes"]).expect_success();
    assert!(done.stderr.iter().any(|line| line.starts_with("wrote etc/fstab")), "{:?}", done.stderr);
    let fstab = fs::read_to_string(target.0.join("etc/fstab")).unwrap();
    let points: Vec<&str> = fstab.lines().filter_map(|line| line.split(' ').nth(1)).collect();
    assert_eq!(points, ["/", "/boot", "/home", "none"]);

    // Used: nothing may happen to it.
    let used = install(&layout, &["--yes"]);
    assert_eq!(used.status.code(), Some(1));
    assert!(used.stderr.concat().contains("is mounted at"), "{:?}", used.stderr);

    // What a boot would mount is what was captured.
    run("umount", &["--recursive"], &target.0).expect_success();
    run("mount", &[&disk.partition(2)], &target.0).expect_success();
    assert!(!target.0.join("boot/kernel").exists());
    run("mount", &[&disk.partition(1)], &target.0.join("boot")).expect_success();
    assert_eq!(fs::read(target.0.join("boot/kernel")).unwrap(), b"kernel");
    fs::remove_file(target.0.join("etc/fstab")).unwrap();
    for made in ["lost+found", "boot/lost+found"] {
        fs::remove_dir(target.0.join(made)).unwrap();
    }
    run("umount", &[], &target.0.join("boot")).expect_success();
    fs::write(target.0.join("boot/kernel"), "kernel").unwrap();
    restore_times(&tree.path(), &target.0);
    assert_same(&tree.path(), &target.0);

    // A second install keeps a home, with what is in it.
    run("umount", &[], &target.0).expect_success();
    run("mount", &[&disk.partition(3)], &target.0).expect_success();
    fs::write(target.0.join("precious"), "stays").unwrap();
    run("umount", &[], &target.0).expect_success();
    let kept = LAYOUT.replace("size = \"400MiB\"", "keep = true").replace("300MiB", "200MiB");
    let layout = disk.layout(publisher.data(), &kept);
    install(&layout, &["--yes", "--force"]).expect_success();
    assert_eq!(fs::read(target.0.join("boot/kernel")).unwrap(), b"kernel");
    run("umount", &["--recursive"], &target.0).expect_success();
    run("mount", &[&disk.partition(3)], &target.0).expect_success();
    assert_eq!(fs::read(target.0.join("precious")).unwrap(), b"stays");
}

/// Gives back the times of the directories that this test changed.
fn restore_times(source: &Path, target: &Path) {
    for path in ["boot/kernel", "boot", "etc", "home", ""] {
        let mut touch = Command::new("touch");
        touch.arg("--no-dereference").arg("--reference").arg(source.join(path)).arg(target.join(path));
        assert!(touch.status().unwrap().success());
    }
}
