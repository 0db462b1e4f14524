//! Blocks as they travel and rest: compressed once, at capture, and never again.
//!
//! A block is named by its *raw* bytes, so the name says nothing about the payload: whoever made the payload may have
//! lied. [`EncodedBlock::decode`] is where bytes from outside become bytes that the image's author signed.
//!
//! What the level of a capture does with the 880 blocks of 256 KiB of a Debian, on one core:
//!
//! | search | MB/s | bytes of the raw ones |
//! |---|---|---|
//! | two tables, what zstd itself takes for level 2 | 440 | 0.4658 |
//! | one table of 2^14, matches of 5 | 534 | 0.4731 |
//! | **one table of 2^15, matches of 5** | 528 | 0.4713 |
//! | one table of 2^15, matches of 6 | 576 | 0.4744 |
//!
//! The 162 blocks among them that do not compress take a seventieth of that time: zstd skips through them by itself.

use std::cell::RefCell;
use std::fmt;

use shoal_proto::cid::Cid;
use shoal_proto::image::pieces::PIECE_BYTES_MAX;
use zstd::zstd_safe::{self, CCtx, CParameter, DCtx, Strategy};

use crate::buffer::Buffer;

/// How a payload stands for its raw bytes. The codes are in pack files and on the wire.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Encoding {
    /// The raw bytes themselves.
    Raw,
    /// One zstd frame, shorter than the raw bytes; it need not state its content size.
    Zstd,
}

impl Encoding {
    /// The number that stands for it in a pack record and in a message.
    pub const fn code(self) -> u8 {
        match self {
            Self::Raw => 0,
            Self::Zstd => 1,
        }
    }

    pub const fn from_code(code: u8) -> Option<Self> {
        match code {
            0 => Some(Self::Raw),
            1 => Some(Self::Zstd),
            _ => None,
        }
    }
}

/// A block as it travels and rests. Unverified until [`decode`](Self::decode) succeeded once: any of the fields may
/// be a peer's lie.
#[derive(Clone, PartialEq, Eq)]
pub struct EncodedBlock {
    pub cid: Cid,
    pub encoding: Encoding,
    /// Bytes of the decoded block, at most [`PIECE_BYTES_MAX`].
    pub raw_bytes: u32,
    /// At most [`payload_bytes_max`] of `raw_bytes`.
    pub payload: Buffer,
}

/// Some of a block's raw bytes as they travel to one that has the others. Unverified even when it decodes: only the
/// whole block has a name.
#[derive(Clone, PartialEq, Eq)]
pub struct EncodedPart {
    /// The block that it is a part of.
    pub cid: Cid,
    pub encoding: Encoding,
    /// Bytes of the decoded part, at most [`PIECE_BYTES_MAX`].
    pub raw_bytes: u32,
    /// At most [`payload_bytes_max`] of `raw_bytes`.
    pub payload: Buffer,
}

/// The level at which a node compresses what it makes anew: parts of blocks, and blocks out of parts.
pub const TRAVEL_LEVEL: i32 = 3;

