//! From a tree to a published image: capture, sync, sign, catalog.

use std::sync::Arc;
use std::time::{SystemTime, UNIX_EPOCH};

use serde::{Deserialize, Serialize};
use shoal_node::manifest::load_manifest;
use shoal_node::store::{self, Store};
use shoal_node::tree::capture::{
    CaptureError, CaptureOptions, CaptureProgress, CaptureReport, Captured, LEVEL_DEFAULT, Parent,
    UPDATE_LEVEL_DEFAULT, capture, capture_archive,
};
use shoal_node::tree::exclude::{Excludes, PatternError};
use shoal_proto::image::{ImageName, NameRecord};
use shoal_proto::signing::Signed;

use crate::catalog::{self, Catalog, Facts, Image};
use crate::golden::{self, GoldenTree};
use crate::home::Home;
use crate::source::Source;

#[derive(Debug, thiserror::Error)]
pub enum Error {
    #[error(transparent)]
    Capture(#[from] CaptureError),
    #[error(transparent)]
    Pattern(#[from] PatternError),
    #[error(transparent)]
    Store(#[from] store::Error),
    #[error(transparent)]
    Catalog(#[from] catalog::Error),
    #[error(transparent)]
    Golden(#[from] golden::Error),
}

/// What a capture did, as `--json` prints it. Sizes in bytes, times in seconds.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Published {
    pub name: String,
    #[serde(flatten)]
    pub report: CaptureReport,
    /// Bytes that came from a golden client.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub received_bytes: Option<u64>,
}

/// What to capture. Travels to the running seeder as JSON.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct CaptureRequest {
    pub source: Source,
    #[serde(with = "name_as_text")]
    pub name: ImageName,
    /// Rules in rsync's language, see [`Excludes`]; the first match counts.
    pub excludes: Vec<String>,
    /// Take what is unchanged since the last capture of this name from that image, unread.
    pub reuse: bool,
    /// Take files that change each time they are read as they were read last, and list them.
    pub allow_changed: bool,
    /// zstd level of the blocks; the usual ones when not said.
    pub level: Option<i32>,
    /// Only for those who are entitled to it.
    #[serde(default)]
    pub confidential: bool,
}

impl CaptureRequest {
    /// The usual capture of a whole tree.
    pub fn new(source: impl Into<Source>, name: ImageName) -> Self {
        let (source, excludes, level) = (source.into(), Vec::new(), None);
        Self { source, name, excludes, reuse: true, allow_changed: false, level, confidential: false }
    }
}

pub(crate) mod name_as_text {
    use serde::{Deserialize, Deserializer, Serializer};
    use shoal_proto::image::ImageName;

    pub(crate) fn serialize<S: Serializer>(name: &ImageName, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_str(name.as_str())
    }

    pub(crate) fn deserialize<'de, D: Deserializer<'de>>(deserializer: D) -> Result<ImageName, D::Error> {
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
    progress: &dyn CaptureProgress,
) -> Result<Published, Error> {
    publish_from(None, home, store, catalog, request, progress)
}

/// As [`publish`], of a golden client's tree when there is one.
pub(crate) fn publish_from(
    golden: Option<&GoldenTree>,
    home: &Home,
    store: &Store,
    catalog: &mut Catalog,
    request: &CaptureRequest,
    progress: &dyn CaptureProgress,
) -> Result<Published, Error> {
    let name = &request.name;
    // Without a parent the image is as good, and an update of it larger.
    let known = catalog.find(name).ok();
    // Blocks of what was confidential must not come back in what is not, nor the other way round.
    let known = known.filter(|image| image.facts.confidential == request.confidential);
    let reuse = request.reuse && known.is_some();
    let parent = known.and_then(|image| match load_manifest(store, &image.root) {
        Ok(manifest) => Some(Parent { root: image.root.clone(), manifest: Arc::new(manifest) }),
        Err(error) => {
            tracing::warn!(%name, %error, "the image of this name cannot be read and is not taken as parent");
            None
        }
    });
    let options = CaptureOptions {
        excludes: Excludes::new(&request.excludes)?,
        parent,
        seen: Some(catalog.seen_path(name)),
        reuse,
        allow_changed: request.allow_changed,
        level: request.level.unwrap_or(LEVEL_DEFAULT),
        update_level: request.level.unwrap_or(UPDATE_LEVEL_DEFAULT),
        ..CaptureOptions::default()
    };
    let (Captured { root, report, .. }, received_bytes) = match (golden, &request.source) {
        (Some(golden), _) => {
            let (captured, received_bytes) = golden.capture(&request.excludes, &options, store, progress)?;
            (captured, Some(received_bytes))
        }
        (None, Source::Directory(top)) => (capture(top, &options, store, progress)?, None),
        (None, Source::Golden(_)) => return Err(golden::Error::NotServing.into()),
        (None, source) => {
            let archive = source.open(home.dir()).map_err(CaptureError::Archive)?;
            (capture_archive(&archive, &options, store, progress)?, None)
        }
    };
    store.sync()?;
    let record = NameRecord { name: name.clone(), image: root.image_id() };
    catalog.publish(Image {
        signed_name: Signed::sign(&record, &home.publisher),
        signed_root: Signed::sign(&root, &home.publisher),
        name: record,
        root,
        facts: Facts {
            source: golden.map_or_else(|| request.source.to_string(), GoldenTree::describe),
            captured_at_s: SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |since| since.as_secs()),
            entries: report.entries,
            chunks: report.chunks,
            blocks: report.blocks,
            raw_bytes: report.raw_bytes,
            compressed_bytes: report.compressed_bytes,
            manifest_bytes: report.manifest_bytes,
            confidential: request.confidential,
        },
    })?;
    tracing::info!(%name, image = report.image, "published");
    Ok(Published { name: name.to_string(), report, received_bytes })
}
