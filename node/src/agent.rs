//! An installed machine that follows a channel: fetches each release ahead, applies it when it may, and goes back when
//! it is not well.
//!
//! Each step is on disk before it takes effect ([`life`]), so that an agent that was killed, or a machine that was
//! switched off, goes on where it was. It serves what it has all the time. Leave to apply comes from the seeder, signed
//! by the publisher; once it is here it stands, whether the seeder can be reached or not.

pub mod config;
pub mod life;
mod session;
mod voice;
pub mod window;

use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

pub use config::Config;
use life::{Before, Life};
use session::{Prepared, Session, Tree};
use shoal_proto::cid::Cid;
use shoal_proto::fleet::Stage;
use shoal_proto::release::{News, Release};
use tokio::sync::watch;
use voice::{View, Voice};

use crate::clock::unix_s;
use crate::command;
use crate::join::{self, blocking};
use crate::manifest;
use crate::peer::{self, FleetConfig, Heard};
use crate::state::{self, Phase, State, TargetState};
use crate::store::{self, Store};
use crate::update;

/// Wait before a failed fetch is tried again.
const RETRY_INTERVAL: Duration = Duration::from_secs(5);
/// Between two looks at what no message tells of: the clock, and whether a peer is there.
const LOOK_INTERVAL: Duration = Duration::from_secs(1);
/// Between two tries of the health command.
const HEALTH_INTERVAL: Duration = Duration::from_millis(500);

