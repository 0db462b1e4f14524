//! The pieces on their way here.

use std::time::Duration;

use super::{Bitfield, PeerKey};
use crate::image::PieceIndex;
use crate::time::Time;

/// A piece asked of one peer.
#[derive(Clone, Copy, Debug)]
pub(super) struct Fetch {
    pub(super) piece: PieceIndex,
    pub(super) from: PeerKey,
    pub(super) since: Time,
    /// When some of its bytes last arrived, at first `since`.
    pub(super) heard: Time,
    /// Whether it counts against `Config::fetches_coming`: a slow one does not.
    pub(super) holds_slot: bool,
}

/// Pieces asked for and pieces received but not yet stored.
///
/// **Invariant:** `coming` has exactly the pieces of `asked` and `writing`; a piece is asked of at most two peers,
/// written at most once.
#[derive(Debug)]
pub(super) struct Fetches {
    asked: Vec<Fetch>,
    writing: Vec<(PieceIndex, PeerKey)>,
    coming: Bitfield,
}

impl Fetches {
    pub(super) fn new(pieces: usize) -> Self {
        Self { asked: Vec::new(), writing: Vec::new(), coming: Bitfield::empty(pieces) }
    }

    pub(super) fn asked(&self) -> &[Fetch] {
        &self.asked
    }

    pub(super) fn asked_mut(&mut self) -> &mut [Fetch] {
        &mut self.asked
    }

    pub(super) fn writing(&self) -> &[(PieceIndex, PeerKey)] {
        &self.writing
    }

    pub(super) fn coming(&self) -> &Bitfield {
        &self.coming
    }

    pub(super) fn is_writing(&self, piece: PieceIndex) -> bool {
        self.writing.iter().any(|&(writing, _)| writing == piece)
    }

    pub(super) fn slots_held(&self) -> usize {
        self.asked.iter().filter(|fetch| fetch.holds_slot).count()
    }

    pub(super) fn ask(&mut self, now: Time, from: PeerKey, piece: PieceIndex) {
        self.asked.push(Fetch { piece, from, since: now, heard: now, holds_slot: true });
        self.coming.insert(piece);
    }

    /// A piece that `offered` has and one other peer takes longer than `patience` to send.
    pub(super) fn overdue(
        &self,
        offered: &Bitfield,
        from: PeerKey,
        now: Time,
        patience: Duration,
    ) -> Option<PieceIndex> {
        let asked_once = |piece| self.asked.iter().filter(|fetch| fetch.piece == piece).count() == 1;
        self.asked
            .iter()
            .filter(|fetch| fetch.from != from && now.since(fetch.since) > patience)
            .filter(|fetch| offered.contains(fetch.piece) && !self.is_writing(fetch.piece))
            .filter(|fetch| asked_once(fetch.piece))
            .min_by_key(|fetch| fetch.since)
            .map(|fetch| fetch.piece)
    }

    pub(super) fn find(&mut self, from: PeerKey, piece: PieceIndex) -> Option<&mut Fetch> {
        self.asked.iter_mut().find(|fetch| fetch.from == from && fetch.piece == piece)
    }

    /// Takes one request back, whatever the reason.
    pub(super) fn drop_request(&mut self, from: PeerKey, piece: PieceIndex) -> Option<Fetch> {
        let at = self.asked.iter().position(|fetch| fetch.from == from && fetch.piece == piece)?;
        let fetch = self.asked.remove(at);
        self.settle(piece);
        Some(fetch)
    }

    /// Takes back all that was asked of a peer.
    pub(super) fn drop_peer(&mut self, from: PeerKey) {
        while let Some(fetch) = self.asked.iter().find(|fetch| fetch.from == from) {
            let piece = fetch.piece;
            self.drop_request(from, piece);
        }
    }

    pub(super) fn start_writing(&mut self, from: PeerKey, piece: PieceIndex) {
        self.writing.push((piece, from));
        self.coming.insert(piece);
    }

    /// Returns whom the piece came from; `None` when it was not being written.
    pub(super) fn finish_writing(&mut self, piece: PieceIndex) -> Option<PeerKey> {
        let at = self.writing.iter().position(|&(writing, _)| writing == piece)?;
        let (_, from) = self.writing.remove(at);
        self.settle(piece);
        Some(from)
    }

    fn settle(&mut self, piece: PieceIndex) {
        if !self.is_writing(piece) && !self.asked.iter().any(|fetch| fetch.piece == piece) {
            self.coming.remove(piece);
        }
    }

    pub(super) fn assert_invariants(&self, settled: &Bitfield) {
        let mut coming = Bitfield::empty(self.coming.len());
        for fetch in &self.asked {
            coming.insert(fetch.piece);
            let twins = self.asked.iter().filter(|other| other.piece == fetch.piece).count();
            assert!(twins <= 2, "{:?} is asked of {twins} peers", fetch.piece);
        }
        for &(piece, _) in &self.writing {
            coming.insert(piece);
            assert_eq!(self.writing.iter().filter(|&&(other, _)| other == piece).count(), 1);
        }
        assert_eq!(self.coming, coming);
        for piece in coming.iter() {
            assert!(!settled.contains(piece), "{piece:?} is coming and held or unwanted");
        }
    }
}
