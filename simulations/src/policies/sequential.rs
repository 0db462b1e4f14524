//! Pull in order: what a streaming client or a registry's layer fetch does.

use std::sync::Arc;

use shoal_proto::exchange::{Bitfield, Role};
use shoal_proto::image::PieceList;

use super::pull::{Order, PULL, Pull, Style};

pub(super) fn new(role: Role, pieces: Arc<PieceList>, held: Bitfield, seed: u64) -> Pull {
    Pull::new(Style { order: Order::Sequential, ..PULL }, role, pieces, held, seed)
}
