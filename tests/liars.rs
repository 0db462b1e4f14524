//! A third of the peers lie, and the others finish all the same.

pub(crate) mod liar;

use std::collections::BTreeMap;
use std::net::SocketAddr;

use harness::{Installing, Node, Process, Publisher, Sizes, TreeFixture, text};
use liar::{Liar, Lie};
use serde_json::Value;
use shoal_node::store::Store;
use shoal_proto::image::PieceList;
use shoal_proto::ticket::Ticket;
use shoal_seeder::catalog::Catalog;
use shoal_seeder::home::Home;
use shoal_seeder::lists::Lists;

use crate::assert_same;

const HONEST: usize = 8;
const LIES: [Lie; 4] = [Lie::WrongBytes, Lie::Phantom, Lie::Silence, Lie::Flood];
/// Slow enough that a peer which never answers is found out before everything is there.
const LIMIT: [&str; 2] = ["--limit-up", "8mbit"];

/// The piece lists of an image, which every member of the swarm can learn.
pub(crate) fn lists_of(publisher: &Publisher, image: &str) -> Vec<PieceList> {
    let home = Home::open(publisher.data()).unwrap();
    let catalog = Catalog::open(&home).unwrap();
    let image = catalog.find(&image.parse().unwrap()).unwrap();
    let store = Store::open(&home.store_dir()).unwrap();
    let content = Lists::open(&home).unwrap().content(image, &store).unwrap();
    vec![(**image.root.manifest()).clone(), (*content).clone()]
}

pub(crate) fn status(node: &Node) -> Value {
    let finished = Process::start(node.command(&["status", "--json"])).finish();
    serde_json::from_str(&finished.expect_success().stdout.concat()).unwrap()
}

#[test]
fn eight_of_twelve_finish_while_four_lie_and_the_liars_are_banned_by_name() {
    let tree = TreeFixture::new(Sizes { noise_bytes: 16 << 20, small_files: 50 });
    let publisher = Publisher::new();
    publisher.capture(&tree.path(), "tree");
    let lists = lists_of(&publisher, "tree");
    let server = publisher.serve(&LIMIT);
    let ticket: Ticket = server.ticket.parse().unwrap();
    let address: SocketAddr = ticket.addresses[0].to_string().parse().unwrap();

    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build().unwrap();
    let _entered = runtime.enter();
    let liars = LIES.map(|lie| Liar::start(lie, &ticket.secret, (ticket.seeder, address), lists.clone()));

    let nodes: Vec<Node> = (0..HONEST).map(|_| Node::new()).collect();
    let arguments = [&["--image", "tree", "--seed-for", "1h", "-v"][..], &LIMIT].concat();
    let start = |node: &Node| Process::start(node.install_command(&server.ticket, &arguments));
    let installing: Vec<Installing> = nodes.iter().map(|node| Installing { process: start(node) }).collect();
    let mut banned: BTreeMap<String, Vec<String>> = BTreeMap::new();
    for (node, installing) in nodes.iter().zip(&installing) {
        installing.report();
        assert_same(&tree.path(), &node.target());
        for ban in status(node)["banned"].as_array().unwrap() {
            let (peer, why) = (text(ban, "peer"), text(ban, "why"));
            installing.process.stderr_line(|line| line.contains("is shunned") && line.contains(&peer));
            banned.entry(peer).or_default().push(why);
        }
    }
    for Liar { id, lie } in liars {
        let reasons = banned.remove(&id.to_string()).unwrap_or_default();
        let expected = match lie {
            Lie::WrongBytes => &["sent a piece whose bytes do not match its name"][..],
            Lie::Phantom | Lie::Silence => &["grants pieces again and again and sends none"],
            Lie::Flood => &["it floods its control stream", "a control frame of 268435455 bytes"],
        };
        for expected in expected {
            assert!(reasons.iter().any(|why| why.starts_with(expected)), "{lie:?}: {reasons:?}");
        }
        assert!(reasons.len() > HONEST / 2, "{lie:?} is banned by {} nodes", reasons.len());
        if lie == Lie::Flood {
            let id = id.to_string();
            server.process.stderr_line(|line| line.contains("is shunned") && line.contains(&id));
        }
    }
    assert!(banned.is_empty(), "honest peers are banned: {banned:?}");
}
