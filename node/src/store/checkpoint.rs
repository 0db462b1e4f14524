//! The checkpoint: up to where the packs are on disk, and what the index must then hold.
//!
//! ```text
//! CHECKPOINT = "shoal ckpt 0001\n" | pack u32 | offset u64 | blocks u64 | sum u64 | crc32c u32   (little endian)
//! ```
//! Replaced as a whole (temporary, sync, rename, sync of the folder), after the packs were synced and the index was
//! written. It may lag behind both; it never runs ahead of the packs.

use std::io;
use std::path::Path;

use super::disk::Disk;
use super::index::Change;
use super::pack::Place;
use shoal_proto::cid::Cid;

const NAME: &str = "CHECKPOINT";
const TEMPORARY_NAME: &str = "CHECKPOINT.new";
const MAGIC: &[u8; 16] = b"shoal ckpt 0001\n";
const BYTES: usize = 48;

/// Every record before (`pack`, `offset`) is on disk, and the index holds exactly the entries that `summary` sums up
/// among those with a place before it.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Checkpoint {
    pub(super) pack: u32,
    pub(super) offset: u64,
    pub(super) summary: Summary,
}

/// A set of index entries, as their count and the sum of a checksum of each: no order matters, entries come and go.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Summary {
    blocks: u64,
    sum: u64,
}

impl Summary {
    pub(super) fn add(&mut self, cid: &Cid, place: &Place) {
        self.blocks = self.blocks.wrapping_add(1);
        self.sum = self.sum.wrapping_add(checksum(cid, place));
    }

    fn subtract(&mut self, cid: &Cid, place: &Place) {
        self.blocks = self.blocks.wrapping_sub(1);
        self.sum = self.sum.wrapping_sub(checksum(cid, place));
    }

    pub(super) fn change(&mut self, change: &Change) {
        if let Some(place) = &change.before {
            self.subtract(&change.cid, place);
        }
        if let Some(place) = &change.after {
            self.add(&change.cid, place);
        }
    }
}

fn checksum(cid: &Cid, place: &Place) -> u64 {
    let place = [place.pack, place.offset, place.payload_bytes].map(u32::to_le_bytes).concat();
    let forward = crc32c::crc32c_append(crc32c::crc32c(cid.digest()), &place);
    let backward = crc32c::crc32c_append(crc32c::crc32c(&place), cid.digest());
    u64::from(forward) << 32 | u64::from(backward)
}

impl Checkpoint {
    /// Whether a record at this place was on disk when the checkpoint was made.
    pub(super) fn covers(&self, place: &Place) -> bool {
        place.pack < self.pack || (place.pack == self.pack && place.end() <= self.offset)
    }

    /// The checkpoint in the store `dir`: `None` when there is none, or none that can be believed.
    pub(super) fn read(disk: &Disk, dir: &Path) -> io::Result<Option<Self>> {
        match disk.read(&dir.join(NAME)) {
            Ok(bytes) => {
                let checkpoint = bytes.as_slice().try_into().ok().and_then(Self::from_bytes);
                if checkpoint.is_none() {
                    tracing::warn!(dir = %dir.display(), "the store's checkpoint is damaged: checking every record");
                }
                Ok(checkpoint)
            }
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
            Err(error) => Err(error),
        }
    }

    /// Makes this the checkpoint of the store `dir`. On disk when it returns.
    pub(super) fn write(&self, disk: &Disk, dir: &Path) -> io::Result<()> {
        let temporary = dir.join(TEMPORARY_NAME);
        let file = disk.create(&temporary)?;
        file.write_at(0, [&self.to_bytes(), &[]])?;
        file.sync()?;
        disk.rename(&temporary, &dir.join(NAME))?;
        disk.sync_folder(dir)
    }

    /// Takes the checkpoint away, so that the next opening checks every record.
    pub(super) fn void(disk: &Disk, dir: &Path) {
        let _ = disk.remove(&dir.join(NAME));
    }

    fn to_bytes(self) -> [u8; BYTES] {
        let mut bytes = [0; BYTES];
        bytes[..16].copy_from_slice(MAGIC);
        bytes[16..20].copy_from_slice(&self.pack.to_le_bytes());
        bytes[20..28].copy_from_slice(&self.offset.to_le_bytes());
        bytes[28..36].copy_from_slice(&self.summary.blocks.to_le_bytes());
        bytes[36..44].copy_from_slice(&self.summary.sum.to_le_bytes());
        let crc = crc32c::crc32c(&bytes[..44]);
        bytes[44..].copy_from_slice(&crc.to_le_bytes());
        bytes
    }

    fn from_bytes(bytes: &[u8; BYTES]) -> Option<Self> {
        let long = |at: usize| u64::from_le_bytes(bytes[at..at + 8].try_into().expect("8 bytes"));
        let short = |at: usize| u32::from_le_bytes(bytes[at..at + 4].try_into().expect("4 bytes"));
        let good = bytes[..16] == *MAGIC && short(44) == crc32c::crc32c(&bytes[..44]);
        let summary = Summary { blocks: long(28), sum: long(36) };
        good.then(|| Self { pack: short(16), offset: long(20), summary })
    }
}

#[cfg(test)]
mod tests {
    use std::fs;

    use super::*;

    #[test]
    fn a_checkpoint_is_read_back_or_not_at_all() {
        let folder = tempfile::tempdir().unwrap();
        let (disk, dir) = (Disk::default(), folder.path());
        assert_eq!(Checkpoint::read(&disk, dir).unwrap(), None);
        let checkpoint =
            Checkpoint { pack: 3, offset: 5 << 30, summary: Summary { blocks: 9, sum: u64::MAX } };
        checkpoint.write(&disk, dir).unwrap();
        assert_eq!(Checkpoint::read(&disk, dir).unwrap(), Some(checkpoint));
        let good = fs::read(dir.join(NAME)).unwrap();
        for bit in 0..good.len() * 8 {
            let mut flipped = good.clone();
            flipped[bit / 8] ^= 1 << (bit % 8);
            fs::write(dir.join(NAME), &flipped).unwrap();
            assert_eq!(Checkpoint::read(&disk, dir).unwrap(), None, "bit {bit}");
        }
        for length in [0, 1, 47, 49] {
            fs::write(dir.join(NAME), vec![0; length]).unwrap();
            assert_eq!(Checkpoint::read(&disk, dir).unwrap(), None);
        }
    }

    #[test]
    fn a_summary_does_not_depend_on_order_and_sees_every_field() {
        let (a, b) = (Cid::of(b"a"), Cid::of(b"b"));
        let place = Place { pack: 1, offset: 2, payload_bytes: 3 };
        let sum = |entries: &[(Cid, Place)]| {
            let mut summary = Summary::default();
            entries.iter().for_each(|(cid, place)| summary.add(cid, place));
            summary
        };
        let moved = Place { offset: 9, ..place };
        assert_eq!(sum(&[(a, place), (b, moved)]), sum(&[(b, moved), (a, place)]));
        assert_ne!(sum(&[(a, place), (b, moved)]), sum(&[(a, moved), (b, place)]));
        assert_ne!(sum(&[(a, place)]), sum(&[(a, place), (a, place)]));
        let mut summary = sum(&[(a, place)]);
        summary.change(&Change { cid: a, before: Some(place), after: Some(moved) });
        assert_eq!(summary, sum(&[(a, moved)]));
    }
}
