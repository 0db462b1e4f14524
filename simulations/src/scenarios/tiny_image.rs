//! A few pieces only, as a manifest has: nothing but ramp and tail.

use super::{Plan, Scenario, Size, Threshold};

/// Whatever size is asked for.
const PIECES_MAX: usize = 16;

pub(crate) const SCENARIO: Scenario = Scenario {
    name: "tiny-image",
    promise: "sixteen pieces: the ramp is all there is, and the seeder still sends one copy",
    seeder_rate: 1.0,
    rollout: None,
    plan: |stage, _| {
        let mut small = *stage;
        small.size.pieces = stage.size.pieces.min(PIECES_MAX);
        let mut members = vec![small.seeder()];
        members.resize(1 + small.size.nodes, small.node());
        Plan::flat(&small, members)
    },
    thresholds: &[Threshold {
        size: Size { nodes: 200, pieces: 16 },
        last_over_bound: 1.75,
        control_per_piece: 45.0,
        ..Threshold::STRICT
    }],
};
