//! `shoal-seeder serve`.

use std::net::SocketAddr;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use clap::Args;
use indicatif::HumanBytes;
use shoal_node::exit::{Exit, interrupted};
use shoal_node::peer::Limits;
use shoal_node::store::Store;
use shoal_proto::rate::Rate;
use shoal_seeder::boot::binary;
use shoal_seeder::catalog::Catalog;
use shoal_seeder::control::answer_requests;
use shoal_seeder::dashboard::Dashboard;
use shoal_seeder::serve::serve;
use shoal_seeder::swarms::Swarms;

use crate::cli::{Common, print_json};

/// How long blocking work may take to notice the end.
const SHUTDOWN_MAX: Duration = Duration::from_secs(1);

#[derive(Debug, Args)]
pub(crate) struct Serve {
    /// Accept nodes on this address (can be repeated)
    #[arg(long, value_name = "ADDR:PORT", default_value = "0.0.0.0:4433")]
    listen: Vec<SocketAddr>,
    /// Answer over HTTP here: the fleet on a page and as figures, pause and halt for who has the token in keys/operator, and
    /// the node's binary for `boot`
    #[arg(long, value_name = "ADDR:PORT")]
    http: Option<SocketAddr>,
    /// Leave once every piece of what was asked for is held by some node too
    #[arg(long)]
    exit_when_replicated: bool,
    /// Send no more than this to all nodes together, such as 50mbit or 10MB/s
    #[arg(long, value_name = "RATE")]
    limit_up: Option<Rate>,
    /// Send no more than this to any one node
    #[arg(long, value_name = "RATE")]
    limit_up_per_peer: Option<Rate>,
    /// Hand out this statically linked shoal-node [default: the one beside this program]
    #[arg(long, value_name = "FILE", requires = "http")]
    node_binary: Option<PathBuf>,
}

/// Waits for ever when there is nobody to answer.
async fn answer_http(dashboard: Option<Dashboard>) -> Result<(), shoal_seeder::dashboard::Error> {
    match dashboard {
        Some(dashboard) => dashboard.answer().await,
        None => std::future::pending().await,
    }
}

impl Serve {
    pub(crate) fn run(self, common: &Common) -> anyhow::Result<Exit> {
        let home = Arc::new(common.home()?);
        let _lock = home.lock()?;
        let catalog = Catalog::open(&home)?;
        let store = Arc::new(Store::open(&home.store_dir())?);
        let runtime = shoal_node::peer::runtime()?;
        let limits = Limits { up: self.limit_up, up_per_peer: self.limit_up_per_peer, down: None };
        let exit = runtime.block_on(async {
            let images: Vec<(String, u64)> = catalog
                .images()
                .map(|image| (image.name.name.to_string(), image.facts.compressed_bytes))
                .collect();
            let binary = match self.http {
                Some(_) => binary::to_hand_out(self.node_binary.as_deref())?,
                None => None,
            };
            let serving = serve(home.clone(), store, catalog, self.listen, limits).await?;
            let ticket = serving.ticket.to_string();
            let swarms = serving.desk.swarms();
            let dashboard = match self.http {
                Some(address) => {
                    let public = binary::routes(binary.map(Arc::new));
                    Some(Dashboard::listen(home.clone(), serving.desk.clone(), address, public).await?)
                }
                None => None,
            };
            let http = dashboard.as_ref().and_then(Dashboard::address);
            if common.json {
                let addresses: Vec<String> =
                    serving.ticket.addresses.iter().map(ToString::to_string).collect();
                print_json(&serde_json::json!({
                    "event": "listening",
                    "peer": serving.ticket.seeder.to_string(),
                    "addresses": addresses,
                    "ticket": ticket,
                    "http": http.map(|address| address.to_string()),
                }))?;
            } else {
                for (name, compressed_bytes) in images {
                    println!("{name}  {}", HumanBytes(compressed_bytes));
                }
                if let Some(address) = http {
                    println!("fleet:      http://{address}/");
                }
                println!("on a node:  shoal-node install '{ticket}' --image NAME --target DIR");
            }
            tokio::select! {
                () = interrupted() => {}
                ended = answer_http(dashboard) => ended?,
                ended = answer_requests(&home, serving.desk.clone()) => ended?,
                replicated = replicated(swarms, common.json, self.exit_when_replicated) => replicated?,
            }
            let sent_bytes = swarms.sent_bytes().await?;
            if common.json {
                print_json(&serde_json::json!({ "event": "left", "sent_bytes": sent_bytes }))?;
            } else {
                println!("sent {}", HumanBytes(sent_bytes));
            }
            Ok(Exit::Done)
        });
        // A capture that is under way is not waited for: it published nothing yet.
        runtime.shutdown_timeout(SHUTDOWN_MAX);
        exit
    }
}

/// Says once that the nodes could do without this seeder, and ends with that if it is to `leave` then.
async fn replicated(swarms: &Swarms, json: bool, leave: bool) -> anyhow::Result<()> {
    swarms.replicated().await?;
    tracing::info!("every piece is held by some node");
    if json {
        print_json(&serde_json::json!({ "event": "replicated" }))?;
    }
    if leave { Ok(()) } else { std::future::pending().await }
}
