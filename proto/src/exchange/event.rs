//! What an exchange asks of its driver and tells it.

use super::{Message, PeerKey};
use crate::image::PieceIndex;

/// What became of the bytes of a piece that arrived.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Receipt {
    /// Asked for and still lacking: verify it, then call `handle_stored`, `handle_corrupt` or
    /// `handle_dropped`.
    Wanted,
    /// Asked for, but it came from elsewhere meanwhile: drop the bytes and count them.
    Duplicate,
    /// Never asked of this peer: drop the bytes; a disconnect is on its way.
    Unrequested,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Output {
    /// Queue a control message.
    Send {
        peer: PeerKey,
        message: Message,
    },
    /// Read this held piece and write it to the peer's bulk stream, then call `handle_sent` (or `handle_lost` when
    /// it cannot be read).
    SendPiece {
        peer: PeerKey,
        piece: PieceIndex,
    },
    /// The peer broke the protocol: close its connection and remember why. The exchange has forgotten it already;
    /// `handle_disconnected` may follow and does nothing.
    Disconnect {
        peer: PeerKey,
        reason: Fault,
    },
    Event(Event),
}

/// How a peer broke the protocol.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Fault {
    #[error("sent a piece whose bytes do not match its name")]
    Corrupt,
    #[error("sent a piece that nobody asked of it")]
    Unrequested,
    #[error("grants pieces again and again and sends none")]
    Promises,
    #[error("sent a message that the protocol does not allow here: {0}")]
    Protocol(&'static str),
}

/// What happened, for counters, progress and the simulator's report.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Event {
    /// A piece was verified and stored.
    Held { piece: PieceIndex, from: PeerKey },
    /// A piece from this peer did not match its name.
    Corrupt { piece: PieceIndex, from: PeerKey },
    /// Bytes of a piece that was held already arrived.
    Duplicate { piece: PieceIndex, from: PeerKey },
    /// All bytes of a piece were handed to this peer's connection.
    Sent { piece: PieceIndex, to: PeerKey },
    /// This side holds every piece that it wants: said when the last missing one is stored, not when it started with
    /// all.
    Complete,
    /// Every piece is held by at least one neighbour (seeder only; said once per change).
    Replicated,
    /// These missing pieces, in order, are shown by no neighbour and no seeder is a neighbour, and nothing at all has
    /// arrived for [`Config::unavailable_after`](super::Config::unavailable_after): they are lost unless a peer comes
    /// that holds them, or a neighbour's neighbour does and passes them on. Said again when they change; with no
    /// pieces when all of them are to be had again; [`Event::Complete`] ends it too. Never said by a seeder, nor before there was a neighbour.
    Unavailable { pieces: Vec<PieceIndex> },
}
