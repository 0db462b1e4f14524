//! The loop: virtual time, an event queue, and exchanges that do not know they are simulated.

use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context, bail};
use rand::{Rng, SeedableRng};
use rand_chacha::ChaCha8Rng;
use shoal_proto::cid::Cid;
use shoal_proto::exchange::{
    Announcement, Bitfield, Config, Event, Exchange, Message, Output, PeerKey, Receipt, Role,
};
use shoal_proto::image::pieces::Piece;
use shoal_proto::image::{PieceIndex, PieceList};
use shoal_proto::time::Time;

use crate::checks::conservation::Conservation;
use crate::checks::{liveness, offers};
use crate::graph;
use crate::history::{History, Kind};
use crate::host::{Connection, Host};
use crate::link::{Arrival, PIECE_BYTES, QUANTA_PER_PIECE, QUANTA_PER_PROGRESS, WINDOW_QUANTA};
use crate::queue::{Mail, Next, Planned, Queue};
use crate::scenarios::{Death, Member, Scenario, Size, Stage};

/// Neighbours of a host that died learn of it this much later.
const DETECTION: Duration = Duration::from_secs(1);
/// A run that takes this many times the longest bound is stuck.
const BOUNDS_MAX: u32 = 20;
/// Bytes that frame a control message: length, exchange and tag.
const FRAME_BYTES: u64 = 6;
/// What a piece index takes in a message.
const INDEX_BYTES: u64 = 3;

/// The kinds of control messages, in the order of [`Outcome::messages`].
pub(crate) const MESSAGE_NAMES: [&str; 7] =
    ["announce", "have", "grant", "request", "decline", "cancel", "withdraw"];

/// What holds for every scenario.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Options {
    pub(crate) seed: u64,
    /// A host's invariants are walked after one event in so many.
    pub(crate) check_every: u64,
    pub(crate) node_bytes_per_s: f64,
    /// In uplinks of a node; `None` for the scenario's.
    pub(crate) seeder_rate: Option<f64>,
    pub(crate) latency_block_times: f64,
    pub(crate) neighbours: usize,
}

/// What came of a run.
#[derive(Debug)]
pub(crate) struct Outcome {
    /// Finish over bound of the measured nodes, ascending.
    pub(crate) over_bound: Vec<f64>,
    pub(crate) complete: usize,
    pub(crate) seeder_pieces: u64,
    pub(crate) pieces_received: u64,
    pub(crate) duplicates: u64,
    /// Control messages by kind, as in [`MESSAGE_NAMES`].
    pub(crate) messages: [u64; 7],
    pub(crate) control_bytes: u64,
    pub(crate) ended: Duration,
    pub(crate) events: u64,
    pub(crate) digest: String,
}

#[derive(Debug)]
pub(crate) struct Simulation {
    now: Time,
    hosts: Vec<Host>,
    members: Vec<Member>,
    /// Links planned between members, made when the later of the two joins.
    links: Vec<Vec<u32>>,
    queue: Queue,
    latency: Duration,
    check_every: u64,
    /// Live members, or members to come, that are not complete.
    unfinished: usize,
    history: History,
    conservation: Conservation,
    messages: [u64; 7],
    control_bytes: u64,
    pieces_received: u64,
    duplicates: u64,
}

impl Simulation {
    pub(crate) fn new(scenario: &Scenario, size: Size, options: &Options) -> anyhow::Result<Self> {
        let block_time = Duration::from_secs_f64(f64::from(PIECE_BYTES) / options.node_bytes_per_s);
        let seeder_rate = options.seeder_rate.unwrap_or(scenario.seeder_rate);
        let stage = Stage { size, block_time, seeder_rate };
        let mut rng = ChaCha8Rng::seed_from_u64(options.seed);
        let members = (scenario.plan)(&stage, &mut rng);
        let pieces = list(size.pieces)?;
        let mut links = vec![Vec::new(); members.len()];
        for (one, other) in graph::random_links(members.len(), options.neighbours, &mut rng) {
            links[one].push(u32::try_from(other)?);
            links[other].push(u32::try_from(one)?);
        }
        let hosts = members.iter().map(|member| {
            let held = match member.role {
                Role::Seeder => Bitfield::full(size.pieces),
                Role::Node => Bitfield::empty(size.pieces),
            };
            let exchange =
                Exchange::new(Config::default(), member.role, Arc::clone(&pieces), held, rng.random());
            let rate = options.node_bytes_per_s;
            Host::new(exchange, member.up * rate, member.down * rate)
        });
        let mut simulation = Self {
            now: Time::ZERO,
            hosts: hosts.collect(),
            unfinished: members.iter().filter(|member| member.role == Role::Node).count(),
            members,
            links,
            queue: Queue::default(),
            latency: block_time.mul_f64(options.latency_block_times),
            check_every: options.check_every,
            history: History::new(),
            conservation: Conservation::default(),
            messages: [0; 7],
            control_bytes: 0,
            pieces_received: 0,
            duplicates: 0,
        };
        simulation.plan_members()?;
        Ok(simulation)
    }

