//! The seeder is gone, and the only holder of the last piece is behind a link that loses most of what it sends.
//!
//! Loss is modelled as what TCP makes of it: a fiftieth of the rate.

use std::sync::Arc;

use shoal_proto::exchange::{Bitfield, Role};

use super::{Member, Plan, Scenario, Size, Threshold};

/// Of a usual uplink.
const RATE: f64 = 0.02;

pub(crate) const SCENARIO: Scenario = Scenario {
    name: "lossy-slow-peer-has-last-piece",
    promise: "no seeder, one node at a fiftieth of the rate has the last piece; it gives it once, the others spread it",
    seeder_rate: 1.0,
    rollout: None,
    plan: |stage, _| {
        let pieces = stage.size.pieces;
        let all = Arc::new(Bitfield::full(pieces));
        let mut others = Bitfield::full(pieces);
        if let Some(last) = all.iter().last() {
            others.remove(last);
        }
        let others = Arc::new(others);
        // The piece crosses the slow link once, then its holders double.
        let bound = stage.block_time.div_f64(RATE) + stage.block_time * stage.size.nodes.ilog2();
        let slow = Member { role: Role::Node, up: RATE, held: Some(all), measured: false, ..stage.seeder() };
        let mut members = vec![slow];
        members.resize(1 + stage.size.nodes, Member { bound, held: Some(others), ..stage.node() });
        Plan::flat(stage, members)
    },
    thresholds: &[Threshold {
        size: Size { nodes: 200, pieces: 200 },
        last_over_bound: 4.0,
        duplicate_ratio: 0.015,
        control_per_piece: 100.0,
        ..Threshold::STRICT
    }],
};
