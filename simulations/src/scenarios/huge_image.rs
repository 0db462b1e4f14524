//! The most pieces an image has: what adds up per piece would show.

use super::{Plan, Scenario, Size, Threshold};

pub(crate) const SCENARIO: Scenario = Scenario {
    name: "huge-image",
    promise: "8000 pieces and more: the last node is within one per cent of the bound",
    seeder_rate: 1.0,
    rollout: None,
    plan: |stage, _| {
        let mut members = vec![stage.seeder()];
        members.resize(1 + stage.size.nodes, stage.node());
        Plan::flat(stage, members)
    },
    thresholds: &[Threshold {
        size: Size { nodes: 50, pieces: 8000 },
        last_over_bound: 1.01,
        ..Threshold::STRICT
    }],
};
