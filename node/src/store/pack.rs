//! Pack files: records of blocks, one behind the other, only ever appended to.
//!
//! ```text
//! pack    = "shoal pack 0001\n"  record*
//! record  = magic 4 | cid digest 32 | encoding 1 | raw bytes u32 | payload bytes u32 | payload crc32c u32
//!           | header crc32c u32 | payload                                                   (little endian)
//! ```
//! The header crc covers the 49 bytes before it, so that a pack can be walked by headers alone. Nothing else says where
//! a record begins: a walk that meets a bad one looks for the next magic, and believes what it finds there only when
//! the bytes have the name that the header gives them, because a payload may hold anything, records too. A record whose
//! header survived a power failure that its payload did not is disowned when it is met: its magic becomes zeroes.

use std::fs::File;
use std::io;
use std::path::Path;

use shoal_proto::cid::{Cid, DIGEST_BYTES};
use shoal_proto::image::pieces::PIECE_BYTES_MAX;

use super::disk::{Disk, PlainFile};
use crate::block::{EncodedBlock, Encoding, payload_bytes_max};
use crate::buffer::Buffer;

/// Opens every pack; the digits are the format's version. A pack of another version is refused, never rewritten.
const PACK_HEADER: [u8; 16] = *b"shoal pack 0001\n";
const PACK_HEADER_KIND: &[u8] = b"shoal pack ";
/// Where the first record of a pack begins.
pub(super) const RECORDS_START: u64 = PACK_HEADER.len() as u64;
/// Opens every record. No text and no zeroes: neither is taken for one while looking for the next record.
const RECORD_MAGIC: [u8; 4] = *b"\xf5SB\x9d";
/// Bytes of a record before its payload.
pub(super) const RECORD_HEADER_BYTES: usize = 53;
/// How much is read at once while looking for the next record.
const WINDOW_BYTES: usize = 1 << 20;

/// Where a block's record is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Place {
    /// Number of the pack.
    pub pack: u32,
    /// Where the record begins in the pack.
    pub offset: u32,
    /// Bytes of the payload, without the record's header.
    pub payload_bytes: u32,
}

impl Place {
    /// Bytes of the whole record.
    pub fn record_bytes(&self) -> u64 {
        RECORD_HEADER_BYTES as u64 + u64::from(self.payload_bytes)
    }

    /// Where the record ends in the pack.
    pub(super) fn end(&self) -> u64 {
        u64::from(self.offset) + self.record_bytes()
    }
}

/// What a record says of its payload.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Header {
    pub(super) cid: Cid,
    encoding: Encoding,
    raw_bytes: u32,
    payload_bytes: u32,
    payload_crc: u32,
}

impl Header {
    /// # Panics
    /// When the block breaks the bounds that [`EncodedBlock`] states: nothing but decoded blocks comes here.
    pub(super) fn of(block: &EncodedBlock) -> Self {
        let payload_bytes = u32::try_from(block.payload.len()).unwrap_or(u32::MAX);
        assert!(
            block.raw_bytes <= PIECE_BYTES_MAX && block.payload.len() <= payload_bytes_max(block.raw_bytes)
        );
        let payload_crc = crc32c::crc32c(&block.payload);
        let EncodedBlock { cid, encoding, raw_bytes, .. } = *block;
        Self { cid, encoding, raw_bytes, payload_bytes, payload_crc }
    }

    pub(super) fn payload_bytes(&self) -> u32 {
        self.payload_bytes
    }

    fn to_bytes(self) -> [u8; RECORD_HEADER_BYTES] {
        let mut bytes = [0; RECORD_HEADER_BYTES];
        bytes[..4].copy_from_slice(&RECORD_MAGIC);
        bytes[4..36].copy_from_slice(self.cid.digest());
        bytes[36] = self.encoding.code();
        bytes[37..41].copy_from_slice(&self.raw_bytes.to_le_bytes());
        bytes[41..45].copy_from_slice(&self.payload_bytes.to_le_bytes());
        bytes[45..49].copy_from_slice(&self.payload_crc.to_le_bytes());
        let crc = crc32c::crc32c(&bytes[..49]);
        bytes[49..].copy_from_slice(&crc.to_le_bytes());
        bytes
    }

