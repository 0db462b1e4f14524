//! A block's way: cut out of a tree, compressed, stored, read again, decoded and verified. One core, memory but for
//! the store, which lies below `TMPDIR`.
//!
//! `cargo bench -p shoal-node` prints bytes of the tree per second; of the store, bytes of its records.

#![expect(clippy::unwrap_used, reason = "a benchmark")]

use std::cell::Cell;

use divan::counter::BytesCount;
use divan::{Bencher, black_box};
use shoal_node::block::EncodedBlock;
use shoal_node::store::Store;
use shoal_node::tree::capture::LEVEL_DEFAULT;
use shoal_proto::cid::ChunkId;
use shoal_proto::image::chunker::Chunker;

const BLOCK_BYTES: usize = 1 << 20;
/// Blocks that a store is filled with: the first commit that it makes by itself is among them.
const BLOCKS: usize = 64;

/// What is in files.
#[derive(Clone, Copy, Debug)]
enum Content {
    /// Compresses to about half, as an operating system does.
    Mixed,
    /// Does not compress.
    Noise,
}

const CONTENTS: [Content; 2] = [Content::Mixed, Content::Noise];

fn main() {
    divan::main();
}

/// Cut into chunks, and the name of each.
#[divan::bench(args = CONTENTS)]
fn chunk_and_hash(bencher: Bencher<'_, '_>, content: Content) {
    let raw = raw(content, 0);
    let chunker = Chunker::default();
    bencher.counter(BytesCount::of_slice(&raw)).bench(|| {
        for chunk in chunker.chunks(&raw) {
            black_box(ChunkId::of(chunk));
        }
    });
}

/// The name of a block and its payload, as a capture makes them.
#[divan::bench(args = CONTENTS)]
fn hash_and_compress(bencher: Bencher<'_, '_>, content: Content) {
    let raw = raw(content, 0);
    let buffer = Cell::new(Vec::new());
    bencher.counter(BytesCount::of_slice(&raw)).bench_local(|| {
        let block = EncodedBlock::encode_reusing(&raw, LEVEL_DEFAULT, buffer.take());
        buffer.set(black_box(block).payload.into_vec());
    });
}

/// What a receiver does before it believes a block.
#[divan::bench(args = CONTENTS)]
fn decode_and_verify(bencher: Bencher<'_, '_>, content: Content) {
    let raw = raw(content, 0);
    let block = EncodedBlock::encode(&raw, LEVEL_DEFAULT);
    let mut buffer = Vec::new();
    bencher
        .counter(BytesCount::of_slice(&raw))
        .bench_local(|| black_box(&block).decode_into(&mut buffer).unwrap());
}

/// Into an empty store, to the end of its last sync.
#[divan::bench(sample_count = 10)]
fn store_put(bencher: Bencher<'_, '_>) {
    let blocks = blocks();
    let empty = || {
        let folder = tempfile::tempdir().unwrap();
        let store = Store::open(folder.path()).unwrap();
        (store, folder)
    };
    bencher.counter(payload_bytes(&blocks)).with_inputs(empty).bench_local_values(|(store, folder)| {
        blocks.iter().for_each(|block| assert!(store.put(block).unwrap()));
        store.sync().unwrap();
        // Dropped after the time is taken.
        (store, folder)
    });
}

/// Each block once, its crc checked, from the system's cache.
#[divan::bench(sample_count = 10)]
fn store_get(bencher: Bencher<'_, '_>) {
    let folder = tempfile::tempdir().unwrap();
    let store = Store::open(folder.path()).unwrap();
    let blocks = blocks();
    blocks.iter().for_each(|block| assert!(store.put(block).unwrap()));
    bencher.counter(payload_bytes(&blocks)).bench_local(|| {
        blocks.iter().for_each(|block| drop(black_box(store.get(&block.cid).unwrap().unwrap())));
    });
}

/// Blocks that do not compress, so that the store's bytes are theirs.
fn blocks() -> Vec<EncodedBlock> {
    (0..BLOCKS).map(|seed| EncodedBlock::encode(&raw(Content::Noise, seed), LEVEL_DEFAULT)).collect()
}

fn payload_bytes(blocks: &[EncodedBlock]) -> BytesCount {
    BytesCount::new(blocks.iter().map(|block| block.payload.len()).sum::<usize>())
}

/// A block's bytes, the same for the same seed.
fn raw(content: Content, seed: usize) -> Vec<u8> {
    let mut raw = vec![0; BLOCK_BYTES];
    blake3::Hasher::new().update(&seed.to_le_bytes()).finalize_xof().fill(&mut raw);
    if let Content::Mixed = content {
        // Of four bytes two are always the same, and one is often one of a few.
        for word in raw.chunks_exact_mut(4) {
            let (often, seldom) = (word[0] & 7, word[1]);
            let number = if word[2] < 192 { often } else { seldom };
            word[0] = number;
            word[1..3].copy_from_slice(b"e ");
        }
    }
    raw
}
