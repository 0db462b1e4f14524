//! `shoal-seeder serve`.

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use clap::Args;
use indicatif::HumanBytes;
use shoal_node::exit::{Exit, interrupted};
use shoal_node::peer::Limits;
use shoal_node::store::Store;
use shoal_proto::rate::Rate;
use shoal_seeder::catalog::Catalog;
use shoal_seeder::control::answer_requests;
use shoal_seeder::serve::serve;

use crate::cli::{Common, print_json, runtime};

/// How long blocking work may take to notice the end.
const SHUTDOWN_MAX: Duration = Duration::from_secs(1);

#[derive(Debug, Args)]
pub(crate) struct Serve {
    /// Accept nodes on this address (can be repeated)
    #[arg(long, value_name = "ADDR:PORT", default_value = "0.0.0.0:4433")]
    listen: Vec<SocketAddr>,
    /// Leave once every piece of what was asked for is held by some node too
    #[arg(long)]
    exit_when_replicated: bool,
    /// Send no more than this to all nodes together, such as 50mbit or 10MB/s
    #[arg(long, value_name = "RATE")]
    limit_up: Option<Rate>,
    /// Send no more than this to any one node
    #[arg(long, value_name = "RATE")]
    limit_up_per_peer: Option<Rate>,
}

impl Serve {
    pub(crate) fn run(self, common: &Common) -> anyhow::Result<Exit> {
        let home = Arc::new(common.home()?);
        let _lock = home.lock()?;
        let catalog = Catalog::open(&home)?;
        let store = Arc::new(Store::open(&home.store_dir())?);
        let runtime = runtime()?;
        let limits = Limits { up: self.limit_up, up_per_peer: self.limit_up_per_peer, down: None };
        let exit = runtime.block_on(async {
            let images: Vec<(String, u64)> = catalog
                .images()
                .map(|image| (image.name.name.to_string(), image.facts.compressed_bytes))
                .collect();
            let serving = serve(home.clone(), store, catalog, self.listen, limits).await?;
            let ticket = home.ticket(serving.addresses.clone(), None).to_string();
            if common.json {
                let addresses: Vec<String> = serving.addresses.iter().map(ToString::to_string).collect();
                print_json(&serde_json::json!({
                    "event": "listening",
                    "peer": serving.peer.id().to_string(),
                    "addresses": addresses,
                    "ticket": ticket,
                }))?;
            } else {
                for (name, compressed_bytes) in images {
                    println!("{name}  {}", HumanBytes(compressed_bytes));
                }
                println!("on a node:  shoal-node install '{ticket}' --image NAME --target DIR");
            }
            tokio::select! {
                () = interrupted() => {}
                ended = answer_requests(&home, serving.desk.clone()) => ended?,
                replicated = serving.peer.replicated(), if self.exit_when_replicated => {
                    replicated?;
                    tracing::info!("every piece is held by some node: leaving");
                }
            }
            let traffic = serving.peer.status().await?.traffic;
            if common.json {
                print_json(&serde_json::json!({ "event": "left", "sent_bytes": traffic.sent_bytes }))?;
            } else {
                println!("sent {}", HumanBytes(traffic.sent_bytes));
            }
            Ok(Exit::Done)
        });
        // A capture that is under way is not waited for: it published nothing yet.
        runtime.shutdown_timeout(SHUTDOWN_MAX);
        exit
    }
}
