//! A good release goes to a fleet that runs the one before, in waves.

use std::time::Duration;

use super::{Plan, Scenario, Size, Stage, Threshold, refresh};
use crate::rollout::Refresh;

/// One machine, then more and more of them.
pub(super) const WAVES: &[&str] = &["1", "1%", "10%", "rest"];
pub(super) const SOAK: Duration = Duration::from_secs(60);

pub(crate) const SCENARIO: Scenario = Scenario {
    name: "refresh-wave",
    promise: "all nodes fetch the changed tenth ahead; each wave applies it after the gate of the one before",
    seeder_rate: 1.0,
    rollout: Some(Refresh { waves: WAVES, soak: SOAK, unavailable: Some(200), is_good: true, away: &[] }),
    plan,
    thresholds: &[Threshold {
        size: SIZE,
        last_over_bound: 1.7,
        control_per_piece: 40.0,
        ..Threshold::STRICT
    }],
};

/// Twenty pieces changed: the doublings of the last one weigh.
pub(super) const SIZE: Size = Size { nodes: 200, pieces: 200 };

pub(super) fn plan(stage: &Stage, rng: &mut rand_chacha::ChaCha8Rng) -> Plan {
    (refresh::SCENARIO.plan)(stage, rng)
}
