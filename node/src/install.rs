//! The main path of a node: join, fetch root → manifest → pieces, write the tree, serve it.
//!
//! A killed install is finished by the same command: what the store holds is verified again, written again and not
//! fetched again. The record says `complete` only once the tree was synced.

mod beginning;
mod target;

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::sync::{Arc, PoisonError, RwLock};
use std::time::Instant;

use serde::Serialize;
use shoal_proto::assignment::{Assignment, Mode, Stage};
use shoal_proto::cid::Cid;
use shoal_proto::exchange::Bitfield;
use shoal_proto::host::HostName;
use shoal_proto::image::{ImageName, Manifest, PieceIndex};
use shoal_proto::wire::{Answer, Query};

use self::beginning::{Ask, Beginning, How, choose_beginning};
use crate::change::{Change, Destination};
use crate::goal::{self, Goal, HostOptions, PartSink};
use crate::identity;
use crate::join::{self, JoinOptions, Membership, blocking, peak_rss_bytes, verified_in};
use crate::peer::{self, LookupError, Peer, PieceSink};
use crate::progress::{Monitor, Stage as Progress};
use crate::scripts::{self, Setting};
use crate::state::{self, Layered, Phase, Record, State, TargetState};
use crate::tree::apply::{Apply, ApplyError, ApplyOptions, check_room};
use crate::update::{self, TreeOptions, Updated, Wanted, destination};

/// What to install, and where.
#[derive(Clone, Debug)]
pub struct InstallOptions {
    pub join: JoinOptions,
    /// Instead of the image that the cluster file or the ticket names.
    pub image: Option<ImageName>,
    pub host: HostOptions,
    /// An existing directory.
    pub target: PathBuf,
    /// The node's state directory.
    pub data: PathBuf,
    /// Empty the target first when it holds something.
    pub force: bool,
    /// Instead of the cluster file's.
    pub mode: Option<Mode>,
    /// A person has to agree before the target is emptied, whatever the cluster file says.
    pub confirm: bool,
    /// The person agreed.
    pub confirmed: bool,
    /// How a tree is treated that is changed in place.
    pub tree: TreeOptions,
}

/// How an install ended.
#[derive(Debug)]
pub enum Outcome {
    /// The tree was written.
    Installed(Box<Installed>),
    /// The tree was changed in place.
    Updated(Box<Updated>),
    /// The mode is `none`.
    Untouched,
}

