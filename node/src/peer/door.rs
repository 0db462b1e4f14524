//! The door: how many may be shaking hands at once, and from where nobody new is let in.
//!
//! A connection costs a descriptor and a key agreement before anyone knows who it is: strangers without the secret can
//! open as many as they like. Each address has its share, so that one machine cannot take all of it.

use std::collections::BTreeMap;
use std::convert::Infallible;
use std::net::IpAddr;
use std::task::{Context, Poll};
use std::time::{Duration, Instant};

use libp2p::core::{Endpoint, transport::PortUse};
use libp2p::swarm::{
    ConnectionDenied, ConnectionId, FromSwarm, ListenFailure, NetworkBehaviour, THandler, THandlerInEvent,
    THandlerOutEvent, ToSwarm, dummy,
};
use libp2p::{Multiaddr, PeerId};

use crate::peer::transport::socket_address;

/// Connections from elsewhere that may be shaking hands at once, …
const KNOCKING_MAX: usize = 512;
/// … and from one address. (A handshake that takes longer than ten seconds is given up by libp2p.)
pub(super) const KNOCKING_PER_ADDRESS_MAX: usize = 128;
/// Addresses that may be closed at once.
const CLOSED_MAX: usize = 64;

/// Why a connection is refused before its handshake.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub(super) enum Refusal {
    #[error("{KNOCKING_MAX} connections are shaking hands already")]
    Crowd,
    #[error("{KNOCKING_PER_ADDRESS_MAX} connections from this address are shaking hands already")]
    AddressCrowd,
    #[error("many keys from this address broke the protocol a short while ago")]
    Closed,
}

/// Refuses connections from elsewhere before their handshake.
#[derive(Debug, Default)]
pub(super) struct Door {
    knocking: BTreeMap<ConnectionId, Option<IpAddr>>,
    closed: BTreeMap<IpAddr, Instant>,
}

impl Door {
    /// Lets nobody new in from an address for a while.
    pub(super) fn close(&mut self, now: Instant, address: IpAddr, time: Duration) {
        self.closed.retain(|_, until| *until > now);
        if self.closed.len() < CLOSED_MAX {
            self.closed.insert(address, now + time);
        }
    }

    fn knock(
        &mut self,
        now: Instant,
        connection: ConnectionId,
        address: Option<IpAddr>,
    ) -> Result<(), Refusal> {
        if address.and_then(|address| self.closed.get(&address)).is_some_and(|until| *until > now) {
            return Err(Refusal::Closed);
        }
        if self.knocking.len() >= KNOCKING_MAX {
            return Err(Refusal::Crowd);
        }
        let alike = self.knocking.values().filter(|other| **other == address).count();
        if alike >= KNOCKING_PER_ADDRESS_MAX {
            return Err(Refusal::AddressCrowd);
        }
        self.knocking.insert(connection, address);
        Ok(())
    }

    fn answered(&mut self, connection: ConnectionId) {
        self.knocking.remove(&connection);
    }
}

impl NetworkBehaviour for Door {
    type ConnectionHandler = dummy::ConnectionHandler;
    type ToSwarm = Infallible;

    fn handle_pending_inbound_connection(
        &mut self,
        connection: ConnectionId,
        _: &Multiaddr,
        remote: &Multiaddr,
    ) -> Result<(), ConnectionDenied> {
        let address = socket_address(remote).map(|address| address.ip());
        self.knock(Instant::now(), connection, address).map_err(ConnectionDenied::new)
    }

    fn handle_established_inbound_connection(
        &mut self,
        connection: ConnectionId,
        _: PeerId,
        _: &Multiaddr,
        _: &Multiaddr,
    ) -> Result<THandler<Self>, ConnectionDenied> {
        self.answered(connection);
        Ok(dummy::ConnectionHandler)
    }

    fn handle_established_outbound_connection(
        &mut self,
        _: ConnectionId,
        _: PeerId,
        _: &Multiaddr,
        _: Endpoint,
        _: PortUse,
    ) -> Result<THandler<Self>, ConnectionDenied> {
        Ok(dummy::ConnectionHandler)
    }

    fn on_swarm_event(&mut self, event: FromSwarm<'_>) {
        if let FromSwarm::ListenFailure(ListenFailure { connection_id, .. }) = event {
            self.answered(connection_id);
        }
    }

    fn on_connection_handler_event(&mut self, _: PeerId, _: ConnectionId, event: THandlerOutEvent<Self>) {
        match event {}
    }

    fn poll(&mut self, _: &mut Context<'_>) -> Poll<ToSwarm<Infallible, THandlerInEvent<Self>>> {
        Poll::Pending
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn address(last: u8) -> Option<IpAddr> {
        Some([192, 0, 2, last].into())
    }

    #[test]
    fn one_address_takes_its_share_of_the_door_and_no_more() {
        let (mut door, now) = (Door::default(), Instant::now());
        let mut next = 0;
        let mut knock = |door: &mut Door, last: u8| {
            next += 1;
            door.knock(now, ConnectionId::new_unchecked(next), address(last))
        };
        for last in 1..=4 {
            for _ in 0..KNOCKING_PER_ADDRESS_MAX {
                knock(&mut door, last).unwrap();
            }
            let error = knock(&mut door, last).unwrap_err();
            assert_eq!(error, if last < 4 { Refusal::AddressCrowd } else { Refusal::Crowd });
        }
        door.answered(ConnectionId::new_unchecked(1));
        knock(&mut door, 1).unwrap();
    }

    #[test]
    fn a_closed_address_opens_again_and_others_were_never_closed() {
        let (mut door, now) = (Door::default(), Instant::now());
        door.close(now, address(1).unwrap(), Duration::from_secs(9));
        let id = ConnectionId::new_unchecked;
        assert_eq!(door.knock(now, id(1), address(1)), Err(Refusal::Closed));
        assert_eq!(door.knock(now, id(2), address(2)), Ok(()));
        assert_eq!(door.knock(now + Duration::from_secs(9), id(3), address(1)), Ok(()));
        for last in 0..=255 {
            door.close(now, address(last).unwrap(), Duration::from_secs(9));
        }
        assert_eq!(door.closed.len(), CLOSED_MAX);
    }
}
