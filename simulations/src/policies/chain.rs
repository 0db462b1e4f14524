//! Store and forward in a row, piece by piece, as Kascade and Dolly lay their chains: the seeder first.
//!
//! Nobody needs to know its place. A node has everything that the next one has, and was told so before, so whoever
//! lacks something that it holds stands behind it; it feeds the first such neighbour that it knows, and the next when
//! that one dies.

use std::collections::{BTreeMap, VecDeque};
use std::sync::Arc;

use shoal_proto::exchange::{Announcement, Bitfield, Event, Message, Output, PeerKey, Receipt, Role};
use shoal_proto::image::{PieceIndex, PieceList};
use shoal_proto::time::Time;
use shoal_proto::zone::Distance;

use crate::trader::Trader;

/// Host `i` knows `i − 1` and `i + 1`.
pub(super) fn links(hosts: usize) -> Vec<(usize, usize)> {
    (1..hosts).map(|host| (host - 1, host)).collect()
}

/// Each also knows the one after the next, after all others: it is fed only when the next is gone.
pub(super) fn links_with_spares(hosts: usize) -> Vec<(usize, usize)> {
    let spares = (2..hosts).map(|host| (host - 2, host));
    links(hosts).into_iter().chain(spares).collect()
}

pub(super) fn new(_: Role, pieces: Arc<PieceList>, held: Bitfield, _seed: u64) -> Chain {
    Chain {
        settled: held.clone(),
        pieces,
        held,
        shown: BTreeMap::new(),
        from: BTreeMap::new(),
        next: None,
        sending: false,
        sent: None,
        outputs: VecDeque::new(),
    }
}

/// **Invariant:** one piece at a time goes to one neighbour, and none goes there twice.
#[derive(Debug)]
pub(super) struct Chain {
    pieces: Arc<PieceList>,
    held: Bitfield,
    /// Held or being written.
    settled: Bitfield,
    /// What each neighbour holds.
    shown: BTreeMap<PeerKey, Bitfield>,
    /// Who sent what is being written.
    from: BTreeMap<PieceIndex, PeerKey>,
    /// The neighbour that is fed.
    next: Option<PeerKey>,
    sending: bool,
    /// What the next one has, or was sent.
    sent: Option<Bitfield>,
    outputs: VecDeque<Output>,
}

impl Chain {
    fn feed(&mut self) {
        if self.next.is_none() {
            let behind = self.shown.iter().find(|(_, shown)| self.held.has_any_not_in(shown));
            let Some((&peer, shown)) = behind else { return };
            self.next = Some(peer);
            self.sent = Some(shown.clone());
        }
        let (Some(peer), Some(sent), false) = (self.next, &mut self.sent, self.sending) else { return };
        let words = (0u32..).zip(self.held.words().iter().zip(sent.words()));
        let open = words.map(|(word, (held, sent))| (word, held & !sent)).find(|&(_, open)| open != 0);
        if let Some((word, open)) = open
            && let Some(piece) = self.pieces.index(word * 64 + open.trailing_zeros())
        {
            sent.insert(piece);
            self.sending = true;
            self.outputs.push_back(Output::SendPiece { peer, piece });
        }
    }
}

impl Trader for Chain {
    fn handle_connected(&mut self, _now: Time, peer: PeerKey, _distance: Distance) {
        let message = Message::Announce(Announcement::Held(self.held.clone()));
        self.outputs.push_back(Output::Send { peer, message });
    }

    fn handle_disconnected(&mut self, _now: Time, peer: PeerKey) {
        self.shown.remove(&peer);
        if self.next == Some(peer) {
            self.next = None;
            self.sent = None;
            self.sending = false;
        }
        self.feed();
    }

    fn handle_message(&mut self, _now: Time, peer: PeerKey, message: Message) {
        match message {
            Message::Announce(Announcement::Held(shown)) => {
                self.shown.insert(peer, shown);
            }
            Message::Have(pieces) => {
                let Some(shown) = self.shown.get_mut(&peer) else { return };
                pieces.into_iter().for_each(|piece| {
                    shown.insert(piece);
                });
            }
            _ => {}
        }
        self.feed();
    }

