//! A rack in which every other node dies half-way, those that fetch for the others among them.

use super::racks::{SMALL, racks};
use super::{Death, Scenario, Threshold};

pub(crate) const SCENARIO: Scenario = Scenario {
    name: "rack-crippled",
    promise: "every other node of one rack dies half-way: the rest of the rack is not starved",
    seeder_rate: 1.0,
    rollout: None,
    plan: |stage, _| {
        let mut plan = racks(stage, 10.0);
        let first = plan.members.iter_mut().filter(|member| member.zones.first() == Some(&0));
        first.step_by(2).for_each(|member| member.dies = Death::At(stage.bound() / 2));
        plan
    },
    thresholds: &[Threshold {
        last_over_bound: 1.2,
        seeder_copies: 1.02,
        duplicate_ratio: 0.002,
        rack_copies_max: 1.15,
        ..SMALL
    }],
};
