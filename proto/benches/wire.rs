//! What a control frame costs: to bytes, and from bytes to a checked message.
//!
//! `cargo bench -p shoal-proto --bench wire` prints frames (*items*) and their bytes per second.

#![expect(clippy::unwrap_used, reason = "a benchmark")]

use std::num::NonZeroU8;

use divan::counter::{BytesCount, ItemsCount};
use divan::{Bencher, black_box};
use shoal_proto::cid::Cid;
use shoal_proto::exchange::{Announcement, Bitfield, Message};
use shoal_proto::image::{Piece, PieceIndex, PieceList};
use shoal_proto::signing::Keypair;
use shoal_proto::wire::{ByteRanges, Frame, Part, PeerAddresses, TradeFrame};
use shoal_proto::zone::Zone;

/// Those of a large image.
const PIECES: u32 = 8000;

/// The frames that peers send most, or that are long.
#[derive(Clone, Copy, Debug)]
enum Kind {
    Request,
    PartRequest,
    /// As batched by a node that is fast.
    FourHaves,
    /// Says half of the pieces.
    Announcement,
    /// Says where sixteen peers are.
    Peers,
}

const KINDS: [Kind; 5] = [Kind::Request, Kind::PartRequest, Kind::FourHaves, Kind::Announcement, Kind::Peers];

fn main() {
    divan::main();
}

#[divan::bench(args = KINDS, sample_size = 100)]
fn encode(bencher: Bencher<'_, '_>, kind: Kind) {
    let frame = frame(kind, &list());
    let bytes = frame.clone().encode().len();
    bencher
        .counter(ItemsCount::new(1_u32))
        .counter(BytesCount::new(bytes))
        .with_inputs(|| frame.clone())
        .bench_values(Frame::encode);
}

#[divan::bench(args = KINDS, sample_size = 100)]
fn decode_and_check(bencher: Bencher<'_, '_>, kind: Kind) {
    let list = list();
    let bytes = frame(kind, &list).encode();
    bencher.counter(ItemsCount::new(1_u32)).counter(BytesCount::of_slice(&bytes)).bench(|| {
        match Frame::decode(black_box(&bytes)).unwrap() {
            Frame::Trade(trade) => drop(black_box(trade.check(&list).unwrap())),
            other => drop(black_box(other)),
        }
    });
}

fn frame(kind: Kind, list: &PieceList) -> Frame {
    let piece = |at| list.index(at).unwrap();
    let trade = |message| Frame::Trade(TradeFrame::new(1, message));
    match kind {
        Kind::Request => trade(Message::Request(piece(4711))),
        Kind::PartRequest => {
            let ranges = ByteRanges::covering((0..16).map(|at| at << 16..(at << 16) + 4096)).unwrap();
            let part = Part { number: NonZeroU8::MIN, ranges };
            Frame::Trade(TradeFrame::request_part(1, piece(4711), &part))
        }
        Kind::FourHaves => trade(Message::Have([17, 42, 4711, 7999].map(piece).to_vec())),
        Kind::Announcement => {
            let mut held = Bitfield::empty(list.len());
            list.indexes().filter(|piece: &PieceIndex| piece.get().is_multiple_of(2)).for_each(|piece| {
                held.insert(piece);
            });
            trade(Message::Announce(Announcement::Held(held)))
        }
        Kind::Peers => Frame::Peers((1..=16).map(peer).collect()),
    }
}

fn peer(number: u8) -> PeerAddresses {
    let key = Keypair::ed25519_from_bytes([number; 32]).unwrap();
    let addresses = vec![format!("10.0.0.{number}:4433").parse().unwrap()];
    let rack: Zone = "row3/rack07".parse().unwrap();
    PeerAddresses { id: key.public().to_peer_id(), addresses, rack }
}

fn list() -> PieceList {
    let piece = |at: u32| Piece { cid: Cid::of(&at.to_le_bytes()), raw_bytes: 1 << 20 };
    PieceList::new((0..PIECES).map(piece).collect()).unwrap()
}
