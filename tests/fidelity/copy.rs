//! A capture and an apply without a network between them.

use std::collections::{BTreeSet, HashMap};
use std::ffi::OsStr;
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex};

use shoal_node::block::EncodedBlock;
use shoal_node::tree::apply::{Apply, ApplyOptions};
use shoal_node::tree::capture::{BlockSink, BlockSinkError, CaptureOptions, Captured, capture};
use shoal_node::tree::exclude::Excludes;
use shoal_proto::cid::Cid;
use shoal_proto::image::{Manifest, ManifestDecoder, RootRecord};

/// Blocks in memory.
#[derive(Default)]
pub(super) struct Memory(Mutex<HashMap<Cid, EncodedBlock>>);

/// What an apply could not do.
pub(super) struct Copied {
    pub(super) losses: BTreeSet<PathBuf>,
}

impl BlockSink for Memory {
    fn put(&self, block: &EncodedBlock) -> Result<(), BlockSinkError> {
        self.0.lock().unwrap().insert(block.cid, block.clone());
        Ok(())
    }
}

impl Memory {
    pub(super) fn capture(&self, source: &Path, excludes: &[String]) -> Captured {
        let excludes = Excludes::new(excludes).unwrap();
        let options = CaptureOptions { excludes, threads: 2, ..CaptureOptions::default() };
        capture(source, &options, self, &()).unwrap_or_else(|error| panic!("{error}"))
    }

    pub(super) fn apply(&self, root: &RootRecord, target: &Path) -> Copied {
        let manifest = self.manifest(root);
        let apply = Apply::create(Arc::clone(&manifest), target, ApplyOptions::default())
            .unwrap_or_else(|error| panic!("{error}: {error:?}"));
        for index in manifest.content().indexes() {
            apply.write_piece(index, &self.raw(manifest.content().piece(index).cid)).unwrap();
        }
        let report = apply.finish().unwrap_or_else(|error| panic!("{error}: {error:?}"));
        let path = |bytes: &[u8]| PathBuf::from(OsStr::from_bytes(bytes));
        Copied { losses: report.losses.listed.iter().map(|loss| path(loss.path.bytes())).collect() }
    }

    fn manifest(&self, root: &RootRecord) -> Arc<Manifest> {
        let mut decoder = ManifestDecoder::new(root);
        for index in root.manifest().indexes() {
            decoder.push(&self.raw(root.manifest().piece(index).cid)).unwrap();
        }
        Arc::new(decoder.finish().unwrap())
    }

    fn raw(&self, cid: Cid) -> Vec<u8> {
        self.0.lock().unwrap()[&cid].decode().unwrap()
    }
}
