//! A store in memory, and a node's work on it.

use std::collections::HashMap;
use std::path::Path;
use std::sync::{Arc, Mutex};

use shoal_node::block::EncodedBlock;
use shoal_node::tree::apply::{Apply, ApplyError, ApplyOptions, ApplyReport};
use shoal_node::tree::capture::{BlockSink, BlockSinkError};
use shoal_proto::cid::Cid;
use shoal_proto::image::manifest::Manifest;
use shoal_proto::image::{ManifestDecoder, RootRecord};

/// Blocks in memory.
#[derive(Default)]
pub(crate) struct Blocks(pub(crate) Mutex<HashMap<Cid, EncodedBlock>>);

impl BlockSink for Blocks {
    fn put(&self, block: &EncodedBlock) -> Result<(), BlockSinkError> {
        self.0.lock().unwrap().insert(block.cid, block.clone());
        Ok(())
    }

    fn held(&self, cid: &Cid) -> Option<u64> {
        self.0.lock().unwrap().get(cid).map(|block| block.payload.len() as u64)
    }

    fn raw(&self, cid: &Cid) -> Option<Vec<u8>> {
        self.0.lock().unwrap().get(cid)?.decode().ok()
    }
}

impl Blocks {
    pub(crate) fn raw(&self, cid: Cid) -> Vec<u8> {
        self.0.lock().unwrap()[&cid].decode().unwrap()
    }

    /// As a node reads it: from its blocks.
    pub(crate) fn manifest(&self, root: &RootRecord) -> Arc<Manifest> {
        let mut decoder = ManifestDecoder::new(root);
        for index in root.manifest().indexes() {
            decoder.push(&self.raw(root.manifest().piece(index).cid)).unwrap();
        }
        Arc::new(decoder.finish().unwrap())
    }

    pub(crate) fn apply(&self, manifest: &Arc<Manifest>, target: &Path) -> Result<ApplyReport, ApplyError> {
        let apply = Apply::create(Arc::clone(manifest), target, ApplyOptions::default())?;
        // The last piece first, by two threads, and each piece twice.
        std::thread::scope(|scope| {
            for _ in 0..2 {
                scope.spawn(|| {
                    for index in manifest.content().indexes().rev() {
                        apply.write_piece(index, &self.raw(manifest.content().piece(index).cid)).unwrap();
                    }
                });
            }
        });
        apply.finish()
    }
}
