//! The encrypted connection: TCP, Noise with the swarm's prologue, Yamux; and the swarm that keeps them.

use std::net::{IpAddr, SocketAddr};
use std::time::Duration;

use libp2p::Transport as _;
use libp2p::core::upgrade::Version;
use libp2p::identity::Keypair;
use libp2p::multiaddr::Protocol;
use libp2p::swarm::NetworkBehaviour;
use libp2p::{Multiaddr, SwarmBuilder, noise, ping, tcp};
use shoal_proto::ticket::SwarmSecret;

use crate::peer::Error;
use crate::peer::door::Door;
use crate::peer::muxer::Multiplexing;
use crate::peer::socket::Meters;
use crate::peer::streams;

/// How long a connection without streams lives: long enough to open them, no longer.
const IDLE_CONNECTION: Duration = Duration::from_secs(20);
/// How often a peer is asked whether it is there, which also tells how far, and how long it may take.
const PING_INTERVAL: Duration = Duration::from_secs(2);
const PING_TIMEOUT: Duration = Duration::from_secs(20);

/// Streams that a connection may have at once: two of ours and two of theirs, a ping each way, and some that just end.
/// (What a stream may send ahead of its reader is Yamux's own matter: 256 KiB, more where the reader keeps up.)
const STREAMS_MAX: usize = 16;

pub(super) type Swarm = libp2p::Swarm<Behaviour>;

#[derive(NetworkBehaviour)]
pub(super) struct Behaviour {
    pub(super) door: Door,
    pub(super) streams: streams::Behaviour,
    pub(super) ping: ping::Behaviour,
}

/// A swarm whose handshakes fail with whoever lacks the secret, before any protocol speaks: the derived prologue
/// enters the Noise transcript (research: a mismatch is a decryption error on the first message that is encrypted).
pub(super) fn build(key: &Keypair, secret: &SwarmSecret, meters: &Meters) -> Result<Swarm, Error> {
    let prologue = secret.noise_prologue();
    let security =
        move |key: &Keypair| noise::Config::new(key).map(|config| config.with_prologue(prologue.to_vec()));
    let meters = meters.clone();
    let behaviour = Behaviour {
        door: Door::default(),
        streams: streams::Behaviour::default(),
        ping: ping::Behaviour::new(
            ping::Config::new().with_interval(PING_INTERVAL).with_timeout(PING_TIMEOUT),
        ),
    };
    Ok(SwarmBuilder::with_existing_identity(key.clone())
        .with_tokio()
        .with_other_transport(|key| {
            let sockets = tcp::tokio::Transport::new(tcp::Config::default().nodelay(true));
            let tcp = sockets.map(move |stream, endpoint| meters.wrap(stream, &endpoint));
            Ok(tcp
                .upgrade(Version::V1Lazy)
                .authenticate(security(key)?)
                .multiplex(Multiplexing::new(STREAMS_MAX)))
        })
        .map_err(|source| Error::Transport(Box::new(source)))?
        .with_behaviour(|_| behaviour)
        .map_err(|source| Error::Transport(Box::new(source)))?
        .with_swarm_config(|config| config.with_idle_connection_timeout(IDLE_CONNECTION))
        .build())
}

/// Of `/ip4/…/tcp/…`, with anything after it.
pub(super) fn socket_address(address: &Multiaddr) -> Option<SocketAddr> {
    let mut parts = address.iter();
    let ip = match parts.next()? {
        Protocol::Ip4(ip) => IpAddr::V4(ip),
        Protocol::Ip6(ip) => IpAddr::V6(ip),
        _ => return None,
    };
    match parts.next()? {
        Protocol::Tcp(port) => Some(SocketAddr::new(ip, port)),
        _ => None,
    }
}
