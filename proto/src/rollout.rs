//! Who may apply a release when: waves, with a gate before each but the first.
//!
//! Pure: reports, the operator's words and the time go in, decisions come out, and the whole state can be written down
//! and read back between any two inputs. Whoever drives it saves the state before a decision takes effect; an order
//! ([`Rollout::order`]) may be said any number of times.
//!
//! ```text
//! Running ──▶ Complete        every wave passed its gate
//!    │ ▲
//!    ▼ │  resume, retry
//! Paused, Halted              nobody more is told; of the halted, who was told and has not begun shall not
//! ```

mod as_text;
mod plan;
mod record;
#[cfg(test)]
mod tests;

use std::collections::{BTreeMap, VecDeque};

pub use plan::{Gate, Plan, PlanError, Unavailable, WAVES_MAX, Wave};
use record::Unwell;
pub use record::{Event, Node, Standing, Tally, What};
use serde::{Deserialize, Serialize};

use crate::fleet::{Report, Stage};
use crate::signing::PeerId;
use crate::time::Time;

/// Most nodes of a rollout: reports of others are not heard.
pub const NODES_MAX: usize = 100_000;

/// One release on its way to a fleet. One input (`handle_*`, or a word of the operator's), then drain
/// [`Rollout::poll_event`] until `None`, then sleep until [`Rollout::poll_timeout`].
///
/// **Invariant:** a node is told only in a wave that has begun, and a wave begins only after the gate before it was
/// passed. **Invariant:** a report that is not newer than the last one of its node changes nothing.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Rollout {
    plan: Plan,
    phase: Phase,
    /// The wave that is under way or waits to begin; the number of waves once all are through.
    wave: usize,
    has_begun: bool,
    /// No wave begins before: the fleet is still being listened to.
    begins_at: Option<Time>,
    /// Since when the wave has as many healthy nodes as its gate needs.
    soaks_since: Option<Time>,
    #[serde(with = "as_text::map")]
    nodes: BTreeMap<PeerId, Node>,
    events: VecDeque<Event>,
    /// Of the next event.
    number: u64,
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Phase {
    Running,
    Paused,
    Halted { why: String },
    Complete,
}

/// What a node is to do.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Instruction {
    /// Fetch, and wait.
    Wait,
    Apply {
        attempt: u32,
    },
    /// Do not begin, whatever was said.
    Hold,
}

impl Rollout {
    /// Begins: the first wave takes its nodes as soon as they are heard of.
    pub fn start(now: Time, plan: Plan) -> Result<Self, PlanError> {
        plan.check()?;
        let (release, image) = (plan.release, plan.image.to_string());
        let waves = plan.waves.iter().map(ToString::to_string).collect();
        let begins_at = Some(now + plan.gather);
        let mut this = Self {
            plan,
            phase: Phase::Running,
            wave: 0,
            has_begun: false,
            begins_at,
            soaks_since: None,
            nodes: BTreeMap::new(),
            events: VecDeque::new(),
            number: 1,
        };
        this.say(now, What::Started { release, image, waves });
        Ok(this)
    }

    /// A node said how it is doing. What is not newer than its last word, or about another channel, is not heard.
    pub fn handle_report(&mut self, now: Time, peer: PeerId, report: &Report) {
        if report.channel != self.plan.channel {
            return;
        }
        let Some(is_news) = self.learn(peer, report) else { return };
        // Most reports tell of progress alone, and there are many.
        if self.judge(now, peer, report) || is_news {
            self.advance(now);
        }
    }

    /// The time that [`Rollout::poll_timeout`] said has come. Early or late is no harm.
    pub fn handle_timeout(&mut self, now: Time) {
        if let Phase::Halted { .. } = self.phase {
            return;
        }
        let patience = self.plan.patience;
        let silent = |(peer, node): (&PeerId, &Node)| match node.standing {
            Standing::Told { at } if now >= at + patience => Some(*peer),
            _ => None,
        };
        let silent: Vec<PeerId> = self.nodes.iter().filter_map(silent).collect();
        for peer in silent {
            let why = format!("no word of how it ended within {} s", patience.as_secs());
            self.fail(now, peer, why, true);
        }
        self.advance(now);
    }

    /// Nobody could be heard until now: nobody was silent, and nobody was seen to stay well.
    pub fn handle_away(&mut self, now: Time) {
        self.begins_at = self.begins_at.max(Some(now + self.plan.gather));
        self.begin_waits(now);
        self.advance(now);
    }

