//! The bytes of a file and its holes.

use std::fs::{File, Metadata};
use std::io;
use std::os::unix::fs::{FileExt, MetadataExt};
use std::path::Path;

use rustix::fs::{SeekFrom, seek};
use rustix::io::Errno;

/// Holes are looked at in units that every file system here has.
const BLOCK: usize = 4096;
const ZEROS: [u8; BLOCK] = [0; BLOCK];

#[derive(Debug)]
pub(super) struct Content {
    /// Of the blocks that are not all zeros and where they lie; holes are zeros.
    pub(super) hash: u32,
    /// Start and end of each, whole blocks only; none when the file takes all its room.
    holes: Vec<(u64, u64)>,
}

impl Content {
    /// `None` when this user may not read it.
    pub(super) fn read(near: &Path, metadata: &Metadata) -> io::Result<Option<Self>> {
        let file = match File::open(near) {
            Ok(file) => file,
            Err(error) if error.kind() == io::ErrorKind::PermissionDenied => return Ok(None),
            Err(error) => return Err(error),
        };
        let size = metadata.size();
        let mut sum = 0;
        let mut holes = Vec::new();
        let mut at = 0;
        while at < size {
            let (start, end) = data(&file, at, size)?;
            let (hole, hole_end) = (at.next_multiple_of(BLOCK as u64), start / BLOCK as u64 * BLOCK as u64);
            let hole_end = if start == size { size } else { hole_end };
            if hole < hole_end {
                holes.push((hole, hole_end));
            }
            sum = hash(&file, start, end, sum)?;
            at = end;
        }
        if metadata.blocks() * 512 >= size {
            holes.clear();
        }
        Ok(Some(Self { hash: sum, holes }))
    }
}

/// The next run of data, in whole blocks or to the end of the file.
fn data(file: &File, at: u64, size: u64) -> io::Result<(u64, u64)> {
    let start = match seek(file, SeekFrom::Data(at)) {
        Ok(start) => start,
        Err(Errno::NXIO) => return Ok((size, size)),
        Err(error) => return Err(error.into()),
    };
    let end = seek(file, SeekFrom::Hole(start))?;
    let block = BLOCK as u64;
    Ok(((start / block * block).clamp(at, size), end.next_multiple_of(block).min(size)))
}

fn hash(file: &File, mut at: u64, end: u64, mut sum: u32) -> io::Result<u32> {
    let mut buffer = vec![0; 64 * BLOCK];
    while at < end {
        let want = buffer.len().min(usize::try_from(end - at).unwrap_or(usize::MAX));
        file.read_exact_at(&mut buffer[..want], at)?;
        for (number, block) in buffer[..want].chunks(BLOCK).enumerate() {
            if block != &ZEROS[..block.len()] {
                let place = at + (number * BLOCK) as u64;
                sum = crc32c::crc32c_append(crc32c::crc32c_append(sum, &place.to_le_bytes()), block);
            }
        }
        at += want as u64;
    }
    Ok(sum)
}

/// What the second did to the holes of the first, which has the same bytes.
pub(super) fn filled_or_punched(a: &Content, b: &Content) -> Option<String> {
    let kept = |hole: &(u64, u64)| b.holes.iter().any(|other| other.0 <= hole.0 && hole.1 <= other.1);
    if let Some(filled) = a.holes.iter().find(|hole| !kept(hole)) {
        return Some(format!("{}..{} is filled in the second", filled.0, filled.1));
    }
    match b.holes.first() {
        Some(new) if a.holes.is_empty() => Some(format!("{}..{} is new in the second", new.0, new.1)),
        _ => None,
    }
}
