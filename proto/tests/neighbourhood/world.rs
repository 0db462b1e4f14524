//! Many neighbourhoods, one clock: a network of latencies alone.

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::time::Duration;

use rand::{Rng, SeedableRng};
use rand_chacha::ChaCha8Rng;
use shoal_proto::neighbourhood::{Config, Contact, Greeting, Neighbourhood, Output};
use shoal_proto::time::Time;
use shoal_proto::zone::Zone;

/// The host that is in every ticket.
pub(crate) const SEEDER: u32 = 0;
/// One-way latencies.
const LATENCY_MS: std::ops::Range<u64> = 5..50;
/// After which a dial that nobody answers is given up, and after which a silent connection is.
const DIAL_TIMEOUT: Duration = Duration::from_secs(10);
const SILENCE_MS: std::ops::Range<u64> = 1_000..20_000;

pub(crate) struct Host {
    pub(crate) side: Neighbourhood<u32, ()>,
    zone: Zone,
    pub(crate) is_alive: bool,
    pub(crate) is_dialable: bool,
    /// Hosts reach those of their own part only.
    pub(crate) part: u8,
    connections: BTreeMap<u32, u64>,
    wakes_at: Option<Time>,
    pub(crate) counts: Counts,
}

#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Counts {
    pub(crate) dials: u64,
    /// Frames of peer exchange sent, and peers named in them.
    pub(crate) frames: u64,
    pub(crate) told: u64,
    pub(crate) accepted: u64,
    pub(crate) connections_max: usize,
}

enum Event {
    Join {
        host: u32,
    },
    Wake {
        host: u32,
    },
    /// A dial reaches the host that it is for.
    Dial {
        from: u32,
        to: u32,
    },
    DialFailed {
        from: u32,
        to: u32,
    },
    Hear {
        connection: u64,
        at: u32,
        from: u32,
        frame: Frame,
    },
    Closed {
        connection: u64,
        at: u32,
        peer: u32,
    },
}

enum Frame {
    Hello,
    Told(Vec<Contact<u32, ()>>),
    Refused(Vec<Contact<u32, ()>>),
    Wanted,
}

pub(crate) struct World {
    pub(crate) now: Time,
    pub(crate) hosts: Vec<Host>,
    events: BTreeMap<(Time, u64), Event>,
    numbers: u64,
    rng: ChaCha8Rng,
}

impl World {
    /// A seeder and `nodes` hosts that are not there yet.
    pub(crate) fn new(nodes: u32, seed: u64, zone: impl Fn(u32) -> Zone) -> Self {
        let host = |host| Host {
            side: Neighbourhood::new(
                if host == SEEDER { Config::seeder() } else { Config::node() },
                host,
                zone(host),
                vec![SEEDER],
                seed << 32 | u64::from(host),
            ),
            zone: zone(host),
            is_alive: false,
            is_dialable: true,
            part: 0,
            connections: BTreeMap::new(),
            wakes_at: None,
            counts: Counts::default(),
        };
        let mut world = Self {
            now: Time::ZERO,
            hosts: (0..=nodes).map(host).collect(),
            events: BTreeMap::new(),
            numbers: 0,
            rng: ChaCha8Rng::seed_from_u64(seed),
        };
        world.schedule(Duration::ZERO, Event::Join { host: SEEDER });
        world
    }

    /// The nodes join one after the other, within `time`.
    pub(crate) fn join_all(&mut self, time: Duration) {
        let every = time / self.nodes().end;
        for host in self.nodes() {
            self.schedule(every * host, Event::Join { host });
        }
    }

    pub(crate) fn nodes(&self) -> std::ops::Range<u32> {
        1..u32::try_from(self.hosts.len()).unwrap()
    }

    pub(crate) fn living(&self) -> impl Iterator<Item = u32> {
        self.nodes().filter(|host| self.host(*host).is_alive)
    }

    pub(crate) fn host(&self, host: u32) -> &Host {
        &self.hosts[host as usize]
    }

