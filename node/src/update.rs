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
use shoal_proto::assignment::{self, Assignment};
use shoal_proto::cid::Cid;
use shoal_proto::exchange::Bitfield;
use shoal_proto::image::{ImageName, ImagePath, Manifest, PieceIndex};
use shoal_proto::wire::{Answer, ByteRanges, Query};

use crate::change::{Change, Destination};
use crate::goal::{self, Goal, HostOptions, Part, PartSink};
use crate::identity;
use crate::join::{self, JoinOptions, Membership, blocking, peak_rss_bytes, verified_in};
use crate::manifest::{self, read_manifest};
use crate::peer::{self, BoxError, Lacking, Peer, PieceSink, TradeHandle};
use crate::progress::{Monitor, Stage};
use crate::scripts::{self, Setting};
use crate::state::{self, Layered, Phase, Previous, Record, State, TargetState};
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
    /// The machine's own rules and the default ones do not count: what an install in place of a whole tree would not
    /// leave alone, this does not.
    pub whole: bool,
}

impl Default for TreeOptions {
    fn default() -> Self {
        Self { rules: None, delete: false, switch: false, keep_bytes: KEEP_BYTES, whole: false }
    }
}

/// Most raw bytes that are kept for a rollback when nobody says otherwise.
pub const KEEP_BYTES: u64 = 4 << 30;

