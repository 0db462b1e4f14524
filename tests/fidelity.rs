//! Capture, install, compare: everything that a tree can have, from every file system to every other.
//!
//! A case that a file system cannot hold is a *loss* there: the table says which difference it leaves, and the report
//! of the install must name it. Nothing else may differ, and nothing may be reported that does not.

mod cases;
mod copy;

use std::collections::BTreeSet;
use std::fs;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};

use cases::{At, Case};
use copy::{Copied, Memory};
use harness::{Disk, FileSystem, Node, Process, Publisher, is_root, number, skipped};

/// The tree of all cases that a file system holds.
struct Source {
    kind: FileSystem,
    root: PathBuf,
    cases: Vec<Case>,
}

impl Source {
    fn build(disk: &Disk) -> Self {
        let (kind, root, outside) = (disk.kind(), disk.path().join("source"), disk.path().join("outside"));
        fs::create_dir(&root).unwrap();
        fs::create_dir(&outside).unwrap();
        let mut cases = cases::all();
        // What nothing holds is made everywhere: it is lost everywhere.
        cases.retain(|case| case.holds.contains(&kind) || case.holds.is_empty());
        for case in &cases {
            let at = At { root: root.clone(), folder: root.join(case.name), outside: outside.clone() };
            fs::create_dir(&at.folder).unwrap();
            (case.build)(&at).unwrap_or_else(|error| panic!("{} on {}: {error}", case.name, kind.name()));
        }
        Self { kind, root, cases }
    }

    /// Cases that lose something on `target`.
    fn lost_on(&self, target: FileSystem) -> impl Iterator<Item = &Case> {
        self.cases.iter().filter(move |case| !case.holds.contains(&target))
    }

    /// What must differ on `target`, and nothing else.
    fn expected(&self, target: FileSystem) -> BTreeSet<(PathBuf, &'static str)> {
        self.lost_on(target)
            .flat_map(|case| case.lost.iter().map(|(path, what)| (Path::new(case.name).join(path), *what)))
            .collect()
    }
}

/// What every capture leaves out already, so that no install can report it.
fn left_out() -> BTreeSet<PathBuf> {
    ["a socket/socket", "attributes of an overlay/d"].map(PathBuf::from).into()
}

fn found(source: &Path, target: &Path) -> BTreeSet<(PathBuf, &'static str)> {
    harness::compare(source, target).unwrap().into_iter().map(|one| (one.path, one.what)).collect()
}

/// What is wrong with a copy: it differs otherwise than in what it cannot hold, or its losses are not those reported.
fn faults(source: &Source, target: &Path, kind: FileSystem, reported: &BTreeSet<PathBuf>) -> Vec<String> {
    let (found, expected) = (found(&source.root, target), source.expected(kind));
    let pair = format!("{} to {}", source.kind.name(), kind.name());
    let lost: BTreeSet<&PathBuf> = expected.iter().map(|(path, _)| path).collect();
    let reported: BTreeSet<&PathBuf> = reported.iter().collect();
    let mut faults = Vec::new();
    let mut add = |what: &str, one: &dyn std::fmt::Debug| faults.push(format!("{pair}: {what}: {one:?}"));
    found.difference(&expected).for_each(|one| add("differs", one));
    expected.difference(&found).for_each(|one| add("is lost, says the table", one));
    reported.difference(&lost).for_each(|one| add("is reported for no reason", one));
    lost.difference(&reported).for_each(|one| add("is not reported", one));
    faults
}

fn disks_of_all_kinds() -> Vec<Disk> {
    FileSystem::ALL.into_iter().filter_map(Disk::new).collect()
}

#[test]
fn every_tree_comes_back_on_every_file_system_that_can_hold_it() {
    if !is_root() {
        return skipped("needs root");
    }
    let disks = disks_of_all_kinds();
    let sources: Vec<Source> = disks.iter().map(Source::build).collect();
    let found: Vec<String> = std::thread::scope(|scope| {
        let copies: Vec<_> =
            sources.iter().map(|source| scope.spawn(|| copy_everywhere(source, &disks))).collect();
        copies.into_iter().flat_map(|copy| copy.join().unwrap()).collect()
    });
    assert!(found.is_empty(), "{found:#?}");
}

