use std::collections::BTreeSet;
use std::time::Duration;

use super::*;
use crate::cid::Cid;
use crate::fleet::{Order, Progress};
use crate::signing::Keypair;

const SOAK: Duration = Duration::from_secs(60);
const PATIENCE: Duration = Duration::from_secs(600);

fn at(seconds: u64) -> Time {
    Time::ZERO + Duration::from_secs(seconds)
}

fn peer(seed: u8) -> PeerId {
    Keypair::ed25519_from_bytes([seed; 32]).unwrap().public().to_peer_id()
}

fn plan(waves: &[&str]) -> Plan {
    Plan {
        channel: "stable".parse().unwrap(),
        release: 7,
        image: Cid::of(b"new"),
        waves: waves.iter().map(|wave| wave.parse().unwrap()).collect(),
        gate: Gate { soak: SOAK, ..Gate::default() },
        unavailable: Unavailable::default(),
        frozen: BTreeSet::new(),
        patience: PATIENCE,
        gather: Duration::from_secs(2),
    }
}

fn report(seed: u8, step: u64, stage: Stage, attempt: u32) -> Report {
    let image = if stage == Stage::Confirmed { Cid::of(b"new") } else { Cid::of(b"old") };
    Report {
        order: Order { step, beat: 0 },
        host: format!("node{seed:02}"),
        groups: [["web", "db"][usize::from(seed % 2)].to_owned()].into(),
        rack: format!("r{}", seed / 4).parse().unwrap(),
        channel: "stable".parse().unwrap(),
        release: 7,
        attempt,
        image: Some(image),
        stage,
        progress: Progress::default(),
        waits: None,
        error: (stage == Stage::RolledBack).then(|| "health: exit 1".to_owned()),
    }
}

/// A rollout, and nodes that were heard of.
struct Fleet {
    rollout: Rollout,
    steps: u64,
    events: Vec<Event>,
}

impl Fleet {
    fn new(plan: Plan, nodes: std::ops::Range<u8>) -> Self {
        let mut fleet = Self { rollout: Rollout::start(at(0), plan).unwrap(), steps: 0, events: Vec::new() };
        for seed in nodes {
            fleet.say(1, seed, Stage::Staged, 0);
        }
        fleet.tick(2);
        fleet
    }

    fn say(&mut self, now: u64, seed: u8, stage: Stage, attempt: u32) {
        self.steps += 1;
        self.rollout.handle_report(at(now), peer(seed), &report(seed, self.steps, stage, attempt));
        self.settle();
    }

    fn tick(&mut self, now: u64) {
        self.rollout.handle_timeout(at(now));
        self.settle();
    }

    fn settle(&mut self) {
        while let Some(event) = self.rollout.poll_event() {
            self.events.push(event);
        }
        self.rollout.assert_invariants();
    }

    /// Who has leave to apply.
    fn told(&self) -> BTreeSet<u8> {
        let may = |seed: &u8| matches!(self.rollout.order(&peer(*seed)), Instruction::Apply { .. });
        (0..40).filter(may).collect()
    }

    /// Everybody who was told succeeds.
    fn succeed(&mut self, now: u64) {
        for seed in self.told() {
            let attempt = self.rollout.nodes()[&peer(seed)].attempt;
            self.say(now, seed, Stage::Confirmed, attempt);
        }
    }

    fn names(&self) -> Vec<String> {
        let name =
            |event: &Event| serde_json::to_value(&event.what).unwrap()["event"].as_str().unwrap().to_owned();
        self.events.iter().map(name).collect()
    }
}

#[test]
fn each_wave_waits_for_the_gate_before_it() {
    let mut fleet = Fleet::new(plan(&["1", "25%", "rest"]), 0..20);
    let first = fleet.told();
    assert_eq!(first.len(), 1);
    fleet.succeed(10);
    assert_eq!(fleet.rollout.poll_timeout(), Some(at(10) + SOAK));
    fleet.tick(69);
    assert!(fleet.told().is_empty());
    fleet.tick(70);
    assert_eq!(fleet.told().len(), 5);
    fleet.succeed(80);
    fleet.tick(140);
    assert_eq!(fleet.told().len(), 14);
    fleet.succeed(150);
    fleet.tick(210);
    assert_eq!((fleet.rollout.phase(), fleet.rollout.touched()), (&Phase::Complete, 20));
    let names = fleet.names();
    let gates = names.iter().filter(|name| *name == "gate_passed").count();
    assert_eq!(
        (gates, names.first().unwrap().as_str(), names.last().unwrap().as_str()),
        (3, "started", "completed")
    );
    let numbers: Vec<u64> = fleet.events.iter().map(|event| event.number).collect();
    assert_eq!(numbers, (1..=numbers.len() as u64).collect::<Vec<_>>());
    // Who comes later gets the release too.
    fleet.say(300, 30, Stage::Staged, 0);
    assert_eq!(fleet.told(), [30].into());
}