    fn plan_members(&mut self) -> anyhow::Result<()> {
        for (at, member) in self.members.iter().enumerate() {
            let host = u32::try_from(at)?;
            self.queue.plan(Time::ZERO + member.joins, Planned::Join(host));
            if let Death::At(dies) = member.dies {
                self.queue.plan(Time::ZERO + dies, Planned::Die(host));
            }
        }
        Ok(())
    }

    /// Runs until every live node is complete.
    pub(crate) fn run(mut self) -> anyhow::Result<Outcome> {
        let longest = self.members.iter().map(|member| member.joins + member.bound).max();
        let deadline = Time::ZERO + longest.context("a plan without members")? * BOUNDS_MAX;
        while self.unfinished > 0 {
            let Some((at, next)) = self.queue.pop() else {
                bail!("nothing is left to happen: {}", liveness::lacking(&self.hosts));
            };
            if at > deadline {
                bail!("stuck after {:?}: {}", self.now.since(Time::ZERO), liveness::lacking(&self.hosts));
            }
            self.now = at;
            self.step(next).with_context(|| format!("after {:?}", self.now.since(Time::ZERO)))?;
        }
        for host in self.hosts.iter().filter(|host| host.alive) {
            host.exchange.assert_invariants();
        }
        Ok(self.outcome())
    }

    fn step(&mut self, next: Next) -> anyhow::Result<()> {
        match next {
            Next::Mail(mail) => self.receive_mail(mail),
            Next::Planned(Planned::Left(host)) => self.quantum_left(host),
            Next::Planned(Planned::Delivered(host)) => self.quantum_delivered(host),
            Next::Planned(Planned::Timer(host)) => self.wake(host),
            Next::Planned(Planned::Join(host)) => self.join(host),
            Next::Planned(Planned::Die(host)) => {
                self.die(host);
                Ok(())
            }
            Next::Planned(Planned::Lost(host, peer)) => self.lose(host, peer),
        }
    }

    fn receive_mail(&mut self, mail: Mail) -> anyhow::Result<()> {
        let host = &mut self.hosts[mail.to as usize];
        if !host.alive {
            return Ok(());
        }
        let (tag, subject) = subject(&mail.message);
        self.history.record(self.now, mail.to, Kind::Mail, mail.peer.0, subject << 3 | tag);
        host.exchange.handle_message(self.now, mail.peer, mail.message);
        self.settle(mail.to)
    }

    fn quantum_left(&mut self, at: u32) -> anyhow::Result<()> {
        let host = &mut self.hosts[at as usize];
        let Some(transfer) = host.uplink.finish().filter(|_| host.alive) else { return Ok(()) };
        let connection = *host.connection(transfer.peer);
        if connection.open {
            host.connection(transfer.peer).in_flight += 1;
            self.conservation.quantum_left(connection.host, connection.back, transfer.piece);
            let arrival = Arrival { peer: connection.back, piece: transfer.piece, quantum: transfer.gone };
            let reached = self.now + self.latency;
            if let Some(through) = self.hosts[connection.host as usize].downlink.push(reached, arrival) {
                self.queue.plan(through, Planned::Delivered(connection.host));
            }
            if transfer.gone == QUANTA_PER_PIECE {
                self.history.record(self.now, at, Kind::Sent, transfer.peer.0, transfer.piece.get());
                let host = &mut self.hosts[at as usize];
                host.pieces_sent += 1;
                host.exchange.handle_sent(self.now, transfer.peer, transfer.piece);
                self.settle(at)?;
            }
        }
        self.serve(at);
        Ok(())
    }

