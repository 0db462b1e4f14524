use proptest::collection::vec;
use proptest::prelude::*;

use super::super::entry::{Attributes, Content, InodeFlags, Mtime, Xattr, push_segment};
use super::super::layout::{Layout, ParentPieces};
use super::super::root::{ROOT_BYTES_MAX, RootError, RootRecord};
use super::super::tree::TreeBuilder;
use super::*;

const BLOCK_BYTES: u32 = 1 << 20;

fn attributes(mode: u32) -> Attributes {
    Attributes::new(mode, 0, 0, InodeFlags::NONE, vec![]).unwrap()
}

fn time(seconds: i64) -> Mtime {
    Mtime::new(seconds, 0).unwrap()
}

fn assemble(tree: TreeBuilder, layout: Layout) -> Manifest {
    let laid = layout.finish();
    let name = |block| laid.chunks(block).next().map(|(id, _)| Cid::of(id.digest()));
    let cids: Vec<Cid> = laid.blocks.iter().filter_map(name).collect();
    Manifest::assemble(tree.finish(), &laid, &cids).unwrap()
}

/// One of every kind; some chunks used twice, a hole at each end of a file.
fn sample() -> Manifest {
    let mut layout = Layout::new(BLOCK_BYTES, None);
    for name in 0..4_u8 {
        layout.place(ChunkId::of(&[name]), 1000 + u32::from(name));
    }
    let mut tree = TreeBuilder::default();
    tree.push_root(attributes(0o755), time(1)).unwrap();
    tree.push(0, b"bin", attributes(0o755), time(2), Kind::Directory).unwrap();
    let chunk = |first| Kind::File(Content::One(Segment::Chunks { first, count: 1 }));
    let capable = Attributes::new(
        0o4755,
        7,
        4_294_967_294,
        InodeFlags::IMMUTABLE,
        vec![Xattr { name: (*b"security.capability").into(), value: (*b"\x01\0\0\x02").into() }],
    )
    .and_then(|attributes| attributes.with_project(42));
    tree.push(0, b"a", capable.clone().unwrap(), Mtime::new(-5, 7).unwrap(), chunk(0)).unwrap();
    tree.push_hard_link(0, b"b", 2).unwrap();
    tree.push(0, b"c\xff\n", attributes(0), time(2), Kind::Fifo).unwrap();
    tree.push(0, b"d", attributes(0o600), time(i64::MAX), Kind::CharDevice { major: 4095, minor: 1_048_575 })
        .unwrap();
    tree.push(0, b"e", attributes(0o600), time(i64::MIN), Kind::BlockDevice { major: 0, minor: 0 }).unwrap();
    tree.push(1, b"empty", attributes(0o644), time(2), Kind::File(Content::Segments(&[]))).unwrap();
    let sparse = [
        Segment::Hole { bytes: 9 },
        Segment::Chunks { first: 1, count: 3 },
        Segment::Hole { bytes: 1 << 40 },
    ];
    tree.push(0, b"sparse", attributes(0o644), time(2), Kind::File(Content::Segments(&sparse))).unwrap();
    tree.push(0, b"twin", capable.unwrap(), time(3), chunk(0)).unwrap();
    tree.push(0, b"z", attributes(0), time(3), Kind::Symlink { target: b"../\xfe" }).unwrap();
    assemble(tree, layout)
}

fn stream(manifest: &Manifest) -> (RootRecord, Vec<u8>) {
    let mut bytes = Vec::new();
    let root = manifest
        .encode_blocks(BLOCK_BYTES, |cid, block| {
            assert_eq!(cid, Cid::of(block));
            bytes.extend_from_slice(block);
        })
        .unwrap();
    (root, bytes)
}

fn decode(root: &RootRecord, bytes: &[u8], step: usize) -> Result<Manifest, ManifestError> {
    let mut decoder = ManifestDecoder::new(root);
    for run in bytes.chunks(step) {
        decoder.push(run)?;
    }
    decoder.finish()
}

