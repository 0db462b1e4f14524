//! What readers hand to the packer: the content of entries, cut and named, about a mebibyte at a time.

use std::ops::Range;
use std::sync::{Arc, Mutex, PoisonError};

use crossbeam_channel::Sender;
use shoal_proto::cid::ChunkId;
use shoal_proto::image::chunker::CHUNK_BYTES_MAX;
use shoal_proto::image::entry::{Attributes, Mtime};

use super::UnreadableReason;
use super::seen::Stamp;

/// Bytes of chunks after which a batch is sent. What is read and not cut yet fits behind them.
const BATCH_BYTES: usize = 1 << 20;
const BUFFER_BYTES: usize = BATCH_BYTES + CHUNK_BYTES_MAX;
/// Events after which a batch is sent: most entries have few bytes or none.
const BATCH_EVENTS: usize = 1 << 10;
/// Buffers that wait for their next use.
const SPARE_MAX: usize = 32;

/// What a reader says of the entries of its job, in order: any number of parts of content, then the end of the entry.
#[derive(Debug)]
pub(super) enum Event {
    /// The next so many bytes of the batch.
    Chunk(ChunkId, u32),
    /// So many bytes that came before, or that the parent has.
    Known(ChunkId, u32),
    Hole(u64),
    /// The file changed: forget what was said of its content.
    Restart,
    End(Outcome),
}

#[derive(Debug)]
pub(super) enum Outcome {
    /// `settled` is false of a file that changed each time it was read.
    Entry {
        attributes: Attributes,
        mtime: Mtime,
        body: Body,
        stamp: Stamp,
        settled: bool,
    },
    /// Just as this entry of the parent image.
    Same(u32),
    HardLink(u32),
    Vanished,
    Unreadable(UnreadableReason),
}

#[derive(Debug)]
pub(super) enum Body {
    Directory,
    /// Its content was said before.
    File,
    Symlink(Vec<u8>),
    CharDevice(u32, u32),
    BlockDevice(u32, u32),
    Fifo,
}

/// The other side wants no more: the capture failed elsewhere.
#[derive(Debug)]
pub(super) struct Stopped;

/// Events, and the bytes of their chunks one after another.
#[derive(Debug)]
pub(super) struct Batch {
    pub(super) data: Vec<u8>,
    pub(super) events: Vec<Event>,
}

/// Buffers that go round, each [`BUFFER_BYTES`] long: a fresh one costs as much in page faults as hashing what is in it.
#[derive(Debug, Default)]
pub(super) struct Buffers(Mutex<Vec<Vec<u8>>>);

/// The bytes of a batch, whose buffer goes round once nobody has a part of them any more.
#[derive(Debug)]
pub(super) struct BatchBytes<'a> {
    pub(super) data: Vec<u8>,
    pub(super) buffers: &'a Buffers,
}

impl Drop for BatchBytes<'_> {
    fn drop(&mut self) {
        if !self.data.is_empty() {
            self.buffers.give(std::mem::take(&mut self.data));
        }
    }
}

/// The bytes of a block that is being filled, or is full.
#[derive(Debug)]
pub(super) enum BlockBytes<'a> {
    Own(Vec<u8>),
    /// Chunks that came one after another: most blocks are never copied together.
    Part(Arc<BatchBytes<'a>>, Range<usize>),
}

impl BlockBytes<'_> {
    pub(super) fn bytes(&self) -> &[u8] {
        match self {
            Self::Own(bytes) => bytes,
            Self::Part(batch, range) => &batch.data[range.clone()],
        }
    }
}

impl Buffers {
    pub(super) fn take(&self) -> Option<Vec<u8>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).pop()
    }

    /// Keeps a buffer for its next use, if it is large enough to be of any: a batch without content has none.
    pub(super) fn give(&self, mut buffer: Vec<u8>) {
        if buffer.capacity() < BUFFER_BYTES {
            return;
        }
        buffer.resize(BUFFER_BYTES, 0);
        let mut spare = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        if spare.len() < SPARE_MAX {
            spare.push(buffer);
        }
    }
}

/// Collects events and sends them in batches.
pub(super) struct Batcher<'a> {
    buffers: &'a Buffers,
    to: &'a Sender<Batch>,
    events: Vec<Event>,
    data: Vec<u8>,
    /// Bytes of `data` that events name, and bytes read.
    said: usize,
    filled: usize,
}

impl<'a> Batcher<'a> {
    pub(super) fn new(buffers: &'a Buffers, to: &'a Sender<Batch>) -> Self {
        Self { buffers, to, events: Vec::new(), data: Vec::new(), said: 0, filled: 0 }
    }

    pub(super) fn push(&mut self, event: Event) -> Result<(), Stopped> {
        debug_assert!(self.said == self.filled, "content is said before what follows it");
        self.events.push(event);
        if self.said >= BATCH_BYTES || self.events.len() >= BATCH_EVENTS { self.send() } else { Ok(()) }
    }

    /// Room for up to `want` more bytes of the file at hand.
    pub(super) fn room(&mut self, want: usize) -> Result<&mut [u8], Stopped> {
        let short = BUFFER_BYTES - self.filled < want.min(CHUNK_BYTES_MAX);
        if self.said >= BATCH_BYTES || self.said > 0 && short {
            self.send()?;
        }
        if self.data.is_empty() {
            self.data = self.buffers.take().unwrap_or_else(|| vec![0; BUFFER_BYTES]);
        }
        let end = BUFFER_BYTES.min(self.filled + want);
        Ok(&mut self.data[self.filled..end])
    }

    /// So many bytes of the room were used.
    pub(super) fn fill(&mut self, bytes: usize) {
        self.filled += bytes;
    }

    /// What was read and not said yet.
    pub(super) fn unsaid(&self) -> &[u8] {
        &self.data[self.said..self.filled]
    }

    /// The next bytes read are this chunk.
    pub(super) fn say(&mut self, id: ChunkId, bytes: usize) {
        self.said += bytes;
        self.events.push(Event::Chunk(id, u32::try_from(bytes).expect("at most CHUNK_BYTES_MAX")));
    }

    pub(super) fn send(&mut self) -> Result<(), Stopped> {
        let unsaid = self.filled - self.said;
        let mut next = Vec::new();
        if unsaid > 0 {
            next = self.buffers.take().unwrap_or_else(|| vec![0; BUFFER_BYTES]);
            next[..unsaid].copy_from_slice(self.unsaid());
        }
        let data = std::mem::replace(&mut self.data, next);
        (self.said, self.filled) = (0, unsaid);
        self.to.send(Batch { data, events: std::mem::take(&mut self.events) }).map_err(|_| Stopped)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_buffer_that_goes_round_has_room_for_a_batch() {
        let buffers = Buffers::default();
        buffers.give(Vec::new());
        assert!(buffers.take().is_none());
        let mut shorter = vec![0; BUFFER_BYTES];
        shorter.truncate(5);
        buffers.give(shorter);
        assert_eq!(buffers.take().unwrap().len(), BUFFER_BYTES);
    }
}
