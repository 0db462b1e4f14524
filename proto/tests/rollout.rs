//! Rollouts under random fleets, operators and networks: reports come late, twice and out of order, and the seeder is
//! written down and read back after every input.
#![expect(clippy::unwrap_used, reason = "a test")]

use std::collections::BTreeMap;
use std::time::Duration;

use proptest::prelude::*;
use shoal_proto::cid::Cid;
use shoal_proto::fleet::{Order, Progress, Report, Stage};
use shoal_proto::release::Channel;
use shoal_proto::rollout::{Event, Gate, Instruction, Phase, Plan, Rollout, Unavailable, Wave, What};
use shoal_proto::signing::{Keypair, PeerId};
use shoal_proto::time::Time;

const NODES: u8 = 16;

#[derive(Clone, Debug)]
enum Op {
    /// A node does what it was told last, well or not, and says so.
    Act {
        node: u8,
        well: bool,
    },
    /// A report that was said arrives, now or again.
    Deliver {
        which: usize,
        again: bool,
    },
    Pass {
        seconds: u16,
    },
    Pause,
    Resume,
    Halt,
    Retry,
    Away,
}

fn op() -> impl Strategy<Value = Op> {
    prop_oneof![
        12 => (0..NODES, prop::bool::weighted(0.93)).prop_map(|(node, well)| Op::Act { node, well }),
        12 => (any::<usize>(), any::<bool>()).prop_map(|(which, again)| Op::Deliver { which, again }),
        4 => (1..40_u16).prop_map(|seconds| Op::Pass { seconds }),
        1 => Just(Op::Pause),
        2 => Just(Op::Resume),
        1 => Just(Op::Halt),
        1 => Just(Op::Retry),
        1 => Just(Op::Away),
    ]
}

fn wave() -> impl Strategy<Value = Wave> {
    prop_oneof![
        (1..4_u32).prop_map(Wave::Count),
        (1..60_u8).prop_map(Wave::Percent),
        (0..3_u8).prop_map(|group| Wave::Group(format!("g{group}"))),
        prop::collection::btree_set((0..NODES).prop_map(host), 1..4).prop_map(Wave::Hosts),
    ]
}

fn plan() -> impl Strategy<Value = Plan> {
    let limit = || prop::option::weighted(0.3, 1..4_u32);
    (
        prop::collection::vec(wave(), 0..4),
        any::<bool>(),
        (50..=100_u8, 0..3_u32, 0..20_u64),
        (limit(), limit(), limit()),
        prop::collection::btree_set((0..NODES).prop_map(host), 0..3),
    )
        .prop_map(|(mut waves, has_rest, (healthy_percent, failures_max, soak_s), limits, frozen)| {
            if has_rest || waves.is_empty() {
                waves.push(Wave::Rest);
            }
            Plan {
                channel: channel(),
                release: 7,
                image: Cid::of(b"new"),
                waves,
                gate: Gate { healthy_percent, failures_max, soak: Duration::from_secs(soak_s) },
                unavailable: Unavailable { in_all: limits.0, of_group: limits.1, of_rack: limits.2 },
                frozen,
                patience: Duration::from_secs(300),
                gather: Duration::from_secs(5),
            }
        })
}

fn channel() -> Channel {
    "stable".parse().unwrap()
}

fn host(node: u8) -> String {
    format!("node{node:02}")
}

fn peer(node: u8) -> PeerId {
    Keypair::ed25519_from_bytes([node + 1; 32]).unwrap().public().to_peer_id()
}

/// A node as it really is.
#[derive(Clone, Default)]
struct Machine {
    step: u64,
    stage: Stage,
    attempt: u32,
}

impl Machine {
    /// One step along, under the orders that the seeder has for it.
    fn act(&mut self, orders: Instruction, well: bool) {
        self.step += 1;
        self.stage = match (self.stage, orders) {
            (Stage::Idle, _) => Stage::Staged,
            (Stage::Staged | Stage::RolledBack, Instruction::Apply { attempt }) if attempt > self.attempt => {
                self.attempt = attempt;
                Stage::Applying
            }
            (Stage::Applying, _) => Stage::Confirming,
            (Stage::Confirming, _) => {
                if well {
                    Stage::Confirmed
                } else {
                    Stage::RolledBack
                }
            }
            (Stage::Confirmed, _) if !well => Stage::RolledBack,
            (stage, _) => stage,
        };
    }

    fn report(&self, node: u8) -> Report {
        let image = if matches!(self.stage, Stage::Confirming | Stage::Confirmed) { "new" } else { "old" };
        Report {
            order: Order { step: self.step, beat: 0 },
            host: host(node),
            groups: [format!("g{}", node % 3)].into(),
            rack: format!("r{}", node / 4).parse().unwrap(),
            channel: channel(),
            release: 7,
            attempt: self.attempt,
            image: Some(Cid::of(image.as_bytes())),
            stage: self.stage,
            progress: Progress::default(),
            waits: None,
            error: None,
        }
    }
}

