//! One simulated machine: a trader, its links, its connections. It holds no bytes.

use std::time::Duration;

use anyhow::{bail, ensure};
use shoal_proto::exchange::{Event as Said, Message, Output, PeerKey, Receipt, Role};
use shoal_proto::image::PieceIndex;
use shoal_proto::time::Time;
use shoal_proto::zone::Distance;

use crate::checks::{conservation, offers};
use crate::history::{History, Kind};
use crate::link::{Gate, Quantum, Server, Uplink};
use crate::network::{Network, Release};
use crate::queue::{Event, Travel, What};
use crate::scenarios::{Death, Member};
use crate::tally::{Tally, subject, wire_bytes};
use crate::trace::Trace;
use crate::trader::Trader;

/// Neighbours of a host that died learn of it this much later.
pub(crate) const DETECTION: Duration = Duration::from_secs(1);

#[derive(Debug)]
pub(crate) struct Host<T> {
    pub(crate) at: u32,
    pub(crate) member: Member,
    pub(crate) trader: T,
    uplink: Uplink,
    downlink: Server,
    /// By the key under which this host knows the peer.
    pub(crate) connections: Vec<Connection>,
    pub(crate) alive: bool,
    pub(crate) dead: bool,
    pub(crate) joined: Time,
    /// When it held everything, or had said of the rest that it is lost where that is the plan.
    pub(crate) finished: Option<Time>,
    some_is_lost: bool,
    /// Earliest wake-up planned, to plan no second one.
    timer: Option<Time>,
    /// When the processor and the disk are through with what they have.
    verifies_until: Time,
    stores_until: Time,
    /// Pieces that left through the uplink.
    pub(crate) pieces_sent: u64,
    pub(crate) history: History,
    pub(crate) trace: Option<Trace>,
    /// Events planned so far.
    planned: u32,
    check_every: u64,
}

#[derive(Clone, Copy, Debug)]
pub(crate) struct Connection {
    pub(crate) host: u32,
    /// What the other host calls this one.
    pub(crate) back: PeerKey,
    pub(crate) state: State,
    /// Quanta past the gate of this host's uplink and not yet confirmed.
    in_flight: u8,
    /// No message overtakes the one before.
    last_mail: Time,
    pub(crate) quanta: conservation::Quanta,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum State {
    Planned,
    Open,
    Gone,
}

/// Where a host stands while something happens to it.
pub(crate) struct Scene<'a> {
    pub(crate) now: Time,
    pub(crate) network: &'a Network,
    pub(crate) tally: &'a mut Tally,
    /// What follows from it.
    pub(crate) out: &'a mut Vec<Event>,
}

impl Connection {
    pub(crate) fn new(host: u32, back: PeerKey) -> Self {
        Self {
            host,
            back,
            state: State::Planned,
            in_flight: 0,
            last_mail: Time::ZERO,
            quanta: conservation::Quanta::default(),
        }
    }
}

impl<T: Trader> Host<T> {
    pub(crate) fn new(at: u32, member: Member, trader: T, rate: f64, network: &Network) -> Self {
        Self {
            at,
            uplink: Uplink::new(member.up * rate, network.physics.device_max),
            downlink: Server::new(member.down * rate),
            member,
            trader,
            connections: Vec::new(),
            alive: false,
            dead: false,
            joined: Time::ZERO,
            finished: None,
            some_is_lost: false,
            timer: None,
            verifies_until: Time::ZERO,
            stores_until: Time::ZERO,
            pieces_sent: 0,
            history: History::default(),
            trace: None,
            planned: 0,
            check_every: 1,
        }
    }

    pub(crate) fn watch(&mut self, check_every: u64, trace: bool, some_is_lost: bool) {
        self.some_is_lost = some_is_lost;
        self.check_every = check_every;
        self.trace = trace.then(Trace::default);
    }

    /// Whether the run waits for it. Nobody owes a liar anything.
    pub(crate) fn is_awaited(&self) -> bool {
        self.member.role == Role::Node && self.finished.is_none() && !self.dead && !self.member.liar
    }

