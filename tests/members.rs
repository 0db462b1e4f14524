//! Who may join, as the operator decides: nobody unapproved, and nobody any more whose key was revoked.

use std::fs;
use std::net::SocketAddr;

use harness::{DEADLINE, Installing, Node, Process, Publisher, Server, Sizes, TreeFixture, text};
use serde_json::Value;
use shoal_proto::exchange::{Announcement, Bitfield, Message};
use shoal_proto::image::PieceList;
use shoal_proto::signing::Keypair;
use shoal_proto::ticket::{SwarmSecret, Ticket};
use shoal_proto::wire::{Frame, Hello, PeerRole, Query, TradeFrame};
use shoal_proto::zone::Zone;

use crate::assert_same;
use crate::liars::liar::Connection;
use crate::liars::{lists_of, status};

const TREE: Sizes = Sizes { noise_bytes: 2 << 20, small_files: 20 };

fn nodes(publisher: &Publisher, arguments: &[&str]) -> Value {
    let arguments = [&["nodes"], arguments, &["--json"]].concat();
    serde_json::from_str(&publisher.run(&arguments).expect_success().stdout.concat()).unwrap()
}

pub(crate) fn key_of(node: &Node) -> Keypair {
    let text = fs::read_to_string(node.data().join("key")).unwrap();
    let byte = |at: usize| u8::from_str_radix(&text[2 * at..2 * at + 2], 16).unwrap();
    Keypair::ed25519_from_bytes((0..32).map(byte).collect::<Vec<u8>>()).unwrap()
}

fn named(list: &Value, peer: &str) -> bool {
    list.as_array().unwrap().iter().any(|entry| entry == peer || entry["peer"] == peer)
}

/// Asks for everything that a member may ask for; returns all that is said before the connection ends.
pub(crate) async fn ask_for_all(
    address: SocketAddr,
    key: &Keypair,
    secret: &SwarmSecret,
    lists: &[PieceList],
) -> Vec<Frame> {
    let mut connection = Connection::open(address, key, secret).await.unwrap();
    let hello = Hello { role: PeerRole::Node, ports: vec![9], rack: Zone::UNKNOWN, members: 0 };
    let query = Frame::Query(Query::Name("tree".parse().unwrap()));
    let mut frames = vec![Frame::Hello(hello), Frame::PeersWanted, query];
    for (number, list) in (0..).zip(lists) {
        let none = Announcement::Held(Bitfield::empty(list.len()));
        frames.push(Frame::Join { exchange: number, list: list.name() });
        frames.push(Frame::Trade(TradeFrame::new(number, Message::Announce(none))));
    }
    // It may hang up before all is said.
    let _ = connection.say(frames).await;
    let mut heard = Vec::new();
    let hearing = async {
        while let Ok(frame) = connection.hear().await {
            heard.push(frame);
        }
    };
    let hung_up = tokio::time::timeout(DEADLINE, hearing).await;
    assert!(hung_up.is_ok(), "nobody hangs up, and this was said: {heard:?}");
    heard
}

fn address(ticket: &Ticket) -> SocketAddr {
    ticket.addresses[0].to_string().parse().unwrap()
}

#[test]
fn an_unapproved_node_says_with_which_key_it_waits_and_goes_on_once_it_is_approved() {
    let tree = TreeFixture::new(TREE);
    let publisher = Publisher::new();
    publisher.capture(&tree.path(), "tree");
    let lists = lists_of(&publisher, "tree");
    assert_eq!(nodes(&publisher, &["policy", "approve"])["number"], 1);
    let server = publisher.serve(&[]);
    assert_eq!(server.ticket.parse::<Ticket>().unwrap().members, 1);

    let (first, second) = (Node::new(), Node::new());
    let waiting = [&first, &second].map(|node| node.install(&server.ticket, "tree"));
    let line = waiting[0].process.stderr_line(|line| line.contains("waits for approval"));
    let key = key_of(&first).public().to_peer_id().to_string();
    assert!(line.contains(&format!("shoal-seeder nodes approve {key}")), "{line}");
    waiting[1].process.stderr_line(|line| line.contains("waits for approval"));
    let known = status(&first);
    assert_eq!((&known["neighbours"], &known["members"]), (&0.into(), &0.into()), "{known}");
    assert!(known["lists"].as_array().unwrap().is_empty() && text(&known, "trouble").contains(&key));

    let report = nodes(&publisher, &["list"]);
    assert!(named(&report["waiting"], &key) && report["policy"] == "approve", "{report}");
    let report = nodes(&publisher, &["approve", &key]);
    assert!(named(&report["approved"], &key) && !named(&report["waiting"], &key), "{report}");
    waiting[0].report();
    assert_same(&tree.path(), &first.target());
    assert_eq!(status(&first)["members"], 2);

    // The other one still waits, at the seeder and at the node that knows the image by now.
    let other = key_of(&second).public().to_peer_id().to_string();
    assert!(named(&nodes(&publisher, &["list"])["waiting"], &other));
    let secret = server.ticket.parse::<Ticket>().unwrap().secret;
    let heard = runtime().block_on(ask_for_all(reach(&first), &key_of(&second), &secret, &lists));
    assert_eq!(heard, [Frame::Barred { revoked: false }]);
}

