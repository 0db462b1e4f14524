//! A manifest read back from the blocks of a store, or from the copy that an install keeps for `verify`.

use std::fs::File;
use std::io::{self, Read};
use std::path::PathBuf;

use shoal_proto::cid::Cid;
use shoal_proto::image::manifest::{MANIFEST_BLOCK_BYTES, ManifestError};
use shoal_proto::image::root::RootError;
use shoal_proto::image::{Manifest, ManifestDecoder, RootRecord};

use crate::block::DecodeError;
use crate::durable;
use crate::state::{self, TargetState};
use crate::store::{self, Store};

#[derive(Debug, thiserror::Error)]
pub enum Error {
    #[error(transparent)]
    Store(#[from] store::Error),
    #[error("manifest block {0} is not in the store")]
    Missing(Cid),
    #[error(transparent)]
    Block(#[from] DecodeError),
    #[error(transparent)]
    Manifest(#[from] ManifestError),
    #[error(transparent)]
    State(#[from] state::Error),
    #[error(transparent)]
    File(#[from] durable::Error),
    #[error("cannot read {}", .path.display())]
    Read {
        path: PathBuf,
        #[source]
        source: io::Error,
    },
    #[error("{} is missing", .0.display())]
    NotKept(PathBuf),
    #[error("{} is not of the image that was installed", .path.display())]
    OtherImage { path: PathBuf },
    #[error("the kept root record is damaged")]
    Root(#[from] RootError),
}

/// Decodes the manifest of `root`, every block of which `store` must hold. Bounded: one block at a time.
pub fn load_manifest(store: &Store, root: &RootRecord) -> Result<Manifest, Error> {
    let mut decoder = ManifestDecoder::new(root);
    each_block(store, root, |raw| Ok(decoder.push(raw)?))?;
    Ok(decoder.finish()?)
}

/// Keeps the manifest of `root` beside the state of `target`, where the root record is kept already.
pub fn save_manifest(store: &Store, root: &RootRecord, target: &TargetState) -> Result<(), Error> {
    let mut stream = Vec::new();
    each_block(store, root, |raw| {
        stream.extend_from_slice(raw);
        Ok(())
    })?;
    write_manifest(&stream, &root.image_id(), target)
}

/// Keeps the stream of a manifest beside the state of `target`.
pub(crate) fn write_manifest(stream: &[u8], image: &Cid, target: &TargetState) -> Result<(), Error> {
    Ok(durable::write(&target.manifest_path(image), stream, durable::PRIVATE)?)
}

/// Reads what [`save_manifest`] kept, and checks that every block of it is the one that the root record names.
pub fn read_manifest(target: &TargetState, image: &Cid) -> Result<Manifest, Error> {
    let path = target.manifest_path(image);
    let root = target.root(image)?.ok_or_else(|| Error::NotKept(path.clone()))?;
    let root = RootRecord::decode(root.payload())?;
    let failed = |source| Error::Read { path: path.clone(), source };
    let mut file = File::open(&path).map_err(failed)?;
    let mut decoder = ManifestDecoder::new(&root);
    let mut block = vec![0; MANIFEST_BLOCK_BYTES];
    for piece in root.manifest().indexes().map(|index| root.manifest().piece(index)) {
        let raw = &mut block[..piece.raw_bytes as usize];
        file.read_exact(raw).map_err(failed)?;
        if Cid::of(raw) != piece.cid {
            return Err(Error::OtherImage { path });
        }
        decoder.push(raw)?;
    }
    Ok(decoder.finish()?)
}

fn each_block(
    store: &Store,
    root: &RootRecord,
    mut take: impl FnMut(&[u8]) -> Result<(), Error>,
) -> Result<(), Error> {
    let mut raw = Vec::new();
    for piece in root.manifest().indexes().map(|index| root.manifest().piece(index)) {
        let block = store.get(&piece.cid)?.ok_or(Error::Missing(piece.cid))?;
        block.decode_into(&mut raw)?;
        take(&raw)?;
    }
    Ok(())
}
