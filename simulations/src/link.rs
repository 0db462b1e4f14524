//! Bandwidth: one uplink and one downlink per host.
//!
//! A piece is [`QUANTA_PER_PIECE`] quanta. An uplink serves its transfers round robin, a quantum at a time, as TCP
//! connections share a link; a connection may have [`WINDOW_QUANTA`] quanta on their way past the uplink, as its
//! window allows; a downlink is first come, first served. This approximates window-limited max-min sharing with
//! head-of-line blocking. It is no packet-level TCP: no loss, no slow start, no collapse under incast; control
//! messages take time but no bandwidth; hashing and disks are free.

use std::collections::VecDeque;
use std::time::Duration;

use shoal_proto::exchange::PeerKey;
use shoal_proto::image::PieceIndex;
use shoal_proto::time::Time;

pub(crate) const QUANTA_PER_PIECE: u8 = 8;
pub(crate) const WINDOW_QUANTA: u8 = 8;
/// Bytes of every simulated piece.
pub(crate) const PIECE_BYTES: u32 = 1 << 20;
/// A receiver hears of progress once per so many quanta: every 256 KiB.
pub(crate) const QUANTA_PER_PROGRESS: u8 = 2;

/// A piece being written to one connection.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Transfer {
    pub(crate) peer: PeerKey,
    pub(crate) piece: PieceIndex,
    /// Quanta that have left.
    pub(crate) gone: u8,
}

/// Serves its transfers round robin.
#[derive(Debug)]
pub(crate) struct Uplink {
    quantum: Duration,
    transfers: VecDeque<Transfer>,
    /// The quantum being sent now.
    serving: Option<Transfer>,
}

impl Uplink {
    pub(crate) fn new(bytes_per_s: f64) -> Self {
        Self { quantum: quantum_at(bytes_per_s), transfers: VecDeque::new(), serving: None }
    }

    pub(crate) fn push(&mut self, peer: PeerKey, piece: PieceIndex) {
        self.transfers.push_back(Transfer { peer, piece, gone: 0 });
    }

    /// Starts the next quantum whose window is open; says when it will have left.
    pub(crate) fn serve(&mut self, now: Time, is_open: impl Fn(PeerKey) -> bool) -> Option<Time> {
        if self.serving.is_some() {
            return None;
        }
        let at = self.transfers.iter().position(|transfer| is_open(transfer.peer))?;
        self.serving = self.transfers.remove(at);
        Some(now + self.quantum)
    }

    /// The quantum being sent has left. Its transfer goes to the back of the row unless that was the last one.
    pub(crate) fn finish(&mut self) -> Option<Transfer> {
        let mut transfer = self.serving.take()?;
        transfer.gone += 1;
        if transfer.gone < QUANTA_PER_PIECE {
            self.transfers.push_back(transfer);
        }
        Some(transfer)
    }

    /// The connection is gone, with all that was to leave through it. A quantum being sent is lost at the far end.
    pub(crate) fn drop_peer(&mut self, peer: PeerKey) {
        self.transfers.retain(|transfer| transfer.peer != peer);
    }
}

/// A quantum on its way into a host.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Arrival {
    /// The sender, as the receiver numbers it.
    pub(crate) peer: PeerKey,
    pub(crate) piece: PieceIndex,
    /// Counts from 1.
    pub(crate) quantum: u8,
}

/// First come, first served.
#[derive(Debug)]
pub(crate) struct Downlink {
    quantum: Duration,
    busy_until: Time,
    row: VecDeque<(Time, Arrival)>,
}

impl Downlink {
    pub(crate) fn new(bytes_per_s: f64) -> Self {
        Self { quantum: quantum_at(bytes_per_s), busy_until: Time::ZERO, row: VecDeque::new() }
    }

    /// A quantum reaches the downlink at `reached`, not earlier than those before it. Returns when to call
    /// [`Downlink::deliver`] if nothing else was under way.
    pub(crate) fn push(&mut self, reached: Time, arrival: Arrival) -> Option<Time> {
        self.busy_until = self.busy_until.max(reached) + self.quantum;
        self.row.push_back((self.busy_until, arrival));
        (self.row.len() == 1).then_some(self.busy_until)
    }

    /// The first quantum is through; with it, when the next one will be.
    pub(crate) fn deliver(&mut self) -> Option<(Arrival, Option<Time>)> {
        let (_, arrival) = self.row.pop_front()?;
        Some((arrival, self.row.front().map(|&(at, _)| at)))
    }
}

fn quantum_at(bytes_per_s: f64) -> Duration {
    Duration::from_secs_f64(f64::from(PIECE_BYTES) / f64::from(QUANTA_PER_PIECE) / bytes_per_s)
}

#[cfg(test)]
mod tests {
    use shoal_proto::cid::Cid;
    use shoal_proto::image::PieceList;
    use shoal_proto::image::pieces::Piece;

    use super::*;

    fn piece() -> PieceIndex {
        let piece = Piece { cid: Cid::of(b"piece"), raw_bytes: PIECE_BYTES };
        PieceList::new(vec![piece]).unwrap().index(0).unwrap()
    }

    #[test]
    fn two_transfers_share_an_uplink_evenly() {
        let mut uplink = Uplink::new(f64::from(PIECE_BYTES));
        for peer in [PeerKey(0), PeerKey(1)] {
            uplink.push(peer, piece());
        }
        let mut now = Time::ZERO;
        let mut order = Vec::new();
        while let Some(at) = uplink.serve(now, |_| true) {
            now = at;
            order.push(uplink.finish().unwrap().peer.0);
        }
        assert_eq!(order, [0, 1].repeat(8));
        assert_eq!(now, Time::from_nanos(2_000_000_000));
    }

    #[test]
    fn a_closed_window_holds_up_only_its_own_transfer() {
        let mut uplink = Uplink::new(1e6);
        for peer in [PeerKey(0), PeerKey(1)] {
            uplink.push(peer, piece());
        }
        assert!(uplink.serve(Time::ZERO, |peer| peer != PeerKey(0)).is_some());
        assert_eq!(uplink.finish().unwrap().peer, PeerKey(1));
        assert!(uplink.serve(Time::ZERO, |_| false).is_none());
    }

    #[test]
    fn a_downlink_delivers_at_its_rate_in_order() {
        let mut downlink = Downlink::new(f64::from(PIECE_BYTES));
        let arrival = |quantum| Arrival { peer: PeerKey(0), piece: piece(), quantum };
        let first = downlink.push(Time::from_nanos(5), arrival(1));
        assert_eq!(first, Some(Time::from_nanos(125_000_005)));
        assert_eq!(downlink.push(Time::from_nanos(6), arrival(2)), None);
        let (one, next) = downlink.deliver().unwrap();
        assert_eq!((one.quantum, next), (1, Some(Time::from_nanos(250_000_005))));
        assert_eq!(downlink.deliver().unwrap().1, None);
    }
}
