//! A fleet that is refreshed: in waves, with gates, back when it is not well, and whatever happens to the seeder.

mod fleet;

use std::collections::BTreeSet;
use std::fs;

use harness::{Publisher, Sizes, TreeFixture, inodes, number, text};

use crate::assert_same;
use fleet::{Machine, event, events, phase, run, staged, until, waves};

const TREE: Sizes = Sizes { noise_bytes: 1 << 20, small_files: 20 };
const GROUPS: [&str; 3] = ["web", "db", "cache"];
const MACHINES: usize = 24;
/// A machine with an image that says so is ill.
const HEALTH: &str = "health = '! grep -q ill \"$SHOAL_TARGET/state\"'\nconfirm_within = '1s'";

fn tree(state: &str) -> TreeFixture {
    let tree = TreeFixture::new(TREE);
    fs::write(tree.path().join("state"), state).unwrap();
    tree
}

/// The first `count` machines of three groups, each with its agent at work.
fn machines(ticket: &str, count: usize) -> Vec<Machine> {
    let machine = |at: usize| {
        let mut machine =
            Machine::new(ticket, "one", &format!("node{at:02}"), GROUPS[at % GROUPS.len()], HEALTH);
        machine.start();
        machine
    };
    (0..count).map(machine).collect()
}

#[test]
fn a_good_release_goes_through_its_waves_and_a_bad_one_stops_at_the_first_machine() {
    let [one, two, three] = ["one", "two", "ill"].map(tree);
    let publisher = Publisher::new();
    for (tree, name) in [(&one, "one"), (&two, "two"), (&three, "three")] {
        publisher.capture(&tree.path(), name);
    }
    let server = publisher.serve(&[]);
    let machines = machines(&server.ticket, MACHINES);

    assert_eq!(run(&publisher, &["release", "stable", "two"])["number"], 1);
    let all = MACHINES as u64;
    until(&publisher, |status| staged(status, "staged") == all);
    for machine in &machines {
        assert_same(&one.path(), &machine.node.target());
    }
    let start =
        ["rollout", "start", "stable", "--waves", "1,group=web,25%,rest", "--soak", "1s", "--gather", "1s"];
    run(&publisher, &start);
    // In the middle of the second wave, or just before or behind it.
    event(&publisher, |event| event["event"] == "told" && event["wave"] == 1);
    let address = server.address.clone();
    server.process.kill();
    let server = publisher.serve_at(&address, &[]);
    let status = until(&publisher, |status| phase(status, "complete") && staged(status, "confirmed") == all);
    assert_eq!(status["rollouts"][0]["nodes_touched"], all);
    for machine in &machines {
        assert_same(&two.path(), &machine.node.target());
    }
    let good = events(&publisher);
    let told = waves(&good);
    let sizes: Vec<usize> = told.iter().map(Vec::len).collect();
    assert_eq!((sizes[0], sizes[2], sizes.iter().sum::<usize>()), (1, MACHINES / 4, MACHINES), "{told:?}");
    let web: BTreeSet<&String> = machines.iter().map(|machine| &machine.host).step_by(3).collect();
    assert!(told[1].iter().all(|host| web.contains(host)) && sizes[1] >= 7, "{told:?}");
    assert_eq!(told.concat().iter().collect::<BTreeSet<_>>().len(), MACHINES, "somebody was told twice");

    let before: Vec<_> = machines.iter().map(|machine| inodes(&machine.node.target())).collect();
    assert_eq!(run(&publisher, &["release", "stable", "three"])["number"], 2);
    until(&publisher, |status| {
        staged(status, "staged") == all
            && status["nodes"].as_array().unwrap().iter().all(|node| node["release"] == 2)
    });
    run(&publisher, &start);
    let status = until(&publisher, |status| phase(status, "halted") && staged(status, "rolled_back") == 1);
    let rollout = &status["rollouts"][0];
    assert_eq!((number(rollout, "nodes_touched"), staged(&status, "staged")), (1, all - 1), "{rollout:#}");
    let failed = &rollout["failed"][0];
    assert!(text(failed, "why").contains("not well"), "{failed}");
    for (machine, before) in machines.iter().zip(before) {
        // Back to what it was, and nobody else's tree was as much as touched.
        assert_same(&two.path(), &machine.node.target());
        assert_eq!(
            inodes(&machine.node.target()) == before,
            machine.host != text(failed, "host"),
            "{}",
            machine.host
        );
    }
    let bad = events(&publisher).split_off(good.len());
    assert_eq!(waves(&bad), [[text(failed, "host")]]);
    drop(server);
}