    /// `None` for anything that [`to_bytes`](Self::to_bytes) cannot have written.
    fn from_bytes(bytes: &[u8; RECORD_HEADER_BYTES]) -> Option<Self> {
        let number = |at: usize| u32::from_le_bytes(bytes[at..at + 4].try_into().expect("4 bytes"));
        if bytes[..4] != RECORD_MAGIC || number(49) != crc32c::crc32c(&bytes[..49]) {
            return None;
        }
        let digest: [u8; DIGEST_BYTES] = bytes[4..36].try_into().expect("32 bytes");
        let header = Self {
            cid: Cid::from_digest(digest),
            encoding: Encoding::from_code(bytes[36])?,
            raw_bytes: number(37),
            payload_bytes: number(41),
            payload_crc: number(45),
        };
        let in_bounds = header.raw_bytes <= PIECE_BYTES_MAX
            && header.payload_bytes as usize <= payload_bytes_max(header.raw_bytes);
        in_bounds.then_some(header)
    }
}

/// One pack file, open. Reads may go on from many threads; appends are the caller's to serialise.
#[derive(Debug)]
pub(super) struct Pack {
    pub(super) number: u32,
    file: PlainFile,
}

/// What a walk stepped over.
#[derive(Debug, Default)]
pub(super) struct Damage {
    /// Runs of bytes that are no good record.
    pub(super) runs: u64,
    /// Where a run begins with a header that a walk which checks no payloads would believe.
    pub(super) credible: Vec<u64>,
}

/// A pack file's name, and its number back from the name.
pub(super) fn pack_name(number: u32) -> String {
    format!("{number:08}.pack")
}

pub(super) fn pack_number(name: &str) -> Option<u32> {
    let number = name.strip_suffix(".pack")?.parse().ok()?;
    (pack_name(number) == name).then_some(number)
}

impl Pack {
    /// A new pack without records. Fails when there is a file of that name.
    pub(super) fn create(disk: &Disk, folder: &Path, number: u32) -> io::Result<Self> {
        let pack = Self { number, file: disk.create_new(&folder.join(pack_name(number)))? };
        if let Err(error) = pack.file.write_at(0, [&PACK_HEADER, &[]]) {
            // A disk too full for sixteen bytes: leave no name behind that the next try stumbles over.
            let _ = disk.remove(pack.path());
            return Err(error);
        }
        Ok(pack)
    }

    pub(super) fn open(disk: &Disk, folder: &Path, number: u32) -> io::Result<Self> {
        Ok(Self { number, file: disk.open(&folder.join(pack_name(number)))? })
    }

    pub(super) fn path(&self) -> &Path {
        self.file.path()
    }

    /// Whether this is a pack of a format that another version of Shoal wrote. A damaged header is not, nor one that a
    /// power failure cut short.
    pub(super) fn is_of_other_version(&self) -> io::Result<bool> {
        let mut header = [0; PACK_HEADER.len()];
        let read = self.file.read_at(0, [&mut header, &mut []])?;
        let version = header.strip_prefix(PACK_HEADER_KIND).and_then(|rest| rest.strip_suffix(b"\n"));
        let is_numbered = version.is_some_and(|version| version.iter().all(u8::is_ascii_digit));
        Ok(read == header.len() && is_numbered && header != PACK_HEADER)
    }

    pub(super) fn bytes(&self) -> io::Result<u64> {
        self.file.bytes()
    }

    /// Writes one record at `offset`, or nothing: what a failed write left is cut off again.
    pub(super) fn append(&self, offset: u64, header: &Header, payload: &[u8]) -> io::Result<()> {
        let written = self.file.write_at(offset, [&header.to_bytes(), payload]);
        if written.is_err() {
            let _ = self.file.resize(offset);
        }
        written
    }

    /// The block of a record, or `None` when what stands there is not `cid`'s record or fails its crc.
    pub(super) fn read(&self, cid: &Cid, place: &Place) -> io::Result<Option<EncodedBlock>> {
        let mut header_bytes = [0; RECORD_HEADER_BYTES];
        let mut payload = Buffer::of_any(place.payload_bytes as usize);
        let read = self.file.read_at(u64::from(place.offset), [&mut header_bytes, &mut payload])?;
        if (read as u64) < place.record_bytes() {
            return Ok(None);
        }
        let Some(header) = Header::from_bytes(&header_bytes) else { return Ok(None) };
        let intact = header.cid == *cid
            && header.payload_bytes == place.payload_bytes
            && header.payload_crc == crc32c::crc32c(&payload);
        let Header { cid, encoding, raw_bytes, .. } = header;
        Ok(intact.then_some(EncodedBlock { cid, encoding, raw_bytes, payload }))
    }