    fn quantum_delivered(&mut self, at: u32) -> anyhow::Result<()> {
        let host = &mut self.hosts[at as usize];
        let Some((arrival, next)) = host.downlink.deliver() else { return Ok(()) };
        if let Some(through) = next {
            self.queue.plan(through, Planned::Delivered(at));
        }
        let Arrival { peer, piece, quantum } = arrival;
        self.conservation.quantum_delivered(at, peer, piece, quantum)?;
        let connection = *host.connection(peer);
        if !host.alive || !connection.open {
            return Ok(());
        }
        let sender = &mut self.hosts[connection.host as usize];
        sender.connection(connection.back).in_flight -= 1;
        if sender.alive {
            self.serve(connection.host);
        }
        if quantum == QUANTA_PER_PIECE {
            self.receive_piece(at, peer, piece)?;
        } else if quantum.is_multiple_of(QUANTA_PER_PROGRESS) {
            self.hosts[at as usize].exchange.handle_progress(self.now, peer, piece);
        }
        Ok(())
    }

    /// Verifying and storing are free.
    fn receive_piece(&mut self, at: u32, peer: PeerKey, piece: PieceIndex) -> anyhow::Result<()> {
        self.history.record(self.now, at, Kind::Received, peer.0, piece.get());
        self.pieces_received += 1;
        let exchange = &mut self.hosts[at as usize].exchange;
        match exchange.handle_received(self.now, peer, piece) {
            Receipt::Wanted => exchange.handle_stored(self.now, piece),
            Receipt::Duplicate => self.duplicates += 1,
            Receipt::Unrequested => bail!("host {at} never asked for {piece:?}"),
        }
        self.settle(at)
    }

    fn wake(&mut self, at: u32) -> anyhow::Result<()> {
        let host = &mut self.hosts[at as usize];
        if host.timer != Some(self.now) || !host.alive {
            return Ok(());
        }
        host.timer = None;
        if host.exchange.poll_timeout().is_some_and(|timeout| timeout <= self.now) {
            self.history.record(self.now, at, Kind::Timer, 0, 0);
            host.exchange.handle_timeout(self.now);
        }
        self.settle(at)
    }

    fn join(&mut self, at: u32) -> anyhow::Result<()> {
        self.history.record(self.now, at, Kind::Joined, 0, 0);
        self.hosts[at as usize].alive = true;
        self.hosts[at as usize].joined = self.now;
        for other in self.links[at as usize].clone() {
            if !self.hosts[other as usize].alive {
                continue;
            }
            let keys = [other, at].map(|host| self.hosts[host as usize].next_key());
            for (host, far, key, back) in [(other, at, keys[0], keys[1]), (at, other, keys[1], keys[0])] {
                let connection = Connection { host: far, back, open: true, in_flight: 0 };
                self.hosts[host as usize].connections.push(connection);
                self.hosts[host as usize].exchange.handle_connected(self.now, key);
                self.settle(host)?;
            }
        }
        Ok(())
    }

    /// The host stops in the middle of whatever it does.
    fn die(&mut self, at: u32) {
        let host = &mut self.hosts[at as usize];
        if !host.alive {
            return;
        }
        self.history.record(self.now, at, Kind::Died, 0, 0);
        host.alive = false;
        let unfinished = self.members[at as usize].role == Role::Node && host.finished.is_none();
        self.unfinished -= usize::from(unfinished);
        for connection in &host.connections {
            self.queue.plan(self.now + DETECTION, Planned::Lost(connection.host, connection.back));
        }
    }

    fn lose(&mut self, at: u32, peer: PeerKey) -> anyhow::Result<()> {
        let host = &mut self.hosts[at as usize];
        if !host.alive {
            return Ok(());
        }
        self.history.record(self.now, at, Kind::Lost, peer.0, 0);
        host.connection(peer).open = false;
        host.uplink.drop_peer(peer);
        host.exchange.handle_disconnected(self.now, peer);
        self.settle(at)?;
        self.serve(at);
        Ok(())
    }

    /// Does what a host's exchange asks, checks it, and plans its wake-up.
    fn settle(&mut self, at: u32) -> anyhow::Result<()> {
        let mut sends = false;
        while let Some(output) = self.hosts[at as usize].exchange.poll_output() {
            offers::check(at, &self.hosts[at as usize].exchange, &output)?;
            match output {
                Output::Send { peer, message } => self.post(at, peer, message),
                Output::SendPiece { peer, piece } => {
                    self.hosts[at as usize].uplink.push(peer, piece);
                    sends = true;
                }
                Output::Disconnect { .. } => unreachable!("the check of offers refused it"),
                Output::Event(event) => self.note(at, event),
            }
        }
        if sends {
            self.serve(at);
        }
        let host = &mut self.hosts[at as usize];
        if self.history.events().is_multiple_of(self.check_every) {
            host.exchange.assert_invariants();
        }
        if let Some(timeout) = host.exchange.poll_timeout().map(|timeout| timeout.max(self.now))
            && host.timer.is_none_or(|timer| timeout < timer)
        {
            host.timer = Some(timeout);
            self.queue.plan(timeout, Planned::Timer(at));
        }
        Ok(())
    }

