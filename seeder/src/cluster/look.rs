//! `explain` and `diff`: which layer each path of a host comes from, and how a host differs from an image.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};
use shoal_node::tree::exclude::Excludes;
use shoal_proto::host::HostName;
use shoal_proto::image::entry::{Kind, Segment};
use shoal_proto::image::layers::{Effective, Word, words};
use shoal_proto::image::tree::Entry;
use shoal_proto::image::{ImageName, ImagePath, Manifest};

use super::Cluster;
use super::published::{Error, Manifests, borrowed};
use super::resolve::{CommandLine, Resolved};

/// Most paths of one answer: it counts the others.
pub const PATHS_LISTED_MAX: usize = 200_000;

/// What a question about a cluster is.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub enum Look {
    /// Where a path comes from; with `below`, all that is in it.
    Explain { path: String, host: String, below: bool },
    /// How a host's tree differs from an image.
    Diff { host: String, image: String },
}

/// Where the paths of a host come from, as `cluster explain --json` prints it.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
pub struct Explanation {
    pub host: String,
    /// The lowest first.
    pub layers: Vec<Layered>,
    pub paths: Vec<Explained>,
    /// Paths beyond those that are listed.
    pub unlisted: usize,
}

#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Layered {
    pub layer: String,
    /// Who says that the host gets it.
    pub by: String,
    pub confidential: bool,
}

#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Explained {
    pub path: String,
    /// Whose the path is; absent when the host does not have it.
    pub layer: Option<String>,
    pub kind: Option<String>,
    /// What each layer says of the path, the lowest first.
    pub said: Vec<Said>,
    /// Lists of the cluster file that leave the path to the machine.
    pub lists: Vec<String>,
}

#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Said {
    pub layer: String,
    /// `has`, `takes away` or `in the way`.
    pub says: String,
}

/// How a host differs from an image, as `diff --json` prints it.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
pub struct Difference {
    pub host: String,
    pub image: String,
    pub paths: Vec<Differing>,
    pub unlisted: usize,
}

#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Differing {
    pub path: String,
    /// `added`, `changed` or `removed`, from the image to the host.
    pub what: String,
    /// Whose the path is in the host's tree.
    pub layer: Option<String>,
}

/// An answer to a [`Look`].
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(untagged)]
pub enum Seen {
    Explanation(Explanation),
    Difference(Difference),
}

#[derive(Debug, thiserror::Error)]
pub enum LookError {
    #[error(transparent)]
    Published(#[from] Error),
    #[error("no cluster file was published: see shoal-seeder cluster publish")]
    NoCluster,
    #[error("the cluster file does not name host {0}")]
    NoHost(String),
    #[error("{0}")]
    Name(String),
}

/// Answers from what was published.
pub fn look(
    cluster: Option<&Cluster>,
    manifests: &mut Manifests<'_>,
    look: &Look,
) -> Result<Seen, LookError> {
    let cluster = cluster.ok_or(LookError::NoCluster)?;
    let resolve = |host: &str| {
        let name: HostName = host.parse().map_err(|error| LookError::Name(format!("{error}")))?;
        cluster.resolve(&name, &CommandLine::default()).ok_or_else(|| LookError::NoHost(host.to_owned()))
    };
    Ok(match look {
        Look::Explain { path, host, below } => {
            let path = path.trim_start_matches('/').trim_end_matches('/');
            let path = if path == "." { "" } else { path };
            let path = ImagePath::parse(path.as_bytes())
                .map_err(|error| LookError::Name(format!("{path:?} is no path of a tree: {error}")))?;
            Seen::Explanation(explain(&resolve(host)?, manifests, &path, *below)?)
        }
        Look::Diff { host, image } => {
            let image: ImageName = image.parse().map_err(|error| LookError::Name(format!("{error}")))?;
            Seen::Difference(diff(&resolve(host)?, manifests, &image)?)
        }
    })
}

fn explain(
    resolved: &Resolved<'_>,
    manifests: &mut Manifests<'_>,
    path: &ImagePath,
    below: bool,
) -> Result<Explanation, Error> {
    let effective = manifests.fold(resolved)?;
    let owned = manifests.layers(resolved)?;
    let layers = borrowed(&owned);
    let names = resolved.names();
    let mut explained = Vec::new();
    let mut unlisted = 0;
    let mut add = |path: ImagePath, entry: Option<Entry<'_>>| {
        if explained.len() == PATHS_LISTED_MAX {
            unlisted += 1;
            return;
        }
        let layer = entry.map(|entry| names[usize::from(effective.sources[entry.index().at()])].clone());
        let said = words(&layers, &path).into_iter();
        let said = said.map(|(at, word)| Said { layer: names[at].clone(), says: says(word).to_owned() });
        let is_directory = entry.is_some_and(|entry| entry.is_directory());
        explained.push(Explained {
            layer,
            kind: entry.map(|entry| kind(entry).to_owned()),
            said: if below { Vec::new() } else { said.collect() },
            lists: lists(resolved, &path, is_directory),
            path: path.to_string(),
        });
    };
    let mut found = false;
    for entry in effective.manifest.entries() {
        let at = entry.path();
        if at == *path || below && at.is_below(path) {
            found |= at == *path;
            add(at, Some(entry));
        }
    }
    if !found {
        add(path.clone(), None);
    }
    let by = std::iter::once("image".to_owned()).chain(resolved.layers.iter().map(|(_, by)| by.to_string()));
    let layered = names.iter().zip(by).zip(&owned);
    let layered = layered.map(|((layer, by), (_, confidential))| Layered {
        layer: layer.clone(),
        by,
        confidential: *confidential,
    });
    Ok(Explanation { host: resolved.host.to_string(), layers: layered.collect(), paths: explained, unlisted })
}