    /// Walks the records from `start` on, in order, and returns where the last good one ends.
    ///
    /// Payloads from `check_from` on are checked against their crc; before it the header is believed. Bytes that are
    /// no good record are stepped over, noted in `damage`, and never shown to `visit`.
    pub(super) fn walk(
        &self,
        start: u64,
        check_from: u64,
        damage: &mut Damage,
        mut visit: impl FnMut(&Header, Place),
    ) -> io::Result<u64> {
        let end = self.bytes()?;
        let mut offset = start.max(RECORDS_START);
        let mut good_end = offset.min(end);
        while offset < end {
            let found = match self.record_at(offset, end, offset >= check_from)? {
                Some(found) => found,
                None => {
                    damage.runs += 1;
                    if self.record_at(offset, end, false)?.is_some() {
                        damage.credible.push(offset);
                    }
                    match self.next_record(offset + 1, end)? {
                        Some(found) => found,
                        None => break,
                    }
                }
            };
            let (header, place) = found;
            visit(&header, place);
            offset = place.end();
            good_end = offset;
        }
        Ok(good_end)
    }

    /// The record at `offset`, if a good one begins there.
    fn record_at(&self, offset: u64, end: u64, check: bool) -> io::Result<Option<(Header, Place)>> {
        let mut bytes = [0; RECORD_HEADER_BYTES];
        if self.file.read_at(offset, [&mut bytes, &mut []])? < bytes.len() {
            return Ok(None);
        }
        let Some((header, place)) = self.placed(&bytes, offset, end) else { return Ok(None) };
        if check && self.read(&header.cid, &place)?.is_none() {
            return Ok(None);
        }
        Ok(Some((header, place)))
    }

    /// The first record at `offset` or after it whose bytes have the name that it gives them.
    fn next_record(&self, offset: u64, end: u64) -> io::Result<Option<(Header, Place)>> {
        let mut window = vec![0; WINDOW_BYTES];
        let mut window_offset = offset;
        loop {
            let read = self.file.read_at(window_offset, [&mut window, &mut []])?;
            let Some(last) = read.checked_sub(RECORD_HEADER_BYTES) else { return Ok(None) };
            for at in (0..=last).filter(|&at| window[at..at + 4] == RECORD_MAGIC) {
                let bytes = window[at..at + RECORD_HEADER_BYTES].try_into().expect("a header's length");
                let Some((header, place)) = self.placed(bytes, window_offset + at as u64, end) else {
                    continue;
                };
                let block = self.read(&header.cid, &place)?;
                if block.is_some_and(|block| block.decode().is_ok()) {
                    return Ok(Some((header, place)));
                }
            }
            window_offset += last as u64 + 1;
        }
    }

    /// The header in `bytes` with the place that it gives its record, when that ends within the pack.
    fn placed(&self, bytes: &[u8; RECORD_HEADER_BYTES], offset: u64, end: u64) -> Option<(Header, Place)> {
        let header = Header::from_bytes(bytes)?;
        let offset = u32::try_from(offset).ok()?;
        let place = Place { pack: self.number, offset, payload_bytes: header.payload_bytes };
        (place.end() <= end).then_some((header, place))
    }

    /// Makes the headers at these offsets ones that nobody believes. On disk when it returns.
    pub(super) fn disown(&self, credible: &[u64]) -> io::Result<()> {
        for &offset in credible {
            self.file.write_at(offset, [&[0; RECORD_MAGIC.len()], &[]])?;
        }
        self.file.sync()
    }

    /// Ends the pack at `end`, giving a pack too short for one its header.
    pub(super) fn cut(&self, end: u64) -> io::Result<()> {
        if self.bytes()? < RECORDS_START {
            self.file.write_at(0, [&PACK_HEADER, &[]])?;
        }
        self.file.resize(end.max(RECORDS_START))
    }

    /// Waits until the disk holds everything written so far.
    pub(super) fn sync(&self) -> io::Result<()> {
        self.file.sync()
    }
}

