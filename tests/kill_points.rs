//! Installs and updates killed (SIGKILL) at hundreds of random moments, each resumed: the tree ends identical, and no
//! peer is ever sent a byte that is not what its block's name says.
//!
//! Nodes run in pairs, each killed at moments of its own while it trades with the other and with the seeder: whoever
//! receives a piece checks it, so a process that resumed with a byte unverified and served it would be found out.
//! `SHOAL_TEST_SEED` chooses other moments, `SHOAL_TEST_KILLS` how many.

use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use harness::{
    DEADLINE, Finished, Node, Noise, Process, Publisher, Server, Sizes, TreeFixture, json, memory_folder,
    number,
};
use serde_json::Value;
use shoal_node::store::Store;

use crate::assert_same;
use crate::update::{assert_old_or_new, change, described, inode};

const INSTALL_KILLS: u64 = 500;
const UPDATE_KILLS: u64 = 200;
/// Of one node on its way to one tree; then it may finish.
const KILLS_IN_A_ROW_MAX: u64 = 12;
const TREE: Sizes = Sizes { noise_bytes: 1 << 20, small_files: 2500 };

/// The kills of a test: how many are left, how many were done.
struct Kills {
    seed: u64,
    wanted: u64,
    done: AtomicU64,
    /// Seeds of the nodes' moments.
    nodes: AtomicU64,
}

impl Kills {
    fn new(wanted: u64) -> Self {
        let number = |name, default| std::env::var(name).map_or(default, |text| text.parse().unwrap());
        Self {
            seed: number("SHOAL_TEST_SEED", 1),
            wanted: number("SHOAL_TEST_KILLS", wanted),
            done: AtomicU64::new(0),
            nodes: AtomicU64::new(0),
        }
    }

    fn are_done(&self) -> bool {
        self.done.load(Ordering::Relaxed) >= self.wanted
    }

    fn random(&self) -> Noise {
        Noise::new(self.seed << 32 | self.nodes.fetch_add(1, Ordering::Relaxed))
    }

    fn print(&self, what: &str, started: Instant) {
        let (seed, done, seconds) =
            (self.seed, self.done.load(Ordering::Relaxed), started.elapsed().as_secs());
        println!("{what}: {done} kill points in {seconds} s, seed {seed}");
    }
}

/// One node on its way to one tree.
struct Way<'a> {
    node: &'a Node,
    kills: &'a Kills,
    moments: &'a Moments,
}

/// When a process may be killed: in turn at any time of what a run takes that nobody kills, and some time after it said
/// that it began a stage; the last ones are short.
struct Moments {
    length: Duration,
    /// In the last turn instead as soon as one of these, below the target, is another file: paths change within
    /// milliseconds, which a time would never hit.
    changing: Vec<PathBuf>,
}

/// What a process says of its stages, as it says it.
const STAGES: [&str; 2] = ["fetching pieces", "finishing the tree"];

impl Moments {
    /// Returns at a moment, or with the report when that comes first.
    fn wait(&self, process: &Process, target: &Path, kill: u64, random: &mut Noise) -> Option<String> {
        let mut delay = |bound: Duration| {
            Duration::from_micros(random.word() % u64::try_from(bound.as_micros()).unwrap())
        };
        match kill % 4 {
            turn @ (1 | 2) => {
                let stage = STAGES[usize::try_from(turn - 1).unwrap()];
                let begun = |time| process.stderr_line_within(time, |line| line.contains(stage)).is_some();
                let report = report_before(process, begun);
                report.or_else(|| process.stdout_line_within(delay(self.length / 4), is_report))
            }
            3 if !self.changing.is_empty() => {
                let at = usize::try_from(random.word() % self.changing.len() as u64).unwrap();
                let path = target.join(&self.changing[at]);
                let before = inode(&path);
                report_before(process, |_| inode(&path) != before)
            }
            _ => process.stdout_line_within(delay(self.length), is_report),
        }
    }
}

impl Way<'_> {
    /// Starts the command, kills it at a random moment and starts it again, until it finishes or was killed often
    /// enough; returns the process, which still serves, with its report.
    fn go(&self, command: impl Fn() -> Command, after_kill: impl Fn(&Node)) -> (Process, Value) {
        let mut random = self.kills.random();
        for kill in 0..KILLS_IN_A_ROW_MAX {
            if self.kills.are_done() {
                break;
            }
            let process = Process::start(command());
            let report = self.moments.wait(&process, &self.node.target(), kill, &mut random);
            if let Some(report) = report {
                return (process, json(&report));
            }
            let killed = process.killed();
            assert_eq!(killed.status.code(), None, "it ended by itself: {:#?}", killed.stderr);
            assert_honest(&killed);
            self.kills.done.fetch_add(1, Ordering::Relaxed);
            after_kill(self.node);
        }
        let process = Process::start(command());
        let report = json(&process.stdout_line(is_report));
        (process, report)
    }
}

fn is_report(line: &str) -> bool {
    line.starts_with('{')
}

/// Returns when something has happened, or with the report when that comes first. `happened` may wait for the time that
/// it is given.
fn report_before(process: &Process, happened: impl Fn(Duration) -> bool) -> Option<String> {
    let pause = Duration::from_micros(200);
    let deadline = Instant::now() + DEADLINE;
    while !happened(pause) {
        let report = process.stdout_line_within(pause, is_report);
        if report.is_some() {
            return report;
        }
        assert!(Instant::now() < deadline, "neither what was waited for nor a report");
    }
    None
}