/// What the events promise, followed one by one.
#[derive(Default)]
struct Witness {
    next: u64,
    begun: usize,
    passed: usize,
    soaks_since: Option<Time>,
    told: BTreeMap<String, (usize, u32)>,
}

impl Witness {
    fn see(&mut self, plan: &Plan, event: &Event) {
        self.next += 1;
        assert_eq!(event.number, self.next);
        match &event.what {
            What::WaveBegan { wave, .. } | What::WaveSkipped { wave } => {
                assert_eq!(*wave, self.begun);
                assert!(
                    self.passed + usize::from(matches!(event.what, What::WaveSkipped { .. })) >= self.begun
                );
                self.begun += 1;
                self.soaks_since = None;
                // There is nothing to wait for.
                self.passed += usize::from(matches!(
                    event.what,
                    What::WaveSkipped { .. } | What::WaveBegan { nodes: 0, .. }
                ));
            }
            What::Told { wave, peer, attempt, .. } => {
                assert!(*wave < self.begun, "{event:?}");
                let before = self.told.insert(peer.clone(), (*wave, *attempt));
                assert!(
                    before.is_none_or(|(taken_by, last)| taken_by == *wave && last < *attempt),
                    "{event:?}"
                );
            }
            What::Soaking { .. } => self.soaks_since = Some(event.at),
            What::GatePassed { wave, nodes, healthy, failed } => {
                assert_eq!(*wave, self.passed);
                assert!(*healthy >= plan.gate.needs(*nodes) && *failed <= plan.gate.failures_max as usize);
                let since = self.soaks_since.expect("it soaked");
                assert!(event.at >= since + plan.gate.soak, "{event:?} since {since:?}");
                self.passed += 1;
            }
            What::Completed { .. } => assert_eq!(self.begun, plan.waves.len()),
            _ => {}
        }
    }
}

/// Two seeders hear the same: one goes on, the other is written down and read back after each input.
struct Pair {
    one: Rollout,
    other: Rollout,
}

impl Pair {
    fn with<T: PartialEq + std::fmt::Debug>(&mut self, input: impl Fn(&mut Rollout) -> T) {
        assert_eq!(input(&mut self.one), input(&mut self.other));
        let text = serde_json::to_string(&self.other).unwrap();
        self.other = serde_json::from_str(&text).unwrap();
        assert_eq!(self.one, self.other);
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 100, ..ProptestConfig::default() })]

    #[test]
    fn no_gate_is_skipped_nobody_is_touched_too_many_and_a_restart_changes_nothing(
        plan in plan(),
        ops in prop::collection::vec(op(), 1..250),
    ) {
        let mut now = Time::ZERO;
        let rollout = Rollout::start(now, plan.clone()).unwrap();
        let mut seeders = Pair { one: rollout.clone(), other: rollout };
        let mut machines = vec![Machine::default(); NODES.into()];
        let mut said: Vec<(PeerId, Report)> = Vec::new();
        let mut newest: BTreeMap<PeerId, Order> = BTreeMap::new();
        let mut witness = Witness::default();
        for op in ops {
            match op {
                Op::Act { node, well } => {
                    let orders = seeders.one.order(&peer(node));
                    let machine = &mut machines[usize::from(node)];
                    machine.act(orders, well);
                    said.push((peer(node), machine.report(node)));
                }
                Op::Deliver { which, again } => if !said.is_empty() {
                    let which = which % said.len();
                    let (from, report) = if again { said[which].clone() } else { said.swap_remove(which) };
                    let before = seeders.one.clone();
                    seeders.with(|seeder| seeder.handle_report(now, from, &report));
                    let last = newest.entry(from).or_default();
                    if report.order <= *last {
                        prop_assert_eq!(&before, &seeders.one, "a report that is no news changed something");
                    }
                    *last = (*last).max(report.order);
                },
                Op::Pass { seconds } => {
                    now = now + Duration::from_secs(seconds.into());
                    seeders.with(|seeder| seeder.handle_timeout(now));
                }
                Op::Pause => seeders.with(|seeder| seeder.pause(now)),
                Op::Resume => seeders.with(|seeder| seeder.resume(now)),
                Op::Halt => seeders.with(|seeder| seeder.halt(now, "by the operator")),
                Op::Retry => seeders.with(|seeder| seeder.retry(now)),
                Op::Away => seeders.with(|seeder| seeder.handle_away(now)),
            }
            seeders.one.assert_invariants();
            let is_halted = matches!(seeders.one.phase(), Phase::Halted { .. });
            while let Some(event) = seeders.one.poll_event() {
                witness.see(&plan, &event);
                prop_assert_eq!(seeders.other.poll_event(), Some(event));
            }
            for node in 0..NODES {
                if let Instruction::Apply { attempt } = seeders.one.order(&peer(node)) {
                    prop_assert!(!is_halted);
                    prop_assert_eq!(witness.told[&peer(node).to_string()].1, attempt, "the log says otherwise");
                }
            }
            prop_assert_eq!(seeders.one.touched(), witness.told.len());
            let begun = machines.iter().filter(|machine| machine.attempt > 0).count();
            prop_assert!(begun <= witness.told.len());
        }
    }
}
