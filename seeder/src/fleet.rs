//! The fleet as its nodes report it, and the one task that decides about it.
//!
//! Reports and the operator's words come in, the rollouts decide, what they decided is written down, and only then
//! anybody hears of it. A node is told what it may do whenever it reports, and at once when that changes while it is
//! connected.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use serde::{Deserialize, Serialize};
use shoal_node::clock::{unix_s, unix_time};
use shoal_node::peer::PeerId;
use shoal_proto::fleet::{Orders, Progress, Report};
use shoal_proto::release::{Channel, PERMIT_HOLDS_S, Permit};
use shoal_proto::rollout::{Instruction, NODES_MAX, Plan, Standing, What};
use shoal_proto::signing::Signed;
use shoal_proto::time::Time;
use tokio::sync::{mpsc, oneshot};
use tokio::task::AbortHandle;

use crate::home::Home;
use crate::releases;
use crate::rollouts::{self, Act, Book, RolloutReport};
use crate::swarms::Swarms;

/// Reports that may wait to be heard: those beyond are given again.
pub(crate) const REPORTS_MAX: usize = 4096;
/// Reports heard before what they lead to is written down.
const BATCH_MAX: usize = 1024;
/// Questions and words of the operator that may wait.
const REQUESTS_MAX: usize = 64;
/// How often a node reports when nothing changes: while a rollout is under way, and else.
const BUSY_INTERVAL_S: u32 = 10;
const QUIET_INTERVAL_S: u32 = 30;
/// Reports that a seeder asks for in a second, however large the fleet is.
const REPORTS_PER_S: usize = 200;
/// How often the releases are stated anew: far sooner than a statement ends to hold.
const RESTATE_INTERVAL: Duration = Duration::from_secs(6 * 3600);

#[derive(Debug, thiserror::Error)]
pub enum Error {
    #[error(transparent)]
    Rollouts(#[from] rollouts::Error),
    #[error(transparent)]
    Releases(#[from] releases::Error),
    #[error("the seeder is ending")]
    Ending,
}

/// The fleet, as `status --json` prints it.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
pub struct FleetReport {
    /// Whether a seeder runs, which alone knows the nodes.
    pub serving: bool,
    /// Nodes in each stage.
    pub stages: BTreeMap<String, usize>,
    pub nodes: Vec<NodeReport>,
    pub rollouts: Vec<RolloutReport>,
    /// Bytes of pieces that the seeder sent since it began to serve.
    pub sent_bytes: u64,
}

/// A node's newest report. Bytes as they travel, times in seconds.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct NodeReport {
    pub peer: String,
    pub host: String,
    pub groups: Vec<String>,
    pub rack: String,
    pub channel: String,
    pub release: u64,
    pub attempt: u32,
    pub image: Option<String>,
    pub stage: String,
    #[serde(flatten)]
    pub progress: Progress,
    pub waits: Option<String>,
    pub error: Option<String>,
    /// When it came.
    pub ago_s: u64,
}

/// Asks the task that decides. Dropping it ends the task.
#[derive(Debug)]
pub struct Overseer {
    requests: mpsc::Sender<Request>,
    task: AbortHandle,
}

enum Request {
    Status {
        reply: oneshot::Sender<FleetReport>,
    },
    Start {
        plan: Box<Plan>,
        reply: Answer,
    },
    Act {
        channel: Channel,
        act: Act,
        reply: Answer,
    },
    /// The releases changed on disk.
    Restate {
        reply: oneshot::Sender<Result<(), Error>>,
    },
}

type Answer = oneshot::Sender<Result<RolloutReport, Error>>;

struct Office {
    home: Arc<Home>,
    swarms: Arc<Swarms>,
    book: Book,
    fleet: BTreeMap<PeerId, (Report, Time)>,
    restate_at: Time,
}

impl Overseer {
    pub(crate) fn start(
        home: Arc<Home>,
        swarms: Arc<Swarms>,
        reports: mpsc::Receiver<(PeerId, Report)>,
    ) -> Result<Self, Error> {
        let book = Book::open(&home)?;
        let restate_at = unix_time() + RESTATE_INTERVAL;
        let office = Office { home, swarms, book, fleet: BTreeMap::new(), restate_at };
        let (requests, inbox) = mpsc::channel(REQUESTS_MAX);
        let task = tokio::spawn(office.run(reports, inbox)).abort_handle();
        Ok(Self { requests, task })
    }

