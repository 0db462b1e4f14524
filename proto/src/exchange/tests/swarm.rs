//! Many-party scripts.

mod racks;

use std::collections::{BTreeMap, BTreeSet};

use super::*;
use crate::zone::Zone;

/// One way between two hosts of a [`Net`].
const LATENCY: Duration = Duration::from_millis(1);
/// A piece over an idle connection of a [`Net`]; uplinks are not shared, which is enough for behaviour.
const TRANSFER: Duration = Duration::from_millis(40);
/// Virtual time by which every script must have come to its end.
const DEADLINE: Time = Time::from_nanos(600_000_000_000);

/// Exchanges joined by perfect connections: every message takes [`LATENCY`], every piece [`TRANSFER`].
struct Net {
    now: Time,
    hosts: Vec<Option<Exchange>>,
    links: BTreeMap<(usize, PeerKey), (usize, PeerKey)>,
    queue: BTreeMap<(Time, u64), (usize, Input)>,
    sequence: u64,
    next_key: u32,
    /// Hosts whose pieces never leave them.
    frozen: BTreeSet<usize>,
    pieces_sent: Vec<u32>,
    /// Where the hosts stand that stand anywhere.
    zones: BTreeMap<usize, Zone>,
    /// Pieces that arrived, by the receiver and by how far away the sender stands.
    arrived: BTreeMap<(usize, usize), u32>,
    duplicates: u32,
    faults: Vec<Fault>,
    pieces: usize,
}

#[derive(Debug)]
enum Input {
    Message(PeerKey, Message),
    Sent(PeerKey, PieceIndex),
    Arrived(PeerKey, PieceIndex),
    Stored(PieceIndex),
}

impl Net {
    fn new(pieces: usize) -> Self {
        Self {
            now: Time::ZERO,
            hosts: Vec::new(),
            links: BTreeMap::new(),
            queue: BTreeMap::new(),
            sequence: 0,
            next_key: 0,
            frozen: BTreeSet::new(),
            pieces_sent: Vec::new(),
            zones: BTreeMap::new(),
            arrived: BTreeMap::new(),
            duplicates: 0,
            faults: Vec::new(),
            pieces,
        }
    }

    fn add(&mut self, role: Role, held: Bitfield) -> usize {
        let seed = self.hosts.len() as u64;
        self.hosts.push(Some(Exchange::new(Config::default(), role, list(self.pieces), held, seed)));
        self.pieces_sent.push(0);
        self.hosts.len() - 1
    }

    fn seeder(&mut self) -> usize {
        self.add(Role::Seeder, Bitfield::full(self.pieces))
    }

    fn node(&mut self) -> usize {
        self.add(Role::Node, Bitfield::empty(self.pieces))
    }

    fn nodes(&mut self, count: usize) -> Vec<usize> {
        (0..count).map(|_| self.node()).collect()
    }

    fn connect(&mut self, one: usize, other: usize) {
        let (there, back) = (PeerKey(self.next_key), PeerKey(self.next_key + 1));
        self.next_key += 2;
        self.links.insert((one, there), (other, back));
        self.links.insert((other, back), (one, there));
        let distance = self.distance(one, other);
        for (host, key) in [(one, there), (other, back)] {
            let now = self.now;
            if let Some(exchange) = &mut self.hosts[host] {
                exchange.handle_connected(now, key, distance);
            }
            self.perform(host);
        }
    }

    fn distance(&self, one: usize, other: usize) -> Distance {
        let zone = |host| self.zones.get(&host).cloned().unwrap_or_default();
        zone(one).distance(&zone(other))
    }

    fn connect_all(&mut self, hosts: &[usize]) {
        for (at, &one) in hosts.iter().enumerate() {
            for &other in &hosts[at + 1..] {
                self.connect(one, other);
            }
        }
    }

    fn disconnect(&mut self, host: usize, key: PeerKey) {
        let Some((other, back)) = self.links.remove(&(host, key)) else { return };
        self.links.remove(&(other, back));
        for (host, key) in [(host, key), (other, back)] {
            let now = self.now;
            if let Some(exchange) = &mut self.hosts[host] {
                exchange.handle_disconnected(now, key);
            }
            self.perform(host);
        }
    }

    fn kill(&mut self, host: usize) {
        self.hosts[host] = None;
        let keys: Vec<_> = self.links.keys().filter(|&&(end, _)| end == host).map(|&(_, key)| key).collect();
        for key in keys {
            self.disconnect(host, key);
        }
    }

    fn later(&mut self, after: Duration, host: usize, input: Input) {
        self.queue.insert((self.now + after, self.sequence), (host, input));
        self.sequence += 1;
    }

