//! Whether an installed tree is still what its image says.

use std::path::{Path, PathBuf};
use std::time::Instant;

use serde::Serialize;

use crate::manifest::{self, read_manifest};
use crate::state::{self, Phase, TargetState};
use crate::tree::verify::{Drift, DriftKind, VerifyError, VerifyMode, verify};

#[derive(Debug, thiserror::Error)]
pub enum Error {
    #[error(transparent)]
    State(#[from] state::Error),
    #[error("{} was not installed by this node (see --data)", .0.display())]
    NotInstalled(PathBuf),
    #[error("{} holds an unfinished install: run it again first", .0.display())]
    Unfinished(PathBuf),
    #[error(transparent)]
    Manifest(#[from] manifest::Error),
    #[error(transparent)]
    Tree(#[from] VerifyError),
}

/// What drifted, as `--json` prints it. Times in seconds.
#[derive(Clone, Debug, Serialize)]
pub struct Verification {
    pub image: String,
    pub entries: u64,
    pub drift: Vec<Drift>,
    /// What was not compared, because the install could not set it.
    pub not_compared: Vec<DriftKind>,
    pub elapsed_s: f64,
}

/// Compares the tree at `target` with the manifest that its install kept below `data`.
pub fn verify_target(data: &Path, target: &Path, mode: VerifyMode) -> Result<Verification, Error> {
    let started = Instant::now();
    let state = TargetState::at(data, target)?;
    let record = state.record()?.ok_or_else(|| Error::NotInstalled(target.to_owned()))?;
    if record.phase != Phase::Complete {
        return Err(Error::Unfinished(target.to_owned()));
    }
    let manifest = read_manifest(&state)?;
    let not_compared = record.lost;
    let report = verify(&manifest, target, mode)?.without(&not_compared);
    Ok(Verification {
        image: record.image,
        entries: report.entries,
        drift: report.drift,
        not_compared,
        elapsed_s: started.elapsed().as_secs_f64(),
    })
}
