//! A Debian with a kernel and compilers, installed on another file system, updated to one with packages upgraded, added and
//! removed, and rolled back: compared by the tools of the trade, and measured beside rsync.

use std::path::{Path, PathBuf};
use std::process::Command;

use harness::{Disk, FileSystem, Finished, Node, Process, Publisher, inodes, is_root, number, skipped};

/// Name the two trees. `.ci/run` makes them; nothing else does.
const TREE: &str = "SHOAL_TEST_DEBIAN_FULL";
const NEXT: &str = "SHOAL_TEST_DEBIAN_NEXT";
const DISK_BYTES: u64 = 16 << 30;

fn trees() -> Option<(PathBuf, PathBuf)> {
    let tree = |name| {
        let path = std::env::var_os(name).map(PathBuf::from);
        path.inspect(|path| assert!(path.join("etc/debian_version").exists(), "{name} is no Debian"))
    };
    let both = tree(TREE).zip(tree(NEXT));
    if both.is_none() {
        skipped(&format!("set {TREE} and {NEXT} to debootstrapped trees"));
    } else if !is_root() {
        skipped("needs root");
        return None;
    }
    both
}

fn run(program: &str, arguments: &[&str]) -> Finished {
    let mut command = Command::new(program);
    command.args(arguments);
    Process::start(command).finish().expect_success()
}

/// # Panics
/// When rsync would change anything to make `target` what `source` is.
fn assert_rsync_silent(source: &Path, target: &Path) {
    let mut rsync = Command::new("rsync");
    rsync.args(["-aHAXSn", "--delete", "--checksum", "--itemize-changes"]);
    rsync.arg(source.join("")).arg(target.join(""));
    let compared = Process::start(rsync).finish().expect_success();
    let changes: Vec<_> =
        compared.stdout.iter().filter(|line| !line.contains("lost+found")).take(20).collect();
    assert!(changes.is_empty(), "rsync would change: {changes:#?}");
}

/// What a tool says of all paths below, with paths from there.
fn said(top: &Path, script: &str) -> Vec<String> {
    let script = format!("cd '{}' && {script}", top.display());
    let mut lines = run("sh", &["-c", &script]).stdout;
    lines.retain(|line| !line.contains("lost+found"));
    lines
}

/// Lets rsync make `old` what `new` is, and counts the bytes that it moves for that, both ways.
fn moved_by_rsync(old: &Path, new: &Path) -> u64 {
    let mut rsync = Command::new("rsync");
    rsync.args(["-aHAX", "-z", "--zc=zstd", "--no-whole-file", "--delete", "--stats"]);
    rsync.arg(new.join("")).arg(old.join(""));
    let said = Process::start(rsync).finish().expect_success().stdout;
    let value = |name: &str| -> u64 {
        let line = said.iter().find(|line| line.starts_with(name)).expect("rsync prints its statistics");
        line.chars().filter(char::is_ascii_digit).collect::<String>().parse().unwrap()
    };
    value("Total bytes sent") + value("Total bytes received")
}

#[test]
fn a_debian_is_installed_updated_and_rolled_back_as_the_tools_of_the_trade_see_it() {
    let Some((old, new)) = trees() else { return };
    let entries = said(&old, "find . | wc -l").concat();
    let publisher = Publisher::alone();
    publisher.capture(&old, "debian");
    let server = publisher.serve(&[]);
    let node = Node::new();
    let _disk = Disk::at_with_room(FileSystem::Xfs, &node.target(), DISK_BYTES)
        .or_else(|| Disk::at_with_room(FileSystem::Ext4, &node.target(), DISK_BYTES));
    let arguments = ["--image", "debian", "--seed-for", "0s"];
    Process::start(node.install_command(&server.ticket, &arguments)).finish().expect_success();
    let target = node.target();
    assert_rsync_silent(&old, &target);
    for script in ["getcap -r . | sort", "find . -print0 | sort -z | xargs -0 getfacl -Pn 2>/dev/null"] {
        assert!(said(&old, script) == said(&target, script), "{script}");
    }
    let verified = run("chroot", &[target.to_str().unwrap(), "dpkg", "--verify"]);
    assert_eq!(verified.stdout, Vec::<String>::new(), "dpkg finds changed files");
    let settled = inodes(&target);

    let captured = publisher.capture(&new, "debian");
    let plan = node.update_command(&server.ticket, &["--image", "debian", "--dry-run"]);
    Process::start(plan).finish().expect_success();
    assert_eq!(inodes(&target), settled, "a dry run touches nothing");
    let report = node.update(&server.ticket, "debian");
    assert_rsync_silent(&new, &target);
    let before = inodes(&target);
    node.update(&server.ticket, "debian");
    assert!(inodes(&target) == before, "a third run changes an inode");

    let rules = node.store().with_file_name("rules");
    node.on_target(&["rollback", "--rules", rules.to_str().unwrap()]).expect_success();
    assert_rsync_silent(&old, &target);

    let fetched = number(&report, "bytes_from_seeder") + number(&report, "bytes_from_peers");
    let lacking = number(&captured, "new_compressed_bytes");
    let by_rsync = moved_by_rsync(&target, &new);
    println!(
        "{entries} entries; the update fetched {fetched} bytes: {:.3} of the {lacking} compressed bytes of chunks that \
         the old tree lacks, {:.3} of the {by_rsync} that rsync moves; {} created, {} replaced, {} adjusted, {} removed",
        fetched as f64 / lacking as f64,
        fetched as f64 / by_rsync as f64,
        report["created"],
        report["replaced"],
        report["adjusted"],
        report["removed"],
    );
    assert!(fetched as f64 <= 1.15 * lacking as f64);
    assert!(fetched <= by_rsync);
}
