//! The lab: every tree arrives, the figures are there, and nothing is left behind.

use std::fs;
use std::os::unix::fs::{MetadataExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::thread::sleep;
use std::time::Duration;

use harness::{Finished, Noise, Process, Sizes, TreeFixture, binary, is_root, number, skipped};
use rustix::process::{Pid, Signal, kill_process};
use serde_json::Value;
use tempfile::TempDir;

const TREE: Sizes = Sizes { noise_bytes: 8 << 20, small_files: 50 };
/// How often to look for what is about to begin, ten milliseconds apart.
const LOOKS_MAX: usize = 10_000;
/// A quarter of the tree: what a host has that is in the middle of it.
const UNDER_WAY_BYTES: u64 = 2 << 20;
/// Less than the bursts that shapers let pass at once.
const NEARLY: f64 = 0.9;

/// A lab of four nodes whose hosts keep their files in `dir`.
fn lab(tree: &Path, dir: &TempDir, arguments: &[&str]) -> Process {
    let mut command = Command::new(binary("shoal-sim"));
    command.args(["lab", "--nodes", "4", "--json"]).args(arguments);
    command.arg("--dir").arg(dir.path()).arg(tree);
    Process::start(command)
}

/// What a lab prints that is left to its end.
fn report(tree: &Path, arguments: &[&str]) -> Value {
    let dir = TempDir::new().unwrap();
    let process = lab(tree, &dir, arguments);
    let pid = process.pid();
    let finished = process.finish().expect_success();
    assert_eq!(left_behind(pid, dir.path()), Vec::<String>::new());
    let report: Value = serde_json::from_str(&finished.stdout.concat()).unwrap();
    assert_eq!(report["verified"], true, "{report}");
    report
}

fn ratio(report: &Value, field: &str) -> f64 {
    report[field].as_f64().unwrap_or_else(|| panic!("no {field} in {report}"))
}

/// Namespaces, files and processes of the lab that had this process number.
fn left_behind(pid: u32, dir: &Path) -> Vec<String> {
    let name = format!("shoal-lab-{pid}");
    let listed = Command::new("ip").args(["netns", "list"]).output().unwrap();
    let listed = String::from_utf8(listed.stdout).unwrap();
    let files = dir.read_dir().unwrap().map(|entry| entry.unwrap().file_name().into_string().unwrap());
    let namespaces = listed.lines().filter(|line| line.starts_with(&name)).map(str::to_owned);
    namespaces.chain(files).chain(processes_of(dir, pid)).collect()
}

/// The words of processes besides the lab itself that were told of `dir`, in a word or in their environment.
fn processes_of(dir: &Path, lab: u32) -> Vec<String> {
    let (dir, lab) = (dir.to_str().unwrap(), lab.to_string());
    let text =
        |path: PathBuf| String::from_utf8_lossy(&fs::read(path).unwrap_or_default()).replace('\0', " ");
    let processes = fs::read_dir("/proc").unwrap().map(|entry| entry.unwrap().path());
    let others = processes.filter(|path| path.file_name().is_some_and(|name| name != lab.as_str()));
    let words = others.map(|path| (text(path.join("cmdline")), text(path.join("environ"))));
    let told = words.filter(|(words, environment)| words.contains(dir) || environment.contains(dir));
    told.map(|(words, _)| words).collect()
}

#[test]
fn four_hosts_get_the_tree_over_shaped_links_and_nothing_stays_behind() {
    if !is_root() {
        return skipped("needs root");
    }
    let report = report(&TreeFixture::new(TREE).path(), &["--rate", "400mbit"]);
    let nodes = report["nodes"].as_array().unwrap();
    assert_eq!(nodes.len(), 4);
    let compressed = ratio(&report, "compressed_bytes");
    assert!(compressed >= TREE.noise_bytes as f64, "{report}");
    for node in nodes {
        assert_eq!(node["verified"], true, "{node}");
        let came = number(node, "bytes_from_seeder") + number(node, "bytes_from_peers");
        assert!(came as f64 >= compressed, "{node}");
    }
    // Nothing is faster than the link, which one whole copy has to cross.
    for least_one in ["last_over_wire", "median_over_wire", "seeder_wire_copies"] {
        assert!(ratio(&report, least_one) >= 1.0, "{least_one} in {report}");
    }
    for described in ["cpu", "kernel"] {
        assert_ne!(report["machine"][described].as_str().unwrap(), "", "{report}");
    }
    assert!(number(&report["machine"], "cores") > 0 && number(&report["machine"], "memory_bytes") > 0);
}

#[test]
fn a_partition_ends_and_both_halves_finish() {
    if !is_root() {
        return skipped("needs root");
    }
    let cut = ["--rate", "40mbit", "--scenario", "partition"];
    let report = report(&TreeFixture::new(TREE).path(), &cut);
    // Three quarters of the tree come to whoever is cut off after a quarter and the whole of the time.
    assert!(ratio(&report, "last_over_wire") >= 2.0 * NEARLY, "{report}");
}

#[test]
fn survivors_finish_when_nodes_or_the_seeder_are_killed() {
    if !is_root() {
        return skipped("needs root");
    }
    let tree = TreeFixture::new(TREE);
    let killed = |scenario| {
        let report = report(&tree.path(), &["--rate", "40mbit", "--scenario", scenario]);
        let nodes = report["nodes"].as_array().unwrap();
        let finished = nodes.iter().filter(|node| node["verified"] == true).count();
        (finished, nodes.iter().filter(|node| node["killed"] == true).count())
    };
    assert_eq!(killed("churn"), (3, 1));
    assert_eq!(killed("seeder-lost"), (4, 0));
}

#[test]
fn the_last_pieces_come_from_a_slow_peer_alone_when_the_seeder_is_gone() {
    if !is_root() {
        return skipped("needs root");
    }
    let (old, new) = (TreeFixture::new(TREE), TreeFixture::new(TREE));
    fs::write(new.path().join("new"), Noise::new(7).bytes(300_000)).unwrap();
    let old = old.path();
    let slow = ["--rate", "100mbit", "--scenario", "slow-last-peer", "--update", old.to_str().unwrap()];
    let report = report(&new.path(), &slow);
    // The seeder has sent the first node its copy, and the others no more than what leads to the pieces.
    assert!(ratio(&report, "seeder_copies") < 1.5, "{report}");
    assert!(ratio(&report, "last_over_wire") >= 50.0 * NEARLY, "{report}");
}

#[test]
fn another_tool_brings_the_same_tree_over_the_same_links() {
    if !is_root() {
        return skipped("needs root");
    }
    let with = ["--rate", "400mbit", "--with", "rsync", "--patience", "1000"];
    let report = report(&TreeFixture::new(TREE).path(), &with);
    let [rsync] = &report["tools"].as_array().unwrap()[..] else { panic!("{report}") };
    assert_eq!(rsync["tool"], "rsync");
    assert_eq!((&rsync["finished"], &rsync["verified"]), (&Value::Bool(true), &Value::Bool(true)), "{rsync}");
    assert_eq!(rsync["nodes"].as_array().unwrap().len(), 4);
    // Its server sends a whole copy to each.
    assert!(ratio(rsync, "compressed_bytes") >= TREE.noise_bytes as f64, "{rsync}");
    assert!(ratio(rsync, "seeder_wire_copies") >= 4.0, "{rsync}");
    assert!(ratio(rsync, "last_over_wire") >= 4.0 * NEARLY, "{rsync}");
    assert!(ratio(rsync, "seeder_cpu_s") > 0.0 && ratio(rsync, "nodes_cpu_s") > 0.0, "{rsync}");
}

#[test]
fn a_tool_that_takes_too_long_is_given_up() {
    if !is_root() {
        return skipped("needs root");
    }
    // Four copies cannot cross one link in the time of two.
    let with = ["--rate", "100mbit", "--with", "rsync", "--patience", "2"];
    let report = report(&TreeFixture::new(TREE).path(), &with);
    let rsync = &report["tools"][0];
    assert_eq!(
        (&rsync["finished"], &rsync["verified"]),
        (&Value::Bool(false), &Value::Bool(false)),
        "{rsync}"
    );
    let failure = rsync["failure"].as_str().unwrap();
    assert!(failure.contains("did not finish within") && failure.contains("0 of 4 hosts"), "{failure}");
}

#[test]
fn a_tool_that_breaks_costs_only_its_own_row() {
    if !is_root() {
        return skipped("needs root");
    }
    let (tree, dir, bin) = (TreeFixture::new(TREE), TempDir::new().unwrap(), TempDir::new().unwrap());
    let path = format!("{}:{}", bin.path().display(), std::env::var("PATH").unwrap());
    for (script, why) in [
        ("", "host 0: it ended early: broken"),
        // A daemon that is as it should be.
        (r#"[ "$1" != --daemon ] || PATH=${PATH#*:} exec rsync "$@""#, "host 1: it ended early: broken"),
    ] {
        let rsync = bin.path().join("rsync");
        fs::write(&rsync, format!("#!/bin/sh\n{script}\necho broken >&2\nexit 1\n")).unwrap();
        fs::set_permissions(&rsync, fs::Permissions::from_mode(0o755)).unwrap();
        let mut command = Command::new(binary("shoal-sim"));
        command.env("PATH", &path).args(["lab", "--nodes", "2", "--rate", "400mbit", "--with", "rsync"]);
        command.arg("--json").arg("--dir").arg(dir.path()).arg(tree.path());
        let finished = Process::start(command).finish().expect_success();
        let report: Value = serde_json::from_str(&finished.stdout.concat()).unwrap();
        assert_eq!(report["verified"], true, "{report}");
        let rsync = &report["tools"][0];
        assert_eq!(
            (&rsync["finished"], &rsync["failure"]),
            (&Value::Bool(false), &Value::from(why)),
            "{rsync}"
        );
    }
}

/// What a lab says that refuses.
fn refusal(command: &mut Command) -> String {
    let Finished { status, stdout, stderr } =
        Process::start(std::mem::replace(command, Command::new("true"))).finish();
    assert_eq!((status.code(), &stdout[..]), (Some(1), &[][..]));
    assert_eq!(stderr.len(), 1, "{stderr:?}");
    stderr.concat()
}

#[test]
fn a_tool_that_is_not_installed_is_refused_by_name() {
    let nowhere = TempDir::new().unwrap();
    for (tool, program, package) in [
        ("aria2", "aria2c", "apt-get install aria2"),
        ("rsync", "rsync", "apt-get install rsync"),
        ("udpcast", "udp-sender", "apt-get install udpcast"),
        ("uftp", "uftp", "apt-get install uftp"),
        ("chain", "socat", "apt-get install socat"),
        ("transmission", "transmission-cli", "apt-get install transmission-cli"),
        ("rqbit", "rqbit", "cargo install rqbit"),
    ] {
        let mut command = Command::new(binary("shoal-sim"));
        command.env("PATH", nowhere.path()).args(["lab", "--with", tool, "/"]);
        assert_eq!(
            refusal(&mut command),
            format!("shoal-sim: {tool} cannot run, there is no {program}: {package}")
        );
    }
}

#[test]
fn what_cannot_go_together_is_refused() {
    for (arguments, why) in [
        (&["--nodes", "5", "--racks", "2"][..], "5 nodes do not fill 2 racks evenly"),
        (&["--nodes", "2", "--racks", "4"], "2 nodes do not fill 4 racks evenly"),
        (&["--nodes", "4", "--racks", "2", "--ratio", "0"], "--ratio is not between 0.01 and 100"),
        (
            &["--update", "/", "--scenario", "churn"],
            "--update goes with the scenarios flash-crowd and slow-last-peer only",
        ),
        (&["--scenario", "slow-last-peer"], "the scenario slow-last-peer needs --update"),
        (
            &["--nodes", "4", "--racks", "2", "--scenario", "partition"],
            "--racks does not go with the scenario partition",
        ),
        (
            &["--scenario", "churn", "--with", "rsync"],
            "--with goes with the scenarios flash-crowd and stragglers only",
        ),
    ] {
        let mut command = Command::new(binary("shoal-sim"));
        command.args(["lab", "/"]).args(arguments);
        assert_eq!(refusal(&mut command), format!("shoal-sim: {why}"));
    }
}

#[test]
fn racks_share_an_uplink_that_nothing_passes_around() {
    if !is_root() {
        return skipped("needs root");
    }
    // The uplink of two hosts has a twentieth of the rate of one: what else takes time is little beside it.
    let racks = ["--rate", "400mbit", "--racks", "2", "--ratio", "40"];
    let report = report(&TreeFixture::new(TREE).path(), &racks);
    assert_eq!(number(&report["racks"], "uplink_rate"), 20_000_000);
    for run in [&report, &report["without_rack_labels"]] {
        assert_eq!(run["verified"], true, "{run}");
        assert!(ratio(run, "last_over_wire") >= 20.0 * NEARLY, "{run}");
        let copies = run["rack_copies"].as_array().unwrap();
        assert_eq!(copies.len(), 2, "{run}");
        assert!(copies.iter().all(|copies| copies.as_f64().unwrap() >= 1.0), "{run}");
    }
}

#[test]
fn nodes_of_racks_are_told_where_they_stand_unless_they_are_to_be_told_nothing() {
    if !is_root() {
        return skipped("needs root");
    }
    let tree = TreeFixture::new(TREE);
    let told = |argument: &[&str]| {
        let dir = TempDir::new().unwrap();
        let racks = [&["--rate", "100kbit", "--racks", "2"], argument].concat();
        let process = lab(&tree.path(), &dir, &racks);
        process.stderr_line(|said| said.contains("the nodes begin"));
        let nodes = || {
            let mut words = processes_of(dir.path(), process.pid());
            words.retain(|words| words.contains("shoal-node install"));
            words
        };
        // A process that has just begun has its words a moment later.
        let mut looks = (0..LOOKS_MAX).map(|_| (sleep(Duration::from_millis(10)), nodes()).1);
        let nodes = looks.find(|nodes| nodes.len() == 4).unwrap_or_else(nodes);
        process.terminate();
        process.finish();
        ["--rack rack0", "--rack rack1", ""]
            .map(|rack| nodes.iter().filter(|words| words.contains(rack)).count())
    };
    assert_eq!(told(&[]), [2, 2, 4]);
    assert_eq!(told(&["--no-rack-labels"]), [0, 0, 4]);
}

#[test]
fn nodes_of_racks_that_are_told_nothing_run_once() {
    if !is_root() {
        return skipped("needs root");
    }
    let racks = ["--rate", "400mbit", "--racks", "4", "--no-rack-labels"];
    let report = report(&TreeFixture::new(TREE).path(), &racks);
    assert_eq!(report["rack_copies"].as_array().unwrap().len(), 4, "{report}");
    assert!(report["without_rack_labels"].is_null(), "{report}");
}

#[test]
fn hosts_update_from_an_older_tree_and_so_does_another_tool() {
    if !is_root() {
        return skipped("needs root");
    }
    let (tree, other) = (TreeFixture::new(TREE), TempDir::new().unwrap());
    let old = other.path().join("old");
    let copied = Command::new("cp").arg("-a").args([&tree.path(), &old]).status().unwrap();
    assert!(copied.success());
    fs::write(tree.path().join("new"), Noise::new(7).bytes(1 << 20)).unwrap();
    let update =
        ["--rate", "400mbit", "--update", old.to_str().unwrap(), "--with", "rsync", "--patience", "1000"];
    let report = report(&tree.path(), &update);
    assert_eq!(report["scenario"], "refresh");
    assert!(number(&report, "image_bytes") >= TREE.noise_bytes);
    for run in [&report, &report["tools"][0]] {
        assert_eq!(run["verified"], true, "{run}");
        // What is new is all that travels, and a little to say so.
        for bytes in ["compressed_bytes", "node_wire_bytes"] {
            let bytes = ratio(run, bytes);
            assert!(bytes >= f64::from(1 << 20) && bytes < f64::from(3 << 19), "{bytes} bytes in {run}");
        }
    }
}

#[test]
fn an_interrupted_lab_leaves_nothing_behind() {
    if !is_root() {
        return skipped("needs root");
    }
    let tree = TreeFixture::new(TREE);
    for signal in [Signal::INT, Signal::TERM] {
        // Thirteen seconds, were it not interrupted.
        interrupt(&tree, &["--rate", "5mbit"], "shoal/1/store/packs", signal);
        // As many, after the four of ours.
        interrupt(&tree, &["--rate", "20mbit", "--with", "rsync"], "rsync/1/target", signal);
    }
}

/// Bytes on disk of what lies below a folder just now.
fn bytes_below(folder: &Path) -> u64 {
    let entries = fs::read_dir(folder).into_iter().flatten().flatten();
    let bytes = entries.map(|entry| match entry.metadata() {
        Ok(metadata) if metadata.is_dir() => bytes_below(&entry.path()),
        Ok(metadata) => metadata.blocks() * 512,
        // Gone, or called otherwise by now.
        Err(_) => 0,
    });
    bytes.sum()
}

/// Interrupts a lab when much of the tree, and not all, has come to this folder of its own.
fn interrupt(tree: &TreeFixture, arguments: &[&str], folder: &str, signal: Signal) {
    let dir = TempDir::new().unwrap();
    let process = lab(&tree.path(), &dir, arguments);
    let pid = process.pid();
    let folder = dir.path().join(format!("shoal-lab-{pid}")).join(folder);
    let mut looks = (0..LOOKS_MAX).map(|_| (sleep(Duration::from_millis(10)), bytes_below(&folder)).1);
    assert!(looks.any(|bytes| bytes >= UNDER_WAY_BYTES), "nothing comes to {}", folder.display());
    // Six namespaces, a folder, and the programs of five hosts.
    assert!(left_behind(pid, dir.path()).len() >= 12);
    kill_process(Pid::from_raw(pid.cast_signed()).unwrap(), signal).unwrap();
    let finished = process.finish();
    assert_eq!(finished.status.code(), Some(1), "{finished:?}");
    assert!(finished.stderr.concat().contains("interrupted"), "{finished:?}");
    assert_eq!(left_behind(pid, dir.path()), Vec::<String>::new());
}
