//! The swarms that a seeder is in: one, and a second one while the swarm secret is rotated.
//!
//! The secret enters every handshake, so a listener knows one secret: the next swarm has listeners of its own, a port
//! above those of the current one. Nodes of the two swarms do not meet; the seeder gives to both. Tickets name the next
//! secret from the first moment on, and the addresses of both, so that they hold when the current swarm ends and after.

use std::collections::BTreeSet;
use std::net::SocketAddr;
use std::sync::{Arc, Mutex, PoisonError};

use shoal_node::peer::{
    self, FleetConfig, Limits, MembersConfig, Peer, PeerConfig, PeerId, PeerRole, Status,
};
use shoal_node::store::Store;
use shoal_proto::fleet::{Orders, Report};
use shoal_proto::members::Members;
use shoal_proto::release::Release;
use shoal_proto::signing::Signed;
use shoal_proto::ticket::{ADDRESSES_MAX, HostPort, SwarmSecret};
use shoal_proto::zone::Zone;
use tokio::sync::mpsc;

use crate::golden::Offers;
use crate::home::{self, Home};
use crate::members;
use crate::releases;
use crate::serve::{Shelf, reachable};

#[derive(Debug, thiserror::Error)]
pub enum Error {
    #[error(transparent)]
    Home(#[from] home::Error),
    #[error(transparent)]
    Peer(#[from] peer::Error),
    #[error(transparent)]
    Members(#[from] members::Error),
    #[error(transparent)]
    Releases(#[from] releases::Error),
    #[error("the secret is not being rotated")]
    NotRotating,
}

#[derive(Debug)]
pub struct Swarms {
    home: Arc<Home>,
    store: Arc<Store>,
    shelf: Arc<Shelf>,
    listen: Vec<SocketAddr>,
    limits: Limits,
    /// Where the reports of nodes go.
    reports: mpsc::Sender<(PeerId, Report)>,
    offers: Arc<Offers>,
    running: Mutex<Running>,
}

#[derive(Clone, Debug)]
struct Running {
    current: Arc<Peer>,
    next: Option<Arc<Peer>>,
    /// Bytes sent in swarms that ended.
    sent_bytes: u64,
}

impl Swarms {
    /// Listens, for the next swarm too if its rotation was not finished.
    pub(crate) async fn start(
        home: Arc<Home>,
        store: Arc<Store>,
        shelf: Arc<Shelf>,
        listen: Vec<SocketAddr>,
        limits: Limits,
        reports: mpsc::Sender<(PeerId, Report)>,
    ) -> Result<Self, Error> {
        let secret = home.secret()?;
        let current = join(&home, &store, &shelf, secret, listen.clone(), limits, &reports).await?;
        let offers = Arc::<Offers>::default();
        offers.clone().take_from(&current).await?;
        let running = Mutex::new(Running { current: Arc::new(current), next: None, sent_bytes: 0 });
        let swarms = Self { home, store, shelf, listen, limits, reports, offers, running };
        if let Some(secret) = swarms.home.next_secret()? {
            swarms.begin_next(secret).await?;
        }
        swarms.home.write_addresses(&swarms.addresses())?;
        Ok(swarms)
    }

    fn running(&self) -> Running {
        self.running.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// The peer of the current swarm.
    pub fn current(&self) -> Arc<Peer> {
        self.running().current
    }

    fn all(&self) -> Vec<Arc<Peer>> {
        let Running { current, next, .. } = self.running();
        std::iter::once(current).chain(next).collect()
    }

    /// Where nodes reach the seeder, those of the next swarm first.
    pub fn addresses(&self) -> Vec<HostPort> {
        let mut addresses: Vec<HostPort> =
            self.all().iter().rev().flat_map(|peer| reachable(peer.addresses())).collect();
        addresses.truncate(ADDRESSES_MAX);
        addresses
    }

    pub fn is_rotating(&self) -> bool {
        self.running().next.is_some()
    }

    /// Draws the next secret and listens for those who know it. Does nothing while that goes on already.
    pub(crate) async fn rotate(&self) -> Result<(), Error> {
        if self.is_rotating() {
            return Ok(());
        }
        let secret = self.home.draw_next_secret()?;
        self.begin_next(secret).await?;
        Ok(self.home.write_addresses(&self.addresses())?)
    }

    async fn begin_next(&self, secret: SwarmSecret) -> Result<(), Error> {
        let above = |address: &SocketAddr| {
            // Port 0 lets the system choose here too.
            let port = if address.port() == 0 { 0 } else { address.port().wrapping_add(1) };
            SocketAddr::new(address.ip(), port)
        };
        let listen = self.listen.iter().map(above).collect();
        let next =
            join(&self.home, &self.store, &self.shelf, secret, listen, self.limits, &self.reports).await?;
        self.offers.clone().take_from(&next).await?;
        tracing::info!(addresses = ?next.addresses(), "listening with the next secret too");
        self.running.lock().unwrap_or_else(PoisonError::into_inner).next = Some(Arc::new(next));
        Ok(())
    }

    /// Ends the current swarm here: the next one is the current one from now on, at its own addresses until the seeder
    /// starts again.
    pub(crate) async fn finish(&self) -> Result<(), Error> {
        let Running { current, next, sent_bytes } = self.running();
        let next = next.ok_or(Error::NotRotating)?;
        self.home.adopt_next_secret()?;
        let sent_bytes = sent_bytes + current.status().await?.traffic.sent_bytes;
        let changed = Running { current: next, next: None, sent_bytes };
        *self.running.lock().unwrap_or_else(PoisonError::into_inner) = changed;
        current.close().await;
        tracing::info!("the old secret opens nothing any more");
        // Where the seeder will listen when it starts again, besides where it listens now.
        let mut addresses = self.addresses();
        addresses.extend(reachable(current.addresses()));
        addresses.truncate(ADDRESSES_MAX);
        Ok(self.home.write_addresses(&addresses)?)
    }

    /// Tells both swarms of a list of members.
    pub(crate) async fn set_members(&self, members: &Signed<Members>) -> Result<(), Error> {
        for peer in self.all() {
            peer.observer().set_members(members.clone()).await?;
        }
        Ok(())
    }

    /// Tells both swarms of a release.
    pub(crate) async fn set_release(&self, release: &Signed<Release>) -> Result<(), Error> {
        for peer in self.all() {
            peer.observer().set_release(release.clone()).await?;
        }
        Ok(())
    }

    /// Says what a node is to do, in whichever swarm it is connected.
    pub(crate) async fn order(&self, node: PeerId, orders: Orders) -> Result<(), Error> {
        for peer in self.all() {
            peer.observer().order(node, orders.clone()).await?;
        }
        Ok(())
    }

    /// The newest list of members in each swarm.
    pub(crate) fn members(&self) -> Vec<Signed<Members>> {
        self.all().iter().filter_map(|peer| peer.members().borrow().clone()).collect()
    }

    /// What golden clients offer, in either swarm.
    pub(crate) fn offers(&self) -> &Offers {
        &self.offers
    }

    /// Who is connected, in either swarm.
    pub(crate) async fn connected(&self) -> Result<BTreeSet<String>, Error> {
        let peers = self.status().await?;
        Ok(peers.iter().flat_map(|status| &status.peers).map(|met| met.peer.to_string()).collect())
    }

    /// How it goes in each swarm.
    pub(crate) async fn status(&self) -> Result<Vec<Status>, Error> {
        let mut found = Vec::new();
        for peer in self.all() {
            found.push(peer.status().await?);
        }
        Ok(found)
    }

    /// Bytes of pieces sent since the start, in all swarms.
    pub async fn sent_bytes(&self) -> Result<u64, Error> {
        let now: u64 = self.status().await?.iter().map(|status| status.traffic.sent_bytes).sum();
        Ok(self.running().sent_bytes + now)
    }

    /// Waits until every piece of what was asked for in the current swarm is held by some node too.
    pub async fn replicated(&self) -> Result<(), Error> {
        loop {
            let current = self.current();
            match current.replicated().await {
                // It became the old one meanwhile.
                Err(peer::Error::Stopped) if !Arc::ptr_eq(&current, &self.current()) => {}
                result => return Ok(result?),
            }
        }
    }
}

async fn join(
    home: &Home,
    store: &Arc<Store>,
    shelf: &Arc<Shelf>,
    secret: SwarmSecret,
    listen: Vec<SocketAddr>,
    limits: Limits,
    reports: &mpsc::Sender<(PeerId, Report)>,
) -> Result<Peer, Error> {
    let decided = members::load(home)?;
    let config = PeerConfig {
        key: home.peer.clone(),
        secret,
        role: PeerRole::Seeder,
        listen,
        rack: Zone::UNKNOWN,
        bootstrap: Vec::new(),
        limits,
        members: MembersConfig {
            publisher: Some(home.publisher.public()),
            known: members::sign(home, &decided),
            number_min: 0,
        },
        fleet: FleetConfig {
            follow: None,
            known: releases::statements(home)?,
            reports: Some(reports.clone()),
        },
    };
    Ok(Peer::start(config, store.clone(), store.clone(), shelf.clone()).await?)
}
