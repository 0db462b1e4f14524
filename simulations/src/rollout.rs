//! What a fleet does with a release once it has fetched it: the shipping rollout machine, a seeder that is away now and
//! then, and reports that are lost, late, doubled and overtaken.
//!
//! Fetching comes first and for all, so that a node's finish in the swarm is when it is staged; nothing that follows
//! moves a piece.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use anyhow::{Context, bail, ensure};
use rand::{Rng, SeedableRng};
use rand_chacha::ChaCha8Rng;
use serde::Serialize;
use shoal_proto::cid::Cid;
use shoal_proto::fleet::{Order, Progress, Report, Stage};
use shoal_proto::rollout::{Gate, Instruction, Phase, Plan, Rollout, Unavailable, Wave, What};
use shoal_proto::signing::{Keypair, PeerId};
use shoal_proto::time::Time;

use crate::outcome::Finish;

const RELEASE: u64 = 2;
/// How often a node reports when nothing changes.
const INTERVAL: Duration = Duration::from_secs(10);
/// One way between a node and the seeder, at most.
const DELAY_MAX: Duration = Duration::from_millis(200);
/// Of reports and of orders.
const LOST: f64 = 0.02;
const DOUBLED: f64 = 0.05;
/// How much later the second one may come.
const ECHO_MAX: Duration = Duration::from_secs(30);
/// A run that takes longer is stuck.
const DEADLINE: Duration = Duration::from_secs(24 * 3600);

/// What a scenario does besides fetching.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Refresh {
    pub(crate) waves: &'static [&'static str],
    pub(crate) soak: Duration,
    /// Most nodes at once that change.
    pub(crate) unavailable: Option<u32>,
    /// Whether a machine that runs the release is well.
    pub(crate) is_good: bool,
    /// When the seeder is killed after the first node was staged, and for how long.
    pub(crate) away: &'static [(Duration, Duration)],
}

/// What came of it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub(crate) struct Figures {
    pub(crate) phase: &'static str,
    /// Waves whose gate was passed.
    pub(crate) waves_passed: usize,
    /// Nodes whose tree was changed, whether it stayed so or not.
    pub(crate) nodes_touched: usize,
    pub(crate) nodes_confirmed: usize,
    pub(crate) nodes_rolled_back: usize,
    /// Reports that the seeder heard.
    pub(crate) reports: u64,
    /// From the first staged node to the end, in seconds.
    pub(crate) rollout_s: u64,
    #[serde(skip)]
    pub(crate) digest: String,
}

impl Figures {
    pub(crate) fn text(&self) -> String {
        format!(
            "rollout       {} after {} s and {} gates; {} nodes touched, {} confirmed, {} rolled back; {} reports\n",
            self.phase,
            self.rollout_s,
            self.waves_passed,
            self.nodes_touched,
            self.nodes_confirmed,
            self.nodes_rolled_back,
            self.reports
        )
    }
}

enum Happens {
    /// A node takes its next step by itself.
    Step(usize),
    /// A node reports again.
    Beat(usize),
    Report(usize, Box<Report>),
    Orders(usize, Instruction),
    Timer,
    Dies(Duration),
    Returns,
}

struct Node {
    peer: PeerId,
    order: Order,
    stage: Stage,
    attempt: u32,
    permitted: u32,
}

struct World<'a> {
    refresh: &'a Refresh,
    nodes: Vec<Node>,
    by_peer: BTreeMap<PeerId, usize>,
    /// Absent while the seeder is away.
    seeder: Option<Rollout>,
    /// What it wrote down last.
    saved: String,
    /// Who was told, as far as that is written down, and how often.
    told: BTreeMap<String, u32>,
    touched: BTreeSet<usize>,
    waves_passed: usize,
    reports: u64,
    queue: BTreeMap<(Time, u64), Happens>,
    planned: u64,
    timer: Option<Time>,
    rng: ChaCha8Rng,
    history: blake3::Hasher,
}

