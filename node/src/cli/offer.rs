//! `shoal-node offer`.

use std::path::PathBuf;

use anyhow::Context;
use clap::Args;
use indicatif::HumanBytes;
use shoal_node::exit::{Exit, Usage, interrupted};
use shoal_node::offer::{OfferOptions, Told, host_name, offer};
use shoal_node::tree::capture::remote::OfferEvent;
use shoal_proto::image::ImageName;

use crate::cli::Common;
use crate::cli::join::Member;

#[derive(Debug, Args)]
pub(crate) struct OfferCommand {
    /// The top of the tree to offer, such as /
    dir: PathBuf,
    /// The seeder's ticket, or @FILE to read it from
    #[arg(long, value_name = "TICKET")]
    to: String,
    /// What the seeder's operator calls it by: `shoal-seeder capture golden:NAME IMAGE` [default: the host name]
    #[arg(long, value_name = "NAME")]
    name: Option<ImageName>,
    #[command(flatten)]
    member: Member,
}

impl OfferCommand {
    pub(crate) fn run(self, common: &Common) -> anyhow::Result<Exit> {
        let name = match self.name {
            Some(name) => name,
            None => {
                let host = host_name();
                let name = host.split('.').next().unwrap_or_default();
                name.parse()
                    .map_err(|_| Usage(format!("{host:?} is no name for an offer: say --name NAME")))?
            }
        };
        let top = self.dir.canonicalize().with_context(|| format!("cannot offer {}", self.dir.display()))?;
        let options = OfferOptions { join: self.member.options(&self.to)?, top, name, data: common.data() };
        let (name, json) = (options.name.clone(), common.json);
        let told = move |told: Told| match told {
            _ if json => println!("{}", document(&told)),
            Told::Offered => eprintln!("offered: shoal-seeder capture golden:{name} IMAGE"),
            Told::Captured(OfferEvent::Begun) => eprintln!("the seeder captures it"),
            Told::Captured(OfferEvent::Sent { chunk_bytes }) => {
                eprintln!("captured; {} were new", HumanBytes(chunk_bytes));
            }
            Told::Ended(why) => eprintln!("{why}; trying again"),
        };
        let runtime = shoal_node::peer::runtime()?;
        let done = runtime.block_on(async {
            tokio::select! {
                () = interrupted() => Ok(Exit::Done),
                ended = offer(options, told) => ended.map(|()| Exit::Done).map_err(Into::into),
            }
        });
        // A tree that is being read is nobody's any more.
        runtime.shutdown_background();
        done
    }
}

fn document(told: &Told) -> serde_json::Value {
    match told {
        Told::Offered => serde_json::json!({ "event": "offered" }),
        Told::Captured(OfferEvent::Begun) => serde_json::json!({ "event": "begun" }),
        Told::Captured(OfferEvent::Sent { chunk_bytes }) => {
            serde_json::json!({ "event": "captured", "new_bytes": chunk_bytes })
        }
        Told::Ended(why) => serde_json::json!({ "event": "ended", "why": why }),
    }
}
