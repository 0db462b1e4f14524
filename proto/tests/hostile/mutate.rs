//! Right manifests, and what can be done to their bytes.

use rand::Rng;

use crate::stream::{Kind, Stream, attributes, put, xattrs};

/// A manifest with everything in it, some of it by chance.
pub(crate) fn valid(rng: &mut impl Rng) -> Stream {
    let folders = rng.random_range(1..6_u64);
    let files = rng.random_range(1..12_u64);
    let mut stream = Stream::with(1, 6, 8 + folders + files).piece(&[1000, 5, 70_000, 1, 262_144, 16]).root();
    for number in 0..folders {
        stream = stream.entry(Kind::Directory, u64::from(number > 0), format!("d{number}").as_bytes(), &[]);
    }
    for number in 0..files {
        let mut content = vec![2];
        put(&mut content, rng.random_range(1..1 << 40_u64) << 1 | 1);
        put(&mut content, 1 << 1);
        put(&mut content, 0);
        let content = if number < 3 { content } else { vec![0] };
        stream = stream.entry(Kind::File, 0, format!("f{number:02}").as_bytes(), &content);
    }
    let value = vec![9; rng.random_range(0..300)];
    stream
        .hard_link(b"h", 1)
        .link_to(b"l", b"../../target")
        .spelt(Kind::File, 0, b"m", &xattrs(&[(b"security.capability", &value), (b"user.b", b"")]), &[0])
        .spelt(Kind::CharDevice, 0, b"n", &attributes(0o600), &[1, 3])
        .entry(Kind::BlockDevice, 0, b"o", &[8, 0])
        .entry(Kind::Fifo, 0, b"p", &[])
        .entry(Kind::NextChunk, 0, b"q", &[])
}

/// Does one thing to the bytes.
pub(crate) fn mutate(bytes: &mut Vec<u8>, rng: &mut impl Rng) {
    let at = rng.random_range(0..bytes.len());
    let end = (at + rng.random_range(1..40)).min(bytes.len());
    match rng.random_range(0..8) {
        0 => bytes[at] ^= 1 << rng.random_range(0..8),
        1 => bytes[at] = rng.random(),
        2 => bytes.truncate(at.max(1)),
        3 => {
            let range = bytes[at..end].to_vec();
            let to = rng.random_range(0..bytes.len());
            bytes.splice(to..to, range);
        }
        4 => {
            bytes.drain(at..end);
            bytes.push(0);
        }
        5 => {
            // A count or a length that is absurd.
            let mut absurd = Vec::new();
            put(&mut absurd, [u64::MAX, 1 << 63, 1 << 32, 1 << 20, 65_536, 255][rng.random_range(0..6)]);
            bytes.splice(at..=at, absurd);
        }
        6 => bytes[at..end].fill([0, 0x7f, 0x80, 0xff][rng.random_range(0..4)]),
        _ => bytes[at..end].reverse(),
    }
}
