//! Bandwidth: the links that bytes wait for.
//!
//! A piece is [`QUANTA_PER_PIECE`] quanta. An uplink serves its transfers round robin, a quantum at a time, as TCP
//! connections share a link; a connection may have a window of quanta that its far end has not confirmed; a
//! downlink and the trunks between zones are first come, first served. This approximates window-limited max-min sharing
//! with head-of-line blocking. It is no packet-level TCP: no loss, no slow start, no collapse under incast.

use std::collections::VecDeque;
use std::time::Duration;

use shoal_proto::exchange::PeerKey;
use shoal_proto::image::PieceIndex;
use shoal_proto::time::Time;

pub(crate) const QUANTA_PER_PIECE: u8 = 8;
/// Bytes of every simulated piece.
pub(crate) const PIECE_BYTES: u32 = 1 << 20;
/// A receiver confirms every second quantum at least, as TCP does with segments, and hears of progress with it.
pub(crate) const QUANTA_PER_CONFIRMATION: u8 = 2;

/// One quantum of a piece on its way.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Quantum {
    pub(crate) peer: PeerKey,
    pub(crate) piece: PieceIndex,
    /// Counts from 1.
    pub(crate) number: u8,
}

impl Quantum {
    pub(crate) fn is_last(self) -> bool {
        self.number == QUANTA_PER_PIECE
    }

    pub(crate) fn confirms(self, every: u8) -> bool {
        self.number.is_multiple_of(every)
    }
}

/// Serves its transfers round robin, through a device queue that is first come, first served.
#[derive(Debug)]
pub(crate) struct Uplink {
    quantum: Duration,
    /// Pieces being written, each with the next quantum to leave.
    transfers: VecDeque<Quantum>,
    /// Handed to the device, in order; the first is being sent until `left_at`.
    device: VecDeque<Quantum>,
    left_at: Time,
    /// Most quanta in the device: 1 is a link whose sender decides at the last moment.
    device_max: usize,
    /// Time that control messages took and no quantum has paid for yet.
    owed: Duration,
}

/// What an uplink may do with the next quantum of a transfer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Gate {
    Open,
    /// The window is full: the turn goes to the next.
    Closed,
    /// The transfer is called off before its first quantum.
    Cancelled,
}

impl Uplink {
    pub(crate) fn new(bytes_per_s: f64, device_max: usize) -> Self {
        Self {
            quantum: quantum_at(bytes_per_s),
            transfers: VecDeque::new(),
            device: VecDeque::new(),
            left_at: Time::ZERO,
            device_max,
            owed: Duration::ZERO,
        }
    }

    pub(crate) fn push(&mut self, peer: PeerKey, piece: PieceIndex) {
        self.transfers.push_back(Quantum { peer, piece, number: 1 });
    }

    /// A control message takes its share of the link. Returns how long it waits for what is in the device.
    pub(crate) fn charge(&mut self, now: Time, bytes: u64) -> Duration {
        self.owed +=
            self.quantum.mul_f64(bytes as f64 * f64::from(QUANTA_PER_PIECE) / f64::from(PIECE_BYTES));
        match self.device.len() {
            // It slips in before the quantum being sent is counted: a device without a queue sends packets, not quanta.
            0 | 1 => Duration::ZERO,
            queued => self.left_at.since(now) + self.quantum * u32::try_from(queued - 1).unwrap_or(u32::MAX),
        }
    }

    /// Hands the device its next quantum, if it has room. Returns it, or the transfer that was called off.
    pub(crate) fn admit(&mut self, gate: impl Fn(Quantum) -> Gate) -> Option<Result<Quantum, Quantum>> {
        if self.device.len() >= self.device_max {
            return None;
        }
        let at = self.transfers.iter().position(|next| gate(*next) != Gate::Closed)?;
        let next = self.transfers.remove(at)?;
        if gate(next) == Gate::Cancelled {
            return Some(Err(next));
        }
        self.device.push_back(next);
        if !next.is_last() {
            self.transfers.push_back(Quantum { number: next.number + 1, ..next });
        }
        Some(Ok(next))
    }

    /// When the quantum that was just admitted will have left, if it is the only one: the caller then plans
    /// [`Uplink::finish`].
    pub(crate) fn start(&mut self, now: Time) -> Option<Time> {
        (self.device.len() == 1).then(|| self.send_first(now))
    }

    fn send_first(&mut self, now: Time) -> Time {
        self.left_at = now + self.quantum + std::mem::take(&mut self.owed);
        self.left_at
    }

