//! The network falls in two for a quarter of the time. The half without the seeder goes on with what it has.

use super::{Member, Partition, Plan, Scenario, Size, Threshold};

pub(crate) const SCENARIO: Scenario = Scenario {
    name: "partition-heal",
    promise: "half of the nodes are cut off for a quarter of the time; all finish, near their bounds",
    seeder_rate: 1.0,
    rollout: None,
    plan: |stage, _| {
        let cut = Partition { from: stage.bound() / 4, until: stage.bound() / 2 };
        let mut members = vec![stage.seeder()];
        // At most what had left the seeder by then can be on the other side when the two meet again.
        let bound = stage.bound() + (cut.until - cut.from);
        for node in 0..stage.size.nodes {
            let apart = Member { side: 1, bound, ..stage.node() };
            members.push(if node % 2 == 1 { apart } else { stage.node() });
        }
        Plan { partition: Some(cut), ..Plan::flat(stage, members) }
    },
    thresholds: &[Threshold {
        size: Size { nodes: 200, pieces: 200 },
        last_over_bound: 1.13,
        seeder_copies: 1.02,
        ..Threshold::STRICT
    }],
};
