//! The two long-lived streams that each side opens on a connection, handed to the driver as they come.
//!
//! Each side opens one control and one bulk stream for what it says, and accepts one of each for what it hears: four
//! streams on a connection, whatever travels. A further one is refused.

use std::collections::VecDeque;
use std::convert::Infallible;
use std::future::{Ready, ready};
use std::task::{Context, Poll};

use libp2p::core::upgrade::{InboundUpgrade, OutboundUpgrade, UpgradeInfo};
use libp2p::core::{Endpoint, transport::PortUse};
use libp2p::swarm::handler::{
    ConnectionEvent, DialUpgradeError, FullyNegotiatedInbound, FullyNegotiatedOutbound,
};
use libp2p::swarm::{
    ConnectionDenied, ConnectionHandler, ConnectionHandlerEvent, ConnectionId, FromSwarm, NetworkBehaviour,
    StreamProtocol, SubstreamProtocol, THandler, THandlerInEvent, THandlerOutEvent, ToSwarm,
};
use libp2p::{Multiaddr, PeerId, Stream};
use shoal_proto::wire;

const CONTROL: StreamProtocol = StreamProtocol::new(wire::CONTROL_PROTOCOL);
const BULK: StreamProtocol = StreamProtocol::new(wire::BULK_PROTOCOL);

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Lane {
    Control,
    Bulk,
}

/// A stream of a connection, for the driver.
#[derive(Debug)]
pub(crate) enum Opened {
    /// Ours to write.
    Outbound(Lane, Stream),
    /// Ours to read.
    Inbound(Lane, Stream),
    /// One of ours could not be opened: the connection is of no use.
    Failed(String),
}

#[derive(Debug)]
pub(crate) struct Event {
    pub(crate) peer: PeerId,
    pub(crate) connection: ConnectionId,
    pub(crate) opened: Opened,
}

/// Hands every stream of every connection to the swarm's owner; decides nothing.
#[derive(Default)]
pub(crate) struct Behaviour {
    events: VecDeque<Event>,
}

impl NetworkBehaviour for Behaviour {
    type ConnectionHandler = Handler;
    type ToSwarm = Event;

    fn handle_established_inbound_connection(
        &mut self,
        _: ConnectionId,
        _: PeerId,
        _: &Multiaddr,
        _: &Multiaddr,
    ) -> Result<THandler<Self>, ConnectionDenied> {
        Ok(Handler::default())
    }

    fn handle_established_outbound_connection(
        &mut self,
        _: ConnectionId,
        _: PeerId,
        _: &Multiaddr,
        _: Endpoint,
        _: PortUse,
    ) -> Result<THandler<Self>, ConnectionDenied> {
        Ok(Handler::default())
    }

    fn on_swarm_event(&mut self, _: FromSwarm<'_>) {}

    fn on_connection_handler_event(
        &mut self,
        peer: PeerId,
        connection: ConnectionId,
        opened: THandlerOutEvent<Self>,
    ) {
        // The swarm polls this behaviour again after every event of a connection: nobody needs waking.
        self.events.push_back(Event { peer, connection, opened });
    }

    fn poll(&mut self, _: &mut Context<'_>) -> Poll<ToSwarm<Event, THandlerInEvent<Self>>> {
        self.events.pop_front().map_or(Poll::Pending, |event| Poll::Ready(ToSwarm::GenerateEvent(event)))
    }
}

/// One connection: asks for its two outbound streams at once and accepts one inbound stream of each lane.
pub(crate) struct Handler {
    to_open: Vec<Lane>,
    accepted: Vec<Lane>,
    ready: VecDeque<Opened>,
}

impl Default for Handler {
    fn default() -> Self {
        Self { to_open: vec![Lane::Bulk, Lane::Control], accepted: Vec::new(), ready: VecDeque::new() }
    }
}

impl ConnectionHandler for Handler {
    type FromBehaviour = Infallible;
    type ToBehaviour = Opened;
    type InboundProtocol = Accept;
    type OutboundProtocol = Open;
    type InboundOpenInfo = ();
    type OutboundOpenInfo = ();

    fn listen_protocol(&self) -> SubstreamProtocol<Accept, ()> {
        SubstreamProtocol::new(Accept, ())
    }

    fn poll(&mut self, _: &mut Context<'_>) -> Poll<ConnectionHandlerEvent<Open, (), Opened>> {
        if let Some(opened) = self.ready.pop_front() {
            return Poll::Ready(ConnectionHandlerEvent::NotifyBehaviour(opened));
        }
        match self.to_open.pop() {
            Some(lane) => Poll::Ready(ConnectionHandlerEvent::OutboundSubstreamRequest {
                protocol: SubstreamProtocol::new(Open(lane), ()),
            }),
            None => Poll::Pending,
        }
    }

    fn on_behaviour_event(&mut self, event: Infallible) {
        match event {}
    }

    fn on_connection_event(&mut self, event: ConnectionEvent<'_, Accept, Open>) {
        match event {
            // A second stream of a lane is dropped, which resets it: the bound on streams of a connection.
            ConnectionEvent::FullyNegotiatedInbound(FullyNegotiatedInbound {
                protocol: (lane, stream),
                ..
            }) if !self.accepted.contains(&lane) => {
                self.accepted.push(lane);
                self.ready.push_back(Opened::Inbound(lane, stream));
            }
            ConnectionEvent::FullyNegotiatedOutbound(FullyNegotiatedOutbound {
                protocol: (lane, stream),
                ..
            }) => self.ready.push_back(Opened::Outbound(lane, stream)),
            ConnectionEvent::DialUpgradeError(DialUpgradeError { error, .. }) => {
                self.ready.push_back(Opened::Failed(error.to_string()));
            }
            _ => {}
        }
    }
}

/// Accepts either lane and says which it was.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Accept;

/// Opens one lane.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Open(Lane);

impl UpgradeInfo for Accept {
    type Info = StreamProtocol;
    type InfoIter = [StreamProtocol; 2];

    fn protocol_info(&self) -> [StreamProtocol; 2] {
        [CONTROL, BULK]
    }
}

impl InboundUpgrade<Stream> for Accept {
    type Output = (Lane, Stream);
    type Error = Infallible;
    type Future = Ready<Result<(Lane, Stream), Infallible>>;

    fn upgrade_inbound(self, stream: Stream, protocol: StreamProtocol) -> Self::Future {
        ready(Ok((if protocol == CONTROL { Lane::Control } else { Lane::Bulk }, stream)))
    }
}

impl UpgradeInfo for Open {
    type Info = StreamProtocol;
    type InfoIter = [StreamProtocol; 1];

    fn protocol_info(&self) -> [StreamProtocol; 1] {
        [match self.0 {
            Lane::Control => CONTROL,
            Lane::Bulk => BULK,
        }]
    }
}

impl OutboundUpgrade<Stream> for Open {
    type Output = (Lane, Stream);
    type Error = Infallible;
    type Future = Ready<Result<(Lane, Stream), Infallible>>;

    fn upgrade_outbound(self, stream: Stream, _: StreamProtocol) -> Self::Future {
        ready(Ok((self.0, stream)))
    }
}