    /// Whatever is waited for is waited for anew.
    fn begin_waits(&mut self, now: Time) {
        for node in self.nodes.values_mut() {
            if let Standing::Told { at } = &mut node.standing {
                *at = (*at).max(now);
            }
        }
        self.soaks_since = self.soaks_since.map(|since| since.max(now));
    }

    /// Tells nobody more until [`Rollout::resume`]. Who was told goes on. False when there is nothing to pause.
    pub fn pause(&mut self, now: Time) -> bool {
        let is_running = self.phase == Phase::Running;
        if is_running {
            self.phase = Phase::Paused;
            self.say(now, What::Paused);
        }
        is_running
    }

    /// Goes on, paused or halted. Failures that halted it halt it again: see [`Rollout::retry`].
    pub fn resume(&mut self, now: Time) -> bool {
        let is_still = matches!(self.phase, Phase::Paused | Phase::Halted { .. });
        if is_still {
            let is_through = self.wave == self.plan.waves.len();
            self.phase = if is_through { Phase::Complete } else { Phase::Running };
            self.begin_waits(now);
            self.say(now, What::Resumed);
            self.advance(now);
        }
        is_still
    }

    /// Stops: nobody more is told, and who was told and has not begun shall not.
    pub fn halt(&mut self, now: Time, why: &str) -> bool {
        let is_on = !matches!(self.phase, Phase::Halted { .. });
        if is_on {
            self.phase = Phase::Halted { why: why.to_owned() };
            self.say(now, What::Halted { why: why.to_owned() });
        }
        is_on
    }

    /// Gives those that failed another try, and goes on. Says how many there are.
    pub fn retry(&mut self, now: Time) -> usize {
        let mut nodes = 0;
        for node in self.nodes.values_mut() {
            if let Standing::Failed { .. } = node.standing {
                node.standing = Standing::Queued;
                nodes += 1;
            }
        }
        if nodes > 0 {
            self.say(now, What::Retried { nodes });
            self.soaks_since = None;
            self.resume(now);
            self.advance(now);
        }
        nodes
    }

    /// Counts its events from here on: the rollout before it had those below.
    #[must_use]
    pub fn numbered_from(mut self, number: u64) -> Self {
        for event in &mut self.events {
            event.number += number - 1;
        }
        self.number += number - 1;
        self
    }

    /// The number of the event after the last.
    pub fn next_number(&self) -> u64 {
        self.number
    }

    pub fn has_events(&self) -> bool {
        !self.events.is_empty()
    }

    /// The next decision, in order.
    pub fn poll_event(&mut self) -> Option<Event> {
        self.events.pop_front()
    }

    /// When to call [`Rollout::handle_timeout`] unless another input comes first.
    pub fn poll_timeout(&self) -> Option<Time> {
        if let Phase::Halted { .. } = self.phase {
            return None;
        }
        let told = self.nodes.values().filter_map(|node| match node.standing {
            Standing::Told { at } => Some(at + self.plan.patience),
            _ => None,
        });
        let is_running = self.phase == Phase::Running;
        let soaked = self.soaks_since.filter(|_| is_running).map(|since| since + self.plan.gate.soak);
        let begins = self.begins_at.filter(|_| is_running && !self.has_begun);
        told.chain(soaked).chain(begins).min()
    }

    /// What a node is to do: may be asked and said at any time, and again.
    pub fn order(&self, peer: &PeerId) -> Instruction {
        let Some(node) = self.nodes.get(peer) else { return Instruction::Wait };
        match (&node.standing, &self.phase) {
            (Standing::Told { .. }, Phase::Halted { .. }) => Instruction::Hold,
            (Standing::Told { .. }, _) => Instruction::Apply { attempt: node.attempt },
            _ => Instruction::Wait,
        }
    }

    pub fn plan(&self) -> &Plan {
        &self.plan
    }

    pub fn phase(&self) -> &Phase {
        &self.phase
    }

    /// The wave that is under way, or the number of waves when all are through; and whether it has begun.
    pub fn wave(&self) -> (usize, bool) {
        (self.wave, self.has_begun)
    }

    /// Since when the wave has as many healthy nodes as its gate needs.
    pub fn soaks_since(&self) -> Option<Time> {
        self.soaks_since
    }