#[test]
fn every_kind_round_trips_whatever_the_runs_it_comes_in() {
    let manifest = sample();
    let (root, bytes) = stream(&manifest);
    for step in [1, 2, 7, 100, bytes.len()] {
        let again = decode(&root, &bytes, step).unwrap();
        assert_eq!(stream(&again), (root.clone(), bytes.clone()));
        for (one, other) in manifest.entries().zip(again.entries()) {
            assert_eq!(
                (one.path(), one.kind(), one.mtime(), one.attributes(), manifest.size(one)),
                (other.path(), other.kind(), other.mtime(), other.attributes(), again.size(other))
            );
        }
    }
}

/// The bytes of a known tree never change: another id for the same tree would share nothing with images made before.
#[test]
fn the_sample_has_the_image_id_of_every_release() {
    let (root, _) = stream(&sample());
    assert_eq!(root.image_id().to_string(), GOLDEN_ID);
}
const GOLDEN_ID: &str = "bafkr4idqu7xfolafbvfwgoajdbjqnplyp3ewzxmv6a2ph25knezmtfe5ie";

#[test]
fn chunks_know_their_places() {
    let manifest = sample();
    let places = manifest.places();
    let of = |chunk| -> Vec<(String, u64)> {
        let named = |place: &Place| (manifest.entry(place.entry).path().to_string(), place.offset);
        places.of_chunk(chunk).iter().map(named).collect()
    };
    assert_eq!(of(0), [("bin/a".to_owned(), 0), ("twin".to_owned(), 0)]);
    assert_eq!(of(1), [("sparse".to_owned(), 9)]);
    assert_eq!(of(3), [("sparse".to_owned(), 9 + 1001 + 1002)]);
}

#[test]
fn every_cut_and_every_flipped_byte_is_refused_or_read_as_itself() {
    let (root, bytes) = stream(&sample());
    for cut in 0..bytes.len() {
        assert_eq!(decode(&root, &bytes[..cut], 64).unwrap_err(), ManifestError::Short, "cut at {cut}");
    }
    assert_eq!(decode(&root, &[&bytes[..], b"x"].concat(), 64).unwrap_err(), ManifestError::Trailing);
    for at in 0..bytes.len() {
        for bit in 0..8 {
            let mut damaged = bytes.clone();
            damaged[at] ^= 1 << bit;
            if let Ok(other) = decode(&root, &damaged, 64) {
                assert_eq!(stream(&other).1, damaged, "byte {at} bit {bit}");
            }
        }
    }
}

#[test]
fn trees_that_no_directory_could_hold_are_refused() {
    let file = Kind::File(Content::Segments(&[]));
    let base = || {
        let mut tree = TreeBuilder::default();
        tree.push_root(attributes(0o755), time(0)).unwrap();
        tree.push(0, b"dir", attributes(0o755), time(0), Kind::Directory).unwrap();
        tree.push(0, b"m", attributes(0o644), time(0), file).unwrap();
        tree
    };
    let push = |up, name: &[u8]| base().push(up, name, attributes(0), time(0), file).unwrap_err();
    assert_eq!(push(0, b"m"), TreeError::Order(3));
    assert_eq!(push(0, b"a"), TreeError::Order(3));
    assert_eq!(push(1, b"dir"), TreeError::Order(3));
    assert_eq!(push(2, b"n"), TreeError::Depth(3));
    assert!(matches!(push(0, b".."), TreeError::Path { .. }));
    assert!(matches!(push(0, b"n/m"), TreeError::Path { .. }));
    assert!(matches!(push(0, b""), TreeError::Path { .. }));
    for (to, allowed) in [(0, false), (1, false), (2, true), (3, false), (9, false)] {
        assert_eq!(base().push_hard_link(0, b"n", to).is_ok(), allowed, "link to {to}");
    }
    let mut linked = base();
    linked.push_hard_link(0, b"n", 2).unwrap();
    assert_eq!(linked.push_hard_link(0, b"o", 3), Err(TreeError::Link { entry: 4, to: 3 }));
    let target = |target| base().push(0, b"n", attributes(0), time(0), Kind::Symlink { target }).is_ok();
    assert_eq!(
        [target(b"x"), target(b""), target(b"\0"), target(&[b'x'; 4096])],
        [true, false, false, false]
    );
}

