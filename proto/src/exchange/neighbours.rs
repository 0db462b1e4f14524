//! The peers of one exchange and what they show.

use super::racks::HeardIntents;
use super::{Bitfield, PeerKey};
use crate::image::PieceIndex;
use crate::time::Time;
use crate::zone::Distance;

/// Most pieces remembered per peer that were asked for, given up, and may still arrive. A peer sends one piece at a
/// time, so more cannot be on their way.
const ABANDONED_PER_PEER_MAX: usize = 8;
/// Most pieces remembered per peer as lately sent to it.
const RECENT_PER_PEER_MAX: usize = 8;

/// What a request weighs of which nothing came, and one that was answered by a withdrawal: who serves files that
/// change on disk may withdraw a few in a row.
pub(super) const STALL_WEIGHT: u32 = 8;
pub(super) const WITHDRAWAL_WEIGHT: u32 = 1;
/// From this weight on, without a piece in between, a peer promises what it does not keep.
pub(super) const BROKEN_PROMISES_MAX: u32 = 32;

/// One neighbour.
#[derive(Debug)]
pub(super) struct Peer {
    pub(super) key: PeerKey,
    pub(super) distance: Distance,
    /// Whether its announcement came; before that nothing else may.
    pub(super) announced: bool,
    /// It announced itself as a seeder: it holds `shown`, but that does not count as a copy to rely on.
    pub(super) seeder: bool,
    pub(super) shown: Bitfield,
    /// Pieces that it will never ask for.
    unwanted: Option<Bitfield>,
    /// Pieces that it has nearer by than here, as it says.
    pub(super) covered: Option<Bitfield>,
    /// Pieces that it is fetching from afar.
    pub(super) intents: HeardIntents,
    /// Pieces held here that it does not show and may want from here.
    pub(super) lacking: u32,
    pub(super) upload: Upload,
    /// No grant before this.
    pub(super) not_before: Time,
    /// Declines in a row for being busy.
    pub(super) declines: u32,
    /// It declined because all that is held here and missing there is coming to it: `not_before` ends with the next
    /// piece that it lacks.
    pub(super) sated: bool,
    /// As a target of super-seeding: its last push was slow, so it gets no other before this.
    pub(super) slow_until: Time,
    /// Pieces given to it by name that it shared with nobody.
    pub(super) let_down: u32,
    /// When it last showed a piece that did not come from here.
    pub(super) fed_elsewhere: Time,
    /// Asked of it and given up: may still arrive, without blame.
    pub(super) abandoned: Vec<PieceIndex>,
    /// Weight of the requests that it asked for by a grant and let down, since a piece last came from it.
    pub(super) broken_promises: u32,
    /// Lately sent to it.
    recent: Vec<PieceIndex>,
}

/// What is under way towards a peer: at most one grant or one piece.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Upload {
    Idle,
    /// `piece` when granted by name.
    Granted {
        piece: Option<PieceIndex>,
        since: Time,
        holds_slot: bool,
    },
    Sending {
        piece: PieceIndex,
        since: Time,
        holds_slot: bool,
        cancelled: bool,
    },
}

impl Upload {
    pub(super) fn holds_slot(self) -> bool {
        match self {
            Self::Idle => false,
            Self::Granted { holds_slot, .. } | Self::Sending { holds_slot, .. } => holds_slot,
        }
    }
}

impl Peer {
    pub(super) fn note_sent(&mut self, piece: PieceIndex) {
        bounded_push(&mut self.recent, piece, RECENT_PER_PEER_MAX);
    }

    pub(super) fn was_sent(&self, piece: PieceIndex) -> bool {
        self.recent.contains(&piece)
    }

    /// A request that it granted came to nothing; says whether it has let down too many.
    pub(super) fn note_broken_promise(&mut self, weight: u32) -> bool {
        self.broken_promises += weight;
        self.broken_promises >= BROKEN_PROMISES_MAX
    }

    pub(super) fn abandon(&mut self, piece: PieceIndex) {
        bounded_push(&mut self.abandoned, piece, ABANDONED_PER_PEER_MAX);
    }

