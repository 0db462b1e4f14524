//! One node in ten joins when the others are half done; it is measured from its own start, against its own downlink.

use super::{Member, Plan, Scenario, Size, Threshold};

pub(crate) const SCENARIO: Scenario = Scenario {
    name: "late-joiners",
    promise: "10 % join half-way; they and the others are near their own bounds",
    seeder_rate: 1.0,
    rollout: None,
    plan: |stage, _| {
        let mut members = vec![stage.seeder()];
        let late = Member {
            joins: stage.bound() / 2,
            bound: stage.block_time * u32::try_from(stage.size.pieces).expect("bounded by the command line"),
            ..stage.node()
        };
        for node in 0..stage.size.nodes {
            members.push(if node % 10 == 9 { late.clone() } else { stage.node() });
        }
        Plan::flat(stage, members)
    },
    thresholds: &[Threshold { size: Size { nodes: 200, pieces: 200 }, ..Threshold::STRICT }],
};
