//! Manifests that somebody made to hurt: each is refused with a clear word, none panics, and none makes the reader set
//! aside more than a few times its own length.

#![expect(clippy::unwrap_used, reason = "a test")]

#[path = "hostile/memory.rs"]
mod memory;
#[path = "hostile/mutate.rs"]
mod mutate;
#[path = "hostile/mutations.rs"]
mod mutations;
#[path = "hostile/stream.rs"]
mod stream;

use shoal_proto::image::entry::{SEGMENTS_MAX, XATTRS_MAX};
use shoal_proto::image::layout::CHUNKS_PER_PIECE_MAX;
use stream::{Kind, Stream, attributes, decode, xattrs};

/// A manifest and what the reader says of it.
type Case = (&'static str, Stream, &'static str);

/// The content of an empty file.
const FILE: &[u8] = &[0];

/// A tree without content, up to its root.
fn tree(entries: u64) -> Stream {
    Stream::with(0, 0, entries).root()
}

fn names() -> Vec<Case> {
    let named = |name: &[u8]| tree(2).entry(Kind::File, 0, name, FILE);
    let two =
        |one: &[u8], other: &[u8]| tree(3).entry(Kind::File, 0, one, FILE).entry(Kind::File, 0, other, FILE);
    let link = |child: &[u8]| tree(3).link_to(b"link", b"/etc").entry(Kind::File, 0, child, FILE);
    let unordered = "manifest entry 2 does not come after the one before it";
    vec![
        ("..", named(b".."), "manifest entry 1 has the name \"..\", which means another directory"),
        (".", named(b"."), "manifest entry 1 has the name \".\", which means another directory"),
        ("no name", named(b""), "manifest entry 1 has an empty name"),
        ("NUL", named(b"a\0b"), "manifest entry 1 has a name with a NUL in it"),
        ("a slash", named(b"../../etc/passwd"), "manifest entry 1 has a name with a slash in it"),
        ("an absolute path", named(b"/etc"), "manifest entry 1 has a name with a slash in it"),
        ("only a slash", named(b"/"), "manifest entry 1 has a name with a slash in it"),
        ("a name of 256 bytes", named(&[b'n'; 256]), "the manifest has a length beyond 255"),
        ("a name twice", two(b"a", b"a"), unordered),
        ("names out of order", two(b"b", b"a"), unordered),
        ("a file in a file", two(b"file", b"file/child"), "manifest entry 2 has a name with a slash in it"),
        ("a file in a file, unsorted", two(b"file", b"child"), unordered),
        ("a file in a link", link(b"link/child"), "manifest entry 2 has a name with a slash in it"),
        ("a file in a link, unsorted", link(b"child"), unordered),
        ("a file over a link", link(b"link"), unordered),
        (
            "outside the root",
            tree(2).entry(Kind::File, 1, b"a", FILE),
            "manifest entry 1 lies outside the root",
        ),
        (
            "far outside the root",
            tree(2).entry(Kind::File, 9000, b"a", FILE),
            "the manifest has a length beyond 8192",
        ),
        (
            "too deep",
            (0..8193).fold(tree(8194), |stream, _| stream.entry(Kind::Directory, 0, b"d", &[])),
            "manifest entry 8193 has a path of more than 8192 names",
        ),
        (
            "a root that is a file",
            Stream::with(0, 0, 1).spelt(Kind::File, 0, b"", &attributes(0o644), FILE),
            "manifest entry 0: the root is no directory, or is named",
        ),
        (
            "a root with a name",
            Stream::with(0, 0, 1).spelt(Kind::Directory, 0, b"x", &attributes(0o755), &[]),
            "manifest entry 0: the root is no directory, or is named",
        ),
        (
            "a root that is a link",
            Stream::with(0, 0, 1).hard_link(b"", 0),
            "manifest entry 0: the root is no directory, or is named",
        ),
    ]
}

