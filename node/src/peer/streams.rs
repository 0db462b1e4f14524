//! The two long-lived streams that each side opens on a connection, handed to the driver as they come.
//!
//! Each side opens one control and one bulk stream for what it says, and accepts one of each for what it hears: four
//! streams on a connection, whatever travels. A further one is refused. Only a peer that takes sessions accepts those,
//! one stream each for both directions, within the bound on streams of a connection.

use std::collections::VecDeque;
use std::convert::Infallible;
use std::future::{Ready, ready};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::task::{Context, Poll};

use libp2p::core::upgrade::{InboundUpgrade, OutboundUpgrade, UpgradeInfo};
use libp2p::core::{Endpoint, transport::PortUse};
use libp2p::swarm::handler::{
    ConnectionEvent, DialUpgradeError, FullyNegotiatedInbound, FullyNegotiatedOutbound,
};
use libp2p::swarm::{
    ConnectionDenied, ConnectionHandler, ConnectionHandlerEvent, ConnectionId, FromSwarm, NetworkBehaviour,
    NotifyHandler, StreamProtocol, SubstreamProtocol, THandler, THandlerInEvent, THandlerOutEvent, ToSwarm,
};
use libp2p::{Multiaddr, PeerId, Stream};
use shoal_proto::wire;

const CONTROL: StreamProtocol = StreamProtocol::new(wire::CONTROL_PROTOCOL);
const BULK: StreamProtocol = StreamProtocol::new(wire::BULK_PROTOCOL);
const SESSION: StreamProtocol = StreamProtocol::new(wire::SESSION_PROTOCOL);

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Lane {
    Control,
    Bulk,
    Session,
}

/// A stream of a connection, for the driver.
#[derive(Debug)]
pub(crate) enum Opened {
    /// Ours to write.
    Outbound(Lane, Stream),
    /// Ours to read.
    Inbound(Lane, Stream),
    /// One of ours could not be opened: the connection is of no use, unless it was for a session.
    Failed(Lane, String),
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
    events: VecDeque<ToSwarm<Event, OpenSession>>,
    /// Known to every connection.
    takes_sessions: Arc<AtomicBool>,
}

/// Asks a connection for one more stream.
#[derive(Clone, Copy, Debug)]
pub(crate) struct OpenSession;

impl Behaviour {
    /// Accepts sessions from now on.
    pub(crate) fn take_sessions(&self) {
        self.takes_sessions.store(true, Ordering::Relaxed);
    }

    /// Asks for a session; its stream comes as an event.
    pub(crate) fn open_session(&mut self, peer: PeerId, connection: ConnectionId) {
        let handler = NotifyHandler::One(connection);
        self.events.push_back(ToSwarm::NotifyHandler { peer_id: peer, handler, event: OpenSession });
    }
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
        Ok(Handler::new(Arc::clone(&self.takes_sessions)))
    }

    fn handle_established_outbound_connection(
        &mut self,
        _: ConnectionId,
        _: PeerId,
        _: &Multiaddr,
        _: Endpoint,
        _: PortUse,
    ) -> Result<THandler<Self>, ConnectionDenied> {
        Ok(Handler::new(Arc::clone(&self.takes_sessions)))
    }

    fn on_swarm_event(&mut self, _: FromSwarm<'_>) {}

    fn on_connection_handler_event(
        &mut self,
        peer: PeerId,
        connection: ConnectionId,
        opened: THandlerOutEvent<Self>,
    ) {
        // The swarm polls this behaviour again after every event of a connection: nobody needs waking.
        self.events.push_back(ToSwarm::GenerateEvent(Event { peer, connection, opened }));
    }

    fn poll(&mut self, _: &mut Context<'_>) -> Poll<ToSwarm<Event, THandlerInEvent<Self>>> {
        self.events.pop_front().map_or(Poll::Pending, Poll::Ready)
    }
}

