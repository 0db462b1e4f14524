//! A tree of another machine: there it is read, cut and hashed; here it is laid out, compressed and stored.
//!
//! ```text
//! golden client                                   seeder
//!   offer  ───────────────────────────────────────▶  (listed until somebody captures it)
//!          ◀──────────────────── begin, have*, go     excludes; the chunks that are here already
//!   rows*, scanned, events*, done  ───────────────▶  scan, then what readers say, in path order
//! ```
//! A chunk travels once, and not at all when it was said to be here: a second capture moves what is new. Nothing that
//! the other machine says is believed: every chunk is hashed again, and rows and events are checked before they are
//! used. The image is the one that a capture on that machine would have made.

mod frames;

use std::collections::HashSet;
use std::io::{Read, Write};
use std::path::Path;
use std::sync::{Mutex, MutexGuard, PoisonError};

use crossbeam_channel::{Receiver, bounded};
use serde::{Deserialize, Serialize};
use shoal_proto::cid::ChunkId;

use super::super::exclude::{Excludes, PatternError};
use super::batch::{Batch, Buffers};
use super::pack::{Rows, Setting};
use super::reuse::Reuse;
use super::scan::Scan;
use super::seen::Circumstances;
use super::source::{Live, Order, Source, Work};
use super::{BlockSink, CaptureError, CaptureOptions, CaptureProgress, Captured};
use frames::{EventReader, EventWriter, Kind, RowReader, RowWriter};

/// Batches that may be ahead of the packer.
const BATCHES_AHEAD: usize = 4;
/// Ranges of rows that readers may be ahead of the wire, for each reader.
const RANGES_AHEAD: usize = 2;

/// What ends a conversation.
#[derive(Debug, thiserror::Error)]
pub enum RemoteError {
    #[error("the other side broke off")]
    BrokenOff(#[source] std::io::Error),
    #[error("the other side said what cannot be: {0}")]
    Nonsense(&'static str),
    /// In its own words.
    #[error("the other side says: {0}")]
    Failed(String),
    #[error(transparent)]
    Pattern(#[from] PatternError),
    #[error("cannot open {}", path.display())]
    Top { path: std::path::PathBuf, source: std::io::Error },
}

/// A tree that a machine offers.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct TreeOffer {
    /// What the operator of the seeder calls it by.
    pub name: String,
    /// The machine's own name.
    pub host: String,
    /// The top of the tree there.
    pub path: String,
}

/// What is to be read how.
#[derive(Clone, Debug, Serialize, Deserialize)]
struct Begin {
    excludes: Vec<String>,
    allow_changed: bool,
}

/// What the scan found beside rows.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
struct Scanned {
    rows: u32,
    data_bytes: u64,
    read_bytes: u64,
    sockets: u64,
    vanished: u64,
    excluded: u64,
    mounts: u64,
    /// Directories that could not be listed, and why.
    unreadable: Vec<(Vec<u8>, String)>,
    unreadable_count: u64,
}

type Reading = Box<dyn Read + Send>;
type Writing = Box<dyn Write + Send>;

/// The seeder's end of a conversation: one tree, captured any number of times.
pub struct RemoteTree {
    offer: TreeOffer,
    // Taken in this order.
    writer: Mutex<Writing>,
    reader: Mutex<Counted>,
}

impl std::fmt::Debug for RemoteTree {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("RemoteTree").field("offer", &self.offer).finish_non_exhaustive()
    }
}

/// Counts what comes.
struct Counted {
    from: Reading,
    bytes: u64,
}

impl Read for Counted {
    fn read(&mut self, buffer: &mut [u8]) -> std::io::Result<usize> {
        let read = self.from.read(buffer)?;
        self.bytes += read as u64;
        Ok(read)
    }
}

impl RemoteTree {
    /// Hears what is offered.
    ///
    /// # Errors
    /// When the other side says something else or nothing.
    pub fn accept(reader: Reading, writer: Writing) -> Result<Self, RemoteError> {
        let mut reader = Counted { from: reader, bytes: 0 };
        let offer = frames::read_document(&mut reader, Kind::Offer)?;
        Ok(Self { offer, writer: Mutex::new(writer), reader: Mutex::new(reader) })
    }

    pub fn offer(&self) -> &TreeOffer {
        &self.offer
    }

    /// Bytes that came so far.
    pub fn received_bytes(&self) -> u64 {
        self.reader().bytes
    }

    fn reader(&self) -> MutexGuard<'_, Counted> {
        self.reader.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Captures a tree that another machine offers. `excludes` are those of `options`, as text.
///
/// # Errors
/// As [`capture`](super::capture), and when the other side breaks off: nothing was captured then.
pub fn capture_remote(
    tree: &RemoteTree,
    excludes: &[String],
    options: &CaptureOptions,
    sink: &dyn BlockSink,
    progress: &dyn CaptureProgress,
) -> Result<Captured, CaptureError> {
    super::capture_from(&Remote { tree, excludes }, options, sink, progress)
}

struct Remote<'a> {
    tree: &'a RemoteTree,
    excludes: &'a [String],
}

impl Source for Remote<'_> {
    fn circumstances(&self) -> Option<Circumstances> {
        None
    }

