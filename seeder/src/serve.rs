//! The main path of a seeder: a peer that answers for the catalog's images and trades their lists when asked.

use std::collections::BTreeMap;
use std::net::{IpAddr, SocketAddr, UdpSocket};
use std::path::Path;
use std::sync::{Arc, Mutex, PoisonError, RwLock};

use serde::{Deserialize, Serialize};
use shoal_node::peer::{Directory, Limits, ListKind, Offer, PeerId};
use shoal_node::store::Store;
use shoal_node::tree::capture::CaptureProgress;
use shoal_proto::cid::Cid;
use shoal_proto::image::{ImageName, RootRecord};
use shoal_proto::release::Channel;
use shoal_proto::rollout::Plan;
use shoal_proto::ticket::{ADDRESSES_MAX, HostPort, Ticket};
use shoal_proto::wire::{Answer, Query};
use tokio::sync::mpsc;

use crate::assign::{Assignments, Captured};
use crate::bindings::{self, Bindings};
use crate::catalog::{self, Catalog, Image};
use crate::cluster::look::{self, Look, Seen};
use crate::cluster::published::{self, ClusterReport, Manifests};
use crate::export::{self, ExportRequest, Exported, export};
use crate::fleet::{self, FleetReport, Overseer, REPORTS_MAX};
use crate::golden::OfferReport;
use crate::home::{self, Home};
use crate::lists::{self, Lists};
use crate::members::{self, Change, NodesReport};
use crate::publish::{self, CaptureRequest, Published, publish_from};
use crate::releases::{self, Decision, ReleaseRecord};
use crate::rollouts::{Act, RolloutReport};
use crate::source::Source;
use crate::swarms::{self, Swarms};

