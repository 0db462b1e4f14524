//! How many decisions an exchange takes in a second: a whole swarm of them on one core, over a network that costs
//! nothing.
//!
//! `cargo bench -p shoal-proto --bench exchange` prints *items*: inputs handled, each of which asks for a decision or
//! brings what one is based on. A machine of a swarm has its share: all inputs ÷ pieces ÷ peers come to it per piece.

#![expect(clippy::unwrap_used, reason = "a benchmark")]

use std::collections::VecDeque;
use std::sync::Arc;
use std::time::Duration;

use divan::Bencher;
use divan::counter::ItemsCount;
use shoal_proto::cid::Cid;
use shoal_proto::exchange::{Bitfield, Config, Exchange, Message, Output, PeerKey, Receipt, Role};
use shoal_proto::image::{Piece, PieceIndex, PieceList};
use shoal_proto::time::Time;
use shoal_proto::zone::Distance;

const PIECES: u32 = 500;
/// A message takes one round, a piece as many as this: several times as long, as on any network.
const ROUND: Duration = Duration::from_millis(1);
const PIECE_ROUNDS: u32 = 8;

fn main() {
    divan::main();
}

/// One seeder and nodes that are all neighbours, from nothing to everything.
#[divan::bench(args = [4, 16, 40], sample_count = 5, sample_size = 1)]
fn swarm(bencher: Bencher<'_, '_>, nodes: u32) {
    let list = list();
    let inputs = Swarm::new(&list, nodes).run();
    bencher
        .counter(ItemsCount::new(inputs))
        .with_inputs(|| Swarm::new(&list, nodes))
        .bench_local_values(|mut swarm| swarm.run());
}

fn list() -> Arc<PieceList> {
    let piece = |at: u32| Piece { cid: Cid::of(&at.to_le_bytes()), raw_bytes: 1 << 20 };
    Arc::new(PieceList::new((0..PIECES).map(piece).collect()).unwrap())
}

/// Host `n` is `PeerKey(n)` to all others.
struct Swarm {
    hosts: Vec<Exchange>,
    now: Time,
    /// What comes in the next round: to whom, and what.
    messages: Vec<(PeerKey, Input)>,
    /// Pieces on their way, in the order in which they arrive: when, from whom, to whom.
    pieces: VecDeque<(Time, PeerKey, PeerKey, PieceIndex)>,
}

enum Input {
    Message(PeerKey, Message),
    Sent(PeerKey, PieceIndex),
    Received(PeerKey, PieceIndex),
    Stored(PieceIndex),
    Timeout,
}

impl Swarm {
    /// The seeder is host 0. All have met, and nobody has said anything.
    fn new(list: &Arc<PieceList>, nodes: u32) -> Self {
        let exchange = |host: u32| {
            let (role, held) = match host {
                0 => (Role::Seeder, Bitfield::full(list.len())),
                _ => (Role::Node, Bitfield::empty(list.len())),
            };
            Exchange::new(Config::default(), role, Arc::clone(list), held, host.into())
        };
        let hosts = (0..=nodes).map(exchange).collect();
        let mut swarm = Self { hosts, now: Time::ZERO, messages: Vec::new(), pieces: VecDeque::new() };
        for host in 0..=nodes {
            for other in (0..=nodes).filter(|&other| other != host) {
                swarm.hosts[host as usize].handle_connected(swarm.now, PeerKey(other), Distance::NONE);
            }
            swarm.perform(PeerKey(host));
        }
        swarm
    }

    /// Until every host has everything; says how many inputs were handled.
    fn run(&mut self) -> u64 {
        let mut handled = 0;
        while !self.hosts.iter().all(Exchange::is_complete) {
            self.now = self.now + ROUND;
            let mut inputs = std::mem::take(&mut self.messages);
            let arrived = self.pieces.partition_point(|(at, ..)| *at <= self.now);
            for (_, from, to, piece) in self.pieces.drain(..arrived) {
                inputs.extend([(from, Input::Sent(to, piece)), (to, Input::Received(from, piece))]);
            }
            let due = |exchange: &Exchange| exchange.poll_timeout().is_some_and(|due| due <= self.now);
            let due = self.hosts.iter().zip(0..).filter(|(exchange, _)| due(exchange));
            inputs.extend(due.map(|(_, host)| (PeerKey(host), Input::Timeout)));
            handled += inputs.len() as u64;
            for (host, input) in inputs {
                self.input(host, input);
            }
        }
        handled
    }

    fn input(&mut self, host: PeerKey, input: Input) {
        let (now, exchange) = (self.now, &mut self.hosts[host.0 as usize]);
        match input {
            Input::Message(peer, message) => exchange.handle_message(now, peer, message),
            Input::Sent(peer, piece) => exchange.handle_sent(now, peer, piece),
            Input::Received(peer, piece) => {
                if exchange.handle_received(now, peer, piece) == Receipt::Wanted {
                    self.messages.push((host, Input::Stored(piece)));
                }
            }
            Input::Stored(piece) => exchange.handle_stored(now, piece),
            Input::Timeout => exchange.handle_timeout(now),
        }
        self.perform(host);
    }

    /// Does what a host's exchange asks.
    fn perform(&mut self, host: PeerKey) {
        while let Some(output) = self.hosts[host.0 as usize].poll_output() {
            match output {
                Output::Send { peer, message } => self.messages.push((peer, Input::Message(host, message))),
                Output::SendPiece { peer, piece } => {
                    self.pieces.push_back((self.now + ROUND * PIECE_ROUNDS, host, peer, piece));
                }
                Output::Disconnect { reason, .. } => unreachable!("all are honest: {reason}"),
                Output::Event(_) => {}
            }
        }
    }
}
