//! `shoal-seeder export`.

use std::path::{Path, PathBuf};

use anyhow::Context;
use clap::Args;
use indicatif::HumanBytes;
use shoal_node::durable;
use shoal_node::exit::Exit;
use shoal_node::store::Store;
use shoal_proto::image::ImageName;
use shoal_seeder::catalog::Catalog;
use shoal_seeder::control;
use shoal_seeder::export::{Destination, ExportRequest, export};
use shoal_seeder::home::Error as HomeError;

use crate::cli::{Common, print_json};

/// Most lines about what the destination could not hold.
const LOST_SHOWN_MAX: usize = 20;

#[derive(Debug, Args)]
#[command(group = clap::ArgGroup::new("to").required(true))]
pub(crate) struct Export {
    /// The image
    name: ImageName,
    /// An empty directory for its tree; made when there is none
    #[arg(group = "to")]
    dir: Option<PathBuf>,
    /// Write a tar instead; `-` is standard output
    #[arg(long, value_name = "FILE", group = "to")]
    tar: Option<PathBuf>,
}

impl Export {
    pub(crate) fn run(self, common: &Common) -> anyhow::Result<Exit> {
        let to_output = self.tar.as_deref() == Some(Path::new("-"));
        let to = match (self.dir, self.tar) {
            (Some(dir), _) => Destination::Directory(absolute(&dir)?),
            (None, Some(_)) if to_output => {
                if std::io::IsTerminal::is_terminal(&std::io::stdout()) {
                    anyhow::bail!("standard output is a terminal, and a tar goes there: redirect it");
                }
                Destination::Output(format!("/proc/{}/fd/1", std::process::id()).into())
            }
            (None, Some(tar)) => Destination::Tar(absolute(&tar)?),
            (None, None) => unreachable!("one of them is required"),
        };
        let request = ExportRequest { name: self.name, to };
        let home = common.home()?;
        let exported = match home.lock() {
            Ok(_lock) => {
                let store = Store::open(&home.store_dir())?;
                export(&store, Catalog::open(&home)?.find(&request.name)?, &request.to)?
            }
            // The store is the running seeder's.
            Err(HomeError::File(durable::Error::InUse { .. })) => {
                shoal_node::peer::runtime()?.block_on(control::export(&home, &request))?
            }
            Err(error) => return Err(error.into()),
        };
        for lost in exported.lost.iter().take(LOST_SHOWN_MAX) {
            eprintln!("cannot keep {lost}");
        }
        if exported.losses > LOST_SHOWN_MAX as u64 {
            eprintln!("{} attributes could not be kept", exported.losses);
        }
        if to_output {
            return Ok(Exit::Done);
        }
        if common.json {
            print_json(&exported)?;
        } else {
            let bytes = HumanBytes(exported.bytes);
            println!(
                "{}: {} entries, {bytes} in {:.1} s",
                exported.name, exported.entries, exported.elapsed_s
            );
        }
        Ok(Exit::Done)
    }
}

fn absolute(path: &Path) -> anyhow::Result<PathBuf> {
    std::path::absolute(path).with_context(|| format!("cannot write {}", path.display()))
}
