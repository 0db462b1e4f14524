//! The main path of a seeder: a peer that answers for the catalog's images and trades their lists when asked.

use std::collections::BTreeMap;
use std::net::{IpAddr, SocketAddr, UdpSocket};
use std::sync::{Arc, Mutex, PoisonError, RwLock};

use shoal_node::peer::{self, Directory, Limits, ListKind, Offer, Peer, PeerConfig, PeerRole};
use shoal_node::store::Store;
use shoal_node::tree::capture::CaptureProgress;
use shoal_proto::cid::Cid;
use shoal_proto::image::{ImageName, PieceList};
use shoal_proto::ticket::{ADDRESSES_MAX, HostPort};
use shoal_proto::wire::{Answer, Query};
use shoal_proto::zone::Zone;

use crate::catalog::{Catalog, Image};
use crate::home::{self, Home};
use crate::lists::{self, Lists};
use crate::publish::{self, CaptureRequest, Published, publish};

#[derive(Debug, thiserror::Error)]
pub enum Error {
    #[error(transparent)]
    Home(#[from] home::Error),
    #[error(transparent)]
    Peer(#[from] peer::Error),
    #[error(transparent)]
    Lists(lists::Error),
    #[error(transparent)]
    Publish(#[from] publish::Error),
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
    pub peer: Peer,
    /// Where nodes reach it.
    pub addresses: Vec<HostPort>,
    pub desk: Arc<Desk>,
}

/// Where new images are made while the old ones are served.
#[derive(Debug)]
pub struct Desk {
    home: Arc<Home>,
    store: Arc<Store>,
    lists: Lists,
    shelf: Arc<Shelf>,
    catalog: Mutex<Catalog>,
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
    let config = PeerConfig {
        key: home.peer.clone(),
        secret: home.secret.clone(),
        role: PeerRole::Seeder,
        listen,
        rack: Zone::UNKNOWN,
        bootstrap: Vec::new(),
        limits,
    };
    let peer = Peer::start(config, store.clone(), store.clone(), shelf.clone()).await?;
    let addresses = reachable(peer.addresses());
    home.write_addresses(&addresses)?;
    let desk = Arc::new(Desk { home, store, lists, shelf, catalog: Mutex::new(catalog) });
    Ok(Serving { peer, addresses, desk })
}

impl Desk {
    /// Captures a tree, publishes it and offers it at once. One capture at a time.
    pub fn capture(
        &self,
        request: &CaptureRequest,
        progress: &dyn CaptureProgress,
    ) -> Result<Published, Error> {
        let mut catalog = self.catalog.lock().unwrap_or_else(PoisonError::into_inner);
        let published = publish(&self.home, &self.store, &mut catalog, request, progress)?;
        let image = catalog.find(&request.name).expect("just published");
        self.shelf.put(image, &self.lists, &self.store)?;
        Ok(published)
    }
}

/// The images on offer, with the piece lists that they are traded by.
#[derive(Debug, Default)]
pub struct Shelf(RwLock<Offers>);

#[derive(Debug, Default)]
struct Offers {
    answers: BTreeMap<Cid, Answer>,
    names: BTreeMap<ImageName, Cid>,
    lists: BTreeMap<Cid, Offer>,
}

impl Shelf {
    /// Offers an image, under its name from now on.
    pub fn put(&self, image: &Image, lists: &Lists, store: &Store) -> Result<(), Error> {
        let failed = |source| Error::Image { name: image.name.name.clone(), source };
        let content = lists.content(image, store).map_err(failed)?;
        let mut offers = self.0.write().unwrap_or_else(PoisonError::into_inner);
        let mut offer = |list: &Arc<PieceList>, kind| {
            offers.lists.insert(list.name(), Offer { list: list.clone(), kind });
        };
        offer(image.root.manifest(), ListKind::Manifest);
        offer(&content, ListKind::Content);
        let answer = Answer {
            query: Query::Image(image.name.image),
            name: Some(image.signed_name.clone()),
            root: Some(image.signed_root.clone()),
        };
        offers.answers.insert(image.name.image, answer);
        offers.names.insert(image.name.name.clone(), image.name.image);
        Ok(())
    }
}

impl Directory for Shelf {
    fn answer(&self, query: &Query) -> Option<Answer> {
        let offers = self.0.read().unwrap_or_else(PoisonError::into_inner);
        let image = match query {
            Query::Name(name) => offers.names.get(name)?,
            Query::Image(image) => image,
        };
        offers.answers.get(image).map(|answer| Answer { query: query.clone(), ..answer.clone() })
    }

    fn offer(&self, list: &Cid) -> Option<Offer> {
        self.0.read().unwrap_or_else(PoisonError::into_inner).lists.get(list).cloned()
    }
}

/// The addresses that a ticket should name, the likeliest first: what the machine uses to reach others, then what it
/// listens on besides; loopback only when there is nothing else.
fn reachable(listening: &[SocketAddr]) -> Vec<HostPort> {
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
