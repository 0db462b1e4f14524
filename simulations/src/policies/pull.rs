//! Receivers choose piece and source; requests wait at the uploader until it has a slot free.
//!
//! `downloads` picks and asks, `uploads` serves and chokes. The messages are the exchange's, in BitTorrent's sense: a
//! grant unchokes, a decline chokes, a withdrawal rejects one request (BEP 6).

mod downloads;
mod uploads;

use std::collections::{BTreeMap, VecDeque};
use std::sync::Arc;
use std::time::Duration;

use rand::{Rng, SeedableRng};
use rand_chacha::ChaCha8Rng;
use shoal_proto::exchange::{Announcement, Bitfield, Event, Message, Output, PeerKey, Receipt, Role};
use shoal_proto::image::{PieceIndex, PieceList};
use shoal_proto::time::Time;
use shoal_proto::zone::Distance;

use crate::trader::Trader;

/// Rarest first at whichever holder, with the pipeline and the slots that did best.
pub(super) const PULL: Style =
    Style { order: Order::Rarest, choking: None, super_seeding: false, slots: 4, per_source: 1, total: 4 };

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Order {
    /// The piece that fewest neighbours show, ties at random.
    Rarest,
    /// The first missing piece.
    Sequential,
}

#[derive(Clone, Copy, Debug)]
pub(super) struct Style {
    pub(super) order: Order,
    /// Only as many peers as there are slots may ask; one of them makes room in each such time.
    pub(super) choking: Option<Duration>,
    pub(super) super_seeding: bool,
    /// Pieces that are sent at a time, each to another peer.
    pub(super) slots: usize,
    /// Requests under way, at one source and in all.
    pub(super) per_source: usize,
    pub(super) total: usize,
}

pub(super) fn rarest_first(role: Role, pieces: Arc<PieceList>, held: Bitfield, seed: u64) -> Pull {
    Pull::new(PULL, role, pieces, held, seed)
}

/// **Invariant:** `settled` is what is held, written or asked for.
#[derive(Debug)]
pub(super) struct Pull {
    style: Style,
    pieces: Arc<PieceList>,
    held: Bitfield,
    settled: Bitfield,
    neighbours: BTreeMap<PeerKey, Neighbour>,
    /// Neighbours that show each piece.
    copies: Vec<u16>,
    /// Asked for, with the sources: two in the endgame.
    asked: BTreeMap<PieceIndex, Vec<PeerKey>>,
    /// Received, from whom, and not stored yet.
    writing: BTreeMap<PieceIndex, PeerKey>,
    /// Peers whose first request is to be served next.
    ready: VecDeque<PeerKey>,
    /// Pieces being sent.
    sending: usize,
    /// Longest unchoked first.
    unchoked: VecDeque<PeerKey>,
    rotates_at: Option<Time>,
    /// Of a super-seeder: the neighbours that were shown each piece and do not show it yet.
    offered: Option<Vec<u16>>,
    rng: ChaCha8Rng,
    outputs: VecDeque<Output>,
}

#[derive(Debug)]
struct Neighbour {
    shown: Bitfield,
    /// Whether it takes requests.
    takes_requests: bool,
    /// What it was asked for, oldest first.
    asked: VecDeque<PieceIndex>,
    /// What it asked for, oldest first.
    requests: VecDeque<PieceIndex>,
    sending: Option<PieceIndex>,
    /// It no longer wants what is being sent.
    cancelled: bool,
    /// What a super-seeder showed it.
    revealed: Bitfield,
}

impl Pull {
    pub(super) fn new(style: Style, role: Role, pieces: Arc<PieceList>, held: Bitfield, seed: u64) -> Self {
        let mut rng = ChaCha8Rng::seed_from_u64(seed);
        let rotates_at = style.choking.map(|turn| Time::ZERO + turn.mul_f64(rng.random()));
        let count = pieces.len();
        Self {
            style,
            pieces,
            settled: held.clone(),
            neighbours: BTreeMap::new(),
            copies: vec![0; count],
            asked: BTreeMap::new(),
            writing: BTreeMap::new(),
            ready: VecDeque::new(),
            sending: 0,
            unchoked: VecDeque::new(),
            rotates_at,
            offered: (style.super_seeding && role == Role::Seeder).then(|| vec![0; count]),
            held,
            rng,
            outputs: VecDeque::new(),
        }
    }