/// The blocks of a pack file that stands alone, each with the payload that its crc names, and where the last of them
/// ends. What a store would take in from it with neither index nor checkpoint.
pub fn read_pack(file: &File) -> io::Result<(Vec<EncodedBlock>, u64)> {
    let pack = Pack { number: 0, file: Disk::default().adopt(file.try_clone()?) };
    let mut found = Vec::new();
    let end = pack.walk(0, 0, &mut Damage::default(), |header, place| found.push((header.cid, place)))?;
    let mut blocks = Vec::with_capacity(found.len());
    for (cid, place) in found {
        blocks.extend(pack.read(&cid, &place)?);
    }
    Ok((blocks, end))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn write(pack: &Pack, blocks: &[EncodedBlock]) -> Vec<u64> {
        let mut ends = vec![pack.bytes().unwrap()];
        for block in blocks {
            let offset = *ends.last().unwrap();
            pack.append(offset, &Header::of(block), &block.payload).unwrap();
            ends.push(pack.bytes().unwrap());
        }
        ends
    }

    fn walked(pack: &Pack, check_from: u64) -> (Vec<Cid>, u64, u64) {
        let (mut cids, mut damage) = (Vec::new(), Damage::default());
        let end = pack.walk(0, check_from, &mut damage, |header, _| cids.push(header.cid)).unwrap();
        (cids, end, damage.runs)
    }

    fn blocks() -> Vec<EncodedBlock> {
        (0..5_u8).map(|n| EncodedBlock::encode(&vec![n; 3000 * usize::from(n) + 1], 1)).collect()
    }

    #[test]
    fn a_header_has_one_spelling() {
        let header = Header::of(&blocks()[3]);
        let bytes = header.to_bytes();
        assert_eq!(Header::from_bytes(&bytes), Some(header));
        for bit in 0..bytes.len() * 8 {
            let mut flipped = bytes;
            flipped[bit / 8] ^= 1 << (bit % 8);
            assert_eq!(Header::from_bytes(&flipped), None, "bit {bit}");
        }
    }

    #[test]
    fn a_walk_steps_over_one_damaged_record() {
        let folder = tempfile::tempdir().unwrap();
        for (at, check_from) in [(0, u64::MAX), (40, u64::MAX), (RECORD_HEADER_BYTES as u64, 0)] {
            let pack = Pack::create(&Disk::default(), folder.path(), 1).unwrap();
            let blocks = blocks();
            let ends = write(&pack, &blocks);
            let mut byte = [0];
            assert_eq!(pack.file.read_at(ends[2] + at, [&mut byte, &mut []]).unwrap(), 1);
            pack.file.write_at(ends[2] + at, [&[byte[0] ^ 4], &[]]).unwrap();
            let kept: Vec<Cid> = [0, 1, 3, 4].map(|n: usize| blocks[n].cid).to_vec();
            assert_eq!(walked(&pack, check_from), (kept, ends[5], 1), "byte {at}");
            std::fs::remove_file(pack.path()).unwrap();
        }
    }

    #[test]
    fn records_inside_a_payload_are_believed_by_their_name_only() {
        let folder = tempfile::tempdir().unwrap();
        let pack = Pack::create(&Disk::default(), folder.path(), 1).unwrap();
        let forged = EncodedBlock { cid: Cid::of(b"a name"), ..EncodedBlock::encode(b"not its bytes", 1) };
        let genuine = EncodedBlock::encode(b"a block of its own", 1);
        let mut raw = Vec::new();
        for inner in [&forged, &genuine] {
            raw.extend_from_slice(&Header::of(inner).to_bytes());
            raw.extend_from_slice(&inner.payload);
        }
        let outer = EncodedBlock {
            cid: Cid::of(&raw),
            encoding: Encoding::Raw,
            raw_bytes: u32::try_from(raw.len()).unwrap(),
            payload: raw.into(),
        };
        let ends = write(&pack, std::slice::from_ref(&outer));
        assert_eq!(walked(&pack, 0).0, [outer.cid]);
        pack.file.write_at(ends[0], [b"x", &[]]).unwrap();
        assert_eq!(walked(&pack, 0).0, [genuine.cid]);
    }

    #[test]
    fn pack_names_are_their_numbers() {
        assert_eq!(pack_number(&pack_name(7)), Some(7));
        for other in ["7.pack", "00000007.pack~", "0000000x.pack", "000000007.pack", ".pack"] {
            assert_eq!(pack_number(other), None);
        }
    }
}
