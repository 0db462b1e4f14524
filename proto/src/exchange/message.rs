//! What two exchanges say to each other about one piece list.

use crate::exchange::Bitfield;
use crate::image::PieceIndex;

/// Most pieces that one [`Message::Have`], [`Message::Covered`] or [`Message::Uncovered`] names.
pub const HAVES_PER_MESSAGE_MAX: usize = 1024;

#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Message {
    /// First message in each direction, exactly once: what the sender holds.
    Announce(Announcement),
    /// "I now hold these", at most [`HAVES_PER_MESSAGE_MAX`], not empty.
    Have(Vec<PieceIndex>),
    /// "I have room to upload one piece to you": of your choice, or exactly this one (super-seeding).
    /// Answered by [`Message::Request`] or [`Message::Decline`], at once.
    Grant(Option<PieceIndex>),
    /// Uses a grant up: "send me this piece".
    Request(PieceIndex),
    /// Gives a grant back.
    Decline(Declined),
    /// "Do not send the piece I requested, if you have not begun."
    Cancel(PieceIndex),
    /// "I announced this piece and hold it no more." A request for it is off.
    Withdraw(PieceIndex),
    /// "I am fetching this piece from farther away than you are: have it from me" (`live`), or "I am not, any more".
    /// Holds for a lease, and longer when it is repeated.
    Intent { piece: PieceIndex, live: bool },
    /// "These are to be had nearer to me than you are: do not grant for their sake." At most
    /// [`HAVES_PER_MESSAGE_MAX`], not empty; only said to peers outside the rack.
    Covered(Vec<PieceIndex>),
    /// Takes [`Message::Covered`] back.
    Uncovered(Vec<PieceIndex>),
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Announcement {
    /// Holds every piece and hides which it will give next (super-seeding, BEP 16).
    Seeder,
    Held(Bitfield),
    /// Holds `held` and will never ask for `unwanted`, which may overlap it.
    Selective {
        held: Bitfield,
        unwanted: Bitfield,
    },
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Declined {
    /// Enough pieces are coming already.
    Busy,
    /// The granter holds nothing that is missing here.
    Nothing,
}
