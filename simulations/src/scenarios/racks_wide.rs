//! Racks whose trunks carry a quarter of what their nodes could send.

use super::Scenario;
use super::racks::{SMALL, racks};

pub(crate) const SCENARIO: Scenario = Scenario {
    name: "racks-wide",
    promise: "racks of 40, oversubscribed 4:1: wider uplinks are not filled with second copies",
    seeder_rate: 1.0,
    rollout: None,
    plan: |stage, _| racks(stage, 4.0),
    thresholds: &[SMALL],
};
