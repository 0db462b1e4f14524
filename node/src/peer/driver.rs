//! The one loop that drives every exchange with tokio and libp2p.
//!
//! "One input, then drain the outputs": every input of an exchange (a frame, a piece, a verdict, a
//! neighbour that came or went, time) is followed by all its outputs, which are carried out at once. The loop never waits for a
//! disk, a socket or another task: what it hands on goes into queues that are bounded and sized not to fill.

mod fleet;
mod links;
mod members;

use std::collections::{BTreeMap, HashMap};
use std::io;
use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use futures::StreamExt;
use libp2p::core::ConnectedPoint;
use libp2p::multiaddr::Protocol;
use libp2p::swarm::SwarmEvent;
use libp2p::{Multiaddr, PeerId};
use rand::Rng;
use shoal_proto::exchange::{Bitfield, Event, Fault, Message, Output, PeerKey, Receipt, Role};
use shoal_proto::fleet::{Orders, Report};
use shoal_proto::image::PieceIndex;
use shoal_proto::members::Members;
use shoal_proto::neighbourhood::Reason;
use shoal_proto::release::Release;
use shoal_proto::signing::Signed;
use shoal_proto::time::Time;
use shoal_proto::wire::{Answer, Frame, Hello, PeerRole, Query};
use shoal_proto::zone::Zone;
use socket2::{Domain, Socket, Type};
use tokio::sync::{mpsc, oneshot, watch};
use tokio::time::Instant;

use crate::peer::bans::{Bans, Departed};
use crate::peer::discovery::Discovery;
use crate::peer::fleet::{Channels, Heard};
use crate::peer::limits::Pace;
use crate::peer::link::{FromLink, InflowBudget, Link, ReceivedPiece, Surroundings};
use crate::peer::roll::Roll;
use crate::peer::serve::Shelves;
use crate::peer::session::{Session, SessionError, Sessions};
use crate::peer::socket::Meters;
use crate::peer::trades::{TradeRequest, Trades};
use crate::peer::transport::{self, BehaviourEvent, Swarm, socket_address};
use crate::peer::verify::{Failure, FromVerifier, Job, Verifiers};
use crate::peer::{
    BlockSource, Directory, Error, FleetConfig, Listing, LookupError, Met, PeerConfig, Status, StoreOnly,
    TradeStatus, Traffic,
};
use crate::store::Store;

/// Messages of links, and of verifiers, that may wait for the driver.
const INPUTS_MAX: usize = 1024;
/// Inputs handled between two looks at the other sources.
const INPUTS_PER_TURN: usize = 64;
/// Silence after which a listener on every interface has told of them all.
const INTERFACES_QUIET: Duration = Duration::from_millis(50);
/// How long a listener may take to tell of its first address.
const LISTEN_MAX: Duration = Duration::from_secs(3);
/// How often neighbours are asked again which image is meant: they may have learnt it meanwhile.
const LOOKUP_INTERVAL: Duration = Duration::from_secs(2);
/// Missing pieces named in a status.
const WAITING_PIECES_MAX: usize = 3;

pub(super) type Accept = Box<dyn Fn(&Answer) -> Result<(), String> + Send>;

pub(super) enum Command {
    Lookup { query: Query, accept: Accept, reply: oneshot::Sender<Result<Answer, LookupError>> },
    Trade(Box<TradeRequest>),
    Status { reply: oneshot::Sender<Status> },
    Members { members: Signed<Members>, reply: oneshot::Sender<Result<(), Error>> },
    Release { release: Signed<Release>, reply: oneshot::Sender<Result<(), Error>> },
    Report { report: Box<Report>, is_news: bool },
    Orders { peer: PeerId, orders: Orders },
    OpenSession { peer: PeerId, reply: oneshot::Sender<Result<Session, SessionError>> },
    TakeSessions(mpsc::Sender<Session>),
}

/// What a driver tells of itself, as it changes.
pub(super) struct Outlets {
    pub(super) replicated: watch::Sender<bool>,
    pub(super) members: watch::Sender<Option<Signed<Members>>>,
    pub(super) release: watch::Sender<Option<Signed<Release>>>,
    pub(super) heard: watch::Sender<Heard>,
}

struct Lookup {
    query: Query,
    accept: Accept,
    reply: oneshot::Sender<Result<Answer, LookupError>>,
}

