//! Racks in which one node in twenty dies at a random time, some of them in the middle of fetching for their rack.

use rand::Rng;

use super::racks::{SMALL, racks};
use super::{Death, Scenario, Threshold};

pub(crate) const SCENARIO: Scenario = Scenario {
    name: "racks-churn",
    promise: "5 % of the nodes die at random times: what they fetched for their racks is fetched again, and little else",
    seeder_rate: 1.0,
    rollout: None,
    plan: |stage, rng| {
        let mut plan = racks(stage, 10.0);
        for member in plan.members.iter_mut().skip(1).step_by(20) {
            member.dies = Death::At(stage.bound() * rng.random_range(0..1000) / 1000);
        }
        plan
    },
    thresholds: &[Threshold {
        last_over_bound: 1.2,
        seeder_copies: 1.02,
        duplicate_ratio: 0.002,
        rack_copies_max: 1.12,
        ..SMALL
    }],
};
