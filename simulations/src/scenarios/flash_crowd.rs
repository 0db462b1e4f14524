//! Everyone wants everything at once from one seeder that is no faster than a node.

use super::{Plan, Scenario, Size, Threshold};

pub(crate) const SCENARIO: Scenario = Scenario {
    name: "flash-crowd",
    promise: "all nodes start together; the last is near the bound, the seeder sends one copy",
    seeder_rate: 1.0,
    rollout: None,
    plan: |stage, _| {
        let mut members = vec![stage.seeder()];
        members.resize(1 + stage.size.nodes, stage.node());
        Plan::flat(stage, members)
    },
    thresholds: &[
        Threshold { size: Size { nodes: 200, pieces: 200 }, ..Threshold::STRICT },
        Threshold { size: Size { nodes: 1000, pieces: 500 }, last_over_bound: 1.055, ..Threshold::STRICT },
        Threshold { size: Size { nodes: 1000, pieces: 2000 }, last_over_bound: 1.018, ..Threshold::STRICT },
        Threshold {
            size: Size { nodes: 1000, pieces: 2000 },
            seeder_rate: Some(10.0),
            last_over_bound: 1.01,
            heavy: true,
            ..Threshold::STRICT
        },
        Threshold {
            size: Size { nodes: 100, pieces: 2000 },
            last_over_bound: 1.01,
            heavy: true,
            ..Threshold::STRICT
        },
        Threshold {
            size: Size { nodes: 10000, pieces: 500 },
            last_over_bound: 1.065,
            heavy: true,
            ..Threshold::STRICT
        },
        Threshold {
            size: Size { nodes: 10000, pieces: 8000 },
            last_over_bound: 1.02,
            heavy: true,
            ..Threshold::STRICT
        },
    ],
};
