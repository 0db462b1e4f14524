//! What an archive is compressed with, told by its first bytes.

use std::io::{self, BufReader, Chain, Cursor, Read};

use flate2::bufread::MultiGzDecoder;
use liblzma::bufread::XzDecoder;

/// How an archive is written.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Compression {
    None,
    Gzip,
    Xz,
    Zstd,
    /// One that is not supported, by its name.
    Other(&'static str),
}

/// Bytes that tell.
const MAGIC_BYTES: usize = 8;
const BUFFER_BYTES: usize = 256 << 10;

impl Compression {
    fn of(start: &[u8]) -> Self {
        match start {
            [0x1f, 0x8b, ..] => Self::Gzip,
            [0xfd, b'7', b'z', b'X', b'Z', 0, ..] => Self::Xz,
            // A frame, or one that decoders skip.
            [0x28, 0xb5, 0x2f, 0xfd, ..] | [0x50..=0x5f, 0x2a, 0x4d, 0x18, ..] => Self::Zstd,
            [b'B', b'Z', b'h', b'1'..=b'9', ..] => Self::Other("bzip2"),
            [4, 0x22, 0x4d, 0x18, ..] => Self::Other("lz4"),
            [b'L', b'Z', b'I', b'P', ..] => Self::Other("lzip"),
            _ => Self::None,
        }
    }
}

/// A stream whose start was looked at, whole again.
pub(super) type Looked<R> = Chain<Cursor<Vec<u8>>, R>;

/// Looks at the start of a stream, and gives it back whole.
pub(super) fn detect<R: Read>(mut from: R) -> io::Result<(Compression, Looked<R>)> {
    let mut start = Vec::with_capacity(MAGIC_BYTES);
    from.by_ref().take(MAGIC_BYTES as u64).read_to_end(&mut start)?;
    Ok((Compression::of(&start), Cursor::new(start).chain(from)))
}

/// What a stream is when it is unpacked.
pub(super) fn unpack<'a>(compression: Compression, from: impl Read + 'a) -> io::Result<Box<dyn Read + 'a>> {
    let from = BufReader::with_capacity(BUFFER_BYTES, from);
    Ok(match compression {
        Compression::Gzip => Box::new(MultiGzDecoder::new(from)),
        Compression::Xz => Box::new(XzDecoder::new_multi_decoder(from)),
        Compression::Zstd => {
            let mut decoder = zstd::stream::read::Decoder::with_buffer(from)?;
            // As large as `zstd --long=31` makes it.
            decoder.window_log_max(31)?;
            Box::new(decoder)
        }
        Compression::None | Compression::Other(_) => Box::new(from),
    })
}