    /// Does what a host's exchange asks.
    fn perform(&mut self, host: usize) {
        let Some(exchange) = &mut self.hosts[host] else { return };
        exchange.assert_invariants();
        let outputs: Vec<_> = std::iter::from_fn(|| exchange.poll_output()).collect();
        for output in outputs {
            match output {
                Output::Send { peer, message } => {
                    if let Some(&(other, back)) = self.links.get(&(host, peer)) {
                        self.later(LATENCY, other, Input::Message(back, message));
                    }
                }
                Output::SendPiece { peer, piece } if !self.frozen.contains(&host) => {
                    self.later(TRANSFER, host, Input::Sent(peer, piece));
                    if let Some(&(other, back)) = self.links.get(&(host, peer)) {
                        self.later(TRANSFER + LATENCY, other, Input::Arrived(back, piece));
                    }
                }
                Output::SendPiece { .. } => {}
                Output::Disconnect { peer, reason } => {
                    self.faults.push(reason);
                    self.disconnect(host, peer);
                }
                Output::Event(Event::Sent { .. }) => self.pieces_sent[host] += 1,
                Output::Event(Event::Duplicate { .. }) => self.duplicates += 1,
                Output::Event(_) => {}
            }
        }
    }

    fn input(&mut self, host: usize, input: Input) {
        let now = self.now;
        let Some(exchange) = &mut self.hosts[host] else { return };
        match input {
            Input::Message(peer, message) => exchange.handle_message(now, peer, message),
            Input::Sent(peer, piece) => exchange.handle_sent(now, peer, piece),
            Input::Arrived(peer, piece) => {
                if exchange.handle_received(now, peer, piece) == Receipt::Wanted {
                    if let Some(&(from, _)) = self.links.get(&(host, peer)) {
                        *self.arrived.entry((host, self.distance(host, from).levels())).or_default() += 1;
                    }
                    self.later(LATENCY, host, Input::Stored(piece));
                }
            }
            Input::Stored(piece) => exchange.handle_stored(now, piece),
        }
        self.perform(host);
    }

    /// One step; false when nothing is left to happen.
    fn step(&mut self) -> bool {
        let timers = self.hosts.iter().enumerate();
        let timer =
            timers.filter_map(|(host, exchange)| Some((exchange.as_ref()?.poll_timeout()?, host))).min();
        let input = self.queue.keys().next().copied();
        match (timer, input) {
            (Some((timer, host)), input) if input.is_none_or(|(at, _)| timer < at) => {
                self.now = self.now.max(timer);
                let now = self.now;
                self.hosts[host].as_mut().unwrap().handle_timeout(now);
                self.perform(host);
            }
            (_, Some(key)) => {
                self.now = self.now.max(key.0);
                let (host, input) = self.queue.remove(&key).unwrap();
                self.input(host, input);
            }
            (_, None) => return false,
        }
        true
    }

    fn run_until(&mut self, done: impl Fn(&Self) -> bool) {
        while !done(self) {
            assert!(self.now < DEADLINE && self.step(), "stuck at {:?}: {:?}", self.now, self.missing());
        }
    }

    fn missing(&self) -> Vec<usize> {
        let live = self.hosts.iter().flatten();
        live.map(|exchange| exchange.held().len() - exchange.held().count()).collect()
    }

    fn all_complete(&self) -> bool {
        self.hosts.iter().flatten().all(Exchange::is_complete)
    }

    fn finish(&mut self) {
        self.run_until(Self::all_complete);
        assert_eq!(self.faults, []);
    }
}

#[test]
fn one_node_gets_everything_from_the_seeder() {
    let mut net = Net::new(10);
    let (seeder, node) = (net.seeder(), net.node());
    net.connect(seeder, node);
    net.finish();
    assert_eq!(net.pieces_sent[seeder], 10);
    assert_eq!(net.duplicates, 0);
}

#[test]
fn an_empty_list_is_complete_and_silent() {
    let mut net = Net::new(0);
    let (seeder, node) = (net.seeder(), net.node());
    net.connect(seeder, node);
    while net.step() {}
    assert!(net.all_complete());
}

#[test]
fn a_seeder_sends_one_copy_to_a_whole_swarm() {
    let mut net = Net::new(60);
    let seeder = net.seeder();
    let mut hosts = net.nodes(12);
    hosts.push(seeder);
    net.connect_all(&hosts);
    net.finish();
    assert_eq!(net.pieces_sent[seeder], 60);
    assert_eq!(net.duplicates, 0);
}

#[test]
fn a_seeder_that_knows_one_node_feeds_the_swarm_through_it() {
    let mut net = Net::new(20);
    let seeder = net.seeder();
    let nodes = net.nodes(6);
    net.connect(seeder, nodes[0]);
    net.connect_all(&nodes);
    net.finish();
    assert_eq!(net.pieces_sent[seeder], 20);
}

#[test]
fn nodes_that_know_only_the_seeder_are_not_stranded() {
    let mut net = Net::new(20);
    let seeder = net.seeder();
    for node in net.nodes(5) {
        net.connect(seeder, node);
    }
    net.finish();
}

#[test]
fn a_chain_of_nodes_completes() {
    let mut net = Net::new(20);
    let mut last = net.seeder();
    for node in net.nodes(6) {
        net.connect(last, node);
        last = node;
    }
    net.finish();
}