    pub fn nodes(&self) -> &BTreeMap<PeerId, Node> {
        &self.nodes
    }

    /// How the nodes of a wave are doing.
    pub fn tally(&self, wave: usize) -> Tally {
        let mut tally = Tally::default();
        for node in self.nodes.values().filter(|node| node.wave == Some(wave)) {
            tally.nodes += 1;
            match node.standing {
                Standing::Outside => {}
                Standing::Queued => tally.queued += 1,
                Standing::Told { .. } => tally.told += 1,
                Standing::Healthy => tally.healthy += 1,
                Standing::Failed { .. } => tally.failed += 1,
            }
        }
        tally
    }

    /// Nodes that were ever told.
    pub fn touched(&self) -> usize {
        self.nodes.values().filter(|node| node.attempt > 0).count()
    }

    /// Panics when an invariant is broken. Walks everything: for tests and simulations.
    pub fn assert_invariants(&self) {
        let begun = self.wave + usize::from(self.has_begun);
        for (peer, node) in &self.nodes {
            assert_eq!(node.wave.is_none(), node.standing == Standing::Outside, "{peer}: {node:?}");
            assert!(node.wave.is_none_or(|wave| wave < begun), "{peer} is ahead of the waves: {node:?}");
            assert!(node.attempt == 0 || node.wave.is_some(), "{peer} was told in no wave: {node:?}");
            let is_spared = self.is_frozen(peer, node);
            assert!(!is_spared || node.wave.is_none(), "{peer} is frozen: {node:?}");
        }
        for (wave, kind) in self.plan.waves.iter().enumerate() {
            let (taken, known) = (self.tally(wave).nodes, self.nodes.len());
            match kind {
                Wave::Count(count) => assert!(taken <= *count as usize, "wave {wave} took {taken}"),
                Wave::Percent(percent) => {
                    assert!(
                        taken <= (known * usize::from(*percent)).div_ceil(100),
                        "wave {wave} took {taken}"
                    );
                }
                _ => {}
            }
        }
        let [all, group, rack] =
            [&self.plan.unavailable.in_all, &self.plan.unavailable.of_group, &self.plan.unavailable.of_rack];
        let taken = Unwell::of(self.nodes.values());
        let most = |counts: &BTreeMap<String, u32>| counts.values().copied().max().unwrap_or(0);
        // Who failed for good counts against the others, and may come on top of those told before.
        let failed = u32::try_from(self.down()).unwrap_or(u32::MAX);
        assert!(all.is_none_or(|max| taken.in_all <= max.saturating_add(failed)));
        assert!(group.is_none_or(|max| most(&taken.of_group) <= max.saturating_add(failed)));
        assert!(rack.is_none_or(|max| most(&taken.of_rack) <= max.saturating_add(failed)));
    }

    fn down(&self) -> usize {
        let is_down = |node: &&Node| matches!(node.standing, Standing::Failed { is_down: true, .. });
        self.nodes.values().filter(is_down).count()
    }

    fn say(&mut self, at: Time, what: What) {
        self.events.push_back(Event { number: self.number, at, what });
        self.number += 1;
    }

    /// Takes in what a node said of itself: `None` when that is old, else whether it may matter to a wave.
    fn learn(&mut self, peer: PeerId, report: &Report) -> Option<bool> {
        let known = self.nodes.get(&peer);
        if known.is_some_and(|node| report.order <= node.order)
            || (known.is_none() && self.nodes.len() >= NODES_MAX)
        {
            return None;
        }
        let (wave, attempt, standing) = known
            .map_or((None, 0, Standing::Outside), |node| (node.wave, node.attempt, node.standing.clone()));
        let node = Node {
            host: report.host.clone(),
            groups: report.groups.iter().cloned().collect(),
            rack: report.rack.clone(),
            image: report.image,
            stage: report.stage,
            order: report.order,
            wave,
            attempt,
            standing,
        };
        let before = self.nodes.insert(peer, node);
        let node = &self.nodes[&peer];
        Some(before.is_none_or(|before| {
            let known = (&before.host, &before.groups, &before.rack, before.image);
            known != (&node.host, &node.groups, &node.rack, node.image)
        }))
    }

