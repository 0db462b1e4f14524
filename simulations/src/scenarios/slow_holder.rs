//! A node at a fiftieth of the rate has had the image for long when the others start. What it shows is not to be had
//! from it in time, and the seeder must not take it for spread.

use std::sync::Arc;

use shoal_proto::exchange::{Bitfield, Role};

use super::{Member, Plan, Scenario, Size, Threshold};

/// Of a usual link, each way.
const RATE: f64 = 0.02;

pub(crate) const SCENARIO: Scenario = Scenario {
    name: "slow-holder",
    promise: "a node at a fiftieth of the rate has all at the start; the seeder soon sends what does not spread from it",
    seeder_rate: 1.0,
    rollout: None,
    plan: |stage, _| {
        let all = Arc::new(Bitfield::full(stage.size.pieces));
        let held = Some(all);
        let slow = Member { role: Role::Node, up: RATE, down: RATE, held, measured: false, ..stage.seeder() };
        let mut members = vec![stage.seeder(), slow];
        members.resize(2 + stage.size.nodes, stage.node());
        Plan::flat(stage, members)
    },
    thresholds: &[Threshold {
        size: Size { nodes: 200, pieces: 200 },
        last_over_bound: 1.4,
        seeder_copies: 1.02,
        ..Threshold::STRICT
    }],
};
