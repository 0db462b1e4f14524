//! A host receives nothing that nobody sent.

use std::collections::BTreeMap;

use anyhow::ensure;
use shoal_proto::exchange::PeerKey;
use shoal_proto::image::PieceIndex;

use crate::link::QUANTA_PER_PIECE;

/// The ledger of every quantum between an uplink and a downlink.
///
/// **Invariant:** a connection's quanta of a piece are delivered in order, each once, after they left.
#[derive(Debug, Default)]
pub(crate) struct Conservation {
    /// Receiver, sender as the receiver numbers it, piece → quanta that left and quanta delivered.
    under_way: BTreeMap<(u32, PeerKey, PieceIndex), (u8, u8)>,
    pub(crate) left: u64,
    pub(crate) delivered: u64,
}

impl Conservation {
    pub(crate) fn quantum_left(&mut self, to: u32, peer: PeerKey, piece: PieceIndex) {
        self.under_way.entry((to, peer, piece)).or_default().0 += 1;
        self.left += 1;
    }

    pub(crate) fn quantum_delivered(
        &mut self,
        to: u32,
        peer: PeerKey,
        piece: PieceIndex,
        quantum: u8,
    ) -> anyhow::Result<()> {
        let key = (to, peer, piece);
        let Some((left, delivered)) = self.under_way.get_mut(&key) else {
            anyhow::bail!("host {to} receives {piece:?} from {peer:?}, which sent none of it");
        };
        *delivered += 1;
        // A piece sent twice in a row over one connection starts over while its first copy is on its way.
        let expected = (*delivered - 1) % QUANTA_PER_PIECE + 1;
        ensure!(delivered <= left, "host {to} receives more of {piece:?} from {peer:?} than left");
        ensure!(expected == quantum, "host {to} receives quantum {quantum} of {piece:?}, not {expected}");
        if delivered == left && *delivered % QUANTA_PER_PIECE == 0 {
            self.under_way.remove(&key);
        }
        self.delivered += 1;
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use shoal_proto::exchange::Bitfield;

    use super::*;

    #[test]
    fn a_quantum_that_nobody_sent_is_found() {
        let piece = Bitfield::full(1).iter().next().unwrap();
        let mut ledger = Conservation::default();
        assert!(ledger.quantum_delivered(0, PeerKey(0), piece, 1).is_err());
        ledger.quantum_left(0, PeerKey(0), piece);
        assert!(ledger.quantum_delivered(0, PeerKey(0), piece, 1).is_ok());
        assert!(ledger.quantum_delivered(0, PeerKey(0), piece, 2).is_err());
    }
}
