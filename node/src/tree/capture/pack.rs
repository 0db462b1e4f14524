//! Readers, packer and compressors, joined.

use std::collections::{HashMap, HashSet};
use std::sync::{Arc, Mutex, PoisonError};

use crossbeam_channel::{Receiver, bounded};
use shoal_proto::cid::Cid;
use shoal_proto::image::layout::{BlockKey, LaidBlock, Layout, ParentPieces, block_bytes_for};
use shoal_proto::image::manifest::Manifest;

use super::batch::{Batch, BlockBytes, Buffers};
use super::left_over::{self, Trouble};
use super::packer::{Closed, Packer};
use super::scan::{Counts, Scan};
use super::seen::{Seen, SeenWriter};
use super::source::{Source, Work};
use super::{BlockSink, CaptureError, CaptureOptions, CaptureProgress, Changed};
use crate::block::EncodedBlock;

/// Bytes of full blocks that may wait for a compressor. With less, blocks of 256 KiB make threads wait for each other.
const BLOCKS_AHEAD_BYTES: usize = 4 << 20;

/// A whole image whose manifest is not stored yet.
pub(super) struct Packed {
    pub(super) manifest: Manifest,
    pub(super) block_bytes: u32,
    pub(super) new_blocks: u64,
    pub(super) compressed_bytes: u64,
    pub(super) new_compressed_bytes: u64,
    pub(super) counts: Counts,
    pub(super) reused: u64,
    pub(super) changed: Changed,
    pub(super) seen: Option<SeenWriter>,
}

/// Why nothing was packed.
pub(super) enum PackError {
    Capture(CaptureError),
    /// These blocks of the parent cannot be read though the sink said that it holds them.
    Lost(HashSet<Cid>),
}

/// What a capture works with from beginning to end.
pub(super) struct Setting<'a> {
    pub(super) source: &'a dyn Source,
    pub(super) options: &'a CaptureOptions,
    pub(super) sink: &'a dyn BlockSink,
    pub(super) progress: &'a dyn CaptureProgress,
    pub(super) parent: Option<Arc<ParentPieces>>,
}

pub(super) type Rows = std::ops::Range<u32>;
/// A block that is full, and what to call it.
pub(super) type Block<'a> = (BlockKey, BlockBytes<'a>);

/// What became of the blocks.
#[derive(Default)]
struct Stored {
    blocks: HashMap<BlockKey, (Cid, u64)>,
    failure: Option<CaptureError>,
}

/// Reads every row of the scan and stores the blocks.
pub(super) fn pack(
    setting: &Setting<'_>,
    mut whole_scan: Scan,
    seen: (Option<Seen>, Option<SeenWriter>),
) -> Result<Packed, PackError> {
    let threads = setting.options.threads.max(1);
    let unreadable = std::mem::take(&mut whole_scan.unreadable);
    let block_bytes = match &setting.parent {
        Some(parent) => parent.block_bytes_for(whole_scan.data_bytes),
        None => block_bytes_for(whole_scan.data_bytes),
    };
    let layout = Layout::new(block_bytes, setting.parent.clone());
    let (order_in, order) = bounded::<(Rows, Receiver<Batch>)>(2 * threads);
    let blocks_ahead = threads.max(BLOCKS_AHEAD_BYTES / block_bytes as usize);
    let (blocks_in, blocks) = bounded::<Block<'_>>(blocks_ahead);
    let stored = Mutex::new(Stored::default());
    let (batch_buffers, block_buffers) = (Buffers::default(), Buffers::default());
    let (scan, batch_buffers, block_buffers) = (&whole_scan, &batch_buffers, &block_buffers);

    let (closed, trouble) = std::thread::scope(|scope| {
        let reading = scope.spawn(move || {
            let work = Work {
                scan,
                buffers: batch_buffers,
                progress: setting.progress,
                allow_changed: setting.options.allow_changed,
                threads,
            };
            setting.source.read(&work, &order_in)
        });
        // One more than there are readers: a sink that waits for its disk holds one up.
        for _ in 0..=threads {
            let (blocks, stored) = (blocks.clone(), &stored);
            scope.spawn(move || compress(setting, &blocks, block_buffers, stored));
        }
        drop(blocks);
        let mut packer = Packer::new(setting.parent.as_ref(), scan, layout, unreadable, seen, blocks_in);
        // Dropped when it ends early: then everybody who would wait for this thread ends too.
        packer.run(order, batch_buffers, block_buffers);
        let (mut closed, blocks_in) = packer.close();
        let read = reading.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic));
        if let Err(failure) = read {
            closed.failure.get_or_insert(failure);
        }
        let trouble = match &setting.parent {
            Some(parent) if closed.is_whole() => {
                left_over::send(&closed.laid, parent, setting.sink, block_buffers, &blocks_in)
            }
            _ => None,
        };
        (closed, trouble)
    });
    let stored = stored.into_inner().unwrap_or_else(PoisonError::into_inner);
    let counts = scan.counts;
    // With a million entries it takes a fifth of the memory that the next steps need.
    drop(whole_scan);
    let fail = |error| Err(PackError::Capture(error));
    match (closed.unreadable, stored.failure, closed.failure, trouble) {
        (unreadable, ..) if unreadable.count > 0 => fail(CaptureError::Unreadable(unreadable)),
        (_, Some(failure), ..) | (_, _, Some(failure), _) => fail(failure),
        (.., Some(Trouble::Lost(lost))) => Err(PackError::Lost(lost)),
        (.., Some(Trouble::Stopped)) => unreachable!("compressors stop at a failure that they keep"),
        (unreadable, None, None, None) => {
            let closed = Closed { unreadable, failure: None, ..closed };
            assemble(closed, &stored.blocks, counts, setting).map_err(PackError::Capture)
        }
    }
}