#[test]
fn a_failure_too_many_halts_and_nobody_else_is_touched() {
    let mut fleet = Fleet::new(plan(&["2", "rest"]), 0..10);
    let told: Vec<u8> = fleet.told().into_iter().collect();
    fleet.say(5, told[0], Stage::RolledBack, 1);
    assert!(matches!(fleet.rollout.phase(), Phase::Halted { .. }));
    assert!(fleet.told().is_empty());
    assert_eq!(fleet.rollout.order(&peer(told[1])), Instruction::Hold);
    // One that had begun all the same succeeds: nothing goes on.
    fleet.say(6, told[1], Stage::Confirmed, 1);
    fleet.tick(10_000);
    assert_eq!((fleet.rollout.touched(), fleet.told().len()), (2, 0));
    assert!(!fleet.rollout.pause(at(10_000)), "what is halted is not paused");
    // It halts again as long as nothing is done about the failure.
    fleet.rollout.resume(at(10_001));
    assert!(matches!(fleet.rollout.phase(), Phase::Halted { .. }));
    assert_eq!(fleet.rollout.retry(at(10_002)), 1);
    assert_eq!(fleet.rollout.order(&peer(told[0])), Instruction::Apply { attempt: 2 });
    fleet.say(10_003, told[0], Stage::RolledBack, 1);
    assert_eq!(*fleet.rollout.phase(), Phase::Running, "how the first attempt ended is no news");
    fleet.say(10_004, told[0], Stage::Confirmed, 2);
    fleet.tick(10_064);
    assert_eq!(fleet.told().len(), 8);
}

#[test]
fn a_gate_may_allow_for_some_failures() {
    let gate = Gate { healthy_percent: 75, failures_max: 1, soak: SOAK };
    let mut fleet = Fleet::new(Plan { gate, ..plan(&["4", "rest"]) }, 0..10);
    let told: Vec<u8> = fleet.told().into_iter().collect();
    fleet.say(5, told[0], Stage::RolledBack, 1);
    told[1..3].iter().for_each(|seed| fleet.say(6, *seed, Stage::Confirmed, 1));
    fleet.tick(200);
    assert_eq!(fleet.rollout.wave(), (0, true));
    fleet.say(201, told[3], Stage::Confirmed, 1);
    fleet.tick(261);
    assert_eq!((fleet.rollout.wave(), fleet.told().len()), ((1, true), 6));
}

#[test]
fn one_that_falls_ill_while_the_wave_soaks_counts() {
    let mut fleet = Fleet::new(plan(&["1", "rest"]), 0..4);
    let seed = *fleet.told().first().unwrap();
    fleet.succeed(10);
    fleet.say(40, seed, Stage::RolledBack, 1);
    fleet.tick(70);
    assert!(matches!(fleet.rollout.phase(), Phase::Halted { .. }));
    assert_eq!(fleet.rollout.touched(), 1);
}

#[test]
fn who_says_nothing_for_too_long_failed_unless_nobody_could_hear_it() {
    let mut fleet = Fleet::new(plan(&["1", "rest"]), 0..4);
    let mut away = fleet.rollout.clone();
    fleet.tick(601);
    assert_eq!(*fleet.rollout.phase(), Phase::Running);
    fleet.tick(602);
    assert!(matches!(fleet.rollout.phase(), Phase::Halted { .. }));
    away.handle_away(at(601));
    away.handle_timeout(at(1200));
    assert_eq!(*away.phase(), Phase::Running);
    away.handle_timeout(at(1201));
    assert!(matches!(away.phase(), Phase::Halted { .. }));
}

