//! Container images: the layers of an OCI layout, or of what `docker save` and `podman save` write.
//!
//! ```text
//! index.json ─▶ manifest ─▶ layers: tars, plain or compressed, each over those before it
//!           └▶ index of one image for several kinds of machine ─▶ manifest …
//! ```
//! Every blob is read by its digest and checked against it before a byte of it counts.

use std::collections::BTreeMap;
use std::fs::File;
use std::io::{self, Read};
use std::path::Path;
use std::sync::Arc;

use serde::Deserialize;
use sha2::{Digest, Sha256};

use super::content::Range;
use super::tar::{self, Rules};
use super::{Archive, ArchiveError, Node, ROOT};

/// Most bytes of an index or a manifest.
const DOCUMENT_BYTES_MAX: u64 = 4 << 20;
/// Indexes within indexes.
const NESTING_MAX: usize = 4;
const HASH_BYTES: usize = 256 << 10;
/// The annotation that names an image in a layout.
const REFERENCE: &str = "org.opencontainers.image.ref.name";
const FULL_REFERENCE: &str = "io.containerd.image.name";
const LAYOUT: &[u8] = b"oci-layout";
const DOCKER: &[u8] = b"manifest.json";

#[derive(Debug, Deserialize)]
struct Index {
    #[serde(default)]
    manifests: Vec<Descriptor>,
}

#[derive(Clone, Debug, Deserialize)]
#[serde(rename_all = "camelCase")]
struct Descriptor {
    #[serde(default)]
    media_type: String,
    digest: String,
    #[serde(default)]
    annotations: BTreeMap<String, String>,
    platform: Option<Platform>,
}

#[derive(Clone, Debug, Deserialize)]
struct Platform {
    architecture: String,
    os: String,
}

/// An index and a manifest are told apart by what they list.
#[derive(Debug, Deserialize)]
struct Document {
    layers: Option<Vec<Descriptor>>,
    manifests: Option<Vec<Descriptor>>,
}

/// One image in `manifest.json` of an archive that is no layout.
#[derive(Debug, Deserialize)]
#[serde(rename_all = "PascalCase")]
struct Saved {
    #[serde(default)]
    repo_tags: Option<Vec<String>>,
    layers: Vec<String>,
}

/// Whether a directory is an OCI layout.
pub fn is_layout(path: &Path) -> bool {
    path.join("oci-layout").is_file() && path.join("index.json").is_file()
}

/// Where blobs and documents are.
trait Files {
    /// A file by its path in the layout: the file, and the part of it that is meant.
    fn open(&self, path: &str) -> Result<Range, String>;
}

struct Directory<'a>(&'a Path);

impl Files for Directory<'_> {
    fn open(&self, path: &str) -> Result<Range, String> {
        let failed = |error: io::Error| format!("cannot read {path}: {error}");
        let file = File::open(self.0.join(path)).map_err(failed)?;
        let meta = file.metadata().map_err(failed)?;
        Ok(Range::new(Arc::new(file), 0, meta.len()))
    }
}

impl Files for Archive {
    fn open(&self, path: &str) -> Result<Range, String> {
        let mut at = ROOT;
        // Archives of `docker save` name a layer by a link to another one.
        let mut left: Vec<Vec<u8>> = path.rsplit('/').map(|part| part.into()).collect();
        let (mut around, mut links) = (vec![ROOT], 0);
        while let Some(part) = left.pop() {
            if part == b".." {
                around.truncate((around.len() - 1).max(1));
                at = *around.last().expect("the top stays");
                continue;
            }
            at = self
                .find(*around.last().expect("the top stays"), &part)
                .ok_or(format!("it has no {path}"))?;
            match &self.inode(at).node {
                Node::Directory(_) => around.push(at),
                Node::Symlink(target) if links < super::LINKS_FOLLOWED_MAX => {
                    links += 1;
                    left.extend(target.rsplit(|byte| *byte == b'/').map(<[u8]>::to_vec));
                }
                _ => {}
            }
        }
        match &self.inode(at).node {
            Node::File { bytes, extents } => match **extents {
                [extent] if extent.bytes == *bytes => {
                    let (file, start) = self.spool.file_of(extent);
                    Ok(Range::new(file, start, start + extent.bytes))
                }
                _ => Err(format!("{path} is empty or has holes")),
            },
            _ => Err(format!("{path} is no file")),
        }
    }
}

