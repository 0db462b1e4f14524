//! Readers, layout and compressors, joined.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, PoisonError};

use crossbeam_channel::{Receiver, Sender, bounded};
use shoal_proto::cid::Cid;
use shoal_proto::image::entry::{Content, Kind, Segment, push_segment};
use shoal_proto::image::layout::{BlockKey, LaidOut, Layout, Region, block_bytes_for};
use shoal_proto::image::manifest::Manifest;
use shoal_proto::image::tree::TreeBuilder;

use super::super::root::Directories;
use super::read::{Body, Event, Outcome, Reader};
use super::scan::{Counts, Scan};
use super::{BlockSink, CaptureError, CaptureOptions, CaptureProgress, UnreadableReason, Unreadables};
use crate::block::EncodedBlock;

/// One job is at most so many entries, and ends when it has so many bytes to read.
const JOB_ENTRIES_MAX: u32 = 64;
const JOB_BYTES: u64 = 1 << 20;
/// Batches of about 1 MiB that a reader may be ahead with one job.
const BATCHES_AHEAD: usize = 2;
/// The row that became no entry.
const NO_ENTRY: u32 = u32::MAX;

/// A whole image whose manifest is not stored yet.
pub(super) struct Packed {
    pub(super) manifest: Manifest,
    pub(super) block_bytes: u32,
    pub(super) new_blocks: u64,
    pub(super) compressed_bytes: u64,
    pub(super) new_compressed_bytes: u64,
    pub(super) counts: Counts,
}

struct Job {
    rows: std::ops::Range<u32>,
    events: Sender<Vec<Event>>,
}

/// What became of the blocks.
#[derive(Default)]
struct Stored {
    blocks: HashMap<BlockKey, (Cid, u64)>,
    failure: Option<CaptureError>,
}

/// Reads every row of the scan and stores the blocks.
pub(super) fn pack(
    directories: &Directories,
    mut scan: Scan,
    options: &CaptureOptions,
    sink: &dyn BlockSink,
    progress: &dyn CaptureProgress,
) -> Result<Packed, CaptureError> {
    let threads = options.threads.max(1);
    let unreadable = std::mem::take(&mut scan.unreadable);
    let parent = options.parent.as_ref().map(|parent| Arc::new(parent.chunk_table()));
    let layout = Layout::new(block_bytes_for(scan.data_bytes), parent);
    let (jobs_in, jobs) = bounded::<Job>(threads);
    let (order_in, order) = bounded::<(std::ops::Range<u32>, Receiver<Vec<Event>>)>(2 * threads);
    let (blocks_in, blocks) = bounded::<(BlockKey, Vec<u8>)>(threads);
    let stored = Mutex::new(Stored::default());
    let scan = &scan;

    let packer = std::thread::scope(|scope| {
        scope.spawn(move || dispatch(scan, &jobs_in, &order_in));
        for _ in 0..threads {
            let (jobs, blocks, stored) = (jobs.clone(), blocks.clone(), &stored);
            scope.spawn(move || {
                let mut reader = Reader::new(directories, scan, progress);
                for job in jobs {
                    if reader.read(job.rows, &job.events).is_err() {
                        break;
                    }
                }
            });
            scope.spawn(move || compress(&blocks, options.level, sink, progress, stored));
        }
        drop((jobs, blocks));
        let mut packer = Packer::new(scan, layout, unreadable, blocks_in);
        // Dropped when it ends early: then everybody who would wait for this thread ends too.
        packer.run(order);
        packer.close()
    });

    let stored = stored.into_inner().unwrap_or_else(PoisonError::into_inner);
    if packer.unreadable.count > 0 {
        return Err(CaptureError::Unreadable(packer.unreadable));
    }
    if let Some(failure) = stored.failure {
        return Err(failure);
    }
    if let Some(failure) = packer.failure {
        return Err(failure);
    }
    assemble(packer, &stored, scan)
}

