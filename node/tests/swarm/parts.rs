//! Nodes that lack only some bytes of a piece, and nodes that do without some pieces.

use std::collections::BTreeSet;
use std::sync::{Arc, Mutex};

use shoal_node::block::EncodedBlock;
use shoal_node::peer::{BoxError, ByteRanges, Lacking, ListKind, PeerRole, PieceSink, StoreOnly};
use shoal_proto::exchange::Bitfield;
use shoal_proto::image::{Piece, PieceIndex, PieceList};

use crate::member::{Member, Shelf, within};

const PIECE_BYTES: usize = 200_000;

/// Blocks that do not compress, so that what travels can be counted.
fn noise(count: u32) -> (Arc<PieceList>, Vec<EncodedBlock>, Vec<Vec<u8>>) {
    let raw = |block: u32| {
        let mut raw = vec![0; PIECE_BYTES];
        blake3::Hasher::new().update(&block.to_le_bytes()).finalize_xof().fill(&mut raw);
        raw
    };
    let raw: Vec<Vec<u8>> = (0..count).map(raw).collect();
    let blocks: Vec<EncodedBlock> = raw.iter().map(|raw| EncodedBlock::encode(raw, 3)).collect();
    let pieces = blocks.iter().map(|block| Piece { cid: block.cid, raw_bytes: block.raw_bytes }).collect();
    (Arc::new(PieceList::new(pieces).unwrap()), blocks, raw)
}

/// What a tree has of an image: everything but three runs of bytes in each piece, and some pieces not at all.
struct Drifted {
    raw: Vec<Vec<u8>>,
    absent: BTreeSet<u32>,
    /// Pieces whose local bytes turn out to have gone.
    gone: BTreeSet<u32>,
    filled: Mutex<Vec<u32>>,
    written: Mutex<Vec<(PieceIndex, Vec<u8>)>>,
}

/// Bytes in the ranges of [`drift`].
const DRIFT_BYTES: u64 = 1 + 300 + 1000;

fn drift() -> ByteRanges {
    let end = u32::try_from(PIECE_BYTES).unwrap();
    ByteRanges::covering([0..1, 70_000..70_300, end - 1000..end]).unwrap()
}

impl Drifted {
    fn new(raw: &[Vec<u8>], absent: &[u32], gone: &[u32]) -> Arc<Self> {
        Arc::new(Self {
            raw: raw.to_vec(),
            absent: absent.iter().copied().collect(),
            gone: gone.iter().copied().collect(),
            filled: Mutex::default(),
            written: Mutex::default(),
        })
    }

    fn check_written(&self, list: &PieceList) {
        let mut written = std::mem::take(&mut *self.written.lock().unwrap());
        written.sort();
        assert!(written == list.indexes().zip(self.raw.iter().cloned()).collect::<Vec<_>>());
    }
}

impl PieceSink for Drifted {
    fn write(&self, piece: PieceIndex, raw: &[u8]) -> Result<(), BoxError> {
        self.written.lock().unwrap().push((piece, raw.to_vec()));
        Ok(())
    }

    fn lacking(&self, piece: PieceIndex) -> Lacking {
        if self.absent.contains(&piece.get()) { Lacking::Whole } else { Lacking::Ranges(drift()) }
    }

