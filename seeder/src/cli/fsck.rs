//! `shoal-seeder fsck` and `shoal-seeder rm`.

use clap::Args;
use indicatif::HumanBytes;
use shoal_node::exit::Exit;
use shoal_node::store::Store;
use shoal_proto::image::ImageName;
use shoal_seeder::catalog::Catalog;

use crate::cli::{Common, print_json};

#[derive(Debug, Args)]
pub(crate) struct Fsck {}

#[derive(Debug, Args)]
pub(crate) struct Remove {
    /// The image to remove
    name: ImageName,
}

impl Fsck {
    pub(crate) fn run(self, common: &Common) -> anyhow::Result<Exit> {
        let home = common.home()?;
        let _lock = home.lock()?;
        let store = Store::open(&home.store_dir())?;
        let found = store.fsck(true)?;
        store.sync()?;
        if common.json {
            let damaged: Vec<String> = found.damaged.iter().map(ToString::to_string).collect();
            print_json(&serde_json::json!({
                "blocks": found.blocks,
                "damaged": damaged,
                "dead_bytes": found.dead_bytes,
            }))?;
        } else {
            for cid in &found.damaged {
                println!("damaged  {cid}");
            }
            let dead = HumanBytes(found.dead_bytes);
            println!("{} blocks, {} damaged, {dead} that no block needs", found.blocks, found.damaged.len());
            if !found.damaged.is_empty() {
                println!("capture the trees again: what is damaged is stored anew");
            }
        }
        Ok(if found.damaged.is_empty() { Exit::Done } else { Exit::VerificationFailed })
    }
}

impl Remove {
    pub(crate) fn run(self, common: &Common) -> anyhow::Result<Exit> {
        let home = common.home()?;
        let _lock = home.lock()?;
        Catalog::open(&home)?.remove(&self.name)?;
        if common.json {
            print_json(&serde_json::json!({ "removed": self.name.as_str() }))?;
        } else {
            println!("removed {}", self.name);
        }
        Ok(Exit::Done)
    }
}