    fn send(&mut self, peer: PeerKey, message: Message) {
        self.outputs.push_back(Output::Send { peer, message });
    }

    /// A neighbour holds one more piece.
    fn show(&mut self, peer: PeerKey, piece: PieceIndex) {
        let Some(neighbour) = self.neighbours.get_mut(&peer) else { return };
        if !neighbour.shown.insert(piece) {
            return;
        }
        self.copies[piece.at()] += 1;
        if let Some(offered) = &mut self.offered
            && neighbour.revealed.contains(piece)
        {
            offered[piece.at()] -= 1;
        }
    }
}

impl Trader for Pull {
    fn handle_connected(&mut self, _now: Time, peer: PeerKey, _distance: Distance) {
        let nothing = Bitfield::empty(self.pieces.len());
        let shown = if self.offered.is_some() { nothing.clone() } else { self.held.clone() };
        let neighbour = Neighbour {
            shown: nothing.clone(),
            takes_requests: self.style.choking.is_none(),
            asked: VecDeque::new(),
            requests: VecDeque::new(),
            sending: None,
            cancelled: false,
            revealed: nothing,
        };
        self.neighbours.insert(peer, neighbour);
        self.send(peer, Message::Announce(Announcement::Held(shown)));
    }

    fn handle_disconnected(&mut self, _now: Time, peer: PeerKey) {
        let Some(gone) = self.neighbours.remove(&peer) else { return };
        for piece in gone.shown.iter() {
            self.copies[piece.at()] -= 1;
        }
        if let Some(offered) = &mut self.offered {
            gone.revealed
                .iter()
                .filter(|&piece| !gone.shown.contains(piece))
                .for_each(|piece| offered[piece.at()] -= 1);
        }
        self.sending -= usize::from(gone.sending.is_some());
        self.ready.retain(|&ready| ready != peer);
        self.unchoked.retain(|&unchoked| unchoked != peer);
        for piece in gone.asked {
            self.unask(peer, piece);
        }
        self.unchoke_more();
        self.serve();
        self.request_of_all();
        self.reveal_more();
    }

    fn handle_message(&mut self, _now: Time, peer: PeerKey, message: Message) {
        match message {
            Message::Announce(Announcement::Held(shown)) => {
                shown.iter().for_each(|piece| self.show(peer, piece));
                self.unchoke_more();
                self.request_of(peer);
                self.reveal_more();
            }
            Message::Have(pieces) => {
                pieces.into_iter().for_each(|piece| self.show(peer, piece));
                self.release_uninterested(peer);
                self.request_of(peer);
                self.reveal_more();
            }
            Message::Grant(_) => {
                if let Some(neighbour) = self.neighbours.get_mut(&peer) {
                    neighbour.takes_requests = true;
                }
                self.request_of(peer);
            }
            Message::Decline(_) => {
                if let Some(neighbour) = self.neighbours.get_mut(&peer) {
                    neighbour.takes_requests = false;
                }
            }
            Message::Request(piece) => self.take_request(peer, piece),
            Message::Cancel(piece) => self.cancel(peer, piece),
            Message::Withdraw(piece) => {
                self.unask(peer, piece);
                self.request_of_all();
            }
            // No peer of this policy says these.
            Message::Announce(_) | Message::Intent { .. } | Message::Covered(_) | Message::Uncovered(_) => {}
        }
    }

    fn handle_progress(&mut self, _now: Time, _peer: PeerKey, _piece: PieceIndex) {}

