//! Saying which pieces cannot be had: nobody should wait in silence for what died with its last holder.

use super::{Event, Exchange, Output};
use crate::image::PieceIndex;
use crate::time::Time;

/// What a node knows of its own want.
#[derive(Debug, Default)]
pub(super) struct Famine {
    /// When bytes of a piece last arrived.
    fed_at: Time,
    /// The next look, while something is missing.
    look_at: Option<Time>,
    /// What was said last: empty at first, and after it was taken back.
    said: Vec<PieceIndex>,
}

impl Famine {
    pub(super) fn look_at(&self) -> Option<Time> {
        self.look_at
    }

    pub(super) fn feed(&mut self, now: Time) {
        self.fed_at = now;
    }
}

impl Exchange {
    /// Looks from time to time while something is missing, never before it had a neighbour.
    pub(super) fn plan_famine(&mut self, now: Time) {
        if self.seeding.is_some() || self.is_complete() {
            self.famine.look_at = None;
            self.famine.said.clear();
        } else if self.famine.look_at.is_none() && !self.neighbours.all().is_empty() {
            self.famine.look_at = Some(now + self.config.unavailable_after);
        }
    }

    /// Says which missing pieces no neighbour shows, once nothing has arrived for long and no seeder is there; says
    /// it again when that changes, and with no pieces when it is over.
    pub(super) fn look_for_famine(&mut self, now: Time) {
        if self.famine.look_at.is_none_or(|look_at| look_at > now) {
            return;
        }
        let hungry_at = self.famine.fed_at + self.config.unavailable_after;
        // Set anew by `plan_famine`, unless the last bytes are too fresh.
        self.famine.look_at = (hungry_at > now).then_some(hungry_at);
        if hungry_at > now && self.famine.said.is_empty() {
            return;
        }
        let unavailable = self.unavailable();
        // What still arrives is no reason to say more, only to take back what came to be had.
        let news = match hungry_at > now {
            true => unavailable.is_empty(),
            false => unavailable != self.famine.said,
        };
        if news && unavailable != self.famine.said {
            self.famine.said.clone_from(&unavailable);
            self.outputs.push_back(Output::Event(Event::Unavailable { pieces: unavailable }));
        }
    }

    /// Missing pieces that nobody connected here is known to hold, in order.
    fn unavailable(&self) -> Vec<PieceIndex> {
        if self.neighbours.all().iter().any(|peer| peer.seeder) {
            return Vec::new();
        }
        let coming = self.fetches.coming();
        let lost = |&piece: &PieceIndex| {
            !self.settled.contains(piece) && !coming.contains(piece) && self.neighbours.copies_of(piece) == 0
        };
        self.pieces.indexes().filter(lost).collect()
    }
}