#[test]
fn files_of_chunks_that_do_not_exist_or_beyond_all_sizes_are_refused() {
    for segment in [Segment::Chunks { first: 4, count: 1 }, Segment::Hole { bytes: u64::MAX }] {
        let mut tree = TreeBuilder::default();
        tree.push_root(attributes(0o755), time(0)).unwrap();
        tree.push(0, b"f", attributes(0), time(0), Kind::File(Content::Segments(&[segment, segment])))
            .unwrap();
        assert!(Parts::default().join(tree.finish()).is_err());
    }
}

#[test]
fn root_records_have_one_spelling() {
    let (root, _) = stream(&sample());
    let bytes = root.encode();
    assert_eq!(RootRecord::decode(&bytes), Ok(root));
    for cut in 0..bytes.len() {
        assert!(RootRecord::decode(&bytes[..cut]).is_err(), "cut at {cut}");
    }
    assert_eq!(RootRecord::decode(&[&bytes[..], &[0x50, 1]].concat()), Err(RootError::NotCanonical));
    assert_eq!(
        RootRecord::decode(&[&[0x08, 0x81, 0x00], &bytes[2..]].concat()),
        Err(RootError::NotCanonical)
    );
    assert_eq!(RootRecord::decode(&[&[0x08, 2], &bytes[2..]].concat()), Err(RootError::Format(2)));
    assert_eq!(RootRecord::decode(&vec![0; ROOT_BYTES_MAX + 1]), Err(RootError::TooLong(ROOT_BYTES_MAX + 1)));
    assert_eq!(RootRecord::decode(b""), Err(RootError::Format(0)));
}

/// What to do next while a random tree grows.
#[derive(Clone, Debug)]
struct Step {
    up: usize,
    name: Vec<u8>,
    kind: u8,
    mode: u32,
    xattr: Option<(Vec<u8>, Vec<u8>)>,
    time: (i64, u32),
    content: Vec<(bool, u16)>,
}

fn step() -> impl Strategy<Value = Step> {
    (
        0_usize..3,
        vec(any::<u8>(), 1..4),
        0_u8..8,
        prop_oneof![Just(0o644), Just(0o755), 0_u32..=0o7777],
        proptest::option::weighted(0.1, (vec(1_u8.., 1..5), vec(any::<u8>(), 0..9))),
        prop_oneof![4 => (0_i64..20, Just(0)), 1 => (any::<i64>(), 0_u32..1_000_000_000)],
        vec((any::<bool>(), 1_u16..60), 0..4),
    )
        .prop_map(|(up, name, kind, mode, xattr, time, content)| Step {
            up,
            name,
            kind,
            mode,
            xattr,
            time,
            content,
        })
}

/// Ten chunks, of the lengths that they have in [`grow`] too.
fn parent() -> ParentPieces {
    let mut layout = Layout::new(BLOCK_BYTES, None);
    let mut tree = TreeBuilder::default();
    tree.push_root(attributes(0o755), time(0)).unwrap();
    for name in 0..10_u8 {
        layout.place(ChunkId::of(&[name]), (u32::from(name) + 1) * 4000);
    }
    ParentPieces::new(Arc::new(assemble(tree, layout)), BLOCK_BYTES, |_| true)
}

