//! `shoal-seeder capture`.

use std::path::PathBuf;

use anyhow::Context;
use clap::Args;
use indicatif::HumanBytes;
use shoal_node::durable;
use shoal_node::exit::Exit;
use shoal_node::store::Store;
use shoal_proto::image::ImageName;
use shoal_seeder::catalog::Catalog;
use shoal_seeder::control;
use shoal_seeder::home::Error as HomeError;
use shoal_seeder::publish::{CaptureRequest, publish};

use crate::cli::rules::Rules;
use crate::cli::{Common, print_json, runtime};

#[derive(Debug, Args)]
pub(crate) struct Capture {
    /// The directory whose tree becomes the image
    source: PathBuf,
    /// What to call the image; an image of this name is replaced and taken as parent
    name: ImageName,
    #[command(flatten)]
    rules: Rules,
}

impl Capture {
    pub(crate) fn run(self, common: &Common) -> anyhow::Result<Exit> {
        let excludes = self.rules.read()?;
        let source = self
            .source
            .canonicalize()
            .with_context(|| format!("cannot capture {}", self.source.display()))?;
        let request = CaptureRequest { source, name: self.name, excludes };
        let home = common.home()?;
        let published = match home.lock() {
            Ok(_lock) => {
                let store = Store::open(&home.store_dir())?;
                publish(&home, &store, &mut Catalog::open(&home)?, &request)?
            }
            // A seeder that serves captures by itself, and offers the image at once.
            Err(HomeError::File(durable::Error::InUse { .. })) => {
                runtime()?.block_on(control::capture(&home, &request))?
            }
            Err(error) => return Err(error.into()),
        };
        if common.json {
            print_json(&published)?;
        } else {
            let report = &published.report;
            let left_out = [
                (report.sockets, "sockets"),
                (report.vanished, "entries that vanished"),
                (report.mounts, "mounted file systems"),
            ];
            for (count, what) in left_out.into_iter().filter(|(count, _)| *count > 0) {
                println!("left out {count} {what}");
            }
            println!(
                "{}: {} entries, {} in {} blocks ({} compressed, {} of it new) in {:.1} s",
                published.name,
                published.report.entries,
                HumanBytes(published.report.raw_bytes),
                published.report.blocks,
                HumanBytes(published.report.compressed_bytes),
                HumanBytes(published.report.new_compressed_bytes),
                published.report.elapsed_s,
            );
            println!("image {}", published.report.image);
        }
        Ok(Exit::Done)
    }
}
