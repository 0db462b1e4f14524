//! One node in ten comes with nine tenths of the image, each with others, from an older one or an install cut short.

use std::sync::Arc;

use rand::Rng;
use shoal_proto::exchange::Bitfield;

use super::{Member, Plan, Scenario, Size, Threshold};

pub(crate) const SCENARIO: Scenario = Scenario {
    name: "partial-seeders",
    promise: "10 % hold a random 90 % at the start and serve it at once; the seeder sends what none of them has",
    seeder_rate: 1.0,
    rollout: None,
    plan: |stage, rng| {
        let pieces = stage.size.pieces;
        let bound = stage.pieces_time(pieces);
        let mut members = vec![stage.seeder()];
        for node in 0..stage.size.nodes {
            let mut member = Member { bound, ..stage.node() };
            if node % 10 == 9 {
                let mut held = Bitfield::full(pieces);
                for piece in Bitfield::full(pieces).iter().filter(|_| rng.random_range(0..10) == 0) {
                    held.remove(piece);
                }
                // It lacks little, but all that the others need leaves through the uplinks that it shares.
                member.held = Some(Arc::new(held));
            }
            members.push(member);
        }
        Plan::flat(stage, members)
    },
    thresholds: &[Threshold {
        size: Size { nodes: 200, pieces: 200 },
        last_over_bound: 1.07,
        control_per_piece: 40.0,
        ..Threshold::STRICT
    }],
};