    /// One thing happens. What follows is in `scene.out`.
    pub(crate) fn step(&mut self, scene: &mut Scene<'_>, what: What) -> anyhow::Result<()> {
        if matches!(what, What::Join) {
            self.join(scene);
            return Ok(());
        }
        if !self.alive {
            if let What::Arrives(travel) = what {
                self.connections[travel.quantum.peer.0 as usize].quanta.lost += 1;
            }
            // It may have died before what was planned with it.
            return Ok(());
        }
        match what {
            What::Mail(peer, letter) => self.receive_mail(scene, peer, letter.into()),
            What::Arrives(travel) => return self.receive_quantum(scene, travel),
            What::Received(peer, piece, corrupt) => self.receive_piece(scene, peer, piece, corrupt)?,
            What::Confirmed(peer, quanta, piece) => self.confirmed(scene, peer, quanta, piece),
            What::Left => self.quantum_left(scene),
            What::Stored(piece, corrupt) => self.stored(scene, piece, corrupt),
            What::Timer => self.wake(scene),
            What::Die => return self.die(scene),
            What::Opens(peer) => self.open(scene, peer),
            What::Lost(peer) => self.lose(scene, peer),
            What::Join => {}
        }
        self.settle(scene)?;
        self.serve(scene)
    }

    fn plan(&mut self, scene: &mut Scene<'_>, at: Time, to: u32, what: What) {
        let order = u64::from(self.at) << 32 | u64::from(self.planned);
        self.planned += 1;
        scene.out.push(Event { at, to, order, what });
    }

    fn record(&mut self, scene: &Scene<'_>, kind: Kind, peer: PeerKey, subject: u32) {
        self.history.record(scene.now, kind, peer.0, subject);
    }

    fn note(&mut self, now: Time, line: impl FnOnce(&[Connection]) -> String) {
        if let Some(trace) = &mut self.trace {
            trace.say(now, line(&self.connections));
        }
    }

    fn receive_mail(&mut self, scene: &mut Scene<'_>, peer: PeerKey, message: Message) {
        if self.connections[peer.0 as usize].state != State::Open {
            return;
        }
        let (tag, about) = subject(&message);
        self.record(scene, Kind::Mail, peer, about << 4 | tag);
        self.note(scene.now, |peers| format!("{message:?} from host {}", peers[peer.0 as usize].host));
        self.verifies_until = self.verifies_until.max(scene.now) + scene.network.physics.message;
        self.trader.handle_message(scene.now, peer, message);
    }

    fn quantum_left(&mut self, scene: &mut Scene<'_>) {
        let Some((quantum, next)) = self.uplink.finish(scene.now) else { return };
        if let Some(next) = next {
            self.plan(scene, next, self.at, What::Left);
        }
        let connection = &mut self.connections[quantum.peer.0 as usize];
        if connection.state != State::Open {
            return;
        }
        connection.quanta.left += 1;
        let travel = Travel {
            from: self.at,
            to: connection.host,
            quantum: Quantum { peer: connection.back, ..quantum },
            hops: 0,
            corrupt: self.member.liar,
        };
        let (to, after) = scene.network.next_hop(&travel);
        self.plan(scene, scene.now + after, to, What::Arrives(travel));
        if quantum.is_last() {
            self.record(scene, Kind::Sent, quantum.peer, quantum.piece.get());
            self.note(scene.now, |peers| {
                format!("sent {} to host {}", quantum.piece, peers[quantum.peer.0 as usize].host)
            });
            self.pieces_sent += 1;
            if scene.network.physics.release == Release::Written {
                self.trader.handle_sent(scene.now, quantum.peer, quantum.piece);
            }
            if let Death::AfterCopies(copies) = self.member.dies
                && self.pieces_sent as f64 >= copies * self.trader.held().len() as f64
            {
                self.plan(scene, scene.now, self.at, What::Die);
            }
        }
    }

    fn confirmed(&mut self, scene: &Scene<'_>, peer: PeerKey, quanta: u8, piece: Option<PieceIndex>) {
        let connection = &mut self.connections[peer.0 as usize];
        connection.in_flight -= quanta;
        if let (Some(piece), State::Open, Release::Arrived) =
            (piece, connection.state, scene.network.physics.release)
        {
            self.trader.handle_sent(scene.now, peer, piece);
        }
    }

    /// A quantum is at the downlink: it will be through in its turn, and the sender hears of it.
    fn receive_quantum(&mut self, scene: &mut Scene<'_>, travel: Travel) -> anyhow::Result<()> {
        let Quantum { peer, piece, .. } = travel.quantum;
        let connection = &mut self.connections[peer.0 as usize];
        if connection.state != State::Open {
            connection.quanta.lost += 1;
            return Ok(());
        }
        connection.quanta.receive(self.at, travel.quantum)?;
        let (host, back) = (connection.host, connection.back);
        let through = self.downlink.serve(scene.now);
        let confirmed = scene.network.physics.quanta_per_confirmation();
        let confirms = travel.quantum.confirms(confirmed);
        if travel.quantum.is_last() {
            self.plan(scene, through, self.at, What::Received(peer, piece, travel.corrupt));
        } else if confirms {
            self.trader.handle_progress(scene.now, peer, piece);
            self.settle(scene)?;
        }
        if confirms {
            let heard = through + scene.network.physics.latency;
            let whole = travel.quantum.is_last().then_some(piece);
            self.plan(scene, heard, host, What::Confirmed(back, confirmed, whole));
        }
        Ok(())
    }