    /// Hears how an attempt ended, if the report says that; true when it changes how the node stands.
    fn judge(&mut self, now: Time, peer: PeerId, report: &Report) -> bool {
        let Some(node) = self.nodes.get_mut(&peer) else { return false };
        let is_ours =
            report.release == self.plan.release && report.attempt == node.attempt && node.attempt > 0;
        let is_out = matches!(node.standing, Standing::Outside | Standing::Queued);
        if !is_ours || is_out {
            return false;
        }
        match report.stage {
            Stage::Confirmed
                if report.image == Some(self.plan.image) && node.standing != Standing::Healthy =>
            {
                node.standing = Standing::Healthy;
                let (wave, host) = (node.wave.unwrap_or_default(), node.host.clone());
                self.say(now, What::Healthy { wave, peer: peer.to_string(), host });
                true
            }
            Stage::RolledBack | Stage::Failed if !matches!(node.standing, Standing::Failed { .. }) => {
                let why = report.error.clone().unwrap_or_else(|| report.stage.to_string());
                self.fail(now, peer, why, report.stage == Stage::Failed);
                true
            }
            Stage::RolledBack | Stage::Failed => {
                let Standing::Failed { is_down, .. } = &mut node.standing else { return false };
                let was_down = std::mem::replace(is_down, report.stage == Stage::Failed);
                was_down != (report.stage == Stage::Failed)
            }
            _ => false,
        }
    }

    fn fail(&mut self, now: Time, peer: PeerId, why: String, is_down: bool) {
        let Some(node) = self.nodes.get_mut(&peer) else { return };
        node.standing = Standing::Failed { why: why.clone(), is_down };
        let (wave, host) = (node.wave.unwrap_or_default(), node.host.clone());
        self.say(now, What::Failed { wave, peer: peer.to_string(), host, why });
    }

    /// Takes every step that is due.
    fn advance(&mut self, now: Time) {
        loop {
            if !matches!(self.phase, Phase::Halted { .. })
                && let Some(why) = self.reason_to_halt()
            {
                self.halt(now, &why);
            }
            match self.phase {
                Phase::Halted { .. } | Phase::Paused => return,
                Phase::Running => {
                    if !self.has_begun && !self.begin(now) {
                        return;
                    }
                }
                Phase::Complete => {}
            }
            self.admit();
            self.tell(now);
            if self.phase == Phase::Complete || !self.passes(now) {
                return;
            }
            self.pass(now);
        }
    }

    fn reason_to_halt(&self) -> Option<String> {
        let is_failed = |node: &&Node| matches!(node.standing, Standing::Failed { .. });
        let failed = self.nodes.values().filter(is_failed).count();
        let max = self.plan.gate.failures_max;
        if failed > max as usize {
            return Some(format!("{failed} nodes failed, and at most {max} may"));
        }
        let tally = self.tally(self.wave);
        let needed = self.plan.gate.needs(tally.nodes);
        (self.has_begun && tally.nodes - tally.failed < needed)
            .then(|| format!("{} of {} nodes of wave {} failed", tally.failed, tally.nodes, self.wave + 1))
    }

    /// Begins the next wave that somebody is left for. False when that has to wait.
    fn begin(&mut self, now: Time) -> bool {
        if self.begins_at.is_some_and(|begins| now < begins) {
            return false;
        }
        self.begins_at = None;
        let Some(wave) = self.plan.waves.get(self.wave) else { return false };
        let (taken, is_known) = self.choose(wave);
        if !is_known {
            // Nobody that it is about was heard of: to go on would be to skip a gate.
            return false;
        }
        self.has_begun = true;
        let wave = self.wave;
        if taken.is_empty() && !self.plan.is_open(wave) {
            self.say(now, What::WaveSkipped { wave });
        } else {
            self.say(now, What::WaveBegan { wave, nodes: taken.len() });
        }
        for peer in taken {
            self.queue(peer);
        }
        true
    }

    fn queue(&mut self, peer: PeerId) {
        let wave = self.wave.min(self.plan.waves.len() - 1);
        if let Some(node) = self.nodes.get_mut(&peer) {
            node.wave = Some(wave);
            node.standing = Standing::Queued;
        }
    }