    fn scan(&self, setting: &Setting<'_>, _: Option<Reuse<'_>>) -> Result<Scan, CaptureError> {
        let begin = Begin { excludes: self.excludes.to_vec(), allow_changed: setting.options.allow_changed };
        let mut writer = self.tree.writer.lock().unwrap_or_else(PoisonError::into_inner);
        let mut out = &mut **writer;
        frames::write_document(&mut out, Kind::Begin, &begin)?;
        if let Some(parent) = &setting.parent {
            let manifest = parent.manifest();
            let pieces = manifest.content().indexes().map(|piece| manifest.piece_chunks(piece));
            let held = pieces.filter(|chunks| parent.holds(chunks.clone())).flatten();
            frames::write_ids(&mut out, held.map(|chunk| manifest.chunk_id(chunk)))?;
        }
        frames::write_frame(&mut out, Kind::Go, &[])?;
        out.flush().map_err(RemoteError::BrokenOff)?;
        drop(writer);

        let mut reader = self.tree.reader();
        let mut rows = RowReader::default();
        loop {
            let (kind, body) = frames::read_frame(&mut *reader)?;
            match kind {
                Kind::Rows => rows.push(&body)?,
                Kind::Scanned => return Ok(rows.finish(frames::document(&body)?)?),
                kind => return Err(frames::unexpected(kind, &body).into()),
            }
        }
    }

    fn read(&self, work: &Work<'_>, order: &Order) -> Result<(), CaptureError> {
        let rows = u32::try_from(work.scan.len()).expect("the scan numbers rows with u32");
        let (batches, receiver) = bounded(BATCHES_AHEAD);
        if order.send((0..rows, receiver)).is_err() {
            return Ok(());
        }
        let mut reader = self.tree.reader();
        let mut events = EventReader::new(rows);
        loop {
            let (kind, body) = frames::read_frame(&mut *reader)?;
            match kind {
                Kind::Events => {
                    let batch = events.batch(&body, work.buffers)?;
                    work.progress.read(batch.data.len() as u64);
                    if batches.send(batch).is_err() {
                        // The capture failed here: what is still under way cannot be told from another one's.
                        return Err(RemoteError::Nonsense("an entry that no image can hold").into());
                    }
                }
                Kind::Done => return Ok(events.finish()?),
                kind => return Err(frames::unexpected(kind, &body).into()),
            }
        }
    }
}

/// The golden client's end: offers the tree at `top`, and reads it whenever the other side asks. The rules in `first`
/// decide before those of the other side. Returns when the other side hangs up.
///
/// # Errors
/// When the conversation ends otherwise; a capture that fails is told to the other side and ends nothing.
pub fn offer_tree(
    top: &Path,
    offer: &TreeOffer,
    first: Excludes,
    threads: usize,
    mut reader: Reading,
    mut writer: Writing,
    told: &dyn Fn(OfferEvent),
) -> Result<(), RemoteError> {
    frames::write_document(&mut writer, Kind::Offer, offer)?;
    writer.flush().map_err(RemoteError::BrokenOff)?;
    loop {
        let begin: Begin = match frames::read_frame(&mut reader) {
            Ok((Kind::Begin, body)) => frames::document(&body)?,
            Ok((kind, body)) => return Err(frames::unexpected(kind, &body)),
            Err(RemoteError::BrokenOff(error)) if error.kind() == std::io::ErrorKind::UnexpectedEof => {
                return Ok(());
            }
            Err(error) => return Err(error),
        };
        let mut known = HashSet::new();
        loop {
            match frames::read_frame(&mut reader)? {
                (Kind::Have, body) => frames::read_ids(&body, &mut known)?,
                (Kind::Go, _) => break,
                (kind, body) => return Err(frames::unexpected(kind, &body)),
            }
        }
        told(OfferEvent::Begun);
        match send_tree(top, &begin, &first, threads, known, &mut writer) {
            Ok(sent) => told(OfferEvent::Sent { chunk_bytes: sent }),
            Err(error @ (RemoteError::Pattern(_) | RemoteError::Top { .. })) => {
                let mut text = error.to_string();
                if let Some(source) = std::error::Error::source(&error) {
                    text = format!("{text}: {source}");
                }
                frames::write_frame(&mut writer, Kind::Failed, text.as_bytes())?;
            }
            Err(error) => return Err(error),
        }
        writer.flush().map_err(RemoteError::BrokenOff)?;
    }
}

/// What happens to an offer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum OfferEvent {
    /// Somebody captures it.
    Begun,
    /// It was read to its end; so many raw bytes of chunks travelled.
    Sent { chunk_bytes: u64 },
}

/// Reads the tree once and says all of it. Returns the raw bytes of the chunks that travelled.
fn send_tree(
    top: &Path,
    begin: &Begin,
    first: &Excludes,
    threads: usize,
    known: HashSet<ChunkId>,
    writer: &mut Writing,
) -> Result<u64, RemoteError> {
    let excludes = Excludes::new(&begin.excludes)?.after(first.clone());
    let failed = |source| RemoteError::Top { path: top.to_owned(), source };
    let live = Live::open(top).map_err(failed)?;
    let scan = live.rows(&excludes, None, threads);
    let mut rows = RowWriter::default();
    for number in 0..u32::try_from(scan.len()).expect("the scan numbers rows with u32") {
        rows.push(&scan, number, writer)?;
    }
    rows.finish(&scan, writer)?;

    let buffers = Buffers::default();
    let work =
        Work { scan: &scan, buffers: &buffers, progress: &(), allow_changed: begin.allow_changed, threads };
    let (order_in, order) = bounded::<(Rows, Receiver<Batch>)>(RANGES_AHEAD * threads);
    std::thread::scope(|scope| {
        scope.spawn(|| {
            let order_in = order_in;
            live.read_rows(&work, &order_in);
        });
        // Dropped at a failure: the readers end then.
        let order = order;
        let mut events = EventWriter::new(known);
        for (_, batches) in order {
            for batch in batches {
                events.push(&batch, writer)?;
                buffers.give(batch.data);
            }
        }
        events.flush(writer)?;
        frames::write_frame(writer, Kind::Done, &[])?;
        Ok(events.sent_bytes())
    })
}
