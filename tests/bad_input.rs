//! What cannot work says so in one line that names the thing, and leaves nothing that a second try trips over.

use std::fs;
use std::net::TcpListener;
use std::os::unix::fs::PermissionsExt;
use std::path::Path;
use std::process::{Command, Stdio};

use harness::{Finished, Node, Process, Publisher, Server, Sizes, TreeFixture, is_root, skipped};
use shoal_proto::ticket::Ticket;

use crate::assert_same;

const TREE: Sizes = Sizes { noise_bytes: 3 << 20, small_files: 30 };
const FAILED: i32 = 1;
const USAGE: i32 = 2;

/// The one line that says why, and the exit code that goes with it.
fn assert_refused(finished: &Finished, code: i32, names: &[&str]) {
    let stderr = finished.stderr.join("\n");
    assert_eq!(finished.status.code(), Some(code), "{stderr}");
    let is_reason = |line: &&String| line.starts_with("shoal-") || line.starts_with("error:");
    let reasons: Vec<&String> = finished.stderr.iter().filter(is_reason).collect();
    let [reason] = reasons[..] else { panic!("{} lines say why:\n{stderr}", reasons.len()) };
    for name in names {
        assert!(reason.contains(name), "{name} is not named in: {reason}");
    }
    assert!(!stderr.contains("panicked"), "{stderr}");
    assert_eq!(finished.stdout, [""; 0], "a failure has no result");
}

/// A served image named `tree`.
fn served() -> (TreeFixture, Publisher, Server) {
    let tree = TreeFixture::new(TREE);
    let publisher = Publisher::new();
    publisher.capture(&tree.path(), "tree");
    let server = publisher.serve(&[]);
    (tree, publisher, server)
}

fn install(node: &Node, ticket: &str, arguments: &[&str]) -> Finished {
    let arguments = [&["--seed-for", "0s"], arguments].concat();
    Process::start(node.install_command(ticket, &arguments)).finish()
}

#[test]
fn a_source_that_does_not_exist() {
    let publisher = Publisher::new();
    let folder = tempfile::tempdir().unwrap();
    let source = folder.path().join("not yet");
    let finished = publisher.run(&["capture", source.to_str().unwrap(), "tree", "--json"]);
    assert_refused(&finished, FAILED, &[source.to_str().unwrap(), "No such file or directory"]);
    fs::create_dir(&source).unwrap();
    publisher.capture(&source, "tree");
}

#[test]
fn a_source_that_is_a_file() {
    let publisher = Publisher::new();
    let source = tempfile::NamedTempFile::new().unwrap();
    let source = source.path().to_str().unwrap();
    assert_refused(&publisher.run(&["capture", source, "tree", "--json"]), FAILED, &[source]);
}

#[test]
fn an_unreadable_file_during_capture() {
    if is_root() {
        skipped("needs an ordinary user: root may read everything");
        return;
    }
    let tree = TreeFixture::new(TREE);
    let secret = tree.path().join("small/3/3/3.txt");
    fs::set_permissions(&secret, fs::Permissions::from_mode(0o000)).unwrap();
    let publisher = Publisher::new();
    let path = tree.path();
    let finished = publisher.run(&["capture", path.to_str().unwrap(), "tree", "--json"]);
    assert_refused(&finished, FAILED, &["small/3/3/3.txt", "Permission denied"]);
    let images = publisher.run(&["images", "--json"]).expect_success();
    assert!(!images.stdout.concat().contains("\"tree\""), "half an image is listed: {:?}", images.stdout);
    fs::set_permissions(&secret, fs::Permissions::from_mode(0o644)).unwrap();
    publisher.capture(&tree.path(), "tree");
}

#[test]
fn a_port_in_use() {
    let publisher = Publisher::new();
    let taken = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = taken.local_addr().unwrap();
    let (text, port) = (address.to_string(), address.port().to_string());
    let finished = publisher.run(&["serve", "--listen", &text, "--json"]);
    assert_refused(&finished, FAILED, &["127.0.0.1", &port, "Address already in use"]);
    drop(taken);
    let server = Process::start(publisher.command(&["serve", "--listen", &text, "--json"]));
    server.stdout_line(|line| line.contains("\"listening\""));
}

#[test]
fn a_seeder_started_twice() {
    let publisher = Publisher::new();
    let _server = publisher.serve(&[]);
    let finished = publisher.run(&["serve", "--listen", "127.0.0.1:0", "--json"]);
    assert_refused(&finished, FAILED, &["in use"]);
}

#[test]
fn the_status_of_a_node_that_is_not_at_work() {
    let (_tree, _publisher, server) = served();
    let node = Node::new();
    let status = || Process::start(node.command(&["status", "--json"])).finish();
    let nobody = ["no shoal-node is at work", node.data().to_str().unwrap()].map(str::to_owned);
    let names = nobody.each_ref().map(String::as_str);
    assert_refused(&status(), FAILED, &names);
    let installing = node.install(&server.ticket, "tree");
    installing.report();
    status().expect_success();
    // Its socket stays behind.
    installing.process.kill();
    assert!(node.data().join("control").exists());
    assert_refused(&status(), FAILED, &names);
}

#[test]
fn a_key_that_is_none_or_the_seeders_own() {
    let publisher = Publisher::new();
    let finished = publisher.run(&["nodes", "approve", "node07"]);
    assert_refused(&finished, USAGE, &["'node07'", "KEY"]);
    let own = publisher.serve(&[]).peer;
    assert_refused(&publisher.run(&["nodes", "revoke", &own]), FAILED, &[&own, "the seeder's own key"]);
    assert_refused(&publisher.run(&["secret", "finish"]), FAILED, &["the secret is not being rotated"]);
}

