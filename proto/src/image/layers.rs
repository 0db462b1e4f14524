//! The one resolver: an image and the layers over it, folded into one *effective* manifest.
//!
//! Layers come lowest first: the image, then overrides, of which the last wins. Each is a manifest of its own; the fold
//! touches no byte of content. What it says of a path:
//!
//! - **A file, link, device or fifo** of a layer takes the place of whatever is below it, a directory with all in it too.
//!   Nothing is compared: a file of the same size and time is still the layer's.
//! - **A directory** of a layer is merged with a directory below it. Owner, mode, extended attributes and time of the
//!   merged directory are those of the highest layer that has it: a folder made for an override says as much as its files.
//!   Only the top is an exception: it is always the image's, for the folder that holds an override is not `/`.
//! - **A directory over a symbolic link** is refused ([`LayerError::OverLink`]) unless a higher layer hides it: a folder `lib`
//!   laid over `lib → usr/lib` would cut off all that is behind the link. An opaque directory takes the link's place, because it says so.
//! - **A whiteout**, a file `.wh.NAME`, takes away NAME of the layers below, with all in it. `.wh..wh..opq` in a directory
//!   makes it *opaque*: all that the layers below have in it is taken away. Both as in OCI. Neither is ever part of the
//!   tree, and neither reaches what its own layer has. In the image itself such names are names like any other.
//! - **Hard links** stay what they are within their layer. When some names of an inode are hidden, the others still share
//!   one inode.
//!
//! A layer that lacks what it had before thus gives back what is below: nothing remembers it.

use std::collections::{BTreeMap, BTreeSet};

use super::children::Children;
use super::entry::{Content, EntryIndex, Kind, Segment, push_segment};
use super::manifest::{Manifest, ManifestError};
use super::path::{Component, ImagePath};
use super::pieces::PieceIndex;
use super::tree::{Entry, TreeBuilder, TreeError};
use crate::cid::ChunkId;

/// How the name of a file begins that takes something away.
pub const WHITEOUT_PREFIX: &[u8] = b".wh.";
/// The name of the file that makes its directory opaque.
pub const OPAQUE_NAME: &[u8] = b".wh..wh..opq";

/// What a name in a layer takes away.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Whiteout<'a> {
    /// This name in the same directory.
    Name(&'a [u8]),
    /// All in the same directory.
    Opaque,
}

/// A name that begins as a whiteout and is none.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{0:?} takes nothing away, expected .wh.NAME or .wh..wh..opq")]
pub struct WhiteoutError(String);

impl<'a> Whiteout<'a> {
    /// `None` for a name like any other.
    pub fn of_name(name: &'a [u8]) -> Result<Option<Self>, WhiteoutError> {
        if name == OPAQUE_NAME {
            return Ok(Some(Self::Opaque));
        }
        let Some(taken) = name.strip_prefix(WHITEOUT_PREFIX) else { return Ok(None) };
        // `.wh..wh.` begins what other tools keep for themselves.
        if Component::new(taken).is_err() || taken.starts_with(WHITEOUT_PREFIX) {
            return Err(WhiteoutError(name.escape_ascii().to_string()));
        }
        Ok(Some(Self::Name(taken)))
    }
}

/// Why layers are no tree.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum LayerError {
    #[error(
        "{path} is a directory of layer {layer}, and a symbolic link to {target} below it: put its files there, or put a file .wh..wh..opq into it if it is to take the link's place"
    )]
    OverLink { path: ImagePath, layer: usize, target: String },
    #[error("{path} of layer {layer}: {source}")]
    Whiteout { path: ImagePath, layer: usize, source: WhiteoutError },
    #[error("{path} of layer {layer} takes something away, and is a directory where a file is expected")]
    WhiteoutDirectory { path: ImagePath, layer: usize },
    #[error(transparent)]
    Tree(#[from] TreeError),
    #[error(transparent)]
    Manifest(#[from] ManifestError),
}

/// One layer, as the fold takes it.
#[derive(Clone, Copy, Debug)]
pub struct Layer<'a> {
    pub manifest: &'a Manifest,
    /// Its content is taken from the layers that are not, where they have the same.
    pub confidential: bool,
}