#[derive(Debug, thiserror::Error)]
pub enum Error {
    #[error(transparent)]
    Home(#[from] home::Error),
    #[error(transparent)]
    Swarms(#[from] swarms::Error),
    #[error(transparent)]
    Lists(lists::Error),
    #[error(transparent)]
    Publish(#[from] publish::Error),
    #[error(transparent)]
    Catalog(#[from] catalog::Error),
    #[error(transparent)]
    Export(#[from] export::Error),
    #[error(transparent)]
    Members(#[from] members::Error),
    #[error(transparent)]
    Bindings(#[from] bindings::Error),
    #[error(transparent)]
    Cluster(#[from] published::Error),
    #[error(transparent)]
    Look(#[from] look::LookError),
    #[error(transparent)]
    Releases(#[from] releases::Error),
    #[error(transparent)]
    Fleet(#[from] fleet::Error),
    #[error("image {name} cannot be served")]
    Image {
        name: ImageName,
        #[source]
        source: lists::Error,
    },
}

/// A seeder at work.
#[derive(Debug)]
pub struct Serving {
    /// What a node needs to join; names no image.
    pub ticket: Ticket,
    pub desk: Arc<Desk>,
}

/// Where new images are made, and decisions about members taken, while the old ones are served.
#[derive(Debug)]
pub struct Desk {
    home: Arc<Home>,
    store: Arc<Store>,
    lists: Lists,
    shelf: Arc<Shelf>,
    catalog: Mutex<Catalog>,
    swarms: Arc<Swarms>,
    overseer: Overseer,
    /// Held while a decision is taken.
    deciding: tokio::sync::Mutex<()>,
}

/// Starts to serve the images of `catalog` out of `store`.
pub async fn serve(
    home: Arc<Home>,
    store: Arc<Store>,
    catalog: Catalog,
    listen: Vec<SocketAddr>,
    limits: Limits,
) -> Result<Serving, Error> {
    let lists = Lists::open(&home).map_err(Error::Lists)?;
    let shelf = Arc::new(Shelf::default());
    for image in catalog.images() {
        shelf.put(image, &lists, &store)?;
    }
    shelf.assign(Assignments::new(published::load(&home)?, Bindings::load(&home)?, home.publisher.clone()));
    let (reports_in, reports) = mpsc::channel(REPORTS_MAX);
    let swarms =
        Swarms::start(home.clone(), store.clone(), shelf.clone(), listen, limits, reports_in).await?;
    let swarms = Arc::new(swarms);
    let overseer = Overseer::start(home.clone(), swarms.clone(), reports)?;
    let ticket = home.ticket(swarms.addresses(), None, members::load(&home)?.number)?;
    let (catalog, deciding) = (Mutex::new(catalog), tokio::sync::Mutex::new(()));
    let desk = Arc::new(Desk { home, store, lists, shelf, catalog, swarms, overseer, deciding });
    Ok(Serving { ticket, desk })
}

impl Desk {
    pub fn swarms(&self) -> &Swarms {
        &self.swarms
    }

    /// Says who may join and who has; after `change`, if there is one, which everybody who is connected then knows of.
    pub async fn nodes(&self, change: Option<&Change>) -> Result<NodesReport, Error> {
        let _deciding = self.deciding.lock().await;
        for heard in self.swarms.members() {
            members::catch_up(&self.home, &heard)?;
        }
        let members = match change {
            Some(change) => members::decide(&self.home, change)?,
            None => members::load(&self.home)?,
        };
        if let Some(change) = change {
            self.shelf.bind(members::bind(&self.home, change)?);
        }
        if let Some(signed) = members::sign(&self.home, &members).filter(|_| change.is_some()) {
            self.swarms.set_members(&signed).await?;
        }
        let bound = Bindings::load(&self.home)?;
        Ok(NodesReport::new(&members, &bound, &self.swarms.status().await?))
    }

    /// Publishes a cluster file and its overrides; every host that asks from now on is told so.
    pub fn publish_cluster(
        &self,
        file: &Path,
        progress: &dyn CaptureProgress,
    ) -> Result<ClusterReport, Error> {
        let mut catalog = self.catalog.lock().unwrap_or_else(PoisonError::into_inner);
        let (cluster, report) =
            published::publish_cluster(&self.home, &self.store, &mut catalog, file, progress)?;
        for name in cluster.overrides() {
            let image = catalog.find(&name.image_name()).expect("just published");
            self.shelf.put(image, &self.lists, &self.store)?;
        }
        let bound = Bindings::load(&self.home)?;
        self.shelf.assign(Assignments::new(Some(cluster), bound, self.home.publisher.clone()));
        Ok(report)
    }

    /// Says where the paths of a host come from, or how it differs from an image.
    pub fn look(&self, look: &Look) -> Result<Seen, Error> {
        let catalog = self.catalog.lock().unwrap_or_else(PoisonError::into_inner);
        let cluster = published::load(&self.home)?;
        let mut manifests = Manifests::new(&catalog, &self.store);
        Ok(look::look(cluster.as_ref(), &mut manifests, look)?)
    }

    /// Releases an image or withdraws a channel, and tells the swarm.
    pub async fn release(&self, decision: &Decision) -> Result<ReleaseRecord, Error> {
        let _deciding = self.deciding.lock().await;
        let record = releases::decide(&self.home, decision)?;
        self.overseer.restate().await?;
        Ok(record)
    }

    /// Begins to bring the newest release of a channel to it.
    pub async fn start_rollout(&self, plan: Plan) -> Result<RolloutReport, Error> {
        let _deciding = self.deciding.lock().await;
        Ok(self.overseer.start_rollout(plan).await?)
    }

    /// Pauses a rollout, or lets it go on.
    pub async fn act(&self, channel: Channel, act: Act) -> Result<RolloutReport, Error> {
        Ok(self.overseer.act(channel, act).await?)
    }

    /// The fleet as its nodes report it.
    pub async fn fleet(&self) -> Result<FleetReport, Error> {
        Ok(self.overseer.status().await?)
    }

    /// Takes a step in the rotation of the swarm secret.
    pub async fn rotate(&self, step: Step) -> Result<RotationReport, Error> {
        let _deciding = self.deciding.lock().await;
        match step {
            Step::Rotate => self.swarms.rotate().await?,
            Step::Finish => self.swarms.finish().await?,
        }
        let addresses = self.swarms.addresses().iter().map(ToString::to_string).collect();
        Ok(RotationReport { rotating: self.swarms.is_rotating(), addresses })
    }

    /// What golden clients offer.
    pub async fn offers(&self) -> Result<Vec<OfferReport>, Error> {
        let connected = self.swarms.connected().await?;
        Ok(self.swarms.offers().list(&connected))
    }

    /// Captures a tree, publishes it and offers it at once. One capture at a time. To be called from a thread of the
    /// runtime that may block.
    pub fn capture(
        &self,
        request: &CaptureRequest,
        progress: &dyn CaptureProgress,
    ) -> Result<Published, Error> {
        let golden = match &request.source {
            Source::Golden(name) => {
                let connected = tokio::runtime::Handle::current().block_on(self.swarms.connected())?;
                let found = self.swarms.offers().find(name, &connected).map_err(publish::Error::from);
                Some(found?)
            }
            _ => None,
        };
        let mut catalog = self.catalog.lock().unwrap_or_else(PoisonError::into_inner);
        let published =
            publish_from(golden.as_ref(), &self.home, &self.store, &mut catalog, request, progress);
        if let (Err(_), Some(golden)) = (&published, &golden) {
            // What is still under way in its conversation is of no use.
            self.swarms.offers().drop_broken(golden);
        }
        let published = published?;
        let image = catalog.find(&request.name).expect("just published");
        self.shelf.put(image, &self.lists, &self.store)?;
        Ok(published)
    }

    /// Writes the tree of an image.
    pub fn export(&self, request: &ExportRequest) -> Result<Exported, Error> {
        let image = {
            let catalog = self.catalog.lock().unwrap_or_else(PoisonError::into_inner);
            catalog.find(&request.name)?.clone()
        };
        Ok(export(&self.store, &image, &request.to)?)
    }
}

/// A step in the rotation of the swarm secret.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Step {
    /// Draw the next secret, and serve those who know either.
    Rotate,
    /// Serve those who know the old one no more.
    Finish,
}

/// How far the rotation of the swarm secret is, as `secret --json` prints it.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct RotationReport {
    /// Whether the old secret still opens the swarm.
    pub rotating: bool,
    /// Where the running seeder listens.
    pub addresses: Vec<String>,
}

/// The images on offer, with the piece lists that they are traded by.
#[derive(Debug, Default)]
pub struct Shelf(RwLock<Offers>);

#[derive(Debug, Default)]
struct Offers {
    answers: BTreeMap<Cid, Answer>,
    names: BTreeMap<ImageName, Cid>,
    lists: BTreeMap<Cid, Offer>,
    /// Confidential images, and the lists of these alone: whose they are.
    confidential: BTreeMap<Cid, ImageName>,
    assignments: Assignments,
}

impl Shelf {
    /// Offers an image, under its name from now on.
    pub fn put(&self, image: &Image, lists: &Lists, store: &Store) -> Result<(), Error> {
        let failed = |source| Error::Image { name: image.name.name.clone(), source };
        let content = lists.content(image, store).map_err(failed)?;
        let mut offers = self.0.write().unwrap_or_else(PoisonError::into_inner);
        let private = image.facts.confidential;
        let name = &image.name.name;
        for (list, kind) in [(image.root.manifest(), ListKind::Manifest), (&content, ListKind::Content)] {
            let shared = offers.lists.get(&list.name()).is_some_and(|known| !known.private);
            if private && !shared {
                offers.confidential.insert(list.name(), name.clone());
            } else {
                offers.confidential.remove(&list.name());
            }
            let private = private && !shared;
            offers.lists.insert(list.name(), Offer { list: list.clone(), kind, private });
        }
        if private {
            offers.confidential.insert(image.name.image, name.clone());
        } else {
            offers.confidential.remove(&image.name.image);
        }
        let answer = Answer {
            name: Some(image.signed_name.clone()),
            root: Some(image.signed_root.clone()),
            ..Answer::nothing(Query::Image(image.name.image))
        };
        offers.answers.insert(image.name.image, answer);
        offers.names.insert(image.name.name.clone(), image.name.image);
        Ok(())
    }

    /// Tells hosts from now on what these say.
    fn assign(&self, assignments: Assignments) {
        self.0.write().unwrap_or_else(PoisonError::into_inner).assignments = assignments;
    }

    fn bind(&self, bound: Bindings) {
        self.0.write().unwrap_or_else(PoisonError::into_inner).assignments.bind(bound);
    }
}

impl Offers {
    /// Whether `asker` may have what is of this image or list.
    fn may_have(&self, asker: &PeerId, what: &Cid) -> bool {
        self.confidential.get(what).is_none_or(|name| self.assignments.entitles(asker, name))
    }
}

impl Captured for Offers {
    fn root(&self, name: &ImageName) -> Option<(Cid, RootRecord, bool)> {
        let image = self.names.get(name)?;
        // Signed here, so it can be read.
        let root = RootRecord::decode(self.answers.get(image)?.root.as_ref()?.payload()).ok()?;
        Some((*image, root, self.confidential.contains_key(image)))
    }
}

impl Directory for Shelf {
    fn answer(&self, query: &Query, asker: &PeerId) -> Option<Answer> {
        let offers = self.0.read().unwrap_or_else(PoisonError::into_inner);
        let image = match query {
            Query::Host(host) => return offers.assignments.answer(host, asker, &*offers),
            Query::Name(name) => offers.names.get(name)?,
            Query::Image(image) => image,
        };
        let answer = offers.answers.get(image).filter(|_| offers.may_have(asker, image));
        answer.map(|answer| Answer { query: query.clone(), ..answer.clone() })
    }

    fn offer(&self, list: &Cid, asker: &PeerId) -> Option<Offer> {
        let offers = self.0.read().unwrap_or_else(PoisonError::into_inner);
        offers.lists.get(list).filter(|_| offers.may_have(asker, list)).cloned()
    }
}

/// The addresses that a ticket should name, the likeliest first: what the machine uses to reach others, then what it
/// listens on besides; loopback only when there is nothing else.
pub(crate) fn reachable(listening: &[SocketAddr]) -> Vec<HostPort> {
    let outward = outward_ip();
    let mut addresses: Vec<SocketAddr> = listening.to_vec();
    if addresses.iter().any(|address| !address.ip().is_loopback()) {
        addresses.retain(|address| !address.ip().is_loopback());
    }
    addresses.sort_by_key(|address| (Some(address.ip()) != outward, address.is_ipv6()));
    addresses.truncate(ADDRESSES_MAX);
    addresses
        .into_iter()
        .map(|address| HostPort { host: address.ip().to_string(), port: address.port() })
        .collect()
}

/// The address from which this machine would speak to the outside: asks the routing table, sends nothing.
fn outward_ip() -> Option<IpAddr> {
    let socket = UdpSocket::bind("0.0.0.0:0").ok()?;
    // TEST-NET-1 (RFC 5737); connecting a datagram socket only selects a route.
    socket.connect("192.0.2.1:9").ok()?;
    Some(socket.local_addr().ok()?.ip())
}
