//! A golden client: its tree reaches the seeder over the swarm, whole the first time, and then only what is new.

use std::fs;
use std::path::Path;
use std::process::Command;

use harness::{Node, Process, Publisher, Server, Sizes, TreeFixture, number, text};
use serde_json::Value;

use crate::assert_same;

const TREE: Sizes = Sizes { noise_bytes: 6 << 20, small_files: 200 };

/// Offers a tree under the name `gold`, and returns once the seeder knows.
fn offer(node: &Node, server: &Server, tree: &Path) -> Process {
    let mut command = node.command(&["offer", "--to", &server.ticket, "--name", "gold", "--json", "-v"]);
    command.args(["--listen", "127.0.0.1:0"]).arg(tree);
    let offering = Process::start(command);
    offering.stdout_line(|line| line.contains("offered"));
    offering
}

fn capture(publisher: &Publisher, more: &[&str]) -> Value {
    let arguments = [&["capture", "golden:gold", "image", "--json"], more].concat();
    serde_json::from_str(&publisher.run(&arguments).expect_success().stdout.concat()).unwrap()
}

#[test]
fn a_golden_clients_tree_is_the_image_that_a_capture_there_would_make() {
    let tree = TreeFixture::new(TREE);
    let (publisher, golden) = (Publisher::new(), Node::new());
    let server = publisher.serve(&[]);
    let local = publisher.capture(&tree.path(), "local");
    let _offering = offer(&golden, &server, &tree.path());
    let offers = publisher.run(&["offers", "--json"]).expect_success().stdout.concat();
    let offers: Value = serde_json::from_str(&offers).unwrap();
    assert_eq!(offers["offers"][0]["name"], "gold");
    let captured = capture(&publisher, &[]);
    assert_eq!(captured["image"], local["image"]);
    assert_eq!((&captured["entries"], &captured["sockets"]), (&local["entries"], &local["sockets"]));
    let shown = publisher.run(&["show", "image", "--json"]).expect_success().stdout.concat();
    let shown: Value = serde_json::from_str(&shown).unwrap();
    let source = text(&shown, "source");
    let path = tree.path().canonicalize().unwrap();
    assert!(source.starts_with("golden:gold (") && source.contains(path.to_str().unwrap()), "{source}");

    let node = Node::new();
    node.install(&server.ticket, "image").report();
    assert_same(&tree.path(), &node.target());
}

#[test]
fn a_second_capture_moves_only_what_is_new() {
    let tree = TreeFixture::new(TREE);
    let (publisher, golden) = (Publisher::new(), Node::new());
    let server = publisher.serve(&[]);
    let _offering = offer(&golden, &server, &tree.path());
    let first = capture(&publisher, &[]);
    assert!(number(&first, "received_bytes") > TREE.noise_bytes);
    let same = capture(&publisher, &[]);
    assert_eq!((&same["image"], number(&same, "new_blocks")), (&first["image"], 0));

    fs::write(tree.path().join("new"), harness::Noise::new(5).bytes(700_000)).unwrap();
    fs::remove_file(tree.path().join("text again")).unwrap();
    let second = capture(&publisher, &[]);
    let (received, idle) = (number(&second, "received_bytes"), number(&same, "received_bytes"));
    eprintln!(
        "first capture {} bytes, second {received}, of it {} for 700000 new ones; {} of {} blocks new",
        number(&first, "received_bytes"),
        received - idle,
        number(&second, "new_blocks"),
        number(&second, "blocks"),
    );
    // What every capture says of entries, and the new content.
    assert!(received < idle + 720_000, "{received} bytes, {idle} without a change");
    assert!((1..=4).contains(&number(&second, "new_blocks")), "{second}");
    let node = Node::new();
    node.install(&server.ticket, "image").report();
    assert_same(&tree.path(), &node.target());
}

#[test]
fn excludes_count_on_the_golden_client_and_its_own_key_never_leaves_it() {
    let tree = TreeFixture::new(TREE);
    let (publisher, golden) = (Publisher::new(), Node::new());
    let server = publisher.serve(&[]);
    // Its state lies in the tree that it offers, as that of a machine that offers / does.
    let data = tree.path().join("state");
    let mut command = Command::new(golden.command(&[]).get_program());
    command.args(["offer", "--to", &server.ticket, "--name", "gold", "--json", "--listen", "127.0.0.1:0"]);
    let offering = Process::start({
        command.arg("--data").arg(&data).arg(tree.path());
        command
    });
    offering.stdout_line(|line| line.contains("offered"));
    assert!(data.join("key").exists());
    let captured = capture(&publisher, &["--exclude", "/small/", "--exclude", "/noise"]);
    assert_eq!(number(&captured, "excluded"), 3);
    let node = Node::new();
    node.install(&server.ticket, "image").report();
    for left_out in ["state", "small", "noise"] {
        assert!(!node.target().join(left_out).exists(), "{left_out}");
    }
    assert!(node.target().join("text").exists());
}

#[test]
fn an_offer_outlives_the_seeder_and_a_capture_ends_with_its_golden_client() {
    let tree = TreeFixture::new(Sizes { noise_bytes: 40 << 20, ..TREE });
    let (publisher, golden) = (Publisher::new(), Node::new());
    let server = publisher.serve(&[]);
    let offering = offer(&golden, &server, &tree.path());
    // Killed while its tree is read.
    let capturing = Process::start(publisher.command(&["capture", "golden:gold", "image", "--json"]));
    offering.stdout_line(|line| line.contains("begun"));
    offering.kill();
    let failed = capturing.finish();
    if !failed.status.success() {
        let said = failed.stderr.concat();
        assert!(said.contains("cannot capture the tree of another machine"), "{said}");
        assert!(!publisher.run(&["show", "image"]).status.success(), "nothing is published");
    }
    let unknown = publisher.run(&["capture", "golden:gold", "image"]);
    assert!(unknown.stderr.concat().contains("nobody offers gold"), "{:?}", unknown.stderr);

    let listens = server.ticket.clone();
    let offering = offer(&golden, &server, &tree.path());
    server.process.kill();
    offering.stdout_line(|line| line.contains("ended"));
    // At the same address: the ticket stays good.
    let port = listens.split(':').find_map(|part| part.split(['?', '/', ',']).next()?.parse::<u16>().ok());
    let address = format!("127.0.0.1:{}", port.expect("a ticket names its port"));
    let again = Process::start(publisher.command(&["serve", "--listen", &address, "--json"]));
    again.stdout_line(|line| line.contains("\"listening\""));
    let captured = loop {
        let capture = publisher.run(&["capture", "golden:gold", "image", "--json"]);
        if capture.status.success() {
            break capture;
        }
        assert!(capture.stderr.concat().contains("nobody offers gold"), "{:?}", capture.stderr);
    };
    let captured: Value = serde_json::from_str(&captured.stdout.concat()).unwrap();
    let local = publisher.capture(&tree.path(), "local");
    assert_eq!(captured["image"], local["image"]);
}
