//! `shoal-seeder man`.

use std::path::PathBuf;

use anyhow::Context;
use clap::{Args, CommandFactory};
use shoal_node::exit::Exit;

use crate::cli::Cli;

#[derive(Debug, Args)]
pub(crate) struct Man {
    /// Write a page for each command into this directory, which is made if need be
    dir: PathBuf,
}

impl Man {
    pub(crate) fn run(self) -> anyhow::Result<Exit> {
        let dir = self.dir;
        std::fs::create_dir_all(&dir)
            .and_then(|()| clap_mangen::generate_to(Cli::command(), &dir))
            .with_context(|| format!("cannot write manual pages into {}", dir.display()))?;
        Ok(Exit::Done)
    }
}
