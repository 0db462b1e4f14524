//! The resolver against a naive one: lists of paths in a map, one layer after the other.

#![expect(clippy::unwrap_used, reason = "a test")]

use std::collections::BTreeMap;

use proptest::collection::vec;
use proptest::prelude::*;
use shoal_proto::cid::{ChunkId, Cid};
use shoal_proto::image::entry::{Attributes, Content, InodeFlags, Kind, Mtime, Segment};
use shoal_proto::image::layers::{
    Effective, Layer, LayerError, OPAQUE_NAME, WHITEOUT_PREFIX, Word, fold, words,
};
use shoal_proto::image::layout::Layout;
use shoal_proto::image::tree::TreeBuilder;
use shoal_proto::image::{ImagePath, Manifest, ManifestDecoder};

/// What is at a path of a made-up layer.
#[derive(Clone, Debug)]
enum What {
    Directory,
    /// One chunk or several, by their seeds.
    File(Vec<u8>),
    Symlink,
    /// Another name of this inode of the layer.
    Name(u8),
}

/// Paths with slashes, sorted as in an image; owner and time say which layer it was.
type Paths = BTreeMap<Vec<&'static str>, What>;

const NAMES: [&str; 9] = ["a", "b", "b.x", "c", ".wh.a", ".wh.b", ".wh.c", ".wh..wh..opq", ".wh.b.x"];

fn what() -> impl Strategy<Value = What> {
    prop_oneof![
        5 => Just(What::Directory),
        5 => vec(0_u8..12, 1..3).prop_map(What::File),
        1 => Just(What::Symlink),
        3 => (0_u8..2).prop_map(What::Name),
    ]
}

fn layer() -> impl Strategy<Value = Paths> {
    let path = vec(0_usize..NAMES.len(), 1..4);
    vec((path, what()), 0..14).prop_map(|entries| {
        let mut paths = Paths::new();
        for (path, what) in entries {
            let path: Vec<&str> = path.into_iter().map(|name| NAMES[name]).collect();
            // Directories around it; whiteouts are empty files.
            if path[..path.len() - 1].iter().any(|name| name.starts_with(".wh.")) {
                continue;
            }
            let around = |depth: usize| paths.get(&path[..depth]);
            if (1..path.len()).any(|depth| around(depth).is_some_and(|what| !matches!(what, What::Directory)))
            {
                continue;
            }
            for depth in 1..path.len() {
                paths.insert(path[..depth].to_vec(), What::Directory);
            }
            let whiteout = path.last().unwrap().starts_with(".wh.");
            let is_new = !paths.contains_key(&path);
            if is_new {
                paths.insert(path, if whiteout { What::File(vec![]) } else { what });
            }
        }
        paths
    })
}

fn attributes(layer: usize, what: &'static str) -> Attributes {
    // A link has no mode.
    let mode = if what == "link" { 0 } else { 0o755 };
    Attributes::new(mode, u32::try_from(layer).unwrap(), 0, InodeFlags::NONE, vec![]).unwrap()
}

fn time(layer: usize, path: &[&str]) -> Mtime {
    Mtime::new(i64::try_from(layer * 1000 + path.len()).unwrap(), 0).unwrap()
}

fn chunk_of(seed: u8) -> (ChunkId, u32) {
    (ChunkId::of(&[seed]), (100 << 10) + u32::from(seed))
}

/// The layer as a manifest; names of one inode are hard links.
fn manifest(number: usize, paths: &Paths) -> Manifest {
    // Two chunks a block, so that some pieces are not needed.
    let mut layout = Layout::new(256 << 10, None);
    let mut tree = TreeBuilder::default();
    tree.push_root(attributes(number, "directory"), time(number, &[])).unwrap();
    let mut depth = 0;
    let mut inodes: BTreeMap<u8, u32> = BTreeMap::new();
    for (path, what) in paths {
        let up = depth + 1 - path.len();
        let name = path.last().unwrap().as_bytes();
        let of = if matches!(what, What::Symlink) { "link" } else { "file" };
        let (attributes, time) = (attributes(number, of), time(number, path));
        let seeds = match what {
            What::File(seeds) => seeds.clone(),
            What::Name(inode) => vec![200 + inode],
            What::Directory | What::Symlink => vec![],
        };
        depth = path.len() - 1;
        let kind = match what {
            What::Directory => {
                depth = path.len();
                Kind::Directory
            }
            What::Symlink => Kind::Symlink { target: b"a" },
            What::Name(inode) if inodes.contains_key(inode) => {
                tree.push_hard_link(up, name, inodes[inode]).unwrap();
                continue;
            }
            What::File(_) | What::Name(_) => {
                let mut segments = Vec::new();
                for seed in seeds {
                    let (id, bytes) = chunk_of(seed);
                    let first = layout.place(id, bytes).chunk;
                    shoal_proto::image::entry::push_segment(
                        &mut segments,
                        Segment::Chunks { first, count: 1 },
                    );
                }
                let index =
                    tree.push(up, name, attributes, time, Kind::File(Content::Segments(&segments))).unwrap();
                if let What::Name(inode) = what {
                    inodes.insert(*inode, index.get());
                }
                continue;
            }
        };
        tree.push(up, name, attributes, time, kind).unwrap();
    }
    let laid = layout.finish();
    let name = |block| Cid::of(laid.chunks(block).next().unwrap().0.digest());
    let cids: Vec<Cid> = laid.blocks.iter().map(name).collect();
    Manifest::assemble(tree.finish(), &laid, &cids).unwrap()
}

