//! A peer that is driven by hand: it can say what no honest one says.

use std::net::SocketAddr;
use std::time::Duration;

use futures::StreamExt;
use libp2p::multiaddr::Protocol;
use libp2p::swarm::SwarmEvent;
use libp2p::{Multiaddr, Stream};
use shoal_proto::exchange::{Announcement, Message};
use shoal_proto::image::{PieceIndex, PieceList};
use shoal_proto::ticket::SwarmSecret;
use shoal_proto::wire::{BulkHeader, Frame, Hello, Part, PeerRole, TradeFrame};
use shoal_proto::zone::Zone;
use tokio::task::AbortHandle;

use crate::peer::codec::{self, FrameReader};
use crate::peer::limits::Pace;
use crate::peer::serve::Delivery;
use crate::peer::socket::Meters;
use crate::peer::streams::{Lane, Opened};
use crate::peer::transport::{self, BehaviourEvent};
use crate::peer::{Keypair, Peer};

/// Longer than anything here takes on a busy machine: a hang, not a measure.
const DEADLINE: Duration = Duration::from_secs(60);
/// What a stranger calls the list.
const EXCHANGE: u32 = 5;

pub(super) struct Stranger {
    says: Stream,
    sends: Stream,
    hears: FrameReader<Stream>,
    gets: Stream,
    swarm: AbortHandle,
}

pub(super) async fn within<T>(what: impl Future<Output = T>) -> T {
    tokio::time::timeout(DEADLINE, what).await.expect("done before the deadline")
}

impl Stranger {
    /// Connects to a peer that trades `list`, and trades it too.
    pub(super) async fn meet(
        peer: &Peer,
        secret: &SwarmSecret,
        list: &PieceList,
        announcement: Announcement,
    ) -> Self {
        let mut stranger = within(Self::connect(peer.addresses()[0], secret)).await;
        let hello = Hello { role: PeerRole::Node, ports: Vec::new(), rack: Zone::UNKNOWN, members: 0 };
        stranger.say(Frame::Hello(hello)).await;
        stranger.say(Frame::Join { exchange: EXCHANGE, list: list.name() }).await;
        stranger.say_in_trade(Message::Announce(announcement)).await;
        stranger
    }

    /// Connects and says hello, from a machine that it claims to be dialed at by `port`.
    pub(super) async fn greet(peer: &Peer, secret: &SwarmSecret, port: u16) -> Self {
        let mut stranger = within(Self::connect(peer.addresses()[0], secret)).await;
        let hello = Hello { role: PeerRole::Node, ports: vec![port], rack: Zone::UNKNOWN, members: 0 };
        stranger.say(Frame::Hello(hello)).await;
        stranger
    }

    async fn connect(address: SocketAddr, secret: &SwarmSecret) -> Self {
        let mut swarm = transport::build(&Keypair::generate_ed25519(), secret, &Meters::default()).unwrap();
        swarm.dial(Multiaddr::from(address.ip()).with(Protocol::Tcp(address.port()))).unwrap();
        let (mut says, mut sends, mut hears, mut gets) = (None, None, None, None);
        while says.is_none() || sends.is_none() || hears.is_none() || gets.is_none() {
            let SwarmEvent::Behaviour(BehaviourEvent::Streams(event)) = swarm.select_next_some().await else {
                continue;
            };
            match event.opened {
                Opened::Outbound(Lane::Control, stream) => says = Some(stream),
                Opened::Outbound(Lane::Bulk, stream) => sends = Some(stream),
                Opened::Inbound(Lane::Control, stream) => hears = Some(FrameReader::new(stream)),
                Opened::Inbound(Lane::Bulk, stream) => gets = Some(stream),
                Opened::Outbound(Lane::Session, _) | Opened::Inbound(Lane::Session, _) => {
                    panic!("nobody asked for a session")
                }
                Opened::Failed(_, why) => panic!("{why}"),
            }
        }
        let polled = async move { while swarm.next().await.is_some() {} };
        Self {
            says: says.unwrap(),
            sends: sends.unwrap(),
            hears: hears.unwrap(),
            gets: gets.unwrap(),
            swarm: tokio::spawn(polled).abort_handle(),
        }
    }

    pub(super) async fn say(&mut self, frame: Frame) {
        use futures::AsyncWriteExt as _;
        let mut bytes = Vec::new();
        codec::append_frame(&mut bytes, frame);
        self.says.write_all(&bytes).await.unwrap();
        self.says.flush().await.unwrap();
    }

    /// Says bytes that need be no frame; the peer may hang up meanwhile.
    pub(super) async fn say_raw(&mut self, bytes: &[u8]) {
        use futures::AsyncWriteExt as _;
        let _ = self.says.write_all(bytes).await;
        let _ = self.says.flush().await;
    }

    pub(super) async fn say_in_trade(&mut self, message: Message) {
        self.say(Frame::Trade(TradeFrame::new(EXCHANGE, message))).await;
    }

    pub(super) async fn request_part(&mut self, piece: PieceIndex, part: &Part) {
        self.say(Frame::Trade(TradeFrame::request_part(EXCHANGE, piece, part))).await;
    }

    /// The first frame that `wanted` takes; the others are passed over.
    pub(super) async fn hear<T>(&mut self, mut wanted: impl FnMut(Frame) -> Option<T>) -> T {
        let found = async {
            loop {
                if let Some(found) = wanted(self.hears.read().await.unwrap()) {
                    return found;
                }
            }
        };
        within(found).await
    }

    /// The next request of the peer's.
    pub(super) async fn hear_request(&mut self, list: &PieceList) -> (PieceIndex, Option<Part>) {
        let request = |frame| match frame {
            Frame::Trade(frame) => match frame.check(list).unwrap() {
                (Message::Request(piece), part) => Some((piece, part)),
                _ => None,
            },
            _ => None,
        };
        self.hear(request).await
    }

    pub(super) async fn hear_grant(&mut self, list: &PieceList) {
        let grant = |frame| match frame {
            Frame::Trade(frame) => matches!(frame.check(list).unwrap().0, Message::Grant(_)).then_some(()),
            _ => None,
        };
        self.hear(grant).await;
    }

    pub(super) async fn send(&mut self, piece: PieceIndex, delivery: &Delivery) {
        use futures::AsyncWriteExt as _;
        let payload = delivery.payload();
        let header = BulkHeader {
            exchange: EXCHANGE,
            piece: piece.get(),
            encoding: delivery.encoding().code(),
            part: delivery.part_number(),
            payload_bytes: payload.len().try_into().unwrap(),
        };
        // The peer may hang up on the header.
        let _ = self.sends.write_all(&[&header.to_bytes(), payload].concat()).await;
        let _ = self.sends.flush().await;
    }

    /// The next piece that the peer sends: its header and its payload.
    pub(super) async fn get(&mut self) -> (BulkHeader, Vec<u8>) {
        let got = async {
            let header = codec::read_bulk_header(&mut self.gets).await.unwrap();
            let bytes = header.payload_bytes as usize;
            let payload = codec::read_payload(&mut self.gets, bytes, &Pace::free(), || {}).await.unwrap();
            (header, payload.into_vec())
        };
        within(got).await
    }

    /// Waits until the peer has closed the connection.
    pub(super) async fn until_thrown_out(mut self) {
        within(async { while self.hears.read().await.is_ok() {} }).await;
    }
}

impl Drop for Stranger {
    fn drop(&mut self) {
        self.swarm.abort();
    }
}
