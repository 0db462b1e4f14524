//! From a published image back to a tree: into a directory, or as a tar for tools that know nothing of images.

use std::fs::{self, File};
use std::io::{self, BufWriter, Write};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Instant;

use serde::{Deserialize, Serialize};
use shoal_node::manifest::{self, load_manifest};
use shoal_node::store::{self, Store};
use shoal_node::tree::apply::{Apply, ApplyError, ApplyOptions, ApplyReport};
use shoal_node::tree::export::{ExportError, export_tar};
use shoal_proto::image::{ImageName, Manifest, PieceIndex};

use crate::catalog::Image;

const BUFFER_BYTES: usize = 1 << 20;

/// Where a tree goes. Travels to the running seeder as JSON: a path that is no UTF-8 is refused there.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Destination {
    /// An absolute path: an empty directory, or one that is made.
    Directory(PathBuf),
    /// An absolute path, whose file is replaced once the tar is whole.
    Tar(PathBuf),
    /// The standard output of the process that asks, by the path at which its user can open it.
    Output(PathBuf),
}

/// What to export.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct ExportRequest {
    #[serde(with = "crate::publish::name_as_text")]
    pub name: ImageName,
    pub to: Destination,
}

/// What an export did, as `--json` prints it. Sizes in bytes, times in seconds.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Exported {
    pub name: String,
    pub image: String,
    pub entries: u64,
    /// Of the tar; of a directory those of its files.
    pub bytes: u64,
    /// Attributes that the directory's file system, or this user, could not set.
    pub losses: u64,
    /// The first of them, a line each.
    pub lost: Vec<String>,
    pub elapsed_s: f64,
}

#[derive(Debug, thiserror::Error)]
pub enum Error {
    #[error(transparent)]
    Manifest(#[from] manifest::Error),
    #[error(transparent)]
    Store(#[from] store::Error),
    #[error("piece {piece} of the image is missing or damaged: `shoal-seeder fsck` says more")]
    Piece { piece: PieceIndex },
    #[error(transparent)]
    Apply(#[from] ApplyError),
    #[error(transparent)]
    Tar(#[from] ExportError),
    #[error("{} is not empty", .0.display())]
    NotEmpty(PathBuf),
    #[error("cannot write {}", path.display())]
    Write { path: PathBuf, source: io::Error },
}

/// Writes the tree of an image whose blocks `store` holds.
///
/// # Errors
/// When a block is missing or damaged, or the destination takes no more. A tar file is then as it was; a directory has a
/// part of the tree.
pub fn export(store: &Store, image: &Image, to: &Destination) -> Result<Exported, Error> {
    let started = Instant::now();
    let manifest = Arc::new(load_manifest(store, &image.root)?);
    let mut exported = Exported {
        name: image.name.name.to_string(),
        image: image.name.image.to_string(),
        entries: image.root.entries(),
        bytes: 0,
        losses: 0,
        lost: Vec::new(),
        elapsed_s: 0.0,
    };
    match to {
        Destination::Directory(path) => {
            let ApplyReport { losses, .. } = into_directory(store, &manifest, path)?;
            exported.bytes = manifest.entries().map(|entry| manifest.size(entry)).sum();
            exported.losses = losses.counts.values().sum();
            let said = losses.listed.iter();
            exported.lost = said
                .map(|loss| format!("{} of {}: {}", loss.aspect.name(), loss.path, loss.reason))
                .collect();
        }
        Destination::Tar(path) => {
            let failed = |source| Error::Write { path: path.clone(), source };
            let mut beside = path.clone().into_os_string();
            beside.push(".part");
            let beside = PathBuf::from(beside);
            let file = File::create(&beside).map_err(failed)?;
            let written = to_tar(store, &manifest, &file).and_then(|bytes| {
                file.sync_all().and_then(|()| fs::rename(&beside, path)).map_err(failed)?;
                Ok(bytes)
            });
            if written.is_err() {
                // It says nothing; the error says all.
                let _ = fs::remove_file(&beside);
            }
            exported.bytes = written?;
        }
        Destination::Output(path) => {
            // Behind what is in it already, should it be a file.
            let opened = File::options().append(true).open(path);
            let file = opened.map_err(|source| Error::Write { path: path.clone(), source })?;
            exported.bytes = to_tar(store, &manifest, &file)?;
        }
    }
    exported.elapsed_s = started.elapsed().as_secs_f64();
    Ok(exported)
}

fn piece(store: &Store, manifest: &Manifest, piece: PieceIndex) -> Result<Vec<u8>, Error> {
    let block = store.get(&manifest.content().piece(piece).cid)?.ok_or(Error::Piece { piece })?;
    block.decode().map_err(|_| Error::Piece { piece })
}

fn to_tar(store: &Store, manifest: &Manifest, file: &File) -> Result<u64, Error> {
    let mut out = BufWriter::with_capacity(BUFFER_BYTES, file);
    let mut read = |index| piece(store, manifest, index).map_err(Into::into);
    let bytes = export_tar(manifest, &mut read, &mut out)?;
    out.flush().map_err(ExportError::Write)?;
    Ok(bytes)
}

fn into_directory(store: &Store, manifest: &Arc<Manifest>, path: &Path) -> Result<ApplyReport, Error> {
    let failed = |source| Error::Write { path: path.to_owned(), source };
    fs::create_dir_all(path).map_err(failed)?;
    if fs::read_dir(path).map_err(failed)?.next().is_some() {
        return Err(Error::NotEmpty(path.to_owned()));
    }
    let apply = Apply::create(Arc::clone(manifest), path, ApplyOptions::default())?;
    let (next, pieces) = (AtomicUsize::new(0), manifest.content().indexes());
    let pieces: Vec<PieceIndex> = pieces.collect();
    let work = || {
        while let Some(&index) = pieces.get(next.fetch_add(1, Ordering::Relaxed)) {
            apply.write_piece(index, &piece(store, manifest, index)?)?;
        }
        Ok(())
    };
    let threads = std::thread::available_parallelism().map_or(2, usize::from);
    std::thread::scope(|scope| {
        let workers: Vec<_> = (0..threads).map(|_| scope.spawn(work)).collect();
        let ends = workers.into_iter().map(|worker| worker.join().expect("a worker does not panic"));
        ends.collect::<Result<(), Error>>()
    })?;
    Ok(apply.finish()?)
}
