//! The handle of a running peer.

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use shoal_proto::exchange::Bitfield;
use shoal_proto::fleet::{Orders, Report};
use shoal_proto::image::PieceList;
use shoal_proto::members::Members;
use shoal_proto::release::Release;
use shoal_proto::signing::Signed;
use shoal_proto::wire::{Answer, Query};
use tokio::sync::{mpsc, oneshot, watch};
use tokio::task::JoinHandle;

use crate::peer::driver::{Command, Driver, Outlets};
use crate::peer::session::{SESSIONS_WAITING_MAX, Session, SessionError};
use crate::peer::trades::TradeRequest;
use crate::peer::{
    BlockSource, Directory, Error, Heard, ListKind, Listing, LookupError, PeerConfig, PeerId, PieceSink,
    Status,
};
use crate::store::Store;

/// Commands that may wait for the driver.
const COMMANDS_MAX: usize = 64;
/// How often it is looked whether an aborted driver has ended.
const END_INTERVAL: Duration = Duration::from_millis(2);

/// A running peer. Dropping it ends its driver and closes its connections.
#[derive(Debug)]
pub struct Peer {
    id: PeerId,
    addresses: Vec<SocketAddr>,
    commands: mpsc::Sender<Command>,
    replicated: watch::Receiver<bool>,
    members: watch::Receiver<Option<Signed<Members>>>,
    release: watch::Receiver<Option<Signed<Release>>>,
    heard: watch::Receiver<Heard>,
    driver: JoinHandle<()>,
}

/// Asks a running peer how it goes, for as long as it runs.
#[derive(Clone, Debug)]
pub struct Observer {
    pub id: PeerId,
    /// Where the peer accepts connections.
    pub addresses: Vec<SocketAddr>,
    commands: mpsc::Sender<Command>,
}

/// A running trade of one piece list.
#[derive(Debug)]
pub struct TradeHandle {
    completed: oneshot::Receiver<Result<(), Error>>,
}

impl Peer {
    /// Listens and starts to look for the peers that `config` names; returns once it listens everywhere it should.
    /// What is held is read from `source`; what comes goes into `store`, out of which `source` has to supply it too.
    pub async fn start(
        config: PeerConfig,
        store: Arc<Store>,
        source: Arc<dyn BlockSource>,
        directory: Arc<dyn Directory>,
    ) -> Result<Self, Error> {
        let (commands, inbox) = mpsc::channel(COMMANDS_MAX);
        let (replicated_in, replicated) = watch::channel(false);
        let (members_in, members) = watch::channel(None);
        let (release_in, release) = watch::channel(None);
        let (heard_in, heard) = watch::channel(Heard::default());
        let id = config.key.public().to_peer_id();
        let outlets =
            Outlets { replicated: replicated_in, members: members_in, release: release_in, heard: heard_in };
        let mut driver = Driver::new(config, store, source, directory, inbox, outlets)?;
        let addresses = driver.listen().await?;
        let driver = tokio::spawn(driver.run());
        Ok(Self { id, addresses, commands, replicated, members, release, heard, driver })
    }

    pub fn id(&self) -> PeerId {
        self.id
    }

    /// Where this peer accepts connections.
    pub fn addresses(&self) -> &[SocketAddr] {
        &self.addresses
    }

    /// Asks every neighbour, present and future, until one gives an answer that `accept` believes or the seeder says
    /// that there is none: waits as long as that takes.
    pub async fn lookup(
        &self,
        query: Query,
        accept: impl Fn(&Answer) -> Result<(), String> + Send + 'static,
    ) -> Result<Answer, LookupError> {
        let (reply, answer) = oneshot::channel();
        let command = Command::Lookup { query, accept: Box::new(accept), reply };
        self.command(command).await.map_err(|_| LookupError::Stopped)?;
        answer.await.map_err(|_| LookupError::Stopped)?
    }

    /// Begins to trade `list`, of which the block source has `held`; every other piece ends in the store and in `sink`.
    pub async fn trade(
        &self,
        list: Arc<PieceList>,
        kind: ListKind,
        held: Bitfield,
        sink: Arc<dyn PieceSink>,
    ) -> Result<TradeHandle, Error> {
        let unwanted = Bitfield::empty(list.len());
        self.trade_without(list, kind, held, unwanted, sink).await
    }

    /// As [`trade`](Self::trade), but that the pieces in `unwanted` are neither fetched nor missed; those of them that
    /// are in `held` are served.
    ///
    /// # Panics
    /// When `held` or `unwanted` is of another length than `list`.
    pub async fn trade_without(
        &self,
        list: Arc<PieceList>,
        kind: ListKind,
        held: Bitfield,
        unwanted: Bitfield,
        sink: Arc<dyn PieceSink>,
    ) -> Result<TradeHandle, Error> {
        self.trade_listing(Listing { list, kind, held, unwanted, private: false }, sink).await
    }