    async fn ask<T>(&self, request: impl FnOnce(oneshot::Sender<T>) -> Request) -> Result<T, Error> {
        let (reply, answer) = oneshot::channel();
        self.requests.send(request(reply)).await.map_err(|_| Error::Ending)?;
        answer.await.map_err(|_| Error::Ending)
    }

    pub async fn status(&self) -> Result<FleetReport, Error> {
        self.ask(|reply| Request::Status { reply }).await
    }

    pub async fn start_rollout(&self, plan: Plan) -> Result<RolloutReport, Error> {
        self.ask(|reply| Request::Start { plan: Box::new(plan), reply }).await?
    }

    pub async fn act(&self, channel: Channel, act: Act) -> Result<RolloutReport, Error> {
        self.ask(|reply| Request::Act { channel, act, reply }).await?
    }

    /// Tells the swarm of the releases as they are on disk.
    pub async fn restate(&self) -> Result<(), Error> {
        self.ask(|reply| Request::Restate { reply }).await?
    }
}

impl Drop for Overseer {
    fn drop(&mut self) {
        self.task.abort();
    }
}

impl Office {
    async fn run(
        mut self,
        mut reports: mpsc::Receiver<(PeerId, Report)>,
        mut requests: mpsc::Receiver<Request>,
    ) {
        for channel in self.book.channels() {
            if let Some(rollout) = self.book.get_mut(&channel) {
                rollout.handle_away(unix_time());
            }
            self.take_effect(&channel).await;
        }
        let mut batch = Vec::new();
        loop {
            let due = self.book.next_timeout().map_or(self.restate_at, |due| due.min(self.restate_at));
            tokio::select! {
                heard = reports.recv_many(&mut batch, BATCH_MAX) => {
                    if heard == 0 {
                        return;
                    }
                    self.hear(std::mem::take(&mut batch)).await;
                }
                Some(request) = requests.recv() => self.handle(request).await,
                () = tokio::time::sleep(due.since(unix_time())) => self.wake().await,
            }
        }
    }

    async fn wake(&mut self) {
        let now = unix_time();
        for channel in self.book.channels() {
            if let Some(rollout) = self.book.get_mut(&channel)
                && rollout.poll_timeout().is_some_and(|due| due <= now)
            {
                rollout.handle_timeout(now);
                self.take_effect(&channel).await;
            }
        }
        if self.restate_at <= now {
            self.restate_at = now + RESTATE_INTERVAL;
            if let Err(error) = self.restate().await {
                tracing::error!(
                    error = format!("{:#}", anyhow::Error::from(error)),
                    "releases cannot be stated"
                );
            }
        }
    }

    async fn handle(&mut self, request: Request) {
        // Whoever asked may be gone.
        match request {
            Request::Status { reply } => drop(reply.send(self.status().await)),
            Request::Start { plan, reply } => drop(reply.send(self.start(*plan).await)),
            Request::Act { channel, act, reply } => drop(reply.send(self.act(&channel, act).await)),
            Request::Restate { reply } => drop(reply.send(self.restate().await)),
        }
    }

    /// Takes in reports, and answers each with what its node may do.
    async fn hear(&mut self, batch: Vec<(PeerId, Report)>) {
        let now = unix_time();
        let mut reporters = Vec::new();
        for (peer, report) in batch {
            let known = self.fleet.get(&peer);
            if known.is_none() && self.fleet.len() >= NODES_MAX {
                continue;
            }
            if known.is_none_or(|(known, _)| report.order > known.order) {
                if let Some(rollout) = self.book.get_mut(&report.channel) {
                    rollout.handle_report(now, peer, &report);
                }
                reporters.push((peer, report.channel.clone()));
                self.fleet.insert(peer, (report, now));
            }
        }
        for channel in self.book.channels() {
            self.take_effect(&channel).await;
        }
        for (peer, channel) in reporters {
            self.order(peer, &channel).await;
        }
    }

    async fn start(&mut self, plan: Plan) -> Result<RolloutReport, Error> {
        let (now, channel) = (unix_time(), plan.channel.clone());
        self.book.start(now, plan)?;
        if let Some(rollout) = self.book.get_mut(&channel) {
            for (peer, (report, _)) in &self.fleet {
                rollout.handle_report(now, *peer, report);
            }
        }
        self.decide(&channel).await?;
        Ok(self.book.report(&channel)?)
    }