impl Archive {
    /// Whether it is an archive of a container image.
    pub(super) fn is_layout(&self) -> bool {
        let file = |name| {
            let at = self.find(ROOT, name);
            at.is_some_and(|at| matches!(self.inode(at).node, Node::File { .. }))
        };
        let blobs = self.find(ROOT, b"blobs").is_some();
        let tree = [&b"etc"[..], b"usr", b"bin"].iter().any(|name| self.find(ROOT, name).is_some());
        !tree && (file(LAYOUT) && blobs || file(DOCKER))
    }
}

/// Reads a layout: a directory, or an archive of one.
pub(super) fn read(archive: &mut Archive, path: &Path, reference: Option<&str>) -> Result<(), ArchiveError> {
    if path.is_dir() {
        let said = |why| ArchiveError::Image { path: path.to_owned(), why };
        let layers = layers_of(&Directory(path), reference).map_err(said)?;
        return lay(archive, &Directory(path), path, &layers);
    }
    let outer = Archive::open_tar(path, archive.spool.scratch())?;
    read_archived(archive, &outer, path, reference)
}

/// Reads a layout that lies in an archive.
pub(super) fn read_archived(
    archive: &mut Archive,
    outer: &Archive,
    path: &Path,
    reference: Option<&str>,
) -> Result<(), ArchiveError> {
    let said = |why| ArchiveError::Image { path: path.to_owned(), why };
    let layers = match outer.find(ROOT, LAYOUT) {
        Some(_) => layers_of(outer, reference),
        None => saved_layers(outer, reference),
    };
    lay(archive, outer, path, &layers.map_err(said)?)?;
    outer.check_unchanged()
}

/// A layer's path in the layout, and the digest that it must have, if one is known.
type Layer = (String, Option<String>);

fn lay(archive: &mut Archive, files: &dyn Files, path: &Path, layers: &[Layer]) -> Result<(), ArchiveError> {
    let said = |why| ArchiveError::Image { path: path.to_owned(), why };
    for (layer, digest) in layers {
        archive.layer += 1;
        let range = match digest {
            Some(digest) => checked(files, layer, digest),
            None => files.open(layer),
        };
        tar::read_range(archive, range.map_err(said)?, &path.join(layer), Rules::Layer)?;
    }
    Ok(())
}

fn layers_of(files: &dyn Files, reference: Option<&str>) -> Result<Vec<Layer>, String> {
    let index: Index = document(files.open("index.json")?, "index.json")?;
    let mut images = index.manifests;
    if let Some(wanted) = reference {
        let named = |image: &Descriptor| {
            [REFERENCE, FULL_REFERENCE]
                .iter()
                .any(|key| image.annotations.get(*key).is_some_and(|name| name == wanted))
        };
        let names = names_of(&images);
        images.retain(named);
        if images.is_empty() {
            return Err(format!("it has no image {wanted}, only {names}"));
        }
    }
    for _ in 0..=NESTING_MAX {
        let image = one_of(images)?;
        let document: Document = document(blob(files, &image.digest)?, &image.digest)?;
        match (document.layers, document.manifests) {
            (Some(layers), _) => {
                let foreign = layers.iter().find(|layer| !layer.media_type.contains("tar"));
                if let Some(layer) = foreign.filter(|layer| !layer.media_type.is_empty()) {
                    return Err(format!("layer {} is {}, which is no tar", layer.digest, layer.media_type));
                }
                let paths =
                    layers.into_iter().map(|layer| Ok((blob_path(&layer.digest)?, Some(layer.digest))));
                return paths.collect();
            }
            (None, Some(inner)) => images = inner,
            (None, None) => return Err(format!("{} is neither an index nor a manifest", image.digest)),
        }
    }
    Err("its indexes lead to indexes without end".to_owned())
}