#[test]
fn seeder_lost_after_one_copy_still_completes() {
    let mut net = Net::new(40);
    let seeder = net.seeder();
    let mut hosts = net.nodes(8);
    hosts.push(seeder);
    net.connect_all(&hosts);
    net.run_until(|net| net.hosts[seeder].as_ref().unwrap().copies_elsewhere() > 0);
    net.kill(seeder);
    net.finish();
}

#[test]
fn nodes_that_die_take_no_piece_with_them() {
    let mut net = Net::new(40);
    let seeder = net.seeder();
    let nodes = net.nodes(8);
    let mut hosts = nodes.clone();
    hosts.push(seeder);
    net.connect_all(&hosts);
    for (sent, &victim) in [10, 20, 30].into_iter().zip(&nodes) {
        net.run_until(|net| net.pieces_sent[seeder] >= sent);
        net.kill(victim);
    }
    net.finish();
}

#[test]
fn a_frozen_holder_does_not_keep_a_piece_for_ever() {
    let mut net = Net::new(30);
    let seeder = net.seeder();
    let frozen = net.add(Role::Node, Bitfield::full(30));
    net.frozen.insert(frozen);
    let mut hosts = net.nodes(6);
    hosts.extend([seeder, frozen]);
    net.connect_all(&hosts);
    net.finish();
}

#[test]
fn a_late_joiner_completes_without_the_seeder() {
    let mut net = Net::new(30);
    let seeder = net.seeder();
    let mut hosts = net.nodes(5);
    hosts.push(seeder);
    net.connect_all(&hosts);
    net.finish();
    let sent = net.pieces_sent[seeder];
    let late = net.node();
    for &host in &hosts {
        net.connect(host, late);
    }
    net.finish();
    assert_eq!(net.pieces_sent[seeder], sent);
}

#[test]
fn a_node_that_holds_most_already_fetches_and_causes_only_the_rest() {
    let mut net = Net::new(100);
    let seeder = net.seeder();
    let mut hosts = vec![seeder];
    for _ in 0..5 {
        hosts.push(net.add(Role::Node, set(100, 0..90)));
    }
    net.connect_all(&hosts);
    net.finish();
    assert_eq!(net.pieces_sent[seeder], 10);
    assert_eq!(net.pieces_sent.iter().sum::<u32>(), 50);
}

#[test]
fn nodes_that_want_different_pieces_complete_and_fall_silent() {
    let mut net = Net::new(60);
    let seeder = net.seeder();
    let mut hosts = net.nodes(9);
    for (number, &host) in hosts.iter().enumerate() {
        // A third of the pieces is unwanted by each node, a few others by all but one or by all.
        let unwanted = (0..60).filter(|&piece| (piece as usize + number).is_multiple_of(3) || piece > 55);
        let unwanted = set(60, unwanted.filter(|&piece| number > 0 || piece != 56));
        net.hosts[host] = net.hosts[host].take().map(|exchange| exchange.without(unwanted));
    }
    hosts.push(seeder);
    net.connect_all(&hosts);
    net.finish();
    assert!(net.now < at(10_000), "it took until {:?}", net.now);
    assert!(net.pieces_sent[seeder] <= 60, "{} pieces from the seeder", net.pieces_sent[seeder]);
    while net.step() {
        assert!(net.now < DEADLINE, "they never fall silent");
    }
    assert_eq!((net.faults, net.duplicates), (vec![], 0));
}

#[test]
fn two_seeders_share_the_first_copy() {
    let mut net = Net::new(100);
    let seeders = [net.seeder(), net.seeder()];
    let mut hosts = net.nodes(10);
    hosts.extend(seeders);
    net.connect_all(&hosts);
    net.finish();
    let sent = seeders.map(|seeder| net.pieces_sent[seeder]);
    assert!(sent.iter().sum::<u32>() <= 115 && sent.iter().all(|&sent| sent >= 20), "{sent:?}");
}

#[test]
fn a_peer_that_reconnects_under_a_new_key_goes_on_where_it_was() {
    let mut net = Net::new(40);
    let (seeder, one, other) = (net.seeder(), net.node(), net.node());
    net.connect_all(&[seeder, one, other]);
    for turn in 1..=5 {
        net.run_until(|net| net.pieces_sent[seeder] >= turn * 6);
        let key = net.links.keys().find(|&&(host, _)| host == one).unwrap().1;
        let (far, _) = net.links[&(one, key)];
        net.disconnect(one, key);
        net.connect(one, far);
    }
    net.finish();
}

#[test]
fn equal_seeds_give_equal_histories() {
    let run = || {
        let mut net = Net::new(30);
        let seeder = net.seeder();
        let mut hosts = net.nodes(6);
        hosts.push(seeder);
        net.connect_all(&hosts);
        net.finish();
        (net.now, net.sequence, net.pieces_sent)
    };
    assert_eq!(run(), run());
}