/// One connection: asks for its two outbound streams at once and accepts one inbound stream of each lane.
pub(crate) struct Handler {
    to_open: Vec<Lane>,
    accepted: Vec<Lane>,
    ready: VecDeque<Opened>,
    takes_sessions: Arc<AtomicBool>,
}

impl Handler {
    fn new(takes_sessions: Arc<AtomicBool>) -> Self {
        let to_open = vec![Lane::Bulk, Lane::Control];
        Self { to_open, accepted: Vec::new(), ready: VecDeque::new(), takes_sessions }
    }
}

impl ConnectionHandler for Handler {
    type FromBehaviour = OpenSession;
    type ToBehaviour = Opened;
    type InboundProtocol = Accept;
    type OutboundProtocol = Open;
    type InboundOpenInfo = ();
    type OutboundOpenInfo = Lane;

    fn listen_protocol(&self) -> SubstreamProtocol<Accept, ()> {
        SubstreamProtocol::new(Accept { sessions: self.takes_sessions.load(Ordering::Relaxed) }, ())
    }

    fn poll(&mut self, _: &mut Context<'_>) -> Poll<ConnectionHandlerEvent<Open, Lane, Opened>> {
        if let Some(opened) = self.ready.pop_front() {
            return Poll::Ready(ConnectionHandlerEvent::NotifyBehaviour(opened));
        }
        match self.to_open.pop() {
            Some(lane) => Poll::Ready(ConnectionHandlerEvent::OutboundSubstreamRequest {
                protocol: SubstreamProtocol::new(Open(lane), lane),
            }),
            None => Poll::Pending,
        }
    }

    fn on_behaviour_event(&mut self, OpenSession: OpenSession) {
        self.to_open.push(Lane::Session);
    }

    fn on_connection_event(&mut self, event: ConnectionEvent<'_, Accept, Open, (), Lane>) {
        match event {
            // A second stream of a lane is dropped, which resets it: the bound on streams of a connection.
            ConnectionEvent::FullyNegotiatedInbound(FullyNegotiatedInbound {
                protocol: (lane, stream),
                ..
            }) if lane == Lane::Session || !self.accepted.contains(&lane) => {
                if lane != Lane::Session {
                    self.accepted.push(lane);
                }
                self.ready.push_back(Opened::Inbound(lane, stream));
            }
            ConnectionEvent::FullyNegotiatedOutbound(FullyNegotiatedOutbound {
                protocol: (lane, stream),
                ..
            }) => self.ready.push_back(Opened::Outbound(lane, stream)),
            ConnectionEvent::DialUpgradeError(DialUpgradeError { info: lane, error }) => {
                self.ready.push_back(Opened::Failed(lane, error.to_string()));
            }
            _ => {}
        }
    }
}

/// Accepts any lane, or all but sessions, and says which it was.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Accept {
    sessions: bool,
}

/// Opens one lane.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Open(Lane);

impl UpgradeInfo for Accept {
    type Info = StreamProtocol;
    type InfoIter = Vec<StreamProtocol>;

    fn protocol_info(&self) -> Vec<StreamProtocol> {
        if self.sessions { vec![CONTROL, BULK, SESSION] } else { vec![CONTROL, BULK] }
    }
}

impl InboundUpgrade<Stream> for Accept {
    type Output = (Lane, Stream);
    type Error = Infallible;
    type Future = Ready<Result<(Lane, Stream), Infallible>>;

    fn upgrade_inbound(self, stream: Stream, protocol: StreamProtocol) -> Self::Future {
        let lane = match protocol {
            protocol if protocol == CONTROL => Lane::Control,
            protocol if protocol == BULK => Lane::Bulk,
            _ => Lane::Session,
        };
        ready(Ok((lane, stream)))
    }
}

impl UpgradeInfo for Open {
    type Info = StreamProtocol;
    type InfoIter = [StreamProtocol; 1];

    fn protocol_info(&self) -> [StreamProtocol; 1] {
        [match self.0 {
            Lane::Control => CONTROL,
            Lane::Bulk => BULK,
            Lane::Session => SESSION,
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
