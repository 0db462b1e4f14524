use proptest::collection::vec;
use proptest::prelude::*;

use super::super::entry::{Attributes, Content, InodeFlags, Kind, Mtime, Segment};
use super::super::tree::TreeBuilder;
use super::*;

const BLOCK: u32 = 1 << 20;
const QUARTER: u32 = 256 << 10;

/// A chunk by name, with its bytes.
type Chunk = (u32, u32);

fn id(name: u32) -> ChunkId {
    ChunkId::of(&name.to_le_bytes())
}

fn laid(chunks: &[Chunk], parent: Option<&Arc<Manifest>>) -> LaidOut {
    laid_without(chunks, parent, |_| true)
}

fn laid_without(chunks: &[Chunk], parent: Option<&Arc<Manifest>>, held: impl FnMut(&Cid) -> bool) -> LaidOut {
    let parent = parent.map(|parent| Arc::new(ParentPieces::new(Arc::clone(parent), BLOCK, held)));
    let mut layout = Layout::new(BLOCK, parent);
    for &(name, bytes) in chunks {
        layout.place(id(name), bytes);
    }
    layout.finish()
}

/// The image of a file of these chunks.
fn image(chunks: &[Chunk], laid: &LaidOut, placed: &[u32]) -> Arc<Manifest> {
    assert_eq!(chunks.len(), placed.len());
    let segments: Vec<Segment> = placed.iter().map(|&first| Segment::Chunks { first, count: 1 }).collect();
    let attributes = || Attributes::new(0o644, 0, 0, InodeFlags::NONE, vec![]).unwrap();
    let mut tree = TreeBuilder::default();
    tree.push_root(attributes(), Mtime::default()).unwrap();
    tree.push(0, b"f", attributes(), Mtime::default(), Kind::File(Content::Segments(&segments))).unwrap();
    Arc::new(Manifest::assemble(tree.finish(), laid, &cids(laid)).unwrap())
}

/// Blocks of the same chunks have the same names.
fn cids(laid: &LaidOut) -> Vec<Cid> {
    let name = |block| {
        let digests: Vec<u8> = laid.chunks(block).flat_map(|(id, _)| *id.digest()).collect();
        Cid::of(&digests)
    };
    laid.blocks.iter().map(name).collect()
}

fn captured(chunks: &[Chunk], parent: Option<&Arc<Manifest>>) -> Arc<Manifest> {
    let pieces = parent.map(|parent| Arc::new(ParentPieces::new(Arc::clone(parent), BLOCK, |_| true)));
    let mut layout = Layout::new(BLOCK, pieces);
    let placed: Vec<u32> = chunks.iter().map(|&(name, bytes)| layout.place(id(name), bytes).chunk).collect();
    image(chunks, &layout.finish(), &placed)
}

fn names(laid: &LaidOut) -> Vec<Vec<u32>> {
    let name = |(found, _): (ChunkId, u32)| (0..10_000).find(|name| id(*name) == found).unwrap();
    laid.blocks.iter().map(|block| laid.chunks(block).map(name).collect()).collect()
}

fn quarters(names: impl IntoIterator<Item = u32>) -> Vec<Chunk> {
    names.into_iter().map(|name| (name, QUARTER)).collect()
}

#[test]
fn block_size_follows_the_total_and_never_falls_below_the_parents() {
    for (gib, mib) in [(2, 1), (16, 1), (17, 2), (33, 4), (65, 8), (4000, 8)] {
        assert_eq!(block_bytes_for(gib << 30), mib << 20, "{gib} GiB");
    }
    for (mib, kib) in [(0, 256), (512, 256), (513, 512), (1024, 512), (1025, 1024)] {
        assert_eq!(block_bytes_for(mib << 20), kib << 10, "{mib} MiB");
    }
    let parent = ParentPieces::new(captured(&[], None), 4 << 20, |_| true);
    assert_eq!(parent.block_bytes_for(1), 4 << 20);
    assert_eq!(parent.block_bytes_for(65 << 30), 8 << 20);
    let small = ParentPieces::new(captured(&[], None), 256 << 10, |_| true);
    assert_eq!(small.block_bytes_for(4 << 30), 256 << 10, "what has grown inherits blocks all the same");
    assert_eq!(small.block_bytes_for(5 << 30), 1 << 20);
}

