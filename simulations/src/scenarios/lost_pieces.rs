//! The seeder dies before it has given everything: what is lost is said, by name, instead of hanging.

use super::{Death, Member, Plan, Scenario, Size, Threshold};

pub(crate) const SCENARIO: Scenario = Scenario {
    name: "lost-pieces",
    promise: "the seeder dies at 0.9 copies; every node soon holds what is left and names what is not to be had",
    seeder_rate: 1.0,
    rollout: None,
    plan: |stage, _| {
        let mut members = vec![Member { dies: Death::AfterCopies(0.9), ..stage.seeder() }];
        members.resize(1 + stage.size.nodes, stage.node());
        Plan { some_is_lost: true, ..Plan::flat(stage, members) }
    },
    thresholds: &[Threshold {
        size: Size { nodes: 200, pieces: 200 },
        last_over_bound: 1.35,
        ..Threshold::STRICT
    }],
};
