//! What a peer does about strangers that lie, and about requests that change their mind.

mod hostile;
mod stranger;

use std::net::Ipv4Addr;
use std::num::NonZeroU8;
use std::sync::{Condvar, Mutex};

use shoal_proto::exchange::{Announcement, Bitfield, Message};
use shoal_proto::image::Piece;
use shoal_proto::wire::{Frame, Hello, Part, Query};
use shoal_proto::zone::Zone;
use stranger::{Stranger, within};
use tempfile::TempDir;

use super::*;
use crate::block::EncodedPart;
use crate::peer::serve::Delivery;

const PIECE_BYTES: u32 = 10_000;

struct Nothing;

impl Directory for Nothing {
    fn answer(&self, _: &Query, _: &PeerId) -> Option<Answer> {
        None
    }

    fn offer(&self, _: &Cid, _: &PeerId) -> Option<Offer> {
        None
    }
}

fn secret() -> SwarmSecret {
    SwarmSecret::from_bytes([1; 32])
}

/// Blocks that do not compress.
fn image(count: u32) -> (Arc<PieceList>, Vec<EncodedBlock>, Vec<Vec<u8>>) {
    let raw = |block: u32| {
        let mut raw = vec![0; PIECE_BYTES as usize];
        blake3::Hasher::new().update(&block.to_le_bytes()).finalize_xof().fill(&mut raw);
        raw
    };
    let raw: Vec<Vec<u8>> = (0..count).map(raw).collect();
    let blocks: Vec<EncodedBlock> = raw.iter().map(|raw| EncodedBlock::encode(raw, 3)).collect();
    let pieces = blocks.iter().map(|block| Piece { cid: block.cid, raw_bytes: block.raw_bytes }).collect();
    (Arc::new(PieceList::new(pieces).unwrap()), blocks, raw)
}

async fn start(
    bootstrap: Option<&Peer>,
    source: impl FnOnce(&Arc<Store>) -> Arc<dyn BlockSource>,
) -> (Peer, Arc<Store>, TempDir) {
    let dir = tempfile::tempdir().unwrap();
    let store = Arc::new(Store::open(dir.path()).unwrap());
    let address = |address: &SocketAddr| HostPort { host: address.ip().to_string(), port: address.port() };
    let bootstrap =
        bootstrap.map(|peer| (peer.id(), peer.addresses().iter().map(address).collect::<Vec<_>>()));
    let config = PeerConfig {
        key: Keypair::generate_ed25519(),
        secret: secret(),
        role: PeerRole::Node,
        listen: vec![SocketAddr::from((Ipv4Addr::LOCALHOST, 0))],
        rack: Zone::UNKNOWN,
        bootstrap: bootstrap.into_iter().collect(),
        limits: Limits::default(),
        members: MembersConfig::default(),
        fleet: FleetConfig::default(),
    };
    let source = source(&store);
    (Peer::start(config, store.clone(), source, Arc::new(Nothing)).await.unwrap(), store, dir)
}

