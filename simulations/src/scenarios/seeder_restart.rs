//! The seeder is killed while it pushes, and in the middle of several waves.

use std::time::Duration;

use super::refresh_wave::{SIZE, SOAK, WAVES, plan};
use super::{Scenario, Threshold};
use crate::rollout::Refresh;

pub(crate) const SCENARIO: Scenario = Scenario {
    name: "seeder-restart",
    promise: "a seeder that is killed again and again goes on with its rollout where it was",
    seeder_rate: 1.0,
    rollout: Some(Refresh {
        waves: WAVES,
        soak: SOAK,
        unavailable: Some(50),
        is_good: true,
        away: &[away(20, 5), away(100, 60), away(260, 1), away(270, 90), away(500, 30), away(620, 300)],
    }),
    plan,
    thresholds: &[Threshold {
        size: SIZE,
        last_over_bound: 1.7,
        control_per_piece: 40.0,
        ..Threshold::STRICT
    }],
};

/// Killed so many seconds after the first node was staged, and away for so many.
const fn away(after_s: u64, lasts_s: u64) -> (Duration, Duration) {
    (Duration::from_secs(after_s), Duration::from_secs(lasts_s))
}
