//! The hidden verb that a script of the cluster runs behind.

use std::path::PathBuf;

use anyhow::Context;
use clap::Args;
use shoal_node::exit::Exit;
use shoal_node::scripts::enter;

#[derive(Debug, Args)]
pub(crate) struct RunScript {
    #[arg(long)]
    root: Option<PathBuf>,
    script: PathBuf,
}

impl RunScript {
    pub(crate) fn run(self) -> anyhow::Result<Exit> {
        let error = enter(self.root.as_deref(), &self.script);
        Err(error).with_context(|| format!("cannot run {}", self.script.display()))
    }
}