    async fn act(&mut self, channel: &Channel, act: Act) -> Result<RolloutReport, Error> {
        self.book.act(unix_time(), channel, act)?;
        self.decide(channel).await?;
        Ok(self.book.report(channel)?)
    }

    async fn restate(&mut self) -> Result<(), Error> {
        for statement in releases::statements(&self.home)? {
            if let Err(error) = self.swarms.set_release(&statement).await {
                tracing::warn!(%error, "a release is not told");
            }
        }
        Ok(())
    }

    async fn take_effect(&mut self, channel: &Channel) {
        if let Err(error) = self.decide(channel).await {
            // What is not on disk takes no effect, and is written with the next decision.
            tracing::error!(%channel, error = format!("{:#}", anyhow::Error::from(error)), "a rollout cannot go on");
        }
    }

    /// Writes down what a rollout decided, and tells whom it concerns.
    async fn decide(&mut self, channel: &Channel) -> Result<(), Error> {
        let mut concerned = Vec::new();
        for event in self.book.commit(channel)? {
            tracing::info!(%channel, number = event.number, what = ?event.what, "decided");
            match event.what {
                What::Told { peer, .. } => concerned.extend(peer.parse::<PeerId>()),
                What::Halted { .. } | What::Resumed => concerned.extend(self.told(channel)),
                _ => {}
            }
        }
        for peer in concerned {
            self.order(peer, channel).await;
        }
        Ok(())
    }

    fn told(&self, channel: &Channel) -> Vec<PeerId> {
        let Some(rollout) = self.book.get(channel) else { return Vec::new() };
        let is_told = |node: &shoal_proto::rollout::Node| matches!(node.standing, Standing::Told { .. });
        rollout.nodes().iter().filter(|(_, node)| is_told(node)).map(|(peer, _)| *peer).collect()
    }

    /// Says what a node may do, as far as that is on disk.
    async fn order(&self, peer: PeerId, channel: &Channel) {
        let rollout = self.book.get(channel).filter(|rollout| !rollout.has_events());
        let instruction = rollout.map_or(Instruction::Wait, |rollout| rollout.order(&peer));
        let permit = match (instruction, rollout) {
            (Instruction::Apply { attempt }, Some(rollout)) => {
                let permit = Permit {
                    channel: channel.clone(),
                    release: rollout.plan().release,
                    attempt,
                    peer,
                    stated_s: unix_s(),
                    holds_s: PERMIT_HOLDS_S,
                };
                Some(Signed::sign(&permit, &self.home.publisher))
            }
            _ => None,
        };
        let orders = Orders {
            channel: channel.clone(),
            permit,
            hold: instruction == Instruction::Hold,
            report_in_s: self.interval_s(channel),
        };
        if let Err(error) = self.swarms.order(peer, orders).await {
            tracing::debug!(%peer, %error, "orders were not told");
        }
    }

    fn interval_s(&self, channel: &Channel) -> u32 {
        let is_busy = self.book.get(channel).is_some_and(|rollout| rollout.poll_timeout().is_some());
        let least = if is_busy { BUSY_INTERVAL_S } else { QUIET_INTERVAL_S };
        least.max(u32::try_from(self.fleet.len() / REPORTS_PER_S).unwrap_or(u32::MAX))
    }

    async fn status(&self) -> FleetReport {
        let now = unix_time();
        let mut stages = BTreeMap::new();
        for (report, _) in self.fleet.values() {
            *stages.entry(report.stage.name().to_owned()).or_default() += 1;
        }
        let node = |(peer, (report, at)): (&PeerId, &(Report, Time))| NodeReport {
            peer: peer.to_string(),
            host: report.host.clone(),
            groups: report.groups.iter().cloned().collect(),
            rack: report.rack.to_string(),
            channel: report.channel.to_string(),
            release: report.release,
            attempt: report.attempt,
            image: report.image.map(|image| image.to_string()),
            stage: report.stage.name().to_owned(),
            progress: report.progress,
            waits: report.waits.clone(),
            error: report.error.clone(),
            ago_s: now.since(*at).as_secs(),
        };
        FleetReport {
            serving: true,
            stages,
            nodes: self.fleet.iter().map(node).collect(),
            rollouts: self.book.reports(),
            sent_bytes: self.swarms.sent_bytes().await.unwrap_or_default(),
        }
    }
}
