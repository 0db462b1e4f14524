//! A host receives nothing that nobody sent, and what left arrives, is lost with its connection, or is on its way.

use anyhow::ensure;
use shoal_proto::image::PieceIndex;

use crate::link::{QUANTA_PER_PIECE, Quantum};

/// One connection's ledger, at one of its ends: `left` and the others are of opposite directions.
///
/// **Invariant:** a connection carries one piece at a time, its quanta in order.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Quanta {
    pub(crate) left: u64,
    pub(crate) received: u64,
    /// Arrived when the connection was gone.
    pub(crate) lost: u64,
    current: Option<(PieceIndex, u8)>,
}

impl Quanta {
    pub(crate) fn receive(&mut self, host: u32, quantum: Quantum) -> anyhow::Result<()> {
        let Quantum { peer, piece, number } = quantum;
        self.received += 1;
        match self.current {
            Some((coming, last)) if last < QUANTA_PER_PIECE => {
                ensure!(
                    (coming, last + 1) == (piece, number),
                    "host {host} receives quantum {number} of {piece} from {peer:?} after {last} of {coming}"
                );
            }
            _ => ensure!(number == 1, "host {host} receives quantum {number} of {piece} from {peer:?} first"),
        }
        self.current = Some((piece, number));
        Ok(())
    }

    /// `self` is the receiver's end, `sender` the sender's, `under_way` what still travels between them.
    pub(crate) fn settle(&self, host: u32, sender: &Self, under_way: u64) -> anyhow::Result<()> {
        let accounted = self.received + self.lost + under_way;
        ensure!(
            sender.left == accounted,
            "{} quanta left for host {host}, of which {accounted} are accounted for",
            sender.left
        );
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use shoal_proto::exchange::{Bitfield, PeerKey};

    use super::*;

    fn quantum(piece: usize, number: u8) -> Quantum {
        let piece = Bitfield::full(2).iter().nth(piece).unwrap();
        Quantum { peer: PeerKey(0), piece, number }
    }

    #[test]
    fn a_quantum_out_of_order_is_found() {
        let mut ledger = Quanta::default();
        assert!(ledger.receive(0, quantum(0, 2)).is_err());
        let mut ledger = Quanta::default();
        for number in 1..=QUANTA_PER_PIECE {
            ledger.receive(0, quantum(0, number)).unwrap();
        }
        ledger.receive(0, quantum(1, 1)).unwrap();
        assert!(ledger.receive(0, quantum(0, 2)).is_err(), "of another piece");
    }

    #[test]
    fn a_quantum_that_nobody_sent_is_found() {
        let mut receiver = Quanta::default();
        receiver.receive(0, quantum(0, 1)).unwrap();
        assert!(receiver.settle(0, &Quanta::default(), 0).is_err());
        let sender = Quanta { left: 2, ..Quanta::default() };
        assert!(receiver.settle(0, &sender, 0).is_err(), "one is missing");
        assert!(receiver.settle(0, &sender, 1).is_ok(), "it is on its way");
    }
}