/// Waits until a peer is as `wanted` says.
async fn until(peer: &Peer, wanted: impl Fn(&Status) -> bool) {
    let reached = async {
        while !wanted(&peer.status().await.unwrap()) {
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    };
    within(reached).await;
}

/// Has every piece but for a range in its middle.
struct Drifted(Vec<Vec<u8>>);

fn drift() -> ByteRanges {
    ByteRanges::covering([5000..5100, 6000..6001]).unwrap()
}

impl PieceSink for Drifted {
    fn write(&self, _: PieceIndex, _: &[u8]) -> Result<(), BoxError> {
        Ok(())
    }

    fn lacking(&self, _: PieceIndex) -> Lacking {
        Lacking::Ranges(drift())
    }

    fn fill(&self, piece: PieceIndex, raw: &mut [u8], arrived: &ByteRanges) -> Result<bool, BoxError> {
        for gap in arrived.gaps(PIECE_BYTES) {
            let gap = gap.start as usize..gap.end as usize;
            raw[gap.clone()].copy_from_slice(&self.0[piece.at()][gap]);
        }
        Ok(true)
    }
}

/// A node that lacks a range of every piece, and a stranger who says that it holds them all, has granted one and heard
/// the request.
struct Scene {
    node: Peer,
    list: Arc<PieceList>,
    blocks: Vec<EncodedBlock>,
    trade: TradeHandle,
    stranger: Stranger,
    piece: PieceIndex,
    part: Part,
    _dir: TempDir,
}

async fn scene(pieces: u32) -> Scene {
    let (list, blocks, raw) = image(pieces);
    let (node, _, dir) = start(None, |store| store.clone()).await;
    let held = Bitfield::empty(list.len());
    let trade = node.trade(list.clone(), ListKind::Content, held, Arc::new(Drifted(raw))).await.unwrap();
    let all = Announcement::Held(Bitfield::full(list.len()));
    let mut stranger = Stranger::meet(&node, &secret(), &list, all).await;
    stranger.say_in_trade(Message::Grant(None)).await;
    let (piece, part) = stranger.hear_request(&list).await;
    let part = part.expect("a request for a part");
    assert_eq!(part.ranges, drift());
    Scene { node, list, blocks, trade, stranger, piece, part, _dir: dir }
}

#[tokio::test(flavor = "multi_thread")]
async fn who_lies_in_a_part_is_thrown_out_and_the_piece_comes_from_elsewhere() {
    let Scene { node, list, blocks, trade, mut stranger, piece, part, _dir } = scene(3).await;
    let lie = EncodedPart::encode(list.piece(piece).cid, &vec![7; part.ranges.bytes() as usize]);
    stranger.send(piece, &Delivery::Part(part, lie)).await;
    stranger.until_thrown_out().await;
    let status = node.status().await.unwrap();
    assert_eq!((status.traffic.corrupt_bytes, status.trades[0].held), (u64::from(PIECE_BYTES), 0));

    let (honest, store, _other_dir) = start(Some(&node), |store| store.clone()).await;
    blocks.iter().for_each(|block| assert!(store.put(block).unwrap()));
    let held = Bitfield::full(list.len());
    let _serving = honest.trade(list.clone(), ListKind::Content, held, Arc::new(StoreOnly)).await.unwrap();
    within(trade.completed()).await.unwrap();
    let traffic = node.status().await.unwrap().traffic;
    assert_eq!(traffic.corrupt_bytes, u64::from(PIECE_BYTES), "and nobody else was blamed");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_part_that_was_not_asked_for_or_is_too_long_is_refused_unread() {
    let number = |number| NonZeroU8::new(number).unwrap();
    for (what, part_number, bytes) in [("another part", 2, 101), ("a longer part", 1, 102)] {
        let Scene { node, list, mut stranger, piece, _dir, .. } = scene(1).await;
        let part = Part { number: number(part_number), ranges: drift() };
        let mut noise = vec![0; bytes];
        blake3::Hasher::new().finalize_xof().fill(&mut noise);
        let encoded = EncodedPart::encode(list.piece(piece).cid, &noise);
        assert_eq!(encoded.payload.len(), bytes, "{what}");
        stranger.send(piece, &Delivery::Part(part, encoded)).await;
        stranger.until_thrown_out().await;
        let status = node.status().await.unwrap();
        assert_eq!((status.traffic, status.trades[0].held), (Traffic::default(), 0), "{what}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_whole_piece_is_as_good_an_answer_as_the_part() {
    let Scene { node, blocks, trade, mut stranger, piece, _dir, .. } = scene(1).await;
    stranger.send(piece, &Delivery::Whole(blocks[0].clone())).await;
    within(trade.completed()).await.unwrap();
    assert_eq!(node.status().await.unwrap().traffic.from_peers_bytes, u64::from(PIECE_BYTES));
    let arrived = |frame| matches!(frame, Frame::Arrived { piece, .. } if piece == 0).then_some(());
    stranger.hear(arrived).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_stranger_gets_the_part_that_it_asks_for_and_not_one_that_cannot_be() {
    let (list, blocks, raw) = image(2);
    let (node, store, _dir) = start(None, |store| store.clone()).await;
    blocks.iter().for_each(|block| assert!(store.put(block).unwrap()));
    let held = Bitfield::full(list.len());
    let _serving = node.trade(list.clone(), ListKind::Content, held, Arc::new(StoreOnly)).await.unwrap();
    let none = Announcement::Held(Bitfield::empty(list.len()));
    let mut stranger = Stranger::meet(&node, &secret(), &list, none).await;
    stranger.hear_grant(&list).await;
    let piece = list.index(1).unwrap();
    let mut part = Part { number: NonZeroU8::MAX, ranges: drift() };
    stranger.request_part(piece, &part).await;
    let (header, payload) = stranger.get().await;
    assert_eq!((header.piece, header.part, header.encoding), (1, 255, 0));
    assert_eq!(payload, part.ranges.gather(&raw[1]));
    stranger.say(Frame::Arrived { exchange: header.exchange, piece: 1 }).await;
    stranger.hear_grant(&list).await;
    part.ranges = ByteRanges::covering(std::iter::once(PIECE_BYTES - 1..PIECE_BYTES + 1)).unwrap();
    stranger.request_part(piece, &part).await;
    stranger.until_thrown_out().await;
}

/// A store behind a gate.
struct Gated {
    store: Arc<Store>,
    is_open: Mutex<bool>,
    opened: Condvar,
}

impl BlockSource for Gated {
    fn block(&self, cid: &Cid) -> Result<Option<EncodedBlock>, BoxError> {
        let is_open = self.is_open.lock().unwrap();
        drop(self.opened.wait_while(is_open, |is_open| !*is_open).unwrap());
        self.store.block(cid)
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_cancelled_upload_that_still_waits_is_not_written() {
    let (list, blocks, raw) = image(2);
    let mut gate = None;
    let gated = |store: &Arc<Store>| -> Arc<dyn BlockSource> {
        let (is_open, opened) = (Mutex::new(false), Condvar::new());
        gate.insert(Arc::new(Gated { store: store.clone(), is_open, opened })).clone()
    };
    let (node, store, _dir) = start(None, gated).await;
    blocks.iter().for_each(|block| assert!(store.put(block).unwrap()));
    let held = Bitfield::full(list.len());
    let _serving = node.trade(list.clone(), ListKind::Content, held, Arc::new(StoreOnly)).await.unwrap();
    let none = Announcement::Held(Bitfield::empty(list.len()));
    let mut stranger = Stranger::meet(&node, &secret(), &list, none).await;
    stranger.hear_grant(&list).await;
    stranger.say_in_trade(Message::Request(list.index(0).unwrap())).await;
    stranger.say_in_trade(Message::Cancel(list.index(0).unwrap())).await;
    // Frames are handled in turn: the answer says that the cancellation was heard.
    stranger.say(Frame::Query(Query::Image(list.name()))).await;
    stranger.hear(|frame| matches!(frame, Frame::Answer(_)).then_some(())).await;
    let gate = gate.unwrap();
    *gate.is_open.lock().unwrap() = true;
    gate.opened.notify_all();
    stranger.hear_grant(&list).await;
    stranger.say_in_trade(Message::Request(list.index(1).unwrap())).await;
    let (header, payload) = stranger.get().await;
    assert_eq!((header.piece, header.part), (1, 0));
    assert!(payload == raw[1], "the second piece is the first to come");
    // Counted once the last byte has left, which may be after it came.
    until(&node, |status| status.traffic.sent_bytes > 0).await;
    assert_eq!(node.status().await.unwrap().traffic.sent_bytes, u64::from(PIECE_BYTES));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_full_house_says_whom_else_to_ask_and_hangs_up() {
    let (list, _, _) = image(1);
    let (node, _, _dir) = start(None, |store| store.clone()).await;
    let held = Bitfield::full(list.len());
    let _serving = node.trade(list.clone(), ListKind::Content, held, Arc::new(StoreOnly)).await.unwrap();
    let mut neighbours = Vec::new();
    for port in 1..=64 {
        let mut stranger = Stranger::greet(&node, &secret(), port).await;
        stranger.hear(|frame| matches!(frame, Frame::Join { .. }).then_some(())).await;
        neighbours.push(stranger);
    }
    let mut late = Stranger::greet(&node, &secret(), 65).await;
    late.say(Frame::Join { exchange: 5, list: list.name() }).await;
    late.say(Frame::Query(Query::Image(list.name()))).await;
    let mut frames = Vec::new();
    let until_answer = late.hear(|frame| {
        frames.push(frame);
        matches!(frames.last(), Some(Frame::Answer(_))).then_some(())
    });
    until_answer.await;
    // It is answered, and not traded with.
    let [Frame::Hello(_), Frame::Refused(told), Frame::Answer(_)] = &frames[..] else { panic!("{frames:?}") };
    assert!(!told.is_empty() && told.iter().all(|peer| peer.addresses[0].port() <= 64), "{told:?}");
    late.until_thrown_out().await;
    assert_eq!(node.status().await.unwrap().neighbours, 64);
}