fn assemble(
    closed: Closed,
    stored: &HashMap<BlockKey, (Cid, u64)>,
    mut counts: Counts,
    setting: &Setting<'_>,
) -> Result<Packed, CaptureError> {
    let Closed { tree, laid, vanished, reused, changed, seen, .. } = closed;
    let mut cids = Vec::with_capacity(laid.blocks.len());
    let (mut compressed_bytes, mut new_compressed_bytes) = (0, 0);
    for (at, block) in laid.blocks.iter().enumerate() {
        let (cid, bytes) = match (block, &setting.parent) {
            (LaidBlock::Inherited(piece), Some(parent)) => {
                let cid = parent.manifest().content().piece(*piece).cid;
                (cid, setting.sink.held(&cid).unwrap_or(0))
            }
            (made, _) => stored[&made.key().expect("nothing is inherited without a parent")],
        };
        cids.push(cid);
        compressed_bytes += bytes;
        if at < laid.new_blocks {
            new_compressed_bytes += bytes;
        }
    }
    let manifest = Manifest::assemble(tree.finish(), &laid, &cids)?;
    counts.vanished += vanished;
    Ok(Packed {
        manifest,
        block_bytes: laid.block_bytes,
        new_blocks: laid.new_blocks as u64,
        compressed_bytes,
        new_compressed_bytes,
        counts,
        reused,
        changed,
        seen,
    })
}

fn compress(setting: &Setting<'_>, blocks: &Receiver<Block<'_>>, buffers: &Buffers, stored: &Mutex<Stored>) {
    let options = setting.options;
    let mut payload = Vec::new();
    for (key, raw) in blocks {
        let update = options.parent.is_some() && matches!(key, BlockKey::New(_));
        let level = if update { options.update_level } else { options.level };
        let block = EncodedBlock::encode_reusing(raw.bytes(), level, payload);
        let put = setting.sink.put(&block);
        let bytes = block.payload.len() as u64;
        setting.progress.stored(u64::from(block.raw_bytes), bytes);
        if let BlockBytes::Own(raw) = raw {
            buffers.give(raw);
        }
        let mut stored = stored.lock().unwrap_or_else(PoisonError::into_inner);
        match put {
            Ok(()) => {
                stored.blocks.insert(key, (block.cid, bytes));
            }
            Err(source) => {
                // The packer finds the channel closed once every compressor has stopped.
                stored.failure.get_or_insert(CaptureError::Sink { cid: block.cid, source });
                return;
            }
        }
        if stored.failure.is_some() {
            return;
        }
        payload = block.payload.into_vec();
    }
}
