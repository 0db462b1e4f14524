//! Entries of a tree of this machine, which may change while it is read.

use std::os::fd::OwnedFd;
use std::sync::Arc;

use rustix::fs::{FileType, Mode, OFlags, Statx};
use rustix::io::Errno;
use shoal_proto::image::entry::{Attributes, SYMLINK_TARGET_BYTES_MAX};

use super::super::metadata;
use super::super::root::{self, Directories};
use super::batch::{Batcher, Body, Event, Outcome};
use super::read::{Cutter, Failure, SayEntry};
use super::scan::{Found, Scan};
use super::seen::Stamp;
use super::source::Work;

/// Times that a file is read again when it changed meanwhile.
const REREADS_MAX: u32 = 3;

pub(super) struct LiveEntries<'a> {
    directories: &'a Directories,
    scan: &'a Scan,
    allow_changed: bool,
    /// The directory of the last entry.
    directory: Option<(u32, Arc<OwnedFd>)>,
}

impl<'a> LiveEntries<'a> {
    pub(super) fn new(directories: &'a Directories, work: &Work<'a>) -> Self {
        Self { directories, scan: work.scan, allow_changed: work.allow_changed, directory: None }
    }
}

impl SayEntry for LiveEntries<'_> {
    fn say(
        &mut self,
        number: u32,
        found: Found,
        cutter: &mut Cutter<'_>,
        batch: &mut Batcher<'_>,
    ) -> Result<Outcome, Failure> {
        if found == Found::Directory {
            let dir = self.directories.open(self.scan, number)?;
            let stat = root::stat(&dir)?;
            if stat.stx_nlink == 0 {
                // Removed while it was kept open.
                return Err(Failure::Vanished);
            }
            return said(metadata::read_open(&dir, &stat)?, &stat, Body::Directory);
        }
        let dir = self.parent(number)?;
        let name = self.scan.name(number);
        if found == Found::File {
            return self.file(&dir, name, cutter, batch);
        }
        let stat = root::stat_in(&dir, name)?;
        let device = (stat.stx_rdev_major, stat.stx_rdev_minor);
        let (body, same) = match (found, FileType::from_raw_mode(stat.stx_mode.into())) {
            (Found::Symlink, FileType::Symlink) => {
                let target =
                    rustix::fs::readlinkat(&*dir, name, Vec::with_capacity(SYMLINK_TARGET_BYTES_MAX))?;
                (Body::Symlink(target.into_bytes()), true)
            }
            (Found::CharDevice, FileType::CharacterDevice) => (Body::CharDevice(device.0, device.1), true),
            (Found::BlockDevice, FileType::BlockDevice) => (Body::BlockDevice(device.0, device.1), true),
            (Found::Fifo, FileType::Fifo) => (Body::Fifo, true),
            _ => (Body::Fifo, false),
        };
        if !same {
            return Err(Failure::Changed);
        }
        said(metadata::read_named(&dir, name, &stat)?, &stat, body)
    }
}

impl LiveEntries<'_> {
    fn parent(&mut self, number: u32) -> Result<Arc<OwnedFd>, Errno> {
        let parent = self.scan.parent(number);
        if let Some((open, dir)) = &self.directory
            && *open == parent
        {
            return Ok(Arc::clone(dir));
        }
        let dir = self.directories.open(self.scan, parent)?;
        self.directory = Some((parent, Arc::clone(&dir)));
        Ok(dir)
    }

    fn file(
        &self,
        dir: &OwnedFd,
        name: &[u8],
        cutter: &mut Cutter<'_>,
        batch: &mut Batcher<'_>,
    ) -> Result<Outcome, Failure> {
        let file = open_file(dir, name)?;
        let mut before = root::stat(&file)?;
        if FileType::from_raw_mode(before.stx_mode.into()) != FileType::RegularFile {
            return Err(Failure::Changed);
        }
        for reread in 0..=REREADS_MAX {
            let sparse = before.stx_blocks.saturating_mul(512) < before.stx_size;
            let read = cutter.content(&file, before.stx_size, sparse, batch)?;
            let attributes = metadata::read_open(&file, &before)?;
            let after = root::stat(&file)?;
            let settled = read == after.stx_size && unchanged(&before, &after);
            if settled || self.allow_changed && reread == REREADS_MAX {
                let outcome = said(attributes, &after, Body::File)?;
                return Ok(if settled { outcome } else { unsettled(outcome) });
            }
            batch.push(Event::Restart)?;
            before = after;
        }
        Err(Failure::Changed)
    }
}

fn said(attributes: Attributes, stat: &Statx, body: Body) -> Result<Outcome, Failure> {
    let mtime = metadata::mtime_of(stat)?;
    Ok(Outcome::Entry { attributes, mtime, body, stamp: Stamp::of(stat), settled: true })
}

/// Read for what it is worth: the next capture reads it again.
fn unsettled(outcome: Outcome) -> Outcome {
    match outcome {
        Outcome::Entry { attributes, mtime, body, .. } => {
            Outcome::Entry { attributes, mtime, body, stamp: Stamp::NONE, settled: false }
        }
        other => other,
    }
}

/// Without leaving a trace in its access time, where that is allowed.
fn open_file(dir: &OwnedFd, name: &[u8]) -> Result<OwnedFd, Failure> {
    let flags = OFlags::RDONLY | OFlags::NONBLOCK | OFlags::NOCTTY;
    let opened = match root::open_in(dir, name, flags | OFlags::NOATIME, Mode::empty()) {
        Err(Errno::PERM) => root::open_in(dir, name, flags, Mode::empty()),
        done => done,
    };
    // Another kind of thing stands there now.
    opened.map_err(|error| match error {
        Errno::LOOP | Errno::NXIO => Failure::Changed,
        error => error.into(),
    })
}

fn unchanged(before: &Statx, after: &Statx) -> bool {
    let times = |stat: &Statx| {
        let (m, c) = (stat.stx_mtime, stat.stx_ctime);
        (m.tv_sec, m.tv_nsec, c.tv_sec, c.tv_nsec)
    };
    before.stx_size == after.stx_size && times(before) == times(after)
}
