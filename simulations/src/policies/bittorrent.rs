//! Classic BitTorrent (BEP 3) among peers that give freely: rarest first, four unchoked peers in rotation.

use std::sync::Arc;
use std::time::Duration;

use shoal_proto::exchange::{Bitfield, Role};
use shoal_proto::image::PieceList;

use super::pull::{Order, Pull, Style};

/// Ten piece-times at the simulator's default rate. BEP 3's ten seconds are made for the Internet and would leave most
/// of a run to the first four.
const TURN: Duration = Duration::from_millis(840);

const STYLE: Style = Style {
    order: Order::Rarest,
    choking: Some(TURN),
    super_seeding: false,
    slots: 4,
    per_source: 2,
    total: usize::MAX,
};

pub(super) fn plain(role: Role, pieces: Arc<PieceList>, held: Bitfield, seed: u64) -> Pull {
    Pull::new(STYLE, role, pieces, held, seed)
}

/// The seeder hides what it has and shows each peer one piece, the next once another peer has that one (BEP 16).
pub(super) fn super_seeding(role: Role, pieces: Arc<PieceList>, held: Bitfield, seed: u64) -> Pull {
    Pull::new(Style { super_seeding: true, ..STYLE }, role, pieces, held, seed)
}
