//! Rows of five racks, each row behind a trunk of its own: each piece enters a rack about once, and a row not much more often.

use super::racks::{SMALL, rows};
use super::{Scenario, Size, Threshold};

pub(crate) const SCENARIO: Scenario = Scenario {
    name: "rows",
    promise: "rows of five racks, each level oversubscribed 4:1: rows take each piece by the rule of racks",
    seeder_rate: 1.0,
    rollout: None,
    plan: |stage, _| rows(stage, 5, 4.0),
    thresholds: &[Threshold {
        size: Size { nodes: 400, pieces: 100 },
        last_over_bound: 1.3,
        // Of a row: not every node knows one of each rack of its row. A rack takes no more than 1.05.
        rack_copies_max: 1.45,
        control_per_piece: 95.0,
        ..SMALL
    }],
};
