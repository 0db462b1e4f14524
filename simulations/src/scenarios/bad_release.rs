//! Machines that run the release are not well: the first one says so, and no other one is touched.

use super::refresh_wave::{SIZE, SOAK, WAVES, plan};
use super::{Scenario, Threshold};
use crate::rollout::Refresh;

pub(crate) const SCENARIO: Scenario = Scenario {
    name: "bad-release",
    promise: "the rollout halts at the first machine, which goes back; nobody else is touched",
    seeder_rate: 1.0,
    rollout: Some(Refresh { waves: WAVES, soak: SOAK, unavailable: None, is_good: false, away: &[] }),
    plan,
    thresholds: &[Threshold {
        size: SIZE,
        last_over_bound: 1.7,
        control_per_piece: 40.0,
        ..Threshold::STRICT
    }],
};
