//! Peers of one process over real loopback connections: what the driver promises, without files or processes.

#![expect(clippy::unwrap_used, reason = "a test")]

use std::net::{Ipv4Addr, SocketAddr};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use shoal_node::block::EncodedBlock;
use shoal_node::peer::{
    Directory, Error, Keypair, ListKind, LookupError, Offer, Peer, PeerConfig, PeerId, PeerRole, PieceSink,
    StoreOnly, TradeHandle,
};
use shoal_node::store::Store;
use shoal_proto::cid::Cid;
use shoal_proto::exchange::Bitfield;
use shoal_proto::image::{Piece, PieceIndex, PieceList};
use shoal_proto::ticket::{HostPort, SwarmSecret};
use shoal_proto::wire::{Answer, Query};
use tempfile::TempDir;

/// Longer than any of these takes on a busy machine: a hang, not a measure.
const DEADLINE: Duration = Duration::from_secs(60);

struct Shelf(Option<Arc<PieceList>>);

impl Directory for Shelf {
    fn answer(&self, _: &Query) -> Option<Answer> {
        None
    }

    fn offer(&self, list: &Cid) -> Option<Offer> {
        let list = self.0.clone().filter(|own| own.name() == *list)?;
        Some(Offer { list, kind: ListKind::Content })
    }
}

struct Member {
    peer: Peer,
    store: Arc<Store>,
    _dir: TempDir,
}

impl Member {
    async fn start(
        role: PeerRole,
        secret: u8,
        shelf: Shelf,
        blocks: &[EncodedBlock],
        bootstrap: &[&Self],
    ) -> Self {
        let dir = tempfile::tempdir().unwrap();
        let store = Arc::new(Store::open(&dir.path().join("store")).unwrap());
        for block in blocks {
            store.put(block).unwrap();
        }
        let config = PeerConfig {
            key: Keypair::generate_ed25519(),
            secret: SwarmSecret::from_bytes([secret; 32]),
            role,
            listen: vec![SocketAddr::from((Ipv4Addr::LOCALHOST, 0))],
            rack: String::new(),
            bootstrap: bootstrap.iter().map(|other| (other.peer.id(), other.addresses())).collect(),
        };
        let peer = Peer::start(config, store.clone(), Arc::new(shelf)).await.unwrap();
        Self { peer, store, _dir: dir }
    }

    fn addresses(&self) -> Vec<HostPort> {
        let address =
            |address: &SocketAddr| HostPort { host: address.ip().to_string(), port: address.port() };
        self.peer.addresses().iter().map(address).collect()
    }

    async fn fetch(&self, list: &Arc<PieceList>, sink: Arc<dyn PieceSink>) -> TradeHandle {
        let held = Bitfield::empty(list.len());
        self.peer.trade(list.clone(), ListKind::Content, held, sink).await.unwrap()
    }
}

#[derive(Default)]
struct Collected(Mutex<Vec<(PieceIndex, Vec<u8>)>>);

impl PieceSink for Collected {
    fn write(&self, piece: PieceIndex, raw: &[u8]) -> Result<(), Box<dyn std::error::Error + Send + Sync>> {
        self.0.lock().unwrap().push((piece, raw.to_vec()));
        Ok(())
    }
}

struct Full;

impl PieceSink for Full {
    fn write(&self, _: PieceIndex, _: &[u8]) -> Result<(), Box<dyn std::error::Error + Send + Sync>> {
        Err("no space left".into())
    }
}

/// `count` blocks of 100 kB that compress a little.
fn image(count: u32) -> (Arc<PieceList>, Vec<EncodedBlock>, Vec<Vec<u8>>) {
    let raw: Vec<Vec<u8>> = (0..count)
        .map(|block| {
            (0..100_000u32)
                .map(|at| blake3::hash(&(at / 64 + block * 7919).to_le_bytes()).as_bytes()[0])
                .collect()
        })
        .collect();
    let blocks: Vec<EncodedBlock> = raw.iter().map(|raw| EncodedBlock::encode(raw, 3)).collect();
    let pieces = blocks.iter().map(|block| Piece { cid: block.cid, raw_bytes: block.raw_bytes }).collect();
    (Arc::new(PieceList::new(pieces).unwrap()), blocks, raw)
}

async fn within<T>(what: impl Future<Output = T>) -> T {
    tokio::time::timeout(DEADLINE, what).await.expect("done before the deadline")
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
    let full = Bitfield::full(list.len());
    let _serving = liar.peer.trade(list.clone(), ListKind::Content, full, Arc::new(StoreOnly)).await.unwrap();
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
        rack: String::new(),
        bootstrap: Vec::<(PeerId, Vec<HostPort>)>::new(),
    };
    let error = Peer::start(config, store, Arc::new(Shelf(None))).await.unwrap_err().to_string();
    let address = first.peer.addresses()[0];
    assert!(error.starts_with(&format!("cannot listen on {address}: ")), "{error}");
}