    /// Whether it does not show a piece that it may want from here.
    pub(super) fn lacks(&self, piece: PieceIndex) -> bool {
        let free = |set: &Option<Bitfield>| set.as_ref().is_none_or(|set| !set.contains(piece));
        !self.shown.contains(piece) && free(&self.unwanted) && free(&self.covered)
    }

    /// Whether it can be granted a piece of its own choice at `now`.
    pub(super) fn is_grantable(&self, now: Time) -> bool {
        self.lacking > 0 && self.is_open(now)
    }

    /// Whether nothing but a want of pieces stands against a grant at `now`.
    pub(super) fn is_open(&self, now: Time) -> bool {
        self.upload == Upload::Idle && self.announced && !self.seeder && self.not_before <= now
    }
}

fn bounded_push(list: &mut Vec<PieceIndex>, piece: PieceIndex, max: usize) {
    if list.len() == max {
        list.remove(0);
    }
    list.push(piece);
}

/// All neighbours, in the order of their keys, and how many of them show each piece.
///
/// **Invariant:** `copies[p]` is the number of announced peers, seeders left out, whose `shown` has `p`; `unseen` is
/// the number of pieces with no copy; each peer's `lacking` is the size of `held` without its `shown` and `unwanted`.
#[derive(Debug)]
pub(super) struct Neighbours {
    /// The keys of `peers`, apart so that a search stays within a cache line or two.
    keys: Vec<PeerKey>,
    peers: Vec<Peer>,
    copies: Vec<u16>,
    unseen: usize,
}

impl Neighbours {
    pub(super) fn new(pieces: usize) -> Self {
        Self { keys: Vec::new(), peers: Vec::new(), copies: vec![0; pieces], unseen: pieces }
    }

    pub(super) fn copies(&self) -> &[u16] {
        &self.copies
    }

    pub(super) fn copies_of(&self, piece: PieceIndex) -> u16 {
        self.copies[piece.at()]
    }

    /// Neighbours that fetch.
    pub(super) fn takers(&self) -> usize {
        self.peers.iter().filter(|peer| peer.announced && !peer.seeder).count()
    }

    /// Pieces that no neighbour shows.
    pub(super) fn unseen(&self) -> usize {
        self.unseen
    }

    pub(super) fn slot(&self, key: PeerKey) -> Option<usize> {
        self.keys.binary_search(&key).ok()
    }

    pub(super) fn peer(&mut self, key: PeerKey) -> Option<&mut Peer> {
        self.slot(key).map(|slot| &mut self.peers[slot])
    }

    pub(super) fn all(&self) -> &[Peer] {
        &self.peers
    }

    pub(super) fn all_mut(&mut self) -> &mut [Peer] {
        &mut self.peers
    }

    /// Returns whether the peer is new.
    pub(super) fn insert(&mut self, key: PeerKey, distance: Distance, now: Time) -> bool {
        let Err(slot) = self.keys.binary_search(&key) else { return false };
        assert!(self.peers.len() < usize::from(u16::MAX), "the driver bounds its connections far below this");
        let peer = Peer {
            key,
            distance,
            announced: false,
            seeder: false,
            shown: Bitfield::empty(self.copies.len()),
            unwanted: None,
            covered: None,
            intents: HeardIntents::default(),
            lacking: 0,
            upload: Upload::Idle,
            not_before: Time::ZERO,
            declines: 0,
            sated: false,
            slow_until: Time::ZERO,
            let_down: 0,
            fed_elsewhere: now,
            abandoned: Vec::new(),
            broken_promises: 0,
            recent: Vec::new(),
        };
        self.keys.insert(slot, key);
        self.peers.insert(slot, peer);
        true
    }

    /// Forgets a peer; its shown pieces count no more.
    pub(super) fn remove(&mut self, key: PeerKey) -> Option<Peer> {
        let slot = self.slot(key)?;
        self.keys.remove(slot);
        let peer = self.peers.remove(slot);
        if !peer.seeder {
            for piece in peer.shown.iter() {
                self.copies[piece.at()] -= 1;
                self.unseen += usize::from(self.copies[piece.at()] == 0);
            }
        }
        Some(peer)
    }