/// The result of an install, as `--json` prints it. Sizes in bytes, times in seconds.
#[derive(Clone, Debug, Serialize)]
pub struct InstallReport {
    pub image: String,
    pub name: Option<String>,
    /// What the cluster file laid over an image: then `image` is their fold.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub layered: Option<Layered>,
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
    #[error("everything in {} goes{}: --yes confirms it", .path.display(), .host.as_ref().map(|host| format!(", on host {host}")).unwrap_or_default())]
    Unconfirmed { path: PathBuf, host: Option<HostName> },
    #[error(transparent)]
    Goal(#[from] goal::Error),
    #[error(transparent)]
    Scripts(#[from] scripts::Error),
    #[error(transparent)]
    Identity(#[from] identity::Error),
    #[error(transparent)]
    InPlace(#[from] update::Error),
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

/// Brings an image into a target as the mode says, and returns while its pieces are still being served.
pub async fn install(options: InstallOptions, monitor: &dyn Monitor) -> Result<Outcome, Error> {
    let run = Run::prepare(options, Instant::now(), monitor).await?;
    match run.how {
        How::Untouched => {
            run.membership.leave().await;
            Ok(Outcome::Untouched)
        }
        How::InPlace { whole } => run.change_in_place(whole, monitor).await,
        How::Anew => {
            let learned = run.find_goal(monitor).await?;
            let installed = match learned.beginning {
                Beginning::Complete(_) => run.finish_scripts(learned, monitor).await?,
                _ => run.fetch_tree(learned, monitor).await?,
            };
            Ok(Outcome::Installed(Box::new(installed)))
        }
    }
}

/// What an install would do, as `--json` prints it. Sizes in bytes.
#[derive(Clone, Debug, Serialize)]
pub struct InstallPlan {
    pub image: String,
    pub name: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub layered: Option<Layered>,
    pub entries: u64,
    pub raw_bytes: u64,
    pub pieces: u64,
    /// What the target holds now has to go first.
    pub empties_target: bool,
    /// Only what differs is replaced.
    pub in_place: bool,
}

/// Joins, learns the image and checks that the target takes it; writes nothing there.
pub async fn plan_install(options: InstallOptions, monitor: &dyn Monitor) -> Result<InstallPlan, Error> {
    let run = Run::prepare(options, Instant::now(), monitor).await?;
    let Learned { goal, to, beginning, .. } = run.find_goal(monitor).await?;
    let manifest = goal.manifest;
    let empties_target = beginning == Beginning::ToBeEmptied;
    if !empties_target {
        let (checked, path) = (manifest.clone(), run.path.clone());
        blocking(move || check_room(&checked, &path)).await?;
    }
    let plan = InstallPlan {
        image: to.image.to_string(),
        name: to.name,
        layered: to.layered,
        entries: manifest.tree().len() as u64,
        raw_bytes: manifest.content().raw_bytes(),
        pieces: manifest.content().len() as u64,
        empties_target,
        in_place: matches!(run.how, How::InPlace { .. }),
    };
    run.membership.leave().await;
    Ok(plan)
}

/// One run of an install: everything that its steps share.
struct Run {
    path: PathBuf,
    state: State,
    target: TargetState,
    /// What must not be in the target.
    kept: Vec<PathBuf>,
    wanted: Query,
    beginning: Beginning,
    how: How,
    mode: Option<Mode>,
    tree: TreeOptions,
    assignment: Option<Assignment>,
    membership: Membership,
}

/// What is to be written.
struct Learned {
    goal: Goal,
    to: Destination,
    beginning: Beginning,
    answer: Answer,
}

impl Run {
    async fn prepare(
        options: InstallOptions,
        started: Instant,
        monitor: &dyn Monitor,
    ) -> Result<Self, Error> {
        let state = State::open(&options.data)?;
        let target = state.target(&options.target)?;
        let InstallOptions { join, image, host, target: path, data, force, mode, tree, .. } = options;
        let named = image.clone().or_else(|| join.ticket.image.clone());
        let kept = [Some(data), join.store.clone()];
        let kept: Vec<PathBuf> = kept.into_iter().flatten().collect();
        let ask = Ask { path: &path, target: &target, kept: &kept, force, mode };
        // What cannot be installed into is said before anybody is asked, unless that may say that it can.
        let mut before = Some(ask.beginning(named.as_ref(), None));
        if host.alone || named.is_some() && host.host.is_none() && mode.is_none() {
            before = before.transpose()?.map(Ok);
        }
        let membership = Membership::join(state.key.clone(), join, &target, started).await?;
        let assignment = membership.ask(&host, image.as_ref(), monitor).await?;
        let (wanted, (how, beginning)) = match &assignment {
            Some(said) => (Query::Image(said.image_id), ask.beginning(Some(&said.image), Some(said))?),
            None => match before.expect("looked at above")? {
                (how, Beginning::Resumed(image)) => (Query::Image(image), (how, Beginning::Resumed(image))),
                found => (Query::Name(named.ok_or(Error::NoImageNamed)?), found),
            },
        };
        let confirm = options.confirm || assignment.as_ref().is_some_and(|said| said.confirm);
        let whole = how == How::InPlace { whole: true };
        if (beginning == Beginning::ToBeEmptied && how == How::Anew || whole) && confirm && !options.confirmed
        {
            let host = assignment.map(|said| said.host);
            return Err(Error::Unconfirmed { path, host });
        }
        let mode = mode.or(assignment.as_ref().and_then(|said| said.mode));
        Ok(Self { path, state, target, kept, wanted, beginning, how, mode, tree, assignment, membership })
    }

    /// Learns which image it is, from the publisher's statements alone, and what is laid over it.
    async fn find_goal(&self, monitor: &dyn Monitor) -> Result<Learned, Error> {
        let (answer, root) = match self.membership.look_up(self.wanted.clone(), monitor).await {
            Err(LookupError::Unknown(Query::Image(image))) if self.assignment.is_none() => {
                return Err(Error::ImageGone { path: self.path.clone(), image });
            }
            found => found.map_err(join::Error::from)?,
        };
        let record = self.target.record()?;
        if self.assignment.is_none()
            && let Beginning::Complete(old) = self.beginning
        {
            return Err(self.nothing_to_do(old, &answer.query, root.cid()));
        }
        let excluded = self.assignment.as_ref().map_or_else(Vec::new, |said| said.lists.exclude_full.clone());
        let assignment = self.assignment.as_ref();
        let place = (&self.target, &self.state.key);
        let goal = self.membership.fetch_goal(&root, assignment, &excluded, place, monitor).await?;
        let to = destination(&goal, &answer, root.cid(), assignment, &excluded, record.as_ref());
        let beginning = match self.beginning {
            // Its scripts are left.
            Beginning::Complete(old) if old == goal.id && self.is_pending(&goal)? => self.beginning,
            Beginning::Complete(old) if old != goal.id && self.mode == Some(Mode::Full) => {
                choose_beginning(&self.path, &self.target, None, true, &self.kept)?
            }
            Beginning::Complete(old) => {
                let query = to.name.as_ref().and_then(|name| name.parse().ok()).map(Query::Name);
                return Err(self.nothing_to_do(old, &query.unwrap_or(answer.query), goal.id));
            }
            // Other layers than those that the unfinished tree was made of: nobody could tell what is left of it.
            Beginning::Resumed(image) if image != goal.id && assignment.is_some() => {
                choose_beginning(&self.path, &self.target, None, true, &self.kept)?
            }
            beginning => beginning,
        };
        Ok(Learned { goal, to, beginning, answer })
    }

    fn setting(&self, goal: Cid) -> Option<Setting> {
        let assignment = self.assignment.clone()?;
        Some(Setting { assignment, target: self.path.clone(), goal, state: self.target.clone() })
    }

    fn is_pending(&self, goal: &Goal) -> Result<bool, Error> {
        let setting = self.setting(goal.id);
        Ok(setting.map_or(Ok(false), |setting| setting.is_pending(Stage::PostInstall))?)
    }

    /// The tree is complete already, with this image or with another one.
    fn nothing_to_do(&self, old: Cid, asked: &Query, new: Cid) -> Error {
        let path = self.path.clone();
        match asked {
            Query::Name(name) if old != new => Error::OtherInstalled { path, old, name: name.clone(), new },
            _ => Error::AlreadyInstalled { path, image: old },
        }
    }

    /// All that comes before the first byte of a tree that is written anew.
    async fn begin(&self, learned: &Learned, setting: Option<&Setting>) -> Result<(), Error> {
        let empties = learned.beginning == Beginning::ToBeEmptied;
        if let Some(setting) = setting.cloned() {
            let (target, kept) = (self.path.clone(), self.target.identity_dir());
            blocking(move || -> Result<(), Error> {
                if empties {
                    identity::keep(&target, &kept, setting.assignment.identity)?;
                }
                // Those of a tree that was begun ran before.
                if setting.state.record()?.is_none_or(|record| record.phase != Phase::Installing) {
                    setting.run(Stage::PreInstall)?;
                }
                Ok(())
            })
            .await?;
        }
        self.membership.learn(learned.answer.clone());
        if empties {
            self.target.write_record(&self.record(&learned.to, Phase::Emptying))?;
            let target = self.path.clone();
            blocking(move || target::empty(&target)).await?;
        }
        self.target.write_record(&self.record(&learned.to, Phase::Installing))?;
        tracing::info!(image = %learned.to.image, name = learned.to.name, "installing");
        Ok(())
    }

    async fn fetch_tree(self, learned: Learned, monitor: &dyn Monitor) -> Result<Installed, Error> {
        let setting = self.setting(learned.goal.id);
        self.begin(&learned, setting.as_ref()).await?;
        let Learned { goal, to, .. } = learned;
        let (target, membership) = (self.path.clone(), &self.membership);
        let manifest = goal.manifest.clone();
        let created = manifest.clone();
        let apply = blocking(move || Apply::create(created, &target, ApplyOptions::default())).await?;
        let sink = Arc::new(TreeSink(RwLock::new(Some(apply))));
        let fetched = fetch(membership, &goal, &sink, monitor).await?;
        let fetched_at = Instant::now();

        membership.tell(Progress::Metadata, monitor).await;
        let applied = blocking(move || sink.take().finish()).await?;
        let counts = &applied.losses.counts;
        let lost = applied.losses.kinds();
        let complete = Record { lost, ..self.record(&to, Phase::Complete) };
        self.complete(complete, setting).await?;
        let done = Instant::now();
        membership.tell(Progress::Complete, monitor).await;
        tracing::info!(image = %to.image, "the tree is complete");
        let report = InstallReport {
            fetch_s: (fetched_at - membership.started).as_secs_f64(),
            apply_s: (done - fetched_at).as_secs_f64(),
            losses: counts.iter().map(|(aspect, count)| (aspect.name(), *count)).collect(),
            ..self.report(&manifest, to, &fetched).await?
        };
        Ok(Installed { _state: self.state, report, manifest, membership: self.membership })
    }

    /// Makes a tree that was written this machine's, records it, and runs the scripts that come after.
    async fn complete(&self, record: Record, setting: Option<Setting>) -> Result<(), Error> {
        let (target, state) = (self.path.clone(), self.target.clone());
        blocking(move || {
            let Some(setting) = setting else { return Ok(state.write_record(&record)?) };
            let kept = state.identity_dir();
            identity::settle(&target, &kept, setting.assignment.identity, &setting.assignment.host)?;
            setting.expect(Stage::PostInstall)?;
            state.write_record(&record)?;
            identity::forget(&kept);
            Ok(setting.run(Stage::PostInstall)?)
        })
        .await
    }

    /// Goes on with the scripts of a tree that is complete.
    async fn finish_scripts(self, learned: Learned, monitor: &dyn Monitor) -> Result<Installed, Error> {
        let setting = self.setting(learned.goal.id).expect("who has scripts left has an assignment");
        self.membership.learn(learned.answer.clone());
        blocking(move || setting.run(Stage::PostInstall)).await?;
        self.membership.tell(Progress::Complete, monitor).await;
        let manifest = learned.goal.manifest;
        let pieces = manifest.content().len() as u64;
        let fetched = Fetched { pieces, resumed: pieces, bytes_reused: 0 };
        let report = self.report(&manifest, learned.to, &fetched).await?;
        Ok(Installed { _state: self.state, report, manifest, membership: self.membership })
    }

    async fn report(
        &self,
        manifest: &Manifest,
        to: Destination,
        fetched: &Fetched,
    ) -> Result<InstallReport, Error> {
        let traffic = self.membership.peer.status().await?.traffic;
        Ok(InstallReport {
            image: to.image.to_string(),
            name: to.name,
            layered: to.layered,
            entries: manifest.tree().len() as u64,
            raw_bytes: manifest.content().raw_bytes(),
            bytes_from_seeder: traffic.from_seeders_bytes,
            bytes_from_peers: traffic.from_peers_bytes,
            bytes_reused: fetched.bytes_reused,
            duplicate_bytes: traffic.duplicate_bytes,
            corrupt_bytes: traffic.corrupt_bytes,
            pieces: fetched.pieces,
            pieces_fetched: fetched.pieces - fetched.resumed,
            pieces_resumed: fetched.resumed,
            fetch_s: 0.0,
            apply_s: 0.0,
            elapsed_s: self.membership.started.elapsed().as_secs_f64(),
            peak_rss_bytes: peak_rss_bytes(),
            losses: BTreeMap::new(),
        })
    }

    /// Changes what is there, as an update does.
    async fn change_in_place(self, whole: bool, monitor: &dyn Monitor) -> Result<Outcome, Error> {
        let tree = TreeOptions { whole, delete: self.tree.delete || whole, ..self.tree };
        let change = Change::of(self.target.clone(), &self.path, tree)?;
        let excluded = self.assignment.as_ref().map_or_else(Vec::new, |said| match whole {
            true => said.lists.exclude_full.clone(),
            false => said.lists.exclude_sync.clone(),
        });
        let wanted = Wanted { query: self.wanted, assignment: self.assignment, excluded, only: None };
        let run = update::Run {
            state: self.state,
            target: self.target,
            change: Arc::new(change),
            membership: self.membership,
            path: self.path,
        };
        match run.bring(wanted, false, monitor).await? {
            update::Outcome::Done(updated) => Ok(Outcome::Updated(updated)),
            update::Outcome::Planned(_) => unreachable!("no dry run was asked for"),
        }
    }

    fn record(&self, to: &Destination, phase: Phase) -> Record {
        Record {
            target: self.path.display().to_string(),
            image: to.image.to_string(),
            name: to.name.clone(),
            phase,
            lost: Vec::new(),
            owners: Vec::new(),
            rolling_back: false,
            previous: None,
            layered: to.layered.clone(),
        }
    }
}

/// Pieces of the goal, and how many of them an earlier run had verified.
struct Fetched {
    pieces: u64,
    resumed: u64,
    /// Raw bytes of these.
    bytes_reused: u64,
}

/// Brings every piece of the goal into the tree, and goes on serving.
async fn fetch(
    membership: &Membership,
    goal: &Goal,
    sink: &Arc<TreeSink>,
    monitor: &dyn Monitor,
) -> Result<Fetched, Error> {
    let mut fetched = Fetched { pieces: goal.manifest.content().len() as u64, resumed: 0, bytes_reused: 0 };
    let mut trades = Vec::new();
    for part in &goal.parts {
        let (store, tree, resumed) = (membership.store.clone(), sink.clone(), part.clone());
        let held = blocking(move || {
            let write = |piece, raw: &[u8]| match resumed.place(piece) {
                Some(place) => tree.write_piece(place, raw),
                None => Ok(()),
            };
            verified_in(&store, &resumed.list, write)
        });
        let held = held.await?;
        let mut unwanted = Bitfield::empty(part.list.len());
        for piece in part.list.indexes() {
            if part.place(piece).is_none() {
                unwanted.insert(piece);
            } else if held.contains(piece) {
                fetched.resumed += 1;
                fetched.bytes_reused += u64::from(part.list.piece(piece).raw_bytes);
            }
        }
        let placed = Arc::new(PartSink { part: part.clone(), sink: sink.clone() });
        trades.push(membership.peer.trade_listing(part.listing(held, unwanted), placed).await?);
    }
    for trade in trades {
        membership.watch(Progress::Pieces, monitor, trade.completed()).await?;
    }
    Ok(fetched)
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
