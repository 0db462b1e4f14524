//! What every command that joins a swarm is told.

use std::env::VarError;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::time::Duration;

use anyhow::Context;
use clap::Args;
use shoal_node::exit::{Usage, interrupted};
use shoal_node::goal::HostOptions;
use shoal_node::join::JoinOptions;
use shoal_node::peer::Limits;
use shoal_node::rack;
use shoal_proto::assignment::LayerName;
use shoal_proto::host::HostName;
use shoal_proto::rate::Rate;
use shoal_proto::ticket::Ticket;
use shoal_proto::zone::{Zone, ZoneError};

use crate::cli::hidden;

/// Says where the machine stands when no option does.
const RACK_VARIABLE: &str = "SHOAL_RACK";

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
    /// Send no more than this to all peers together, such as 50mbit or 10MB/s
    #[arg(long, value_name = "RATE")]
    limit_up: Option<Rate>,
    /// Send no more than this to any one peer
    #[arg(long, value_name = "RATE")]
    limit_up_per_peer: Option<Rate>,
    /// Take no more than this from all peers together
    #[arg(long, value_name = "RATE")]
    limit_down: Option<Rate>,
    #[command(flatten)]
    place: Place,
}

/// Who this machine is in the cluster file.
#[derive(Debug, Args)]
pub(crate) struct Host {
    /// Be this host of the cluster file [default: this system's host name]
    #[arg(long, value_name = "NAME")]
    host: Option<HostName>,
    /// Lay this override over all that the cluster file says (can be repeated; the first wins)
    #[arg(long = "override", value_name = "NAME")]
    overrides: Vec<LayerName>,
    /// Take the image alone, whatever the cluster file says
    #[arg(long, conflicts_with_all = ["host", "overrides"])]
    alone: bool,
}

impl Host {
    pub(crate) fn options(self) -> HostOptions {
        HostOptions { host: self.host, overrides: self.overrides, alone: self.alone }
    }
}

/// Where this machine stands.
#[derive(Debug, Args)]
struct Place {
    /// Say where this machine stands, such as row3/rack07, to trade inside its rack first [default: $SHOAL_RACK]
    #[arg(long, value_name = "LABEL")]
    rack: Option<Zone>,
    /// Ask a shell command for the label: the first line that it prints
    #[arg(long, value_name = "COMMAND", conflicts_with = "rack")]
    rack_command: Option<String>,
}

impl Place {
    fn rack(self) -> anyhow::Result<Zone> {
        match (self.rack, self.rack_command) {
            (Some(rack), _) => Ok(rack),
            (None, Some(command)) => Ok(rack::ask(&command)?),
            (None, None) => match std::env::var(RACK_VARIABLE) {
                Ok(label) => Ok(label
                    .parse()
                    .map_err(|error: ZoneError| Usage(format!("{RACK_VARIABLE}: {error}")))?),
                Err(VarError::NotPresent) => Ok(Zone::UNKNOWN),
                Err(VarError::NotUnicode(_)) => Err(Usage(format!("{RACK_VARIABLE} is no text")).into()),
            },
        }
    }
}

impl Join {
    pub(crate) fn options(self) -> anyhow::Result<JoinOptions> {
        self.member.options(&self.ticket)
    }
}

impl Member {
    pub(crate) fn options(self, ticket: &str) -> anyhow::Result<JoinOptions> {
        let Self { store, listen, place, limit_up, limit_up_per_peer, limit_down } = self;
        let limits = Limits { up: limit_up, up_per_peer: limit_up_per_peer, down: limit_down };
        Ok(JoinOptions { ticket: read_ticket(ticket)?, store, listen, rack: place.rack()?, limits })
    }
}

fn read_ticket(argument: &str) -> anyhow::Result<Ticket> {
    let text = match argument.strip_prefix('@') {
        Some(path) => hidden::read(path).with_context(|| format!("cannot read the ticket from {path}"))?,
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
