//! `shoal-seeder offers`.

use std::time::{Duration, UNIX_EPOCH};

use clap::Args;
use shoal_node::durable;
use shoal_node::exit::Exit;
use shoal_seeder::control;
use shoal_seeder::golden::Error;
use shoal_seeder::home::Error as HomeError;

use crate::cli::{Common, print_json};

#[derive(Debug, Args)]
pub(crate) struct OffersCommand {}

impl OffersCommand {
    pub(crate) fn run(self, common: &Common) -> anyhow::Result<Exit> {
        let home = common.home()?;
        let offers = match home.lock() {
            Ok(_) => return Err(Error::NotServing.into()),
            Err(HomeError::File(durable::Error::InUse { .. })) => {
                shoal_node::peer::runtime()?.block_on(control::offers(&home))?
            }
            Err(error) => return Err(error.into()),
        };
        if common.json {
            print_json(&serde_json::json!({ "offers": offers }))?;
            return Ok(Exit::Done);
        }
        for offer in &offers {
            let since = humantime::format_rfc3339_seconds(UNIX_EPOCH + Duration::from_secs(offer.since_s));
            println!("golden:{}  {}:{}  since {since}  {}", offer.name, offer.host, offer.path, offer.peer);
        }
        if offers.is_empty() {
            println!("nothing is offered (`shoal-node offer DIR --to TICKET` on a golden client)");
        }
        Ok(Exit::Done)
    }
}
