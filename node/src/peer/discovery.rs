//! Who is out there, and whom to dial next: a pure book of addresses.

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::time::Duration;

use libp2p::PeerId;
use rand::rngs::SmallRng;
use rand::seq::IndexedRandom;
use rand::{Rng, SeedableRng};
use shoal_proto::ticket::HostPort;
use shoal_proto::time::Time;
use shoal_proto::wire::{ADDRESSES_PER_PEER_MAX, PEERS_PER_FRAME_MAX, PeerAddresses};

/// Neighbours a node looks for by itself: the policy study's k, with room for those who come to it.
pub(super) const NEIGHBOURS_WANTED: usize = 24;
/// Neighbours a node accepts.
pub(super) const NEIGHBOURS_MAX_NODE: usize = 64;
/// Neighbours a seeder accepts: it is everybody's first address.
pub(super) const NEIGHBOURS_MAX_SEEDER: usize = 256;
/// Peers remembered.
const BOOK_MAX: usize = 4096;
/// First and longest wait before a peer that failed is dialed again.
const RETRY_MIN: Duration = Duration::from_millis(500);
const RETRY_MAX: Duration = Duration::from_secs(20);
/// How long a peer that broke the protocol is shunned.
const BAN: Duration = Duration::from_secs(300);

/// The book: what is known of each peer, and when it may be dialed. Never learns that it is connected: the driver
/// says so when it asks.
pub(super) struct Book {
    own: PeerId,
    known: BTreeMap<PeerId, Known>,
    rng: SmallRng,
}

#[derive(Debug, Default)]
struct Known {
    /// Addresses as the ticket wrote them: resolved at every dial.
    names: Vec<HostPort>,
    addresses: Vec<SocketAddr>,
    rack: String,
    /// From the ticket: dialed even when there are neighbours enough, and never forgotten.
    bootstrap: bool,
    failures: u32,
    retry_at: Time,
    banned_until: Time,
}

/// A peer to dial.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Dial {
    pub(super) peer: PeerId,
    pub(super) names: Vec<HostPort>,
    pub(super) addresses: Vec<SocketAddr>,
}

impl Book {
    pub(super) fn new(own: PeerId, bootstrap: Vec<(PeerId, Vec<HostPort>)>, seed: u64) -> Self {
        let known = bootstrap
            .into_iter()
            .filter(|(peer, _)| *peer != own)
            .map(|(peer, names)| (peer, Known { names, bootstrap: true, ..Known::default() }))
            .collect();
        Self { own, known, rng: SmallRng::seed_from_u64(seed) }
    }

    /// A peer told of another, or spoke itself: its newest addresses come first.
    pub(super) fn learn(&mut self, told: PeerAddresses) {
        if told.id == self.own || told.addresses.is_empty() {
            return;
        }
        if self.known.len() >= BOOK_MAX && !self.known.contains_key(&told.id) {
            let forget = self
                .known
                .iter()
                .filter(|(_, known)| !known.bootstrap)
                .max_by_key(|(_, known)| known.failures);
            let Some(forget) = forget.map(|(peer, _)| *peer) else { return };
            self.known.remove(&forget);
        }
        let known = self.known.entry(told.id).or_default();
        known.rack = told.rack;
        for address in told.addresses.into_iter().rev() {
            known.addresses.retain(|other| *other != address);
            known.addresses.insert(0, address);
        }
        known.addresses.truncate(ADDRESSES_PER_PEER_MAX);
    }

    /// Who should be dialed now, at most `room` peers, never one that `busy` names (connected or being dialed).
    pub(super) fn dials(&mut self, now: Time, room: usize, busy: impl Fn(&PeerId) -> bool) -> Vec<Dial> {
        let ready = |known: &Known| known.retry_at <= now && known.banned_until <= now;
        let due: Vec<PeerId> = self
            .known
            .iter()
            .filter(|(peer, known)| ready(known) && !busy(peer))
            .map(|(peer, _)| *peer)
            .collect();
        let (first, others): (Vec<PeerId>, Vec<PeerId>) =
            due.into_iter().partition(|peer| self.known[peer].bootstrap);
        let chosen: Vec<PeerId> = others.choose_multiple(&mut self.rng, room).copied().collect();
        first.into_iter().chain(chosen).map(|peer| self.dial(now, peer)).collect()
    }

    fn dial(&mut self, now: Time, peer: PeerId) -> Dial {
        let known = self.known.get_mut(&peer).expect("chosen from the book");
        let wait = RETRY_MIN.saturating_mul(1 << known.failures.min(6)).min(RETRY_MAX);
        known.failures += 1;
        // Jittered, so that a fleet does not come back to its seeder all at once.
        known.retry_at = now + wait.mul_f64(self.rng.random_range(0.75..1.25));
        Dial { peer, names: known.names.clone(), addresses: known.addresses.clone() }
    }

