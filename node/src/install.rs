//! The main path of a node: join, fetch root → manifest → pieces, write the tree, serve it.
//!
//! A killed install is finished by the same command: what the store holds is verified again, written again and not
//! fetched again. The record says `complete` only once the tree was synced.

mod target;

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError, RwLock};
use std::time::{Duration, Instant};

use serde::Serialize;
use shoal_proto::cid::Cid;
use shoal_proto::exchange::Bitfield;
use shoal_proto::image::{ImageName, Manifest, PieceIndex, PieceList, RootRecord};
use shoal_proto::signing::{PublicKey, Signed, Verified};
use shoal_proto::ticket::Ticket;
use shoal_proto::wire::{Answer, PeerRole, Query};

use crate::manifest::{self, load_manifest, save_manifest};
use crate::peer::{
    self, Directory, ListKind, LookupError, Offer, Peer, PeerConfig, PieceSink, StoreOnly, TradeHandle,
};
use crate::progress::{Meter, Monitor, Stage};
use crate::state::{self, Phase, Record, State, TargetState};
use crate::store::{self, Store};
use crate::tree::Aspect;
use crate::tree::apply::{Apply, ApplyError, ApplyOptions};
use crate::tree::verify::DriftKind;

/// How often a monitor hears from an install.
const MONITOR_INTERVAL: Duration = Duration::from_millis(250);
/// Each thread that resumes keeps one block in memory.
const RESUME_THREADS_MAX: usize = 4;
/// How long a leaving node waits for readers of its store.
const STORE_RELEASE_MAX: Duration = Duration::from_secs(2);

/// What to install, and where.
#[derive(Debug)]
pub struct InstallOptions {
    pub ticket: Ticket,
    /// Overrides the ticket's image.
    pub image: Option<ImageName>,
    /// An existing directory.
    pub target: PathBuf,
    /// The node's state directory.
    pub data: PathBuf,
    /// Where blocks are kept while installing and serving; below `data` when not said.
    pub store: Option<PathBuf>,
    pub listen: Vec<SocketAddr>,
    pub rack: String,
    /// Empty the target first when it holds something.
    pub force: bool,
}

/// The result of an install, as `--json` prints it. Sizes in bytes, times in seconds.
#[derive(Clone, Debug, Serialize)]
pub struct InstallReport {
    pub image: String,
    pub name: Option<String>,
    pub entries: u64,
    pub raw_bytes: u64,
    pub bytes_from_seeder: u64,
    pub bytes_from_peers: u64,
    /// Raw bytes of pieces that an earlier, interrupted run had verified.
    pub bytes_reused: u64,
    pub duplicate_bytes: u64,
    pub corrupt_bytes: u64,
    pub pieces: u64,
    pub pieces_fetched: u64,
    pub pieces_resumed: u64,
    /// From the start to the last piece verified.
    pub fetch_s: f64,
    /// From the last piece to the synced tree.
    pub apply_s: f64,
    pub elapsed_s: f64,
    pub peak_rss_bytes: u64,
    /// How often what could not be set, such as owners by who is not root.
    pub losses: BTreeMap<&'static str, u64>,
}

