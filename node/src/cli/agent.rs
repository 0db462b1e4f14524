//! `shoal-node agent`.

use std::path::PathBuf;
use std::time::Duration;

use clap::Args;
use shoal_node::agent::{self, Config, config};
use shoal_node::exit::{Exit, Usage, interrupted};

use crate::cli::Common;

/// How long blocking work may take to notice the end: what it does is finished by the next start.
const SHUTDOWN_MAX: Duration = Duration::from_secs(1);

#[derive(Debug, Args)]
pub(crate) struct Agent {
    /// What to follow and how, in TOML
    #[arg(long, value_name = "FILE")]
    config: PathBuf,
}

impl Agent {
    pub(crate) fn run(self, common: &Common) -> anyhow::Result<Exit> {
        let config = Config::load(&self.config).map_err(|error| match error {
            config::Error::Malformed { .. } => anyhow::Error::from(Usage(error.to_string())),
            other => other.into(),
        })?;
        let agent = agent::Agent::open(config, common.data())?;
        let runtime = shoal_node::peer::runtime()?;
        let ended = runtime.block_on(async {
            tokio::select! {
                () = interrupted() => Ok(()),
                ended = agent.run() => ended,
            }
        });
        runtime.shutdown_timeout(SHUTDOWN_MAX);
        ended?;
        Ok(Exit::Done)
    }
}