/// A payload that is not the block it is said to be.
#[derive(Debug, thiserror::Error)]
pub enum DecodeError {
    #[error("block {cid} of {raw_bytes} bytes where at most {PIECE_BYTES_MAX} are allowed")]
    TooLarge { cid: Cid, raw_bytes: u32 },
    #[error("block {cid} of {raw_bytes} bytes comes as {payload_bytes} bytes of {encoding:?}")]
    PayloadLength { cid: Cid, raw_bytes: u32, payload_bytes: usize, encoding: Encoding },
    #[error("block {cid} is no zstd frame: {reason}")]
    Frame { cid: Cid, reason: &'static str },
    #[error("block {cid} has {extra_bytes} bytes after its zstd frame")]
    Trailing { cid: Cid, extra_bytes: usize },
    #[error("block {cid} decodes to {decoded_bytes} bytes, not {raw_bytes}")]
    RawLength { cid: Cid, raw_bytes: u32, decoded_bytes: usize },
    #[error("block {cid} holds the bytes of {found}")]
    Hash { cid: Cid, found: Cid },
}

/// The most payload bytes that a block of `raw_bytes` may come as, in any encoding. A receiver refuses a longer one
/// before it reads it.
pub const fn payload_bytes_max(raw_bytes: u32) -> usize {
    raw_bytes as usize
}

thread_local! {
    // A context costs hundreds of kilobytes of page faults to set up; each thread keeps one of each kind.
    static COMPRESSOR: RefCell<Option<(CCtx<'static>, i32)>> = const { RefCell::new(None) };
    static DECOMPRESSOR: RefCell<Option<DCtx<'static>>> = const { RefCell::new(None) };
}

impl EncodedBlock {
    /// Names and compresses `raw` with zstd at `level`, or keeps it as it is when that is not smaller.
    ///
    /// # Panics
    /// When `raw` is longer than [`PIECE_BYTES_MAX`]: no capture lays such a block.
    pub fn encode(raw: &[u8], level: i32) -> Self {
        let mut block = Self::encode_reusing(raw, level, Vec::new());
        let mut payload = block.payload.into_vec();
        payload.shrink_to_fit();
        block.payload = payload.into();
        block
    }

    /// As [`encode`](Self::encode), with a buffer whose content is replaced and whose capacity is used: the payload
    /// is in it.
    ///
    /// # Panics
    /// When `raw` is longer than [`PIECE_BYTES_MAX`].
    pub fn encode_reusing(raw: &[u8], level: i32, mut buffer: Vec<u8>) -> Self {
        let raw_bytes = u32::try_from(raw.len()).unwrap_or(u32::MAX);
        assert!(raw_bytes <= PIECE_BYTES_MAX, "a block of {} bytes is more than a piece may have", raw.len());
        let cid = Cid::of(raw);
        let encoding = compress(raw, level, &mut buffer);
        Self { cid, encoding, raw_bytes, payload: buffer.into() }
    }

    /// The raw bytes, checked: exactly `raw_bytes` of them, with the name `cid`.
    pub fn decode(&self) -> Result<Vec<u8>, DecodeError> {
        let mut raw = Vec::new();
        self.decode_into(&mut raw)?;
        Ok(raw)
    }

    /// As [`decode`](Self::decode), into a buffer whose content is replaced and whose capacity is used. Empty after
    /// an error.
    ///
    /// Allocates at most `raw_bytes` and writes no byte beyond them, whatever the payload claims.
    pub fn decode_into(&self, raw: &mut Vec<u8>) -> Result<(), DecodeError> {
        let outcome = self.decode_in(raw).map(drop);
        self.as_payload().settle(raw, outcome)
    }

    /// As [`decode`](Self::decode), copying nothing that need not be: the raw bytes are where they arrived when they
    /// travelled as they are, and in `buffer` otherwise. What `buffer` had is lost.
    pub fn decode_in<'a>(&'a self, buffer: &'a mut Vec<u8>) -> Result<&'a [u8], DecodeError> {
        let raw = self.as_payload().decode_in(buffer)?;
        let found = Cid::of(raw);
        if found == self.cid { Ok(raw) } else { Err(DecodeError::Hash { cid: self.cid, found }) }
    }

    fn as_payload(&self) -> Payload<'_> {
        let Self { cid, encoding, raw_bytes, ref payload } = *self;
        Payload { cid, encoding, raw_bytes, bytes: payload }
    }
}

impl EncodedPart {
    /// Compresses a part of the block `cid`, or keeps it as it is when that is not smaller.
    ///
    /// # Panics
    /// When `raw` is longer than [`PIECE_BYTES_MAX`].
    pub fn encode(cid: Cid, raw: &[u8]) -> Self {
        let raw_bytes = u32::try_from(raw.len()).unwrap_or(u32::MAX);
        assert!(raw_bytes <= PIECE_BYTES_MAX, "a part of {} bytes is more than a piece may have", raw.len());
        let mut payload = Vec::new();
        let encoding = compress(raw, TRAVEL_LEVEL, &mut payload);
        payload.shrink_to_fit();
        Self { cid, encoding, raw_bytes, payload: payload.into() }
    }

    /// As [`EncodedBlock::decode_into`], but for the hash: exactly `raw_bytes` of whatever bytes the sender chose.
    pub fn decode_into(&self, raw: &mut Vec<u8>) -> Result<(), DecodeError> {
        let Self { cid, encoding, raw_bytes, payload } = self;
        let payload = Payload { cid: *cid, encoding: *encoding, raw_bytes: *raw_bytes, bytes: payload };
        let outcome = payload.decode_in(raw).map(drop);
        payload.settle(raw, outcome)
    }
}

/// Encoded bytes and what they are said to be.
struct Payload<'a> {
    cid: Cid,
    encoding: Encoding,
    raw_bytes: u32,
    bytes: &'a [u8],
}