fn links() -> Vec<Case> {
    let base = |entries| tree(entries).entry(Kind::Directory, 0, b"a", &[]).entry(Kind::File, 1, b"b", FILE);
    let symlink = |target: &[u8]| tree(2).link_to(b"link", target);
    vec![
        (
            "a hard link to a folder",
            base(4).hard_link(b"c", 2),
            "manifest entry 3 is a hard link to entry 1, which is no earlier file",
        ),
        (
            "a hard link to the root",
            base(4).hard_link(b"c", 3),
            "manifest entry 3 is a hard link to entry 0, which is no earlier file",
        ),
        (
            "a hard link to itself",
            base(4).hard_link(b"c", 0),
            "manifest entry 3 is a hard link to entry 4294967295, which is no earlier file",
        ),
        (
            "a hard link to before the start",
            base(4).hard_link(b"c", 4),
            "manifest entry 3 is a hard link to entry 4294967295, which is no earlier file",
        ),
        ("a hard link far back", base(4).hard_link(b"c", 1 << 40), SPELLING),
        (
            "a hard link to a hard link",
            base(5).hard_link(b"c", 1).hard_link(b"d", 1),
            "manifest entry 4 is a hard link to entry 3, which is no earlier file",
        ),
        (
            "a hard link with a time",
            base(4).raw(&[4 | 1 << 3, 0, 1, b'c', 1]),
            "the manifest says the same thing in another way than a writer would: a hard link with a time",
        ),
        (
            "a symlink to nothing",
            symlink(b""),
            "manifest entry 1 is a symbolic link with a target of 0 bytes or with a NUL in it",
        ),
        (
            "a symlink with a NUL",
            symlink(b"a\0b"),
            "manifest entry 1 is a symbolic link with a target of 3 bytes or with a NUL in it",
        ),
        ("a symlink of 4096 bytes", symlink(&[b't'; 4096]), "the manifest has a length beyond 4095"),
        (
            "a symlink with a mode",
            tree(2).entry(Kind::Symlink, 0, b"l", &[1, b'x']),
            "manifest entry 1 has a mode, flags or a project, which its kind has not",
        ),
        (
            "a fifo with a flag",
            tree(2).spelt(Kind::Fifo, 0, b"l", &[0, 0, 0, 0x10, 0, 0], &[]),
            "manifest entry 1 has a mode, flags or a project, which its kind has not",
        ),
        (
            "a device with a project",
            tree(2).spelt(Kind::CharDevice, 0, b"l", &[0, 0, 0, 0, 7, 0], &[1, 3]),
            "manifest entry 1 has a mode, flags or a project, which its kind has not",
        ),
        (
            "a major number of 13 bits",
            tree(2).entry(Kind::CharDevice, 0, b"d", &[0x80, 0x20, 3]),
            "manifest entry 1 is device 4096:3, beyond 4095:1048575",
        ),
        (
            "a minor number of 21 bits",
            tree(2).entry(Kind::BlockDevice, 0, b"d", &[8, 0x80, 0x80, 0x40]),
            "manifest entry 1 is device 8:1048576, beyond 4095:1048575",
        ),
        (
            "a minor number of 33 bits",
            tree(2).entry(Kind::BlockDevice, 0, b"d", &[8, 0x80, 0x80, 0x80, 0x80, 0x10]),
            SPELLING,
        ),
    ]
}

const SPELLING: &str = "the manifest has a number in another spelling or beyond its range";