#[test]
fn a_chunk_is_laid_once_and_blocks_never_exceed_their_size() {
    let mut layout = Layout::new(BLOCK, None);
    let placed: Vec<Placed> =
        [1, 2, 1, 3, 4, 2, 5, 6].into_iter().map(|name| layout.place(id(name), QUARTER)).collect();
    let appended: Vec<Option<u32>> = placed.iter().map(|placed| placed.append_to).collect();
    assert_eq!(appended, [Some(0), Some(0), None, Some(0), Some(0), None, Some(1), Some(1)]);
    let laid = layout.finish();
    assert_eq!((names(&laid), laid.new_blocks), (vec![vec![1, 2, 3, 4], vec![5, 6]], 2));
    assert_eq!(laid.numbers, [0, 1, 2, 3, 4, 5]);
}

#[test]
fn new_chunks_come_first_then_whole_blocks_of_the_parent_then_what_is_left_over() {
    let parent = captured(&quarters(1..=13), None);
    // Of the block 5 to 8 one is gone; the last block has only one.
    let second = laid(&quarters([1, 2, 20, 3, 4, 6, 7, 8, 21, 9, 10, 11, 12, 13]), Some(&parent));
    let expected = vec![vec![20, 21], vec![1, 2, 3, 4], vec![9, 10, 11, 12], vec![6, 7, 8, 13]];
    assert_eq!((names(&second), second.new_blocks), (expected, 1));
    assert_eq!(second.blocks[1], LaidBlock::Inherited(parent.content().index(0).unwrap()));
    assert_eq!(second.blocks[3].key(), Some(BlockKey::LeftOver(0)));
    let numbers: Vec<u32> = second.numbers.iter().copied().filter(|number| *number != UNUSED).collect();
    assert_eq!(numbers, [2, 3, 4, 5, 10, 11, 12, 6, 7, 8, 9, 13, 0, 1]);
    assert_eq!(second.numbers[4], UNUSED, "chunk 5 is gone");
}

#[test]
fn a_tree_of_the_parents_chunks_has_the_parents_pieces() {
    let first = captured(&quarters(1..=13), None);
    let second = captured(&quarters([1, 2, 20, 3, 4, 6, 7, 8, 9, 10, 11, 12, 13]), Some(&first));
    // In any order, each as often as it likes.
    let third = captured(&quarters([20, 20, 13, 12, 11, 10, 9, 8, 7, 6, 4, 3, 2, 1]), Some(&second));
    assert_eq!(third.content(), second.content());
    assert!(second.content().piece(second.content().index(0).unwrap()).raw_bytes < BLOCK / 2);
}

#[test]
fn the_order_of_kept_chunks_is_that_of_placed_ones() {
    let parent = captured(&quarters(1..=13), None);
    let pieces = Arc::new(ParentPieces::new(Arc::clone(&parent), BLOCK, |_| true));
    let mut layout = Layout::new(BLOCK, Some(pieces));
    layout.keep(0..6);
    assert_eq!(layout.place(id(30), QUARTER).chunk, 13);
    layout.keep(7..13);
    let chunks = quarters([1, 2, 3, 4, 5, 6, 30, 8, 9, 10, 11, 12, 13]);
    assert_eq!(names(&layout.finish()), names(&laid(&chunks, Some(&parent))));
}