/// What the naive resolver has at a path: the layer whose it is, and for names of one inode which.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Naive {
    layer: usize,
    kind: &'static str,
    seeds: Vec<u8>,
    inode: Option<(usize, u8)>,
    /// A directory that came to lie over a symbolic link.
    over_link: bool,
}

fn below(path: &[&str], directory: &[&str]) -> bool {
    path.len() > directory.len() && path.starts_with(directory)
}

/// Everything in turn, on a map. `None` when a directory would lie over a symbolic link.
fn naive(layers: &[Paths]) -> Option<BTreeMap<Vec<&'static str>, Naive>> {
    let mut result: BTreeMap<Vec<&'static str>, Naive> = BTreeMap::new();
    for (layer, paths) in layers.iter().enumerate() {
        let mut opaque: Vec<Vec<&str>> = Vec::new();
        for path in paths.keys().filter(|_| layer > 0) {
            let (name, around) = path.split_last().unwrap();
            if name.as_bytes() == OPAQUE_NAME {
                result.retain(|known, _| !below(known, around));
                opaque.push(around.to_vec());
            } else if let Some(taken) = name.strip_prefix(".wh.") {
                let taken = [around, &[taken]].concat();
                result.retain(|known, _| *known != taken && !below(known, &taken));
            }
        }
        for (path, what) in paths {
            if layer > 0 && path.last().unwrap().as_bytes().starts_with(WHITEOUT_PREFIX) {
                continue;
            }
            let is_directory = matches!(what, What::Directory);
            let below_it = result.get(path).filter(|_| is_directory && !opaque.contains(path));
            let over_link = below_it.is_some_and(|known| known.kind == "link" || known.over_link);
            let new =
                |kind, seeds: &[u8], inode| Naive { layer, kind, seeds: seeds.to_vec(), inode, over_link };
            if !is_directory {
                result.retain(|known, _| !below(known, path));
            }
            let node = match what {
                What::Directory => new("directory", &[], None),
                What::File(seeds) => new("file", seeds, None),
                What::Symlink => new("link", &[], None),
                What::Name(inode) => new("file", &[200 + inode], Some((layer, *inode))),
            };
            result.insert(path.clone(), node);
        }
    }
    (!result.values().any(|node| node.over_link)).then_some(result)
}

fn folded(manifests: &[Manifest], confidential: usize) -> Result<Effective, LayerError> {
    fold(&layers(manifests, confidential), &|_, _| false)
}

fn layers(manifests: &[Manifest], confidential: usize) -> Vec<Layer<'_>> {
    let layer = |(at, manifest)| Layer { manifest, confidential: at > 0 && at == confidential };
    manifests.iter().enumerate().map(layer).collect()
}

fn path_of(path: &[&str]) -> ImagePath {
    ImagePath::parse(path.join("/").as_bytes()).unwrap()
}

