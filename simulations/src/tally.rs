//! What is counted while a run goes on, by each thread for its hosts.

use std::sync::Arc;
use std::time::Duration;

use shoal_proto::exchange::{Announcement, Message};
use shoal_proto::image::PieceIndex;
use shoal_proto::time::Time;

/// The kinds of control messages, in the order of [`Tally::messages`].
pub(crate) const MESSAGE_NAMES: [&str; 10] = [
    "announce",
    "have",
    "grant",
    "request",
    "decline",
    "cancel",
    "withdraw",
    "intent",
    "covered",
    "uncovered",
];
/// Bytes that frame a control message: length, exchange and tag.
const FRAME_BYTES: u64 = 6;
/// What a piece index takes in a message.
const INDEX_BYTES: u64 = 3;

#[derive(Clone, Debug)]
pub(crate) struct Tally {
    /// Control messages by kind, as in [`MESSAGE_NAMES`].
    pub(crate) messages: [u64; MESSAGE_NAMES.len()],
    pub(crate) control_bytes: u64,
    pub(crate) pieces_received: u64,
    pub(crate) duplicates: u64,
    pub(crate) corrupt: u64,
    /// Pieces that nodes came to hold, by time in steps of `step`.
    pub(crate) held: Vec<u64>,
    pub(crate) step: Duration,
    /// Hosts whose bytes are never right, by their place: the others may not be blamed.
    pub(crate) liars: Arc<[bool]>,
}

impl Tally {
    pub(crate) fn new(step: Duration, liars: Arc<[bool]>) -> Self {
        Self {
            messages: [0; MESSAGE_NAMES.len()],
            control_bytes: 0,
            pieces_received: 0,
            duplicates: 0,
            corrupt: 0,
            held: Vec::new(),
            step: step.max(Duration::from_nanos(1)),
            liars,
        }
    }

    pub(crate) fn held(&mut self, now: Time) {
        let at = (now.since(Time::ZERO).as_nanos() / self.step.as_nanos()) as usize;
        if self.held.len() <= at {
            self.held.resize(at + 1, 0);
        }
        self.held[at] += 1;
    }

    pub(crate) fn add(&mut self, other: &Self) {
        for (sum, count) in self.messages.iter_mut().zip(other.messages) {
            *sum += count;
        }
        self.control_bytes += other.control_bytes;
        self.pieces_received += other.pieces_received;
        self.duplicates += other.duplicates;
        self.corrupt += other.corrupt;
        self.held.resize(self.held.len().max(other.held.len()), 0);
        for (sum, count) in self.held.iter_mut().zip(&other.held) {
            *sum += count;
        }
    }
}

/// A message's place in [`MESSAGE_NAMES`] and the piece it is about, or zero.
pub(crate) fn subject(message: &Message) -> (u32, u32) {
    match message {
        Message::Announce(_) => (0, 0),
        Message::Have(pieces) => (1, pieces.first().map_or(0, |piece| piece.get())),
        Message::Grant(named) => (2, named.map_or(0, PieceIndex::get)),
        Message::Request(piece) => (3, piece.get()),
        Message::Decline(why) => (4, *why as u32),
        Message::Cancel(piece) => (5, piece.get()),
        Message::Withdraw(piece) => (6, piece.get()),
        Message::Intent { piece, live } => (7, piece.get() << 1 | u32::from(*live)),
        Message::Covered(pieces) => (8, pieces.first().map_or(0, |piece| piece.get())),
        Message::Uncovered(pieces) => (9, pieces.first().map_or(0, |piece| piece.get())),
    }
}

/// About what the message takes on the wire.
pub(crate) fn wire_bytes(message: &Message) -> u64 {
    FRAME_BYTES
        + match message {
            Message::Announce(Announcement::Held(held)) => held.len().div_ceil(8) as u64,
            Message::Announce(Announcement::Selective { held, .. }) => 2 * held.len().div_ceil(8) as u64,
            Message::Have(pieces) | Message::Covered(pieces) | Message::Uncovered(pieces) => {
                INDEX_BYTES * pieces.len() as u64
            }
            Message::Announce(Announcement::Seeder) | Message::Grant(None) | Message::Decline(_) => 1,
            Message::Intent { .. } => INDEX_BYTES + 2,
            Message::Grant(Some(_)) | Message::Request(_) | Message::Cancel(_) | Message::Withdraw(_) => {
                INDEX_BYTES
            }
        }
}