/// Lists that leave a path, or a directory around it, to the machine.
fn lists(resolved: &Resolved<'_>, path: &ImagePath, directory: bool) -> Vec<String> {
    let mut found = Vec::new();
    for (list, patterns) in resolved.lists.named() {
        for pattern in patterns {
            // Checked when the file was read.
            let Ok(excludes) = Excludes::new([pattern]) else { continue };
            let mut around = Vec::new();
            let components = path.components().count();
            let mut matches = false;
            for (at, name) in path.components().enumerate() {
                if at > 0 {
                    around.push(b'/');
                }
                around.extend_from_slice(name.bytes());
                matches |= excludes.matches(&around, directory || at + 1 < components);
            }
            if matches {
                found.push(format!("{list} {pattern}"));
            }
        }
    }
    found
}

fn says(word: Word) -> &'static str {
    match word {
        Word::Has(_) => "has",
        Word::TakesAway => "takes away",
        Word::InTheWay => "in the way",
    }
}

fn kind(entry: Entry<'_>) -> &'static str {
    match entry.kind() {
        Kind::Directory => "directory",
        Kind::File(_) => "file",
        Kind::Symlink { .. } => "symlink",
        Kind::HardLink { .. } => "hard link",
        Kind::CharDevice { .. } => "character device",
        Kind::BlockDevice { .. } => "block device",
        Kind::Fifo => "fifo",
    }
}

fn diff(
    resolved: &Resolved<'_>,
    manifests: &mut Manifests<'_>,
    image: &ImageName,
) -> Result<Difference, Error> {
    let Effective { manifest: effective, sources, .. } = manifests.fold(resolved)?;
    let (other, _) = manifests.of(image)?;
    let names = resolved.names();
    let others: BTreeMap<ImagePath, Entry<'_>> = other.entries().map(|entry| (entry.path(), entry)).collect();
    let mut all = Vec::new();
    let mut here = std::collections::BTreeSet::new();
    for entry in effective.entries() {
        let path = entry.path();
        let what = match others.get(&path) {
            None => Some("added"),
            Some(known) => (!same((&effective, entry), (&other, *known))).then_some("changed"),
        };
        if let Some(what) = what {
            all.push((path.clone(), what, Some(names[usize::from(sources[entry.index().at()])].clone())));
        }
        here.insert(path);
    }
    all.extend(others.keys().filter(|path| !here.contains(path)).map(|path| (path.clone(), "removed", None)));
    all.sort();
    let unlisted = all.len().saturating_sub(PATHS_LISTED_MAX);
    let differing = all.into_iter().take(PATHS_LISTED_MAX);
    let differing = differing.map(|(path, what, layer)| Differing {
        path: path.to_string(),
        what: what.to_owned(),
        layer,
    });
    Ok(Difference {
        host: resolved.host.to_string(),
        image: image.to_string(),
        paths: differing.collect(),
        unlisted,
    })
}

/// Whether two entries are the same, down to their content.
fn same((one, a): (&Manifest, Entry<'_>), (other, b): (&Manifest, Entry<'_>)) -> bool {
    fn inode<'m>(manifest: &'m Manifest, entry: Entry<'m>) -> Entry<'m> {
        match entry.kind() {
            Kind::HardLink { to } => manifest.entry(to),
            _ => entry,
        }
    }
    let (a, b) = (inode(one, a), inode(other, b));
    let content = match (a.kind(), b.kind()) {
        (Kind::File(mine), Kind::File(theirs)) => {
            pieces(one, mine.segments()) == pieces(other, theirs.segments())
        }
        (mine, theirs) => mine == theirs,
    };
    content && a.attributes() == b.attributes() && a.mtime() == b.mtime()
}

/// A file's chunks by their names, and its holes.
fn pieces(manifest: &Manifest, segments: &[Segment]) -> Vec<Result<shoal_proto::cid::ChunkId, u64>> {
    let mut pieces = Vec::new();
    for segment in segments {
        match *segment {
            Segment::Hole { bytes } => pieces.push(Err(bytes)),
            Segment::Chunks { first, count } => {
                pieces.extend((first..first + count).map(|chunk| Ok(*manifest.chunk_id(chunk))));
            }
        }
    }
    pieces
}