    /// A peer's first message. `shown` and `unwanted` are of this list's length.
    pub(super) fn announce(
        &mut self,
        slot: usize,
        seeder: bool,
        shown: Bitfield,
        unwanted: Option<Bitfield>,
        held: &Bitfield,
    ) {
        if !seeder {
            for piece in shown.iter() {
                self.unseen -= usize::from(self.copies[piece.at()] == 0);
                self.copies[piece.at()] += 1;
            }
        }
        let peer = &mut self.peers[slot];
        peer.announced = true;
        peer.seeder = seeder;
        peer.shown = shown;
        peer.unwanted = unwanted;
        peer.lacking = count_lacking(peer, held);
    }

    /// Returns whether that was news.
    pub(super) fn show(&mut self, slot: usize, piece: PieceIndex, held: &Bitfield) -> bool {
        let peer = &mut self.peers[slot];
        let lacked = peer.lacks(piece);
        if !peer.shown.insert(piece) {
            return false;
        }
        peer.intents.forget(piece);
        peer.lacking -= u32::from(lacked && held.contains(piece));
        if !peer.seeder {
            self.unseen -= usize::from(self.copies[piece.at()] == 0);
            self.copies[piece.at()] += 1;
        }
        true
    }

    /// A shown piece is shown no more.
    pub(super) fn withdraw(&mut self, slot: usize, piece: PieceIndex, held: &Bitfield) {
        let peer = &mut self.peers[slot];
        if !peer.shown.remove(piece) {
            return;
        }
        peer.lacking += u32::from(peer.lacks(piece) && held.contains(piece));
        if !peer.seeder {
            self.copies[piece.at()] -= 1;
            self.unseen += usize::from(self.copies[piece.at()] == 0);
        }
    }

    /// A peer has a piece nearer by than here from now on, or no more.
    pub(super) fn cover(&mut self, slot: usize, piece: PieceIndex, covered: bool, held: &Bitfield) {
        let pieces = self.copies.len();
        let peer = &mut self.peers[slot];
        let lacked = peer.lacks(piece);
        let set = peer.covered.get_or_insert_with(|| Bitfield::empty(pieces));
        if covered {
            set.insert(piece);
        } else {
            set.remove(piece);
        }
        if held.contains(piece) {
            peer.lacking = peer.lacking + u32::from(peer.lacks(piece)) - u32::from(lacked);
        }
    }

    /// A piece is held here from now on.
    pub(super) fn gained_here(&mut self, piece: PieceIndex) {
        for peer in self.peers.iter_mut().filter(|peer| peer.announced) {
            if peer.lacks(piece) {
                peer.lacking += 1;
                if std::mem::take(&mut peer.sated) {
                    peer.not_before = Time::ZERO;
                }
            }
        }
    }

    /// A piece is held here no more.
    pub(super) fn lost_here(&mut self, piece: PieceIndex) {
        for peer in self.peers.iter_mut().filter(|peer| peer.announced) {
            peer.lacking -= u32::from(peer.lacks(piece));
        }
    }

    pub(super) fn assert_invariants(&self, held: &Bitfield) {
        let mut copies = vec![0u16; self.copies.len()];
        for peer in &self.peers {
            assert!(peer.announced || peer.shown.is_empty(), "{:?} shows before it announced", peer.key);
            if peer.announced {
                assert_eq!(peer.lacking, count_lacking(peer, held), "what {:?} lacks", peer.key);
            }
            assert!(peer.abandoned.len() <= ABANDONED_PER_PEER_MAX);
            for piece in peer.shown.iter().filter(|_| !peer.seeder) {
                copies[piece.at()] += 1;
            }
        }
        assert!(self.keys.is_sorted_by(|one, next| one < next));
        assert!(self.peers.iter().map(|peer| &peer.key).eq(&self.keys));
        assert_eq!(self.copies, copies);
        assert_eq!(self.unseen, copies.iter().filter(|&&copies| copies == 0).count());
    }
}

/// How many pieces of `held` the peer does not show and may want.
fn count_lacking(peer: &Peer, held: &Bitfield) -> u32 {
    match (&peer.unwanted, &peer.covered) {
        (Some(_), _) | (_, Some(_)) => held.iter().map(|piece| u32::from(peer.lacks(piece))).sum(),
        (None, None) => {
            let words = held.words().iter().zip(peer.shown.words());
            words.map(|(held, shown)| (held & !shown).count_ones()).sum()
        }
    }
}
