//! What the field does, to compare the shipping exchange with: each policy trades with its own kind only.
//!
//! All are given what helps them: no reciprocation, nobody selfish, the same links, sizes and network as the
//! exchange, and the parameters that did best of those tried.

mod bittorrent;
mod chain;
mod pull;
mod sequential;
mod server;

use std::fmt;
use std::sync::Arc;

use anyhow::Context;
use shoal_proto::exchange::{Bitfield, Role};
use shoal_proto::image::PieceList;

use crate::outcome::Outcome;
use crate::scenarios::{Scenario, Size};
use crate::sim::{Options, Simulation, exchange, exchange_over_tcp};
use crate::trader::Trader;

/// The name of the shipping exchange among the policies.
pub(crate) const OURS: &str = "shoal";

pub(crate) const ALL: &[Policy] = &[
    Policy {
        name: OURS,
        title: "Shoal",
        about: "the shipping exchange: grant, request or decline; one-copy seeding",
        run: |scenario, size, options| run(scenario, size, options, exchange),
    },
    Policy {
        name: "shoal-tcp",
        title: "Shoal, tuned for TCP",
        about: "the same with more under way, as nodes run it: for `--window 1`",
        run: |scenario, size, options| run(scenario, size, options, exchange_over_tcp),
    },
    Policy {
        name: "bittorrent-super",
        title: "BitTorrent (super-seeding)",
        about: "rarest first, 4 upload slots in rotation, the seeder shows each peer one piece at a time (BEP 16)",
        run: |scenario, size, options| run(scenario, size, options, bittorrent::super_seeding),
    },
    Policy {
        name: "bittorrent",
        title: "BitTorrent",
        about: "rarest first, 4 upload slots in rotation, tit-for-tat off",
        run: |scenario, size, options| run(scenario, size, options, bittorrent::plain),
    },
    Policy {
        name: "pull",
        title: "Pull (rarest first)",
        about: "receivers ask random holders for rarest pieces; requests queue at the uploader's 4 slots",
        run: |scenario, size, options| run(scenario, size, options, pull::rarest_first),
    },
    Policy {
        name: "sequential",
        title: "Pull (in order)",
        about: "the same, but every receiver asks for its first missing piece",
        run: |scenario, size, options| {
            // All that know the seeder want the same piece of it.
            let patience_bounds = 4 * u32::try_from(options.neighbours)?;
            run(scenario, size, &Options { patience_bounds, ..options.clone() }, sequential::new)
        },
    },
    Policy {
        name: "chain",
        title: "Chain",
        about: "each node forwards whole pieces to the next in a row; a spare link leads past one dead node",
        run: |scenario, size, options| {
            run(
                scenario,
                size,
                &Options { links: Some(chain::links_with_spares), ..options.clone() },
                chain::new,
            )
        },
    },
    Policy {
        name: "chain-bare",
        title: "Chain (no spare links)",
        about: "the same, but nobody knows more than the next in the row",
        run: |scenario, size, options| {
            run(scenario, size, &Options { links: Some(chain::links), ..options.clone() }, chain::new)
        },
    },
    Policy {
        name: "server",
        title: "Server only",
        about: "every node fetches everything from the seeder, as by rsync or HTTP",
        run: |scenario, size, options| {
            // Each node needs the whole uplink for as long as the image takes.
            let patience_bounds = 2 * u32::try_from(size.nodes)?;
            let options = Options { links: Some(server::links), patience_bounds, ..options.clone() };
            run(scenario, size, &options, server::new)
        },
    },
];

pub(crate) fn named(name: &str) -> anyhow::Result<&'static Policy> {
    ALL.iter().find(|policy| policy.name == name).with_context(|| {
        let names: Vec<_> = ALL.iter().map(|policy| policy.name).collect();
        format!("no policy is called {name}: there are {}", names.join(", "))
    })
}

/// A way to trade, and how to simulate it.
pub(crate) struct Policy {
    pub(crate) name: &'static str,
    /// As a reader calls it.
    pub(crate) title: &'static str,
    /// In one line.
    pub(crate) about: &'static str,
    pub(crate) run: fn(&Scenario, Size, &Options) -> anyhow::Result<Outcome>,
}

impl fmt::Debug for Policy {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("Policy").field(&self.name).finish()
    }
}

fn run<T: Trader>(
    scenario: &Scenario,
    size: Size,
    options: &Options,
    make: fn(Role, Arc<PieceList>, Bitfield, u64) -> T,
) -> anyhow::Result<Outcome> {
    Simulation::new(scenario, size, options, make)?.run()
}
