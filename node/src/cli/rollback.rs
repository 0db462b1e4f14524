//! `shoal-node rollback`.

use std::path::PathBuf;

use clap::Args;
use shoal_node::exit::Exit;
use shoal_node::update::rollback;

use crate::cli::Common;
use crate::cli::tree::{Tree, print_change};

#[derive(Debug, Args)]
pub(crate) struct Rollback {
    /// The tree to change
    #[arg(long, value_name = "DIR")]
    target: PathBuf,
    #[command(flatten)]
    tree: Tree,
}

impl Rollback {
    pub(crate) fn run(self, common: &Common) -> anyhow::Result<Exit> {
        let report = rollback(&common.data(), &self.target, self.tree.options())?;
        print_change(&report, common.json)?;
        Ok(Exit::Done)
    }
}