    fn handle_progress(&mut self, _now: Time, _peer: PeerKey, _piece: PieceIndex) {}

    fn handle_received(&mut self, _now: Time, peer: PeerKey, piece: PieceIndex) -> Receipt {
        if !self.settled.insert(piece) {
            return Receipt::Duplicate;
        }
        self.from.insert(piece, peer);
        Receipt::Wanted
    }

    fn handle_stored(&mut self, _now: Time, piece: PieceIndex) {
        let Some(from) = self.from.remove(&piece) else { return };
        self.held.insert(piece);
        self.outputs.push_back(Output::Event(Event::Held { piece, from }));
        if self.held.is_full() {
            self.outputs.push_back(Output::Event(Event::Complete));
        }
        for &peer in self.shown.keys() {
            self.outputs.push_back(Output::Send { peer, message: Message::Have(vec![piece]) });
        }
        self.feed();
    }

    fn handle_corrupt(&mut self, _now: Time, piece: PieceIndex) {
        self.from.remove(&piece);
        self.settled.remove(piece);
    }

    fn is_send_wanted(&self, peer: PeerKey, _piece: PieceIndex) -> bool {
        self.next == Some(peer)
    }

    fn handle_unsent(&mut self, now: Time, peer: PeerKey, piece: PieceIndex) {
        self.handle_sent(now, peer, piece);
    }

    fn handle_sent(&mut self, _now: Time, peer: PeerKey, _piece: PieceIndex) {
        self.sending &= self.next != Some(peer);
        self.feed();
    }

    fn handle_timeout(&mut self, _now: Time) {}

    fn poll_output(&mut self) -> Option<Output> {
        self.outputs.pop_front()
    }

    fn poll_timeout(&self) -> Option<Time> {
        None
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
            let holders = self.shown.iter().filter(|(_, shown)| shown.contains(piece));
            holders.map(|(&peer, _)| peer).collect()
        };
        missing.map(|piece| (piece, holders(piece))).collect()
    }

    fn assert_invariants(&self) {
        let mut settled = self.held.clone();
        for &piece in self.from.keys() {
            assert!(settled.insert(piece), "{piece} is written and held");
        }
        assert_eq!(self.settled, settled);
        assert_eq!(self.next.is_some(), self.sent.is_some());
        assert!(self.next.is_some() || !self.sending, "something is sent to nobody");
    }
}

#[cfg(test)]
mod tests {
    use crate::policies::{Policy, named};
    use crate::scenarios::{self, Size};
    use crate::sim::Options;

    const SIZE: Size = Size { nodes: 40, pieces: 30 };

    fn policy(name: &str) -> &'static Policy {
        named(name).unwrap()
    }

    #[test]
    fn each_node_adds_a_piece_time_its_quantum_and_the_latency() {
        let scenario = scenarios::named("flash-crowd").unwrap();
        for name in ["chain", "chain-bare"] {
            let outcome = (policy(name).run)(scenario, SIZE, &Options::default()).unwrap();
            // Through an uplink; the last eighth also through the downlink.
            let hop = 1.0 + 0.125 + Options::default().latency_block_times;
            let ideal = (30.0 - 1.0 + 40.0 * hop) / (30.0 + 5.0);
            let last = *outcome.over_bound().last().unwrap();
            assert!((last - ideal).abs() < 0.01, "{name}: {last}, {ideal} is due");
            assert_eq!(outcome.tally.duplicates, 0);
            assert_eq!(outcome.seeder_pieces, 30);
        }
    }

    #[test]
    fn a_spare_link_leads_past_a_dead_node() {
        let scenario = scenarios::named("churn").unwrap();
        let outcome = (policy("chain").run)(scenario, SIZE, &Options::default()).unwrap();
        assert_eq!(outcome.complete, 38);
        let failure = (policy("chain-bare").run)(scenario, SIZE, &Options::default()).unwrap_err();
        assert!(failure.to_string().contains("live hosts are not complete"), "{failure}");
    }
}