    fn receive_piece(
        &mut self,
        scene: &mut Scene<'_>,
        peer: PeerKey,
        piece: PieceIndex,
        corrupt: bool,
    ) -> anyhow::Result<()> {
        if self.connections[peer.0 as usize].state != State::Open {
            return Ok(());
        }
        self.record(scene, Kind::Received, peer, piece.get());
        self.note(scene.now, |peers| format!("received {piece} from host {}", peers[peer.0 as usize].host));
        scene.tally.pieces_received += 1;
        match self.trader.handle_received(scene.now, peer, piece) {
            Receipt::Wanted => {
                let physics = &scene.network.physics;
                self.verifies_until = self.verifies_until.max(scene.now) + physics.verify;
                self.stores_until = self.stores_until.max(self.verifies_until) + physics.store;
                if self.stores_until == scene.now {
                    self.stored(scene, piece, corrupt);
                } else {
                    self.plan(scene, self.stores_until, self.at, What::Stored(piece, corrupt));
                }
            }
            Receipt::Duplicate => scene.tally.duplicates += 1,
            Receipt::Unrequested => bail!("host {} never asked for {piece}", self.at),
        }
        Ok(())
    }

    fn stored(&mut self, scene: &mut Scene<'_>, piece: PieceIndex, corrupt: bool) {
        if corrupt {
            scene.tally.corrupt += 1;
            self.trader.handle_corrupt(scene.now, piece);
        } else {
            self.trader.handle_stored(scene.now, piece);
        }
    }

    fn wake(&mut self, scene: &mut Scene<'_>) {
        if self.timer != Some(scene.now) {
            return;
        }
        self.timer = None;
        if self.trader.poll_timeout().is_some_and(|timeout| timeout <= scene.now) {
            self.record(scene, Kind::Timer, PeerKey(0), 0);
            self.trader.handle_timeout(scene.now);
        }
    }

    fn join(&mut self, scene: &mut Scene<'_>) {
        self.record(scene, Kind::Joined, PeerKey(0), 0);
        self.note(scene.now, |_| "joins".into());
        self.alive = true;
        self.joined = scene.now;
        if self.trader.is_complete() {
            self.finished = Some(scene.now);
        }
    }

    fn open(&mut self, scene: &mut Scene<'_>, peer: PeerKey) {
        let connection = &mut self.connections[peer.0 as usize];
        if connection.state == State::Planned {
            connection.state = State::Open;
            self.record(scene, Kind::Opened, peer, 0);
            let distance = scene.network.distance(self.at, self.connections[peer.0 as usize].host);
            self.trader.handle_connected(scene.now, peer, Distance::new(distance));
        }
    }

    /// The host stops in the middle of whatever it does.
    fn die(&mut self, scene: &mut Scene<'_>) -> anyhow::Result<()> {
        self.record(scene, Kind::Died, PeerKey(0), 0);
        self.note(scene.now, |_| "dies".into());
        ensure!(DETECTION >= scene.network.hop, "a latency of more than {DETECTION:?}");
        self.alive = false;
        self.dead = true;
        for peer in 0..self.connections.len() {
            let Connection { host, back, .. } = self.connections[peer];
            self.plan(scene, scene.now + DETECTION, host, What::Lost(back));
        }
        Ok(())
    }

    fn lose(&mut self, scene: &mut Scene<'_>, peer: PeerKey) {
        let connection = &mut self.connections[peer.0 as usize];
        let was = std::mem::replace(&mut connection.state, State::Gone);
        if was == State::Open {
            self.record(scene, Kind::Lost, peer, 0);
            self.note(scene.now, |peers| format!("loses host {}", peers[peer.0 as usize].host));
            self.uplink.drop_peer(peer);
            self.trader.handle_disconnected(scene.now, peer);
        }
    }

