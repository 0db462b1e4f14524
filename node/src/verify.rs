//! Whether an installed tree is still what its image says.

use std::path::{Path, PathBuf};
use std::time::Instant;

use serde::Serialize;

use crate::tree::rules::{Rules, RulesError};
use crate::tree::verify::{Drift, DriftKind, VerifyError, VerifyMode, verify_by};
use crate::update;

#[derive(Debug, thiserror::Error)]
pub enum Error {
    #[error(transparent)]
    Target(#[from] update::Error),
    #[error(transparent)]
    Rules(#[from] RulesError),
    #[error(transparent)]
    Tree(#[from] VerifyError),
}

/// Which rules say what the machine decides itself.
#[derive(Clone, Debug)]
pub enum RulesChoice {
    /// None: everything is compared.
    None,
    /// Those in the tree, and the defaults.
    OfTree,
    /// Those of a file, and the defaults.
    File(PathBuf),
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
pub fn verify_target(
    data: &Path,
    target: &Path,
    mode: VerifyMode,
    rules_of: &RulesChoice,
) -> Result<Verification, Error> {
    let started = Instant::now();
    let (record, manifest) = update::installed(data, target)?;
    let further = record.layered.as_ref().map_or(&[][..], |layered| &layered.rules);
    let rules = match rules_of {
        RulesChoice::None => Rules::none(),
        RulesChoice::OfTree => Rules::load_with(target, None, further)?,
        RulesChoice::File(file) => Rules::load_with(target, Some(file), further)?,
    };
    let rules = match rules_of {
        RulesChoice::None => rules,
        _ => rules.without(target, data),
    };
    let not_compared = record.lost;
    let report = verify_by(&manifest, target, mode, &rules)?.without(&not_compared);
    Ok(Verification {
        image: record.image,
        entries: report.entries,
        drift: report.drift,
        not_compared,
        elapsed_s: started.elapsed().as_secs_f64(),
    })
}
