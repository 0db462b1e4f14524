//! Peers of one process over real loopback connections: what the driver promises, without files or processes.

#![expect(clippy::unwrap_used, reason = "a test")]

#[path = "swarm/member.rs"]
mod member;

#[path = "swarm/limits.rs"]
mod limits;

#[path = "swarm/loss.rs"]
mod loss;

#[path = "swarm/parts.rs"]
mod parts;

use std::sync::Arc;
use std::time::Duration;

use member::{Collected, Member, Shelf, image, within};
use shoal_node::block::EncodedBlock;
use shoal_node::peer::{
    BoxError, Error, FleetConfig, Keypair, Limits, LookupError, MembersConfig, Peer, PeerConfig, PeerId,
    PeerRole, PieceSink, StoreOnly,
};
use shoal_node::store::Store;
use shoal_proto::image::PieceIndex;
use shoal_proto::ticket::{HostPort, SwarmSecret};
use shoal_proto::wire::Query;
use shoal_proto::zone::Zone;

struct Full;

impl PieceSink for Full {
    fn write(&self, _: PieceIndex, _: &[u8]) -> Result<(), BoxError> {
        Err("no space left".into())
    }
}

struct Panicking;

impl PieceSink for Panicking {
    fn write(&self, _: PieceIndex, _: &[u8]) -> Result<(), BoxError> {
        panic!("the sink has a hole")
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn nodes_fetch_every_piece_once_and_the_seeder_is_replicated() {
    let (list, blocks, raw) = image(40);
    let seeder = Member::start(PeerRole::Seeder, 1, Shelf(Some(list.clone())), &blocks, &[]).await;
    let mut nodes = Vec::new();
    for _ in 0..4 {
        let node = Member::start(PeerRole::Node, 1, Shelf(None), &[], &[&seeder]).await;
        let sink = Arc::new(Collected::default());
        let trade = node.fetch(&list, sink.clone()).await;
        nodes.push((node, sink, trade));
    }
    let mut kept = Vec::new();
    for (node, sink, trade) in nodes {
        within(trade.completed()).await.unwrap();
        let mut written = std::mem::take(&mut *sink.0.lock().unwrap());
        written.sort();
        let expected: Vec<_> = list.indexes().zip(raw.iter().cloned()).collect();
        assert!(written == expected, "every piece once, as it was");
        assert!(list.indexes().all(|piece| node.store.contains(&list.piece(piece).cid)));
        kept.push(node);
    }
    within(seeder.peer.replicated()).await.unwrap();
    let sent = seeder.peer.status().await.unwrap().traffic.sent_bytes;
    let compressed: u64 = blocks.iter().map(|block| block.payload.len() as u64).sum();
    assert!(sent <= compressed * 3 / 2, "{sent} bytes sent for {compressed}");
}

#[tokio::test(flavor = "multi_thread")]
async fn an_outsiders_handshake_fails_and_says_so() {
    let (list, blocks, _) = image(1);
    let seeder = Member::start(PeerRole::Seeder, 1, Shelf(Some(list)), &blocks, &[]).await;
    let outsider = Member::start(PeerRole::Node, 2, Shelf(None), &[], &[&seeder]).await;
    let query = Query::Name("debian".parse().unwrap());
    let error = within(outsider.peer.lookup(query, |_| Ok(()))).await.unwrap_err();
    assert!(matches!(error, LookupError::OtherSwarm(_)), "{error}");
    assert_eq!(outsider.peer.status().await.unwrap().neighbours, 0);
    assert_eq!(seeder.peer.status().await.unwrap().neighbours, 0);
}

#[tokio::test(flavor = "multi_thread")]
async fn an_image_that_the_seeder_lacks_is_unknown() {
    let seeder = Member::start(PeerRole::Seeder, 1, Shelf(None), &[], &[]).await;
    let node = Member::start(PeerRole::Node, 1, Shelf(None), &[], &[&seeder]).await;
    let query = Query::Name("debian".parse().unwrap());
    let error = within(node.peer.lookup(query, |_| Ok(()))).await.unwrap_err();
    assert_eq!(error.to_string(), "the seeder has no image debian");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_corrupt_block_is_refused_and_fetched_from_another_peer() {
    let (list, mut blocks, _) = image(6);
    let seeder = Member::start(PeerRole::Seeder, 1, Shelf(Some(list.clone())), &blocks, &[]).await;
    blocks[3] = EncodedBlock { cid: blocks[3].cid, ..EncodedBlock::encode(&[7; 100_000], 3) };
    let liar = Member::start(PeerRole::Node, 1, Shelf(None), &blocks, &[]).await;
    let _serving = liar.hold(&list, Arc::new(StoreOnly)).await;
    let sink = Arc::new(Collected::default());
    let node = Member::start(PeerRole::Node, 1, Shelf(None), &[], &[&liar]).await;
    let trade = node.fetch(&list, sink.clone()).await;
    // Only the liar is there until it was caught: the wrong block is sure to be asked of it.
    let caught = async {
        while node.peer.status().await.unwrap().traffic.corrupt_bytes == 0 {
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    };
    within(caught).await;
    assert!(sink.0.lock().unwrap().iter().all(|(piece, _)| piece.get() != 3));
    drop(trade);
    let second = Member::start(PeerRole::Node, 1, Shelf(None), &[], &[&seeder, &liar]).await;
    let trade = second.fetch(&list, Arc::new(StoreOnly)).await;
    within(trade.completed()).await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_sink_that_fails_fails_the_trade() {
    let (list, blocks, _) = image(3);
    let seeder = Member::start(PeerRole::Seeder, 1, Shelf(Some(list.clone())), &blocks, &[]).await;
    let node = Member::start(PeerRole::Node, 1, Shelf(None), &[], &[&seeder]).await;
    let trade = node.fetch(&list, Arc::new(Full)).await;
    let error = within(trade.completed()).await.unwrap_err();
    assert!(matches!(error, Error::Sink { .. }), "{error}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_sink_that_panics_fails_the_trade_and_not_the_peer() {
    let (list, blocks, _) = image(20);
    let seeder = Member::start(PeerRole::Seeder, 1, Shelf(Some(list.clone())), &blocks, &[]).await;
    let node = Member::start(PeerRole::Node, 1, Shelf(None), &[], &[&seeder]).await;
    let trade = node.fetch(&list, Arc::new(Panicking)).await;
    let error = within(trade.completed()).await.unwrap_err().to_string();
    assert!(error.starts_with("a thread that verified piece "), "{error}");
    assert!(error.ends_with(" panicked: the sink has a hole"), "{error}");
    // More pieces than threads: those that panicked are still there.
    node.reaches(|trade| trade.held == 20).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn peers_tell_of_peers_so_that_the_swarm_outlives_its_seeder() {
    let (list, blocks, _) = image(30);
    let seeder = Member::start(PeerRole::Seeder, 1, Shelf(Some(list.clone())), &blocks, &[]).await;
    let first = Member::start(PeerRole::Node, 1, Shelf(None), &[], &[&seeder]).await;
    within(first.fetch(&list, Arc::new(StoreOnly)).await.completed()).await.unwrap();
    let second = Member::start(PeerRole::Node, 1, Shelf(None), &[], &[&seeder]).await;
    let met = async {
        while second.peer.status().await.unwrap().neighbours < 2 {
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    };
    within(met).await;
    let Member { peer, .. } = seeder;
    peer.stop().await;
    within(second.fetch(&list, Arc::new(StoreOnly)).await.completed()).await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_port_in_use_is_named() {
    let first = Member::start(PeerRole::Node, 1, Shelf(None), &[], &[]).await;
    let dir = tempfile::tempdir().unwrap();
    let store = Arc::new(Store::open(dir.path()).unwrap());
    let config = PeerConfig {
        key: Keypair::generate_ed25519(),
        secret: SwarmSecret::from_bytes([1; 32]),
        role: PeerRole::Node,
        listen: first.peer.addresses().to_vec(),
        rack: Zone::UNKNOWN,
        bootstrap: Vec::<(PeerId, Vec<HostPort>)>::new(),
        limits: Limits::default(),
        members: MembersConfig::default(),
        fleet: FleetConfig::default(),
    };
    let error =
        Peer::start(config, store.clone(), store, Arc::new(Shelf(None))).await.unwrap_err().to_string();
    let address = first.peer.addresses()[0];
    assert!(error.starts_with(&format!("cannot listen on {address}: ")), "{error}");
}
