//! Takes what readers say in path order: the only place where an image's order is made.

use std::ops::Range;
use std::sync::Arc;

use crossbeam_channel::{Receiver, Sender};
use shoal_proto::image::entry::{Attributes, Content, Kind, Mtime, Segment, push_segment};
use shoal_proto::image::layout::{BlockKey, LaidOut, Layout, ParentPieces};
use shoal_proto::image::tree::TreeBuilder;

use super::batch::{Batch, BatchBytes, BlockBytes, Body, Buffers, Event, Outcome};
use super::pack::{Block, Rows};
use super::remote::RemoteError;
use super::reuse::inode_of;
use super::scan::Scan;
use super::seen::{Seen, SeenWriter, Stamp};
use super::{CaptureError, Changed, UnreadableReason, Unreadables};

/// The row that became no entry.
const NO_ENTRY: u32 = u32::MAX;

pub(super) struct Packer<'a> {
    parent: Option<&'a Arc<ParentPieces>>,
    scan: &'a Scan,
    layout: Layout,
    tree: TreeBuilder,
    /// For each row so far its entry.
    entries: Vec<u32>,
    /// The directories around the next entry, by row.
    open: Vec<u32>,
    /// The new block that is being filled.
    block: Option<(u32, BlockBytes<'a>)>,
    block_bytes: usize,
    segments: Vec<Segment>,
    unreadable: Unreadables,
    changed: Changed,
    vanished: u64,
    reused: u64,
    /// What the parent's capture saw, for what is the same.
    last_seen: Option<Seen>,
    seen: Option<SeenWriter>,
    blocks: Sender<Block<'a>>,
    failure: Option<CaptureError>,
}

/// A packer that has sent its last new block.
pub(super) struct Closed {
    pub(super) tree: TreeBuilder,
    pub(super) laid: LaidOut,
    pub(super) unreadable: Unreadables,
    pub(super) changed: Changed,
    pub(super) vanished: u64,
    pub(super) reused: u64,
    pub(super) seen: Option<SeenWriter>,
    pub(super) failure: Option<CaptureError>,
}

impl Closed {
    pub(super) fn is_whole(&self) -> bool {
        self.unreadable.count == 0 && self.failure.is_none()
    }
}

impl<'a> Packer<'a> {
    pub(super) fn new(
        parent: Option<&'a Arc<ParentPieces>>,
        scan: &'a Scan,
        layout: Layout,
        unreadable: Unreadables,
        (last_seen, seen): (Option<Seen>, Option<SeenWriter>),
        blocks: Sender<Block<'a>>,
    ) -> Self {
        Self {
            parent,
            scan,
            block_bytes: layout.block_bytes() as usize,
            layout,
            tree: TreeBuilder::default(),
            entries: Vec::with_capacity(scan.len()),
            open: Vec::new(),
            block: None,
            segments: Vec::new(),
            unreadable,
            changed: Changed::default(),
            vanished: 0,
            reused: 0,
            last_seen,
            seen,
            blocks,
            failure: None,
        }
    }

    pub(super) fn run(
        &mut self,
        order: Receiver<(Rows, Receiver<Batch>)>,
        batch_buffers: &'a Buffers,
        block_buffers: &Buffers,
    ) {
        for (rows, batches) in order {
            let mut row = rows.start;
            for Batch { data, events } in batches {
                let data = Arc::new(BatchBytes { data, buffers: batch_buffers });
                let mut at = 0;
                for event in events {
                    let ended = matches!(event, Event::End(_));
                    if self.event(row, event, &data, &mut at, block_buffers).is_none() {
                        return;
                    }
                    row += u32::from(ended);
                }
            }
        }
    }

