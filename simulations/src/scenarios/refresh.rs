//! Every node runs the image before this one and lacks the tenth that changed.

use std::sync::Arc;

use shoal_proto::exchange::Bitfield;

use super::{Member, Plan, Scenario, Size, Threshold};

pub(crate) const SCENARIO: Scenario = Scenario {
    name: "refresh",
    promise: "all nodes hold the same 90 %; only the rest travels, near the bound for the rest",
    seeder_rate: 1.0,
    rollout: None,
    plan: |stage, _| {
        let pieces = stage.size.pieces;
        // What a parent lacks is laid first.
        let changed = pieces.div_ceil(10);
        let mut held = Bitfield::empty(pieces);
        Bitfield::full(pieces).iter().skip(changed).for_each(|piece| {
            held.insert(piece);
        });
        let held = Some(Arc::new(held));
        let doublings = usize::try_from(stage.size.nodes.ilog2()).unwrap_or(usize::MAX);
        let bound = stage.pieces_time(changed + doublings);
        let mut members = vec![stage.seeder()];
        members.resize(1 + stage.size.nodes, Member { bound, held, ..stage.node() });
        Plan::flat(stage, members)
    },
    thresholds: &[Threshold {
        size: Size { nodes: 200, pieces: 2000 },
        last_over_bound: 1.12,
        ..Threshold::STRICT
    }],
};