pub(super) struct Driver {
    swarm: Swarm,
    meters: Meters,
    role: PeerRole,
    listen: Vec<SocketAddr>,
    rack: Zone,
    directory: Arc<dyn Directory>,
    commands: mpsc::Receiver<Command>,
    replicated: watch::Sender<bool>,
    from_links: mpsc::Receiver<FromLink>,
    from_verifiers: mpsc::Receiver<FromVerifier>,
    around: Surroundings,
    verifiers: Verifiers,
    discovery: Discovery,
    links: BTreeMap<PeerKey, Link>,
    by_peer: BTreeMap<PeerId, PeerKey>,
    next_key: u32,
    roll: Roll,
    channels: Channels,
    reporting: fleet::Reporting,
    reports: Option<mpsc::Sender<(PeerId, Report)>>,
    lobby: members::Lobby,
    sessions: Sessions,
    bans: Bans,
    departed: Departed,
    trades: Trades,
    lookups: Vec<Lookup>,
    /// Peers without room for this one that may still answer a lookup.
    lingering: Vec<PeerKey>,
    traffic: Traffic,
    trouble: Option<String>,
    look_up_at: Time,
    origin: Instant,
}

impl Driver {
    pub(super) fn new(
        config: PeerConfig,
        store: Arc<Store>,
        source: Arc<dyn BlockSource>,
        directory: Arc<dyn Directory>,
        commands: mpsc::Receiver<Command>,
        outlets: Outlets,
    ) -> Result<Self, Error> {
        let Outlets { replicated, members, release, heard } = outlets;
        let meters = Meters::default();
        let swarm = transport::build(&config.key, &config.secret, &meters)?;
        let (to_driver, from_links) = mpsc::channel(INPUTS_MAX);
        let (verdicts, from_verifiers) = mpsc::channel(INPUTS_MAX);
        let (own, seed) = (*swarm.local_peer_id(), rand::rng().random());
        let FleetConfig { follow, known, reports } = config.fleet;
        let publisher = config.members.publisher.clone();
        Ok(Self {
            role: config.role,
            discovery: Discovery::new(config.role, own, config.rack.clone(), config.bootstrap, seed),
            listen: config.listen,
            rack: config.rack,
            directory,
            commands,
            replicated,
            from_links,
            from_verifiers,
            verifiers: Verifiers::start(&store, &verdicts),
            around: Surroundings {
                shelves: Shelves::new(source, store),
                inflow: InflowBudget::new(),
                limits: config.limits,
                up: Pace::limited(config.limits.up),
                down: Pace::limited(config.limits.down),
                sent_bytes: Arc::default(),
                driver: to_driver,
            },
            swarm,
            meters,
            links: BTreeMap::new(),
            by_peer: BTreeMap::new(),
            next_key: 0,
            roll: Roll::new(config.members, members),
            channels: Channels::new(publisher, follow, known, release),
            reporting: fleet::Reporting::new(heard),
            reports,
            lobby: members::Lobby::default(),
            sessions: Sessions::default(),
            bans: Bans::default(),
            departed: Departed::default(),
            trades: Trades::new(config.limits.up),
            lookups: Vec::new(),
            lingering: Vec::new(),
            traffic: Traffic::default(),
            trouble: None,
            look_up_at: Time::ZERO,
            origin: Instant::now(),
        })
    }

    /// Listens on every configured address; returns the addresses that the system gave.
    pub(super) async fn listen(&mut self) -> Result<Vec<SocketAddr>, Error> {
        let mut waiting = HashMap::new();
        for address in self.listen.clone() {
            let wanted = Multiaddr::from(address.ip()).with(Protocol::Tcp(address.port()));
            let failed = |reason: String| Error::Listen { address, reason };
            // The transport listens with SO_REUSEPORT, which would share a port that is in use without a word.
            probe(address).map_err(|error| failed(error.to_string()))?;
            let listener = self.swarm.listen_on(wanted).map_err(|error| failed(innermost(&error)))?;
            waiting.insert(listener, address);
        }
        let mut addresses: Vec<SocketAddr> = Vec::new();
        // A listener on every interface tells of one after the other: all are there when it falls silent.
        loop {
            let patience = if waiting.is_empty() { INTERFACES_QUIET } else { LISTEN_MAX };
            let event = match tokio::time::timeout(patience, self.swarm.select_next_some()).await {
                Ok(event) => event,
                Err(_) => match waiting.into_values().next() {
                    None => break,
                    Some(address) => {
                        return Err(Error::Listen {
                            address,
                            reason: "no interface has such an address".to_owned(),
                        });
                    }
                },
            };
            match event {
                SwarmEvent::NewListenAddr { listener_id, address } => {
                    waiting.remove(&listener_id);
                    addresses.extend(socket_address(&address));
                }
                SwarmEvent::ListenerClosed { listener_id, reason: Err(reason), .. } => {
                    if let Some(address) = waiting.remove(&listener_id) {
                        return Err(Error::Listen { address, reason: reason.to_string() });
                    }
                }
                _ => {}
            }
        }
        self.listen.clone_from(&addresses);
        Ok(addresses)
    }