/// What the fold made.
#[derive(Clone, Debug)]
pub struct Effective {
    pub manifest: Manifest,
    /// By entry: the layer that it is of; of a merged directory the one that decides its metadata.
    pub sources: Vec<u16>,
    /// By layer and by its piece: the piece of the effective manifest, `None` where the tree needs nothing of it.
    pub pieces: Vec<Vec<Option<PieceIndex>>>,
}

/// What a layer says of a path, for `explain`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Word {
    /// It has an entry there.
    Has(EntryIndex),
    /// It takes the path away, by a whiteout of it or of a directory around it, or by an opaque directory around it.
    TakesAway,
    /// It has something that is no directory where the path needs one.
    InTheWay,
}

/// Folds layers, the lowest first. `excluded` says which paths (components joined with slashes; whether a directory)
/// are left out of the result, a directory with all that is in it.
///
/// # Panics
/// Without a layer, or with more than 65 535.
pub fn fold(layers: &[Layer<'_>], excluded: &dyn Fn(&[u8], bool) -> bool) -> Result<Effective, LayerError> {
    assert!(!layers.is_empty() && u16::try_from(layers.len()).is_ok(), "{} layers", layers.len());
    let steps = Merge::of(layers, excluded).run()?;
    let contents = Contents::of(layers, &steps);
    let mut builder = TreeBuilder::default();
    let mut inodes: BTreeMap<(usize, EntryIndex), EntryIndex> = BTreeMap::new();
    let linked: Vec<BTreeSet<EntryIndex>> = layers.iter().map(|layer| linked_in(layer.manifest)).collect();
    for step in &steps {
        let entry = layers[step.layer].manifest.entry(step.entry);
        let name = entry.name().map_or(&b""[..], |name| name.bytes());
        let first = match entry.kind() {
            Kind::HardLink { to } => to,
            _ => step.entry,
        };
        let inode = layers[step.layer].manifest.entry(first);
        let several = linked[step.layer].contains(&first);
        if several && let Some(known) = inodes.get(&(step.layer, first)) {
            builder.push_hard_link(step.up, name, known.get())?;
            continue;
        }
        let (attributes, mtime) = (inode.attributes().clone(), inode.mtime());
        let here = match inode.kind() {
            Kind::File(content) => {
                let segments = contents.renumber(step.layer, content);
                builder.push(step.up, name, attributes, mtime, Kind::File(Content::Segments(&segments)))?
            }
            kind if builder.is_empty() => {
                debug_assert_eq!(kind, Kind::Directory);
                builder.push_root(attributes, mtime)?;
                EntryIndex::ROOT
            }
            kind => builder.push(step.up, name, attributes, mtime, kind)?,
        };
        if several {
            inodes.insert((step.layer, first), here);
        }
    }
    let table: Vec<(&Manifest, PieceIndex)> =
        contents.kept.iter().map(|&(layer, piece)| (layers[layer].manifest, piece)).collect();
    let manifest = Manifest::of_pieces(&table, builder.finish())?;
    let pieces = contents.places(layers, &manifest);
    let sources = steps.iter().map(|step| u16::try_from(step.layer).expect("asserted")).collect();
    Ok(Effective { manifest, sources, pieces })
}

/// What each layer says of `path`, the lowest first; layers that say nothing are not listed.
pub fn words(layers: &[Layer<'_>], path: &ImagePath) -> Vec<(usize, Word)> {
    let word = |(at, layer): (usize, &Layer<'_>)| Some((at, word_of(layer.manifest, path, at > 0)?));
    layers.iter().enumerate().filter_map(word).collect()
}

fn word_of(manifest: &Manifest, path: &ImagePath, takes_away: bool) -> Option<Word> {
    let tree = manifest.tree();
    let children = Children::of(tree);
    let mut at = EntryIndex::ROOT;
    let mut taken = false;
    for name in path.components() {
        if !manifest.entry(at).is_directory() {
            return Some(Word::InTheWay);
        }
        if takes_away && name.bytes().starts_with(WHITEOUT_PREFIX) {
            return None;
        }
        // What a layer takes away it takes with all that it does not have itself.
        let whiteout = [WHITEOUT_PREFIX, name.bytes()].concat();
        taken |= takes_away && children.find(tree, at, &whiteout).is_some();
        taken |= takes_away && children.find(tree, at, OPAQUE_NAME).is_some();
        match children.find(tree, at, name.bytes()) {
            Some(child) => at = child,
            None => return taken.then_some(Word::TakesAway),
        }
    }
    Some(Word::Has(at))
}

/// Entries that hard links name.
fn linked_in(manifest: &Manifest) -> BTreeSet<EntryIndex> {
    let to = |entry: Entry<'_>| match entry.kind() {
        Kind::HardLink { to } => Some(to),
        _ => None,
    };
    manifest.entries().filter_map(to).collect()
}

/// An entry of the result.
#[derive(Clone, Copy, Debug)]
struct Step {
    /// Directories that end before it.
    up: usize,
    layer: usize,
    entry: EntryIndex,
}

/// What is at a path, after some layers.
#[derive(Clone, Debug)]
enum Node {
    Leaf(usize, EntryIndex),
    /// Merged of these, the lowest first.
    Directory(Vec<(usize, EntryIndex)>),
    /// This directory lies over this symbolic link, unless a higher layer hides both.
    OverLink(usize, EntryIndex, (usize, EntryIndex)),
}

/// The walk through all layers at once, depth first.
struct Merge<'a> {
    layers: &'a [Layer<'a>],
    children: Vec<Children>,
    excluded: &'a dyn Fn(&[u8], bool) -> bool,
    steps: Vec<Step>,
    /// Of the directory at hand.
    path: Vec<u8>,
}

