//! Machines are never switched on in the same second: they join one by one over half of the time it takes.

use rand::Rng;

use super::{Member, Plan, Scenario, Size, Threshold};

pub(crate) const SCENARIO: Scenario = Scenario {
    name: "staggered-start",
    promise: "nodes join evenly over half of the bound; each is near its own bound",
    seeder_rate: 1.0,
    rollout: None,
    plan: |stage, rng| {
        let mut members = vec![stage.seeder()];
        for _ in 0..stage.size.nodes {
            let joins = stage.bound() * rng.random_range(0..500) / 1000;
            // What left the seeder last, or its own downlink, whichever is later.
            let bound = stage.bound().saturating_sub(joins).max(stage.pieces_time(stage.size.pieces));
            members.push(Member { joins, bound, ..stage.node() });
        }
        Plan::flat(stage, members)
    },
    thresholds: &[Threshold {
        size: Size { nodes: 200, pieces: 200 },
        last_over_bound: 1.13,
        control_per_piece: 55.0,
        ..Threshold::STRICT
    }],
};