    pub(crate) fn host_mut(&mut self, host: u32) -> &mut Host {
        &mut self.hosts[host as usize]
    }

    pub(crate) fn run_for(&mut self, time: Duration) {
        let end = self.now + time;
        while let Some(entry) = self.events.first_entry().filter(|entry| entry.key().0 <= end) {
            let ((now, _), event) = entry.remove_entry();
            self.now = now;
            self.handle(event);
        }
        self.now = end;
        self.hosts.iter().for_each(|host| host.side.assert_invariants());
    }

    /// The host is gone without a word.
    pub(crate) fn kill(&mut self, host: u32) {
        self.host_mut(host).is_alive = false;
        self.sever(host, |_, _| true);
    }

    /// The hosts of each part reach each other only, from now on; connections between parts fall silent.
    pub(crate) fn divide(&mut self, part: impl Fn(u32) -> u8) {
        for host in 0..self.hosts.len() {
            let host = u32::try_from(host).unwrap();
            self.host_mut(host).part = part(host);
        }
        for host in self.nodes() {
            self.sever(host, |one, other| one.part != other.part);
        }
    }

    fn sever(&mut self, host: u32, is_cut: impl Fn(&Host, &Host) -> bool) {
        let cut = |(peer, _): &(&u32, &u64)| is_cut(self.host(host), self.host(**peer));
        let cut: Vec<(u32, u64)> =
            self.host(host).connections.iter().filter(cut).map(|(peer, link)| (*peer, *link)).collect();
        for (peer, connection) in cut {
            for (at, peer) in [(host, peer), (peer, host)] {
                let silence = Duration::from_millis(self.rng.random_range(SILENCE_MS));
                self.schedule(silence, Event::Closed { connection, at, peer });
            }
        }
    }

    fn schedule(&mut self, after: Duration, event: Event) {
        self.numbers += 1;
        self.events.insert((self.now + after, self.numbers), event);
    }

    fn latency(&mut self) -> Duration {
        Duration::from_millis(self.rng.random_range(LATENCY_MS))
    }

    fn handle(&mut self, event: Event) {
        let now = self.now;
        match event {
            Event::Join { host } => {
                self.host_mut(host).is_alive = true;
                self.host_mut(host).side.handle_timeout(now);
                self.drain(host);
            }
            Event::Wake { host } => {
                if self.host(host).is_alive && self.host(host).wakes_at == Some(now) {
                    self.host_mut(host).wakes_at = None;
                    self.host_mut(host).side.handle_timeout(now);
                    self.drain(host);
                }
            }
            Event::Dial { from, to } => self.connect(from, to),
            Event::DialFailed { from, .. } | Event::Closed { at: from, .. } if !self.host(from).is_alive => {}
            Event::DialFailed { from, to } => {
                self.host_mut(from).side.handle_dial_failed(now, to);
                self.drain(from);
            }
            Event::Hear { connection, at, from, frame } => {
                if self.host(at).is_alive && self.host(at).connections.get(&from) == Some(&connection) {
                    self.hear(at, from, frame);
                    self.drain(at);
                }
            }
            Event::Closed { connection, at, peer } => {
                if self.host(at).connections.get(&peer) == Some(&connection) {
                    self.host_mut(at).connections.remove(&peer);
                    self.host_mut(at).side.handle_disconnected(now, peer);
                    self.drain(at);
                }
            }
        }
    }

    fn connect(&mut self, from: u32, to: u32) {
        let (dialer, target) = (self.host(from), self.host(to));
        let is_cut = !dialer.is_alive || !target.is_alive || dialer.part != target.part;
        if is_cut || dialer.connections.contains_key(&to) || target.connections.contains_key(&from) {
            // Either of them learns of the other connection, or of none.
            return self.schedule(DIAL_TIMEOUT, Event::DialFailed { from, to });
        }
        self.numbers += 1;
        let connection = self.numbers;
        for (at, peer) in [(from, to), (to, from)] {
            let now = self.now;
            let host = self.host_mut(at);
            host.connections.insert(peer, connection);
            host.counts.accepted += u64::from(at == to);
            host.counts.connections_max = host.counts.connections_max.max(host.connections.len());
            host.side.handle_connected(now, peer, at == from);
        }
        self.say(from, to, Frame::Hello);
        self.say(to, from, Frame::Hello);
        self.drain(from);
        self.drain(to);
    }