#[derive(Debug, thiserror::Error)]
pub enum Error {
    #[error("the ticket names no image: say --image NAME")]
    NoImageNamed,
    #[error(transparent)]
    Target(#[from] target::Error),
    #[error("{} holds image {image} already; --force installs it anew", .path.display())]
    AlreadyInstalled { path: PathBuf, image: Cid },
    #[error("{} holds image {old}, and {name} is image {new} by now; --force replaces it", .path.display())]
    OtherInstalled { path: PathBuf, old: Cid, name: ImageName, new: Cid },
    #[error("the seeder no longer has image {image}, which {} was being installed with; --force starts over", .path.display())]
    ImageGone { path: PathBuf, image: Cid },
    #[error("{} holds an unfinished install of image {image}; --force starts over with another", .path.display())]
    OtherUnfinished { path: PathBuf, image: String },
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
    #[error(transparent)]
    Apply(#[from] ApplyError),
}

/// A node whose tree is complete and which still serves its pieces.
#[derive(Debug)]
pub struct Installed {
    pub report: InstallReport,
    pub manifest: Arc<Manifest>,
    peer: Peer,
    /// Held for its lock: the node's key is in use.
    _state: State,
    store: Arc<Store>,
    /// The store's folder, when it is below the state directory.
    own_store: Option<PathBuf>,
}

impl Installed {
    pub fn peer(&self) -> &Peer {
        &self.peer
    }

    /// Leaves the swarm and removes the blocks, which the tree holds too, unless the caller chose where they are kept.
    pub async fn leave(self) {
        let Self { peer, store, own_store, _state, .. } = self;
        peer.stop().await;
        let Some(store_dir) = own_store else { return };
        // Tasks and threads that were reading a block let go of the store as they end.
        let deadline = Instant::now() + STORE_RELEASE_MAX;
        while Arc::strong_count(&store) > 1 && Instant::now() < deadline {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
        drop(store);
        if let Err(error) = std::fs::remove_dir_all(&store_dir) {
            tracing::warn!(store = %store_dir.display(), %error, "cannot remove the blocks of a finished install");
        }
    }
}

/// Installs an image and returns while its pieces are still being served.
pub async fn install(options: InstallOptions, monitor: &dyn Monitor) -> Result<Installed, Error> {
    let started = Instant::now();
    let run = Run::prepare(options, started).await?;
    let (root, name) = run.find_root(monitor).await?;
    let manifest = run.fetch_manifest(&root, monitor).await?;
    run.fetch_tree(manifest, &root, name, monitor).await
}

/// One run of an install: everything that its steps share.
struct Run {
    options: InstallOptions,
    started: Instant,
    state: State,
    target: TargetState,
    wanted: Query,
    beginning: Beginning,
    store: Arc<Store>,
    own_store: Option<PathBuf>,
    known: Arc<KnownImage>,
    peer: Peer,
    meter: Mutex<Meter>,
}

impl Run {
    async fn prepare(options: InstallOptions, started: Instant) -> Result<Self, Error> {
        let state = State::open(&options.data)?;
        let target = state.target(&options.target)?;
        let wanted =
            options.image.clone().or_else(|| options.ticket.image.clone()).ok_or(Error::NoImageNamed)?;
        let (wanted, beginning) = choose_wanted(&options, &target, wanted)?;
        let own_store = options.store.is_none().then(|| target.store_dir());
        let store_dir = options.store.as_ref().or(own_store.as_ref()).expect("one of the two");
        let store = Arc::new(Store::open(store_dir)?);
        let known = Arc::new(KnownImage::default());
        let config = PeerConfig {
            key: state.key.clone(),
            secret: options.ticket.secret.clone(),
            role: PeerRole::Node,
            listen: options.listen.clone(),
            rack: options.rack.clone(),
            bootstrap: vec![(options.ticket.seeder, options.ticket.addresses.clone())],
        };
        let peer = Peer::start(config, store.clone(), known.clone()).await?;
        let meter = Mutex::new(Meter::new(started));
        Ok(Self { options, started, state, target, wanted, beginning, store, own_store, known, peer, meter })
    }

    /// Learns which image it is, from the publisher's statements alone.
    async fn find_root(
        &self,
        monitor: &dyn Monitor,
    ) -> Result<(Signed<RootRecord>, Option<ImageName>), Error> {
        let publisher = self.options.ticket.publisher.clone();
        let lookup =
            self.peer.lookup(self.wanted.clone(), move |answer| believe(answer, &publisher).map(drop));
        let answer = match self.watch(Stage::Joining, monitor, lookup).await {
            Err(LookupError::Unknown(Query::Image(image))) if self.beginning == Beginning::Resumed => {
                return Err(Error::ImageGone { path: self.options.target.clone(), image });
            }
            answer => answer?,
        };
        let root = answer.root.clone().expect("a believed answer has a root");
        let name = match &answer.query {
            Query::Name(name) => Some(name.clone()),
            Query::Image(_) => self.target.record()?.and_then(|record| record.name?.parse().ok()),
        };
        let phase = match self.beginning {
            Beginning::Complete(old) => return Err(self.nothing_to_do(old, &answer, root.cid())),
            Beginning::ToBeEmptied => Phase::Emptying,
            Beginning::Empty | Beginning::Resumed => Phase::Installing,
        };
        self.known.learn(answer);
        self.target.write_root(&root)?;
        self.target.write_record(&self.record(root.cid(), name.as_ref(), phase))?;
        tracing::info!(image = %root.cid(), name = name.as_ref().map(ImageName::as_str), "installing");
        Ok((root, name))
    }

    /// The tree is complete already, with this image or with another one.
    fn nothing_to_do(&self, old: Cid, answer: &Answer, new: Cid) -> Error {
        let path = self.options.target.clone();
        match &answer.query {
            Query::Name(name) if old != new => Error::OtherInstalled { path, old, name: name.clone(), new },
            _ => Error::AlreadyInstalled { path, image: old },
        }
    }

    async fn fetch_manifest(
        &self,
        root: &Signed<RootRecord>,
        monitor: &dyn Monitor,
    ) -> Result<Arc<Manifest>, Error> {
        let root = believe_root(root, &self.options.ticket.publisher).map_err(LookupError::NotBelieved)?;
        let list = root.manifest().clone();
        let (store, manifest) = (self.store.clone(), list.clone());
        let held = blocking(move || verified_in(&store, &manifest, |_, _| Ok(()))).await?;
        let trade = self.peer.trade(list, ListKind::Manifest, held, Arc::new(StoreOnly)).await?;
        self.watch(Stage::Manifest, monitor, trade.completed()).await?;
        let store = self.store.clone();
        let target = self.target.clone();
        let manifest = blocking(move || {
            save_manifest(&store, &root, &target)?;
            load_manifest(&store, &root)
        });
        Ok(Arc::new(manifest.await?))
    }

    async fn fetch_tree(
        self,
        manifest: Arc<Manifest>,
        root: &Signed<RootRecord>,
        name: Option<ImageName>,
        monitor: &dyn Monitor,
    ) -> Result<Installed, Error> {
        let target = self.options.target.clone();
        if self.beginning == Beginning::ToBeEmptied {
            let target = target.clone();
            blocking(move || target::empty(&target)).await?;
            self.target.write_record(&self.record(root.cid(), name.as_ref(), Phase::Installing))?;
        }
        let created = manifest.clone();
        let apply = blocking(move || Apply::create(created, &target, ApplyOptions::default())).await?;
        let sink = Arc::new(TreeSink(RwLock::new(Some(apply))));
        let list = manifest.content().clone();
        let (store, tree, resumed) = (self.store.clone(), sink.clone(), list.clone());
        let held = blocking(move || verified_in(&store, &resumed, |piece, raw| tree.write_piece(piece, raw)))
            .await?;
        let pieces_resumed = held.count() as u64;
        let bytes_reused = held.iter().map(|piece| u64::from(list.piece(piece).raw_bytes)).sum();
        let trade: TradeHandle = self.peer.trade(list.clone(), ListKind::Content, held, sink.clone()).await?;
        self.watch(Stage::Pieces, monitor, trade.completed()).await?;
        let fetched = Instant::now();

        self.tell(Stage::Metadata, monitor).await;
        let applied = blocking(move || sink.take().finish()).await?;
        let counts = &applied.losses.counts;
        let lost = counts.keys().filter_map(|aspect| drift_of(*aspect)).collect();
        self.target
            .write_record(&Record { lost, ..self.record(root.cid(), name.as_ref(), Phase::Complete) })?;
        let done = Instant::now();
        self.tell(Stage::Complete, monitor).await;
        tracing::info!(image = %root.cid(), "the tree is complete");
        let traffic = self.peer.status().await?.traffic;
        let report = InstallReport {
            image: root.cid().to_string(),
            name: name.map(|name| name.to_string()),
            entries: manifest.tree().len() as u64,
            raw_bytes: list.raw_bytes(),
            bytes_from_seeder: traffic.from_seeders_bytes,
            bytes_from_peers: traffic.from_peers_bytes,
            bytes_reused,
            duplicate_bytes: traffic.duplicate_bytes,
            corrupt_bytes: traffic.corrupt_bytes,
            pieces: list.len() as u64,
            pieces_fetched: list.len() as u64 - pieces_resumed,
            pieces_resumed,
            fetch_s: (fetched - self.started).as_secs_f64(),
            apply_s: (done - fetched).as_secs_f64(),
            elapsed_s: (done - self.started).as_secs_f64(),
            peak_rss_bytes: peak_rss_bytes(),
            losses: counts.iter().map(|(aspect, count)| (aspect.name(), *count)).collect(),
        };
        Ok(Installed {
            _state: self.state,
            report,
            manifest,
            peer: self.peer,
            store: self.store,
            own_store: self.own_store,
        })
    }

    fn record(&self, image: Cid, name: Option<&ImageName>, phase: Phase) -> Record {
        Record {
            target: self.options.target.display().to_string(),
            image: image.to_string(),
            name: name.map(ToString::to_string),
            phase,
            lost: Vec::new(),
        }
    }

    /// Waits for `step`, telling the monitor how it goes.
    async fn watch<T>(&self, stage: Stage, monitor: &dyn Monitor, step: impl Future<Output = T>) -> T {
        tokio::pin!(step);
        let mut ticks = tokio::time::interval(MONITOR_INTERVAL);
        loop {
            tokio::select! {
                result = &mut step => return result,
                _ = ticks.tick() => self.tell(stage, monitor).await,
            }
        }
    }

    async fn tell(&self, stage: Stage, monitor: &dyn Monitor) {
        // A peer that stopped ends the step that is being watched.
        let Ok(status) = self.peer.status().await else { return };
        let mut meter = self.meter.lock().unwrap_or_else(PoisonError::into_inner);
        monitor.update(&meter.snapshot(Instant::now(), stage, &status));
    }
}

/// What an install begins with.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Beginning {
    Empty,
    /// Holds something that goes once the image is known to be there.
    ToBeEmptied,
    /// Holds what an interrupted run wrote.
    Resumed,
    /// Holds a complete tree of this image, asked for by the same name.
    Complete(Cid),
}

/// Finds out what a target holds, and so what is to be fetched: an unfinished install goes on with its own image,
/// even when the name means another one by now.
fn choose_wanted(
    options: &InstallOptions,
    state: &TargetState,
    name: ImageName,
) -> Result<(Query, Beginning), Error> {
    let target = &options.target;
    let record = state.record()?.filter(|_| !options.force);
    if let Some(record) = record.filter(|record| record.phase != Phase::Emptying) {
        let image: Option<Cid> = record.image.parse().ok();
        let image = image.filter(|_| record.name.as_deref() == Some(name.as_str()));
        match (record.phase, image) {
            (Phase::Installing, Some(image)) => return Ok((Query::Image(image), Beginning::Resumed)),
            (Phase::Installing, None) => {
                return Err(Error::OtherUnfinished { path: target.clone(), image: record.image });
            }
            (_, Some(image)) if !target::is_empty(target)? => {
                return Ok((Query::Name(name), Beginning::Complete(image)));
            }
            _ => {}
        }
    }
    let kept = [Some(&options.data), options.store.as_ref()];
    let kept: Vec<&Path> = kept.into_iter().flatten().map(PathBuf::as_path).collect();
    let full = target::check(target, options.force, &kept)?;
    Ok((Query::Name(name), if full { Beginning::ToBeEmptied } else { Beginning::Empty }))
}

/// Checks an answer against the pinned publisher; says in words what is wrong with it.
fn believe(answer: &Answer, publisher: &PublicKey) -> Result<Verified<RootRecord>, String> {
    let root = answer.root.as_ref().ok_or("it has no root record")?;
    let image = match &answer.query {
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
fn verified_in(
    store: &Store,
    list: &PieceList,
    take: impl Fn(PieceIndex, &[u8]) -> Result<(), ApplyError> + Sync,
) -> Result<Bitfield, Error> {
    let stored: Vec<PieceIndex> = held_in(store, list).iter().collect();
    let next = Mutex::new(stored.into_iter());
    let held = Mutex::new(Bitfield::empty(list.len()));
    let work = || -> Result<(), Error> {
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

/// Hands verified pieces to the tree until it is finished; the trade goes on serving without it.
struct TreeSink(RwLock<Option<Apply>>);

impl TreeSink {
    /// Takes the tree out to finish it.
    fn take(&self) -> Apply {
        let tree = self.0.write().unwrap_or_else(PoisonError::into_inner).take();
        tree.expect("a tree is finished once")
    }

    fn write_piece(&self, piece: PieceIndex, raw: &[u8]) -> Result<(), ApplyError> {
        let tree = self.0.read().unwrap_or_else(PoisonError::into_inner);
        tree.as_ref().map_or(Ok(()), |tree| tree.write_piece(piece, raw))
    }
}

impl PieceSink for TreeSink {
    fn write(&self, piece: PieceIndex, raw: &[u8]) -> Result<(), Box<dyn std::error::Error + Send + Sync>> {
        Ok(self.write_piece(piece, raw)?)
    }
}

/// What an installing node can tell others: the one image it installs.
#[derive(Debug, Default)]
struct KnownImage(Mutex<Option<Answer>>);

impl KnownImage {
    fn learn(&self, answer: Answer) {
        *self.0.lock().unwrap_or_else(PoisonError::into_inner) = Some(answer);
    }
}

impl Directory for KnownImage {
    fn answer(&self, query: &Query) -> Option<Answer> {
        let known = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let known = known.as_ref()?;
        let same = match query {
            Query::Image(image) => known.root.as_ref()?.cid() == *image,
            Query::Name(_) => known.query == *query,
        };
        same.then(|| Answer { query: query.clone(), ..known.clone() })
    }

    fn offer(&self, _: &Cid) -> Option<Offer> {
        None
    }
}

/// The kind of drift that a loss will show as. A device or link that could not be made is missing, and stays so.
fn drift_of(aspect: Aspect) -> Option<DriftKind> {
    match aspect {
        Aspect::Owner => Some(DriftKind::Owner),
        Aspect::Mode => Some(DriftKind::Mode),
        Aspect::Xattr => Some(DriftKind::Xattr),
        Aspect::Time => Some(DriftKind::Mtime),
        Aspect::Flags => Some(DriftKind::Flags),
        Aspect::Project => Some(DriftKind::Project),
        Aspect::Device | Aspect::Target => None,
    }
}

async fn blocking<T: Send + 'static>(work: impl FnOnce() -> T + Send + 'static) -> T {
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
