//! A peer: a member of the swarm that looks images up, trades piece lists and serves what it holds.
//!
//! [`Peer`] is the handle; behind it one driver task ([`driver`]) owns the libp2p swarm and every
//! [`Exchange`](shoal_proto::exchange::Exchange). Around the driver, per connection, four tasks move frames and pieces
//! ([`link`]); verification threads decode, hash and store ([`verify`]); blocking ones read what others ask for
//! ([`serve`]).
//!
//! **Invariant:** only this folder knows libp2p. **Invariant:** no byte reaches the store or a [`PieceSink`] before
//! its block was decoded within the length that the signed list states and hashed to the name in it.

mod bans;
mod codec;
mod discovery;
mod door;
mod driver;
mod fleet;
mod handle;
mod limits;
mod link;
mod muxer;
mod parts;
mod patience;
mod roll;
mod serve;
mod session;
mod socket;
mod streams;
#[cfg(test)]
mod tests;
mod trades;
mod transport;
mod verify;

use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;
use std::time::Duration;

pub use fleet::{FleetConfig, Heard};
pub use handle::{Observer, Peer, TradeHandle};
pub use libp2p::PeerId;
pub use libp2p::identity::Keypair;
pub use limits::Limits;
pub use roll::MembersConfig;
pub use session::{Session, SessionError, SessionReader, SessionWriter};
use shoal_proto::cid::Cid;
use shoal_proto::exchange::Bitfield;
use shoal_proto::image::{PieceIndex, PieceList};
use shoal_proto::ticket::{HostPort, SwarmSecret};
use shoal_proto::wire::{Answer, Query};
pub use shoal_proto::wire::{ByteRanges, PeerRole};
use shoal_proto::zone::Zone;

use crate::block::EncodedBlock;
use crate::store::Store;

/// What went wrong in a part of the node that the peer only calls.
pub type BoxError = Box<dyn std::error::Error + Send + Sync>;

/// What runs a peer's tasks: on half of the cores, since verifying and reading have threads of their own.
///
/// On two cores, one thread for all connections takes an eighth less of a seeder's time and a fourteenth of a node's than
/// two, between which every part of a piece is handed to and fro.
///
/// # Errors
/// When the system starts no threads.
pub fn runtime() -> std::io::Result<tokio::runtime::Runtime> {
    let cores = std::thread::available_parallelism().map_or(1, usize::from);
    tokio::runtime::Builder::new_multi_thread().worker_threads(cores.div_ceil(2)).enable_all().build()
}

/// How a peer takes part.
#[derive(Debug)]
pub struct PeerConfig {
    /// The peer's identity: its public half is its peer id.
    pub key: Keypair,
    pub secret: SwarmSecret,
    pub role: PeerRole,
    /// Where to accept connections; port 0 lets the system choose.
    pub listen: Vec<SocketAddr>,
    /// Where the machine stands.
    pub rack: Zone,
    /// Peers to find the swarm by.
    pub bootstrap: Vec<(PeerId, Vec<HostPort>)>,
    pub limits: Limits,
    pub members: MembersConfig,
    pub fleet: FleetConfig,
}

/// What this peer can tell others about images. Asked in the driver task: must answer from memory.
pub trait Directory: Send + Sync + 'static {
    /// What may be said to `asker`: the publisher's statements about an image or a host, if they are known here.
    fn answer(&self, query: &Query, asker: &PeerId) -> Option<Answer>;

    /// A piece list that this peer holds whole in its store and trades when `asker` asks for it.
    fn offer(&self, list: &Cid, asker: &PeerId) -> Option<Offer>;
}

/// A piece list to trade on demand.
#[derive(Clone, Debug)]
pub struct Offer {
    pub list: Arc<PieceList>,
    pub kind: ListKind,
    /// Only for who is offered it: nobody else is told of it, and who has it passes it on to nobody.
    pub private: bool,
}

/// A piece list to trade, with what there is of it.
#[derive(Clone, Debug)]
pub struct Listing {
    pub list: Arc<PieceList>,
    pub kind: ListKind,
    /// What the block source has of it.
    pub held: Bitfield,
    /// Neither fetched nor missed; what of it is held is served.
    pub unwanted: Bitfield,
    /// Traded with the ticket's seeder alone: no other neighbour is told of it, and none is served.
    pub private: bool,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ListKind {
    Manifest,
    Content,
}

/// Where the pieces that a peer holds are read from, or made again. Called from blocking threads, a few at once: may
/// take its time.
pub trait BlockSource: Send + Sync + 'static {
    /// The block, as it was stored with its checksum or made from bytes that were checked just now. `None` or an error
    /// when it cannot be had: the piece then counts as lost, is withdrawn from the neighbours and fetched again (into
    /// the store), so the source is not asked for it again in vain.
    fn block(&self, cid: &Cid) -> Result<Option<EncodedBlock>, BoxError>;
}

