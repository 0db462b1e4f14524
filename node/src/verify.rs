//! Whether an installed tree is still what its image says.

use std::path::{Path, PathBuf};
use std::time::Instant;

use serde::Serialize;

use crate::manifest::{self, read_manifest};
use crate::state::{self, Phase, TargetState};
use crate::tree::verify::{VerifyError, VerifyMode, verify};

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
    pub elapsed_s: f64,
}

/// One path that is not as the image has it.
#[derive(Clone, Debug, Serialize)]
pub struct Drift {
    /// Below the target; bytes that are no UTF-8 are shown replaced.
    pub path: String,
    /// What differs: `missing`, `extra`, `type`, `content`, `mode`, …
    pub kinds: Vec<String>,
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
    let report = verify(&manifest, target, mode)?;
    let drift = report.drift.into_iter().map(|drift| Drift {
        path: drift.path.to_string(),
        kinds: drift.kinds.iter().map(ToString::to_string).collect(),
    });
    Ok(Verification {
        image: record.image,
        entries: report.entries,
        drift: drift.collect(),
        elapsed_s: started.elapsed().as_secs_f64(),
    })
}