    /// The nodes that a wave takes, and whether any node that it is about was ever heard of.
    fn choose(&self, wave: &Wave) -> (Vec<PeerId>, bool) {
        let is_about = |peer: &PeerId, node: &Node| match wave {
            Wave::Group(group) => node.groups.contains(group),
            Wave::Hosts(hosts) => hosts.contains(&node.host) || hosts.contains(&peer.to_string()),
            Wave::Count(_) | Wave::Percent(_) | Wave::Rest => true,
        };
        let about: Vec<PeerId> =
            self.nodes.iter().filter(|(peer, node)| is_about(peer, node)).map(|(peer, _)| *peer).collect();
        let mut taken: Vec<PeerId> = about.iter().copied().filter(|peer| self.is_left(peer)).collect();
        taken.sort_by_cached_key(|peer| self.draw(peer));
        match wave {
            Wave::Count(count) => taken.truncate(*count as usize),
            Wave::Percent(percent) => {
                taken.truncate((self.nodes.len() * usize::from(*percent)).div_ceil(100));
            }
            Wave::Group(_) | Wave::Hosts(_) | Wave::Rest => {}
        }
        (taken, !about.is_empty())
    }

    /// Whether a wave may still take the node.
    fn is_left(&self, peer: &PeerId) -> bool {
        let node = &self.nodes[peer];
        node.standing == Standing::Outside
            && node.image != Some(self.plan.image)
            && !self.is_frozen(peer, node)
    }

    fn is_frozen(&self, peer: &PeerId, node: &Node) -> bool {
        let frozen = &self.plan.frozen;
        !frozen.is_empty() && (frozen.contains(&node.host) || frozen.contains(&peer.to_string()))
    }

    /// A lot that falls otherwise in each release, so that not the same nodes are first every time.
    fn draw(&self, peer: &PeerId) -> [u8; 32] {
        let mut hasher = blake3::Hasher::new();
        hasher.update(&self.plan.release.to_le_bytes()).update(&peer.to_bytes());
        *hasher.finalize().as_bytes()
    }

    /// An open wave takes those that come later, even after it is through.
    fn admit(&mut self) {
        let last = self.plan.waves.len() - 1;
        if !self.plan.is_open(self.wave.min(last)) {
            return;
        }
        let (taken, _) = self.choose(&Wave::Rest);
        for peer in taken {
            self.soaks_since = None;
            self.queue(peer);
        }
    }

    /// Tells as many of those that wait as may be unwell at once.
    fn tell(&mut self, now: Time) {
        let queued = |(peer, node): (&PeerId, &Node)| (node.standing == Standing::Queued).then_some(*peer);
        let mut waiting: Vec<PeerId> = self.nodes.iter().filter_map(queued).collect();
        if waiting.is_empty() {
            return;
        }
        waiting.sort_by_cached_key(|peer| (self.nodes[peer].wave, self.draw(peer)));
        let mut unwell = Unwell::of(self.nodes.values());
        for peer in waiting {
            let Some(node) = self.nodes.get_mut(&peer) else { continue };
            if !unwell.has_room_for(&self.plan.unavailable, node) {
                continue;
            }
            unwell.add(node);
            node.standing = Standing::Told { at: now };
            node.attempt += 1;
            let (wave, attempt, host) = (node.wave.unwrap_or_default(), node.attempt, node.host.clone());
            self.say(now, What::Told { wave, peer: peer.to_string(), host, attempt });
        }
    }

    /// Whether the gate behind the present wave is passed.
    fn passes(&mut self, now: Time) -> bool {
        let tally = self.tally(self.wave);
        if tally.healthy < self.plan.gate.needs(tally.nodes) {
            self.soaks_since = None;
            return false;
        }
        if tally.nodes == 0 {
            return true;
        }
        if self.soaks_since.is_none() {
            self.soaks_since = Some(now);
            self.say(now, What::Soaking { wave: self.wave });
        }
        self.soaks_since.is_some_and(|since| now >= since + self.plan.gate.soak)
    }

    fn pass(&mut self, now: Time) {
        let wave = self.wave;
        let Tally { nodes, healthy, failed, .. } = self.tally(wave);
        if nodes > 0 {
            self.say(now, What::GatePassed { wave, nodes, healthy, failed });
        }
        self.wave += 1;
        self.has_begun = false;
        self.soaks_since = None;
        if self.wave == self.plan.waves.len() {
            self.phase = Phase::Complete;
            let count =
                |is: fn(&Standing) -> bool| self.nodes.values().filter(|node| is(&node.standing)).count();
            let healthy = count(|standing| *standing == Standing::Healthy);
            let failed = count(|standing| matches!(standing, Standing::Failed { .. }));
            self.say(now, What::Completed { healthy, failed });
        }
    }
}
