//! `shoal-seeder completions`.

use std::io::Write;

use clap::{Args, CommandFactory};
use clap_complete::Shell;
use shoal_node::exit::Exit;

use crate::cli::Cli;

#[derive(Debug, Args)]
pub(crate) struct Completions {
    /// Complete commands in this shell
    shell: Shell,
}

impl Completions {
    pub(crate) fn run(self) -> anyhow::Result<Exit> {
        // Made whole first: the generator panics when its reader goes away.
        let mut script = Vec::new();
        clap_complete::generate(self.shell, &mut Cli::command(), "shoal-seeder", &mut script);
        let mut out = std::io::stdout().lock();
        out.write_all(&script)?;
        out.flush()?;
        Ok(Exit::Done)
    }
}