    fn fill(&self, piece: PieceIndex, raw: &mut [u8], arrived: &ByteRanges) -> Result<bool, BoxError> {
        assert_eq!(*arrived, drift());
        self.filled.lock().unwrap().push(piece.get());
        if self.gone.contains(&piece.get()) {
            return Ok(false);
        }
        for gap in arrived.gaps(u32::try_from(raw.len())?) {
            let gap = gap.start as usize..gap.end as usize;
            raw[gap.clone()].copy_from_slice(&self.raw[piece.at()][gap]);
        }
        Ok(true)
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_node_that_lacks_ranges_gets_exactly_their_bytes_and_serves_the_whole() {
    let (list, blocks, raw) = noise(30);
    let seeder = Member::start(PeerRole::Seeder, 1, Shelf(Some(list.clone())), &blocks, &[]).await;
    let node = Member::start(PeerRole::Node, 1, Shelf(None), &[], &[&seeder]).await;
    let sink = Drifted::new(&raw, &[4, 9], &[]);
    within(node.fetch(&list, sink.clone()).await.completed()).await.unwrap();
    sink.check_written(&list);
    let traffic = node.peer.status().await.unwrap().traffic;
    let expected = 28 * DRIFT_BYTES + 2 * PIECE_BYTES as u64;
    assert_eq!((traffic.from_seeders_bytes, traffic.from_peers_bytes), (expected, 0));
    assert_eq!((traffic.pieces_received, traffic.corrupt_bytes), (30, 0));
    assert_eq!(seeder.peer.status().await.unwrap().traffic.sent_bytes, expected);

    // What was put together is as good as what came whole.
    seeder.peer.stop().await;
    let second = Member::start(PeerRole::Node, 1, Shelf(None), &[], &[&node]).await;
    within(second.fetch(&list, Arc::new(StoreOnly)).await.completed()).await.unwrap();
    assert!(blocks.iter().all(|block| second.store.get(&block.cid).unwrap().unwrap().decode().is_ok()));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_piece_whose_local_bytes_are_gone_comes_whole_from_a_node() {
    let (list, blocks, raw) = noise(6);
    let source = Member::start(PeerRole::Node, 1, Shelf(None), &blocks, &[]).await;
    let _serving = source.hold(&list, Arc::new(StoreOnly)).await;
    comes_whole_from(&source, &list, &raw).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_piece_whose_local_bytes_are_gone_comes_whole_from_a_seeder() {
    let (list, blocks, raw) = noise(6);
    let source = Member::start(PeerRole::Seeder, 1, Shelf(Some(list.clone())), &blocks, &[]).await;
    comes_whole_from(&source, &list, &raw).await;
}

async fn comes_whole_from(source: &Member, list: &Arc<PieceList>, raw: &[Vec<u8>]) {
    let node = Member::start(PeerRole::Node, 1, Shelf(None), &[], &[source]).await;
    let sink = Drifted::new(raw, &[], &[2, 5]);
    within(node.fetch(list, sink.clone()).await.completed()).await.unwrap();
    sink.check_written(list);
    let mut filled = std::mem::take(&mut *sink.filled.lock().unwrap());
    filled.sort_unstable();
    assert_eq!(filled, [0, 1, 2, 3, 4, 5], "a part of each came once");
    let status = node.peer.status().await.unwrap();
    let bytes = status.traffic.from_peers_bytes + status.traffic.from_seeders_bytes;
    assert_eq!(bytes, 6 * DRIFT_BYTES + 2 * PIECE_BYTES as u64);
    assert_eq!((status.traffic.corrupt_bytes, status.neighbours), (0, 1), "nobody is blamed");
}

#[tokio::test(flavor = "multi_thread")]
async fn an_unwanted_piece_does_not_travel_and_a_trade_is_complete_without_it() {
    let (list, blocks, _) = noise(8);
    let source = Member::start(PeerRole::Node, 1, Shelf(None), &blocks, &[]).await;
    let _serving = source.hold(&list, Arc::new(StoreOnly)).await;
    let node = Member::start(PeerRole::Node, 1, Shelf(None), &[], &[&source]).await;
    let mut unwanted = Bitfield::empty(list.len());
    for piece in list.indexes().filter(|piece| [0, 7].contains(&piece.get())) {
        unwanted.insert(piece);
    }
    let held = Bitfield::empty(list.len());
    let (trade, sink) = (list.clone(), Arc::new(StoreOnly));
    let trade = node.peer.trade_without(trade, ListKind::Content, held, unwanted.clone(), sink).await;
    within(trade.unwrap().completed()).await.unwrap();
    let status = node.peer.status().await.unwrap();
    assert_eq!(status.traffic.from_peers_bytes, 6 * PIECE_BYTES as u64);
    assert_eq!((status.trades[0].held, status.trades[0].unwanted), (6, 2));
    assert!(status.trades[0].waiting.is_empty());
    for piece in list.indexes() {
        assert_eq!(node.store.contains(&list.piece(piece).cid), !unwanted.contains(piece), "{piece}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn no_part_is_cut_from_a_damaged_block_which_is_fetched_and_stored_again() {
    let (list, blocks, raw) = noise(4);
    let mut damaged = blocks.clone();
    damaged[1] = EncodedBlock { cid: blocks[1].cid, ..EncodedBlock::encode(&[7; PIECE_BYTES], 3) };
    let source = Member::start(PeerRole::Node, 1, Shelf(None), &damaged, &[]).await;
    let _serving = source.hold(&list, Arc::new(StoreOnly)).await;
    let node = Member::start(PeerRole::Node, 1, Shelf(None), &[], &[&source]).await;
    let sink = Drifted::new(&raw, &[], &[]);
    let trade = node.fetch(&list, sink.clone()).await;
    node.reaches(|trade| trade.held == 3).await;
    source.reaches(|trade| trade.held == 3).await;
    let other = Member::start(PeerRole::Node, 1, Shelf(None), &blocks, &[&source, &node]).await;
    let _also_serving = other.hold(&list, Arc::new(StoreOnly)).await;
    within(trade.completed()).await.unwrap();
    sink.check_written(&list);
    source.reaches(|trade| trade.held == 4).await;
    assert!(source.store.get(&blocks[1].cid).unwrap().unwrap().decode().is_ok());
    assert_eq!(node.peer.status().await.unwrap().traffic.corrupt_bytes, 0);
}