impl<'a> Payload<'a> {
    /// Checks lengths and framing; decodes into `buffer` what is encoded at all.
    fn decode_in(&self, buffer: &'a mut Vec<u8>) -> Result<&'a [u8], DecodeError> {
        let Self { cid, encoding, raw_bytes, bytes: payload } = *self;
        if raw_bytes > PIECE_BYTES_MAX {
            return Err(DecodeError::TooLarge { cid, raw_bytes });
        }
        let length_ok = match encoding {
            Encoding::Raw => payload.len() == raw_bytes as usize,
            Encoding::Zstd => payload.len() < payload_bytes_max(raw_bytes),
        };
        if !length_ok {
            return Err(DecodeError::PayloadLength {
                cid,
                raw_bytes,
                payload_bytes: payload.len(),
                encoding,
            });
        }
        match encoding {
            Encoding::Raw => Ok(payload),
            Encoding::Zstd => {
                self.decompress(buffer)?;
                Ok(buffer)
            }
        }
    }

    /// Leaves in `raw` what it was decoded to, and nothing when it was not.
    fn settle(&self, raw: &mut Vec<u8>, outcome: Result<(), DecodeError>) -> Result<(), DecodeError> {
        let is_in_place = self.encoding == Encoding::Raw;
        if outcome.is_err() || is_in_place {
            raw.clear();
        }
        if outcome.is_ok() && is_in_place {
            raw.extend_from_slice(self.bytes);
        }
        outcome
    }

    fn decompress(&self, raw: &mut Vec<u8>) -> Result<(), DecodeError> {
        let Self { cid, raw_bytes, bytes: payload, .. } = *self;
        let broken = |code| DecodeError::Frame { cid, reason: zstd_safe::get_error_name(code) };
        // The decoder would read several frames in a row as one.
        let frame_bytes = zstd_safe::find_frame_compressed_size(payload).map_err(broken)?;
        if frame_bytes != payload.len() {
            return Err(DecodeError::Trailing {
                cid,
                extra_bytes: payload.len().saturating_sub(frame_bytes),
            });
        }
        // Not cleared first: a recycled buffer of the same length is not zeroed again.
        raw.resize(raw_bytes as usize, 0);
        let decoded_bytes = DECOMPRESSOR.with_borrow_mut(|slot| {
            slot.get_or_insert_with(DCtx::create).decompress(raw.as_mut_slice(), payload).map_err(broken)
        })?;
        if decoded_bytes != raw.len() {
            return Err(DecodeError::RawLength { cid, raw_bytes, decoded_bytes });
        }
        Ok(())
    }
}

impl fmt::Debug for EncodedPart {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { cid, encoding, raw_bytes, payload } = self;
        write!(f, "EncodedPart({cid}, {encoding:?}, {raw_bytes} in {})", payload.len())
    }
}

impl fmt::Debug for EncodedBlock {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { cid, encoding, raw_bytes, payload } = self;
        write!(f, "EncodedBlock({cid}, {encoding:?}, {raw_bytes} in {})", payload.len())
    }
}

fn compressor(level: i32) -> CCtx<'static> {
    let mut context = CCtx::create();
    let mut set = |parameter| {
        let refused = |code| panic!("zstd refuses {parameter:?}: {}", zstd_safe::get_error_name(code));
        context.set_parameter(parameter).unwrap_or_else(refused);
    };
    set(CParameter::CompressionLevel(level));
    if matches!(level, 1 | 2) {
        // These levels look for matches of six or seven bytes: five cost no more time, and save 2 % of an OS tree.
        set(CParameter::MinMatch(5));
    }
    if level == 2 {
        // By itself, zstd searches blocks of 256 KiB and less with two tables: a fifth more time for 1.2 % fewer bytes.
        set(CParameter::Strategy(Strategy::ZSTD_fast));
        // A table half as large stays in the cache: it saves 5 % of the time and costs 0.5 % of an OS tree's bytes.
        set(CParameter::HashLog(15));
    }
    context
}

