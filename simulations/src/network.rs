//! What lies between the hosts: latency, jitter, and the trunks that zones share.

use std::time::Duration;

use crate::link::QUANTA_PER_CONFIRMATION;
use crate::queue::Travel;

/// What every host is made of and how far apart they are.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Physics {
    /// One way between any two hosts, for control and for data.
    pub(crate) latency: Duration,
    /// A control message takes up to this many latencies more.
    pub(crate) jitter: f64,
    /// Time to decode and hash a piece, of one core per host.
    pub(crate) verify: Duration,
    /// Time to store a piece.
    pub(crate) store: Duration,
    /// Processor time of a control message, at its receiver.
    pub(crate) message: Duration,
    /// Quanta in a sender's device, which control messages wait behind; 1 for a sender that puts them first.
    pub(crate) device_max: usize,
    /// Quanta of a connection that its far end has not confirmed: what the network has room for on their way.
    pub(crate) window: u8,
    pub(crate) release: Release,
}

impl Physics {
    /// Quanta that one confirmation is for.
    pub(crate) fn quanta_per_confirmation(&self) -> u8 {
        if self.window < QUANTA_PER_CONFIRMATION { 1 } else { QUANTA_PER_CONFIRMATION }
    }
}

/// When an uploader has room again.
#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum)]
pub(crate) enum Release {
    /// When the piece's last byte has left.
    Written,
    /// When the far end has said that it arrived.
    Arrived,
}

/// The hosts' places. A host's zones are named by numbers, its rack first, then what the rack is in.
#[derive(Debug)]
pub(crate) struct Network {
    pub(crate) physics: Physics,
    /// Least time in which one actor hears of another.
    pub(crate) hop: Duration,
    hosts: u32,
    zones: Vec<Vec<u32>>,
}

impl Network {
    /// `zones` has every host's. A zone's trunk upwards is the actor `hosts + 2 × zone`, the one downwards follows it.
    pub(crate) fn new(physics: Physics, zones: Vec<Vec<u32>>) -> Self {
        let levels = zones.iter().map(Vec::len).max().unwrap_or(0);
        let hops = u32::try_from(2 * levels + 1).expect("few levels");
        let hosts = u32::try_from(zones.len()).expect("bounded by the command line");
        Self { physics, hop: physics.latency / hops, hosts, zones }
    }

    /// The zone levels that a transfer leaves: 0 within a rack.
    pub(crate) fn distance(&self, one: u32, other: u32) -> usize {
        distance(&self.zones[one as usize], &self.zones[other as usize])
    }

    /// The actor that a quantum reaches next and how long it takes to get there.
    pub(crate) fn next_hop(&self, travel: &Travel) -> (u32, Duration) {
        let (from, to) = (&self.zones[travel.from as usize], &self.zones[travel.to as usize]);
        let shared = from.iter().rev().zip(to.iter().rev()).take_while(|(one, other)| one == other).count();
        let (up, down) = (from.len() - shared, to.len() - shared);
        let passed = usize::from(travel.hops);
        if passed < up {
            (self.hosts + 2 * from[passed], self.hop)
        } else if passed < up + down {
            (self.hosts + 2 * to[up + down - passed - 1] + 1, self.hop)
        } else {
            let last = self.physics.latency - self.hop * u32::from(travel.hops);
            (travel.to, last)
        }
    }

    pub(crate) fn hosts(&self) -> u32 {
        self.hosts
    }
}

/// The levels that a transfer leaves between hosts of these zones, the rack first.
pub(crate) fn distance(one: &[u32], other: &[u32]) -> usize {
    let shared = one.iter().rev().zip(other.iter().rev()).take_while(|(one, other)| one == other).count();
    one.len().max(other.len()) - shared
}

#[cfg(test)]
mod tests {
    use shoal_proto::exchange::{Bitfield, PeerKey};

    use super::*;
    use crate::link::Quantum;

    fn network() -> Network {
        let physics = Physics {
            latency: Duration::from_millis(5),
            jitter: 0.0,
            verify: Duration::ZERO,
            store: Duration::ZERO,
            message: Duration::ZERO,
            device_max: 1,
            window: 8,
            release: Release::Written,
        };
        // The first has no zone; racks 0 and 1 are in row 2, rack 3 in row 4.
        Network::new(physics, vec![vec![], vec![0, 2], vec![0, 2], vec![1, 2], vec![3, 4]])
    }

    #[test]
    fn distance_counts_the_levels_that_are_left() {
        let network = network();
        let distance = |one, other| network.distance(one, other);
        assert_eq!([distance(1, 2), distance(1, 3), distance(1, 4), distance(0, 4)], [0, 1, 2, 2]);
    }

    #[test]
    fn a_quantum_passes_each_trunk_on_its_way_once_and_takes_one_latency() {
        let network = network();
        let piece = Bitfield::full(1).iter().next().unwrap();
        let way = |from, to| {
            let quantum = Quantum { peer: PeerKey(0), piece, number: 1 };
            let mut travel = Travel { from, to, quantum, hops: 0, corrupt: false };
            let (mut actors, mut took) = (Vec::new(), Duration::ZERO);
            loop {
                let (actor, after) = network.next_hop(&travel);
                assert!(after >= network.hop);
                took += after;
                actors.push(actor);
                if actor == to {
                    break;
                }
                travel.hops += 1;
            }
            assert_eq!(took, network.physics.latency);
            actors
        };
        assert_eq!(way(1, 2), [2]);
        assert_eq!(way(1, 3), [5, 8, 3]);
        assert_eq!(way(1, 4), [5, 9, 14, 12, 4]);
        assert_eq!(way(0, 4), [14, 12, 4]);
    }
}
