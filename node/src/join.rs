//! What an install and an update have in common: to join the swarm, to learn which image it is, to fetch its manifest,
//! to tell how it goes, and to leave.

use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, OnceLock, PoisonError};
use std::time::{Duration, Instant};

use shoal_proto::assignment::Assignment;
use shoal_proto::cid::Cid;
use shoal_proto::exchange::Bitfield;
use shoal_proto::host::HostName;
use shoal_proto::image::{Manifest, PieceIndex, PieceList, RootRecord};
use shoal_proto::members::Members;
use shoal_proto::signing::{Keypair, PublicKey, Signed, Verified};
use shoal_proto::ticket::Ticket;
use shoal_proto::wire::{Answer, HostQuery, PeerRole, Query};
use shoal_proto::zone::Zone;
use tokio::sync::watch;
use tokio::task::AbortHandle;

use crate::block::EncodedBlock;
use crate::control::Desk;
use crate::manifest::{self, load_manifest};
use crate::peer::{
    self, BlockSource, BoxError, Directory, FleetConfig, Limits, ListKind, Listing, LookupError,
    MembersConfig, Offer, Peer, PeerConfig, PeerId, StoreOnly,
};
use crate::progress::{Meter, Monitor, Stage};
use crate::state::{self, TargetState};
use crate::store::{self, Store};
use crate::tree::update::TreeBlocks;

/// How often a monitor hears from us.
const MONITOR_INTERVAL: Duration = Duration::from_millis(250);
/// Each thread that resumes keeps one block in memory.
const RESUME_THREADS_MAX: usize = 4;
/// How long a leaving node waits for readers of its store.
const STORE_RELEASE_MAX: Duration = Duration::from_secs(2);

/// How a node takes part in a swarm.
#[derive(Clone, Debug)]
pub struct JoinOptions {
    pub ticket: Ticket,
    /// Where blocks are kept meanwhile; below the node's state when not said.
    pub store: Option<PathBuf>,
    pub listen: Vec<SocketAddr>,
    /// Where the machine stands.
    pub rack: Zone,
    pub limits: Limits,
}

