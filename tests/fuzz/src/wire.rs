//! What a peer sends: control frames, and pieces on a bulk stream.

use shoal_node::block::{EncodedBlock, EncodedPart, Encoding};
use shoal_proto::cid::Cid;
use shoal_proto::image::PieceList;
use shoal_proto::image::pieces::Piece;
use shoal_proto::wire::{BULK_HEADER_BYTES, BulkHeader, Frame, TradeFrame};

/// Pieces of the longest list that a frame is checked against: five words of a bitfield.
const PIECES_MAX: u32 = 300;
/// Raw bytes that a payload may claim here: longer ones cost time and nothing else.
const RAW_BYTES_MAX: u32 = 1 << 16;

/// A control frame: what is read can be said again and means the same.
pub fn frame(input: &[u8]) {
    let Some((&pieces, bytes)) = input.split_first() else { return };
    let Ok(frame) = Frame::decode(bytes) else { return };
    let again = Frame::decode(&frame.clone().encode()).expect("a frame of ours");
    assert_eq!(again, frame);
    let Frame::Trade(trade) = frame else { return };
    let list = list(u32::from(pieces) * PIECES_MAX / 255);
    let exchange = trade.exchange;
    let Ok((message, part)) = trade.check(&list) else { return };
    let again = match (&part, &message) {
        (Some(part), shoal_proto::exchange::Message::Request(piece)) => {
            TradeFrame::request_part(exchange, *piece, part)
        }
        _ => TradeFrame::new(exchange, message.clone()),
    };
    let Ok(Frame::Trade(again)) = Frame::decode(&Frame::Trade(again).encode()) else {
        panic!("a trade of ours is no frame");
    };
    assert_eq!(again.check(&list).expect("a trade of ours"), (message, part));
}

fn list(pieces: u32) -> PieceList {
    let piece = |at: u32| Piece { cid: Cid::of(&at.to_le_bytes()), raw_bytes: 1000 + at };
    PieceList::new((0..pieces.max(1)).map(piece).collect()).expect("a list within its bounds")
}

/// A piece on a bulk stream: header, then a payload that claims to be a block and a part of one.
pub fn bulk(input: &[u8]) {
    let Some((header_bytes, payload)) = input.split_first_chunk::<BULK_HEADER_BYTES>() else { return };
    let Ok(header) = BulkHeader::from_bytes(header_bytes) else { return };
    assert_eq!(header.to_bytes(), *header_bytes);
    let Some(encoding) = Encoding::from_code(header.encoding) else { return };
    // A forger who knows the hash: the name is that of the payload's own bytes.
    let (cid, raw_bytes) = (Cid::of(payload), header.payload_bytes % RAW_BYTES_MAX);
    let mut raw = Vec::new();
    let block = EncodedBlock { cid, encoding, raw_bytes, payload: payload.to_vec().into() };
    match block.decode_into(&mut raw) {
        Ok(()) => assert!(raw.len() == raw_bytes as usize && Cid::of(&raw) == cid),
        Err(_) => assert!(raw.is_empty()),
    }
    let part = EncodedPart { cid, encoding, raw_bytes, payload: block.payload };
    match part.decode_into(&mut raw) {
        Ok(()) => assert_eq!(raw.len(), raw_bytes as usize),
        Err(_) => assert!(raw.is_empty()),
    }
    assert!(raw.capacity() <= 2 * RAW_BYTES_MAX as usize);
}