#[test]
fn what_lies_in_a_lost_block_is_laid_as_if_the_parent_lacked_it() {
    let parent = captured(&quarters(1..=12), None);
    let lost = parent.content().piece(parent.content().index(1).unwrap()).cid;
    let laid = laid_without(&quarters(1..=12), Some(&parent), |cid| *cid != lost);
    assert_eq!(names(&laid), [[5, 6, 7, 8], [1, 2, 3, 4], [9, 10, 11, 12]]);
    assert_eq!(laid.new_blocks, 1);
    let pieces = ParentPieces::new(Arc::clone(&parent), BLOCK, |cid| *cid != lost);
    assert!(pieces.holds(0..4) && pieces.holds(8..12) && pieces.holds(4..4));
    assert!(!pieces.holds(3..5) && !pieces.holds(7..9) && !pieces.holds(0..12));
}

#[test]
fn blocks_of_a_smaller_size_are_laid_anew() {
    let parent = captured(&quarters(1..=12), None);
    let pieces = Arc::new(ParentPieces::new(Arc::clone(&parent), BLOCK, |_| true));
    let mut layout = Layout::new(4 << 20, Some(pieces));
    for name in (1..=12).chain([50]) {
        layout.place(id(name), QUARTER);
    }
    assert_eq!(names(&layout.finish()), [vec![50], (1..=12).collect()]);
}

/// Small changes, generation after generation.
#[test]
fn fifty_generations_do_not_fall_to_pieces() {
    let mut random = 1_u32;
    let mut any = |below: u32| {
        random = random.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
        (random >> 8) % below
    };
    let mut chunks: Vec<Chunk> = (0..2000).map(|name| (name, 1 + any(40_000))).collect();
    let mut parent = captured(&chunks, None);
    for generation in 0..50_u32 {
        for change in 0..8 {
            let at = any(2000) as usize;
            chunks[at] = (10_000 + generation * 100 + change, 1 + any(40_000));
        }
        parent = captured(&chunks, Some(&parent));
        let fresh = captured(&chunks, None);
        assert_eq!(parent.content().raw_bytes(), fresh.content().raw_bytes(), "no dead bytes");
        let (pieces, of_fresh) = (parent.content().len(), fresh.content().len());
        assert!(pieces * 2 <= of_fresh * 3 + 8, "{pieces} pieces, fresh {of_fresh}");
    }
}

proptest! {
    /// No byte twice, none dead, blocks within their bounds, and a node that has the parent lacks the new blocks only.
    #[test]
    fn any_change_is_laid_within_the_rules(
        old in vec((0_u32..60, 1_u32..6), 0..60), new in vec((0_u32..80, 1_u32..6), 0..80),
    ) {
        // One name, one length.
        let chunks = |list: Vec<Chunk>| -> Vec<Chunk> {
            list.into_iter().map(|(name, _)| (name, 1 + name * 4000)).collect()
        };
        let (old, new) = (chunks(old), chunks(new));
        let parent = captured(&old, None);
        let second = captured(&new, Some(&parent));
        let laid = laid(&new, Some(&parent));
        let mut expected: Vec<u32> = new.iter().map(|chunk| chunk.0).collect();
        expected.sort_unstable();
        expected.dedup();
        let blocks = names(&laid);
        let mut found = blocks.concat();
        found.sort_unstable();
        prop_assert_eq!(found, expected);
        for (at, block) in blocks.iter().enumerate() {
            let in_parent = |name: &u32| old.iter().any(|chunk| chunk.0 == *name);
            prop_assert!(block.iter().all(|name| in_parent(name) == (at >= laid.new_blocks)));
            prop_assert!(block.iter().map(|name| 1 + name * 4000).sum::<u32>() <= BLOCK);
        }
        let again = captured(&new, Some(&second));
        prop_assert_eq!(again.content(), second.content());
        let bytes = |manifest: &Manifest| { let mut all = Vec::new(); manifest.encode(|part| all.extend_from_slice(part)); all };
        prop_assert_eq!(bytes(&again), bytes(&second));
    }
}
