//! Firewalls: most nodes can connect to others but nobody can connect to them.

use super::{Member, Plan, Scenario, Size, Threshold};

pub(crate) const SCENARIO: Scenario = Scenario {
    name: "firewalled",
    promise: "70 % of the nodes cannot be dialed; all finish, near the bound",
    seeder_rate: 1.0,
    rollout: None,
    plan: |stage, _| {
        let mut members = vec![stage.seeder()];
        let hidden = (0..stage.size.nodes).filter(|node| node % 10 < 7).count();
        // Two that nobody can dial never meet: all that the hidden ones lack comes from the others.
        let others = (stage.size.nodes - hidden) as f64 + stage.seeder_rate;
        let shared = stage.pieces_time(stage.size.pieces).mul_f64(hidden as f64 / others);
        let bound = stage.bound().max(shared);
        let hidden = Member { dialable: false, bound, ..stage.node() };
        for node in 0..stage.size.nodes {
            members.push(if node % 10 < 7 { hidden.clone() } else { stage.node() });
        }
        Plan::flat(stage, members)
    },
    thresholds: &[Threshold {
        size: Size { nodes: 200, pieces: 200 },
        control_per_piece: 45.0,
        ..Threshold::STRICT
    }],
};