#[derive(Debug, thiserror::Error)]
pub enum Error {
    #[error(transparent)]
    State(#[from] state::Error),
    #[error(transparent)]
    Store(#[from] store::Error),
    #[error(transparent)]
    Peer(#[from] peer::Error),
    #[error(transparent)]
    Lookup(#[from] LookupError),
    #[error(transparent)]
    Manifest(#[from] manifest::Error),
}

impl Error {
    /// The publisher did not say this.
    pub fn is_unbelieved(&self) -> bool {
        matches!(self, Self::Lookup(LookupError::NotBelieved(_)))
    }
}

/// A node's place in the swarm of a ticket.
#[derive(Debug)]
pub(crate) struct Membership {
    pub(crate) peer: Peer,
    pub(crate) store: Arc<Store>,
    pub(crate) started: Instant,
    blocks: Arc<NodeBlocks>,
    /// The store's folder, when it is below the state directory.
    own_store: Option<PathBuf>,
    publisher: PublicKey,
    known: Arc<KnownImage>,
    meter: Mutex<Meter>,
    /// Answers `status`.
    _desk: Desk,
    /// Keeps the newest list of members.
    _keeper: Keeper,
}

impl Membership {
    pub(crate) async fn join(
        key: Keypair,
        options: JoinOptions,
        target: &TargetState,
        started: Instant,
    ) -> Result<Self, Error> {
        Self::join_fleet(key, options, FleetConfig::default(), target, started).await
    }

    /// As [`join`](Self::join), to follow a channel.
    pub(crate) async fn join_fleet(
        key: Keypair,
        options: JoinOptions,
        fleet: FleetConfig,
        target: &TargetState,
        started: Instant,
    ) -> Result<Self, Error> {
        let JoinOptions { ticket, store, listen, rack, limits } = options;
        let own_store = store.is_none().then(|| target.store_dir());
        let store_dir = store.as_ref().or(own_store.as_ref()).expect("one of the two");
        let store = Arc::new(Store::open(store_dir)?);
        let known = Arc::new(KnownImage::default());
        let config = PeerConfig {
            key,
            secret: ticket.secret,
            role: PeerRole::Node,
            listen,
            rack,
            bootstrap: vec![(ticket.seeder, ticket.addresses)],
            limits,
            members: MembersConfig {
                publisher: Some(ticket.publisher.clone()),
                known: target.members(&ticket.publisher)?,
                number_min: ticket.members,
            },
            fleet,
        };
        let blocks = Arc::new(NodeBlocks { store: store.clone(), tree: OnceLock::new() });
        let peer = Peer::start(config, store.clone(), blocks.clone(), known.clone()).await?;
        let meter = Mutex::new(Meter::new(started));
        let desk = Desk::open(target.data_dir(), peer.observer());
        let publisher = ticket.publisher;
        let keeper = Keeper::start(peer.members(), target.clone(), publisher.clone());
        Ok(Self {
            peer,
            store,
            started,
            blocks,
            own_store,
            publisher,
            known,
            meter,
            _desk: desk,
            _keeper: keeper,
        })
    }

    /// Learns which image it is, from the publisher's statements alone.
    pub(crate) async fn look_up(
        &self,
        wanted: Query,
        monitor: &dyn Monitor,
    ) -> Result<(Answer, Signed<RootRecord>), LookupError> {
        let publisher = self.publisher.clone();
        let lookup = self.peer.lookup(wanted, move |answer| believe(answer, &publisher).map(drop));
        let answer = self.watch(Stage::Joining, monitor, lookup).await?;
        let root = answer.root.clone().expect("a believed answer has a root");
        Ok((answer, root))
    }

    /// Serves from now on what the files of a tree can make too.
    pub(crate) fn serve_tree(&self, tree: TreeBlocks) {
        // A membership is about one image, and that has one tree.
        let _ = self.blocks.tree.set(tree);
    }

    /// Tells others from now on what was learnt.
    pub(crate) fn learn(&self, answer: Answer) {
        *self.known.0.lock().unwrap_or_else(PoisonError::into_inner) = Some(answer);
    }

    /// What the publisher says that a host is to be, unless there is no cluster.
    pub(crate) async fn assignment(
        &self,
        query: HostQuery,
        monitor: &dyn Monitor,
    ) -> Result<Assignment, LookupError> {
        let (publisher, host) = (self.publisher.clone(), query.host.clone());
        let lookup = self.peer.lookup(Query::Host(Box::new(query)), move |answer| {
            believe_assignment(answer, &host, &publisher).map(drop)
        });
        let answer = self.watch(Stage::Joining, monitor, lookup).await?;
        let said = answer.assignment.expect("a believed answer has an assignment");
        let said =
            said.verify(&self.publisher).map_err(|error| LookupError::NotBelieved(error.to_string()))?;
        Ok(said.into_inner())
    }

    /// The root record, if the publisher signed it.
    pub(crate) fn believed(&self, root: &Signed<RootRecord>) -> Result<RootRecord, Error> {
        let root = believe_root(root, &self.publisher).map_err(LookupError::NotBelieved)?;
        Ok(root.into_inner())
    }

    /// Fetches the manifest of `root`, which is believed; a private one from the seeder alone.
    pub(crate) async fn fetch_manifest(
        &self,
        root: &RootRecord,
        private: bool,
        monitor: &dyn Monitor,
    ) -> Result<Arc<Manifest>, Error> {
        let list = root.manifest().clone();
        let (store, manifest) = (self.store.clone(), list.clone());
        let held = blocking(move || verified_in(&store, &manifest, |_, _| Ok::<(), Error>(()))).await?;
        let unwanted = Bitfield::empty(list.len());
        let listing = Listing { list, kind: ListKind::Manifest, held, unwanted, private };
        let trade = self.peer.trade_listing(listing, Arc::new(StoreOnly)).await?;
        self.watch(Stage::Manifest, monitor, trade.completed()).await?;
        let (store, root) = (self.store.clone(), root.clone());
        Ok(Arc::new(blocking(move || load_manifest(&store, &root)).await?))
    }

    /// Waits for `step`, telling the monitor how it goes.
    pub(crate) async fn watch<T>(
        &self,
        stage: Stage,
        monitor: &dyn Monitor,
        step: impl Future<Output = T>,
    ) -> T {
        tokio::pin!(step);
        let mut ticks = tokio::time::interval(MONITOR_INTERVAL);
        loop {
            tokio::select! {
                result = &mut step => return result,
                _ = ticks.tick() => self.tell(stage, monitor).await,
            }
        }
    }

    pub(crate) async fn tell(&self, stage: Stage, monitor: &dyn Monitor) {
        // A peer that stopped ends the step that is being watched.
        let Ok(status) = self.peer.status().await else { return };
        let mut meter = self.meter.lock().unwrap_or_else(PoisonError::into_inner);
        monitor.update(&meter.snapshot(Instant::now(), stage, &status));
    }

    /// Leaves the swarm and removes the blocks, which the tree holds too, unless the caller chose where they are kept.
    pub(crate) async fn leave(self) {
        let own_store = self.own_store.clone();
        self.stop().await;
        if let Some(store_dir) = own_store {
            remove_store(&store_dir);
        }
    }

    /// Leaves the swarm and keeps the blocks for the next time.
    pub(crate) async fn stop(self) {
        let Self { peer, store, blocks, .. } = self;
        peer.stop().await;
        drop(blocks);
        // Tasks and threads that were reading a block let go of the store as they end.
        let deadline = Instant::now() + STORE_RELEASE_MAX;
        while Arc::strong_count(&store) > 1 && Instant::now() < deadline {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    }
}

/// Writes each newer list of members down, until it is dropped: an older one must not count after a restart.
#[derive(Debug)]
struct Keeper(AbortHandle);

impl Keeper {
    fn start(
        mut members: watch::Receiver<Option<Signed<Members>>>,
        target: TargetState,
        publisher: PublicKey,
    ) -> Self {
        let keeping = async move {
            while members.changed().await.is_ok() {
                let Some(list) = members.borrow_and_update().clone() else { continue };
                let (target, publisher) = (target.clone(), publisher.clone());
                let written = blocking(move || target.write_members(&publisher, &list)).await;
                if let Err(error) = written {
                    tracing::warn!(%error, "the list of members is not kept for the next run");
                }
            }
        };
        Self(tokio::spawn(keeping).abort_handle())
    }
}

impl Drop for Keeper {
    fn drop(&mut self) {
        self.0.abort();
    }
}

/// Blocks of the store, or made from files of the tree.
#[derive(Debug)]
struct NodeBlocks {
    store: Arc<Store>,
    tree: OnceLock<TreeBlocks>,
}

impl BlockSource for NodeBlocks {
    fn block(&self, cid: &Cid) -> Result<Option<EncodedBlock>, BoxError> {
        match self.store.get(cid)? {
            Some(block) => Ok(Some(block)),
            None => Ok(self.tree.get().and_then(|tree| tree.block(cid))),
        }
    }
}

/// Removes a store that is not needed any more.
fn remove_store(store_dir: &Path) {
    if let Err(error) = std::fs::remove_dir_all(store_dir) {
        tracing::warn!(store = %store_dir.display(), %error, "cannot remove blocks that are not needed any more");
    }
}

/// Checks an answer against the pinned publisher; says in words what is wrong with it.
fn believe(answer: &Answer, publisher: &PublicKey) -> Result<Verified<RootRecord>, String> {
    let root = answer.root.as_ref().ok_or("it has no root record")?;
    let image = match &answer.query {
        Query::Host(_) => return Err("it is of no image".to_owned()),
        Query::Image(image) => *image,
        Query::Name(name) => {
            let signed = answer.name.as_ref().ok_or("it has no signed name")?;
            let record = signed.verify(publisher).map_err(|error| format!("its name record: {error}"))?;
            if record.name != *name {
                return Err(format!("it is signed for the name {}", record.name));
            }
            record.image
        }
    };
    if root.cid() != image {
        return Err(format!("its root record is of image {}, not {image}", root.cid()));
    }
    believe_root(root, publisher)
}

/// Checks what is said of a host against the pinned publisher; says in words what is wrong with it.
fn believe_assignment(
    answer: &Answer,
    host: &HostName,
    publisher: &PublicKey,
) -> Result<Verified<Assignment>, String> {
    let said = answer.assignment.as_ref().ok_or("it has no assignment")?;
    let said = said.verify(publisher).map_err(|error| format!("its assignment: {error}"))?;
    if said.host == *host { Ok(said) } else { Err(format!("it is signed for host {}", said.host)) }
}

fn believe_root(root: &Signed<RootRecord>, publisher: &PublicKey) -> Result<Verified<RootRecord>, String> {
    root.verify(publisher).map_err(|error| format!("its root record: {error}"))
}

fn held_in(store: &Store, list: &PieceList) -> Bitfield {
    let mut held = Bitfield::empty(list.len());
    for piece in list.indexes().filter(|piece| store.contains(&list.piece(*piece).cid)) {
        held.insert(piece);
    }
    held
}

/// Verifies the pieces of a list that an earlier run left in the store, hands each to `take`, and returns which they
/// were. A damaged one is forgotten, so that it is fetched and stored again.
pub(crate) fn verified_in<E: Send>(
    store: &Store,
    list: &PieceList,
    take: impl Fn(PieceIndex, &[u8]) -> Result<(), E> + Sync,
) -> Result<Bitfield, E> {
    let stored: Vec<PieceIndex> = held_in(store, list).iter().collect();
    let next = Mutex::new(stored.into_iter());
    let held = Mutex::new(Bitfield::empty(list.len()));
    let work = || -> Result<(), E> {
        let mut raw = Vec::new();
        loop {
            let Some(piece) = next.lock().unwrap_or_else(PoisonError::into_inner).next() else {
                return Ok(());
            };
            let cid = list.piece(piece).cid;
            let intact = matches!(store.get(&cid), Ok(Some(block)) if block.decode_into(&mut raw).is_ok());
            if !intact {
                tracing::warn!(%piece, %cid, "a stored block is damaged and is fetched again");
                store.discard(&cid);
                continue;
            }
            take(piece, &raw)?;
            held.lock().unwrap_or_else(PoisonError::into_inner).insert(piece);
        }
    };
    std::thread::scope(|scope| {
        let threads = std::thread::available_parallelism().map_or(2, usize::from).min(RESUME_THREADS_MAX);
        let running: Vec<_> = (0..threads).map(|_| scope.spawn(work)).collect();
        running.into_iter().try_for_each(|thread| thread.join().expect("the work does not panic"))
    })?;
    Ok(held.into_inner().unwrap_or_else(PoisonError::into_inner))
}

/// What a node can tell others: the one image that it is about.
#[derive(Debug, Default)]
struct KnownImage(Mutex<Option<Answer>>);

impl Directory for KnownImage {
    fn answer(&self, query: &Query, _: &PeerId) -> Option<Answer> {
        let known = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let known = known.as_ref()?;
        let same = match query {
            Query::Image(image) => known.root.as_ref()?.cid() == *image,
            Query::Name(_) => known.query == *query,
            // What a host is to be is between it and the seeder.
            Query::Host(_) => false,
        };
        same.then(|| Answer { query: query.clone(), ..known.clone() })
    }

    fn offer(&self, _: &Cid, _: &PeerId) -> Option<Offer> {
        None
    }
}

pub(crate) async fn blocking<T: Send + 'static>(work: impl FnOnce() -> T + Send + 'static) -> T {
    match tokio::task::spawn_blocking(work).await {
        Ok(result) => result,
        Err(error) => std::panic::resume_unwind(error.into_panic()),
    }
}

/// The most memory that this process ever had resident (`VmHWM`), or 0 where the system does not say.
pub fn peak_rss_bytes() -> u64 {
    let status = std::fs::read_to_string("/proc/self/status").unwrap_or_default();
    let line = status.lines().find_map(|line| line.strip_prefix("VmHWM:"));
    line.and_then(|line| line.trim().strip_suffix(" kB")?.parse::<u64>().ok()).map_or(0, |kib| kib * 1024)
}