    pub(super) async fn run(mut self) {
        loop {
            let deadline = self.next_timeout().map_or_else(far_future, |time| self.instant(time));
            tokio::select! {
                event = self.swarm.select_next_some() => self.handle_swarm(event),
                Some(message) = self.from_links.recv() => {
                    self.handle_link(message);
                    for _ in 1..INPUTS_PER_TURN {
                        let Ok(message) = self.from_links.try_recv() else { break };
                        self.handle_link(message);
                    }
                }
                Some(verdict) = self.from_verifiers.recv() => self.handle_verdict(verdict),
                command = self.commands.recv() => match command {
                    Some(command) => self.handle_command(command),
                    None => return,
                },
                () = tokio::time::sleep_until(deadline) => {}
            }
            self.handle_time();
        }
    }

    fn now(&self) -> Time {
        Time::ZERO + self.origin.elapsed()
    }

    fn instant(&self, time: Time) -> Instant {
        self.origin + (time - Time::ZERO)
    }

    fn next_timeout(&self) -> Option<Time> {
        let graph = self.discovery.graph.poll_timeout();
        let look_up = (!self.lookups.is_empty() && !self.links.is_empty()).then_some(self.look_up_at);
        let silent = self.links.values().filter_map(Link::confirmation_due).min();
        let (lobby, report) = (self.lobby.next_timeout(), self.reporting.next_timeout());
        [self.trades.next_timeout(), graph, look_up, silent, lobby, report].into_iter().flatten().min()
    }

    fn handle_time(&mut self) {
        let now = self.now();
        for number in self.trades.share_uplink(now) {
            self.drain(number);
        }
        for number in self.trades.numbers() {
            let Some(trade) = self.trades.get_mut(number) else { continue };
            if trade.exchange.poll_timeout().is_some_and(|due| due <= now) {
                trade.exchange.handle_timeout(now);
                self.drain(number);
            }
        }
        let silent = |link: &&Link| link.confirmation_due().is_some_and(|due| due <= now);
        let silent: Vec<PeerKey> = self.links.values().filter(silent).map(|link| link.key).collect();
        silent
            .into_iter()
            .for_each(|key| self.fault(key, "it takes pieces and never says that they arrived"));
        self.clear_lobby(now);
        if self.discovery.graph.poll_timeout().is_some_and(|due| due <= now) {
            self.discovery.graph.handle_timeout(now);
        }
        self.drain_graph();
        self.report_if_due();
        if self.lookups.is_empty() && !self.reporting.awaits_answer() {
            std::mem::take(&mut self.lingering)
                .into_iter()
                .for_each(|key| self.hang_up(key, Reason::Refused));
        }
        if self.look_up_at <= now {
            self.look_up_at = now + LOOKUP_INTERVAL;
            self.ask_all();
        }
    }

    /// Asks every neighbour what is to be looked up.
    fn ask_all(&mut self) {
        let queries: Vec<Query> = self.lookups.iter().map(|lookup| lookup.query.clone()).collect();
        let keys: Vec<PeerKey> = self.links.keys().copied().collect();
        for key in keys {
            queries.iter().for_each(|query| self.send(key, Frame::Query(query.clone())));
        }
    }

    fn handle_command(&mut self, command: Command) {
        match command {
            Command::Lookup { query, accept, reply } => {
                self.lookups.push(Lookup { query, accept, reply });
                // At once.
                self.look_up_at = Time::ZERO;
            }
            Command::Trade(request) => {
                self.start_trade(*request, Role::Node);
            }
            Command::Status { reply } => {
                // Whoever asked may have gone.
                let _ = reply.send(self.status());
            }
            Command::OpenSession { peer, reply } => {
                self.sessions.want(peer, reply);
                let link = self.by_peer.get(&peer).and_then(|key| self.links.get(key));
                if let Some(link) = link.filter(|link| link.hello.is_some()) {
                    self.swarm.behaviour_mut().streams.open_session(peer, link.connection);
                }
            }
            Command::TakeSessions(taker) => {
                self.sessions.take(taker);
                self.swarm.behaviour_mut().streams.take_sessions();
            }
            Command::Members { members, reply } => {
                let _ = reply.send(self.set_members(members).map_err(Error::Members));
            }
            Command::Release { release, reply } => {
                let _ = reply.send(self.set_release(release).map_err(Error::Release));
            }
            Command::Report { report, is_news } => self.set_report(*report, is_news),
            Command::Orders { peer, orders } => self.send_orders(peer, orders),
        }
    }

