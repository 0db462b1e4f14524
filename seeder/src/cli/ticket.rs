//! `shoal-seeder ticket`.

use clap::Args;
use shoal_node::exit::Exit;
use shoal_proto::image::ImageName;
use shoal_seeder::catalog::Catalog;

use crate::cli::{Common, print_json};

#[derive(Debug, Args)]
pub(crate) struct TicketCommand {
    /// Name this image in the ticket
    name: Option<ImageName>,
    /// Reach the seeder at this host instead of the addresses it listens on
    #[arg(long, value_name = "HOST")]
    host: Option<String>,
}

impl TicketCommand {
    pub(crate) fn run(self, common: &Common) -> anyhow::Result<Exit> {
        let home = common.home()?;
        if let Some(name) = &self.name {
            Catalog::open(&home)?.find(name)?;
        }
        let ticket = home.ticket(home.addresses(self.host.as_deref())?, self.name).to_string();
        if common.json {
            print_json(&serde_json::json!({ "ticket": ticket }))?;
        } else {
            println!("{ticket}");
        }
        Ok(Exit::Done)
    }
}
