//! `shoal-seeder ticket`.

use clap::Args;
use shoal_node::exit::Exit;
use shoal_proto::image::ImageName;
use shoal_proto::ticket::HostPort;
use shoal_seeder::catalog::Catalog;
use shoal_seeder::members;

use crate::cli::{Common, print_json};

#[derive(Debug, Args)]
pub(crate) struct TicketCommand {
    /// Name this image in the ticket
    name: Option<ImageName>,
    /// Reach the seeder at this host instead of the addresses it listens on
    #[arg(long, value_name = "HOST", value_parser = parse_host)]
    host: Option<String>,
}

impl TicketCommand {
    pub(crate) fn run(self, common: &Common) -> anyhow::Result<Exit> {
        let home = common.home()?;
        if let Some(name) = &self.name {
            Catalog::open(&home)?.find(name)?;
        }
        let members = members::load(&home)?.number;
        let ticket = home.ticket(home.addresses(self.host.as_deref())?, self.name, members)?.to_string();
        if common.json {
            print_json(&serde_json::json!({ "ticket": ticket }))?;
        } else {
            println!("{ticket}");
        }
        Ok(Exit::Done)
    }
}

/// A host without a port: the ports are those that the seeder listens on.
pub(super) fn parse_host(text: &str) -> Result<String, String> {
    let bracketed = if text.contains(':') { format!("[{text}]:1") } else { format!("{text}:1") };
    match bracketed.parse::<HostPort>() {
        Ok(address) if address.host.parse::<std::net::IpAddr>().is_ok() || !text.contains(':') => {
            Ok(address.host)
        }
        _ => {
            Err("not a host name or an IP address (the port is the one that the seeder listens on)"
                .to_owned())
        }
    }
}
