//! `shoal-seeder nodes`.

use std::io::Write;

use clap::{Args, Subcommand};
use shoal_node::durable;
use shoal_node::exit::Exit;
use shoal_node::peer::PeerId;
use shoal_proto::host::HostName;
use shoal_proto::members::Policy;
use shoal_seeder::bindings::Bindings;
use shoal_seeder::control;
use shoal_seeder::home::Error as HomeError;
use shoal_seeder::members::{self, Change, NodeReport, NodesReport};

use crate::cli::{Common, print_json};

#[derive(Debug, Args)]
pub(crate) struct Nodes {
    #[command(subcommand)]
    what: What,
}

#[derive(Debug, Subcommand)]
enum What {
    /// List who may join, who has, and who waits for approval
    List,
    /// Let a node in, or in again
    Approve {
        /// The key that the node says it waits with
        key: PeerId,
        /// It is the key of this host: no other key may pass for the host, and it gets what is confidential to it
        #[arg(long, value_name = "NAME")]
        host: Option<HostName>,
    },
    /// Shut a node out, everywhere in the swarm
    Revoke {
        /// The node's key, as `nodes list` shows it
        key: PeerId,
    },
    /// Say who is let in without being named: whoever has the ticket, or nobody
    Policy {
        #[arg(value_name = "secret|approve")]
        policy: Policy,
    },
}

impl Nodes {
    pub(crate) fn run(self, common: &Common) -> anyhow::Result<Exit> {
        let change = match self.what {
            What::List => None,
            What::Approve { key, host: None } => Some(Change::Approve(key)),
            What::Approve { key, host: Some(host) } => Some(Change::ApproveAs(key, host)),
            What::Revoke { key } => Some(Change::Revoke(key)),
            What::Policy { policy } => Some(Change::Policy(policy)),
        };
        let home = common.home()?;
        let report = match home.lock() {
            Ok(_lock) => {
                let members = match &change {
                    Some(change) => members::decide(&home, change)?,
                    None => members::load(&home)?,
                };
                let bound = match &change {
                    Some(change) => members::bind(&home, change)?,
                    None => Bindings::load(&home)?,
                };
                NodesReport::new(&members, &bound, &[])
            }
            // A seeder that serves decides by itself, and its neighbours know at once.
            Err(HomeError::File(durable::Error::InUse { .. })) => {
                shoal_node::peer::runtime()?.block_on(control::nodes(&home, change))?
            }
            Err(error) => return Err(error.into()),
        };
        if common.json {
            print_json(&report)?;
        } else {
            print(&mut std::io::stdout().lock(), &report)?;
        }
        Ok(Exit::Done)
    }
}

fn print(out: &mut impl Write, report: &NodesReport) -> std::io::Result<()> {
    let who = match report.policy.as_str() {
        "approve" => "only approved nodes may join",
        _ => "whoever has the ticket may join",
    };
    writeln!(out, "policy {}: {who}", report.policy)?;
    let place = |node: &NodeReport| node.address.clone().unwrap_or_else(|| "an unknown address".to_owned());
    for node in &report.waiting {
        writeln!(
            out,
            "waiting    {}  at {}, {:.0} s ago",
            node.peer,
            place(node),
            node.ago_s.unwrap_or(0.0)
        )?;
    }
    for node in &report.connected {
        writeln!(out, "connected  {}  at {}", node.peer, place(node))?;
    }
    report.approved.iter().try_for_each(|key| writeln!(out, "approved   {key}"))?;
    report.hosts.iter().try_for_each(|(host, key)| writeln!(out, "host       {key}  is {host}"))?;
    report.revoked.iter().try_for_each(|key| writeln!(out, "revoked    {key}"))?;
    for ban in &report.banned {
        writeln!(out, "banned     {}  for {:.0} s more: {}", ban.peer, ban.left_s, ban.why)?;
    }
    if !report.serving {
        writeln!(out, "(no seeder is serving: who is connected or waits is not known)")?;
    }
    out.flush()
}
