//! What hostile peers do beside sending wrong pieces: each of it ends their connection, and is held against them.

use std::io::{Read, Write};
use std::net::TcpStream;

use super::*;
use crate::block::Encoding;
use crate::peer::bans::KEYS_PER_ADDRESS_MAX;
use crate::peer::patience::{FRAMES_BURST, QUESTIONS_BURST};

/// A node that lacks all of a list, and a stranger who announced what it likes.
async fn meet(announcement: Announcement) -> (Peer, Arc<PieceList>, TradeHandle, Stranger, TempDir) {
    let (list, _, _) = image(4);
    let (node, _, dir) = start(None, |store| store.clone()).await;
    let held = Bitfield::empty(list.len());
    let trade = node.trade(list.clone(), ListKind::Content, held, Arc::new(StoreOnly)).await.unwrap();
    let stranger = Stranger::meet(&node, &secret(), &list, announcement).await;
    (node, list, trade, stranger, dir)
}

fn all() -> Announcement {
    Announcement::Held(Bitfield::full(4))
}

async fn banned_for(node: &Peer, why: &str) {
    let status = node.status().await.unwrap();
    let reasons: Vec<&str> = status.banned.iter().map(|ban| ban.why.as_str()).collect();
    assert!(reasons.iter().any(|reason| reason.contains(why)), "{reasons:?}");
    assert!(status.banned.iter().all(|ban| ban.address == Some(Ipv4Addr::LOCALHOST.into())));
}

/// `Frame { trade: Trade { exchange: 5, announce: Announce { bitfield } } }`, with its length before it.
fn announcement_of(bitfield: &[u8]) -> Vec<u8> {
    let length = |bytes: &[u8]| u8::try_from(bytes.len()).unwrap();
    let within = |tag: u8, bytes: &[u8]| [&[tag, length(bytes)], bytes].concat();
    let announce = within(0x12, &within(0x12, bitfield));
    let frame = within(0x3a, &[&[0x08, 5], &announce[..]].concat());
    [&[length(&frame)], &frame[..]].concat()
}