    /// `None` when it makes no sense to go on.
    fn event(
        &mut self,
        row: u32,
        event: Event,
        data: &Arc<BatchBytes<'a>>,
        at: &mut usize,
        buffers: &Buffers,
    ) -> Option<()> {
        match event {
            Event::Chunk(id, bytes) => {
                let end = *at + bytes as usize;
                let placed = self.layout.place(id, bytes);
                if let Some(block) = placed.append_to {
                    self.append(block, data, *at..end, buffers)?;
                }
                push_segment(&mut self.segments, Segment::Chunks { first: placed.chunk, count: 1 });
                *at = end;
            }
            Event::Known(id, bytes) => {
                let placed = self.layout.place(id, bytes);
                if placed.append_to.is_some() {
                    let error = RemoteError::Nonsense("a chunk is said to be here and is not");
                    self.failure = Some(error.into());
                    return None;
                }
                push_segment(&mut self.segments, Segment::Chunks { first: placed.chunk, count: 1 });
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

    /// Adds a chunk's bytes to a new block; the one before it is complete when it is another one.
    fn append(
        &mut self,
        block: u32,
        data: &Arc<BatchBytes<'a>>,
        chunk: Range<usize>,
        buffers: &Buffers,
    ) -> Option<()> {
        if let Some((full, raw)) = self.block.take_if(|(open, _)| *open != block) {
            self.blocks.send((BlockKey::New(full), raw)).ok()?;
        }
        match &mut self.block {
            None => self.block = Some((block, BlockBytes::Part(Arc::clone(data), chunk))),
            Some((_, BlockBytes::Part(batch, range)))
                if Arc::ptr_eq(batch, data) && range.end == chunk.start =>
            {
                range.end = chunk.end;
            }
            Some((_, BlockBytes::Own(raw))) => raw.extend_from_slice(&data.data[chunk]),
            Some((_, part)) => {
                let mut raw = buffers.take().unwrap_or_else(|| Vec::with_capacity(self.block_bytes));
                raw.clear();
                raw.extend_from_slice(part.bytes());
                raw.extend_from_slice(&data.data[chunk]);
                *part = BlockBytes::Own(raw);
            }
        }
        Some(())
    }

    /// The entry that a row became.
    fn end(&mut self, row: u32, outcome: Outcome) -> Option<u32> {
        let parent = self.scan.parent(row);
        if row != 0 && self.entries[parent as usize] == NO_ENTRY {
            // Its directory vanished or was counted as unreadable: so is all that was in it.
            return Some(NO_ENTRY);
        }
        match outcome {
            Outcome::Vanished => {
                self.vanished += 1;
                Some(NO_ENTRY)
            }
            Outcome::Unreadable(reason) => self.skip(row, reason),
            Outcome::HardLink(first) => match self.entries[first as usize] {
                NO_ENTRY => self.skip(row, UnreadableReason::LinkVanished),
                to => {
                    let up = self.close_until(row);
                    let pushed = self.tree.push_hard_link(up, self.scan.name(row), to);
                    self.said(pushed.map(|entry| entry.get()), Stamp::NONE)
                }
            },
            Outcome::Same(old) => self.same(row, old),
            Outcome::Entry { attributes, mtime, body, stamp, settled } => {
                if !settled {
                    self.changed.add(self.scan.path(row));
                }
                let segments = std::mem::take(&mut self.segments);
                let kind = match &body {
                    Body::Directory => Kind::Directory,
                    Body::File => Kind::File(Content::Segments(&segments)),
                    Body::Symlink(target) => Kind::Symlink { target },
                    &Body::CharDevice(major, minor) => Kind::CharDevice { major, minor },
                    &Body::BlockDevice(major, minor) => Kind::BlockDevice { major, minor },
                    Body::Fifo => Kind::Fifo,
                };
                let entry = self.push(row, attributes, mtime, kind, stamp);
                self.segments = segments;
                entry
            }
        }
    }

    /// Takes an entry over from the parent, content and all.
    fn same(&mut self, row: u32, old: u32) -> Option<u32> {
        let parent = self.parent.expect("only entries of a parent can be the same");
        let entry = inode_of(parent.manifest(), old).expect("the scan found it in the parent");
        if let Kind::File(content) = entry.kind() {
            for segment in content.segments() {
                if let Segment::Chunks { first, count } = *segment {
                    self.layout.keep(first..first + count);
                }
            }
        }
        self.reused += 1;
        let stamp = self.last_seen.as_mut().and_then(|seen| seen.stamp(old)).unwrap_or(Stamp::NONE);
        self.push(row, entry.attributes().clone(), entry.mtime(), entry.kind(), stamp)
    }

    fn push(
        &mut self,
        row: u32,
        attributes: Attributes,
        mtime: Mtime,
        kind: Kind<'_>,
        stamp: Stamp,
    ) -> Option<u32> {
        let up = self.close_until(row);
        if kind == Kind::Directory {
            self.open.push(row);
        }
        let pushed = self.tree.push(up, self.scan.name(row), attributes, mtime, kind);
        self.said(pushed.map(|entry| entry.get()), stamp)
    }

    fn said<E: Into<CaptureError>>(&mut self, pushed: Result<u32, E>, stamp: Stamp) -> Option<u32> {
        match pushed {
            Ok(entry) => {
                if let Some(seen) = &mut self.seen {
                    seen.push(stamp);
                }
                Some(entry)
            }
            Err(error) => {
                self.failure = Some(error.into());
                None
            }
        }
    }

    fn skip(&mut self, row: u32, reason: UnreadableReason) -> Option<u32> {
        self.unreadable.add(self.scan.path(row), reason);
        Some(NO_ENTRY)
    }

    /// How many directories end before `row`.
    fn close_until(&mut self, row: u32) -> usize {
        let parent = self.scan.parent(row);
        let mut up = 0;
        while row != 0 && self.open.last().is_some_and(|open| *open != parent) {
            self.open.pop();
            up += 1;
        }
        up
    }

    /// Sends the last new block. What comes after new blocks goes through the channel that it returns.
    pub(super) fn close(self) -> (Closed, Sender<Block<'a>>) {
        if let Some((last, raw)) = self.block {
            // A failure to send is a failure to store, which is known.
            let _ = self.blocks.send((BlockKey::New(last), raw));
        }
        let Self { tree, layout, unreadable, changed, vanished, reused, seen, failure, blocks, .. } =
            Self { block: None, ..self };
        let laid = layout.finish();
        (Closed { tree, laid, unreadable, changed, vanished, reused, seen, failure }, blocks)
    }
}
