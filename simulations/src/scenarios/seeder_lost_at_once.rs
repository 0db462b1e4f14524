//! A seeder no faster than a node dies with the last byte of its first copy.

use super::{Death, Member, Plan, Scenario, Size, Threshold};

pub(crate) const SCENARIO: Scenario = Scenario {
    name: "seeder-lost-at-once",
    promise: "the seeder dies with the last byte of its first copy; every node finishes, near the bound",
    seeder_rate: 1.0,
    rollout: None,
    plan: |stage, _| {
        let mut members = vec![Member { dies: Death::AfterCopies(1.0), ..stage.seeder() }];
        members.resize(1 + stage.size.nodes, stage.node());
        Plan::flat(stage, members)
    },
    thresholds: &[Threshold { size: Size { nodes: 200, pieces: 200 }, ..Threshold::STRICT }],
};