/// What to update, and to what.
#[derive(Debug)]
pub struct UpdateOptions {
    pub join: JoinOptions,
    /// Overrides the ticket's image.
    pub image: Option<ImageName>,
    pub host: HostOptions,
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
    #[error("the cluster file lays other layers over the image by now: update instead")]
    LayersChanged,
    #[error("something is mounted on {path}, which was left as it is{}; unmount and run again", .others.checked_sub(1).map(|_| format!(", and on {others} other paths")).unwrap_or_default())]
    Busy { path: ImagePath, others: usize },
    #[error(transparent)]
    Goal(#[from] goal::Error),
    #[error(transparent)]
    Scripts(#[from] scripts::Error),
    #[error(transparent)]
    Identity(#[from] identity::Error),
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
    /// What the cluster file laid over an image: then `image` is their fold.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub layered: Option<Layered>,
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
    let named = options.join.ticket.image.clone();
    let membership = Membership::join(state.key.clone(), options.join, &target, started).await?;
    let assignment = membership.ask(&options.host, options.image.as_ref(), monitor).await?;
    let wanted = match &assignment {
        Some(said) => Query::Image(said.image_id),
        None => Query::Name(options.image.or(named).ok_or(Error::NoImageNamed)?),
    };
    let run = Run { state, target, change: Arc::new(change), membership, path: options.target };
    let excluded = assignment.as_ref().map_or_else(Vec::new, |said| said.lists.exclude_update.clone());
    run.bring(Wanted { query: wanted, assignment, excluded, only: None }, options.dry_run, monitor).await
}

/// Returns a tree to the image before the present one, from what is on this machine.
pub fn rollback(data: &Path, target: &Path, options: TreeOptions) -> Result<ChangeReport, Error> {
    let started = Instant::now();
    let state = State::open(data)?;
    let tree = state.target(target)?;
    let change = Change::of(tree.clone(), target, options)?;
    let record = change.record().ok_or_else(|| Error::NotInstalled(target.to_owned()))?;
    let back = if record.phase == Phase::Updating && record.rolling_back {
        let Record { image, name, layered, .. } = record.clone();
        Some(Previous { image, name, layered })
    } else {
        record.previous.clone()
    };
    let back = back.ok_or_else(|| Error::NoPrevious(target.to_owned()))?;
    let image: Cid = back.image.parse().map_err(|_| Error::NoPrevious(target.to_owned()))?;
    let goal = Arc::new(read_manifest(&tree, &image)?);
    let to = Destination { image, name: back.name, layered: back.layered };
    local(&change, &tree, &goal, to, true, started).map_err(|error| match error {
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
        let (change, tree) = (change.clone(), tree.clone());
        let to = Destination { image, name: record.name.clone(), layered: record.layered.clone() };
        blocking(move || local(&change, &tree, &goal, to, false, started)).await
    };
    match (done, join) {
        (Err(Error::Lacking { .. }), Some(join)) => {
            let membership = Membership::join(state.key.clone(), join, &tree, started).await?;
            let assignment = match &record.layered {
                // What the layers had is asked for by the name that they are given to.
                Some(layered) => {
                    let host = layered.host.parse().map_err(|_| Error::NotInstalled(target.to_owned()))?;
                    let host = HostOptions { host: Some(host), ..HostOptions::default() };
                    let image = record.name.as_ref().and_then(|name| name.parse().ok());
                    membership.ask(&host, image.as_ref(), monitor).await?
                }
                None => None,
            };
            let query = Query::Image(record.published_image().unwrap_or(image));
            let excluded =
                assignment.as_ref().map_or_else(Vec::new, |said| said.lists.exclude_update.clone());
            let path = target.to_owned();
            let run = Run { state, target: tree, change, membership, path };
            match run.bring(Wanted { query, assignment, excluded, only: Some(image) }, false, monitor).await?
            {
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
    to: Destination,
    rolling_back: bool,
    started: Instant,
) -> Result<ChangeReport, Error> {
    let image = to.image;
    let update = change.prepare(goal, &to)?;
    if update.wanted().count() > 0 {
        return Err(Error::Lacking { image, lacking_bytes: update.lacking_bytes() });
    }
    let planned = Instant::now();
    // Empty, but for what an interrupted update fetched.
    let blocks = Store::open(&target.store_dir())?;
    let done = change.perform(&update, &blocks, to.clone(), rolling_back)?;
    Ok(report(&update, &done, to, started, planned))
}

fn report(
    update: &Update,
    done: &UpdateReport,
    to: Destination,
    started: Instant,
    planned: Instant,
) -> ChangeReport {
    ChangeReport {
        image: to.image.to_string(),
        name: to.name,
        layered: to.layered,
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

/// What a tree is to become, as it is asked for.
pub(crate) struct Wanted {
    pub(crate) query: Query,
    pub(crate) assignment: Option<Assignment>,
    /// Patterns of what is left alone besides what every run leaves alone.
    pub(crate) excluded: Vec<String>,
    /// Nothing else will do.
    pub(crate) only: Option<Cid>,
}

/// One run with the swarm: everything that its steps share.
pub(crate) struct Run {
    pub(crate) state: State,
    pub(crate) target: TargetState,
    pub(crate) change: Arc<Change>,
    pub(crate) membership: Membership,
    pub(crate) path: PathBuf,
}

impl Run {
    pub(crate) async fn bring(
        self,
        wanted: Wanted,
        dry_run: bool,
        monitor: &dyn Monitor,
    ) -> Result<Outcome, Error> {
        let Self { state, target, change, membership, path } = self;
        let Wanted { query, assignment, excluded, only } = wanted;
        let (answer, root) = membership.look_up(query, monitor).await.map_err(join::Error::from)?;
        let place = (&target, &state.key);
        let goal = membership.fetch_goal(&root, assignment.as_ref(), &[], place, monitor).await?;
        if only.is_some_and(|only| only != goal.id) {
            return Err(Error::LayersChanged);
        }
        let to = destination(&goal, &answer, root.cid(), assignment.as_ref(), &excluded, change.record());
        membership.tell(Stage::Planning, monitor).await;
        let (planner, planned, planned_to) = (change.clone(), goal.manifest.clone(), to.clone());
        let update = blocking(move || planner.prepare(&planned, &planned_to)).await?;
        let planned = Instant::now();
        if dry_run {
            let items = update.items();
            let lacking_bytes = update.lacking_bytes();
            membership.leave().await;
            return Ok(Outcome::Planned(DryRun { image: to.image.to_string(), items, lacking_bytes }));
        }
        update.check()?;
        membership.learn(answer);
        let (trades, pieces_fetched) = trade(&membership, &goal.parts, &update).await?;
        for trade in trades {
            membership.watch(Stage::Pieces, monitor, trade.completed()).await?;
        }
        let fetched = Instant::now();
        membership.tell(Stage::Metadata, monitor).await;
        let (performer, store, performed_to) = (change, membership.store.clone(), to.clone());
        // A repair is no update: nothing new comes.
        let assignment = assignment.filter(|_| only.is_none());
        let setting =
            assignment.map(|assignment| Setting { assignment, target: path, goal: goal.id, state: target });
        let (update, done) = blocking(move || {
            let done = perform(&performer, &update, &store, performed_to, setting.as_ref())?;
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
            ..report(&update, &done, to, membership.started, planned)
        };
        Ok(Outcome::Done(Box::new(Updated { report, membership, _state: state })))
    }
}

/// Makes the tree the goal, with the scripts before and after.
fn perform(
    change: &Change,
    update: &Update,
    blocks: &Store,
    to: Destination,
    setting: Option<&Setting>,
) -> Result<UpdateReport, Error> {
    let Some(setting) = setting else { return change.perform(update, blocks, to, false) };
    // Where nothing changes there is nothing to prepare for, unless an earlier run was interrupted after it.
    let interrupted = setting.is_pending(assignment::Stage::PostUpdate)?;
    if update.plan().is_empty() && !interrupted {
        return change.perform(update, blocks, to, false);
    }
    if !interrupted {
        setting.run(assignment::Stage::PreUpdate)?;
        setting.expect(assignment::Stage::PostUpdate)?;
    }
    let done = change.perform(update, blocks, to, false)?;
    if change.is_whole() {
        let Assignment { identity, host, .. } = &setting.assignment;
        identity::settle_name(&setting.target, *identity, host)?;
    }
    setting.run(assignment::Stage::PostUpdate)?;
    Ok(done)
}

/// What the record will say of a goal. `published`: the image below all layers.
pub(crate) fn destination(
    goal: &Goal,
    answer: &Answer,
    published: Cid,
    assignment: Option<&Assignment>,
    excluded: &[String],
    record: Option<&Record>,
) -> Destination {
    let name = match (&answer.query, assignment) {
        (_, Some(said)) => Some(said.image.to_string()),
        (Query::Name(name), None) => Some(name.to_string()),
        _ => record.and_then(|record| record.name.clone()),
    };
    let layered = assignment.map(|said| Layered {
        host: said.host.to_string(),
        image: published.to_string(),
        layers: said.layers.iter().map(|layer| layer.name.to_string()).collect(),
        rules: goal::rules(excluded, said),
    });
    Destination { image: goal.id, name, layered }
}

/// Begins to trade what an update lacks, of which the tree serves what it has; says how many pieces have to come.
pub(crate) async fn trade(
    membership: &Membership,
    parts: &[Arc<Part>],
    update: &Update,
) -> Result<(Vec<TradeHandle>, u64), Error> {
    let blocks = update.blocks();
    membership.serve_tree(blocks.clone());
    let (in_tree, wanted) = (update.held(), update.wanted());
    let sink = Arc::new(Fetched(blocks));
    let (mut trades, mut pieces_fetched) = (Vec::new(), 0);
    for part in parts {
        let (store, resumed) = (membership.store.clone(), part.list.clone());
        let mut held = blocking(move || verified_in(&store, &resumed, |_, _| Ok::<(), Error>(()))).await?;
        let mut unwanted = Bitfield::empty(part.list.len());
        for piece in part.list.indexes() {
            match part.place(piece) {
                Some(place) if in_tree.contains(place) => drop(held.insert(piece)),
                Some(place) if wanted.contains(place) => {
                    pieces_fetched += u64::from(!held.contains(piece));
                }
                _ => drop(unwanted.insert(piece)),
            }
        }
        let sink = Arc::new(PartSink { part: part.clone(), sink: sink.clone() });
        trades.push(membership.peer.trade_listing(part.listing(held, unwanted), sink).await?);
    }
    Ok((trades, pieces_fetched))
}

/// Pieces end in the store; what the tree has of them need not travel.
struct Fetched(TreeBlocks);

impl PieceSink for Fetched {
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
