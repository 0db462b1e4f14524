//! One node in twenty has a tenth of the rate, both ways; the healthy nodes are measured.

use super::{Member, Plan, Scenario, Size, Threshold};

pub(crate) const SCENARIO: Scenario = Scenario {
    name: "stragglers",
    promise: "5 % at a tenth of the rate both ways; the healthy nodes hardly notice",
    seeder_rate: 1.0,
    rollout: None,
    plan: |stage, _| {
        let mut members = vec![stage.seeder()];
        let slow = Member { up: 0.1, down: 0.1, bound: stage.bound() * 10, measured: false, ..stage.node() };
        for node in 0..stage.size.nodes {
            members.push(if node % 20 == 19 { slow.clone() } else { stage.node() });
        }
        Plan::flat(stage, members)
    },
    thresholds: &[Threshold {
        size: Size { nodes: 200, pieces: 500 },
        last_over_bound: 1.09,
        seeder_copies: 1.02,
        duplicate_ratio: 0.002,
        control_per_piece: 45.0,
        ..Threshold::STRICT
    }],
};
