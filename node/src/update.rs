//! From the image that a machine runs to another one, in place: update, rollback, repair.
//!
//! Learn the image and its manifest, plan by hash, fetch only what the machine lacks, prepare all that is new beside the
//! tree, then rename. Nothing visible changes before everything is local. A killed update is finished by the same command,
//! or by an update to yet another image, or by a rollback.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Instant;

use serde::Serialize;
use shoal_proto::cid::Cid;
use shoal_proto::exchange::Bitfield;
use shoal_proto::image::{ImageName, ImagePath, Manifest, PieceIndex};
use shoal_proto::wire::{ByteRanges, Query};

use crate::change::Change;
use crate::join::{self, JoinOptions, Membership, blocking, peak_rss_bytes, verified_in};
use crate::manifest::{self, read_manifest};
use crate::peer::{self, BoxError, Lacking, ListKind, Peer, PieceSink};
use crate::progress::{Monitor, Stage};
use crate::state::{self, Phase, Previous, Record, State, TargetState};
use crate::store::{self, Store};
use crate::tree::Item;
use crate::tree::rules::RulesError;
use crate::tree::update::{TreeBlocks, Update, UpdateError, UpdateReport};

/// How a tree is treated.
#[derive(Clone, Debug)]
pub struct TreeOptions {
    /// Rules of this machine, instead of those in the tree.
    pub rules: Option<PathBuf>,
    /// Remove also what no image brought.
    pub delete: bool,
    /// Replace directories at the top as wholes, each in one call.
    pub switch: bool,
    /// Most raw bytes that are kept for a rollback.
    pub keep_bytes: u64,
}

/// What to update, and to what.
#[derive(Debug)]
pub struct UpdateOptions {
    pub join: JoinOptions,
    /// Overrides the ticket's image.
    pub image: Option<ImageName>,
    /// A tree that was installed or updated by this node, or any other one.
    pub target: PathBuf,
    /// The node's state directory.
    pub data: PathBuf,
    pub tree: TreeOptions,
    /// Plan only: nothing is touched.
    pub dry_run: bool,
}

