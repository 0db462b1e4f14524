//! Golden clients: machines that offer their trees to the running seeder, each under a name.
//!
//! An offer is a session with a member of the swarm, kept as long as that is connected; a later offer of the same name
//! by the same machine takes its place. Where two machines offer under one name, the operator says which is meant.

use std::collections::{BTreeMap, BTreeSet};
use std::io::{BufReader, BufWriter};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use serde::{Deserialize, Serialize};
use shoal_node::clock;
use shoal_node::peer::{Peer, Session};
use shoal_node::tree::capture::remote::{RemoteTree, capture_remote};
use shoal_node::tree::capture::{BlockSink, CaptureError, CaptureOptions, CaptureProgress, Captured};
use shoal_proto::image::ImageName;

const BUFFER_BYTES: usize = 256 << 10;
/// Offers that are kept; further ones are refused.
const OFFERS_MAX: usize = 1024;

#[derive(Debug, thiserror::Error)]
pub enum Error {
    #[error("nobody offers {name}; {}", offered(.known))]
    Unknown { name: String, known: Vec<String> },
    #[error("several machines offer {name}: say golden:{name}@KEY with the key of one of {}", .peers.join(", "))]
    Several { name: String, peers: Vec<String> },
    #[error("a golden client offers its tree to a running seeder: start `shoal-seeder serve`")]
    NotServing,
}

fn offered(known: &[String]) -> String {
    match known.is_empty() {
        true => {
            "there are no offers (`shoal-node offer DIR --to TICKET` on the machine makes one)".to_owned()
        }
        false => format!("offers: {}", known.join(", ")),
    }
}

/// An offer, as `offers --json` prints it. Times in seconds.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct OfferReport {
    pub name: String,
    pub peer: String,
    pub host: String,
    pub path: String,
    /// Seconds since 1970.
    pub since_s: u64,
}

/// The offers of golden clients.
#[derive(Debug, Default)]
pub struct Offers(Mutex<BTreeMap<Key, Offer>>);

/// Name and peer.
type Key = (String, String);

#[derive(Clone, Debug)]
struct Offer {
    report: OfferReport,
    tree: Arc<RemoteTree>,
}

impl Offers {
    /// Takes the offers that come to `peer`, as long as it runs.
    pub(crate) async fn take_from(self: Arc<Self>, peer: &Peer) -> Result<(), shoal_node::peer::Error> {
        let mut sessions = peer.take_sessions().await?;
        tokio::spawn(async move {
            while let Some(session) = sessions.recv().await {
                let offers = self.clone();
                // Hears what is offered, which may take a machine long to say.
                tokio::task::spawn_blocking(move || offers.take(session));
            }
        });
        Ok(())
    }

    fn take(&self, session: Session) {
        let peer = session.peer.to_string();
        let (reader, writer) = session.split();
        let reader = Box::new(BufReader::with_capacity(BUFFER_BYTES, reader));
        let writer = Box::new(BufWriter::with_capacity(BUFFER_BYTES, writer));
        let tree = match RemoteTree::accept(reader, writer) {
            Ok(tree) => tree,
            Err(error) => return tracing::warn!(%peer, %error, "an offer cannot be understood"),
        };
        let offer = tree.offer();
        if offer.name.parse::<ImageName>().is_err() {
            return tracing::warn!(%peer, name = offer.name, "an offer has a name that is none");
        }
        let report = OfferReport {
            name: offer.name.clone(),
            peer: peer.clone(),
            host: offer.host.clone(),
            path: offer.path.clone(),
            since_s: clock::unix_s(),
        };
        let mut offers = self.lock();
        let key = (report.name.clone(), peer);
        if offers.len() >= OFFERS_MAX && !offers.contains_key(&key) {
            return tracing::warn!(peer = key.1, name = key.0, "an offer is refused: there are too many");
        }
        tracing::info!(
            peer = key.1,
            name = key.0,
            host = report.host,
            path = report.path,
            "a tree is offered"
        );
        offers.insert(key, Offer { report, tree: Arc::new(tree) });
    }

    fn lock(&self) -> MutexGuard<'_, BTreeMap<Key, Offer>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// What is offered, by machines that are connected.
    pub(crate) fn list(&self, connected: &BTreeSet<String>) -> Vec<OfferReport> {
        let mut offers = self.lock();
        offers.retain(|(_, peer), _| connected.contains(peer));
        offers.values().map(|offer| offer.report.clone()).collect()
    }

    /// The tree that is offered as `NAME` or `NAME@PEER` by a machine that is connected.
    pub(crate) fn find(&self, wanted: &str, connected: &BTreeSet<String>) -> Result<GoldenTree, Error> {
        let mut known: Vec<String> = self.list(connected).into_iter().map(|offer| offer.name).collect();
        known.dedup();
        let (name, peer) = wanted.split_once('@').map_or((wanted, None), |(name, peer)| (name, Some(peer)));
        let offers = self.lock();
        let meant = offers.values().filter(|offer| offer.report.name == name);
        let meant: Vec<&Offer> =
            meant.filter(|offer| peer.is_none_or(|peer| offer.report.peer == peer)).collect();
        match meant[..] {
            [Offer { report, tree }] => Ok(GoldenTree { report: report.clone(), tree: tree.clone() }),
            [] => Err(Error::Unknown { name: wanted.to_owned(), known }),
            _ => {
                let peers = meant.iter().map(|offer| offer.report.peer.clone()).collect();
                Err(Error::Several { name: name.to_owned(), peers })
            }
        }
    }

    /// An offer whose conversation went wrong counts no more: its machine opens another one.
    pub(crate) fn drop_broken(&self, golden: &GoldenTree) {
        let key = (golden.report.name.clone(), golden.report.peer.clone());
        let mut offers = self.lock();
        if offers.get(&key).is_some_and(|offer| Arc::ptr_eq(&offer.tree, &golden.tree)) {
            offers.remove(&key);
        }
    }
}

/// The tree of a golden client.
#[derive(Clone, Debug)]
pub struct GoldenTree {
    pub(crate) report: OfferReport,
    tree: Arc<RemoteTree>,
}

impl GoldenTree {
    /// As `images` shows where an image is from.
    pub(crate) fn describe(&self) -> String {
        let OfferReport { name, peer, host, path, .. } = &self.report;
        format!("golden:{name} ({host}:{path}, {peer})")
    }

    /// Captures it as it is now; and how many bytes travelled.
    pub(crate) fn capture(
        &self,
        excludes: &[String],
        options: &CaptureOptions,
        sink: &dyn BlockSink,
        progress: &dyn CaptureProgress,
    ) -> Result<(Captured, u64), CaptureError> {
        let before = self.tree.received_bytes();
        let captured = capture_remote(&self.tree, excludes, options, sink, progress)?;
        Ok((captured, self.tree.received_bytes() - before))
    }
}