impl BlockSource for Store {
    fn block(&self, cid: &Cid) -> Result<Option<EncodedBlock>, BoxError> {
        Ok(self.get(cid)?)
    }
}

/// Where verified pieces go besides the store, and what this machine has of a piece that it does not hold.
pub trait PieceSink: Send + Sync + 'static {
    /// Takes a verified piece. Called from several threads at once, for each piece that comes at least once: again
    /// when it was lost and came again, even after the trade was complete.
    fn write(&self, piece: PieceIndex, raw: &[u8]) -> Result<(), BoxError>;

    /// Which bytes of a piece have to travel. Asked in the driver task whenever the piece is requested: must answer
    /// from memory. Ranges have to lie within the piece.
    fn lacking(&self, _piece: PieceIndex) -> Lacking {
        Lacking::Whole
    }

    /// Fills in the bytes of `raw` that are not in `arrived`, which were said to be here; leaves those in `arrived`,
    /// which just came, as they are. Called from the threads that call [`write`](Self::write), before it.
    ///
    /// Each byte has to be checked, by the hash of its chunk: a piece that then does not match its name is blamed on
    /// who sent the rest. False when not all of them are to be had any more: `raw` may hold anything then, and the
    /// piece is asked for whole until it has come. An error fails the trade.
    fn fill(&self, _piece: PieceIndex, _raw: &mut [u8], _arrived: &ByteRanges) -> Result<bool, BoxError> {
        Ok(false)
    }
}

/// What has to travel of a piece that is not held.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Lacking {
    Whole,
    /// These raw bytes; the others are here.
    Ranges(ByteRanges),
}

/// The sink of a list whose pieces are wanted in the store alone.
#[derive(Debug)]
pub struct StoreOnly;

impl PieceSink for StoreOnly {
    fn write(&self, _: PieceIndex, _: &[u8]) -> Result<(), BoxError> {
        Ok(())
    }
}

/// Bytes of payload moved since the start, as they travelled (compressed, parts as parts), without headers.
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
    /// Who broke the protocol lately, the latest first.
    pub banned: Vec<Banned>,
    /// Who is connected.
    pub peers: Vec<Met>,
    /// Who was told that it is not approved yet, the latest first.
    pub unapproved: Vec<Knocked>,
    /// Number of the newest list of members that is known, 0 for none.
    pub members: u64,
}

/// A neighbour.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Met {
    pub peer: PeerId,
    pub address: Option<IpAddr>,
    pub is_seeder: bool,
}

/// A peer that is not approved.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Knocked {
    pub peer: PeerId,
    pub address: Option<IpAddr>,
    /// When it asked last.
    pub ago: Duration,
}

/// A peer that is neither dialed nor let in for a while.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Banned {
    pub peer: PeerId,
    pub address: Option<IpAddr>,
    pub why: String,
    /// Since when, and for how long yet.
    pub ago: Duration,
    pub left: Duration,
}

#[derive(Clone, Debug)]
pub struct TradeStatus {
    pub list: Cid,
    pub pieces: usize,
    pub held: usize,
    /// Pieces that are neither held nor wanted.
    pub unwanted: usize,
    pub neighbours: usize,
    /// The rarest missing pieces and who holds them.
    pub waiting: Vec<(PieceIndex, Vec<PeerId>)>,
}

#[derive(Debug, thiserror::Error)]
pub enum Error {
    #[error("cannot set up the encrypted transport")]
    Transport(#[source] BoxError),
    #[error("cannot listen on {address}: {reason}")]
    Listen { address: SocketAddr, reason: String },
    #[error("the peer has stopped")]
    Stopped,
    #[error("a list of members that does not count: {0}")]
    Members(String),
    #[error("a release that does not count: {0}")]
    Release(String),
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
        source: BoxError,
    },
    #[error("a thread that verified piece {piece} panicked: {what}")]
    Panicked { piece: PieceIndex, what: String },
}

/// Why an image could not be looked up.
#[derive(Debug, thiserror::Error)]
pub enum LookupError {
    #[error("the seeder has no image {}", describe(.0))]
    Unknown(Query),
    #[error("the seeder says no: {0}")]
    Refused(String),
    #[error("the seeder's image is not believed: {0}")]
    NotBelieved(String),
    #[error("the ticket is of another swarm: {0}")]
    OtherSwarm(String),
    #[error("the publisher revoked this node's key {0}")]
    Revoked(PeerId),
    #[error("the peer has stopped")]
    Stopped,
}

fn describe(query: &Query) -> String {
    match query {
        Query::Name(name) => name.to_string(),
        Query::Image(image) => image.to_string(),
        Query::Host(query) => format!("for host {}", query.host),
    }
}