#[test]
fn a_target_that_does_not_exist() {
    let (tree, _publisher, server) = served();
    let node = Node::new();
    fs::remove_dir(node.target()).unwrap();
    let finished = install(&node, &server.ticket, &["--image", "tree"]);
    assert_refused(&finished, FAILED, &[node.target().to_str().unwrap()]);
    assert!(!node.target().exists());
    fs::create_dir(node.target()).unwrap();
    install(&node, &server.ticket, &["--image", "tree"]).expect_success();
    assert_same(&tree.path(), &node.target());
}

#[test]
fn a_target_that_is_not_empty() {
    let (tree, _publisher, server) = served();
    let node = Node::new();
    fs::write(node.target().join("mine"), b"precious").unwrap();
    let finished = install(&node, &server.ticket, &["--image", "tree"]);
    assert_refused(&finished, FAILED, &[node.target().to_str().unwrap(), "--force"]);
    assert_eq!(fs::read(node.target().join("mine")).unwrap(), b"precious");
    install(&node, &server.ticket, &["--image", "tree", "--force"]).expect_success();
    assert_same(&tree.path(), &node.target());
}

#[test]
fn a_ticket_cut_short() {
    let (tree, _publisher, server) = served();
    let node = Node::new();
    let length = server.ticket.len();
    for cut in [0, 3, 8, length / 3, length / 2, length - 10, length - 1] {
        let finished = install(&node, &server.ticket[..cut], &["--image", "tree"]);
        assert_refused(&finished, USAGE, &["ticket"]);
    }
    assert_eq!(fs::read_dir(node.target()).unwrap().count(), 0);
    install(&node, &server.ticket, &["--image", "tree"]).expect_success();
    assert_same(&tree.path(), &node.target());
}

#[test]
fn a_ticket_of_another_swarm() {
    // Another seeder had the address before this one: what an operator meets who mixes up two tickets.
    let other = Publisher::new();
    let server = other.serve(&[]);
    let old_ticket = server.ticket.clone();
    server.process.kill();

    let tree = TreeFixture::new(TREE);
    let publisher = Publisher::new();
    publisher.capture(&tree.path(), "tree");
    let listen = address_of(&old_ticket);
    let server = Process::start(publisher.command(&["serve", "--listen", &listen, "--json"]));
    let listening = server.stdout_line(|line| line.contains("\"listening\""));
    let node = Node::new();
    assert_refused(&install(&node, &old_ticket, &["--image", "tree"]), FAILED, &["another swarm"]);

    let listening: serde_json::Value = serde_json::from_str(&listening).unwrap();
    install(&node, listening["ticket"].as_str().unwrap(), &["--image", "tree"]).expect_success();
    assert_same(&tree.path(), &node.target());
}

/// ADDRESS:PORT of the first address in a ticket.
fn address_of(ticket: &str) -> String {
    let ticket: Ticket = ticket.parse().unwrap();
    format!("{}:{}", ticket.addresses[0].host, ticket.addresses[0].port)
}

#[test]
fn an_image_name_that_nobody_knows() {
    let (tree, _publisher, server) = served();
    let node = Node::new();
    assert_refused(&install(&node, &server.ticket, &["--image", "three"]), FAILED, &["three"]);
    install(&node, &server.ticket, &["--image", "tree"]).expect_success();
    assert_same(&tree.path(), &node.target());
}

#[test]
fn no_image_name_at_all() {
    let (_tree, _publisher, server) = served();
    let finished = install(&Node::new(), &server.ticket, &[]);
    assert_eq!(finished.stdout, [""; 0]);
    assert!(matches!(finished.status.code(), Some(FAILED | USAGE)));
    assert!(finished.stderr.concat().contains("--image"), "{:?}", finished.stderr);
}

/// A target on a file system of its own, of a few megabytes. Unmounted when dropped.
struct SmallTarget<'a>(&'a Node);

impl<'a> SmallTarget<'a> {
    /// `None` when this process may not mount.
    fn mount(node: &'a Node, megabytes: u32) -> Option<Self> {
        let options = format!("size={megabytes}m,mode=755");
        mount(&["-t", "tmpfs", "-o", &options, "tmpfs"], &node.target()).then(|| Self(node))
    }

    fn grow(&self, megabytes: u32) {
        assert!(mount(&["-o", &format!("remount,size={megabytes}m")], &self.0.target()));
    }
}

impl Drop for SmallTarget<'_> {
    fn drop(&mut self) {
        let _ = Command::new("umount").arg("--lazy").arg(self.0.target()).status();
    }
}

fn mount(arguments: &[&str], target: &Path) -> bool {
    let status = Command::new("mount").args(arguments).arg(target).stderr(Stdio::null()).status();
    status.is_ok_and(|status| status.success())
}

#[test]
fn a_full_target_disk() {
    let (_tree, _publisher, server) = served();
    let node = Node::new();
    let Some(disk) = SmallTarget::mount(&node, 2) else {
        skipped("needs root");
        return;
    };
    let finished = install(&node, &server.ticket, &["--image", "tree"]);
    assert_refused(&finished, FAILED, &[node.target().to_str().unwrap(), "needs"]);
    disk.grow(200);
    install(&node, &server.ticket, &["--image", "tree"]).expect_success();
    assert_eq!(fs::metadata(node.target().join("noise")).unwrap().len(), TREE.noise_bytes);
}
