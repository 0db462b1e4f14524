//! A seeder ten times as fast as a node dies as soon as it sees every piece at a neighbour; all nodes finish.

use super::{Death, Member, Plan, Scenario, Size, Threshold};

pub(crate) const SCENARIO: Scenario = Scenario {
    name: "seeder-lost",
    promise: "the seeder dies once every piece is seen elsewhere; every node finishes, near the bound",
    seeder_rate: 10.0,
    rollout: None,
    plan: |stage, _| {
        let mut members = vec![Member { dies: Death::OnceReplicated, ..stage.seeder() }];
        members.resize(1 + stage.size.nodes, stage.node());
        Plan::flat(stage, members)
    },
    thresholds: &[Threshold {
        size: Size { nodes: 200, pieces: 200 },
        last_over_bound: 1.08,
        ..Threshold::STRICT
    }],
};