fn assemble(packer: Closed, stored: &Stored, scan: &Scan) -> Result<Packed, CaptureError> {
    let Closed { tree, laid, vanished, .. } = packer;
    let new_blocks = laid.new_blocks;
    let mut cids = Vec::with_capacity(laid.blocks.len());
    let (mut compressed_bytes, mut new_compressed_bytes) = (0, 0);
    for (at, block) in laid.blocks.iter().enumerate() {
        let (cid, bytes) = stored.blocks[&block.key];
        cids.push(cid);
        compressed_bytes += bytes;
        if at < new_blocks {
            new_compressed_bytes += bytes;
        }
    }
    let manifest = Manifest::assemble(tree.finish(), &laid, &cids)?;
    let mut counts = scan.counts;
    counts.vanished += vanished;
    Ok(Packed {
        manifest,
        block_bytes: laid.block_bytes,
        new_blocks: new_blocks as u64,
        compressed_bytes,
        new_compressed_bytes,
        counts,
    })
}

/// Cuts the rows into jobs. The order of receivers is the order of rows.
fn dispatch(scan: &Scan, jobs: &Sender<Job>, order: &Sender<(std::ops::Range<u32>, Receiver<Vec<Event>>)>) {
    let rows = u32::try_from(scan.rows.len()).expect("the scan numbers rows with u32");
    let mut start = 0;
    while start < rows {
        let (mut end, mut bytes) = (start, 0);
        while end < rows && end - start < JOB_ENTRIES_MAX && bytes < JOB_BYTES {
            bytes += scan.rows[end as usize].data_bytes;
            end += 1;
        }
        let (events_in, events) = bounded(BATCHES_AHEAD);
        // Either ends when the capture failed.
        if order.send((start..end, events)).is_err()
            || jobs.send(Job { rows: start..end, events: events_in }).is_err()
        {
            return;
        }
        start = end;
    }
}

fn compress(
    blocks: &Receiver<(BlockKey, Vec<u8>)>,
    level: i32,
    sink: &dyn BlockSink,
    progress: &dyn CaptureProgress,
    stored: &Mutex<Stored>,
) {
    for (key, raw) in blocks {
        let block = EncodedBlock::encode(&raw, level);
        let put = sink.put(&block);
        let bytes = block.payload.len() as u64;
        progress.stored(raw.len() as u64, bytes);
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
    }
}

/// Takes events in path order: the only place where an image's order is made.
struct Packer<'a> {
    scan: &'a Scan,
    layout: Layout,
    tree: TreeBuilder,
    /// For each row so far its entry.
    entries: Vec<u32>,
    /// The directories around the next entry, by row.
    open: Vec<u32>,
    buffers: [Option<(BlockKey, Vec<u8>)>; 2],
    segments: Vec<Segment>,
    unreadable: Unreadables,
    vanished: u64,
    blocks: Sender<(BlockKey, Vec<u8>)>,
    failure: Option<CaptureError>,
}

/// A packer that has sent its last block.
struct Closed {
    tree: TreeBuilder,
    laid: LaidOut,
    unreadable: Unreadables,
    vanished: u64,
    failure: Option<CaptureError>,
}

impl<'a> Packer<'a> {
    fn new(
        scan: &'a Scan,
        layout: Layout,
        unreadable: Unreadables,
        blocks: Sender<(BlockKey, Vec<u8>)>,
    ) -> Self {
        Self {
            scan,
            layout,
            tree: TreeBuilder::default(),
            entries: Vec::with_capacity(scan.len()),
            open: Vec::new(),
            buffers: [None, None],
            segments: Vec::new(),
            unreadable,
            vanished: 0,
            blocks,
            failure: None,
        }
    }

    fn run(&mut self, order: Receiver<(std::ops::Range<u32>, Receiver<Vec<Event>>)>) {
        for (rows, events) in order {
            let mut row = rows.start;
            for event in events.into_iter().flatten() {
                let ended = matches!(event, Event::End(_));
                if self.event(row, event).is_none() {
                    return;
                }
                row += u32::from(ended);
            }
        }
    }