    /// Does what the trader asks, checks it, and plans its wake-up.
    fn settle(&mut self, scene: &mut Scene<'_>) -> anyhow::Result<()> {
        while let Some(output) = self.trader.poll_output() {
            offers::check(self.at, &self.trader, &output)?;
            match output {
                Output::Send { peer, message } => self.post(scene, peer, message),
                Output::SendPiece { peer, piece } => self.uplink.push(peer, piece),
                Output::Disconnect { peer, reason } => {
                    let Connection { host, back, .. } = self.connections[peer.0 as usize];
                    ensure!(
                        scene.tally.liars[host as usize],
                        "host {} blames the honest host {host}: {reason}",
                        self.at
                    );
                    self.note(scene.now, |_| format!("shuns host {host}, which {reason}"));
                    self.connections[peer.0 as usize].state = State::Gone;
                    self.uplink.drop_peer(peer);
                    self.record(scene, Kind::Lost, peer, 1);
                    self.plan(scene, scene.now + scene.network.physics.latency, host, What::Lost(back));
                }
                Output::Event(said) => self.hear(scene, &said),
            }
        }
        if self.history.events.is_multiple_of(self.check_every) {
            self.trader.assert_invariants();
        }
        if let Some(timeout) = self.trader.poll_timeout().map(|timeout| timeout.max(scene.now))
            && self.timer.is_none_or(|timer| timeout < timer)
        {
            self.timer = Some(timeout);
            self.plan(scene, timeout, self.at, What::Timer);
        }
        Ok(())
    }

    fn post(&mut self, scene: &mut Scene<'_>, peer: PeerKey, message: Message) {
        if self.connections[peer.0 as usize].state != State::Open {
            return;
        }
        let (tag, _) = subject(&message);
        let bytes = wire_bytes(&message);
        self.note(scene.now, |peers| format!("{message:?} to host {}", peers[peer.0 as usize].host));
        scene.tally.messages[tag as usize] += 1;
        scene.tally.control_bytes += bytes;
        let physics = &scene.network.physics;
        let waits = self.uplink.charge(scene.now, bytes);
        let mut takes = physics.latency;
        if physics.jitter > 0.0 {
            // Any even spread will do: the low bits of a counter, stirred.
            let stirred =
                (u64::from(self.at) << 32 | u64::from(self.planned)).wrapping_mul(0x9E37_79B9_7F4A_7C15);
            takes += physics.latency.mul_f64(physics.jitter * (stirred >> 40) as f64 / (1u64 << 24) as f64);
        }
        let connection = &mut self.connections[peer.0 as usize];
        connection.last_mail = connection.last_mail.max(scene.now + waits + takes);
        let Connection { host, back, last_mail, .. } = *connection;
        self.plan(scene, last_mail, host, What::Mail(back, message.into()));
    }

    fn hear(&mut self, scene: &mut Scene<'_>, said: &Said) {
        self.note(scene.now, |_| format!("{said:?}"));
        match *said {
            Said::Held { piece, from } => {
                self.record(scene, Kind::Held, from, piece.get());
                scene.tally.held(scene.now);
            }
            Said::Complete => self.finished = Some(scene.now),
            Said::Unavailable { ref pieces } if self.some_is_lost => {
                let held = self.trader.held();
                let whole_truth = held.len() - held.count() == pieces.len();
                self.finished = whole_truth.then_some(scene.now);
            }
            Said::Replicated if self.member.dies == Death::OnceReplicated => {
                self.plan(scene, scene.now, self.at, What::Die);
            }
            _ => {}
        }
    }

    /// Fills the uplink's device.
    fn serve(&mut self, scene: &mut Scene<'_>) -> anyhow::Result<()> {
        loop {
            let (connections, trader) = (&self.connections, &self.trader);
            let window = scene.network.physics.window;
            let gate = |next: Quantum| {
                if connections[next.peer.0 as usize].in_flight >= window {
                    Gate::Closed
                } else if next.number == 1 && !trader.is_send_wanted(next.peer, next.piece) {
                    Gate::Cancelled
                } else {
                    Gate::Open
                }
            };
            match self.uplink.admit(gate) {
                None => return Ok(()),
                Some(Ok(quantum)) => {
                    self.connections[quantum.peer.0 as usize].in_flight += 1;
                    if let Some(left) = self.uplink.start(scene.now) {
                        self.plan(scene, left, self.at, What::Left);
                    }
                }
                Some(Err(cancelled)) => {
                    self.trader.handle_unsent(scene.now, cancelled.peer, cancelled.piece);
                    self.settle(scene)?;
                }
            }
        }
    }
}