    fn status(&self) -> Status {
        let name = |key: &PeerKey| self.links.get(key).map(|link| link.peer);
        let trades = self.trades.iter().map(|(number, trade)| TradeStatus {
            list: trade.list.name(),
            pieces: trade.list.len(),
            held: trade.exchange.held().count(),
            unwanted: trade.exchange.unwanted(),
            neighbours: self.links.values().filter(|link| link.trades(number)).count(),
            waiting: trade
                .exchange
                .waiting_for(WAITING_PIECES_MAX)
                .into_iter()
                .map(|(piece, holders)| (piece, holders.iter().filter_map(name).collect()))
                .collect(),
        });
        Status {
            neighbours: self.links.len(),
            seeders: self.links.values().filter(|link| link.is_seeder()).count(),
            traffic: Traffic { sent_bytes: self.around.sent_bytes.load(Ordering::Relaxed), ..self.traffic },
            trades: trades.collect(),
            trouble: self.trouble.clone(),
            banned: self.bans.list(self.now()),
            peers: self.links.values().map(met).collect(),
            unapproved: self.roll.waiting(self.now()),
            members: self.roll.number(),
        }
    }

    /// Starts a trade, tells every neighbour, and connects those that trade the list already.
    fn start_trade(&mut self, request: TradeRequest, role: Role) -> u32 {
        let list = request.listing.list.clone();
        let known = self.trades.find(&list.name()).is_some();
        let number = self.trades.start(request, role, rand::rng().random());
        self.tell_replicated();
        if !known {
            let now = self.now();
            let keys: Vec<PeerKey> = self.links.keys().copied().collect();
            for key in keys {
                self.tell_join(key, number);
                self.connect_if_joined(now, key, number);
            }
            self.drain(number);
        }
        number
    }

    /// Whether a neighbour may know of a trade. What is private, a node trades with its ticket's seeder alone, and a
    /// seeder with those whom it offers it to.
    fn may_know(&self, key: PeerKey, number: u32) -> bool {
        let (Some(link), Some(trade)) = (self.links.get(&key), self.trades.get(number)) else { return false };
        !trade.private
            || match self.role {
                PeerRole::Node => self.discovery.is_bootstrap(&link.peer),
                PeerRole::Seeder => self.directory.offer(&trade.list.name(), &link.peer).is_some(),
            }
    }

    /// Says by which number this side calls a list, once to each neighbour.
    fn tell_join(&mut self, key: PeerKey, number: u32) {
        if !self.may_know(key, number) {
            return;
        }
        let (Some(link), Some(trade)) = (self.links.get_mut(&key), self.trades.get_mut(number)) else {
            return;
        };
        if link.note_told(number) {
            let list = trade.list.name();
            self.send(key, Frame::Join { exchange: number, list });
        }
    }

    /// Both sides trade the list: tells the exchange, once.
    fn connect_if_joined(&mut self, now: Time, key: PeerKey, number: u32) {
        if !self.may_know(key, number) {
            return;
        }
        let (Some(link), Some(trade)) = (self.links.get_mut(&key), self.trades.get_mut(number)) else {
            return;
        };
        if link.begin_trade(number, &trade.list, &trade.parts) {
            let distance = self.rack.distance(&link.rack());
            trade.exchange.handle_connected(now, key, distance);
        }
    }

