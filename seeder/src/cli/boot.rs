//! `shoal-seeder boot`.

use std::path::PathBuf;

use clap::{Args, ValueEnum};
use shoal_node::exit::{Exit, Usage};
use shoal_proto::image::ImageName;
use shoal_seeder::boot::binary::{NODE_PATH, NodeBinary};
use shoal_seeder::boot::{self, Installer};
use shoal_seeder::catalog::Catalog;
use shoal_seeder::members;

use crate::cli::{Common, print_json};

#[derive(Debug, Args)]
pub(crate) struct Boot {
    /// The installer that is to run the snippet
    installer: Kind,
    /// Replace the fresh system by this image
    #[arg(long, value_name = "NAME")]
    image: ImageName,
    /// Reach the seeder at this host instead of the addresses it listens on
    #[arg(long, value_name = "HOST", value_parser = super::ticket::parse_host)]
    host: Option<String>,
    /// Fetch the node's binary from here instead of the running seeder
    #[arg(long, value_name = "URL")]
    url: Option<String>,
    /// Hand out this statically linked shoal-node [default: the one beside this program]
    #[arg(long, value_name = "FILE")]
    node_binary: Option<PathBuf>,
}

#[derive(Clone, Copy, Debug, ValueEnum)]
enum Kind {
    /// A %post section for Anaconda
    Kickstart,
    /// A late_command for Debian's installer
    Preseed,
}

impl Boot {
    pub(crate) fn run(self, common: &Common) -> anyhow::Result<Exit> {
        let home = common.home()?;
        Catalog::open(&home)?.find(&self.image)?;
        let addresses = home.addresses(self.host.as_deref())?;
        let url = match self.url {
            Some(url) => check_url(url)?,
            None => {
                let port = home.http_port()?;
                let host = &addresses[0].host;
                let host = if host.contains(':') { format!("[{host}]") } else { host.clone() };
                format!("http://{host}:{port}{NODE_PATH}")
            }
        };
        let sha256 = NodeBinary::read(self.node_binary.as_deref())?.sha256().to_owned();
        let ticket = home.ticket(addresses, None, members::load(&home)?.number)?;
        let boot = boot::Boot { url, sha256, ticket, image: self.image };
        let installer = match self.installer {
            Kind::Kickstart => Installer::Kickstart,
            Kind::Preseed => Installer::Preseed,
        };
        let snippet = boot.snippet(installer);
        if common.json {
            print_json(&serde_json::json!({ "snippet": snippet, "url": boot.url, "sha256": boot.sha256 }))?;
        } else {
            print!("{snippet}");
        }
        Ok(Exit::Done)
    }
}

/// It stands in single quotes in a shell's script.
fn check_url(url: String) -> anyhow::Result<String> {
    let plain = url.chars().all(|c| c.is_ascii_graphic() && !"'\"\\`$".contains(c));
    if plain && (url.starts_with("http://") || url.starts_with("https://")) {
        return Ok(url);
    }
    Err(Usage(format!("{url:?} is no URL that begins with http:// or https://")).into())
}
