//! `shoal-seeder release` and `releases`.

use std::io::Write;
use std::time::Duration;

use clap::Args;
use shoal_node::durable;
use shoal_node::exit::Exit;
use shoal_proto::image::ImageName;
use shoal_proto::release::Channel;
use shoal_seeder::catalog::Catalog;
use shoal_seeder::control;
use shoal_seeder::home::Error as HomeError;
use shoal_seeder::releases::{self, Decision, Named};

use crate::cli::{Common, print_json};

#[derive(Debug, Args)]
pub(crate) struct Release {
    /// What nodes follow, such as stable
    channel: Channel,
    /// The image that the channel is at from now on
    #[arg(required_unless_present = "withdraw", conflicts_with = "withdraw")]
    image: Option<ImageName>,
    /// Take the newest release back: nobody is to go on towards it
    #[arg(long)]
    withdraw: bool,
}

#[derive(Debug, Args)]
pub(crate) struct Releases {
    /// Only of this channel
    channel: Option<Channel>,
}

impl Release {
    pub(crate) fn run(self, common: &Common) -> anyhow::Result<Exit> {
        let home = common.home()?;
        let image = match self.image {
            Some(name) => {
                let catalog = Catalog::open(&home)?;
                let image = catalog.find(&name)?;
                Some(Named { image: image.name.image, name })
            }
            None => None,
        };
        let decision = Decision { channel: self.channel, image };
        let record = match home.lock() {
            Ok(_lock) => releases::decide(&home, &decision)?,
            Err(HomeError::File(durable::Error::InUse { .. })) => {
                shoal_node::peer::runtime()?.block_on(control::release(&home, decision.clone()))?
            }
            Err(error) => return Err(error.into()),
        };
        let channel = &decision.channel;
        if common.json {
            print_json(&record)?;
        } else if let (Some(name), Some(image)) = (&record.name, &record.image) {
            println!("{channel} is at release {}, {name} ({image})", record.number);
            println!(
                "nodes fetch it; they apply it as a rollout says:  shoal-seeder rollout start {channel}"
            );
        } else {
            println!(
                "{channel} is withdrawn (release {}): nobody goes on towards its last image",
                record.number
            );
        }
        Ok(Exit::Done)
    }
}

impl Releases {
    pub(crate) fn run(self, common: &Common) -> anyhow::Result<Exit> {
        let mut channels = releases::load(&common.home()?)?;
        if let Some(channel) = self.channel {
            channels.retain(|record| record.channel == channel.to_string());
            if channels.is_empty() {
                return Err(releases::Error::Unknown(channel).into());
            }
        }
        if common.json {
            print_json(&serde_json::json!({ "channels": channels }))?;
            return Ok(Exit::Done);
        }
        let mut out = std::io::stdout().lock();
        for record in channels {
            for release in record.releases.iter().rev() {
                let what = release.name.as_deref().unwrap_or("withdrawn");
                let when = humantime::format_rfc3339_seconds(
                    std::time::UNIX_EPOCH + Duration::from_secs(release.decided_s),
                );
                writeln!(out, "{:<16} {:>5}  {when}  {what}", record.channel, release.number)?;
            }
        }
        out.flush()?;
        Ok(Exit::Done)
    }
}