/// Runs until every node is through, or until nothing more is to happen because the rollout halted.
pub(crate) fn run(refresh: &Refresh, finishes: &[Finish], seed: u64) -> anyhow::Result<Figures> {
    let finished = finishes.iter().filter_map(|finish| finish.finished);
    let began = Time::ZERO + finished.clone().min().context("no node fetched the release")?;
    let mut world = World::new(refresh, began, seed)?;
    for at in finished {
        world.add_node(Time::ZERO + at);
    }
    for (after, lasts) in refresh.away {
        world.plan(began + *after, Happens::Dies(*lasts));
    }
    let mut now = began;
    while let Some(((at, _), happens)) = world.queue.pop_first() {
        now = at;
        ensure!(now < began + DEADLINE, "the rollout is stuck in {:?}", world.phase());
        world.step(now, happens)?;
        if world.is_over() {
            break;
        }
    }
    world.figures(now.since(began))
}

impl<'a> World<'a> {
    fn new(refresh: &'a Refresh, now: Time, seed: u64) -> anyhow::Result<Self> {
        let plan = Plan {
            channel: "stable".parse()?,
            release: RELEASE,
            image: Cid::of(b"new"),
            waves: refresh.waves.iter().map(|wave| wave.parse()).collect::<Result<Vec<Wave>, _>>()?,
            gate: Gate { soak: refresh.soak, ..Gate::default() },
            unavailable: Unavailable { in_all: refresh.unavailable, ..Unavailable::default() },
            frozen: BTreeSet::new(),
            patience: Duration::from_secs(3600),
            gather: Duration::from_secs(30),
        };
        let mut world = Self {
            refresh,
            nodes: Vec::new(),
            by_peer: BTreeMap::new(),
            seeder: Some(Rollout::start(now, plan)?),
            saved: String::new(),
            told: BTreeMap::new(),
            touched: BTreeSet::new(),
            waves_passed: 0,
            reports: 0,
            queue: BTreeMap::new(),
            planned: 0,
            timer: None,
            rng: ChaCha8Rng::seed_from_u64(seed),
            history: blake3::Hasher::new(),
        };
        world.commit(now)?;
        Ok(world)
    }

    fn add_node(&mut self, staged: Time) {
        let at = self.nodes.len();
        let secret = *blake3::hash(&at.to_le_bytes()).as_bytes();
        let key = Keypair::ed25519_from_bytes(secret).expect("any 32 bytes are a key");
        let peer = key.public().to_peer_id();
        let node = Node { peer, order: Order::default(), stage: Stage::Fetching, attempt: 0, permitted: 0 };
        self.nodes.push(node);
        self.by_peer.insert(peer, at);
        self.plan(staged, Happens::Step(at));
    }

    fn plan(&mut self, at: Time, happens: Happens) {
        self.queue.insert((at, self.planned), happens);
        self.planned += 1;
    }

    fn random(&mut self, most: Duration) -> Duration {
        most.mul_f64(self.rng.random())
    }

    fn step(&mut self, now: Time, happens: Happens) -> anyhow::Result<()> {
        match happens {
            Happens::Step(node) => self.advance(now, node),
            Happens::Beat(node) => {
                self.say(now, node);
                self.plan(now + INTERVAL, Happens::Beat(node));
            }
            Happens::Report(node, report) => return self.hear(now, node, &report),
            Happens::Orders(node, instruction) => self.obey(now, node, instruction)?,
            Happens::Timer => {
                self.timer = None;
                if let Some(seeder) = &mut self.seeder {
                    seeder.handle_timeout(now);
                    self.commit(now)?;
                }
            }
            Happens::Dies(lasts) => {
                self.seeder = None;
                self.plan(now + lasts, Happens::Returns);
            }
            Happens::Returns => {
                let mut seeder: Rollout = serde_json::from_str(&self.saved)?;
                // What was written down with it is in the log already.
                while seeder.poll_event().is_some() {}
                seeder.handle_away(now);
                self.seeder = Some(seeder);
                self.commit(now)?;
            }
        }
        Ok(())
    }

