//! The second pass: what is said of each entry, and how content is cut and hashed.

use std::os::fd::OwnedFd;

use crossbeam_channel::Sender;
use rustix::io::Errno;
use shoal_proto::cid::ChunkId;
use shoal_proto::image::chunker::{CHUNK_BYTES_MAX, Chunker};
use shoal_proto::image::entry::EntryError;

use super::super::metadata::ReadError;
use super::super::root;
use super::batch::{Batch, Batcher, Buffers, Event, Outcome, Stopped};
use super::scan::{Found, Scan};
use super::{CaptureProgress, UnreadableReason};

/// Why a run of data stops.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Stop {
    /// All was read.
    End,
    Zeros,
    /// The file got shorter.
    Short,
}

/// Why an entry could not be said.
pub(super) enum Failure {
    Stopped,
    Vanished,
    Changed,
    Reason(UnreadableReason),
}

impl From<Errno> for Failure {
    fn from(error: Errno) -> Self {
        if error == Errno::NOENT { Self::Vanished } else { Self::Reason(error.into()) }
    }
}

impl From<EntryError> for Failure {
    fn from(error: EntryError) -> Self {
        Self::Reason(error.into())
    }
}

impl From<ReadError> for Failure {
    fn from(error: ReadError) -> Self {
        match error {
            ReadError::System(error) => error.into(),
            ReadError::Entry(error) => error.into(),
        }
    }
}

impl From<Stopped> for Failure {
    fn from(_: Stopped) -> Self {
        Self::Stopped
    }
}

/// One reader's view of the entries of a source.
pub(super) trait SayEntry {
    /// Says the content of an entry that is no hard link and not taken over, if it has any, and returns the rest.
    fn say(
        &mut self,
        number: u32,
        found: Found,
        cutter: &mut Cutter<'_>,
        batch: &mut Batcher<'_>,
    ) -> Result<Outcome, Failure>;
}

/// Reads entries, one job after another.
pub(super) struct Reader<'a, E> {
    pub(super) scan: &'a Scan,
    pub(super) buffers: &'a Buffers,
    pub(super) cutter: Cutter<'a>,
    pub(super) entries: E,
}

impl<E: SayEntry> Reader<'_, E> {
    /// Says everything about these rows.
    pub(super) fn read(&mut self, rows: std::ops::Range<u32>, to: &Sender<Batch>) -> Result<(), Stopped> {
        let mut batch = Batcher::new(self.buffers, to);
        for number in rows {
            let outcome = match self.entry(number, &mut batch) {
                Ok(outcome) => outcome,
                Err(Failure::Stopped) => return Err(Stopped),
                Err(Failure::Vanished) => Outcome::Vanished,
                Err(Failure::Changed) => Outcome::Unreadable(UnreadableReason::Changing),
                Err(Failure::Reason(reason)) => Outcome::Unreadable(reason),
            };
            batch.push(Event::End(outcome))?;
        }
        batch.send()
    }

    fn entry(&mut self, number: u32, batch: &mut Batcher<'_>) -> Result<Outcome, Failure> {
        if let Some(same) = self.scan.same(number) {
            return Ok(Outcome::Same(same));
        }
        match self.scan.rows[number as usize].found {
            Found::HardLink(first) => Ok(Outcome::HardLink(first)),
            found => self.entries.say(number, found, &mut self.cutter, batch),
        }
    }
}

/// The content of a file.
pub(super) trait Data {
    /// The next run of data of a sparse file from `at` on, as [`root::next_content`] says it.
    fn next_content(&self, at: u64, size: u64) -> Result<(u64, u64), Errno>;

    /// Fills the buffer, or reads to the end of the file.
    fn read_full(&self, buffer: &mut [u8], at: u64) -> Result<usize, Errno>;
}

impl Data for OwnedFd {
    fn next_content(&self, at: u64, size: u64) -> Result<(u64, u64), Errno> {
        root::next_content(self, at, size)
    }

    fn read_full(&self, buffer: &mut [u8], at: u64) -> Result<usize, Errno> {
        root::read_full(self, buffer, at)
    }
}

/// Cuts content into chunks and names them.
pub(super) struct Cutter<'a> {
    progress: &'a dyn CaptureProgress,
    chunker: Chunker,
}

impl<'a> Cutter<'a> {
    pub(super) fn new(progress: &'a dyn CaptureProgress) -> Self {
        Self { progress, chunker: Chunker::default() }
    }

    /// Says the content of a file, and how long it is by what was read.
    pub(super) fn content(
        &mut self,
        file: &impl Data,
        size: u64,
        sparse: bool,
        batch: &mut Batcher<'_>,
    ) -> Result<u64, Failure> {
        let mut at = 0;
        while at < size {
            let (data, end) = if sparse { file.next_content(at, size)? } else { (at, size) };
            if data > at {
                batch.push(Event::Hole(data - at))?;
            }
            let (read, stop) = self.run(file, data, end, sparse, batch)?;
            if stop == Stop::Short {
                return Ok(data + read);
            }
            at = data + read;
        }
        Ok(size)
    }

    /// Cuts one run of data and says how many bytes it had. In a sparse file it ends before a block of zeros.
    fn run(
        &mut self,
        file: &impl Data,
        start: u64,
        end: u64,
        sparse: bool,
        batch: &mut Batcher<'_>,
    ) -> Result<(u64, Stop), Failure> {
        let mut at = start;
        let mut stop = Stop::End;
        while at < end && stop == Stop::End {
            let left = usize::try_from(end - at).unwrap_or(usize::MAX);
            let room = batch.room(left)?;
            // Of a sparse file whole blocks: some may be zeros.
            let want = if sparse && room.len() < left {
                room.len() - room.len() % root::HOLE_BYTES
            } else {
                room.len()
            };
            let mut got = file.read_full(&mut room[..want], at)?;
            self.progress.read(got as u64);
            if got < want {
                stop = Stop::Short;
            }
            if sparse && let Some(zeros) = root::first_zero_block(&room[..got], at) {
                got = zeros;
                stop = Stop::Zeros;
            }
            batch.fill(got);
            at += got as u64;
            let last = at == end || stop != Stop::End;
            loop {
                let left = batch.unsaid();
                if left.is_empty() || !last && left.len() < CHUNK_BYTES_MAX {
                    break;
                }
                let chunk = &left[..self.chunker.first_chunk_bytes(left)];
                let (id, bytes) = (ChunkId::of(chunk), chunk.len());
                batch.say(id, bytes);
            }
        }
        Ok((at - start, stop))
    }
}