    /// `None` when it makes no sense to go on.
    fn event(&mut self, row: u32, event: Event) -> Option<()> {
        match event {
            Event::Chunks { data, chunks } => {
                let mut at = 0;
                for (id, bytes) in chunks {
                    let end = at + bytes as usize;
                    let placed = self.layout.place(id, bytes);
                    if let Some(key) = placed.append_to {
                        self.append(key, &data[at..end])?;
                    }
                    push_segment(&mut self.segments, Segment::Chunks { first: placed.chunk, count: 1 });
                    at = end;
                }
            }
            Event::Hole(bytes) => push_segment(&mut self.segments, Segment::Hole { bytes }),
            Event::Restart => self.segments.clear(),
            Event::End(outcome) => {
                let entry = self.end(row, outcome)?;
                self.entries.push(entry);
                self.segments.clear();
            }
        }
        Some(())
    }

    /// Adds a chunk's bytes to a block; the block before it in its region is complete when this is a new one.
    fn append(&mut self, key: BlockKey, bytes: &[u8]) -> Option<()> {
        let buffer = &mut self.buffers[key.region as usize];
        if let Some(full) = buffer.take_if(|(open, _)| *open != key) {
            self.blocks.send(full).ok()?;
        }
        buffer.get_or_insert_with(|| (key, Vec::new())).1.extend_from_slice(bytes);
        Some(())
    }

    /// The entry that a row became.
    fn end(&mut self, row: u32, outcome: Outcome) -> Option<u32> {
        let skipped = |this: &mut Self, reason| {
            this.unreadable.add(this.scan.path(row), reason);
            Some(NO_ENTRY)
        };
        let parent = self.scan.parent(row);
        if row != 0 && self.entries[parent as usize] == NO_ENTRY {
            // Its directory vanished or was counted as unreadable: so is all that was in it.
            return Some(NO_ENTRY);
        }
        let name = self.scan.name(row);
        let pushed = match outcome {
            Outcome::Vanished => {
                self.vanished += 1;
                return Some(NO_ENTRY);
            }
            Outcome::Unreadable(reason) => return skipped(self, reason),
            Outcome::HardLink(first) => match self.entries[first as usize] {
                NO_ENTRY => return skipped(self, UnreadableReason::LinkVanished),
                to => {
                    let up = self.close_until(row, parent);
                    self.tree.push_hard_link(up, name, to)
                }
            },
            Outcome::Entry { attributes, mtime, body } => {
                let up = self.close_until(row, parent);
                let kind = match &body {
                    Body::Directory => {
                        self.open.push(row);
                        Kind::Directory
                    }
                    Body::File => Kind::File(Content::Segments(&self.segments)),
                    Body::Symlink(target) => Kind::Symlink { target },
                    &Body::CharDevice(major, minor) => Kind::CharDevice { major, minor },
                    &Body::BlockDevice(major, minor) => Kind::BlockDevice { major, minor },
                    Body::Fifo => Kind::Fifo,
                };
                self.tree.push(up, name, attributes, mtime, kind)
            }
        };
        match pushed {
            Ok(entry) => Some(entry.get()),
            Err(error) => {
                self.failure = Some(error.into());
                None
            }
        }
    }

    /// How many directories end before `row`.
    fn close_until(&mut self, row: u32, parent: u32) -> usize {
        let mut up = 0;
        while row != 0 && self.open.last().is_some_and(|open| *open != parent) {
            self.open.pop();
            up += 1;
        }
        up
    }

    /// Sends what is left and lets the compressors end.
    fn close(self) -> Closed {
        for last in self.buffers.into_iter().flatten() {
            // A failure to send is a failure to store, which is known.
            let _ = self.blocks.send(last);
        }
        let Self { tree, layout, unreadable, vanished, failure, .. } = Self { buffers: [None, None], ..self };
        Closed { tree, laid: layout.finish(), unreadable, vanished, failure }
    }
}

const _: () = assert!(Region::New as usize == 0 && Region::Known as usize == 1);