/// What two readers of a manifest see of its entries.
fn listing(manifest: &Manifest) -> Vec<String> {
    let line = |entry: shoal_proto::image::tree::Entry<'_>| {
        let content = match entry.kind() {
            Kind::File(content) => {
                let chunks = content.segments().iter().flat_map(|segment| match *segment {
                    Segment::Chunks { first, count } => first..first + count,
                    Segment::Hole { .. } => 0..0,
                });
                format!("{:?}", chunks.map(|chunk| *manifest.chunk_id(chunk)).collect::<Vec<_>>())
            }
            kind => format!("{kind:?}"),
        };
        format!("{} {:?} {:?} {content}", entry.path(), entry.attributes(), entry.mtime())
    };
    manifest.entries().map(line).collect()
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(2000))]

    #[test]
    fn the_fold_is_what_the_naive_resolver_says(layers_of in vec(layer(), 1..5), confidential in 0_usize..5) {
        let manifests: Vec<Manifest> = layers_of.iter().enumerate().map(|(at, paths)| manifest(at, paths)).collect();
        let Some(expected) = naive(&layers_of) else {
            let error = folded(&manifests, confidential).unwrap_err();
            prop_assert!(matches!(error, LayerError::OverLink { .. }), "{error}");
            return Ok(());
        };
        let effective = folded(&manifests, confidential).unwrap();
        let manifest = &effective.manifest;
        prop_assert_eq!(manifest.tree().len(), expected.len() + 1);
        prop_assert_eq!(effective.sources.len(), manifest.tree().len());
        let mut inodes = BTreeMap::new();
        for (entry, (path, naive)) in manifest.entries().skip(1).zip(&expected) {
            let place = path_of(path);
            prop_assert_eq!(entry.path(), place.clone());
            prop_assert_eq!(usize::from(effective.sources[entry.index().at()]), naive.layer, "{}", place);
            prop_assert_eq!(entry.attributes(), &attributes(naive.layer, naive.kind));
            // The names of an inode have the time of the first of them.
            if naive.inode.is_none() {
                prop_assert_eq!(entry.mtime(), time(naive.layer, path));
            }
            let inode = match entry.kind() { Kind::HardLink { to } => to, _ => entry.index() };
            if let Some(named) = naive.inode {
                prop_assert_eq!(*inodes.entry(named).or_insert(inode), inode, "{}", place);
            } else {
                prop_assert_eq!(inode, entry.index());
            }
            let (kind, chunks) = match manifest.entry(inode).kind() {
                Kind::Directory => ("directory", vec![]),
                Kind::Symlink { .. } => ("link", vec![]),
                Kind::File(content) => ("file", content.segments().iter().flat_map(|segment| match *segment {
                    Segment::Chunks { first, count } => first..first + count,
                    Segment::Hole { .. } => 0..0,
                }).collect()),
                other => panic!("{other:?}"),
            };
            prop_assert_eq!(kind, naive.kind);
            let ids: Vec<ChunkId> = chunks.iter().map(|chunk| *manifest.chunk_id(*chunk)).collect();
            let expected: Vec<ChunkId> = naive.seeds.iter().map(|seed| chunk_of(*seed).0).collect();
            prop_assert_eq!(ids, expected, "{}", place);
            let said = words(&layers(&manifests, confidential), &place);
            let last = said.iter().rfind(|(_, word)| matches!(word, Word::Has(_))).unwrap().0;
            prop_assert_eq!(last, naive.layer, "explain says otherwise of {}: {:?}", place, said);
        }
        // Every piece is needed, and is where it is said to be.
        let mut found = 0;
        for (layer, pieces) in effective.pieces.iter().enumerate() {
            for (index, place) in manifests[layer].content().indexes().zip(pieces) {
                if let Some(place) = place {
                    prop_assert_eq!(manifest.content().piece(*place), manifests[layer].content().piece(index));
                    found += 1;
                }
            }
        }
        prop_assert_eq!(found, manifest.content().len());
        // No chunk that is used is used by two numbers.
        let mut numbers = BTreeMap::new();
        for entry in manifest.entries() {
            let Kind::File(content) = entry.kind() else { continue };
            for segment in content.segments() {
                let Segment::Chunks { first, count } = *segment else { continue };
                for chunk in first..first + count {
                    prop_assert_eq!(*numbers.entry(*manifest.chunk_id(chunk)).or_insert(chunk), chunk);
                }
            }
        }
    }

    #[test]
    fn the_effective_manifest_is_a_manifest_like_any_other(layers_of in vec(layer(), 1..5)) {
        let manifests: Vec<Manifest> = layers_of.iter().enumerate().map(|(at, paths)| manifest(at, paths)).collect();
        let Ok(effective) = folded(&manifests, 0) else { return Ok(()) };
        let mut bytes = Vec::new();
        let root = effective.manifest.encode_blocks(1 << 20, |_, block| bytes.extend_from_slice(block)).unwrap();
        let mut decoder = ManifestDecoder::new(&root);
        decoder.push(&bytes).unwrap();
        let again = decoder.finish().unwrap();
        prop_assert_eq!(listing(&again), listing(&effective.manifest));
        let mut bytes_again = Vec::new();
        again.encode_blocks(1 << 20, |_, block| bytes_again.extend_from_slice(block)).unwrap();
        prop_assert_eq!(bytes, bytes_again);
    }

    #[test]
    fn what_is_excluded_is_gone_and_nothing_else(layers_of in vec(layer(), 1..4)) {
        let manifests: Vec<Manifest> = layers_of.iter().enumerate().map(|(at, paths)| manifest(at, paths)).collect();
        let Ok(all) = folded(&manifests, 0) else { return Ok(()) };
        let excluded = |path: &[u8]| path == b"b" || path.ends_with(b"/b");
        let some = fold(&layers(&manifests, 0), &|path, _| excluded(path)).unwrap();
        let stays = |path: &ImagePath| {
            let mut around = Vec::new();
            !path.components().any(|name| {
                if !around.is_empty() { around.push(b'/'); }
                around.extend_from_slice(name.bytes());
                excluded(&around)
            })
        };
        let expected: Vec<ImagePath> = all.manifest.entries().map(|entry| entry.path()).filter(stays).collect();
        let found: Vec<ImagePath> = some.manifest.entries().map(|entry| entry.path()).collect();
        prop_assert_eq!(found, expected);
    }
}

