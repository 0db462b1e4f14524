//! What a capture saw of each inode, kept for the next capture of the tree.
//!
//! ```text
//! file    = header  group*
//! header  = "shoal seen 0001\n"  image digest 32  began s i64  began ns u32  device u64  user u32  namespace u64
//!           rows u64  crc32c u32 of all before it                                            (little endian)
//! group   = row × 1024 (the last one fewer)  crc32c u32 of them
//! row     = inode u64  changed s i64  changed ns u32      by entry of the image; inode 0: not to be relied on
//! ```
//! Derived data: a file that is missing, damaged or of another image costs a full read and nothing else. So nobody
//! syncs it, and nothing that goes wrong with it fails a capture.

use std::ffi::OsString;
use std::fs::{self, File};
use std::io::{self, BufWriter, Seek, SeekFrom, Write};
use std::os::fd::OwnedFd;
use std::os::unix::fs::{FileExt, MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::time::{SystemTime, UNIX_EPOCH};

use rustix::fs::Statx;
use shoal_proto::cid::{Cid, DIGEST_BYTES};

const MAGIC: [u8; 16] = *b"shoal seen 0001\n";
const HEADER_BYTES: usize = MAGIC.len() + DIGEST_BYTES + 8 + 4 + 8 + 4 + 8 + 8 + 4;
const ROW_BYTES: usize = 8 + 8 + 4;
const ROWS_PER_GROUP: usize = 1024;
const GROUP_BYTES: usize = ROWS_PER_GROUP * ROW_BYTES + 4;

/// An inode at a moment: whatever changes it, content or attributes, changes this.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Stamp {
    inode: u64,
    changed_s: i64,
    changed_ns: u32,
}

impl Stamp {
    /// Of an entry whose next capture shall read it.
    pub(super) const NONE: Self = Self { inode: 0, changed_s: 0, changed_ns: 0 };

    pub(super) fn of(stat: &Statx) -> Self {
        Self { inode: stat.stx_ino, changed_s: stat.stx_ctime.tv_sec, changed_ns: stat.stx_ctime.tv_nsec }
    }

    /// Whether a change after `began` cannot have left the same stamp. File systems count time in steps of up to two
    /// seconds.
    fn is_settled(self, began: (i64, u32)) -> bool {
        (self.changed_s.saturating_add(2), self.changed_ns) <= began
    }
}

/// Under which circumstances stamps were taken. Others may show other attributes of the same inode.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Circumstances {
    device: u64,
    user: u32,
    /// The user namespace: decides which ids and which extended attributes are seen.
    namespace: u64,
}

/// File systems on this machine's disks or memory that change an inode's time of change with every change of it
/// (`f_type` of ext2 to 4, XFS, Btrfs, tmpfs, overlay, F2FS, bcachefs, ZFS).
const EXACT_FILE_SYSTEMS: [u64; 8] =
    [0xef53, 0x5846_5342, 0x9123_683e, 0x0102_1994, 0x794c_7630, 0xf2f5_2010, 0xca45_1a4e, 0x2fc1_2fc1];

impl Circumstances {
    /// Of a capture of the tree at `top`. `None` where stamps prove nothing.
    pub(super) fn of(top: &OwnedFd, stat: &Statx) -> Option<Self> {
        let kind = u64::try_from(rustix::fs::fstatfs(top).ok()?.f_type).ok()?;
        Some(Self {
            device: u64::from(stat.stx_dev_major) << 32 | u64::from(stat.stx_dev_minor),
            user: rustix::process::geteuid().as_raw(),
            namespace: fs::metadata("/proc/self/ns/user").ok()?.ino(),
        })
        .filter(|_| EXACT_FILE_SYSTEMS.contains(&kind))
    }
}

/// The stamps of an earlier capture.
#[derive(Debug)]
pub(super) struct Seen {
    file: File,
    rows: u64,
    began: (i64, u32),
    /// The group of the last row that was asked for, and its rows; none when it is damaged.
    group: Option<(u64, Vec<u8>)>,
}

impl Seen {
    /// Opens what was kept of `image`, if it was kept under the same circumstances.
    pub(super) fn open(path: &Path, image: &Cid, here: Circumstances) -> Option<Self> {
        let file = File::open(path).ok()?;
        let mut bytes = [0; HEADER_BYTES];
        file.read_exact_at(&mut bytes, 0).ok()?;
        let (header, rows) = Header::from_bytes(&bytes)?;
        let same = header.image == *image && header.circumstances == here;
        same.then_some(Self { file, rows, began: header.began, group: None })
    }

    /// The stamp of an entry of the image, if it can be relied on.
    pub(super) fn stamp(&mut self, entry: u32) -> Option<Stamp> {
        let row = u64::from(entry);
        if row >= self.rows {
            return None;
        }
        let group = row / ROWS_PER_GROUP as u64;
        if self.group.as_ref().is_none_or(|(loaded, _)| *loaded != group) {
            self.group = Some((group, self.load(group).unwrap_or_default()));
        }
        let at = entry as usize % ROWS_PER_GROUP * ROW_BYTES;
        let (_, rows) = self.group.as_ref()?;
        let row = rows.get(at..at + ROW_BYTES)?;
        let stamp = Stamp {
            inode: u64::from_le_bytes(row[..8].try_into().ok()?),
            changed_s: i64::from_le_bytes(row[8..16].try_into().ok()?),
            changed_ns: u32::from_le_bytes(row[16..].try_into().ok()?),
        };
        (stamp.inode != 0 && stamp.is_settled(self.began)).then_some(stamp)
    }

