//! Which piece a seeder gives next: each one once before any twice, then what the swarm lost.

use std::collections::VecDeque;
use std::time::Duration;

use rand::Rng;

use super::pace::Pace;
use super::{Bitfield, PeerKey};
use crate::image::PieceIndex;
use crate::time::Time;

/// Neighbours that have to show a piece before it counts as spreading. One may be the very one that it was given to,
/// and that one may be dying, cut off, or a liar whom nobody asks any more.
const COPIES_SAFE: u16 = 2;

/// Times that pieces usually take to their second copy, after which one that has none is given again.
const SPREADS_PATIENCE: u32 = 4;

/// A piece to look at again.
#[derive(Clone, Copy, Debug)]
struct Watch {
    at: Time,
    piece: PieceIndex,
    /// None of what came to the swarm from elsewhere.
    given: Option<Time>,
    /// Who got it by name.
    to: Option<PeerKey>,
}

/// A seeder's first copy and its repairs.
///
/// **Invariant:** `fresh` and `repairs` are disjoint; `watched` has exactly the pieces of `watch`, each there once.
#[derive(Debug)]
pub(super) struct SuperSeeding {
    /// Never given, or given back.
    fresh: Bitfield,
    /// To be had elsewhere by what neighbours showed, but it did not spread in time.
    repairs: Bitfield,
    /// Where the search in `fresh` goes on: in order, which disks like, from a random start, and from another one
    /// whenever it meets pieces that came from elsewhere. Two seeders that do not know of each other so give
    /// different pieces instead of walking side by side.
    cursor: usize,
    /// Pieces to look at again, oldest first, with whom they were given to.
    watch: VecDeque<Watch>,
    /// Empty but within [`SuperSeeding::look_again`].
    late: Vec<Watch>,
    /// From giving a piece to its second copy.
    spread: Pace,
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
            late: Vec::new(),
            spread: Pace::default(),
            watched: Bitfield::empty(held.len()),
            last_target: None,
            chosen: 0,
            replicated: false,
        }
    }

    /// The piece to give next, still in its set: [`SuperSeeding::take`] it when there is someone to give it to.
    /// Pieces that a neighbour shows by now are passed over on the way, to be looked at again at `look_again` when it is
    /// but one: its link may carry a hundredth of ours.
    pub(super) fn next(
        &mut self,
        copies: &[u16],
        look_again: Time,
        rng: &mut impl Rng,
    ) -> Option<PieceIndex> {
        while let Some(piece) = first_around(&self.fresh, self.cursor) {
            if copies[piece.at()] == 0 {
                self.cursor = piece.at();
                return Some(piece);
            }
            self.fresh.remove(piece);
            if copies[piece.at()] < COPIES_SAFE {
                self.watch(Watch { at: look_again, piece, given: None, to: None });
            }
            self.cursor = rng.random_range(0..copies.len());
        }
        while let Some(piece) = self.repairs.first_from(0) {
            if copies[piece.at()] < COPIES_SAFE {
                return Some(piece);
            }
            self.repairs.remove(piece);
        }
        None
    }

    /// Whether every piece has been given and none has to be given again.
    pub(super) fn has_nothing_to_name(&self) -> bool {
        self.fresh.is_empty() && self.repairs.is_empty()
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

    /// Looks at the piece again at `at`: whether it has spread from `to`, who got it at `given`.
    pub(super) fn watch_given(&mut self, piece: PieceIndex, given: Time, at: Time, to: Option<PeerKey>) {
        self.watch(Watch { at, piece, given: Some(given), to });
    }

    fn watch(&mut self, new: Watch) {
        if self.watched.insert(new.piece) {
            let place = self.watch.partition_point(|watch| watch.at <= new.at);
            self.watch.insert(place, new);
        }
    }

    /// Moves pieces that too few neighbours show although their time is up to the repairs. Returns those who let
    /// them down. A given piece that one neighbour shows has `patience` more, or four times what others took.
    pub(super) fn look_again(
        &mut self,
        now: Time,
        copies: &[u16],
        neighbours: usize,
        patience: Duration,
    ) -> Vec<PeerKey> {
        let safe = COPIES_SAFE.min(u16::try_from(neighbours).unwrap_or(u16::MAX));
        let patience = patience.max(self.spread.transfer().unwrap_or_default() * SPREADS_PATIENCE);
        let mut idle = Vec::new();
        while let Some(&Watch { at, piece, given, to }) = self.watch.front() {
            if at > now {
                break;
            }
            self.watch.pop_front();
            self.watched.remove(piece);
            let copies = copies[piece.at()];
            if copies >= safe || self.fresh.contains(piece) {
                continue;
            }
            let until = given.map_or(Time::ZERO, |given| given + patience);
            if copies > 0 && now < until {
                self.late.push(Watch { at: until, piece, given, to });
                continue;
            }
            self.repairs.insert(piece);
            idle.extend(to);
        }
        for late in std::mem::take(&mut self.late) {
            self.watch(late);
        }
        idle
    }

    /// A second neighbour shows a piece: what it took is what it takes.
    pub(super) fn note_spread(&mut self, now: Time, piece: PieceIndex) {
        if self.watched.contains(piece)
            && let Some(watch) = self.watch.iter().find(|watch| watch.piece == piece)
            && let Some(given) = watch.given
        {
            self.spread.sample(now.since(given));
        }
    }

    pub(super) fn is_watching(&self) -> bool {
        !self.watch.is_empty()
    }

    /// The piece is held here no more: it cannot be given.
    pub(super) fn lose(&mut self, piece: PieceIndex) {
        self.take(piece);
        if self.watched.remove(piece) {
            self.watch.retain(|watch| watch.piece != piece);
        }
    }

    pub(super) fn assert_invariants(&self, held: &Bitfield) {
        for piece in self.fresh.iter() {
            assert!(held.contains(piece) && !self.repairs.contains(piece), "{piece:?} to give");
        }
        assert!(!self.repairs.has_any_not_in(held));
        assert_eq!(self.watch.len(), self.watched.count());
        assert!(self.watch.iter().all(|watch| self.watched.contains(watch.piece)));
    }
}

/// First piece of `set` from `start` on, around the end.
fn first_around(set: &Bitfield, start: usize) -> Option<PieceIndex> {
    set.first_from(start).or_else(|| set.first_from(0))
}