fn tree(entries: &[(&'static str, What)]) -> Paths {
    entries.iter().map(|(path, what)| (path.split('/').collect(), what.clone())).collect()
}

fn paths(effective: &Effective) -> Vec<String> {
    effective.manifest.entries().skip(1).map(|entry| entry.path().to_string()).collect()
}

#[test]
fn a_directory_over_a_symbolic_link_is_refused_with_its_target_and_an_opaque_one_is_not() {
    let image = tree(&[("lib", What::Symlink)]);
    let over = tree(&[("lib", What::Directory), ("lib/x", What::File(vec![1]))]);
    let mut opaque = over.clone();
    opaque.insert(vec!["lib", ".wh..wh..opq"], What::File(vec![]));
    let manifests = [manifest(0, &image), manifest(1, &over)];
    let error = folded(&manifests, 0).unwrap_err().to_string();
    assert!(error.starts_with("lib is a directory of layer 1, and a symbolic link to a below it"), "{error}");
    let effective = folded(&[manifest(0, &image), manifest(1, &opaque)], 0).unwrap();
    assert_eq!(paths(&effective), ["lib", "lib/x"]);
}

#[test]
fn the_top_is_the_images_and_other_directories_are_those_of_the_highest_layer() {
    let image = tree(&[("etc", What::Directory), ("etc/a", What::File(vec![1]))]);
    let over = tree(&[("etc", What::Directory), ("etc/b", What::File(vec![2]))]);
    let effective = folded(&[manifest(0, &image), manifest(1, &over)], 0).unwrap();
    assert_eq!(effective.sources, [0, 1, 0, 1]);
    assert_eq!(effective.manifest.entries().next().unwrap().attributes().uid(), 0);
}

#[test]
fn what_the_image_calls_as_a_whiteout_is_a_file_of_it() {
    let image = tree(&[(".wh.a", What::File(vec![1])), ("a", What::File(vec![2]))]);
    let effective = folded(&[manifest(0, &image), manifest(1, &Paths::new())], 0).unwrap();
    assert_eq!(paths(&effective), [".wh.a", "a"]);
}

#[test]
fn a_name_that_is_nearly_a_whiteout_is_refused() {
    let over = |name: &'static str| manifest(1, &tree(&[(name, What::File(vec![]))]));
    let image = manifest(0, &Paths::new());
    for name in [".wh.", ".wh..", ".wh...", ".wh..wh.x"] {
        let error = folded(&[image.clone(), over(name)], 0).unwrap_err();
        assert!(matches!(error, LayerError::Whiteout { .. }), "{name}: {error}");
    }
    let directory = manifest(1, &tree(&[(".wh.a", What::Directory)]));
    assert!(matches!(folded(&[image, directory], 0), Err(LayerError::WhiteoutDirectory { .. })));
}

#[test]
fn content_that_a_public_layer_has_too_is_not_taken_from_a_confidential_one() {
    let image = manifest(0, &tree(&[("a", What::File(vec![9]))]));
    let secret = manifest(1, &tree(&[("a", What::File(vec![1])), ("b", What::File(vec![2]))]));
    let public = manifest(2, &tree(&[("c", What::File(vec![1]))]));
    let shared = *public.content().piece(public.content().index(0).unwrap());
    let effective = folded(&[image, secret, public], 1).unwrap();
    let needed = |layer: usize| effective.pieces[layer].iter().flatten().count();
    let bytes = |layer: usize| effective.pieces[layer].len();
    assert_eq!((needed(0), needed(2)), (0, bytes(2)), "the image's only file is hidden");
    assert_eq!(paths(&effective), ["a", "b", "c"]);
    let manifest = &effective.manifest;
    for path in ["a", "c"] {
        let entry = manifest.entries().find(|entry| entry.path().to_string() == path).unwrap();
        let Kind::File(content) = entry.kind() else { panic!("{path} is a file") };
        let Segment::Chunks { first, .. } = content.segments()[0] else { panic!("{path} has no holes") };
        assert_eq!(*manifest.content().piece(manifest.piece_of(first)), shared, "{path}");
    }
}