/// A directory whose entries are still to come.
struct Open<'a> {
    nodes: std::vec::IntoIter<(&'a [u8], Node)>,
    path_bytes: usize,
}

impl<'a> Merge<'a> {
    fn of(layers: &'a [Layer<'a>], excluded: &'a dyn Fn(&[u8], bool) -> bool) -> Self {
        let children = layers.iter().map(|layer| Children::of(layer.manifest.tree())).collect();
        Self { layers, children, excluded, steps: Vec::new(), path: Vec::new() }
    }

    fn entry(&self, layer: usize, entry: EntryIndex) -> Entry<'a> {
        self.layers[layer].manifest.entry(entry)
    }

    fn run(mut self) -> Result<Vec<Step>, LayerError> {
        let mut tops: Vec<(usize, EntryIndex)> = Vec::new();
        for layer in 0..self.layers.len() {
            if layer > 0 && self.is_opaque(layer, EntryIndex::ROOT) {
                tops.clear();
            }
            tops.push((layer, EntryIndex::ROOT));
        }
        // The top is the image's, even where nothing in it is.
        self.steps.push(Step { up: 0, layer: 0, entry: EntryIndex::ROOT });
        let mut open = vec![Open { nodes: self.merge(&tops)?.into_iter(), path_bytes: 0 }];
        let mut up = 0;
        while let Some(directory) = open.last_mut() {
            self.path.truncate(directory.path_bytes);
            let Some((name, node)) = directory.nodes.next() else {
                open.pop();
                up += 1;
                continue;
            };
            if !self.path.is_empty() {
                self.path.push(b'/');
            }
            self.path.extend_from_slice(name);
            let is_directory = !matches!(node, Node::Leaf(..));
            if (self.excluded)(&self.path, is_directory) {
                continue;
            }
            match node {
                Node::Leaf(layer, entry) => self.steps.push(Step { up, layer, entry }),
                Node::OverLink(layer, entry, link) => return Err(self.over_link(layer, entry, link)),
                Node::Directory(parts) => {
                    let &(layer, entry) = parts.last().expect("made of something");
                    self.steps.push(Step { up, layer, entry });
                    open.push(Open { nodes: self.merge(&parts)?.into_iter(), path_bytes: self.path.len() });
                }
            }
            up = 0;
        }
        Ok(self.steps)
    }

    fn is_opaque(&self, layer: usize, directory: EntryIndex) -> bool {
        self.children[layer].find(self.layers[layer].manifest.tree(), directory, OPAQUE_NAME).is_some()
    }

    /// What is in a directory that is merged of `parts`, sorted by name.
    fn merge(&self, parts: &[(usize, EntryIndex)]) -> Result<Vec<(&'a [u8], Node)>, LayerError> {
        let mut found: BTreeMap<&'a [u8], Node> = BTreeMap::new();
        for (at, &(layer, directory)) in parts.iter().enumerate() {
            let children = self.children[layer].of_directory(directory);
            let named = |child: &EntryIndex| {
                let entry = self.entry(layer, *child);
                (entry, entry.name().expect("no child is the root").bytes())
            };
            if layer > 0 {
                for (entry, name) in children.iter().map(named) {
                    self.take_away(layer, entry, name, at > 0, &mut found)?;
                }
            }
            for (entry, name) in children.iter().map(named) {
                if layer == 0 || !name.starts_with(WHITEOUT_PREFIX) {
                    self.lay(layer, entry, name, &mut found);
                }
            }
        }
        Ok(found.into_iter().collect())
    }

    fn take_away(
        &self,
        layer: usize,
        entry: Entry<'a>,
        name: &'a [u8],
        below: bool,
        found: &mut BTreeMap<&'a [u8], Node>,
    ) -> Result<(), LayerError> {
        let whiteout = Whiteout::of_name(name).map_err(|source| LayerError::Whiteout {
            path: entry.path(),
            layer,
            source,
        })?;
        match whiteout {
            None => return Ok(()),
            Some(_) if entry.is_directory() => {
                return Err(LayerError::WhiteoutDirectory { path: entry.path(), layer });
            }
            Some(Whiteout::Name(taken)) => drop(found.remove(taken)),
            // Whoever merged this directory left out what is below it.
            Some(Whiteout::Opaque) => debug_assert!(!below, "an opaque directory is merged with nothing"),
        }
        Ok(())
    }

    fn lay(&self, layer: usize, entry: Entry<'a>, name: &'a [u8], found: &mut BTreeMap<&'a [u8], Node>) {
        let index = entry.index();
        if !entry.is_directory() {
            found.insert(name, Node::Leaf(layer, index));
            return;
        }
        let opaque = layer > 0 && self.is_opaque(layer, index);
        match found.get_mut(name) {
            Some(Node::Directory(parts)) if !opaque => parts.push((layer, index)),
            Some(Node::OverLink(..)) if !opaque => {}
            Some(&mut Node::Leaf(below, entry)) if !opaque => {
                let is_link = matches!(self.entry(below, entry).kind(), Kind::Symlink { .. });
                let node = match is_link {
                    true => Node::OverLink(layer, index, (below, entry)),
                    false => Node::Directory(vec![(layer, index)]),
                };
                found.insert(name, node);
            }
            _ => drop(found.insert(name, Node::Directory(vec![(layer, index)]))),
        }
    }

    fn over_link(&self, layer: usize, entry: EntryIndex, (below, link): (usize, EntryIndex)) -> LayerError {
        let target = match self.entry(below, link).kind() {
            Kind::Symlink { target } => target.escape_ascii().to_string(),
            _ => String::new(),
        };
        LayerError::OverLink { path: self.entry(layer, entry).path(), layer, target }
    }
}

