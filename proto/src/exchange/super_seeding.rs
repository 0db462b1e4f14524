//! Which piece a seeder gives next: each one once before any twice, then what the swarm lost.

use std::collections::VecDeque;

use rand::Rng;

use super::{Bitfield, PeerKey};
use crate::image::PieceIndex;
use crate::time::Time;

/// A seeder's first copy and its repairs.
///
/// **Invariant:** `fresh` and `repairs` are disjoint; `watched` has exactly the pieces of `watch`, each there once.
#[derive(Debug)]
pub(super) struct SuperSeeding {
    /// Never given, or given back.
    fresh: Bitfield,
    /// Given, but no neighbour showed it in time.
    repairs: Bitfield,
    /// Where the search in `fresh` goes on: in order, which disks like, from a random start, and from another one
    /// whenever it meets pieces that came from elsewhere. Two seeders that do not know of each other so give
    /// different pieces instead of walking side by side.
    cursor: usize,
    /// Pieces to look at again, oldest first.
    watch: VecDeque<(Time, PieceIndex)>,
    watched: Bitfield,
    /// Neighbour that got the last grant by name: the next one in key order is next.
    pub(super) last_target: Option<PeerKey>,
    /// Pieces granted by the receiver's choice.
    pub(super) chosen: u64,
    /// Whether [`Event::Replicated`](super::Event::Replicated) was said and still holds.
    pub(super) replicated: bool,
}

impl SuperSeeding {
    pub(super) fn new(held: &Bitfield, start: usize) -> Self {
        Self {
            fresh: held.clone(),
            repairs: Bitfield::empty(held.len()),
            cursor: start,
            watch: VecDeque::new(),
            watched: Bitfield::empty(held.len()),
            last_target: None,
            chosen: 0,
            replicated: false,
        }
    }

    /// The piece to give next, still in its set: [`SuperSeeding::take`] it when there is someone to give it to.
    /// Pieces that a neighbour shows by now are forgotten on the way.
    pub(super) fn next(&mut self, copies: &[u16], rng: &mut impl Rng) -> Option<PieceIndex> {
        while let Some(piece) = first_around(&self.fresh, self.cursor) {
            if copies[piece.at()] == 0 {
                self.cursor = piece.at();
                return Some(piece);
            }
            self.fresh.remove(piece);
            self.cursor = rng.random_range(0..copies.len());
        }
        while let Some(piece) = self.repairs.first_from(0) {
            if copies[piece.at()] == 0 {
                return Some(piece);
            }
            self.repairs.remove(piece);
        }
        None
    }

    pub(super) fn take(&mut self, piece: PieceIndex) {
        self.fresh.remove(piece);
        self.repairs.remove(piece);
    }

    /// A grant of this piece came to nothing.
    pub(super) fn give_back(&mut self, piece: PieceIndex) {
        if !self.repairs.contains(piece) {
            self.fresh.insert(piece);
        }
    }

    /// Looks at the piece again at `at`.
    pub(super) fn watch(&mut self, piece: PieceIndex, at: Time) {
        if self.watched.insert(piece) {
            self.watch.push_back((at, piece));
        }
    }

    /// Moves pieces that no neighbour shows although their time is up to the repairs.
    pub(super) fn look_again(&mut self, now: Time, copies: &[u16]) {
        while let Some(&(at, piece)) = self.watch.front() {
            if at > now {
                return;
            }
            self.watch.pop_front();
            self.watched.remove(piece);
            if copies[piece.at()] == 0 && !self.fresh.contains(piece) {
                self.repairs.insert(piece);
            }
        }
    }

    pub(super) fn is_watching(&self) -> bool {
        !self.watch.is_empty()
    }

    /// The piece is held here no more: it cannot be given.
    pub(super) fn lose(&mut self, piece: PieceIndex) {
        self.take(piece);
        if self.watched.remove(piece) {
            self.watch.retain(|&(_, watched)| watched != piece);
        }
    }

    pub(super) fn assert_invariants(&self, held: &Bitfield) {
        for piece in self.fresh.iter() {
            assert!(held.contains(piece) && !self.repairs.contains(piece), "{piece:?} to give");
        }
        assert!(!self.repairs.has_any_not_in(held));
        assert_eq!(self.watch.len(), self.watched.count());
        assert!(self.watch.iter().all(|&(_, piece)| self.watched.contains(piece)));
    }
}

/// First piece of `set` from `start` on, around the end.
fn first_around(set: &Bitfield, start: usize) -> Option<PieceIndex> {
    set.first_from(start).or_else(|| set.first_from(0))
}
