//! A peer: a member of the swarm that looks images up, trades piece lists and serves what it holds.
//!
//! [`Peer`] is the handle; behind it one driver task ([`driver`]) owns the libp2p swarm and every
//! [`Exchange`](shoal_proto::exchange::Exchange). Around the driver, per connection, four tasks move frames and pieces
//! ([`link`]); verification threads decode, hash and store ([`verify`]).
//!
//! **Invariant:** only this folder knows libp2p. **Invariant:** no byte reaches the store or a [`PieceSink`] before
//! its block was decoded within the length that the signed list states and hashed to the name in it.

mod codec;
mod discovery;
mod driver;
mod handle;
mod link;
mod streams;
mod trades;
mod transport;
mod verify;

use std::net::SocketAddr;
use std::sync::Arc;

pub use handle::{Peer, TradeHandle};
pub use libp2p::PeerId;
pub use libp2p::identity::Keypair;
use shoal_proto::cid::Cid;
use shoal_proto::image::{PieceIndex, PieceList};
use shoal_proto::ticket::{HostPort, SwarmSecret};
pub use shoal_proto::wire::PeerRole;
use shoal_proto::wire::{Answer, Query};

/// How a peer takes part.
#[derive(Debug)]
pub struct PeerConfig {
    /// The peer's identity: its public half is its peer id.
    pub key: Keypair,
    pub secret: SwarmSecret,
    pub role: PeerRole,
    /// Where to accept connections; port 0 lets the system choose.
    pub listen: Vec<SocketAddr>,
    /// Where the machine stands, for rack-aware trading; may be empty.
    pub rack: String,
    /// Peers to find the swarm by.
    pub bootstrap: Vec<(PeerId, Vec<HostPort>)>,
}

/// What this peer can tell others about images. Asked in the driver task: must answer from memory.
pub trait Directory: Send + Sync + 'static {
    /// The publisher's statements about an image, if it is known here.
    fn answer(&self, query: &Query) -> Option<Answer>;

    /// A piece list that this peer holds whole in its store and trades when someone asks for it.
    fn offer(&self, list: &Cid) -> Option<Offer>;
}

/// A piece list to trade on demand.
#[derive(Clone, Debug)]
pub struct Offer {
    pub list: Arc<PieceList>,
    pub kind: ListKind,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ListKind {
    Manifest,
    Content,
}

/// Where verified pieces go besides the store. Called from several threads at once, each piece at least once.
pub trait PieceSink: Send + Sync + 'static {
    fn write(&self, piece: PieceIndex, raw: &[u8]) -> Result<(), Box<dyn std::error::Error + Send + Sync>>;
}

/// The sink of a list whose pieces are wanted in the store alone.
#[derive(Debug)]
pub struct StoreOnly;

impl PieceSink for StoreOnly {
    fn write(&self, _: PieceIndex, _: &[u8]) -> Result<(), Box<dyn std::error::Error + Send + Sync>> {
        Ok(())
    }
}

/// Bytes of payload moved since the start, without headers.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Traffic {
    pub from_seeders_bytes: u64,
    pub from_peers_bytes: u64,
    pub sent_bytes: u64,
    /// Part of what came that was not needed any more.
    pub duplicate_bytes: u64,
    /// Raw bytes of pieces that did not match their names.
    pub corrupt_bytes: u64,
    pub pieces_received: u64,
}

/// What a peer is doing, for progress and for whoever asks why it waits.
#[derive(Clone, Debug, Default)]
pub struct Status {
    pub neighbours: usize,
    pub seeders: usize,
    pub traffic: Traffic,
    pub trades: Vec<TradeStatus>,
    /// Why the ticket's seeder could not be reached, while there is no neighbour at all.
    pub trouble: Option<String>,
}

#[derive(Clone, Debug)]
pub struct TradeStatus {
    pub list: Cid,
    pub pieces: usize,
    pub held: usize,
    pub neighbours: usize,
    /// The rarest missing pieces and who holds them.
    pub waiting: Vec<(PieceIndex, Vec<PeerId>)>,
}

#[derive(Debug, thiserror::Error)]
pub enum Error {
    #[error("cannot set up the encrypted transport")]
    Transport(#[source] Box<dyn std::error::Error + Send + Sync>),
    #[error("cannot listen on {address}: {reason}")]
    Listen { address: SocketAddr, reason: String },
    #[error("the peer has stopped")]
    Stopped,
    #[error("cannot keep block {cid}")]
    Store {
        cid: Cid,
        #[source]
        source: crate::store::Error,
    },
    #[error("cannot write piece {piece}")]
    Sink {
        piece: PieceIndex,
        #[source]
        source: Box<dyn std::error::Error + Send + Sync>,
    },
}

/// Why an image could not be looked up.
#[derive(Debug, thiserror::Error)]
pub enum LookupError {
    #[error("the seeder has no image {}", describe(.0))]
    Unknown(Query),
    #[error("the seeder's image is not believed: {0}")]
    NotBelieved(String),
    #[error("the ticket is of another swarm: {0}")]
    OtherSwarm(String),
    #[error("the peer has stopped")]
    Stopped,
}

fn describe(query: &Query) -> String {
    match query {
        Query::Name(name) => name.to_string(),
        Query::Image(image) => image.to_string(),
    }
}