#[derive(Debug, thiserror::Error)]
pub enum Error {
    #[error("the ticket names no image: say --image NAME")]
    NoImageNamed,
    #[error("{} holds an unfinished install: run it again first", .0.display())]
    UnfinishedInstall(PathBuf),
    #[error("{} holds an unfinished update: run it again, repair or roll back", .0.display())]
    UnfinishedUpdate(PathBuf),
    #[error("{} was not installed or updated by this node (see --data)", .0.display())]
    NotInstalled(PathBuf),
    #[error("{} has no previous image to return to", .0.display())]
    NoPrevious(PathBuf),
    #[error("{lacking_bytes} bytes of image {image} are not on this machine: say --ticket to fetch them")]
    Lacking { image: Cid, lacking_bytes: u64 },
    #[error("{lacking_bytes} bytes of image {image} were not kept on this machine: update to it instead")]
    NotKept { image: Cid, lacking_bytes: u64 },
    #[error("something is mounted on {path}, which was left as it is{}; unmount and run again", .others.checked_sub(1).map(|_| format!(", and on {others} other paths")).unwrap_or_default())]
    Busy { path: ImagePath, others: usize },
    #[error(transparent)]
    State(#[from] state::Error),
    #[error(transparent)]
    Store(#[from] store::Error),
    #[error(transparent)]
    Rules(#[from] RulesError),
    #[error(transparent)]
    Join(#[from] join::Error),
    #[error(transparent)]
    Peer(#[from] peer::Error),
    #[error(transparent)]
    Manifest(#[from] manifest::Error),
    #[error(transparent)]
    Tree(#[from] UpdateError),
}

/// The result of an update, as `--json` prints it. Sizes in bytes, times in seconds.
#[derive(Clone, Debug, Default, Serialize)]
pub struct ChangeReport {
    pub image: String,
    pub name: Option<String>,
    pub entries: u64,
    pub bytes_from_seeder: u64,
    pub bytes_from_peers: u64,
    /// Raw bytes of new files that were on this machine already.
    pub bytes_reused: u64,
    pub duplicate_bytes: u64,
    pub corrupt_bytes: u64,
    pub created: u64,
    pub replaced: u64,
    pub adjusted: u64,
    pub removed: u64,
    pub pieces: u64,
    pub pieces_fetched: u64,
    /// From the start to the plan.
    pub plan_s: f64,
    /// From the plan to the last piece verified.
    pub fetch_s: f64,
    /// From the last piece to the synced tree.
    pub apply_s: f64,
    pub elapsed_s: f64,
    pub peak_rss_bytes: u64,
    /// How often what could not be set.
    pub losses: BTreeMap<&'static str, u64>,
}

/// What would be done.
#[derive(Debug, Serialize)]
pub struct DryRun {
    pub image: String,
    pub items: Vec<Item>,
    /// Raw bytes that are needed and not on this machine.
    pub lacking_bytes: u64,
}

/// How an update ended.
#[derive(Debug)]
pub enum Outcome {
    Planned(DryRun),
    Done(Box<Updated>),
}

/// A node whose tree is the image and which still serves its pieces.
#[derive(Debug)]
pub struct Updated {
    pub report: ChangeReport,
    membership: Membership,
    /// Held for its lock: the node's key is in use.
    _state: State,
}

impl Updated {
    pub fn peer(&self) -> &Peer {
        &self.membership.peer
    }

    /// Leaves the swarm and removes the fetched blocks, unless the caller chose where they are kept.
    pub async fn leave(self) {
        self.membership.leave().await;
    }
}

/// Makes the tree at a target another image.
pub async fn update(options: UpdateOptions, monitor: &dyn Monitor) -> Result<Outcome, Error> {
    let started = Instant::now();
    let state = State::open(&options.data)?;
    let target = state.target(&options.target)?;
    let change = Change::of(target.clone(), &options.target, options.tree)?;
    let name = options.image.or_else(|| options.join.ticket.image.clone()).ok_or(Error::NoImageNamed)?;
    let membership = Membership::join(state.key.clone(), options.join, &target, started).await?;
    let run = Run { state, target, change: Arc::new(change), membership };
    run.bring(Query::Name(name), options.dry_run, monitor).await
}

/// Returns a tree to the image before the present one, from what is on this machine.
pub fn rollback(data: &Path, target: &Path, options: TreeOptions) -> Result<ChangeReport, Error> {
    let started = Instant::now();
    let state = State::open(data)?;
    let tree = state.target(target)?;
    let change = Change::of(tree.clone(), target, options)?;
    let record = change.record().ok_or_else(|| Error::NotInstalled(target.to_owned()))?;
    let back = if record.phase == Phase::Updating && record.rolling_back {
        Some(Previous { image: record.image.clone(), name: record.name.clone() })
    } else {
        record.previous.clone()
    };
    let back = back.ok_or_else(|| Error::NoPrevious(target.to_owned()))?;
    let image: Cid = back.image.parse().map_err(|_| Error::NoPrevious(target.to_owned()))?;
    let goal = Arc::new(read_manifest(&tree, &image)?);
    local(&change, &tree, &goal, (image, back.name), true, started).map_err(|error| match error {
        // A rollback asks no swarm.
        Error::Lacking { image, lacking_bytes } => Error::NotKept { image, lacking_bytes },
        other => other,
    })
}

/// Gives drifted paths of the present image back their content and metadata. With a ticket, from the swarm where this
/// machine lacks something.
pub async fn repair(
    data: &Path,
    target: &Path,
    options: TreeOptions,
    join: Option<JoinOptions>,
    monitor: &dyn Monitor,
) -> Result<ChangeReport, Error> {
    let started = Instant::now();
    let state = State::open(data)?;
    let tree = state.target(target)?;
    let change = Arc::new(Change::of(tree.clone(), target, options)?);
    let record = change.record().cloned().ok_or_else(|| Error::NotInstalled(target.to_owned()))?;
    let image = record.image().ok_or_else(|| Error::NotInstalled(target.to_owned()))?;
    let goal = Arc::new(read_manifest(&tree, &image)?);
    let done = {
        let (change, tree, name) = (change.clone(), tree.clone(), record.name.clone());
        blocking(move || local(&change, &tree, &goal, (image, name), false, started)).await
    };
    match (done, join) {
        (Err(Error::Lacking { .. }), Some(join)) => {
            let membership = Membership::join(state.key.clone(), join, &tree, started).await?;
            let run = Run { state, target: tree, change, membership };
            match run.bring(Query::Image(image), false, monitor).await? {
                Outcome::Done(updated) => {
                    let report = updated.report.clone();
                    updated.leave().await;
                    Ok(report)
                }
                Outcome::Planned(_) => unreachable!("no dry run was asked for"),
            }
        }
        (done, _) => done,
    }
}

/// A change that needs nothing from the network.
fn local(
    change: &Change,
    target: &TargetState,
    goal: &Arc<Manifest>,
    (image, name): (Cid, Option<String>),
    rolling_back: bool,
    started: Instant,
) -> Result<ChangeReport, Error> {
    let update = change.prepare(goal, image)?;
    if update.wanted().count() > 0 {
        return Err(Error::Lacking { image, lacking_bytes: update.lacking_bytes() });
    }
    let planned = Instant::now();
    // Empty, but for what an interrupted update fetched.
    let blocks = Store::open(&target.store_dir())?;
    let done = change.perform(&update, &blocks, image, name.clone(), rolling_back)?;
    Ok(report(&update, &done, image, name, started, planned))
}

fn report(
    update: &Update,
    done: &UpdateReport,
    image: Cid,
    name: Option<String>,
    started: Instant,
    planned: Instant,
) -> ChangeReport {
    ChangeReport {
        image: image.to_string(),
        name,
        entries: update.goal().tree().len() as u64,
        bytes_reused: done.reused_bytes,
        created: done.created,
        replaced: done.replaced,
        adjusted: done.adjusted,
        removed: done.removed,
        pieces: update.goal().content().len() as u64,
        plan_s: (planned - started).as_secs_f64(),
        apply_s: planned.elapsed().as_secs_f64(),
        elapsed_s: started.elapsed().as_secs_f64(),
        peak_rss_bytes: peak_rss_bytes(),
        losses: done.losses.counts.iter().map(|(aspect, count)| (aspect.name(), *count)).collect(),
        ..ChangeReport::default()
    }
}

/// One run with the swarm: everything that its steps share.
struct Run {
    state: State,
    target: TargetState,
    change: Arc<Change>,
    membership: Membership,
}

impl Run {
    async fn bring(self, wanted: Query, dry_run: bool, monitor: &dyn Monitor) -> Result<Outcome, Error> {
        let Self { state, target, change, membership } = self;
        let (answer, root) = membership.look_up(wanted, monitor).await.map_err(join::Error::from)?;
        let image = root.cid();
        let name = match &answer.query {
            Query::Name(name) => Some(name.to_string()),
            Query::Image(_) => change.record().and_then(|record| record.name.clone()),
        };
        target.write_root(&root)?;
        let goal = membership.fetch_manifest(&root, &target, monitor).await?;
        membership.tell(Stage::Planning, monitor).await;
        let (planner, planned) = (change.clone(), goal.clone());
        let update = blocking(move || planner.prepare(&planned, image)).await?;
        let planned = Instant::now();
        if dry_run {
            let items = update.items();
            let lacking_bytes = update.lacking_bytes();
            membership.leave().await;
            return Ok(Outcome::Planned(DryRun { image: image.to_string(), items, lacking_bytes }));
        }
        update.check()?;
        membership.learn(answer);
        let list = goal.content().clone();
        let (store, resumed) = (membership.store.clone(), list.clone());
        let mut held = blocking(move || verified_in(&store, &resumed, |_, _| Ok::<(), Error>(()))).await?;
        let (in_tree, wanted) = (update.held(), update.wanted());
        let mut unwanted = Bitfield::empty(list.len());
        let mut pieces_fetched = 0;
        for piece in list.indexes() {
            if in_tree.contains(piece) {
                held.insert(piece);
            } else if !wanted.contains(piece) {
                unwanted.insert(piece);
            } else {
                pieces_fetched += u64::from(!held.contains(piece));
            }
        }
        let blocks = update.blocks();
        membership.serve_tree(blocks.clone());
        let sink = Arc::new(PartSink(blocks));
        let trade = membership.peer.trade_without(list, ListKind::Content, held, unwanted, sink).await?;
        membership.watch(Stage::Pieces, monitor, trade.completed()).await?;
        let fetched = Instant::now();
        membership.tell(Stage::Metadata, monitor).await;
        let (performer, store, named) = (change, membership.store.clone(), name.clone());
        let (update, done) = blocking(move || {
            let done = performer.perform(&update, &store, image, named, false)?;
            Ok::<_, Error>((update, done))
        })
        .await?;
        membership.tell(Stage::Complete, monitor).await;
        let traffic = membership.peer.status().await?.traffic;
        let report = ChangeReport {
            bytes_from_seeder: traffic.from_seeders_bytes,
            bytes_from_peers: traffic.from_peers_bytes,
            duplicate_bytes: traffic.duplicate_bytes,
            corrupt_bytes: traffic.corrupt_bytes,
            pieces_fetched,
            fetch_s: (fetched - planned).as_secs_f64(),
            apply_s: fetched.elapsed().as_secs_f64(),
            ..report(&update, &done, image, name, membership.started, planned)
        };
        Ok(Outcome::Done(Box::new(Updated { report, membership, _state: state })))
    }
}

/// Pieces end in the store; what the tree has of them need not travel.
struct PartSink(TreeBlocks);

impl PieceSink for PartSink {
    fn write(&self, _: PieceIndex, _: &[u8]) -> Result<(), BoxError> {
        Ok(())
    }

    fn lacking(&self, piece: PieceIndex) -> Lacking {
        self.0.lacking(piece)
    }

    fn fill(&self, piece: PieceIndex, raw: &mut [u8], arrived: &ByteRanges) -> Result<bool, BoxError> {
        Ok(self.0.fill(piece, raw, arrived))
    }
}

/// What a verify needs to know of a target: its record and the manifest of its image.
pub(crate) fn installed(data: &Path, target: &Path) -> Result<(Record, Manifest), Error> {
    let state = TargetState::at(data, target)?;
    let record = state.record()?.ok_or_else(|| Error::NotInstalled(target.to_owned()))?;
    match record.phase {
        Phase::Complete => {}
        Phase::Updating => return Err(Error::UnfinishedUpdate(target.to_owned())),
        Phase::Emptying | Phase::Installing => return Err(Error::UnfinishedInstall(target.to_owned())),
    }
    let image = record.image().ok_or_else(|| Error::NotInstalled(target.to_owned()))?;
    let manifest = read_manifest(&state, &image)?;
    Ok((record, manifest))
}
