//! The main path of a node: join, fetch root → manifest → pieces, write the tree, serve it.
//!
//! A killed install is finished by the same command: what the store holds is verified again, written again and not
//! fetched again. The record says `complete` only once the tree was synced.

mod target;

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::{Arc, PoisonError, RwLock};
use std::time::Instant;

use serde::Serialize;
use shoal_proto::cid::Cid;
use shoal_proto::image::{ImageName, Manifest, PieceIndex, RootRecord};
use shoal_proto::signing::Signed;
use shoal_proto::wire::{Answer, Query};

use crate::join::{self, JoinOptions, Membership, blocking, peak_rss_bytes, verified_in};
use crate::peer::{self, ListKind, LookupError, Peer, PieceSink, TradeHandle};
use crate::progress::{Monitor, Stage};
use crate::state::{self, Phase, Record, State, TargetState};
use crate::tree::apply::{Apply, ApplyError, ApplyOptions, check_room};

/// What to install, and where.
#[derive(Debug)]
pub struct InstallOptions {
    pub join: JoinOptions,
    /// Overrides the ticket's image.
    pub image: Option<ImageName>,
    /// An existing directory.
    pub target: PathBuf,
    /// The node's state directory.
    pub data: PathBuf,
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
    #[error("{} holds an unfinished update: update, repair or roll back; --force empties it first", .0.display())]
    UnfinishedUpdate(PathBuf),
    #[error(transparent)]
    State(#[from] state::Error),
    #[error(transparent)]
    Join(#[from] join::Error),
    #[error(transparent)]
    Peer(#[from] peer::Error),
    #[error(transparent)]
    Apply(#[from] ApplyError),
}

/// A node whose tree is complete and which still serves its pieces.
#[derive(Debug)]
pub struct Installed {
    pub report: InstallReport,
    pub manifest: Arc<Manifest>,
    membership: Membership,
    /// Held for its lock: the node's key is in use.
    _state: State,
}

impl Installed {
    pub fn peer(&self) -> &Peer {
        &self.membership.peer
    }

    /// Leaves the swarm and removes the blocks, which the tree holds too, unless the caller chose where they are kept.
    pub async fn leave(self) {
        self.membership.leave().await;
    }
}

/// Installs an image and returns while its pieces are still being served.
pub async fn install(options: InstallOptions, monitor: &dyn Monitor) -> Result<Installed, Error> {
    let started = Instant::now();
    let run = Run::prepare(options, started).await?;
    let (root, name) = run.find_root(monitor).await?;
    let manifest = run.membership.fetch_manifest(&root, &run.target, monitor).await?;
    run.fetch_tree(manifest, &root, name, monitor).await
}

/// What an install would do, as `--json` prints it. Sizes in bytes.
#[derive(Clone, Debug, Serialize)]
pub struct InstallPlan {
    pub image: String,
    pub name: Option<String>,
    pub entries: u64,
    pub raw_bytes: u64,
    pub pieces: u64,
    /// What the target holds now has to go first.
    pub empties_target: bool,
}

/// Joins, learns the image and checks that the target takes it; writes nothing there.
pub async fn plan_install(options: InstallOptions, monitor: &dyn Monitor) -> Result<InstallPlan, Error> {
    let run = Run::prepare(options, Instant::now()).await?;
    let (answer, root, name) = run.look_up(monitor).await?;
    if let Beginning::Complete(old) = run.beginning {
        return Err(run.nothing_to_do(old, &answer, root.cid()));
    }
    run.target.write_root(&root)?;
    let manifest = run.membership.fetch_manifest(&root, &run.target, monitor).await?;
    let empties_target = run.beginning == Beginning::ToBeEmptied;
    if !empties_target {
        let (checked, path) = (manifest.clone(), run.path.clone());
        blocking(move || check_room(&checked, &path)).await?;
    }
    let plan = InstallPlan {
        image: root.cid().to_string(),
        name: name.map(|name| name.to_string()),
        entries: manifest.tree().len() as u64,
        raw_bytes: manifest.content().raw_bytes(),
        pieces: manifest.content().len() as u64,
        empties_target,
    };
    run.membership.leave().await;
    Ok(plan)
}

/// One run of an install: everything that its steps share.
struct Run {
    path: PathBuf,
    state: State,
    target: TargetState,
    wanted: Query,
    beginning: Beginning,
    membership: Membership,
}

impl Run {
    async fn prepare(options: InstallOptions, started: Instant) -> Result<Self, Error> {
        let state = State::open(&options.data)?;
        let target = state.target(&options.target)?;
        let wanted =
            options.image.clone().or_else(|| options.join.ticket.image.clone()).ok_or(Error::NoImageNamed)?;
        let (wanted, beginning) = choose_wanted(&options, &target, wanted)?;
        let membership = Membership::join(state.key.clone(), options.join, &target, started).await?;
        Ok(Self { path: options.target, state, target, wanted, beginning, membership })
    }

    /// Learns which image it is, from the publisher's statements alone.
    async fn look_up(
        &self,
        monitor: &dyn Monitor,
    ) -> Result<(Answer, Signed<RootRecord>, Option<ImageName>), Error> {
        let (answer, root) = match self.membership.look_up(self.wanted.clone(), monitor).await {
            Err(LookupError::Unknown(Query::Image(image))) if self.beginning == Beginning::Resumed => {
                return Err(Error::ImageGone { path: self.path.clone(), image });
            }
            found => found.map_err(join::Error::from)?,
        };
        let name = match &answer.query {
            Query::Name(name) => Some(name.clone()),
            Query::Image(_) => self.target.record()?.and_then(|record| record.name?.parse().ok()),
        };
        Ok((answer, root, name))
    }

    async fn find_root(
        &self,
        monitor: &dyn Monitor,
    ) -> Result<(Signed<RootRecord>, Option<ImageName>), Error> {
        let (answer, root, name) = self.look_up(monitor).await?;
        let phase = match self.beginning {
            Beginning::Complete(old) => return Err(self.nothing_to_do(old, &answer, root.cid())),
            Beginning::ToBeEmptied => Phase::Emptying,
            Beginning::Empty | Beginning::Resumed => Phase::Installing,
        };
        self.membership.learn(answer);
        self.target.write_root(&root)?;
        self.target.write_record(&self.record(root.cid(), name.as_ref(), phase))?;
        tracing::info!(image = %root.cid(), name = name.as_ref().map(ImageName::as_str), "installing");
        Ok((root, name))
    }

    /// The tree is complete already, with this image or with another one.
    fn nothing_to_do(&self, old: Cid, answer: &Answer, new: Cid) -> Error {
        let path = self.path.clone();
        match &answer.query {
            Query::Name(name) if old != new => Error::OtherInstalled { path, old, name: name.clone(), new },
            _ => Error::AlreadyInstalled { path, image: old },
        }
    }

    async fn fetch_tree(
        self,
        manifest: Arc<Manifest>,
        root: &Signed<RootRecord>,
        name: Option<ImageName>,
        monitor: &dyn Monitor,
    ) -> Result<Installed, Error> {
        let target = self.path.clone();
        let membership = &self.membership;
        if self.beginning == Beginning::ToBeEmptied {
            let target = target.clone();
            blocking(move || target::empty(&target)).await?;
            self.target.write_record(&self.record(root.cid(), name.as_ref(), Phase::Installing))?;
        }
        let created = manifest.clone();
        let apply = blocking(move || Apply::create(created, &target, ApplyOptions::default())).await?;
        let sink = Arc::new(TreeSink(RwLock::new(Some(apply))));
        let list = manifest.content().clone();
        let (store, tree, resumed) = (membership.store.clone(), sink.clone(), list.clone());
        let held = blocking(move || verified_in(&store, &resumed, |piece, raw| tree.write_piece(piece, raw)))
            .await?;
        let pieces_resumed = held.count() as u64;
        let bytes_reused = held.iter().map(|piece| u64::from(list.piece(piece).raw_bytes)).sum();
        let trade: TradeHandle =
            membership.peer.trade(list.clone(), ListKind::Content, held, sink.clone()).await?;
        membership.watch(Stage::Pieces, monitor, trade.completed()).await?;
        let fetched = Instant::now();

        membership.tell(Stage::Metadata, monitor).await;
        let applied = blocking(move || sink.take().finish()).await?;
        let counts = &applied.losses.counts;
        let lost = applied.losses.kinds();
        self.target
            .write_record(&Record { lost, ..self.record(root.cid(), name.as_ref(), Phase::Complete) })?;
        let done = Instant::now();
        membership.tell(Stage::Complete, monitor).await;
        tracing::info!(image = %root.cid(), "the tree is complete");
        let traffic = membership.peer.status().await?.traffic;
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
            fetch_s: (fetched - membership.started).as_secs_f64(),
            apply_s: (done - fetched).as_secs_f64(),
            elapsed_s: (done - membership.started).as_secs_f64(),
            peak_rss_bytes: peak_rss_bytes(),
            losses: counts.iter().map(|(aspect, count)| (aspect.name(), *count)).collect(),
        };
        Ok(Installed { _state: self.state, report, manifest, membership: self.membership })
    }

    fn record(&self, image: Cid, name: Option<&ImageName>, phase: Phase) -> Record {
        Record {
            target: self.path.display().to_string(),
            image: image.to_string(),
            name: name.map(ToString::to_string),
            phase,
            lost: Vec::new(),
            owners: Vec::new(),
            rolling_back: false,
            previous: None,
        }
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
            (Phase::Updating, _) if !target::is_empty(target)? => {
                return Err(Error::UnfinishedUpdate(target.clone()));
            }
            (_, Some(image)) if !target::is_empty(target)? => {
                return Ok((Query::Name(name), Beginning::Complete(image)));
            }
            _ => {}
        }
    }
    let kept = [Some(&options.data), options.join.store.as_ref()];
    let kept: Vec<&Path> = kept.into_iter().flatten().map(PathBuf::as_path).collect();
    let full = target::check(target, options.force, &kept)?;
    Ok((Query::Name(name), if full { Beginning::ToBeEmptied } else { Beginning::Empty }))
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
