//! Two seeders that do not know of each other share the work.

use super::{Plan, Scenario, Size, Threshold};

pub(crate) const SCENARIO: Scenario = Scenario {
    name: "two-seeders",
    promise: "two seeders that do not know of each other send little more than one copy together",
    seeder_rate: 1.0,
    rollout: None,
    plan: |stage, _| {
        let bound = stage.pieces_time(stage.size.pieces);
        let mut members = vec![stage.seeder(), stage.seeder()];
        members.resize(2 + stage.size.nodes, super::Member { bound, ..stage.node() });
        Plan::flat(stage, members)
    },
    thresholds: &[Threshold {
        size: Size { nodes: 200, pieces: 500 },
        seeder_copies: 1.2,
        rack_copies_max: 1.2,
        ..Threshold::STRICT
    }],
};