    /// When [`Book::dials`] may have something to say again.
    pub(super) fn next_dial(&self, room: usize, busy: impl Fn(&PeerId) -> bool) -> Option<Time> {
        self.known
            .iter()
            .filter(|(peer, known)| (known.bootstrap || room > 0) && !busy(peer))
            .map(|(_, known)| known.retry_at.max(known.banned_until))
            .min()
    }

    pub(super) fn connected(&mut self, peer: &PeerId) {
        if let Some(known) = self.known.get_mut(peer) {
            known.failures = 0;
        }
    }

    /// A peer broke the protocol: do not dial it, do not let it in, do not tell others of it.
    pub(super) fn ban(&mut self, now: Time, peer: PeerId) {
        self.known.entry(peer).or_default().banned_until = now + BAN;
    }

    pub(super) fn is_banned(&self, now: Time, peer: &PeerId) -> bool {
        self.known.get(peer).is_some_and(|known| known.banned_until > now)
    }

    /// Some peers worth telling `to` about, out of those that `connected` vouches for.
    pub(super) fn tell(
        &mut self,
        now: Time,
        to: &PeerId,
        connected: impl Fn(&PeerId) -> bool,
    ) -> Vec<PeerAddresses> {
        let worth: Vec<PeerAddresses> = self
            .known
            .iter()
            .filter(|(peer, known)| {
                *peer != to && connected(peer) && !known.addresses.is_empty() && known.banned_until <= now
            })
            .map(|(peer, known)| PeerAddresses {
                id: *peer,
                addresses: known.addresses.clone(),
                rack: known.rack.clone(),
            })
            .collect();
        worth.choose_multiple(&mut self.rng, NEIGHBOURS_WANTED.min(PEERS_PER_FRAME_MAX)).cloned().collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn told(port: u16) -> PeerAddresses {
        let address = SocketAddr::from(([127, 0, 0, 1], port));
        PeerAddresses { id: PeerId::random(), addresses: vec![address], rack: String::new() }
    }

    fn book() -> Book {
        Book::new(PeerId::random(), Vec::new(), 1)
    }

    #[test]
    fn a_peer_that_fails_is_dialed_again_ever_later() {
        let mut book = book();
        let peer = told(1);
        book.learn(peer.clone());
        let mut now = Time::ZERO;
        let mut waits = Vec::new();
        for _ in 0..10 {
            assert_eq!(book.dials(now, 5, |_| false).len(), 1);
            assert!(book.dials(now, 5, |_| false).is_empty(), "not twice at once");
            let next = book.next_dial(5, |_| false).unwrap();
            waits.push(next - now);
            now = next;
        }
        assert!(waits[0] < Duration::from_secs(1) && waits[9] > Duration::from_secs(10));
        assert!(waits.iter().all(|wait| *wait <= RETRY_MAX.mul_f64(1.25)));
        book.connected(&peer.id);
        book.dials(now, 5, |_| false);
        assert!(book.next_dial(5, |_| false).unwrap() - now < Duration::from_secs(2), "success forgives");
    }

    #[test]
    fn a_full_house_still_dials_the_bootstrap() {
        let seeder = PeerId::random();
        let mut book = Book::new(PeerId::random(), vec![(seeder, vec!["h:1".parse().unwrap()])], 1);
        book.learn(told(1));
        let dials = book.dials(Time::ZERO, 0, |_| false);
        assert_eq!(dials.iter().map(|dial| dial.peer).collect::<Vec<_>>(), [seeder]);
    }

    #[test]
    fn the_banned_are_neither_dialed_nor_told() {
        let mut book = book();
        let (good, bad) = (told(1), told(2));
        book.learn(good.clone());
        book.learn(bad.clone());
        book.ban(Time::ZERO, bad.id);
        assert!(book.is_banned(Time::ZERO, &bad.id));
        assert_eq!(book.tell(Time::ZERO, &PeerId::random(), |_| true), std::slice::from_ref(&good));
        assert_eq!(book.dials(Time::ZERO, 5, |_| false).len(), 1);
        assert!(!book.is_banned(Time::ZERO + BAN, &bad.id));
    }

    #[test]
    fn a_peer_is_never_told_of_itself_and_only_of_the_connected() {
        let mut book = book();
        let (one, two) = (told(1), told(2));
        book.learn(one.clone());
        book.learn(two.clone());
        assert_eq!(book.tell(Time::ZERO, &one.id, |_| true), std::slice::from_ref(&two));
        assert!(book.tell(Time::ZERO, &one.id, |peer| *peer == one.id).is_empty());
    }

    #[test]
    fn the_book_is_bounded() {
        let mut book = book();
        for _ in 0..BOOK_MAX + 10 {
            book.learn(told(1));
        }
        assert_eq!(book.known.len(), BOOK_MAX);
    }
}