    fn handle_verdict(&mut self, verdict: FromVerifier) {
        let now = self.now();
        match verdict {
            FromVerifier::Stored { trade: number, piece } => {
                let Some(trade) = self.trades.get_mut(number) else { return };
                trade.handle_stored(piece);
                trade.exchange.handle_stored(now, piece);
                tracing::debug!(list = %trade.list.name(), %piece, "piece verified and stored");
                self.drain(number);
            }
            FromVerifier::Sunk { trade } => {
                if let Some(trade) = self.trades.get_mut(trade) {
                    trade.handle_sunk();
                }
            }
            FromVerifier::Unfilled { trade: number, piece } => {
                let Some(trade) = self.trades.get_mut(number) else { return };
                tracing::warn!(%piece, "the rest of a piece is not here any more, and it is fetched whole");
                trade.handle_unfilled(now, piece);
                self.drain(number);
            }
            FromVerifier::Corrupt { trade: number, piece, from, why } => {
                let peer = self.links.get(&from).map(|link| link.peer.to_string());
                let peer = peer.as_deref().unwrap_or("a peer that has gone");
                tracing::warn!(peer, %piece, %why, "refused a corrupt piece");
                self.blame_departed(from, &Fault::Corrupt.to_string());
                let Some(trade) = self.trades.get_mut(number) else { return };
                self.traffic.corrupt_bytes += u64::from(trade.list.piece(piece).raw_bytes);
                trade.exchange.handle_corrupt(now, piece);
                self.drain(number);
            }
            FromVerifier::Failed { trade: number, piece, why } => {
                let Some(trade) = self.trades.get_mut(number) else { return };
                let cid = trade.list.piece(piece).cid;
                trade.fail(match why {
                    Failure::Store(source) => Error::Store { cid, source },
                    Failure::Sink(source) => Error::Sink { piece, source },
                    Failure::Panicked(what) => Error::Panicked { piece, what },
                });
            }
        }
    }

    /// Carries out what an exchange wants.
    fn drain(&mut self, number: u32) {
        loop {
            let Some(trade) = self.trades.get_mut(number) else { return };
            let Some(output) = trade.exchange.poll_output() else { return };
            match output {
                Output::Send { peer, message } => {
                    let frame = Frame::Trade(trade.frame(number, message));
                    self.send(peer, frame);
                }
                Output::SendPiece { peer, piece } => {
                    let list = trade.list.clone();
                    let now = self.now();
                    let Some(link) = self.links.get_mut(&peer) else { continue };
                    let upload = link.answer(number, piece, &list);
                    if !link.upload(now, upload) {
                        self.fault(peer, "it does not read the pieces that it requests");
                    }
                }
                Output::Disconnect { peer, reason } => self.fault(peer, &reason.to_string()),
                Output::Event(event) => self.handle_event(number, event),
            }
        }
    }

    /// Uploads of a piece that the exchange thinks better of need not begin.
    fn call_off(&mut self, number: u32, piece: PieceIndex) {
        let Some(trade) = self.trades.get_mut(number) else { return };
        for (key, link) in &mut self.links {
            if !trade.exchange.is_send_wanted(*key, piece) {
                link.call_off(number, piece);
            }
        }
    }

    /// Copies come and go: what is said is what is so now.
    fn tell_replicated(&self) {
        let replicated = self.trades.replicated();
        self.replicated.send_if_modified(|said| std::mem::replace(said, replicated) != replicated);
    }

    fn handle_event(&mut self, number: u32, event: Event) {
        let Some(trade) = self.trades.get_mut(number) else { return };
        match event {
            Event::Complete => {
                tracing::info!(list = %trade.list.name(), pieces = trade.list.len(), "every piece is held")
            }
            Event::Replicated => self.tell_replicated(),
            Event::Unavailable { pieces } => match pieces.first() {
                Some(first) => {
                    let (list, first, missing) = (trade.list.name(), first.get(), pieces.len());
                    tracing::warn!(%list, first, missing, "no peer here has the missing pieces")
                }
                None => tracing::info!(list = %trade.list.name(), "the missing pieces are to be had again"),
            },
            Event::Held { .. } | Event::Corrupt { .. } | Event::Duplicate { .. } | Event::Sent { .. } => {}
        }
    }
}

fn met(link: &Link) -> Met {
    Met { peer: link.peer, address: link.remote_ip, is_seeder: link.is_seeder() }
}

/// Fails when somebody listens on the address already; an IPv6 listener takes no IPv4 connections, here as there.
fn probe(address: SocketAddr) -> io::Result<()> {
    let socket = Socket::new(Domain::for_address(address), Type::STREAM, None)?;
    if address.is_ipv6() {
        socket.set_only_v6(true)?;
    }
    socket.set_reuse_address(true)?;
    socket.bind(&address.into())?;
    socket.listen(1)
}

/// What the error is about, without the layers that carried it.
fn innermost(error: &dyn std::error::Error) -> String {
    let mut error = error;
    while let Some(source) = error.source() {
        error = source;
    }
    error.to_string()
}

fn far_future() -> Instant {
    Instant::now() + Duration::from_secs(3600)
}
