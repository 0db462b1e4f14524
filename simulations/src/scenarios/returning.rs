//! Nodes that were away come back with nine tenths of the image when the others have it all.

use std::sync::Arc;

use rand::Rng;
use shoal_proto::exchange::Bitfield;

use super::{Member, Plan, Scenario, Size, Threshold};

pub(crate) const SCENARIO: Scenario = Scenario {
    name: "returning",
    promise: "10 % come back late, lacking a random tenth; they have it in little more than its time on their link",
    seeder_rate: 1.0,
    rollout: None,
    plan: |stage, rng| {
        let pieces = stage.size.pieces;
        let mut members = vec![stage.seeder()];
        for node in 0..stage.size.nodes {
            if node % 10 != 9 {
                members.push(Member { measured: false, ..stage.node() });
                continue;
            }
            let mut held = Bitfield::full(pieces);
            for piece in Bitfield::full(pieces).iter().filter(|_| rng.random_range(0..10) == 0) {
                held.remove(piece);
            }
            let bound = stage.pieces_time((pieces - held.count()).max(1));
            let joins = stage.bound() * 5 / 4;
            members.push(Member { joins, bound, held: Some(Arc::new(held)), ..stage.node() });
        }
        Plan::flat(stage, members)
    },
    thresholds: &[Threshold {
        size: Size { nodes: 200, pieces: 500 },
        last_over_bound: 1.05,
        ..Threshold::STRICT
    }],
};
