//! One simulated machine: the shipping exchange, its links and its connections. It holds no bytes.

use shoal_proto::exchange::{Exchange, PeerKey};
use shoal_proto::time::Time;

use crate::link::{Downlink, Uplink};

#[derive(Debug)]
pub(crate) struct Host {
    pub(crate) exchange: Exchange,
    pub(crate) uplink: Uplink,
    pub(crate) downlink: Downlink,
    /// By the key under which this host knows the peer.
    pub(crate) connections: Vec<Connection>,
    pub(crate) alive: bool,
    pub(crate) joined: Time,
    /// When it held everything.
    pub(crate) finished: Option<Time>,
    /// Earliest wake-up in the queue, to plan no second one.
    pub(crate) timer: Option<Time>,
    /// Pieces that left through the uplink.
    pub(crate) pieces_sent: u64,
}

#[derive(Clone, Copy, Debug)]
pub(crate) struct Connection {
    pub(crate) host: u32,
    /// What the other host calls this one.
    pub(crate) back: PeerKey,
    pub(crate) open: bool,
    /// Quanta past this host's uplink and not yet through the other's downlink.
    pub(crate) in_flight: u8,
}

impl Host {
    pub(crate) fn new(exchange: Exchange, up_bytes_per_s: f64, down_bytes_per_s: f64) -> Self {
        Self {
            exchange,
            uplink: Uplink::new(up_bytes_per_s),
            downlink: Downlink::new(down_bytes_per_s),
            connections: Vec::new(),
            alive: false,
            joined: Time::ZERO,
            finished: None,
            timer: None,
            pieces_sent: 0,
        }
    }

    pub(crate) fn connection(&mut self, peer: PeerKey) -> &mut Connection {
        &mut self.connections[peer.0 as usize]
    }

    pub(crate) fn next_key(&self) -> PeerKey {
        PeerKey(u32::try_from(self.connections.len()).expect("far fewer connections"))
    }
}