#[test]
fn a_refresh_moves_what_changed_and_the_seeder_sends_it_about_once() {
    const NODES: usize = 8;
    let sizes = Sizes { noise_bytes: 48 << 20, small_files: 50 };
    let (old, new) = (TreeFixture::new(sizes), TreeFixture::new(sizes));
    // Three percent of the content, which no compression makes less.
    let noise = harness::Noise::new(7).bytes(48 * (1 << 20) * 3 / 100);
    let changed = noise.len() as u64;
    fs::write(new.path().join("changed"), noise).unwrap();
    let publisher = Publisher::alone();
    publisher.capture(&old.path(), "one");
    publisher.capture(&new.path(), "two");
    let server = publisher.serve(&[]);
    let machines = machines(&server.ticket, NODES);
    let before = until(&publisher, |status| staged(status, "idle") == NODES as u64);

    run(&publisher, &["release", "stable", "two"]);
    run(&publisher, &["rollout", "start", "stable", "--waves", "1,rest", "--soak", "0s", "--gather", "1s"]);
    let status =
        until(&publisher, |status| phase(status, "complete") && staged(status, "confirmed") == NODES as u64);
    let sent = number(&status, "sent_bytes") - number(&before, "sent_bytes");
    println!("{changed} bytes changed, {sent} sent by the seeder");
    assert!(sent * 100 <= changed * 120, "{sent} bytes sent for {changed} that changed");
    for node in status["nodes"].as_array().unwrap() {
        let moved = number(node, "from_seeder_bytes") + number(node, "from_peers_bytes");
        println!("{}: {moved} bytes", node["host"]);
        assert!(moved * 100 <= changed * 115, "{moved} bytes came for {changed} that changed: {node:#}");
    }
    for machine in &machines {
        assert_same(&new.path(), &machine.node.target());
    }
}

#[test]
fn agents_that_are_killed_at_any_stage_go_on_and_need_no_seeder_once_they_were_told() {
    let [one, two] = ["one", "two"].map(tree);
    let publisher = Publisher::new();
    publisher.capture(&one.path(), "one");
    publisher.capture(&two.path(), "two");
    let server = publisher.serve(&[]);
    // Well as soon as somebody says so.
    let gate = tempfile::tempdir().unwrap();
    let extra = format!(
        "health = 'test -e {}/open'\nconfirm_within = '1h'\nneeds_contact = false",
        gate.path().display()
    );
    let mut machine = Machine::new(&server.ticket, "one", "node00", "web", &extra);
    machine.start();
    run(&publisher, &["release", "stable", "two"]);
    until(&publisher, |status| staged(status, "staged") == 1);
    machine.kill();
    assert_eq!((&machine.life()["stage"], &machine.life()["permitted"]), (&"staged".into(), &0.into()));
    machine.start();
    run(&publisher, &["rollout", "start", "stable", "--waves", "rest", "--soak", "0s", "--gather", "0s"]);
    machine.agent().stderr_line(|line| line.contains("confirming"));
    machine.kill();
    assert_same(&two.path(), &machine.node.target());
    server.process.kill();
    machine.start();
    fs::write(gate.path().join("open"), "").unwrap();
    machine.agent().stderr_line(|line| line.contains("stage=confirmed"));
    let life = machine.life();
    assert_eq!((&life["stage"], &life["attempt"]), (&"confirmed".into(), &1.into()));
    assert_same(&two.path(), &machine.node.target());
}
