//! A power failure in a third of the room: three nodes in ten die at random times.

use rand::Rng;

use super::{Death, Member, Plan, Scenario, Size, Threshold};

pub(crate) const SCENARIO: Scenario = Scenario {
    name: "churn-heavy",
    promise: "30 % die at random times; every survivor finishes within a fifth of the bound",
    seeder_rate: 1.0,
    rollout: None,
    plan: |stage, rng| {
        let mut members = vec![stage.seeder()];
        for node in 0..stage.size.nodes {
            let dies = Death::At(stage.bound() * rng.random_range(0..1000) / 1000);
            members.push(if node % 10 < 3 { Member { dies, ..stage.node() } } else { stage.node() });
        }
        Plan::flat(stage, members)
    },
    thresholds: &[Threshold {
        size: Size { nodes: 200, pieces: 500 },
        last_over_bound: 1.2,
        seeder_copies: 1.02,
        duplicate_ratio: 0.002,
        ..Threshold::STRICT
    }],
};