/// Which pieces the tree needs, and the number of each chunk in the result.
///
/// A chunk that several layers have is taken from one of them, so that the result uses no two chunks of one name.
struct Contents {
    kept: Vec<(usize, PieceIndex)>,
    /// By layer and chunk.
    numbers: Vec<Vec<u32>>,
}

/// No number: the tree does not use the chunk.
const UNUSED: u32 = u32::MAX;

impl Contents {
    fn of(layers: &[Layer<'_>], steps: &[Step]) -> Self {
        let mut used: Vec<Vec<bool>> =
            layers.iter().map(|layer| vec![false; layer.manifest.chunk_count()]).collect();
        for step in steps {
            let manifest = layers[step.layer].manifest;
            let entry = manifest.entry(step.entry);
            let inode = if let Kind::HardLink { to } = entry.kind() { manifest.entry(to) } else { entry };
            let Kind::File(content) = inode.kind() else { continue };
            for segment in content.segments() {
                if let Segment::Chunks { first, count } = *segment {
                    used[step.layer][first as usize..(first + count) as usize].fill(true);
                }
            }
        }
        // Public layers first, the lowest first.
        let mut order: Vec<usize> = (0..layers.len()).collect();
        order.sort_by_key(|layer| layers[*layer].confidential);
        // Only what an override has can be in two layers.
        let mut homes: BTreeMap<&ChunkId, Option<(usize, u32)>> =
            layers.iter().skip(1).flat_map(|layer| layer.manifest.chunk_ids()).map(|id| (id, None)).collect();
        for &layer in &order {
            for (chunk, id) in (0..).zip(layers[layer].manifest.chunk_ids()) {
                if used[layer][chunk as usize]
                    && let Some(home) = homes.get_mut(id)
                {
                    home.get_or_insert((layer, chunk));
                }
            }
        }
        let home = |layer: usize, chunk: u32| {
            let id = layers[layer].manifest.chunk_id(chunk);
            homes.get(id).copied().flatten().unwrap_or((layer, chunk))
        };
        let mut kept = Vec::new();
        let mut numbers: Vec<Vec<u32>> =
            layers.iter().map(|layer| vec![UNUSED; layer.manifest.chunk_count()]).collect();
        let mut next = 0;
        for (layer, Layer { manifest, .. }) in layers.iter().enumerate() {
            for piece in manifest.content().indexes() {
                let chunks = manifest.piece_chunks(piece);
                let at_home =
                    |chunk: u32| used[layer][chunk as usize] && home(layer, chunk) == (layer, chunk);
                if !chunks.clone().any(at_home) {
                    continue;
                }
                kept.push((layer, piece));
                for chunk in chunks {
                    numbers[layer][chunk as usize] = next;
                    next += 1;
                }
            }
        }
        for layer in 0..layers.len() {
            for chunk in 0..u32::try_from(used[layer].len()).expect("at most CHUNKS_MAX") {
                let (of, at) = home(layer, chunk);
                if used[layer][chunk as usize] && (of, at) != (layer, chunk) {
                    numbers[layer][chunk as usize] = numbers[of][at as usize];
                }
            }
        }
        Self { kept, numbers }
    }

    fn renumber(&self, layer: usize, content: Content<'_>) -> Vec<Segment> {
        let mut renumbered = Vec::with_capacity(content.segments().len());
        for segment in content.segments() {
            match *segment {
                hole @ Segment::Hole { .. } => push_segment(&mut renumbered, hole),
                Segment::Chunks { first, count } => {
                    for number in &self.numbers[layer][first as usize..(first + count) as usize] {
                        assert_ne!(*number, UNUSED, "a used chunk has a number");
                        push_segment(&mut renumbered, Segment::Chunks { first: *number, count: 1 });
                    }
                }
            }
        }
        renumbered
    }

    /// By layer and by its piece: its place in the result.
    fn places(&self, layers: &[Layer<'_>], result: &Manifest) -> Vec<Vec<Option<PieceIndex>>> {
        let mut places: Vec<Vec<Option<PieceIndex>>> =
            layers.iter().map(|layer| vec![None; layer.manifest.content().len()]).collect();
        for (index, (layer, piece)) in result.content().indexes().zip(&self.kept) {
            places[*layer][piece.at()] = Some(index);
        }
        places
    }
}