fn attribute_rows() -> Vec<Case> {
    let spelt = |row: &[u8]| tree(2).spelt(Kind::File, 0, b"f", row, FILE);
    let attributed = |pairs: &[(&[u8], &[u8])]| spelt(&xattrs(pairs));
    let long = vec![7; 65_537];
    let unsorted = "manifest entry 1 has extended attributes that are not sorted, or one twice";
    let timed =
        |head: u8, time: &[u8]| tree(2).raw(&[&[2 | head << 3, 0, 1, b'f', 0][..], time, FILE].concat());
    let many: Vec<(Vec<u8>, &[u8])> =
        (0..40_u32).map(|number| (format!("user.{number:02}").into_bytes(), &long[..65_536])).collect();
    let many: Vec<(&[u8], &[u8])> = many.iter().map(|(name, value)| (&name[..], *value)).collect();
    vec![
        (
            "a mode beyond 7777",
            spelt(&[0x80, 0x20, 0, 0, 0, 0, 0]),
            "manifest entry 1 has mode 10000, which has bits beyond 7777",
        ),
        (
            "an owner that means none",
            spelt(&[0, 0xff, 0xff, 0xff, 0xff, 0x0f, 0, 0, 0, 0]),
            "manifest entry 1 has owner or group 4294967295, which means none",
        ),
        ("an owner of 33 bits", spelt(&[0, 0x80, 0x80, 0x80, 0x80, 0x10, 0, 0, 0, 0]), SPELLING),
        ("an unknown flag", spelt(&[0, 0, 0, 1, 0, 0]), SPELLING),
        (
            "a project that means none",
            spelt(&[0, 0, 0, 0, 0xff, 0xff, 0xff, 0xff, 0x0f, 0]),
            "manifest entry 1 has project 4294967295, which means none",
        ),
        (
            "an attribute without a name",
            attributed(&[(b"", b"x")]),
            "manifest entry 1 has an extended attribute with a name of 0 bytes where 1 to 255 are allowed",
        ),
        (
            "an attribute name of 256 bytes",
            attributed(&[(&[b'n'; 256], b"")]),
            "the manifest has a length beyond 255",
        ),
        (
            "an attribute name with a NUL",
            attributed(&[(b"user.\0x", b"")]),
            "manifest entry 1 has an extended attribute with a NUL in its name",
        ),
        ("an attribute twice", attributed(&[(b"user.a", b"1"), (b"user.a", b"2")]), unsorted),
        ("attributes out of order", attributed(&[(b"user.b", b""), (b"user.a", b"")]), unsorted),
        (
            "an attribute of 65537 bytes",
            attributed(&[(b"user.a", &long)]),
            "the manifest has a length beyond 65536",
        ),
        (
            "attributes of more than a mebibyte",
            attributed(&many),
            "manifest entry 1 has 2621720 bytes of extended attributes where at most 1048576 are allowed",
        ),
        (
            "more attributes than a list could hold",
            spelt(&[&[0, 0, 0, 0, 0][..], &varint(XATTRS_MAX as u64 + 1)].concat()),
            "the manifest has a length beyond 10000",
        ),
        (
            "2^63 attributes",
            spelt(&[&[0, 0, 0, 0, 0][..], &varint(1 << 63)].concat()),
            "the manifest has a length beyond 10000",
        ),
        ("attributes number 2 where 1 is next", tree(2).raw(&[2, 0, 1, b'f', 2]), SPELLING),
        (
            "attributes spelt out again",
            spelt(&attributes(0o755)),
            "the manifest says the same thing in another way than a writer would: attributes spelt out",
        ),
        (
            "a billion nanoseconds",
            timed(17, &[2, 0x80, 0x94, 0xeb, 0xdc, 3]),
            "manifest entry 1 has a time with 1000000000 nanoseconds in a second",
        ),
        (
            "no nanoseconds, spelt out",
            timed(17, &[2, 0]),
            "the manifest says the same thing in another way than a writer would: a time spelt out",
        ),
        (
            "a recent time, spelt out",
            timed(16, &[0]),
            "the manifest says the same thing in another way than a writer would: a time spelt out",
        ),
        ("a recent time that never was", timed(1, &[]), SPELLING),
        ("a time of no kind", timed(18, &[]), SPELLING),
    ]
}

fn varint(number: u64) -> Vec<u8> {
    let mut out = Vec::new();
    stream::put(&mut out, number);
    out
}

