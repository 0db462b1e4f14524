//! Peers with limited rates: bytes never come faster than they may.

use std::sync::Arc;
use std::time::{Duration, Instant};

use shoal_node::block::EncodedBlock;
use shoal_node::peer::{Limits, StoreOnly};
use shoal_proto::image::{Piece, PieceList};
use shoal_proto::rate::Rate;

use crate::member::{Member, Shelf, within};

/// What a bucket lets through ahead of time, and what the clocks of two tasks may differ by.
const AHEAD: Duration = Duration::from_millis(50);

const PIECES: usize = 60;

/// Bytes that do not compress.
fn noise(piece: usize) -> Vec<u8> {
    let mut raw = vec![0; 100_000];
    blake3::Hasher::new().update(&piece.to_le_bytes()).finalize_xof().fill(&mut raw);
    raw
}

fn rate() -> Rate {
    "4MB/s".parse().unwrap()
}

/// A peer with everything and one that fetches all lists from it: how long that took, and the least time it may take
/// at [`rate`].
async fn fetch(lists: usize, source: Limits, node: Limits) -> (Duration, Duration) {
    let blocks: Vec<EncodedBlock> = (0..PIECES).map(|piece| EncodedBlock::encode(&noise(piece), 3)).collect();
    let pieces: Vec<Piece> =
        blocks.iter().map(|block| Piece { cid: block.cid, raw_bytes: block.raw_bytes }).collect();
    let lists = pieces.chunks(PIECES / lists).map(|part| Arc::new(PieceList::new(part.to_vec()).unwrap()));
    let lists: Vec<_> = lists.collect();
    let source = Member::start_limited(Shelf(None), &blocks, &[], source).await;
    for list in &lists {
        let _held = source.hold(list, Arc::new(StoreOnly)).await;
    }
    let node = Member::start_limited(Shelf(None), &[], &[&source], node).await;
    let start = Instant::now();
    let mut trades = Vec::new();
    for list in &lists {
        trades.push(node.fetch(list, Arc::new(StoreOnly)).await);
    }
    for trade in trades {
        within(trade.completed()).await.unwrap();
    }
    let bytes = node.peer.status().await.unwrap().traffic.from_peers_bytes;
    assert_eq!(bytes, blocks.iter().map(|block| block.payload.len() as u64).sum::<u64>());
    let least = Duration::from_secs_f64(bytes as f64 / rate().bytes_per_s() as f64) - AHEAD;
    (start.elapsed(), least)
}

#[tokio::test(flavor = "multi_thread")]
async fn an_uplink_keeps_to_its_limit_with_one_list_and_with_three() {
    let limited = Limits { up: Some(rate()), ..Limits::default() };
    for lists in [1, 3] {
        let (took, least) = fetch(lists, limited, Limits::default()).await;
        println!("{lists} lists: {took:?}, at least {least:?}");
        assert!(took >= least, "{lists} lists in {took:?} instead of {least:?}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_connection_keeps_to_the_limit_for_each() {
    let limited = Limits { up_per_peer: Some(rate()), ..Limits::default() };
    let (took, least) = fetch(1, limited, Limits::default()).await;
    println!("{took:?}, at least {least:?}");
    assert!(took >= least, "{took:?} instead of {least:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_downlink_keeps_to_its_limit() {
    let limited = Limits { down: Some(rate()), ..Limits::default() };
    let (took, least) = fetch(1, Limits::default(), limited).await;
    println!("{took:?}, at least {least:?}");
    assert!(took >= least, "{took:?} instead of {least:?}");
}
