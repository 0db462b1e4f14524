//! One node in twenty serves rubbish, always. The honest nodes are measured.

use super::{Member, Plan, Scenario, Size, Threshold};

pub(crate) const SCENARIO: Scenario = Scenario {
    name: "liars",
    promise: "5 % serve wrong bytes; each is shunned by whom it lied to, no honest node is, all honest ones finish",
    seeder_rate: 1.0,
    rollout: None,
    plan: |stage, _| {
        let mut members = vec![stage.seeder()];
        let liar = Member { liar: true, measured: false, ..stage.node() };
        for node in 0..stage.size.nodes {
            members.push(if node % 20 == 19 { liar.clone() } else { stage.node() });
        }
        Plan::flat(stage, members)
    },
    thresholds: &[Threshold {
        size: Size { nodes: 200, pieces: 500 },
        last_over_bound: 1.25,
        seeder_copies: 1.3,
        rack_copies_max: 1.3,
        ..Threshold::STRICT
    }],
};