    fn handle_received(&mut self, _now: Time, peer: PeerKey, piece: PieceIndex) -> Receipt {
        let wanted = self.asked.get(&piece).is_some_and(|sources| sources.contains(&peer));
        if !wanted {
            return if self.settled.contains(piece) { Receipt::Duplicate } else { Receipt::Unrequested };
        }
        for source in self.asked.remove(&piece).unwrap_or_default() {
            if let Some(neighbour) = self.neighbours.get_mut(&source) {
                neighbour.asked.retain(|&asked| asked != piece);
            }
            if source != peer {
                self.send(source, Message::Cancel(piece));
            }
        }
        self.writing.insert(piece, peer);
        self.request_of_all();
        Receipt::Wanted
    }

    fn handle_stored(&mut self, _now: Time, piece: PieceIndex) {
        let Some(from) = self.writing.remove(&piece) else { return };
        self.held.insert(piece);
        self.outputs.push_back(Output::Event(Event::Held { piece, from }));
        if self.held.is_full() {
            self.outputs.push_back(Output::Event(Event::Complete));
        }
        let keys: Vec<PeerKey> = self.neighbours.keys().copied().collect();
        keys.into_iter().for_each(|peer| self.send(peer, Message::Have(vec![piece])));
        self.unchoke_more();
    }

    fn handle_corrupt(&mut self, _now: Time, piece: PieceIndex) {
        self.writing.remove(&piece);
        self.settled.remove(piece);
        self.request_of_all();
    }

    fn is_send_wanted(&self, peer: PeerKey, _piece: PieceIndex) -> bool {
        self.neighbours.get(&peer).is_some_and(|neighbour| !neighbour.cancelled)
    }

    fn handle_unsent(&mut self, now: Time, peer: PeerKey, piece: PieceIndex) {
        self.handle_sent(now, peer, piece);
    }

    fn handle_sent(&mut self, _now: Time, peer: PeerKey, _piece: PieceIndex) {
        self.finish_sending(peer);
    }

    fn handle_timeout(&mut self, now: Time) {
        let (Some(turn), Some(at)) = (self.style.choking, self.rotates_at) else { return };
        if at <= now {
            self.rotates_at = Some(at + turn);
            self.rotate();
        }
    }

    fn poll_output(&mut self) -> Option<Output> {
        self.outputs.pop_front()
    }

    fn poll_timeout(&self) -> Option<Time> {
        self.rotates_at
    }

    fn held(&self) -> &Bitfield {
        &self.held
    }

    fn is_complete(&self) -> bool {
        self.held.is_full()
    }

    fn waiting_for(&self, pieces_max: usize) -> Vec<(PieceIndex, Vec<PeerKey>)> {
        let missing = self.pieces.indexes().filter(|&piece| !self.held.contains(piece)).take(pieces_max);
        let holders = |piece| {
            let holders = self.neighbours.iter().filter(|(_, neighbour)| neighbour.shown.contains(piece));
            holders.map(|(&peer, _)| peer).collect()
        };
        missing.map(|piece| (piece, holders(piece))).collect()
    }

    fn assert_invariants(&self) {
        let mut settled = self.held.clone();
        for (&piece, sources) in &self.asked {
            assert!(settled.insert(piece), "{piece} is held and asked for");
            assert!(!sources.is_empty(), "{piece} is asked of nobody");
        }
        for &piece in self.writing.keys() {
            assert!(settled.insert(piece), "{piece} is written and held or asked for");
        }
        assert_eq!(self.settled, settled);
        let mut copies = vec![0; self.pieces.len()];
        for (peer, neighbour) in &self.neighbours {
            neighbour.shown.iter().for_each(|piece| copies[piece.at()] += 1);
            assert!(neighbour.asked.len() <= self.style.per_source);
            for piece in &neighbour.asked {
                assert!(self.asked[piece].contains(peer), "{piece} is asked of one that does not know");
            }
            let waits = neighbour.sending.is_none() && !neighbour.requests.is_empty();
            assert_eq!(waits, self.ready.contains(peer), "who has a request waiting is ready");
        }
        assert_eq!(self.copies, copies);
        assert!(self.sending <= self.style.slots, "{} sent at a time", self.sending);
        assert_eq!(self.sending, self.neighbours.values().filter(|peer| peer.sending.is_some()).count());
    }
}

#[cfg(test)]
mod tests;