fn contents() -> Vec<Case> {
    // Two chunks of 1000 bytes in one piece, then the root and one file.
    let base = || Stream::with(1, 2, 2).piece(&[1000, 1000]).root();
    let segments = |segments: &[u64]| {
        let mut content = varint(segments.len() as u64 / 2);
        segments.iter().for_each(|number| stream::put(&mut content, *number));
        base().entry(Kind::File, 0, b"f", &content)
    };
    let counted = |count: u64, rest: &[u64]| {
        let mut content = varint(count);
        rest.iter().for_each(|number| stream::put(&mut content, *number));
        base().entry(Kind::File, 0, b"f", &content)
    };
    let hole = |bytes: u64| bytes << 1 | 1;
    const COULD_BE_ONE: &str = "the manifest says the same thing in another way than a writer would: segments that are empty or could be one";
    vec![
        (
            "a hole of 2^63 - 1 beside data",
            counted(2, &[hole((1 << 63) - 1), 2, 0]),
            "manifest entry 1 is larger than any file",
        ),
        ("an empty hole", counted(1, &[hole(0)]), COULD_BE_ONE),
        ("two holes in a row", counted(2, &[hole(5), hole(6)]), COULD_BE_ONE),
        ("no chunks", segments(&[0, 0]), COULD_BE_ONE),
        ("two runs that could be one", segments(&[2, 0, 2, 0]), COULD_BE_ONE),
        ("a chunk beyond the list", segments(&[2, 4]), "manifest entry 1 needs chunk 2 where 2 are listed"),
        (
            "more chunks than the list has",
            segments(&[6, 0]),
            "manifest entry 1 needs chunk 2 where 2 are listed",
        ),
        ("a chunk before the list", segments(&[2, 1]), SPELLING),
        ("2^32 chunks", segments(&[1 << 33, 0]), SPELLING),
        ("chunks up to 2^32", segments(&[2, (u64::from(u32::MAX)) << 1]), SPELLING),
        (
            "the next chunk, spelt out",
            segments(&[2, 0]),
            "the manifest says the same thing in another way than a writer would: a file of the next chunk, spelt out",
        ),
        (
            "the next chunk where none is left",
            Stream::with(1, 1, 3).piece(&[9]).root().entry(Kind::NextChunk, 0, b"a", &[]).entry(
                Kind::NextChunk,
                0,
                b"b",
                &[],
            ),
            "manifest entry 2 needs chunk 1 where 1 are listed",
        ),
        (
            "more segments than a file may have",
            counted(SEGMENTS_MAX as u64 + 1, &[]),
            "the manifest has a length beyond 1048576",
        ),
        ("2^63 segments", counted(1 << 63, &[]), "the manifest has a length beyond 1048576"),
        (
            "the same chunks a hundred million times",
            uses_bomb(),
            "manifest entry 2 brings the uses of chunks beyond 16777216",
        ),
    ]
}

fn pieces() -> Vec<Case> {
    vec![
        (
            "a piece without chunks",
            Stream::with(1, 0, 1).piece(&[]),
            "the manifest says the same thing in another way than a writer would: a piece without chunks",
        ),
        (
            "an empty chunk",
            Stream::with(1, 1, 1).piece(&[0]),
            "the manifest says the same thing in another way than a writer would: an empty chunk",
        ),
        (
            "a chunk longer than chunks are",
            Stream::with(1, 1, 1).piece(&[(256 << 10) + 1]),
            "the manifest has a length beyond 262144",
        ),
        (
            "more chunks than a piece may have",
            Stream::with(1, 1, 1).raw(&[&[0; 32][..], &varint(CHUNKS_PER_PIECE_MAX as u64 + 1)].concat()),
            "the manifest has a length beyond 16384",
        ),
        (
            "a piece larger than pieces are",
            Stream::with(1, 40, 1).piece(&[256 << 10; 40]).root(),
            "the manifest lists piece 0 of 10485760 bytes where 1 to 9437184 are allowed",
        ),
        (
            "a chunk more than it says",
            Stream::with(1, 1, 1).piece(&[5, 5]).root(),
            "the manifest says 2 chunks, its root record 1",
        ),
        (
            "a chunk less than it says",
            Stream::with(1, 3, 1).piece(&[5, 5]).root(),
            "the manifest says 2 chunks, its root record 3",
        ),
    ]
}

/// Two files that each name a thousand chunks sixteen thousand times.
fn uses_bomb() -> Stream {
    let mut first = varint(16_000);
    for at in 0..16_000 {
        stream::put(&mut first, 1000 << 1);
        stream::put(&mut first, if at == 0 { 0 } else { 1999 });
    }
    let mut second = varint(16_000);
    for _ in 0..16_000 {
        stream::put(&mut second, 1000 << 1);
        stream::put(&mut second, 1999);
    }
    Stream::with(1, 1000, 3).piece(&[1; 1000]).root().entry(Kind::File, 0, b"a", &first).entry(
        Kind::File,
        0,
        b"b",
        &second,
    )
}