    fn hear(&mut self, at: u32, from: u32, frame: Frame) {
        let now = self.now;
        let zone = self.host(from).zone.clone();
        let side = &mut self.host_mut(at).side;
        match frame {
            Frame::Hello => {
                // It says that it can be dialed, and does not know better.
                let greeting = Greeting { addresses: vec![()], zone, seeder: from == SEEDER };
                side.handle_hello(now, from, greeting);
            }
            Frame::Told(peers) => side.handle_told(now, peers),
            Frame::Refused(peers) => side.handle_refused(now, from, peers),
            Frame::Wanted => side.handle_peers_wanted(now, from),
        }
    }

    fn say(&mut self, from: u32, to: u32, frame: Frame) {
        let Some(connection) = self.host(from).connections.get(&to).copied() else { return };
        let counts = &mut self.host_mut(from).counts;
        if let Frame::Told(peers) | Frame::Refused(peers) = &frame {
            counts.frames += 1;
            counts.told += peers.len() as u64;
        }
        // Slower than any latency is to make: a hello is never overtaken.
        let after = Duration::from_millis(if matches!(frame, Frame::Hello) { 5 } else { 50 });
        self.schedule(after, Event::Hear { connection, at: to, from, frame });
    }

    fn drain(&mut self, host: u32) {
        while let Some(output) = self.host_mut(host).side.poll_output() {
            match output {
                Output::Dial { peer, .. } => self.dial(host, peer),
                Output::Tell { to, peers } => self.say(host, to, Frame::Told(peers)),
                Output::Refuse { peer, peers } => self.say(host, peer, Frame::Refused(peers)),
                Output::Ask { peer } => self.say(host, peer, Frame::Wanted),
                Output::Disconnect { peer, .. } => {
                    if let Some(connection) = self.host_mut(host).connections.remove(&peer) {
                        let after = self.latency();
                        self.schedule(after, Event::Closed { connection, at: peer, peer: host });
                    }
                }
            }
        }
        let due = self.host(host).side.poll_timeout();
        if let Some(due) = due.filter(|due| self.host(host).wakes_at.is_none_or(|at| *due < at)) {
            let due = due.max(self.now);
            self.host_mut(host).wakes_at = Some(due);
            self.schedule(due - self.now, Event::Wake { host });
        }
    }

    fn dial(&mut self, from: u32, to: u32) {
        self.host_mut(from).counts.dials += 1;
        let (dialer, target) = (self.host(from), self.host(to));
        let answers = target.is_alive && target.is_dialable && dialer.part == target.part;
        if answers {
            let after = self.latency();
            self.schedule(after, Event::Dial { from, to });
        } else {
            self.schedule(DIAL_TIMEOUT, Event::DialFailed { from, to });
        }
    }

    /// The nodes that a living node is connected to, both ends agreeing.
    pub(crate) fn neighbours(&self, host: u32) -> Vec<u32> {
        let is_mutual = |peer: &u32| {
            let other = self.host(*peer);
            *peer != SEEDER && other.is_alive && other.side.neighbours().any(|back| back == host)
        };
        self.host(host).side.neighbours().filter(is_mutual).collect()
    }

    /// The nodes reached from the first living one, without the seeder.
    pub(crate) fn reached(&self) -> usize {
        let start = self.living().next().unwrap();
        let mut seen = BTreeSet::from([start]);
        let mut next = VecDeque::from([start]);
        while let Some(host) = next.pop_front() {
            next.extend(self.neighbours(host).into_iter().filter(|peer| seen.insert(*peer)));
        }
        seen.len()
    }
}
