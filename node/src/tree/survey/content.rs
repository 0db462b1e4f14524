//! A file's bytes against its chunks.

use std::cell::RefCell;
use std::os::fd::OwnedFd;

use rustix::io::Errno;
use shoal_proto::cid::ChunkId;
use shoal_proto::image::chunker::CHUNK_BYTES_MAX;
use shoal_proto::image::entry::{Content, Segment};
use shoal_proto::image::manifest::Manifest;

use super::super::root;

thread_local! {
    static BUFFER: RefCell<Vec<u8>> = RefCell::new(vec![0; CHUNK_BYTES_MAX]);
}

/// Whether a file of the right size has the right bytes. A hole may be filled, if with zeros.
pub(super) fn equal(manifest: &Manifest, content: &Content<'_>, fd: &OwnedFd) -> Result<bool, Errno> {
    BUFFER.with_borrow_mut(|buffer| {
        let mut at = 0;
        for &segment in content.segments() {
            match segment {
                Segment::Hole { bytes } => {
                    if !zeros(fd, at, at + bytes, buffer)? {
                        return Ok(false);
                    }
                    at += bytes;
                }
                Segment::Chunks { first, count } => {
                    for chunk in first..first + count {
                        let bytes = manifest.chunk_bytes(chunk) as usize;
                        let read = root::read_full(fd, &mut buffer[..bytes], at)?;
                        if read != bytes || ChunkId::of(&buffer[..bytes]) != *manifest.chunk_id(chunk) {
                            return Ok(false);
                        }
                        at += bytes as u64;
                    }
                }
            }
        }
        Ok(true)
    })
}

/// Whether there is nothing but zeros from `at` to `end`. Holes are not read.
fn zeros(fd: &OwnedFd, mut at: u64, end: u64, buffer: &mut [u8]) -> Result<bool, Errno> {
    while at < end {
        let (start, stop) = root::next_data(fd, at, end)?;
        at = start;
        while at < stop {
            let want = buffer.len().min(usize::try_from(stop - at).unwrap_or(usize::MAX));
            let read = root::read_full(fd, &mut buffer[..want], at)?;
            if read != want || buffer[..want].iter().any(|&byte| byte != 0) {
                return Ok(false);
            }
            at += want as u64;
        }
    }
    Ok(true)
}