#[test]
fn a_revoked_key_learns_nothing_from_anybody_not_even_after_an_older_list_comes_back() {
    let tree = TreeFixture::new(TREE);
    let publisher = Publisher::new();
    publisher.capture(&tree.path(), "tree");
    let lists = lists_of(&publisher, "tree");
    let server = publisher.serve(&[]);
    let ticket: Ticket = server.ticket.parse().unwrap();
    let (bad, good) = (Node::new(), Node::new());
    let serving: Vec<Installing> =
        [&bad, &good].map(|node| node.install(&server.ticket, "tree")).into_iter().collect();
    serving.iter().for_each(|installing| drop(installing.report()));
    let revoked = key_of(&bad).public().to_peer_id().to_string();
    let another = Keypair::generate_ed25519().public().to_peer_id().to_string();
    nodes(&publisher, &["revoke", &another]);
    let before = fs::read(publisher.data().join("members")).unwrap();

    let report = nodes(&publisher, &["revoke", &revoked]);
    assert!(named(&report["revoked"], &revoked) && !named(&report["connected"], &revoked), "{report}");
    serving[0].process.stderr_line(|line| line.contains("the publisher revoked this node's key"));
    serving[1]
        .process
        .stderr_line(|line| line.contains("a new list of members") && line.contains("number=2"));

    let runtime = runtime();
    let learns_nothing = |place: SocketAddr| {
        let heard = runtime.block_on(ask_for_all(place, &key_of(&bad), &ticket.secret, &lists));
        assert_eq!(heard, [Frame::Barred { revoked: true }], "at {place}");
    };
    learns_nothing(address(&ticket));
    learns_nothing(reach(&good));
    drop(serving);

    // The node itself is told, and gives up.
    let fresh = bad.target().with_file_name("fresh");
    fs::create_dir(&fresh).unwrap();
    let mut again = bad.command(&["install", &server.ticket, "--image", "tree", "--listen", "127.0.0.1:0"]);
    again.arg("--target").arg(&fresh);
    let finished = Process::start(again).finish();
    let said = finished.stderr.join("\n");
    assert!(
        !finished.status.success() && said.contains(&format!("revoked this node's key {revoked}")),
        "{said}"
    );
    assert!(fs::read_dir(&fresh).unwrap().next().is_none(), "something was installed");

    // The seeder comes back with the decisions of a backup: who knows newer ones keeps to them, and tells it.
    let Server { process, .. } = server;
    process.terminate();
    process.finish().expect_success();
    fs::write(publisher.data().join("members"), before).unwrap();
    let server = publisher.serve(&[]);
    let restarted =
        good.install_command(&server.ticket, &["--image", "tree", "--seed-for", "1h", "-v", "--force"]);
    let restarted = Installing { process: Process::start(restarted) };
    restarted.report();
    server.process.stderr_line(|line| line.contains("a new list of members") && line.contains("number=2"));
    learns_nothing(reach(&good));
    learns_nothing(address(&server.ticket.parse().unwrap()));
    assert!(named(&nodes(&publisher, &["list"])["revoked"], &revoked));
}

pub(crate) fn runtime() -> tokio::runtime::Runtime {
    tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build().unwrap()
}

/// Where a node at work can be reached.
fn reach(node: &Node) -> SocketAddr {
    status(node)["addresses"][0].as_str().unwrap().parse().unwrap()
}
