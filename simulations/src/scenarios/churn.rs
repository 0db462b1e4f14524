//! One node in twenty dies at a random time, some with the only copy of a piece; all survivors finish.

use rand::Rng;

use super::{Death, Member, Plan, Scenario, Size, Threshold};

pub(crate) const SCENARIO: Scenario = Scenario {
    name: "churn",
    promise: "5 % die at random times; every survivor finishes, near the bound",
    seeder_rate: 1.0,
    rollout: None,
    plan: |stage, rng| {
        let mut members = vec![stage.seeder()];
        for node in 0..stage.size.nodes {
            let dies = Death::At(stage.bound() * rng.random_range(0..1000) / 1000);
            members.push(if node % 20 == 19 { Member { dies, ..stage.node() } } else { stage.node() });
        }
        Plan::flat(stage, members)
    },
    // Granting to one random neighbour instead of the less complete of two costs 0.004 to 0.012 here: the bound is close
    // to what two come to (1.037 to 1.039), so that it shows.
    thresholds: &[Threshold {
        size: Size { nodes: 200, pieces: 500 },
        last_over_bound: 1.04,
        seeder_copies: 1.02,
        duplicate_ratio: 0.002,
        ..Threshold::STRICT
    }],
};
