//! Where a tree and an image differ.

use std::io;
use std::path::{Path, PathBuf};
use std::time::Instant;

use rustix::io::Errno;
use serde::Serialize;
use shoal_proto::image::ImagePath;
pub use shoal_proto::image::drift::{DriftKind, Drifts};
use shoal_proto::image::manifest::Manifest;
use shoal_proto::image::plan::Seen;

use super::itemize;
use super::root::{self, Directories};
use super::rules::Rules;
use super::survey::{SurveyOptions, survey};

/// How closely to look.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum VerifyMode {
    /// Everything but content.
    Metadata,
    /// Content too.
    Full,
}

/// A path that is not as the image has it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Drift {
    #[serde(serialize_with = "as_text")]
    pub path: ImagePath,
    /// Sorted, none twice.
    pub kinds: Vec<DriftKind>,
    /// The first column of a listing, as in [`Item`](super::Item).
    #[serde(skip)]
    pub code: String,
}

fn as_text<S: serde::Serializer>(path: &ImagePath, serializer: S) -> Result<S::Ok, S::Error> {
    serializer.collect_str(path)
}

/// What was compared and what differs, in path order.
#[derive(Clone, Debug, Serialize)]
pub struct VerifyReport {
    pub entries: u64,
    pub drift: Vec<Drift>,
    pub elapsed_s: f64,
}

impl VerifyReport {
    /// Without differences of some kinds, for a target that is known to lack them.
    #[must_use]
    pub fn without(mut self, kinds: &[DriftKind]) -> Self {
        for drift in &mut self.drift {
            drift.kinds.retain(|kind| !kinds.contains(kind));
        }
        self.drift.retain(|drift| !drift.kinds.is_empty());
        self
    }
}

/// Why a tree could not be compared.
#[derive(Debug, thiserror::Error)]
pub enum VerifyError {
    #[error("cannot open {}", path.display())]
    Target { path: PathBuf, source: io::Error },
    #[error("cannot read {path}")]
    Read { path: ImagePath, source: Errno },
}

/// Compares the whole tree at `target` with an image.
///
/// `lost+found` at the top belongs to the file system, and is never extra.
pub fn verify(manifest: &Manifest, target: &Path, mode: VerifyMode) -> Result<VerifyReport, VerifyError> {
    verify_by(manifest, target, mode, &Rules::none())
}

/// [`verify`], but for what `rules` leave to the machine.
pub fn verify_by(
    manifest: &Manifest,
    target: &Path,
    mode: VerifyMode,
    rules: &Rules,
) -> Result<VerifyReport, VerifyError> {
    let started = Instant::now();
    let top =
        root::open_top(target).map_err(|source| VerifyError::Target { path: target.to_owned(), source })?;
    let options = SurveyOptions { mode, rules, owners: &[], unowned: false };
    let observed = survey(manifest, target, &Directories::new(top), options)?;
    let mut drift = Vec::new();
    for (entry, seen) in manifest.entries().zip(&observed.seen) {
        if let Seen::Drifted(drifts) = seen {
            let (kinds, code) = (drifts.kinds().collect(), itemize::code(manifest, entry, *drifts));
            drift.push(Drift { path: entry.path(), kinds, code });
        }
    }
    for extra in observed.extras.iter().filter(|extra| !extra.left && extra.within.is_none()) {
        let (kinds, code) = (vec![DriftKind::Extra], itemize::EXTRA.to_owned());
        drift.push(Drift { path: extra.path.clone(), kinds, code });
    }
    drift.sort_by(|one, other| one.path.cmp(&other.path));
    Ok(VerifyReport {
        entries: manifest.tree().len() as u64,
        drift,
        elapsed_s: started.elapsed().as_secs_f64(),
    })
}