#[test]
fn groups_and_lists_take_their_own_and_the_frozen_are_spared() {
    let frozen = ["node04".to_owned(), peer(5).to_string()].into();
    let plan = Plan { frozen, ..plan(&["hosts=node00+node04", "group=db", "rest"]) };
    let mut fleet = Fleet::new(plan, 0..10);
    assert_eq!(fleet.told(), [0].into());
    fleet.succeed(10);
    fleet.tick(70);
    assert_eq!(fleet.told(), [1, 3, 7, 9].into());
    fleet.succeed(80);
    fleet.tick(140);
    assert_eq!(fleet.told(), [2, 6, 8].into());
    fleet.succeed(150);
    fleet.tick(210);
    assert_eq!((fleet.rollout.phase(), fleet.rollout.touched()), (&Phase::Complete, 8));
}

#[test]
fn a_wave_of_nodes_that_were_never_heard_of_waits_and_one_of_nodes_that_are_through_does_not() {
    let mut fleet = Fleet::new(plan(&["group=db", "group=db", "rest"]), 0..0);
    fleet.tick(10);
    // Of the other group.
    fleet.say(11, 0, Stage::Staged, 0);
    assert_eq!((fleet.rollout.wave(), fleet.told().len()), ((0, false), 0));
    fleet.say(12, 1, Stage::Staged, 0);
    assert_eq!(fleet.told(), [1].into());
    fleet.succeed(20);
    fleet.tick(80);
    assert_eq!((fleet.rollout.wave(), fleet.told()), ((2, true), [0].into()));
    assert!(fleet.names().contains(&"wave_skipped".to_owned()));
}

#[test]
fn no_more_are_unavailable_than_may_be() {
    let unavailable = Unavailable { of_rack: Some(1), of_group: Some(3), in_all: None };
    let mut fleet = Fleet::new(Plan { unavailable, ..plan(&["rest"]) }, 0..20);
    // Five racks of four nodes, half of them of each group.
    let first = fleet.told();
    let racks: BTreeSet<u8> = first.iter().map(|seed| seed / 4).collect();
    assert_eq!(racks.len(), first.len());
    assert!((3..=5).contains(&first.len()), "{first:?}");
    for now in 2..40 {
        let told = fleet.told();
        let groups = [0, 1].map(|group| told.iter().filter(|seed| *seed % 2 == group).count());
        assert!(groups.iter().all(|count| *count <= 3), "{told:?}");
        if let Some(&seed) = told.first() {
            fleet.say(now, seed, Stage::Confirmed, 1);
        }
    }
    assert_eq!(fleet.rollout.touched(), 20);
}

#[test]
fn a_pause_tells_nobody_more_and_who_was_told_goes_on() {
    let mut fleet = Fleet::new(plan(&["1", "rest"]), 0..5);
    assert!(fleet.rollout.pause(at(2)) && !fleet.rollout.pause(at(2)));
    assert_eq!(fleet.told().len(), 1);
    fleet.succeed(10);
    fleet.tick(500);
    assert_eq!(fleet.told().len(), 0);
    assert!(fleet.rollout.resume(at(500)));
    fleet.tick(559);
    assert_eq!(fleet.told().len(), 0);
    fleet.tick(560);
    assert_eq!(fleet.told().len(), 4);
    assert!(!fleet.rollout.resume(at(561)));
}

#[test]
fn an_operators_halt_holds_who_was_told_until_it_goes_on() {
    let mut fleet = Fleet::new(plan(&["2", "rest"]), 0..5);
    let told = fleet.told();
    assert!(fleet.rollout.halt(at(2), "by the operator"));
    assert!(told.iter().all(|seed| fleet.rollout.order(&peer(*seed)) == Instruction::Hold));
    assert_eq!(fleet.rollout.poll_timeout(), None);
    fleet.tick(5000);
    assert!(fleet.rollout.resume(at(6000)));
    assert_eq!(fleet.told(), told);
    fleet.tick(6599);
    assert_eq!(*fleet.rollout.phase(), Phase::Running);
}

#[test]
fn a_state_is_the_same_after_it_was_written_down() {
    let mut fleet = Fleet::new(plan(&["1", "10%", "group=web", "rest"]), 0..9);
    fleet.succeed(10);
    let text = serde_json::to_string(&fleet.rollout).unwrap();
    assert_eq!(serde_json::from_str::<Rollout>(&text).unwrap(), fleet.rollout);
}
