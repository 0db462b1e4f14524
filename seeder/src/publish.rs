//! From a tree to a published image: capture, sync, sign, catalog.

use std::path::PathBuf;
use std::time::{SystemTime, UNIX_EPOCH};

use serde::{Deserialize, Serialize};
use shoal_node::manifest::{self, load_manifest};
use shoal_node::store::{self, Store};
use shoal_node::tree::capture::{CaptureError, CaptureOptions, CaptureProgress, capture};
use shoal_proto::image::{ImageName, NameRecord};
use shoal_proto::signing::Signed;

use crate::catalog::{self, Catalog, Facts, Image};
use crate::home::Home;

#[derive(Debug, thiserror::Error)]
pub enum Error {
    #[error(transparent)]
    Capture(#[from] CaptureError),
    #[error(transparent)]
    Store(#[from] store::Error),
    #[error(transparent)]
    Catalog(#[from] catalog::Error),
    #[error("the image that {name} was cannot be read")]
    Parent {
        name: ImageName,
        #[source]
        source: manifest::Error,
    },
}

/// What a capture did, as `--json` prints it. Sizes in bytes, times in seconds.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Published {
    pub image: String,
    pub name: String,
    pub entries: u64,
    pub chunks: u64,
    pub blocks: u64,
    /// Blocks that the image of this name before it did not have; all of them, the first time.
    pub new_blocks: u64,
    pub raw_bytes: u64,
    pub compressed_bytes: u64,
    pub new_compressed_bytes: u64,
    pub sockets_skipped: u64,
    pub elapsed_s: f64,
}

/// What to capture. Travels to the running seeder as JSON: a source that is no UTF-8 is refused there.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct CaptureRequest {
    /// Absolute.
    pub source: PathBuf,
    #[serde(with = "name_as_text")]
    pub name: ImageName,
    /// Patterns in rsync's language, first match counts.
    pub excludes: Vec<String>,
}

mod name_as_text {
    use serde::{Deserialize, Deserializer, Serializer};
    use shoal_proto::image::ImageName;

    pub(super) fn serialize<S: Serializer>(name: &ImageName, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_str(name.as_str())
    }

    pub(super) fn deserialize<'de, D: Deserializer<'de>>(deserializer: D) -> Result<ImageName, D::Error> {
        String::deserialize(deserializer)?.parse().map_err(serde::de::Error::custom)
    }
}

/// Captures a tree and publishes it. Nothing is published unless everything was read and is synced. The image that
/// had the name is the parent: what it lacks is laid in blocks of its own.
pub fn publish(
    home: &Home,
    store: &Store,
    catalog: &mut Catalog,
    request: &CaptureRequest,
) -> Result<Published, Error> {
    todo!()
}
