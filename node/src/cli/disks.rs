//! What an install is told about this machine's disks.

use std::path::{Path, PathBuf};

use clap::Args;
use shoal_node::disks::Layout;
use shoal_node::disks::perform::{Mounted, prepare};
use shoal_node::exit::Usage;

#[derive(Debug, Args)]
pub(crate) struct Disks {
    /// Partition the disks that FILE names, and mount their new file systems below the target
    #[arg(long, value_name = "FILE")]
    disks: Option<PathBuf>,
}

impl Disks {
    /// Makes the disks ready for a tree at `target`; `None` without a layout. A dry run says what would be done.
    pub(crate) fn make(&self, target: &Path, dry_run: bool, yes: bool) -> anyhow::Result<Option<Made>> {
        let Some(file) = &self.disks else { return Ok(None) };
        let prepared = prepare(Layout::read(file)?)?;
        let plan = prepared.describe();
        if dry_run {
            print!("{plan}");
            return Ok(Some(Made::Nothing));
        }
        if !yes {
            eprint!("{plan}");
            return Err(Usage("all that these disks hold now would be lost: --yes does it".to_owned()).into());
        }
        let mounted = prepared.perform(target)?;
        for point in mounted.points() {
            tracing::info!(point = %point.display(), "mounted");
        }
        Ok(Some(Made::Disks(mounted)))
    }
}

/// What became of a layout.
pub(crate) enum Made {
    /// It was a dry run.
    Nothing,
    Disks(Mounted),
}