    /// The first quantum of the device has left. Returns it and when the next one will have.
    pub(crate) fn finish(&mut self, now: Time) -> Option<(Quantum, Option<Time>)> {
        let gone = self.device.pop_front()?;
        let next = (!self.device.is_empty()).then(|| self.send_first(now));
        Some((gone, next))
    }

    /// The connection is gone, with all that was to leave through it. What the device has is lost at the far end.
    pub(crate) fn drop_peer(&mut self, peer: PeerKey) {
        self.transfers.retain(|transfer| transfer.peer != peer);
    }
}

/// A downlink, or one direction of a zone's trunk: first come, first served.
#[derive(Debug)]
pub(crate) struct Server {
    quantum: Duration,
    busy_until: Time,
    pub(crate) served: u64,
}

impl Server {
    pub(crate) fn new(bytes_per_s: f64) -> Self {
        Self { quantum: quantum_at(bytes_per_s), busy_until: Time::ZERO, served: 0 }
    }

    /// A quantum arrives, no earlier than those before it. Returns when it is through.
    pub(crate) fn serve(&mut self, now: Time) -> Time {
        self.busy_until = self.busy_until.max(now) + self.quantum;
        self.served += 1;
        self.busy_until
    }
}

fn quantum_at(bytes_per_s: f64) -> Duration {
    Duration::from_secs_f64(f64::from(PIECE_BYTES) / f64::from(QUANTA_PER_PIECE) / bytes_per_s)
}

#[cfg(test)]
mod tests {
    use shoal_proto::exchange::Bitfield;

    use super::*;

    fn piece() -> PieceIndex {
        Bitfield::full(1).iter().next().unwrap()
    }

    fn two_transfers(bytes_per_s: f64, device_max: usize) -> Uplink {
        let mut uplink = Uplink::new(bytes_per_s, device_max);
        for peer in [PeerKey(0), PeerKey(1)] {
            uplink.push(peer, piece());
        }
        uplink
    }

    #[test]
    fn two_transfers_share_an_uplink_evenly() {
        for device_max in [1, 3] {
            let mut uplink = two_transfers(f64::from(PIECE_BYTES), device_max);
            let mut now = Time::ZERO;
            let mut order = Vec::new();
            let mut next = None;
            loop {
                while uplink.admit(|_| Gate::Open).is_some() {
                    next = next.or(uplink.start(now));
                }
                let Some(at) = next else { break };
                now = at;
                let (gone, then) = uplink.finish(now).unwrap();
                order.push(gone.peer.0);
                next = then;
            }
            assert_eq!(order, [0, 1].repeat(8));
            assert_eq!(now, Time::from_nanos(2_000_000_000));
        }
    }

    #[test]
    fn a_closed_window_holds_up_only_its_own_transfer() {
        let mut uplink = two_transfers(1e6, 1);
        let gate = |next: Quantum| if next.peer == PeerKey(0) { Gate::Closed } else { Gate::Open };
        assert_eq!(uplink.admit(gate).unwrap().unwrap().peer, PeerKey(1));
        assert!(uplink.admit(gate).is_none(), "the device is full");
        uplink.finish(Time::ZERO);
        assert!(uplink.admit(|_| Gate::Closed).is_none());
        assert!(uplink.admit(|_| Gate::Cancelled).unwrap().is_err());
    }

    #[test]
    fn control_waits_for_what_the_device_has_and_takes_its_share() {
        let mut uplink = two_transfers(f64::from(PIECE_BYTES), 3);
        assert_eq!(uplink.charge(Time::ZERO, u64::from(PIECE_BYTES)), Duration::ZERO);
        while uplink.admit(|_| Gate::Open).is_some() {
            uplink.start(Time::ZERO);
        }
        let quantum = Duration::from_millis(125);
        assert_eq!(uplink.charge(Time::ZERO, 0), Duration::from_secs(1) + quantum * 3);
    }

    #[test]
    fn a_server_is_through_with_its_quanta_in_order_at_its_rate() {
        let mut server = Server::new(f64::from(PIECE_BYTES));
        assert_eq!(server.serve(Time::from_nanos(5)), Time::from_nanos(125_000_005));
        assert_eq!(server.serve(Time::from_nanos(6)), Time::from_nanos(250_000_005));
        assert_eq!(server.serve(Time::from_nanos(1_000_000_000)), Time::from_nanos(1_125_000_000));
    }
}