    fn post(&mut self, from: u32, peer: PeerKey, message: Message) {
        let connection = *self.hosts[from as usize].connection(peer);
        if !connection.open {
            return;
        }
        let (tag, _) = subject(&message);
        self.messages[tag as usize] += 1;
        self.control_bytes += wire_bytes(&message);
        let mail = Mail { to: connection.host, peer: connection.back, message };
        self.queue.post(self.now + self.latency, mail);
    }

    fn note(&mut self, at: u32, event: Event) {
        match event {
            Event::Held { piece, from } => {
                self.history.record(self.now, at, Kind::Held, from.0, piece.get());
            }
            Event::Complete => {
                self.hosts[at as usize].finished = Some(self.now);
                self.unfinished -= 1;
            }
            Event::Replicated if self.members[at as usize].dies == Death::OnceReplicated => {
                self.queue.plan(self.now, Planned::Die(at));
            }
            Event::Replicated | Event::Corrupt { .. } | Event::Duplicate { .. } | Event::Sent { .. } => {}
        }
    }

    fn serve(&mut self, at: u32) {
        let Host { uplink, connections, .. } = &mut self.hosts[at as usize];
        let is_open = |peer: PeerKey| connections[peer.0 as usize].in_flight < WINDOW_QUANTA;
        if let Some(left) = uplink.serve(self.now, is_open) {
            self.queue.plan(left, Planned::Left(at));
        }
    }

    fn outcome(self) -> Outcome {
        let members = || self.members.iter().zip(&self.hosts);
        let mut over_bound: Vec<f64> = members()
            .filter(|(member, _)| member.measured)
            .filter_map(|(member, host)| {
                Some(host.finished?.since(host.joined).as_secs_f64() / member.bound.as_secs_f64())
            })
            .collect();
        over_bound.sort_by(f64::total_cmp);
        let seeders = members().filter(|(member, _)| member.role == Role::Seeder);
        let nodes = members().filter(|(member, _)| member.role == Role::Node);
        Outcome {
            over_bound,
            complete: nodes.filter(|(_, host)| host.exchange.is_complete()).count(),
            seeder_pieces: seeders.map(|(_, host)| host.pieces_sent).sum(),
            pieces_received: self.pieces_received,
            duplicates: self.duplicates,
            messages: self.messages,
            control_bytes: self.control_bytes,
            ended: self.now.since(Time::ZERO),
            events: self.history.events(),
            digest: self.history.digest(),
        }
    }
}

fn list(pieces: usize) -> anyhow::Result<Arc<PieceList>> {
    let piece = |at: usize| Piece { cid: Cid::of(&at.to_le_bytes()), raw_bytes: PIECE_BYTES };
    Ok(Arc::new(PieceList::new((0..pieces).map(piece).collect())?))
}

/// A message's place in [`MESSAGE_NAMES`] and the piece it is about, or zero.
fn subject(message: &Message) -> (u32, u32) {
    match message {
        Message::Announce(_) => (0, 0),
        Message::Have(pieces) => (1, pieces.first().map_or(0, |piece| piece.get())),
        Message::Grant(named) => (2, named.map_or(0, PieceIndex::get)),
        Message::Request(piece) => (3, piece.get()),
        Message::Decline(why) => (4, *why as u32),
        Message::Cancel(piece) => (5, piece.get()),
        Message::Withdraw(piece) => (6, piece.get()),
    }
}

/// About what the message takes on the wire.
fn wire_bytes(message: &Message) -> u64 {
    FRAME_BYTES
        + match message {
            Message::Announce(Announcement::Held(held)) => held.len().div_ceil(8) as u64,
            Message::Announce(Announcement::Selective { held, .. }) => 2 * held.len().div_ceil(8) as u64,
            Message::Have(pieces) => INDEX_BYTES * pieces.len() as u64,
            Message::Announce(Announcement::Seeder) | Message::Grant(None) | Message::Decline(_) => 1,
            Message::Grant(Some(_)) | Message::Request(_) | Message::Cancel(_) | Message::Withdraw(_) => {
                INDEX_BYTES
            }
        }
}
