//! What is asked of whom.

use rand::Rng;
use rand::seq::SliceRandom;
use shoal_proto::exchange::{Message, PeerKey};
use shoal_proto::image::PieceIndex;

use super::{Order, Pull};

/// Sources that one piece is asked of in the endgame.
const SOURCES_MAX: usize = 2;

impl Pull {
    /// Asks neighbours in random order, one piece each by turns, as long as there is room.
    pub(super) fn request_of_all(&mut self) {
        let mut peers: Vec<PeerKey> = self.neighbours.keys().copied().collect();
        peers.shuffle(&mut self.rng);
        while !peers.is_empty() {
            peers.retain(|&peer| self.request_one(peer));
        }
    }

    pub(super) fn request_of(&mut self, peer: PeerKey) {
        while self.request_one(peer) {}
    }

    /// Returns whether there was something to ask for, and room.
    fn request_one(&mut self, peer: PeerKey) -> bool {
        if self.held.is_full() || self.asked.len() >= self.style.total {
            return false;
        }
        let Some(neighbour) = self.neighbours.get(&peer) else { return false };
        if !neighbour.takes_requests || neighbour.asked.len() >= self.style.per_source {
            return false;
        }
        let Some(piece) = self.pick(peer).or_else(|| self.pick_again(peer)) else { return false };
        self.settled.insert(piece);
        self.asked.entry(piece).or_default().push(peer);
        if let Some(neighbour) = self.neighbours.get_mut(&peer) {
            neighbour.asked.push_back(piece);
        }
        self.send(peer, Message::Request(piece));
        true
    }

    fn pick(&mut self, peer: PeerKey) -> Option<PieceIndex> {
        let shown = &self.neighbours.get(&peer)?.shown;
        let words = (0u32..).zip(shown.words().iter().zip(self.settled.words()));
        let (mut best, mut fewest, mut ties) = (None, u16::MAX, 0);
        for (word, (shown, settled)) in words {
            let mut open = shown & !settled;
            while open != 0 {
                let piece = self.pieces.index(word * 64 + open.trailing_zeros())?;
                open &= open - 1;
                if self.style.order == Order::Sequential {
                    return Some(piece);
                }
                let copies = self.copies[piece.at()];
                if copies < fewest {
                    (best, fewest, ties) = (Some(piece), copies, 1);
                } else if copies == fewest {
                    ties += 1;
                    if self.rng.random_range(0..ties) == 0 {
                        best = Some(piece);
                    }
                }
            }
        }
        best
    }

    /// In the endgame, when nothing is left to ask for: a piece that is asked of another.
    fn pick_again(&mut self, peer: PeerKey) -> Option<PieceIndex> {
        if !self.settled.is_full() {
            return None;
        }
        let shown = &self.neighbours.get(&peer)?.shown;
        let again = self.asked.iter().filter(|&(&piece, sources)| {
            shown.contains(piece) && sources.len() < SOURCES_MAX && !sources.contains(&peer)
        });
        let again: Vec<PieceIndex> = again.map(|(&piece, _)| piece).collect();
        if again.is_empty() { None } else { Some(again[self.rng.random_range(0..again.len())]) }
    }

    /// The source will not send the piece.
    pub(super) fn unask(&mut self, peer: PeerKey, piece: PieceIndex) {
        if let Some(neighbour) = self.neighbours.get_mut(&peer) {
            neighbour.asked.retain(|&asked| asked != piece);
        }
        let Some(sources) = self.asked.get_mut(&piece) else { return };
        sources.retain(|&source| source != peer);
        if sources.is_empty() {
            self.asked.remove(&piece);
            self.settled.remove(piece);
        }
    }
}
