//! A confidential override reaches the hosts that are entitled to it, and nobody else, whatever they say they are.

use std::fs;
use std::net::SocketAddr;

use harness::{DEADLINE, Installing, Node, Process};
use shoal_proto::cid::Cid;
use shoal_proto::exchange::{Announcement, Bitfield, Message};
use shoal_proto::image::PieceList;
use shoal_proto::signing::Keypair;
use shoal_proto::ticket::Ticket;
use shoal_proto::wire::{Frame, Hello, PeerRole, Query, TradeFrame};
use shoal_proto::zone::Zone;

use super::{Site, command, refusal, run};
use crate::liars::liar::Connection;
use crate::liars::{lists_of, status};
use crate::members::{key_of, runtime};

const CLUSTER: &str = r#"
confidential = ["secret"]
[global]
image = "image"
[group.all-nodes]
hosts = "n[1-3]"
overrides = ["public"]
[host.n1]
overrides = ["secret"]
"#;

fn site() -> Site {
    let site = Site::new();
    site.write("image/opt/a", "image");
    site.write("overrides/public/opt/b", "public");
    site.write("overrides/secret/opt/key", "the secret");
    site
}

fn approve(site: &Site, key: &Keypair, host: &str) {
    let key = key.public().to_peer_id().to_string();
    site.publisher.run(&["nodes", "approve", &key, "--host", host]).expect_success();
}

#[test]
fn only_the_bound_key_of_an_entitled_host_gets_a_confidential_override() {
    let site = site();
    let server = site.publish(CLUSTER);
    let (one, two, three) = (Node::new(), Node::new(), Node::new());
    // Nobody is bound: a tree without its secret is no tree.
    let said = refusal(command(&one, "install", &server.ticket, "n1", &[]));
    let key = key_of(&one).public().to_peer_id().to_string();
    assert!(said.contains("secret is confidential, and host n1 has no key yet"), "{said}");
    assert!(said.contains(&format!("shoal-seeder nodes approve {key} --host n1")), "{said}");
    assert!(fs::read_dir(one.target()).unwrap().next().is_none());

    approve(&site, &key_of(&one), "n1");
    run(&one, "install", &server.ticket, "n1", &[]);
    assert_eq!(fs::read_to_string(one.target().join("opt/key")).unwrap(), "the secret");

    // Another key does not pass for the host, and the bound one for no other.
    let said = refusal(command(&two, "install", &server.ticket, "n1", &[]));
    assert!(said.contains("host n1 has another key than this node's"), "{said}");
    let said = refusal(command(&one, "update", &server.ticket, "n2", &[]));
    assert!(said.contains("this node's key is that of host n1"), "{said}");
    // Nor is it to be had by asking for it.
    approve(&site, &key_of(&two), "n2");
    let said = refusal(command(&two, "install", &server.ticket, "n2", &["--override", "secret"]));
    assert!(said.contains("override secret is confidential, and not for host n2"), "{said}");
    run(&two, "install", &server.ticket, "n2", &[]);
    assert!(!two.target().join("opt/key").exists());
    let mut alone = three.command(&["install", &server.ticket, "--alone", "--image", "override:secret"]);
    alone.args(["--listen", "127.0.0.1:0", "--seed-for", "0s"]).arg("--target").arg(three.target());
    let said = refusal(alone);
    assert!(said.contains("no image override:secret"), "{said}");

    // It is taken back with the name.
    approve(&site, &key_of(&three), "n1");
    let said = refusal(command(&one, "update", &server.ticket, "n1", &[]));
    assert!(said.contains("another key"), "{said}");
}

#[test]
fn neither_the_seeder_nor_who_has_it_tells_others_of_a_confidential_override() {
    let site = site();
    site.prepare(CLUSTER);
    let lists = lists_of(&site.publisher, "override:secret");
    let shared = lists_of(&site.publisher, "override:public");
    let server = site.publisher.serve(&[]);
    let ticket: Ticket = server.ticket.parse().unwrap();
    let one = Node::new();
    refusal(command(&one, "install", &server.ticket, "n1", &[]));
    approve(&site, &key_of(&one), "n1");
    let arguments = ["--host", "n1", "--seed-for", "1h", "-v"];
    let serving = Installing { process: Process::start(one.install_command(&server.ticket, &arguments)) };
    serving.report();
    assert!(one.target().join("opt/key").exists());

    let seeder: SocketAddr = ticket.addresses[0].to_string().parse().unwrap();
    let node: SocketAddr = status(&one)["addresses"][0].as_str().unwrap().parse().unwrap();
    for place in [seeder, node] {
        let heard = runtime().block_on(ask(place, &ticket, &lists, &shared));
        let told = |list: &PieceList| {
            heard.iter().any(|frame| matches!(frame, Frame::Join { list: told, .. } if *told == list.name()))
        };
        assert!(shared.iter().all(told), "{place} told nothing of what all may have: {heard:?}");
        assert!(!lists.iter().any(told), "{place} told of the secret: {heard:?}");
        let answered = |frame: &Frame| matches!(frame, Frame::Answer(answer) if answer.root.is_some());
        assert!(!heard.iter().any(answered), "{place} told whose root record it is: {heard:?}");
    }
}

/// Joins every list as a stranger who is a member, and asks for pieces of the secret ones; returns what is said until
/// the last question is answered.
async fn ask(place: SocketAddr, ticket: &Ticket, secret: &[PieceList], shared: &[PieceList]) -> Vec<Frame> {
    let stranger = Keypair::generate_ed25519();
    let mut connection = Connection::open(place, &stranger, &ticket.secret).await.unwrap();
    let hello = Hello { role: PeerRole::Node, ports: vec![9], rack: Zone::UNKNOWN, members: 0 };
    let query = Frame::Query(Query::Name("override:secret".parse().unwrap()));
    let mut frames = vec![Frame::Hello(hello), query];
    for (number, list) in (0..).zip(secret.iter().chain(shared)) {
        let none = Announcement::Held(Bitfield::empty(list.len()));
        frames.push(Frame::Join { exchange: number, list: list.name() });
        frames.push(Frame::Trade(TradeFrame::new(number, Message::Announce(none))));
        if secret.contains(list) {
            let piece = list.indexes().next().unwrap();
            frames.push(Frame::Trade(TradeFrame::new(number, Message::Request(piece))));
        }
    }
    let last = Query::Image(Cid::of(b"nobody has this"));
    frames.push(Frame::Query(last.clone()));
    connection.say(frames).await.unwrap();
    let mut heard = Vec::new();
    let hearing = async {
        while !matches!(heard.last(), Some(Frame::Answer(answer)) if answer.query == last) {
            heard.push(connection.hear().await.unwrap());
        }
    };
    tokio::time::timeout(DEADLINE, hearing).await.unwrap();
    heard
}
