//! What every command that joins a swarm is told.

use std::net::SocketAddr;
use std::path::PathBuf;
use std::time::Duration;

use anyhow::Context;
use clap::Args;
use shoal_node::exit::{Usage, interrupted};
use shoal_node::join::JoinOptions;
use shoal_node::peer::Limits;
use shoal_proto::rate::Rate;
use shoal_proto::ticket::Ticket;

#[derive(Debug, Args)]
pub(crate) struct Join {
    /// The seeder's ticket, or @FILE to read it from
    ticket: String,
    #[command(flatten)]
    member: Member,
}

/// How to take part.
#[derive(Debug, Args)]
pub(crate) struct Member {
    /// Keep blocks in DIR while fetching and serving
    #[arg(long, value_name = "DIR")]
    store: Option<PathBuf>,
    /// Accept peers on this address (can be repeated)
    #[arg(long, value_name = "ADDR:PORT", default_value = "0.0.0.0:0")]
    listen: Vec<SocketAddr>,
    /// Say where this machine stands, to trade inside its rack first
    #[arg(long, value_name = "LABEL", default_value = "")]
    rack: String,
    /// Send no more than this to all peers together, such as 50mbit or 10MB/s
    #[arg(long, value_name = "RATE")]
    limit_up: Option<Rate>,
    /// Send no more than this to any one peer
    #[arg(long, value_name = "RATE")]
    limit_up_per_peer: Option<Rate>,
    /// Take no more than this from all peers together
    #[arg(long, value_name = "RATE")]
    limit_down: Option<Rate>,
}

impl Join {
    pub(crate) fn options(self) -> anyhow::Result<JoinOptions> {
        self.member.options(&self.ticket)
    }
}

impl Member {
    pub(crate) fn options(self, ticket: &str) -> anyhow::Result<JoinOptions> {
        let Self { store, listen, rack, limit_up, limit_up_per_peer, limit_down } = self;
        let limits = Limits { up: limit_up, up_per_peer: limit_up_per_peer, down: limit_down };
        Ok(JoinOptions { ticket: read_ticket(ticket)?, store, listen, rack, limits })
    }
}

fn read_ticket(argument: &str) -> anyhow::Result<Ticket> {
    let text = match argument.strip_prefix('@') {
        Some(path) => {
            std::fs::read_to_string(path).with_context(|| format!("cannot read the ticket from {path}"))?
        }
        None => argument.to_owned(),
    };
    // A bad ticket can never work: usage.
    Ok(text.parse::<Ticket>().map_err(|error| Usage(error.to_string()))?)
}

/// Waits until the time to serve is over or somebody asks the process to end.
pub(crate) async fn serving(time: Duration) {
    tokio::select! {
        () = tokio::time::sleep(time) => {}
        () = interrupted() => {}
    }
}