/// The one that is meant, of one image for several kinds of machine that for this one.
fn one_of(images: Vec<Descriptor>) -> Result<Descriptor, String> {
    let here = match std::env::consts::ARCH {
        "x86_64" => "amd64",
        "aarch64" => "arm64",
        other => other,
    };
    let fits = |image: &&Descriptor| {
        image.platform.as_ref().is_none_or(|platform| platform.os == "linux" && platform.architecture == here)
    };
    let fitting: Vec<&Descriptor> = images.iter().filter(fits).collect();
    match fitting[..] {
        [image] => Ok(image.clone()),
        [] => Err(format!("it has no image for linux on {here}")),
        _ => Err(format!("it has several images, name one of {} (oci:PATH:NAME)", names_of(&images))),
    }
}

fn names_of(images: &[Descriptor]) -> String {
    let names: Vec<&str> = images
        .iter()
        .map(|image| {
            let name = image.annotations.get(REFERENCE).or_else(|| image.annotations.get(FULL_REFERENCE));
            name.map_or(image.digest.as_str(), String::as_str)
        })
        .collect();
    if names.is_empty() { "none".to_owned() } else { names.join(", ") }
}

fn saved_layers(files: &dyn Files, reference: Option<&str>) -> Result<Vec<Layer>, String> {
    let mut images: Vec<Saved> = document(files.open("manifest.json")?, "manifest.json")?;
    let tags = |image: &Saved| image.repo_tags.clone().unwrap_or_default();
    let names: Vec<String> = images.iter().flat_map(&tags).collect();
    if let Some(wanted) = reference {
        images.retain(|image| tags(image).iter().any(|tag| tag == wanted));
    }
    match images.pop() {
        Some(image) if images.is_empty() => Ok(image.layers.into_iter().map(|layer| (layer, None)).collect()),
        None => Err(format!("it has no such image, only {}", names.join(", "))),
        Some(_) => Err(format!("it has several images, name one of {} (oci:PATH:NAME)", names.join(", "))),
    }
}

fn document<T: for<'de> Deserialize<'de>>(mut range: Range, what: &str) -> Result<T, String> {
    let mut bytes = Vec::new();
    let read = range.by_ref().take(DOCUMENT_BYTES_MAX).read_to_end(&mut bytes);
    read.map_err(|error| format!("cannot read {what}: {error}"))?;
    serde_json::from_slice(&bytes).map_err(|error| format!("{what} cannot be understood: {error}"))
}

fn blob(files: &dyn Files, digest: &str) -> Result<Range, String> {
    checked(files, &blob_path(digest)?, digest)
}

fn blob_path(digest: &str) -> Result<String, String> {
    let hex = digest.strip_prefix("sha256:").filter(|hex| hex.len() == 64);
    let hex = hex.filter(|hex| hex.bytes().all(|byte| matches!(byte, b'0'..=b'9' | b'a'..=b'f')));
    hex.map(|hex| format!("blobs/sha256/{hex}")).ok_or_else(|| format!("{digest:?} is no SHA-256 digest"))
}

/// Opens a blob whose bytes are what its digest says.
fn checked(files: &dyn Files, path: &str, digest: &str) -> Result<Range, String> {
    let mut range = files.open(path)?;
    let mut hasher = Sha256::new();
    let mut buffer = vec![0; HASH_BYTES];
    loop {
        let read = range.read(&mut buffer).map_err(|error| format!("cannot read {path}: {error}"))?;
        if read == 0 {
            break;
        }
        hasher.update(&buffer[..read]);
    }
    let found = data_encoding::HEXLOWER.encode(&hasher.finalize());
    if digest.strip_prefix("sha256:") != Some(found.as_str()) {
        return Err(format!("{path} is damaged: its digest is sha256:{found}"));
    }
    files.open(path)
}