fn copy_everywhere(source: &Source, disks: &[Disk]) -> Vec<String> {
    let mut found = Vec::new();
    let blocks = Memory::default();
    let captured = blocks.capture(&source.root, &[]);
    assert_eq!((captured.report.sockets, captured.report.mounts), (1, 2));
    for disk in disks {
        let target = disk.path().join(format!("from {}", source.kind.name()));
        fs::create_dir(&target).unwrap();
        cases::dress(&target, disk.kind()).unwrap();
        let Copied { mut losses } = blocks.apply(&captured.root, &target);
        losses.extend(left_out());
        found.extend(faults(source, &target, disk.kind(), &losses));
        // With what is lost left out, source and copy are one image.
        let lossy: Vec<String> = source.lost_on(disk.kind()).map(|case| format!("/{}", case.name)).collect();
        let image = |tree: &Path| Memory::default().capture(tree, &lossy).root.image_id();
        if image(&source.root) != image(&target) {
            found.push(format!("{} to {}: other image", source.kind.name(), disk.kind().name()));
        }
    }
    found
}

/// Runs of data in a file of a mebibyte, in other units than the blocks of any of the file systems.
const RUNS: [(u64, u64); 5] = [(0, 1), (5000, 3000), (70_656, 1024), (300_000, 100_000), (1_048_000, 576)];

/// The same bytes with room for other zeros among them: which blocks take room is the file system's business.
#[test]
fn the_holes_of_an_image_depend_on_bytes_only() {
    if !is_root() {
        return skipped("needs root");
    }
    let small_blocks = [(FileSystem::Ext4, &["-b", "1024"][..]), (FileSystem::Xfs, &["-b", "size=1024"])];
    let disks = small_blocks.map(|(kind, arguments)| Disk::made_with(kind, arguments));
    let mut images = BTreeSet::new();
    for disk in disks.into_iter().flatten().chain(disks_of_all_kinds()) {
        for (number, zeros) in
            [&[][..], &[(8192, 4096)], &[(4096, 12_288), (600_000, 100_000)]].into_iter().enumerate()
        {
            let root = disk.path().join(format!("tree {number}"));
            fs::create_dir(&root).unwrap();
            let new = fs::File::options().read(true).write(true).create_new(true).open(root.join("f"));
            let file = new.unwrap();
            file.set_len(1 << 20).unwrap();
            for (at, length) in RUNS {
                let bytes = harness::Noise::new(at + 1).bytes(usize::try_from(length).unwrap());
                file.write_all_at(&bytes, at).unwrap();
            }
            for &(at, length) in zeros {
                // Only where nothing was written.
                for block in (at..at + length).step_by(1024) {
                    let mut old = [0; 1024];
                    file.read_exact_at(&mut old, block).unwrap();
                    file.write_all_at(&old, block).unwrap();
                }
            }
            file.sync_all().unwrap();
            for path in [root.join("f"), root.clone()] {
                fs::File::open(path).unwrap().set_modified(std::time::UNIX_EPOCH).unwrap();
            }
            images.insert(Memory::default().capture(&root, &[]).root.image_id().to_string());
        }
    }
    assert_eq!(images.len(), 1, "{images:?}");
}

/// What the table does with the library, once with the programs.
#[test]
fn a_seeder_and_a_node_bring_the_whole_table_to_another_disk() {
    if !is_root() {
        return skipped("needs root");
    }
    let (publisher, node) = (Publisher::new(), Node::new());
    let disk = Disk::new(FileSystem::Ext4).expect("every Linux has mkfs.ext4");
    let target = Disk::at(FileSystem::Ext4, &node.target()).expect("as before");
    let source = Source::build(&disk);
    fs::remove_dir(node.target().join("lost+found")).unwrap();
    let captured = publisher.capture(&source.root, "table");
    let server = publisher.serve(&[]);
    let arguments = ["--image", "table", "--seed-for", "0s"];
    let installed =
        Process::start(node.install_command(&server.ticket, &arguments)).finish().expect_success();
    let report: serde_json::Value = serde_json::from_str(&installed.stdout.concat()).unwrap();
    assert_eq!(number(&report, "entries"), number(&captured, "entries"));
    assert_eq!(faults(&source, target.path(), target.kind(), &left_out()), [""; 0]);
    let mut verify = node.command(&["verify", "--json"]);
    verify.arg("--target").arg(node.target());
    Process::start(verify).finish().expect_success();
}
