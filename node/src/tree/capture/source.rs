//! Where a tree is read from: what differs between a directory of this machine and the content of an archive.

use std::io;
use std::ops::Range;
use std::path::Path;

use crossbeam_channel::{Receiver, Sender, bounded};

use super::super::archive::Archive;
use super::super::exclude::Excludes;
use super::super::root::{self, Directories};
use super::batch::{Batch, Buffers};
use super::pack::{Rows, Setting};
use super::read::{Cutter, Reader, SayEntry};
use super::read_archive::ArchiveEntries;
use super::read_live::LiveEntries;
use super::reuse::Reuse;
use super::scan::{self, Scan};
use super::seen::Circumstances;
use super::{CaptureError, CaptureProgress};

/// One job is at most so many entries, and ends when it has so many bytes to read.
const JOB_ENTRIES_MAX: u32 = 256;
const JOB_BYTES: u64 = 1 << 20;
/// Batches that a reader may be ahead with one job.
const BATCHES_AHEAD: usize = 2;

/// A tree that can be gone through twice: once for which entries there are, then for all that is in them.
pub(super) trait Source: Sync {
    /// What stamps of its inodes are worth, if anything.
    fn circumstances(&self) -> Option<Circumstances>;

    /// Which entries there are, in path order. Comes again when the capture begins again.
    fn scan(&self, setting: &Setting<'_>, reuse: Option<Reuse<'_>>) -> Result<Scan, CaptureError>;

    /// Says everything about every row of the scan: ranges of rows in order, and for each its batches. Ends early when
    /// nobody takes them any more.
    fn read(&self, work: &Work<'_>, order: &Order) -> Result<(), CaptureError>;
}

/// Ranges of rows in path order, and what is said of them.
pub(super) type Order = Sender<(Rows, Receiver<Batch>)>;

/// What every reader of a capture works with.
pub(super) struct Work<'a> {
    pub(super) scan: &'a Scan,
    pub(super) buffers: &'a Buffers,
    pub(super) progress: &'a dyn CaptureProgress,
    /// Take a file that changes each time it is read as it was read last.
    pub(super) allow_changed: bool,
    /// Readers.
    pub(super) threads: usize,
}

/// A tree of this machine.
pub(super) struct Live {
    directories: Directories,
}

impl Live {
    pub(super) fn open(top: &Path) -> io::Result<Self> {
        // Without it the attributes of what is neither file nor directory are out of reach, and seem to have vanished.
        if !Path::new("/proc/self/fd").exists() {
            return Err(io::Error::other("/proc is not mounted, through which attributes are read"));
        }
        Ok(Self { directories: Directories::new(root::open_top(top)?) })
    }

    pub(super) fn rows(&self, excludes: &Excludes, reuse: Option<Reuse<'_>>, threads: usize) -> Scan {
        // The last scan numbered them in its own way.
        self.directories.forget();
        scan::scan(&self.directories, excludes, reuse, threads)
    }

    pub(super) fn read_rows(&self, work: &Work<'_>, order: &Order) {
        in_parallel(work, order, || LiveEntries::new(&self.directories, work));
    }
}

impl Source for Live {
    fn circumstances(&self) -> Option<Circumstances> {
        let top = self.directories.top();
        root::stat(top).ok().and_then(|stat| Circumstances::of(top, &stat))
    }

    fn scan(&self, setting: &Setting<'_>, reuse: Option<Reuse<'_>>) -> Result<Scan, CaptureError> {
        Ok(self.rows(&setting.options.excludes, reuse, setting.options.threads))
    }

    fn read(&self, work: &Work<'_>, order: &Order) -> Result<(), CaptureError> {
        self.read_rows(work, order);
        Ok(())
    }
}

/// A tree that an archive holds.
pub(super) struct Archived<'a> {
    archive: &'a Archive,
}

impl<'a> Archived<'a> {
    pub(super) fn new(archive: &'a Archive) -> Self {
        Self { archive }
    }
}

impl Source for Archived<'_> {
    fn circumstances(&self) -> Option<Circumstances> {
        None
    }

    fn scan(&self, setting: &Setting<'_>, _: Option<Reuse<'_>>) -> Result<Scan, CaptureError> {
        Ok(scan::scan_archive(self.archive, &setting.options.excludes))
    }

    fn read(&self, work: &Work<'_>, order: &Order) -> Result<(), CaptureError> {
        in_parallel(work, order, || ArchiveEntries::new(self.archive, work.scan));
        self.archive.check_unchanged().map_err(CaptureError::Archive)
    }
}

struct Job {
    rows: Range<u32>,
    batches: Sender<Batch>,
}

/// Reads with several threads, each with a view of the entries of its own.
fn in_parallel<E: SayEntry>(work: &Work<'_>, order: &Order, entries: impl Fn() -> E + Sync) {
    let (jobs_in, jobs) = bounded::<Job>(work.threads);
    std::thread::scope(|scope| {
        for _ in 0..work.threads {
            let (jobs, entries) = (jobs.clone(), &entries);
            scope.spawn(move || {
                let cutter = Cutter::new(work.progress);
                let mut reader =
                    Reader { scan: work.scan, buffers: work.buffers, cutter, entries: entries() };
                for job in jobs {
                    if reader.read(job.rows, &job.batches).is_err() {
                        return;
                    }
                }
            });
        }
        drop(jobs);
        dispatch(work.scan, &jobs_in, order);
        drop(jobs_in);
    });
}

/// Cuts the rows into jobs. The order of receivers is the order of rows.
fn dispatch(scan: &Scan, jobs: &Sender<Job>, order: &Order) {
    let rows = u32::try_from(scan.rows.len()).expect("the scan numbers rows with u32");
    let mut start = 0;
    while start < rows {
        let (mut end, mut bytes) = (start, 0);
        while end < rows && end - start < JOB_ENTRIES_MAX && bytes < JOB_BYTES {
            bytes += scan.rows[end as usize].read_bytes;
            end += 1;
        }
        let (batches_in, batches) = bounded(BATCHES_AHEAD);
        // Either ends when the capture failed.
        if order.send((start..end, batches)).is_err()
            || jobs.send(Job { rows: start..end, batches: batches_in }).is_err()
        {
            return;
        }
        start = end;
    }
}