/// Grows a tree from what fits of the steps.
fn grow(steps: &[Step]) -> Manifest {
    let mut layout = Layout::new(BLOCK_BYTES, Some(Arc::new(parent())));
    let mut tree = TreeBuilder::default();
    tree.push_root(attributes(0o755), time(0)).unwrap();
    for step in steps {
        let xattrs =
            step.xattr.iter().map(|(name, value)| Xattr { name: name[..].into(), value: value[..].into() });
        let mode = if step.kind == 1 { 0 } else { step.mode };
        let attributes = Attributes::new(mode, 0, 0, InodeFlags::NONE, xattrs.collect()).unwrap();
        let mtime = Mtime::new(step.time.0, step.time.1).unwrap();
        let mut segments = Vec::new();
        for &(hole, number) in &step.content {
            let [name, _] = number.to_le_bytes();
            push_segment(
                &mut segments,
                if hole {
                    Segment::Hole { bytes: u64::from(number) }
                } else {
                    let placed = layout.place(ChunkId::of(&[name]), (u32::from(name) + 1) * 4000);
                    Segment::Chunks { first: placed.chunk, count: 1 }
                },
            );
        }
        let kind = match step.kind {
            0 => Kind::Directory,
            1 => Kind::Symlink { target: &step.name },
            2 => Kind::Fifo,
            3 => Kind::CharDevice { major: step.mode, minor: 3 },
            _ => Kind::File(Content::Segments(&segments)),
        };
        // A step that does not fit is one that a builder must refuse and survive.
        if step.kind == 7 {
            let _ = tree.push_hard_link(step.up, &step.name, u32::from(step.name[0]));
        } else {
            let _ = tree.push(step.up, &step.name, attributes, mtime, kind);
        }
    }
    assemble(tree, layout)
}

proptest! {
    #[test]
    fn any_tree_round_trips(steps in vec(step(), 0..120), run in 1_usize..500) {
        let manifest = grow(&steps);
        let (root, bytes) = stream(&manifest);
        let again = decode(&root, &bytes, run).unwrap();
        prop_assert_eq!(stream(&again), (root, bytes));
        for (one, other) in manifest.entries().zip(again.entries()) {
            prop_assert_eq!(one.path(), other.path());
            prop_assert_eq!((one.kind(), one.mtime(), one.attributes()), (other.kind(), other.mtime(), other.attributes()));
        }
        prop_assert!(manifest.entries().map(|entry| entry.path()).is_sorted_by(|one, next| one < next));
    }

    #[test]
    fn a_damaged_stream_never_panics_and_has_one_spelling(
        steps in vec(step(), 0..40), at in any::<prop::sample::Index>(), with in any::<u8>(), run in 1_usize..500,
    ) {
        let (root, mut bytes) = stream(&grow(&steps));
        let at = at.index(bytes.len());
        bytes[at] = with;
        if let Ok(other) = decode(&root, &bytes, run) {
            prop_assert_eq!(stream(&other).1, bytes);
        }
    }

    #[test]
    fn arbitrary_bytes_never_panic(bytes in vec(any::<u8>(), 0..600)) {
        let (root, stream) = stream(&sample());
        let _ = decode(&root, &bytes, 100);
        let _ = decode(&root, &[&stream[..600.min(stream.len() / 2)], &bytes].concat(), 100);
        let _ = RootRecord::decode(&bytes);
    }
}

#[test]
fn attributes_that_are_known_may_not_be_spelt_out_again() {
    let mut tree = TreeBuilder::default();
    tree.push_root(attributes(0o755), time(0)).unwrap();
    tree.push(0, b"a", attributes(0o755), time(0), Kind::Fifo).unwrap();
    let (root, bytes) = stream(&assemble(tree, Layout::new(BLOCK_BYTES, None)));
    let spelt = [0xed, 3, 0, 0, 0, 0, 0];
    let expected = [MAGIC, &[0, 0, 2][..], &[16 << 3, 0, 0, 0], &spelt, &[0], &[7, 0, 1, b'a', 0]].concat();
    assert_eq!(bytes, expected);
    let again = [&expected[..expected.len() - 1], &[1], &spelt].concat();
    assert_eq!(decode(&root, &again, 8).unwrap_err(), ManifestError::NotCanonical("attributes spelt out"));
}