    /// A node is through with what it was at.
    fn advance(&mut self, now: Time, at: usize) {
        let applies = self.random(Duration::from_secs(20));
        let is_good = self.refresh.is_good;
        let node = &mut self.nodes[at];
        let (stage, next) = match node.stage {
            Stage::Fetching => (Stage::Staged, None),
            Stage::Applying => (Stage::Confirming, Some(applies)),
            Stage::Confirming if is_good => (Stage::Confirmed, None),
            Stage::Confirming => (Stage::RollingBack, Some(applies)),
            Stage::RollingBack => (Stage::RolledBack, None),
            stage => (stage, None),
        };
        let was_fetching = node.stage == Stage::Fetching;
        node.stage = stage;
        node.order = Order { step: node.order.step + 1, beat: 0 };
        self.record(now, at, stage);
        self.say(now, at);
        if was_fetching {
            self.plan(now + INTERVAL, Happens::Beat(at));
        }
        if let Some(next) = next {
            self.plan(now + next, Happens::Step(at));
        }
        self.begin_if_told(now, at);
    }

    fn record(&mut self, now: Time, at: usize, stage: Stage) {
        self.history
            .update(&now.nanos().to_le_bytes())
            .update(&at.to_le_bytes())
            .update(stage.name().as_bytes());
    }

    fn begin_if_told(&mut self, now: Time, at: usize) {
        let node = &mut self.nodes[at];
        if node.stage == Stage::Staged && node.permitted > node.attempt {
            node.attempt = node.permitted;
            node.stage = Stage::Applying;
            node.order = Order { step: node.order.step + 1, beat: 0 };
            self.touched.insert(at);
            self.record(now, at, Stage::Applying);
            self.say(now, at);
            let applies = self.random(Duration::from_secs(60));
            self.plan(now + applies, Happens::Step(at));
        }
    }

    /// A node reports: it may be lost, and it may come twice.
    fn say(&mut self, now: Time, at: usize) {
        self.nodes[at].order.beat += 1;
        let report = self.report(at);
        let mut delays = vec![self.random(DELAY_MAX)];
        if self.rng.random_bool(DOUBLED) {
            delays.push(self.random(ECHO_MAX));
        }
        for delay in delays {
            if !self.rng.random_bool(LOST) {
                self.plan(now + delay, Happens::Report(at, Box::new(report.clone())));
            }
        }
    }

    fn report(&self, at: usize) -> Report {
        let node = &self.nodes[at];
        let runs = matches!(node.stage, Stage::Confirming | Stage::Confirmed);
        let image = match node.stage {
            Stage::Applying | Stage::RollingBack => None,
            _ => Some(Cid::of(if runs { b"new" } else { b"old" })),
        };
        Report {
            order: node.order,
            host: format!("node{at}"),
            groups: [format!("group{}", at % 3)].into(),
            rack: format!("rack{}", at / 40).parse().expect("a short label"),
            channel: "stable".parse().expect("a short name"),
            release: RELEASE,
            attempt: node.attempt,
            image,
            stage: node.stage,
            progress: Progress::default(),
            waits: None,
            error: (node.stage == Stage::RolledBack).then(|| "not well".to_owned()),
        }
    }

    fn hear(&mut self, now: Time, at: usize, report: &Report) -> anyhow::Result<()> {
        let Some(seeder) = &mut self.seeder else { return Ok(()) };
        self.reports += 1;
        seeder.handle_report(now, self.nodes[at].peer, report);
        self.commit(now)?;
        self.order(now, at);
        Ok(())
    }

    fn order(&mut self, now: Time, at: usize) {
        let Some(seeder) = &self.seeder else { return };
        let instruction = seeder.order(&self.nodes[at].peer);
        let delay = self.random(DELAY_MAX);
        if !self.rng.random_bool(LOST) {
            self.plan(now + delay, Happens::Orders(at, instruction));
        }
    }

    fn obey(&mut self, now: Time, at: usize, instruction: Instruction) -> anyhow::Result<()> {
        let node = &mut self.nodes[at];
        match instruction {
            Instruction::Wait => {}
            Instruction::Hold => node.permitted = node.attempt,
            Instruction::Apply { attempt } => {
                let told = self.told.get(&node.peer.to_string());
                ensure!(
                    told.is_some_and(|told| *told >= attempt),
                    "node {at} was told what is not written down"
                );
                node.permitted = node.permitted.max(attempt);
            }
        }
        self.begin_if_told(now, at);
        self.check_touched()
    }

