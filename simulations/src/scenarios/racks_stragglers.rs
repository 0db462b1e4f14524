//! Racks in which one node in twenty has a tenth of the rate: it must not be the one that fetches for all.

use super::racks::{SMALL, racks};
use super::{Member, Scenario, Threshold};

pub(crate) const SCENARIO: Scenario = Scenario {
    name: "racks-stragglers",
    promise: "5 % of the nodes have a tenth of the rate: the others' racks are not held up",
    seeder_rate: 1.0,
    rollout: None,
    plan: |stage, _| {
        let mut plan = racks(stage, 10.0);
        for member in plan.members.iter_mut().skip(1).step_by(20) {
            *member =
                Member { up: 0.1, down: 0.1, bound: member.bound * 10, measured: false, ..member.clone() };
        }
        plan
    },
    thresholds: &[Threshold {
        last_over_bound: 1.3,
        seeder_copies: 1.05,
        duplicate_ratio: 0.005,
        rack_copies_max: 1.12,
        // The stragglers are declined, and granted again, long after the others are done.
        control_per_piece: 100.0,
        ..SMALL
    }],
};
