//! Pieces stored but not yet announced.

use std::time::Duration;

use crate::exchange::message::HAVES_PER_MESSAGE_MAX;
use crate::image::PieceIndex;
use crate::time::Time;

/// Batches announcements: the first after a quiet spell is due at once, so a piece that is news to the whole swarm
/// waits for nobody; those that follow within the interval leave together.
#[derive(Debug, Default)]
pub(super) struct Haves {
    waiting: Vec<PieceIndex>,
    last_batch: Option<Time>,
}

impl Haves {
    pub(super) fn push(&mut self, piece: PieceIndex) {
        self.waiting.push(piece);
    }

    pub(super) fn forget(&mut self, piece: PieceIndex) {
        self.waiting.retain(|&waiting| waiting != piece);
    }

    /// When the waiting ones are to leave, `None` when there are none.
    pub(super) fn due(&self, interval: Duration) -> Option<Time> {
        (!self.waiting.is_empty()).then(|| self.last_batch.map_or(Time::ZERO, |last| last + interval))
    }

    /// Takes at most one message's worth.
    pub(super) fn take(&mut self, now: Time) -> Vec<PieceIndex> {
        self.last_batch = Some(now);
        let count = self.waiting.len().min(HAVES_PER_MESSAGE_MAX);
        self.waiting.drain(..count).collect()
    }
}