#[derive(Debug, thiserror::Error)]
pub enum Error {
    #[error(transparent)]
    State(#[from] state::Error),
    #[error(transparent)]
    Life(#[from] life::Error),
    #[error(transparent)]
    Join(#[from] join::Error),
    #[error(transparent)]
    Peer(#[from] peer::Error),
    #[error(
        "{0} has layers of the cluster file over its image, which an agent would take off: use `update` there"
    )]
    Layered(PathBuf),
    #[error(transparent)]
    Update(#[from] update::Error),
    #[error(transparent)]
    Manifest(#[from] manifest::Error),
    #[error(transparent)]
    Store(#[from] store::Error),
    #[error(transparent)]
    Command(#[from] command::Error),
}

/// A node at work.
#[derive(Debug)]
pub struct Agent {
    config: Arc<Config>,
    state: State,
    data: PathBuf,
    target: TargetState,
    tree: Tree,
    life: Life,
    view: watch::Sender<View>,
}

/// Why a session ends.
enum End {
    /// What it was about is done with: its blocks are in the tree, or are not needed.
    Over,
    /// Its blocks may be of use to the next.
    GoOn,
}

impl Agent {
    /// Takes the state directory for this process. The target must hold a tree that this node installed or updated, or
    /// any other one.
    pub fn open(config: Config, data: PathBuf) -> Result<Self, Error> {
        let state = State::open(&data)?;
        let target = state.target(&config.target)?;
        let mut life = Life::load(&data)?;
        life.save(&data)?;
        let view = watch::channel(View::new(&life, None)).0;
        let tree = Tree {
            target: target.clone(),
            path: config.target.clone(),
            options: config.tree.clone(),
            kept: Arc::new(Store::open(&target.kept_dir())?),
        };
        let mut agent = Self { config: Arc::new(config), state, data, target, tree, life, view };
        agent.show(None)?;
        Ok(agent)
    }

    /// Follows the channel for ever. An error is one that a person has to look at.
    pub async fn run(mut self) -> Result<(), Error> {
        loop {
            let session = self.join().await?;
            let voice =
                Voice::start(self.config.clone(), session.membership.peer.observer(), self.view.subscribe());
            let end = self.live(&session).await;
            drop(voice);
            match end {
                Ok(End::Over) => session.membership.leave().await,
                Ok(End::GoOn) => session.membership.stop().await,
                Err(error) => {
                    session.membership.stop().await;
                    return Err(error);
                }
            }
        }
    }

    async fn join(&self) -> Result<Session, Error> {
        let publisher = &self.config.join.ticket.publisher;
        let known = self.target.release(publisher, &self.config.channel)?;
        let fleet = FleetConfig {
            follow: Some(self.config.channel.clone()),
            known: known.into_iter().collect(),
            reports: None,
        };
        let (key, options) = (self.state.key.clone(), self.config.join.clone());
        Session::join(key, options, fleet, self.tree.clone()).await
    }

    /// The image that the tree is, when it is one whole.
    fn runs(&self) -> Result<Option<Before>, Error> {
        let record = self.target.record()?.filter(|record| record.phase == Phase::Complete);
        Ok(record.map(|record| Before { image: record.image, name: record.name }))
    }

    fn runs_image(&self) -> Result<Option<Cid>, Error> {
        Ok(self.runs()?.and_then(|before| before.image.parse().ok()))
    }

    /// Tells whoever watches where this node is, and why it waits.
    fn show(&mut self, waits: Option<String>) -> Result<(), Error> {
        let mut view = View::new(&self.life, self.runs_image()?);
        view.waits = waits;
        self.view.send_if_modified(|shown| std::mem::replace(shown, view.clone()) != view);
        Ok(())
    }

    /// Takes a step: on disk, then shown.
    fn step(&mut self) -> Result<(), Error> {
        self.life.save(&self.data)?;
        tracing::info!(
            stage = %self.life.stage,
            release = self.life.release,
            attempt = self.life.attempt,
            error = self.life.error.as_deref(),
            "step"
        );
        self.show(None)
    }

    fn advance(&mut self, stage: Stage) -> Result<(), Error> {
        self.life.advance(stage);
        self.step()
    }

    /// Does what there is to do until another session is needed for it.
    async fn live(&mut self, session: &Session) -> Result<End, Error> {
        if self.life.stage == Stage::Confirming {
            self.confirm(session).await?;
        }
        if self.life.stage == Stage::RollingBack {
            return self.roll_back(session).await;
        }
        let goal = match self.life.stage {
            Stage::Fetching | Stage::Staged | Stage::Applying => self.life.image(),
            _ => self.runs_image()?,
        };
        let prepared = match goal {
            None => None,
            Some(image) => {
                tokio::select! {
                    prepared = session.bring(image) => match prepared {
                        Ok(prepared) => Some(prepared),
                        Err(error) => return self.try_again(session, &error.into()).await,
                    },
                    news = self.news(session) => {
                        news?;
                        return Ok(End::GoOn);
                    }
                }
            }
        };
        match (self.life.stage, &prepared) {
            (Stage::Fetching, Some(_)) => self.advance(Stage::Staged)?,
            (Stage::Applying, Some(prepared)) => self.apply(session, prepared).await?,
            _ => {}
        }
        loop {
            if self.life.stage == Stage::RollingBack {
                return self.roll_back(session).await;
            }
            if let Some(end) = self.wait(session).await? {
                return Ok(end);
            }
            if let Some(prepared) = &prepared
                && let Some(end) = self.begin(session, prepared).await?
            {
                return Ok(end);
            }
        }
    }

    /// Something about the fetch went wrong that may pass.
    async fn try_again(&mut self, session: &Session, error: &anyhow::Error) -> Result<End, Error> {
        let why = format!("{error:#}");
        tracing::warn!(why, "what is to be fetched cannot be had");
        self.show(Some(why))?;
        tokio::select! {
            () = tokio::time::sleep(RETRY_INTERVAL) => {}
            news = self.news(session) => news?,
        }
        Ok(End::GoOn)
    }

    /// Waits until there is a release that is newer than the one that this node is about, and turns to it. Takes in
    /// what the seeder says meanwhile.
    async fn news(&mut self, session: &Session) -> Result<(), Error> {
        let (mut release, mut heard) = (session.membership.peer.release(), session.membership.peer.heard());
        loop {
            if self.hear_release(&release.borrow_and_update().clone())? {
                return Ok(());
            }
            self.hear_orders(&heard.borrow_and_update().clone())?;
            let changed = async {
                tokio::select! {
                    changed = release.changed() => changed,
                    changed = heard.changed() => changed,
                }
            };
            changed.await.map_err(|_| peer::Error::Stopped)?;
        }
    }

    /// Writes down a newer word about the channel; true when it is another release, and the tree is not changing.
    fn hear_release(&mut self, told: &Option<shoal_proto::signing::Signed<Release>>) -> Result<bool, Error> {
        let Some(signed) = told else { return Ok(false) };
        let (publisher, channel) = (&self.config.join.ticket.publisher, &self.config.channel);
        // The peer has verified it; what it is to be compared with is on disk.
        let Ok(release) = signed.verify(publisher) else { return Ok(false) };
        let known = self.target.release(publisher, channel)?;
        let known = known.and_then(|known| known.verify(publisher).ok());
        if !matches!(release.judge(known.as_deref(), unix_s()), Ok(News::Known) | Err(_)) {
            self.target.write_release(publisher, channel, signed)?;
        }
        if release.number <= self.life.release || self.life.is_changing() {
            return Ok(false);
        }
        let runs = self.runs_image()?;
        self.life.turn_to(&release, runs);
        self.step()?;
        Ok(true)
    }

    fn hear_orders(&mut self, heard: &Heard) -> Result<(), Error> {
        let permit = heard.permit.as_ref().filter(|_| !heard.hold);
        let has_changed = match permit {
            Some(permit) => self.life.permit(permit.release, permit.attempt),
            None => heard.hold && self.life.hold(),
        };
        if has_changed { self.step() } else { Ok(()) }
    }

    /// Serves, and waits until this node may apply; or until another session is needed.
    async fn wait(&mut self, session: &Session) -> Result<Option<End>, Error> {
        let (mut release, mut heard) = (session.membership.peer.release(), session.membership.peer.heard());
        loop {
            let stage = self.life.stage;
            if self.hear_release(&release.borrow_and_update().clone())? {
                // What was fetched and not applied may be in this release too.
                return Ok(Some(if stage == Stage::Confirmed { End::Over } else { End::GoOn }));
            }
            self.hear_orders(&heard.borrow_and_update().clone())?;
            let opens_in = window::opens_in(&self.config.windows, unix_s());
            match self.life.stage {
                Stage::Staged if self.life.may_apply() && opens_in.is_zero() => return Ok(None),
                Stage::Staged if self.life.may_apply() => {
                    let opens = humantime::format_duration(Duration::from_secs(opens_in.as_secs()));
                    self.show(Some(format!("its window opens in {opens}")))?;
                }
                Stage::Staged => self.show(Some("for leave to apply".to_owned()))?,
                Stage::RolledBack | Stage::Failed if self.life.may_apply() => {
                    self.advance(Stage::Fetching)?;
                    return Ok(Some(End::GoOn));
                }
                Stage::Confirmed if self.life.may_apply() => {
                    // It runs the release already.
                    self.life.attempt = self.life.permitted;
                    self.step()?;
                }
                _ => {}
            }
            let is_waiting = !opens_in.is_zero() && self.life.may_apply();
            tokio::select! {
                changed = release.changed() => changed.map_err(|_| peer::Error::Stopped)?,
                changed = heard.changed() => changed.map_err(|_| peer::Error::Stopped)?,
                () = tokio::time::sleep(LOOK_INTERVAL), if is_waiting => {}
            }
        }
    }

    /// Begins to apply; or fetches again, when something is lacking by now.
    async fn begin(&mut self, session: &Session, prepared: &Prepared) -> Result<Option<End>, Error> {
        match session.is_ready(prepared).await {
            Ok(true) => {}
            Ok(false) => {
                tracing::info!("the tree changed since the release was fetched");
                self.advance(Stage::Fetching)?;
                return Ok(Some(End::GoOn));
            }
            Err(error) => return self.try_again(session, &error.into()).await.map(Some),
        }
        self.life.before = self.runs()?;
        self.advance(Stage::Applying)?;
        self.apply(session, prepared).await?;
        Ok(None)
    }

    /// Changes the tree, and finds out whether that is well: confirmed, or on its way back.
    async fn apply(&mut self, session: &Session, prepared: &Prepared) -> Result<(), Error> {
        if let Err(error) = session.apply(prepared).await {
            return self.turn_back(format!("{:#}", anyhow::Error::from(error)));
        }
        self.life.boot = self.config.reboot.as_ref().map(|_| boot());
        let within_s = self.config.health.confirm_within.as_secs().max(1);
        self.life.confirm_by_s = Some(unix_s() + within_s);
        self.advance(Stage::Confirming)?;
        self.confirm(session).await
    }

    /// Finds out whether the machine is well: confirmed, or on its way back.
    async fn confirm(&mut self, session: &Session) -> Result<(), Error> {
        if let (Some(command), Some(before)) = (self.config.reboot.clone(), &self.life.boot)
            && *before == boot()
        {
            self.show(Some("for the machine to start again".to_owned()))?;
            let within = self.config.health.confirm_within;
            let began = blocking(move || command::run(&command, &[], within)).await;
            if let Err(error) = began {
                return self.turn_back(error.to_string());
            }
            // The end of this process is what is waited for.
            while self.life.confirm_by_s.is_some_and(|by_s| unix_s() <= by_s) {
                tokio::time::sleep(LOOK_INTERVAL).await;
            }
            return self.turn_back("the machine did not start again".to_owned());
        }
        loop {
            let why = match self.is_well(session).await? {
                Ok(()) => return self.advance(Stage::Confirmed),
                Err(why) => why,
            };
            if self.life.confirm_by_s.is_none_or(|by_s| unix_s() > by_s) {
                return self.turn_back(why);
            }
            self.show(Some(why))?;
            tokio::time::sleep(HEALTH_INTERVAL).await;
        }
    }

    /// Says why not.
    async fn is_well(&self, session: &Session) -> Result<Result<(), String>, Error> {
        if let Some(command) = self.config.health.command.clone() {
            let variables = [
                ("SHOAL_TARGET", self.config.target.display().to_string()),
                ("SHOAL_CHANNEL", self.config.channel.to_string()),
                ("SHOAL_RELEASE", self.life.release.to_string()),
                ("SHOAL_IMAGE", self.life.image.clone().unwrap_or_default()),
            ];
            let timeout = self.config.health.timeout;
            let health = blocking(move || command::run(&command, &variables, timeout)).await;
            if let Err(error) = health {
                return Ok(Err(format!("not well: {error}")));
            }
        }
        let is_alone =
            self.config.health.needs_contact && session.membership.peer.status().await?.neighbours == 0;
        Ok(if is_alone { Err("no peer can be reached".to_owned()) } else { Ok(()) })
    }

    fn turn_back(&mut self, why: String) -> Result<(), Error> {
        tracing::warn!(why, "the release is not kept");
        self.life.error = Some(why);
        self.advance(Stage::RollingBack)
    }

    async fn roll_back(&mut self, session: &Session) -> Result<End, Error> {
        let before = self.life.before.clone();
        let image = before.as_ref().and_then(|before| before.image.parse().ok());
        let done = match (image, before) {
            (Some(image), Some(before)) => session.roll_back(image, before.name).await,
            _ => Err(update::Error::NoPrevious(self.config.target.clone()).into()),
        };
        match done {
            Ok(()) => self.advance(Stage::RolledBack)?,
            Err(error) => {
                let why = self.life.error.take().unwrap_or_default();
                let error = anyhow::Error::from(error);
                tracing::error!(why, error = format!("{error:#}"), "the tree cannot be brought back");
                self.life.error = Some(format!("cannot roll back: {error:#} (after: {why})"));
                self.advance(Stage::Failed)?;
            }
        }
        Ok(End::GoOn)
    }
}

/// Names the present boot of the machine.
fn boot() -> String {
    std::fs::read_to_string("/proc/sys/kernel/random/boot_id").unwrap_or_default().trim().to_owned()
}
