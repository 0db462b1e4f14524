//! The state machine of one peer's side of trading one piece list.

pub mod bitfield;
pub mod message;

use std::sync::Arc;

pub use bitfield::Bitfield;
pub use message::{Announcement, Declined, Message};

use crate::image::{PieceIndex, PieceList};
use crate::time::Time;

/// A peer as the driver numbers it: stable while the peer is connected to this exchange, never reused.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct PeerKey(pub u32);

/// Trades one piece list with its neighbours: one input (`handle_*`), then drain [`Exchange::poll_output`] until
/// `None`, then sleep until [`Exchange::poll_timeout`] and call [`Exchange::handle_timeout`].
///
/// **Invariant:** a piece is missing, requested, writing or held: exactly one.
#[derive(Debug)]
pub struct Exchange {}

/// How this side trades.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Role {
    /// Holds everything, hides its bitfield and grants every piece once by name before any twice (BEP 16).
    Seeder,
    /// Fetches what it lacks and serves what it holds.
    Node,
}

/// What became of the bytes of a piece that arrived.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Receipt {
    /// Asked for and still lacking: verify it, then call `handle_stored` or `handle_corrupt`.
    Wanted,
    /// Asked for, but it came from elsewhere meanwhile: drop the bytes and count them.
    Duplicate,
    /// Never asked of this peer: drop the bytes; a disconnect is on its way.
    Unrequested,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Output {
    /// Queue a control message.
    Send { peer: PeerKey, message: Message },
    /// Read this held piece and write it to the peer's bulk stream, then call `handle_sent` (or `handle_lost` when
    /// it cannot be read).
    SendPiece { peer: PeerKey, piece: PieceIndex },
    /// The peer broke the protocol: close its connection and remember why.
    Disconnect { peer: PeerKey, reason: Fault },
    Event(Event),
}

/// How a peer broke the protocol.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Fault {
    #[error("sent a piece whose bytes do not match its name")]
    Corrupt,
    #[error("sent a piece that nobody asked of it")]
    Unrequested,
    #[error("sent a message that the protocol does not allow here: {0}")]
    Protocol(&'static str),
}

/// What happened, for counters, progress and the simulator's report.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Event {
    /// A piece was verified and stored.
    Held { piece: PieceIndex, from: PeerKey },
    /// A piece from this peer did not match its name.
    Corrupt { piece: PieceIndex, from: PeerKey },
    /// Bytes of a piece that was held already arrived.
    Duplicate { piece: PieceIndex, from: PeerKey },
    /// All bytes of a piece were handed to this peer's connection.
    Sent { piece: PieceIndex, to: PeerKey },
    /// This side holds every piece.
    Complete,
    /// Every piece is held by at least one neighbour (seeder only; said once per change).
    Replicated,
}

/// Tuning; the defaults are the measured ones.
#[derive(Clone, Debug)]
pub struct Config {}

impl Default for Config {
    fn default() -> Self {
        Self {}
    }
}

#[allow(unused_variables)]
impl Exchange {
    /// `held` says what this side has at the start; `seed` seeds every random choice.
    pub fn new(config: Config, role: Role, pieces: Arc<PieceList>, held: Bitfield, seed: u64) -> Self {
        todo!()
    }

    /// Both sides trade this list from now on.
    pub fn handle_connected(&mut self, now: Time, peer: PeerKey) {
        todo!()
    }

    pub fn handle_disconnected(&mut self, now: Time, peer: PeerKey) {
        todo!()
    }

    pub fn handle_message(&mut self, now: Time, peer: PeerKey, message: Message) {
        todo!()
    }

    /// Some bytes of a requested piece arrived: the peer is alive, if slow.
    pub fn handle_progress(&mut self, now: Time, peer: PeerKey, piece: PieceIndex) {
        todo!()
    }

    /// All bytes of a piece arrived, not yet verified.
    #[must_use]
    pub fn handle_received(&mut self, now: Time, peer: PeerKey, piece: PieceIndex) -> Receipt {
        todo!()
    }

    /// A received piece matched its name and is stored.
    pub fn handle_stored(&mut self, now: Time, piece: PieceIndex) {
        todo!()
    }

    /// A received piece did not match its name.
    pub fn handle_corrupt(&mut self, now: Time, piece: PieceIndex) {
        todo!()
    }

    /// All bytes of a `SendPiece` were handed to the connection.
    pub fn handle_sent(&mut self, now: Time, peer: PeerKey, piece: PieceIndex) {
        todo!()
    }

    /// A held piece can no longer be read: it is missing again, and neighbours are told.
    pub fn handle_lost(&mut self, now: Time, piece: PieceIndex) {
        todo!()
    }

    pub fn handle_timeout(&mut self, now: Time) {
        todo!()
    }

    pub fn poll_output(&mut self) -> Option<Output> {
        todo!()
    }

    pub fn poll_timeout(&self) -> Option<Time> {
        todo!()
    }

    pub fn held(&self) -> &Bitfield {
        todo!()
    }

    pub fn is_complete(&self) -> bool {
        todo!()
    }

    /// The fewest neighbours that hold any one piece (0 when some piece is held by none of them).
    pub fn copies_elsewhere(&self) -> usize {
        todo!()
    }

    /// What this side waits for: its missing pieces that fewest neighbours hold, with those neighbours (at most
    /// `pieces_max` pieces).
    pub fn waiting_for(&self, pieces_max: usize) -> Vec<(PieceIndex, Vec<PeerKey>)> {
        todo!()
    }
}