    /// As [`trade`](Self::trade), of a listing.
    ///
    /// # Panics
    /// When a bitfield is of another length than the list.
    pub async fn trade_listing(
        &self,
        listing: Listing,
        sink: Arc<dyn PieceSink>,
    ) -> Result<TradeHandle, Error> {
        let Listing { list, held, unwanted, .. } = &listing;
        assert!(held.len() == list.len() && unwanted.len() == list.len(), "a bitfield of another list");
        let (done, completed) = oneshot::channel();
        let request = TradeRequest { listing, sink, done };
        self.command(Command::Trade(Box::new(request))).await?;
        Ok(TradeHandle { completed })
    }

    /// Opens a session with a peer: waits until it is connected, and as long as that takes.
    ///
    /// # Errors
    /// When the peer takes no sessions, or this one has stopped.
    pub async fn open_session(&self, peer: PeerId) -> Result<Session, SessionError> {
        let (reply, session) = oneshot::channel();
        let command = Command::OpenSession { peer, reply };
        self.command(command).await.map_err(|_| SessionError::Stopped)?;
        session.await.map_err(|_| SessionError::Stopped)?
    }

    /// Takes sessions that members open from now on. Those that come while too many wait are refused.
    pub async fn take_sessions(&self) -> Result<mpsc::Receiver<Session>, Error> {
        let (taker, sessions) = mpsc::channel(SESSIONS_WAITING_MAX);
        self.command(Command::TakeSessions(taker)).await?;
        Ok(sessions)
    }

    pub async fn status(&self) -> Result<Status, Error> {
        self.observer().status().await
    }

    /// The newest list of members that this peer knows, as it learns of newer ones.
    pub fn members(&self) -> watch::Receiver<Option<Signed<Members>>> {
        self.members.clone()
    }

    /// The newest release of the channel that this peer follows, as it learns of newer ones.
    pub fn release(&self) -> watch::Receiver<Option<Signed<Release>>> {
        self.release.clone()
    }

    /// What the seeder said last, to a peer that reports.
    pub fn heard(&self) -> watch::Receiver<Heard> {
        self.heard.clone()
    }

    pub fn observer(&self) -> Observer {
        Observer { id: self.id, addresses: self.addresses.clone(), commands: self.commands.clone() }
    }

    /// Waits until every piece of every content list that is traded here is held by some neighbour too (a seeder's
    /// exchanges say so; a node's do not).
    pub async fn replicated(&self) -> Result<(), Error> {
        let mut replicated = self.replicated.clone();
        replicated.wait_for(|replicated| *replicated).await.map(|_| ()).map_err(|_| Error::Stopped)
    }

    /// As [`stop`](Self::stop), for a peer that others still ask: whatever they ask fails from then on.
    pub async fn close(&self) {
        self.driver.abort();
        while !self.driver.is_finished() {
            tokio::time::sleep(END_INTERVAL).await;
        }
    }

    /// Leaves the swarm: returns once the driver has ended and its connections are closed.
    pub async fn stop(mut self) {
        self.driver.abort();
        // An aborted task ends with an error that says so.
        let _ = (&mut self.driver).await;
    }

    async fn command(&self, command: Command) -> Result<(), Error> {
        self.commands.send(command).await.map_err(|_| Error::Stopped)
    }
}

impl Drop for Peer {
    fn drop(&mut self) {
        self.driver.abort();
    }
}

impl Observer {
    pub async fn status(&self) -> Result<Status, Error> {
        let (reply, status) = oneshot::channel();
        self.commands.send(Command::Status { reply }).await.map_err(|_| Error::Stopped)?;
        status.await.map_err(|_| Error::Stopped)
    }

    /// Tells the peer of a release, and it those who follow the channel. An older one than it knows is refused.
    pub async fn set_release(&self, release: Signed<Release>) -> Result<(), Error> {
        let (reply, done) = oneshot::channel();
        self.commands.send(Command::Release { release, reply }).await.map_err(|_| Error::Stopped)?;
        done.await.map_err(|_| Error::Stopped)?
    }

    /// What the peer says of itself from now on, to the seeder of its ticket: when that asks for it, and at once when it
    /// is news. The report's `beat` is the peer's to count.
    pub async fn report(&self, report: Report, is_news: bool) -> Result<(), Error> {
        let command = Command::Report { report: Box::new(report), is_news };
        self.commands.send(command).await.map_err(|_| Error::Stopped)
    }

    /// Says what a node is to do, if it is connected.
    pub async fn order(&self, peer: PeerId, orders: Orders) -> Result<(), Error> {
        self.commands.send(Command::Orders { peer, orders }).await.map_err(|_| Error::Stopped)
    }

    /// Tells the peer of a list of members, and it the others. An older one than it knows does nothing.
    pub async fn set_members(&self, members: Signed<Members>) -> Result<(), Error> {
        let (reply, done) = oneshot::channel();
        self.commands.send(Command::Members { members, reply }).await.map_err(|_| Error::Stopped)?;
        done.await.map_err(|_| Error::Stopped)?
    }
}

impl TradeHandle {
    /// Waits until every piece is held but for unwanted ones, and every one that came is in the store and in the sink.
    ///
    /// That is said once. A held piece that cannot be read later is fetched again all the same and goes through the
    /// sink again; whoever relies on pieces that were held from the start checks them when it reads them.
    pub async fn completed(self) -> Result<(), Error> {
        self.completed.await.map_err(|_| Error::Stopped)?
    }
}