    /// What the seeder decided is written down, and then takes effect.
    fn commit(&mut self, now: Time) -> anyhow::Result<()> {
        let Some(seeder) = &mut self.seeder else { return Ok(()) };
        let mut concerned = Vec::new();
        if seeder.has_events() {
            self.saved = serde_json::to_string(seeder)?;
        }
        while let Some(event) = seeder.poll_event() {
            self.history.update(&serde_json::to_vec(&event)?);
            match event.what {
                What::Told { peer, attempt, .. } => {
                    concerned.extend(
                        peer.parse::<PeerId>().ok().and_then(|peer| self.by_peer.get(&peer)).copied(),
                    );
                    let before = self.told.insert(peer, attempt);
                    ensure!(before.is_none_or(|before| before < attempt), "a node was told twice");
                }
                What::GatePassed { wave, .. } => {
                    ensure!(wave == self.waves_passed, "the gate of wave {wave} was passed out of turn");
                    self.waves_passed += 1;
                }
                _ => {}
            }
        }
        if !concerned.is_empty() {
            seeder.assert_invariants();
        }
        if let Some(due) = seeder.poll_timeout()
            && self.timer.is_none_or(|timer| due < timer)
        {
            self.timer = Some(due);
            self.plan(due.max(now), Happens::Timer);
        }
        concerned.into_iter().for_each(|at| self.order(now, at));
        Ok(())
    }

    /// Nobody is touched whom no wave that began could take.
    fn check_touched(&self) -> anyhow::Result<()> {
        let size = |wave: &&str| -> anyhow::Result<usize> {
            Ok(match wave.parse()? {
                Wave::Count(count) => count as usize,
                Wave::Percent(percent) => (self.nodes.len() * usize::from(percent)).div_ceil(100),
                _ => self.nodes.len(),
            })
        };
        let mut allowed = 0;
        for wave in self.refresh.waves.iter().take(self.waves_passed + 1) {
            allowed += size(wave)?;
        }
        let touched = self.touched.len();
        ensure!(touched <= allowed, "{touched} nodes were touched before wave {}", self.waves_passed + 2);
        Ok(())
    }

    fn phase(&self) -> Option<&Phase> {
        self.seeder.as_ref().map(Rollout::phase)
    }

    /// Nothing more is to come: everybody is through, or it halted and nobody is on the way.
    fn is_over(&self) -> bool {
        let is_still = |node: &Node| {
            matches!(node.stage, Stage::Staged | Stage::Confirmed | Stage::RolledBack)
                && node.permitted == node.attempt
        };
        match self.phase() {
            Some(Phase::Complete) => self.nodes.iter().all(|node| node.stage == Stage::Confirmed),
            // A while later, so that whoever would begin all the same is seen.
            Some(Phase::Halted { .. }) => {
                self.nodes.iter().all(is_still) && self.reports > 40 * self.nodes.len() as u64
            }
            _ => false,
        }
    }

    fn figures(self, took: Duration) -> anyhow::Result<Figures> {
        let count = |stage| self.nodes.iter().filter(|node| node.stage == stage).count();
        let phase = match (self.phase(), self.refresh.is_good) {
            (Some(Phase::Complete), true) => "complete",
            (Some(Phase::Halted { .. }), false) => "halted",
            (phase, is_good) => bail!("a release that is good ({is_good}) ended as {phase:?}"),
        };
        if !self.refresh.is_good {
            ensure!(self.waves_passed == 0, "a bad release got past its first wave");
        }
        Ok(Figures {
            phase,
            waves_passed: self.waves_passed,
            nodes_touched: self.touched.len(),
            nodes_confirmed: count(Stage::Confirmed),
            nodes_rolled_back: count(Stage::RolledBack),
            reports: self.reports,
            rollout_s: took.as_secs(),
            digest: self.history.finalize().to_hex().to_string(),
        })
    }
}
