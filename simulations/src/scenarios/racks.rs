//! Racks of 40 behind trunks that carry a tenth of what their nodes could send: each piece enters a rack once.

use super::{Member, Plan, Scenario, Stage};

/// Nodes of a rack.
const RACK: usize = 40;

pub(crate) const SCENARIO: Scenario = Scenario {
    name: "racks",
    promise: "racks of 40, oversubscribed 10:1: each takes one copy over its uplink, and none is late",
    seeder_rate: 1.0,
    plan: |stage, _| racks(stage, 10.0),
    thresholds: &[],
};

/// Racks of [`RACK`] nodes whose trunks carry what their nodes could send, over `oversubscribed`; the seeder outside.
pub(super) fn racks(stage: &Stage, oversubscribed: f64) -> Plan {
    let mut members = vec![stage.seeder()];
    for node in 0..stage.size.nodes {
        let zones = vec![u32::try_from(node / RACK).unwrap_or(u32::MAX)];
        members.push(Member { zones, ..stage.node() });
    }
    let count = stage.size.nodes.div_ceil(RACK);
    let trunks = vec![RACK as f64 / oversubscribed; count];
    Plan { trunks, neighbours_outside: 8, ..Plan::flat(stage, members) }
}