/// # Panics
/// When a process was sent a wrong byte, or broke down.
fn assert_honest(finished: &Finished) {
    let bad = ["corrupt", "broke the protocol", "damaged", "panicked", "ERROR"];
    let said: Vec<&String> =
        finished.stderr.iter().filter(|line| bad.iter().any(|bad| line.contains(bad))).collect();
    assert!(said.is_empty(), "{said:#?}");
}

/// Brings both nodes to the tree, and checks what they have then.
fn go_together(
    pair: &[Node; 2],
    kills: &Kills,
    moments: &Moments,
    command: impl Fn(&Node) -> Command + Sync,
    tree: &TreeFixture,
    after_kill: impl Fn(&Node) + Sync,
) {
    let finished: Vec<(Process, Value)> = std::thread::scope(|scope| {
        let (command, after_kill) = (&command, &after_kill);
        let ways = pair
            .each_ref()
            .map(|node| scope.spawn(move || Way { node, kills, moments }.go(|| command(node), after_kill)));
        ways.map(|way| way.join().unwrap()).into()
    });
    for (node, (process, report)) in pair.iter().zip(finished) {
        assert_honest(&process.killed());
        // Killed between the last word of its record and its report, it has nothing left to do.
        if report["already_installed"] != true {
            assert_eq!(number(&report, "corrupt_bytes"), 0, "{report}");
        }
        assert_same(&tree.path(), &node.target());
    }
}

/// # Panics
/// Unless every block that a store holds is what its name says.
fn assert_sound(node: &Node) {
    let found = Store::open(&node.store()).unwrap().fsck(true).unwrap();
    assert!(found.damaged.is_empty(), "{found:?}");
}

fn install_command(node: &Node, server: &Server, image: &str) -> Command {
    node.install_command(&server.ticket, &["--image", image, "--seed-for", "1h", "-v"])
}

/// How long an install takes that nobody kills.
fn install_length(server: &Server, image: &str) -> (Duration, Node) {
    let node = Node::new_in(&memory_folder());
    let started = Instant::now();
    let process = Process::start(install_command(&node, server, image));
    process.stdout_line(is_report);
    (started.elapsed(), node)
}

#[test]
fn an_install_killed_at_any_moment_is_resumed_to_the_same_tree() {
    let (kills, started) = (Kills::new(INSTALL_KILLS), Instant::now());
    let tree = TreeFixture::new_in(&memory_folder(), TREE);
    let publisher = Publisher::new();
    publisher.capture(&tree.path(), "tree");
    let server = publisher.serve(&[]);
    let moments = Moments { length: install_length(&server, "tree").0, changing: Vec::new() };
    let in_the_middle = AtomicU64::new(0);
    while !kills.are_done() {
        let pair = [Node::new_in(&memory_folder()), Node::new_in(&memory_folder())];
        let command = |node: &Node| install_command(node, &server, "tree");
        let after_kill = |node: &Node| {
            let begun = std::fs::read_dir(node.target()).unwrap().next().is_some();
            in_the_middle.fetch_add(u64::from(begun), Ordering::Relaxed);
        };
        go_together(&pair, &kills, &moments, command, &tree, after_kill);
        pair.iter().for_each(assert_sound);
    }
    assert_honest(&server.process.killed());
    kills.print("install", started);
    println!("{in_the_middle:?} of them with files in the target");
}

#[test]
fn an_update_killed_at_any_moment_is_resumed_to_the_same_tree() {
    let (kills, started) = (Kills::new(UPDATE_KILLS), Instant::now());
    let (old, new) =
        (TreeFixture::new_in(&memory_folder(), TREE), TreeFixture::new_in(&memory_folder(), TREE));
    change(&old.path(), &new.path());
    let publisher = Publisher::new();
    publisher.capture(&old.path(), "old");
    publisher.capture(&new.path(), "new");
    let server = publisher.serve(&[]);
    let update = |node: &Node, image: &str| {
        node.update_command(&server.ticket, &["--image", image, "--seed-for", "1h", "-v"])
    };
    let (_, node) = install_length(&server, "old");
    let begun = Instant::now();
    Process::start(update(&node, "new")).stdout_line(is_report);
    let length = begun.elapsed();
    let (old_files, new_files) = (described(&old.path()), described(&new.path()));
    let differ = |path: &&PathBuf| old_files.get(*path) != new_files.get(*path);
    let changing = old_files.keys().chain(new_files.keys()).filter(differ).cloned().collect();
    let moments = Moments { length, changing };
    let in_the_middle = AtomicU64::new(0);
    while !kills.are_done() {
        let pair = [install_length(&server, "old").1, install_length(&server, "old").1];
        for (image, to) in [("new", &new), ("old", &old)] {
            let after_kill = |node: &Node| {
                let between = assert_old_or_new(&old_files, &new_files, &node.target(), 0);
                in_the_middle.fetch_add(u64::from(between), Ordering::Relaxed);
            };
            go_together(&pair, &kills, &moments, |node| update(node, image), to, after_kill);
            for node in &pair {
                node.on_target(&["verify", "--all"]).expect_success();
            }
        }
    }
    assert_honest(&server.process.killed());
    kills.print("update", started);
    println!("{in_the_middle:?} of them between the first and the last rename");
}