fn streams() -> Vec<Case> {
    let good = || Stream::with(1, 1, 2).piece(&[9]).root().entry(Kind::NextChunk, 0, b"a", &[]);
    let with = |change: fn(&mut Stream)| {
        let mut stream = good();
        change(&mut stream);
        stream
    };
    vec![
        ("no magic", with(|stream| stream.bytes[0] = b'S'), "not a manifest of format 1"),
        ("another version", with(|stream| stream.bytes[5] = 2), "not a manifest of format 1"),
        ("nothing at all", with(|stream| stream.bytes.truncate(1)), "the manifest ends early"),
        ("half of it", with(|stream| stream.bytes.truncate(30)), "the manifest ends early"),
        (
            "all but a byte",
            with(|stream| stream.bytes.truncate(stream.bytes.len() - 1)),
            "the manifest ends early",
        ),
        ("a byte more", with(|stream| stream.bytes.push(0)), "the manifest has bytes after its last entry"),
        (
            "an entry more",
            with(|stream| stream.bytes.extend([7, 0, 1, b'z', 0])),
            "the manifest has bytes after its last entry",
        ),
        (
            "more pieces than signed",
            with(|stream| stream.pieces = 2),
            "the manifest says 1 pieces, its root record 2",
        ),
        (
            "more entries than signed",
            with(|stream| stream.entries = 1),
            "the manifest says 2 entries, its root record 1",
        ),
        (
            "more chunks than signed",
            with(|stream| stream.chunks = 0),
            "the manifest says 1 chunks, its root record 0",
        ),
        (
            "other content than signed",
            with(|stream| stream.raw_bytes = 10),
            "the manifest says 9 content bytes, its root record 10",
        ),
        (
            "a number with a byte too many",
            Stream { bytes: [&b"shoal\x01"[..], &[0x80, 0, 0, 1]].concat(), ..Stream::with(0, 0, 1) },
            SPELLING,
        ),
        (
            "a number of 11 bytes",
            Stream { bytes: [&b"shoal\x01"[..], &[0xff; 10], &[1]].concat(), ..Stream::with(0, 0, 1) },
            SPELLING,
        ),
        (
            "an entry without end",
            {
                let value = vec![7; 65_536];
                let names: Vec<Vec<u8>> =
                    (0..400).map(|number| format!("user.{number:03}").into_bytes()).collect();
                let pairs: Vec<(&[u8], &[u8])> = names.iter().map(|name| (&name[..], &value[..])).collect();
                tree(2).spelt(Kind::File, 0, b"f", &xattrs(&pairs), FILE)
            },
            "the manifest has an entry longer than 25165824 bytes",
        ),
    ]
}

#[test]
fn each_hostile_manifest_is_refused_with_a_clear_word() {
    let cases = [names(), links(), attribute_rows(), contents(), pieces(), streams()].concat();
    assert!(cases.len() >= 90, "{} cases", cases.len());
    for (name, stream, expected) in cases {
        for run in [7_919, 65_536] {
            let (decoded, peak_bytes) = memory::peak_of(|| decode(&stream, run));
            let error = decoded.err().map(|error| error.to_string());
            assert_eq!(error.as_deref(), Some(expected), "{name}");
            let bound = 16 * stream.bytes.len() + (1 << 20);
            assert!(peak_bytes <= bound, "{name}: {peak_bytes} bytes for {}", stream.bytes.len());
        }
    }
}

/// The largest hole that a file can have is no lie: it is one that a file system may refuse.
#[test]
fn the_largest_file_is_read() {
    let mut content = varint(1);
    stream::put(&mut content, u64::MAX);
    let stream = tree(2).entry(Kind::File, 0, b"f", &content);
    let manifest = decode(&stream, 100).unwrap();
    assert_eq!(manifest.entries().map(|entry| manifest.size(entry)).max(), Some(u64::MAX >> 1));
}
