//! A quarter of the nodes upload at a quarter of the rate, a quarter at twice the rate.

use super::{Member, Plan, Scenario, Size, Threshold};

pub(crate) const SCENARIO: Scenario = Scenario {
    name: "mixed-rates",
    promise: "uplinks of 0.25, 1, 1 and 2 of the usual; nobody waits for the slow ones",
    seeder_rate: 1.0,
    rollout: None,
    plan: |stage, _| {
        let ups = [0.25, 1.0, 2.0, 1.0];
        let nodes = stage.size.nodes;
        let total: f64 = (0..nodes).map(|node| ups[node % ups.len()]).sum();
        // All that has to travel, over all uplinks together.
        let shared = stage.pieces_time(stage.size.pieces).mul_f64(nodes as f64 / (total + stage.seeder_rate));
        let bound = stage.bound().max(shared);
        let mut members = vec![stage.seeder()];
        members.extend((0..nodes).map(|node| Member { up: ups[node % ups.len()], bound, ..stage.node() }));
        Plan::flat(stage, members)
    },
    thresholds: &[Threshold {
        size: Size { nodes: 200, pieces: 500 },
        last_over_bound: 1.15,
        duplicate_ratio: 0.005,
        ..Threshold::STRICT
    }],
};
