//! No swarm: every node fetches everything from the first member, the seeder.

use std::sync::Arc;

use shoal_proto::exchange::{Bitfield, Role};
use shoal_proto::image::PieceList;

use super::pull::{Order, PULL, Pull, Style};

/// A server takes all who come.
const STYLE: Style = Style { order: Order::Sequential, slots: usize::MAX, per_source: 4, ..PULL };

pub(super) fn new(role: Role, pieces: Arc<PieceList>, held: Bitfield, seed: u64) -> Pull {
    Pull::new(STYLE, role, pieces, held, seed)
}

pub(super) fn links(hosts: usize) -> Vec<(usize, usize)> {
    (1..hosts).map(|host| (0, host)).collect()
}