    fn load(&self, group: u64) -> Option<Vec<u8>> {
        let left = self.rows - group * ROWS_PER_GROUP as u64;
        let rows = usize::try_from(left).ok()?.min(ROWS_PER_GROUP);
        let mut bytes = vec![0; rows * ROW_BYTES + 4];
        self.file.read_exact_at(&mut bytes, HEADER_BYTES as u64 + group * GROUP_BYTES as u64).ok()?;
        let (rows, crc) = bytes.split_last_chunk()?;
        (u32::from_le_bytes(*crc) == crc32c::crc32c(rows)).then(|| rows.to_vec())
    }
}

struct Header {
    image: Cid,
    began: (i64, u32),
    circumstances: Circumstances,
}

impl Header {
    fn to_bytes(&self, rows: u64) -> Vec<u8> {
        let Circumstances { device, user, namespace } = self.circumstances;
        let mut bytes = MAGIC.to_vec();
        bytes.extend(self.image.digest());
        bytes.extend(self.began.0.to_le_bytes());
        bytes.extend(self.began.1.to_le_bytes());
        bytes.extend(device.to_le_bytes());
        bytes.extend(user.to_le_bytes());
        bytes.extend(namespace.to_le_bytes());
        bytes.extend(rows.to_le_bytes());
        bytes.extend(crc32c::crc32c(&bytes).to_le_bytes());
        bytes
    }

    fn from_bytes(bytes: &[u8; HEADER_BYTES]) -> Option<(Self, u64)> {
        let (body, crc) = bytes.split_last_chunk()?;
        if u32::from_le_bytes(*crc) != crc32c::crc32c(body) {
            return None;
        }
        let mut rest = body.strip_prefix(&MAGIC)?;
        let image = Cid::from_digest(*take(&mut rest)?);
        let began = (i64::from_le_bytes(*take(&mut rest)?), u32::from_le_bytes(*take(&mut rest)?));
        let circumstances = Circumstances {
            device: u64::from_le_bytes(*take(&mut rest)?),
            user: u32::from_le_bytes(*take(&mut rest)?),
            namespace: u64::from_le_bytes(*take(&mut rest)?),
        };
        let rows = u64::from_le_bytes(*take(&mut rest)?);
        Some((Self { image, began, circumstances }, rows))
    }
}

fn take<'a, const N: usize>(rest: &mut &'a [u8]) -> Option<&'a [u8; N]> {
    let (first, behind) = rest.split_first_chunk()?;
    *rest = behind;
    Some(first)
}

/// Writes the stamps of a capture while it goes on, in the order of its entries.
#[derive(Debug)]
pub(super) struct SeenWriter {
    path: PathBuf,
    beside: PathBuf,
    began: (i64, u32),
    circumstances: Circumstances,
    out: BufWriter<File>,
    rows: u64,
    group: Vec<u8>,
    failure: Option<io::Error>,
}

impl SeenWriter {
    /// Begins a file beside `path`. The capture begins now: no inode was looked at before.
    pub(super) fn create(path: &Path, circumstances: Circumstances) -> io::Result<Self> {
        let mut name = OsString::from(path.file_name().ok_or(io::ErrorKind::InvalidInput)?);
        name.push(".new");
        let beside = path.with_file_name(name);
        let mut file = File::options().write(true).create(true).truncate(true).mode(0o600).open(&beside)?;
        file.seek(SeekFrom::Start(HEADER_BYTES as u64))?;
        let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
        Ok(Self {
            path: path.to_owned(),
            beside,
            began: (i64::try_from(now.as_secs()).unwrap_or(0), now.subsec_nanos()),
            circumstances,
            out: BufWriter::new(file),
            rows: 0,
            group: Vec::with_capacity(GROUP_BYTES),
            failure: None,
        })
    }

    pub(super) fn push(&mut self, stamp: Stamp) {
        self.group.extend(stamp.inode.to_le_bytes());
        self.group.extend(stamp.changed_s.to_le_bytes());
        self.group.extend(stamp.changed_ns.to_le_bytes());
        self.rows += 1;
        if self.group.len() == ROWS_PER_GROUP * ROW_BYTES {
            self.end_group();
        }
    }

    /// Names the image and puts the file in its place.
    pub(super) fn finish(mut self, image: Cid) -> io::Result<()> {
        if !self.group.is_empty() {
            self.end_group();
        }
        if let Some(failure) = self.failure.take() {
            return Err(failure);
        }
        self.out.flush()?;
        let header = Header { image, began: self.began, circumstances: self.circumstances };
        self.out.get_ref().write_all_at(&header.to_bytes(self.rows), 0)?;
        fs::rename(&self.beside, &self.path)
    }

    fn end_group(&mut self) {
        let crc = crc32c::crc32c(&self.group);
        self.group.extend(crc.to_le_bytes());
        if self.failure.is_none() {
            self.failure = self.out.write_all(&self.group).err();
        }
        self.group.clear();
    }
}

impl Drop for SeenWriter {
    fn drop(&mut self) {
        // Gone already when it was put in its place.
        let _ = fs::remove_file(&self.beside);
    }
}

#[cfg(test)]
mod tests;
