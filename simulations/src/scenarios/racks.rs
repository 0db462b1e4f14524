//! Racks of 40 behind trunks that carry a tenth of what their nodes could send: each piece enters a rack once.

use super::{Member, Plan, Scenario, Size, Stage, Threshold};

/// Nodes of a rack.
const RACK: usize = 40;
/// Neighbours outside its rack, of each node.
const NEIGHBOURS_OUTSIDE: usize = 8;

pub(crate) const SCENARIO: Scenario = Scenario {
    name: "racks",
    promise: "racks of 40, oversubscribed 10:1: each takes one copy over its uplink, and none is late",
    seeder_rate: 1.0,
    rollout: None,
    plan: |stage, _| racks(stage, 10.0),
    thresholds: &[
        SMALL,
        Threshold {
            size: Size { nodes: 1000, pieces: 500 },
            last_over_bound: 1.07,
            rack_copies_max: 1.05,
            heavy: true,
            ..SMALL
        },
    ],
};

/// What holds at CI size for racks that stay whole.
pub(super) const SMALL: Threshold = Threshold {
    size: Size { nodes: 200, pieces: 200 },
    last_over_bound: 1.14,
    rack_copies_max: 1.07,
    control_per_piece: 80.0,
    ..Threshold::STRICT
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
    Plan { trunks, neighbours_outside: NEIGHBOURS_OUTSIDE, ..Plan::flat(stage, members) }
}

/// Rows of `per_row` racks, each behind a trunk of its own as oversubscribed again.
pub(super) fn rows(stage: &Stage, per_row: usize, oversubscribed: f64) -> Plan {
    let mut plan = racks(stage, oversubscribed);
    let racks = plan.trunks.len();
    for member in plan.members.iter_mut().filter(|member| !member.zones.is_empty()) {
        let row = racks + member.zones[0] as usize / per_row;
        member.zones.push(u32::try_from(row).unwrap_or(u32::MAX));
    }
    let row_rate = per_row as f64 * plan.trunks[0] / oversubscribed;
    plan.trunks.extend(vec![row_rate; racks.div_ceil(per_row)]);
    plan
}
