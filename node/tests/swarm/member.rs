//! A peer of a test, with its store in a folder of its own.

use std::net::{Ipv4Addr, SocketAddr};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use shoal_node::block::EncodedBlock;
use shoal_node::peer::{
    BlockSource, BoxError, Directory, FleetConfig, Keypair, Limits, ListKind, MembersConfig, Offer, Peer,
    PeerConfig, PeerId, PeerRole, PieceSink, TradeHandle, TradeStatus,
};
use shoal_node::store::Store;
use shoal_proto::cid::Cid;
use shoal_proto::exchange::Bitfield;
use shoal_proto::image::{Piece, PieceIndex, PieceList};
use shoal_proto::ticket::{HostPort, SwarmSecret};
use shoal_proto::wire::{Answer, Query};
use shoal_proto::zone::Zone;
use tempfile::TempDir;

/// Longer than any of these takes on a busy machine: a hang, not a measure.
pub(crate) const DEADLINE: Duration = Duration::from_secs(60);

pub(crate) struct Shelf(pub(crate) Option<Arc<PieceList>>);

impl Directory for Shelf {
    fn answer(&self, _: &Query, _: &PeerId) -> Option<Answer> {
        None
    }

    fn offer(&self, list: &Cid, _: &PeerId) -> Option<Offer> {
        let list = self.0.clone().filter(|own| own.name() == *list)?;
        Some(Offer { list, kind: ListKind::Content, private: false })
    }
}

pub(crate) struct Member {
    pub(crate) peer: Peer,
    pub(crate) store: Arc<Store>,
    _dir: TempDir,
}

impl Member {
    pub(crate) async fn start(
        role: PeerRole,
        secret: u8,
        shelf: Shelf,
        blocks: &[EncodedBlock],
        bootstrap: &[&Self],
    ) -> Self {
        Self::start_with(role, secret, shelf, blocks, bootstrap, |store| store).await
    }

    /// As `start`, with what the peer serves made of its store.
    pub(crate) async fn start_with<S: BlockSource>(
        role: PeerRole,
        secret: u8,
        shelf: Shelf,
        blocks: &[EncodedBlock],
        bootstrap: &[&Self],
        source: impl FnOnce(Arc<Store>) -> Arc<S>,
    ) -> Self {
        let limits = Limits::default();
        Self::launch(role, secret, shelf, blocks, bootstrap, limits, source).await
    }

    /// A node that keeps to limits.
    pub(crate) async fn start_limited(
        shelf: Shelf,
        blocks: &[EncodedBlock],
        bootstrap: &[&Self],
        limits: Limits,
    ) -> Self {
        Self::launch(PeerRole::Node, 1, shelf, blocks, bootstrap, limits, |store| store).await
    }

    async fn launch<S: BlockSource>(
        role: PeerRole,
        secret: u8,
        shelf: Shelf,
        blocks: &[EncodedBlock],
        bootstrap: &[&Self],
        limits: Limits,
        source: impl FnOnce(Arc<Store>) -> Arc<S>,
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
            rack: Zone::UNKNOWN,
            bootstrap: bootstrap.iter().map(|other| (other.peer.id(), other.addresses())).collect(),
            limits,
            members: MembersConfig::default(),
            fleet: FleetConfig::default(),
        };
        let peer = Peer::start(config, store.clone(), source(store.clone()), Arc::new(shelf)).await.unwrap();
        Self { peer, store, _dir: dir }
    }

    pub(crate) fn addresses(&self) -> Vec<HostPort> {
        let address =
            |address: &SocketAddr| HostPort { host: address.ip().to_string(), port: address.port() };
        self.peer.addresses().iter().map(address).collect()
    }

    pub(crate) async fn fetch(&self, list: &Arc<PieceList>, sink: Arc<dyn PieceSink>) -> TradeHandle {
        let held = Bitfield::empty(list.len());
        self.peer.trade(list.clone(), ListKind::Content, held, sink).await.unwrap()
    }

    /// Trades a list of which the peer has everything.
    pub(crate) async fn hold(&self, list: &Arc<PieceList>, sink: Arc<dyn PieceSink>) -> TradeHandle {
        let held = Bitfield::full(list.len());
        self.peer.trade(list.clone(), ListKind::Content, held, sink).await.unwrap()
    }

    /// Waits until the peer's only trade is as `wanted` says.
    pub(crate) async fn reaches(&self, wanted: impl Fn(&TradeStatus) -> bool) {
        let reached = async {
            while !wanted(&self.peer.status().await.unwrap().trades[0]) {
                tokio::time::sleep(Duration::from_millis(10)).await;
            }
        };
        within(reached).await;
    }
}

#[derive(Default)]
pub(crate) struct Collected(pub(crate) Mutex<Vec<(PieceIndex, Vec<u8>)>>);

impl PieceSink for Collected {
    fn write(&self, piece: PieceIndex, raw: &[u8]) -> Result<(), BoxError> {
        self.0.lock().unwrap().push((piece, raw.to_vec()));
        Ok(())
    }
}

/// `count` blocks of 100 kB that compress a little.
pub(crate) fn image(count: u32) -> (Arc<PieceList>, Vec<EncodedBlock>, Vec<Vec<u8>>) {
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

pub(crate) async fn within<T>(what: impl Future<Output = T>) -> T {
    tokio::time::timeout(DEADLINE, what).await.expect("done before the deadline")
}