/// Makes `payload` the shorter one of a frame of `raw` and `raw` itself, and says which.
fn compress(raw: &[u8], level: i32, payload: &mut Vec<u8>) -> Encoding {
    payload.clear();
    // With less room than this, what fits in the end would depend on the buffer.
    payload.reserve(zstd_safe::compress_bound(raw.len()));
    let compressed = COMPRESSOR.with_borrow_mut(|slot| {
        if slot.as_ref().is_none_or(|(_, set)| *set != level) {
            *slot = Some((compressor(level), level));
        }
        let (context, _) = slot.as_mut()?;
        context.compress2(payload, raw).ok()
    });
    if compressed.is_some_and(|frame_bytes| frame_bytes < raw.len()) {
        return Encoding::Zstd;
    }
    payload.clear();
    payload.extend_from_slice(raw);
    Encoding::Raw
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Text that compresses well.
    fn prose(bytes: usize) -> Vec<u8> {
        b"no peer is trusted and no byte unchecked; ".iter().copied().cycle().take(bytes).collect()
    }

    /// Bytes that do not compress at all.
    fn noise(bytes: usize) -> Vec<u8> {
        let mut out = vec![0; bytes];
        blake3::Hasher::new().finalize_xof().fill(&mut out);
        out
    }

    fn zstd_block(raw: &[u8], raw_bytes: u32, payload: Vec<u8>) -> EncodedBlock {
        EncodedBlock { cid: Cid::of(raw), encoding: Encoding::Zstd, raw_bytes, payload: payload.into() }
    }

    #[test]
    fn blocks_round_trip_in_the_smaller_encoding() {
        let cases = [
            (Vec::new(), Encoding::Raw),
            (vec![7], Encoding::Raw),
            (noise(100_000), Encoding::Raw),
            (prose(100_000), Encoding::Zstd),
            (vec![0; PIECE_BYTES_MAX as usize], Encoding::Zstd),
        ];
        let mut recycled = Vec::new();
        for (raw, encoding) in cases {
            let block = EncodedBlock::encode(&raw, 3);
            assert_eq!((block.encoding, block.cid), (encoding, Cid::of(&raw)));
            assert!(block.payload.len() <= payload_bytes_max(block.raw_bytes));
            assert_eq!(block.decode().unwrap(), raw);
            block.decode_into(&mut recycled).unwrap();
            assert_eq!(recycled, raw);
        }
    }

    #[test]
    fn a_payload_does_not_depend_on_the_buffer_it_is_made_in() {
        // Frames that are hardly shorter, and need more room while they are made.
        for (noise_bytes, prose_bytes) in (0..100).flat_map(|noise| (0..100).map(move |prose| (noise, prose)))
        {
            let raw = [noise(noise_bytes), prose(prose_bytes)].concat();
            let fresh = EncodedBlock::encode(&raw, 2);
            let recycled = EncodedBlock::encode_reusing(&raw, 2, vec![7; 10_000]);
            assert_eq!(fresh.encoding, recycled.encoding, "{noise_bytes} + {prose_bytes}");
            assert_eq!(fresh.payload, recycled.payload);
        }
    }

    #[test]
    fn a_longer_buffer_of_an_earlier_block_leaves_no_bytes_behind() {
        let mut recycled = noise(50_000);
        let raw = prose(1000);
        EncodedBlock::encode(&raw, 3).decode_into(&mut recycled).unwrap();
        assert_eq!(recycled, raw);
    }

    #[test]
    fn a_frame_without_content_size_decodes() {
        let raw = prose(70_000);
        let mut encoder = zstd::stream::Encoder::new(Vec::new(), 3).unwrap();
        encoder.include_contentsize(false).unwrap();
        std::io::Write::write_all(&mut encoder, &raw).unwrap();
        let payload = encoder.finish().unwrap();
        assert_eq!(zstd_safe::get_frame_content_size(&payload).unwrap(), None);
        assert_eq!(zstd_block(&raw, 70_000, payload).decode().unwrap(), raw);
    }

    #[test]
    fn the_stated_length_bounds_a_bomb() {
        let bomb = EncodedBlock::encode(&vec![0; PIECE_BYTES_MAX as usize], 19);
        let mut raw = Vec::new();
        let lie = EncodedBlock { raw_bytes: 4096, ..bomb.clone() };
        assert!(matches!(lie.decode_into(&mut raw), Err(DecodeError::Frame { .. })));
        assert!(raw.is_empty() && raw.capacity() <= 8192, "{} bytes were set aside", raw.capacity());
        let lie = EncodedBlock { raw_bytes: PIECE_BYTES_MAX + 1, ..bomb };
        assert!(matches!(lie.decode(), Err(DecodeError::TooLarge { .. })));
    }

    #[test]
    fn payloads_that_are_not_exactly_one_frame_are_refused() {
        let raw = prose(10_000);
        let good = EncodedBlock::encode(&raw, 3).payload;
        let skippable = [&[0x50, 0x2a, 0x4d, 0x18, 4, 0, 0, 0][..], b"skip"].concat();

        for cut in 0..good.len() {
            let error = zstd_block(&raw, 10_000, good[..cut].to_vec()).decode().unwrap_err();
            assert!(matches!(error, DecodeError::Frame { .. }), "cut at {cut}: {error}");
        }
        for second in [&good[..], &skippable, b"x", &[0; 9]] {
            let both = zstd_block(&raw, 10_000, [&good[..], second].concat());
            assert!(matches!(both.decode(), Err(DecodeError::Trailing { .. })));
        }
        let first = zstd_block(&raw, 10_000, [&skippable[..], &good].concat());
        assert!(matches!(first.decode(), Err(DecodeError::Trailing { .. })));
        assert!(matches!(zstd_block(&raw, 10_000, skippable).decode(), Err(DecodeError::RawLength { .. })));
    }

    #[test]
    fn wrong_lengths_are_refused() {
        let raw = prose(10_000);
        let good = EncodedBlock::encode(&raw, 3);
        let longer = EncodedBlock { raw_bytes: 10_001, ..good.clone() };
        assert!(matches!(longer.decode(), Err(DecodeError::RawLength { decoded_bytes: 10_000, .. })));
        let shorter = EncodedBlock { raw_bytes: 9_999, ..good.clone() };
        assert!(matches!(shorter.decode(), Err(DecodeError::Frame { .. })));
        // A frame as long as its content is refused unread: nobody sends one who compresses to save bytes.
        let padded = EncodedBlock { raw_bytes: 100, ..good.clone() };
        let padded = EncodedBlock { payload: vec![0; 100].into(), ..padded };
        assert!(matches!(padded.decode(), Err(DecodeError::PayloadLength { .. })));
        for bytes in [9_999, 10_001] {
            let raw_block =
                EncodedBlock { encoding: Encoding::Raw, payload: vec![1; bytes].into(), ..good.clone() };
            assert!(matches!(raw_block.decode(), Err(DecodeError::PayloadLength { .. })));
        }
    }

    #[test]
    fn a_part_round_trips_and_is_held_to_its_length() {
        let block = Cid::of(b"the block");
        let mut raw = Vec::new();
        for (bytes, encoding) in [(prose(5000), Encoding::Zstd), (noise(5000), Encoding::Raw)] {
            let part = EncodedPart::encode(block, &bytes);
            assert_eq!((part.encoding, part.raw_bytes, part.cid), (encoding, 5000, block));
            part.decode_into(&mut raw).unwrap();
            assert_eq!(raw, bytes);
            for raw_bytes in [4999, 5001] {
                let lie = EncodedPart { raw_bytes, ..part.clone() };
                assert!(lie.decode_into(&mut raw).is_err() && raw.is_empty(), "{raw_bytes} bytes");
            }
        }
    }

    #[test]
    fn other_bytes_of_the_right_length_are_refused() {
        let mut other = EncodedBlock::encode(&prose(10_000), 3);
        other.cid = Cid::of(b"something else");
        assert!(matches!(other.decode(), Err(DecodeError::Hash { .. })));
        let mut flipped = EncodedBlock::encode(&noise(10_000), 3);
        flipped.payload[5000] ^= 1;
        assert!(matches!(flipped.decode(), Err(DecodeError::Hash { .. })));
    }

    proptest::proptest! {
        #[test]
        fn any_bytes_round_trip(raw in proptest::collection::vec(0_u8..4, 0..5000), level in -5..20) {
            proptest::prop_assert_eq!(EncodedBlock::encode(&raw, level).decode().unwrap(), raw);
        }

        /// No payload makes the decoder panic, or yield anything but the named bytes.
        #[test]
        fn a_damaged_payload_is_refused_or_the_same(at in 0_usize..400, bits in 1_u8..=255) {
            let raw = [prose(600), noise(300)].concat();
            let mut block = EncodedBlock::encode(&raw, 3);
            let at = at % block.payload.len();
            block.payload[at] ^= bits;
            if let Ok(decoded) = block.decode() {
                proptest::prop_assert_eq!(decoded, raw);
            }
        }
    }
}
