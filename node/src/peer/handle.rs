//! The handle of a running peer.

use std::net::SocketAddr;
use std::sync::Arc;

use shoal_proto::exchange::Bitfield;
use shoal_proto::image::PieceList;
use shoal_proto::wire::{Answer, Query};
use tokio::sync::{mpsc, oneshot, watch};
use tokio::task::JoinHandle;

use crate::peer::driver::{Command, Driver};
use crate::peer::trades::TradeRequest;
use crate::peer::{
    BlockSource, Directory, Error, ListKind, LookupError, PeerConfig, PeerId, PieceSink, Status,
};
use crate::store::Store;

/// Commands that may wait for the driver.
const COMMANDS_MAX: usize = 64;

/// A running peer. Dropping it ends its driver and closes its connections.
#[derive(Debug)]
pub struct Peer {
    id: PeerId,
    addresses: Vec<SocketAddr>,
    commands: mpsc::Sender<Command>,
    replicated: watch::Receiver<bool>,
    driver: JoinHandle<()>,
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
        let id = config.key.public().to_peer_id();
        let mut driver = Driver::new(config, store, source, directory, inbox, replicated_in)?;
        let addresses = driver.listen().await?;
        let driver = tokio::spawn(driver.run());
        Ok(Self { id, addresses, commands, replicated, driver })
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
        assert!(held.len() == list.len() && unwanted.len() == list.len(), "a bitfield of another list");
        let (done, completed) = oneshot::channel();
        let request = TradeRequest { list, kind, held, unwanted, sink, done };
        self.command(Command::Trade(Box::new(request))).await?;
        Ok(TradeHandle { completed })
    }

    pub async fn status(&self) -> Result<Status, Error> {
        let (reply, status) = oneshot::channel();
        self.command(Command::Status { reply }).await?;
        status.await.map_err(|_| Error::Stopped)
    }

    /// Waits until every piece of every content list that is traded here is held by some neighbour too (a seeder's
    /// exchanges say so; a node's do not).
    pub async fn replicated(&self) -> Result<(), Error> {
        let mut replicated = self.replicated.clone();
        replicated.wait_for(|replicated| *replicated).await.map(|_| ()).map_err(|_| Error::Stopped)
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

impl TradeHandle {
    /// Waits until every piece is held but for unwanted ones, and every one that came is in the store and in the sink.
    ///
    /// That is said once. A held piece that cannot be read later is fetched again all the same and goes through the
    /// sink again; whoever relies on pieces that were held from the start checks them when it reads them.
    pub async fn completed(self) -> Result<(), Error> {
        self.completed.await.map_err(|_| Error::Stopped)?
    }
}