#[tokio::test(flavor = "multi_thread")]
async fn a_bitfield_with_stray_bits_or_of_another_length_is_a_breach() {
    for (what, bitfield) in [("stray bits", &[0b1111_1000][..]), ("too long", &[0xf0, 0]), ("none", &[])] {
        let (list, _, _) = image(4);
        let (node, _, _dir) = start(None, |store| store.clone()).await;
        let held = Bitfield::empty(list.len());
        let _trade = node.trade(list.clone(), ListKind::Content, held, Arc::new(StoreOnly)).await.unwrap();
        let mut stranger = Stranger::greet(&node, &secret(), 9).await;
        stranger.say(Frame::Join { exchange: 5, list: list.name() }).await;
        stranger.say_raw(&announcement_of(bitfield)).await;
        stranger.until_thrown_out().await;
        println!("{what}");
        banned_for(&node, "a bitfield is malformed").await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_giant_frame_and_a_flood_of_tiny_ones_are_breaches() {
    let (node, _, _trade, mut stranger, _dir) = meet(all()).await;
    stranger.say_raw(&[0xff, 0xff, 0xff, 0x7f]).await;
    stranger.until_thrown_out().await;
    banned_for(&node, "a control frame of 268435455 bytes").await;

    let mut flooder = Stranger::greet(&node, &secret(), 9).await;
    let mut tiny = Vec::new();
    for _ in 0..FRAMES_BURST * 2 {
        codec::append_frame(&mut tiny, Frame::Arrived { exchange: 5, piece: 0 });
    }
    flooder.say_raw(&tiny).await;
    flooder.until_thrown_out().await;
    banned_for(&node, "it floods its control stream").await;
}

#[tokio::test(flavor = "multi_thread")]
async fn questions_without_end_are_a_breach() {
    let (node, list, _trade, mut stranger, _dir) = meet(all()).await;
    for _ in 0..QUESTIONS_BURST * 2 {
        let mut question = Vec::new();
        codec::append_frame(&mut question, Frame::Query(Query::Image(list.name())));
        stranger.say_raw(&question).await;
    }
    stranger.until_thrown_out().await;
    banned_for(&node, "it asks without end").await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_piece_that_unpacks_to_more_than_its_length_is_a_breach() {
    let (node, list, _trade, mut stranger, _dir) = meet(all()).await;
    stranger.say_in_trade(Message::Grant(None)).await;
    let (piece, _) = stranger.hear_request(&list).await;
    let bomb = EncodedBlock::encode(&vec![0; 8 << 20], 3);
    assert!(bomb.encoding == Encoding::Zstd && bomb.payload.len() < PIECE_BYTES as usize);
    stranger.send(piece, &Delivery::Whole(bomb)).await;
    stranger.until_thrown_out().await;
    banned_for(&node, "do not match its name").await;
}

/// Lacks a range of each piece, and fills in the rest when it is told to.
#[derive(Default)]
struct SlowToFill {
    is_open: Mutex<bool>,
    opened: Condvar,
}

impl PieceSink for SlowToFill {
    fn write(&self, _: PieceIndex, _: &[u8]) -> Result<(), BoxError> {
        Ok(())
    }

    fn lacking(&self, _: PieceIndex) -> Lacking {
        Lacking::Ranges(drift())
    }

    fn fill(&self, _: PieceIndex, _: &mut [u8], _: &ByteRanges) -> Result<bool, BoxError> {
        drop(self.opened.wait_while(self.is_open.lock().unwrap(), |is_open| !*is_open).unwrap());
        Ok(true)
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn who_hangs_up_before_its_lie_is_found_out_is_banned_all_the_same() {
    let (list, _, _) = image(4);
    let (node, _, _dir) = start(None, |store| store.clone()).await;
    let (held, sink) = (Bitfield::empty(list.len()), Arc::new(SlowToFill::default()));
    let _trade = node.trade(list.clone(), ListKind::Content, held, sink.clone()).await.unwrap();
    let mut stranger = Stranger::meet(&node, &secret(), &list, all()).await;
    stranger.say_in_trade(Message::Grant(None)).await;
    let (piece, part) = stranger.hear_request(&list).await;
    let part = part.unwrap();
    let lie = EncodedPart::encode(list.piece(piece).cid, &vec![7; part.ranges.bytes() as usize]);
    stranger.send(piece, &Delivery::Part(part, lie)).await;
    stranger.hear(|frame| matches!(frame, Frame::Arrived { .. }).then_some(())).await;
    drop(stranger);
    until(&node, |status| status.neighbours == 0).await;
    *sink.is_open.lock().unwrap() = true;
    sink.opened.notify_all();
    until(&node, |status| !status.banned.is_empty()).await;
    banned_for(&node, "do not match its name").await;
}

#[tokio::test(flavor = "multi_thread")]
async fn an_address_that_brings_liar_after_liar_is_closed_to_newcomers_and_keeps_its_neighbours() {
    let (node, _, _trade, mut neighbour, _dir) = meet(all()).await;
    let hello = || Hello { role: PeerRole::Node, ports: Vec::new(), rack: Zone::UNKNOWN, members: 0 };
    for _ in 0..KEYS_PER_ADDRESS_MAX {
        let mut liar = Stranger::greet(&node, &secret(), 9).await;
        liar.say(Frame::Hello(hello())).await;
        liar.until_thrown_out().await;
    }
    let refused = tokio::task::spawn_blocking({
        let address = node.addresses()[0];
        move || {
            let mut stream = TcpStream::connect(address).unwrap();
            // Who is let in is answered.
            let _ = stream.write_all(b"\x13/multistream/1.0.0\n\x07/noise\n");
            stream.read(&mut [0])
        }
    });
    let refused = within(refused).await.unwrap();
    assert!(refused.is_err() || refused.is_ok_and(|bytes| bytes == 0), "it is let in");
    neighbour.say(Frame::Query(Query::Name("x".parse().unwrap()))).await;
    neighbour.hear(|frame| matches!(frame, Frame::Answer(_)).then_some(())).await;
}
