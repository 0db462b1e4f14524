//! The loop: virtual time, window by window, and traders that do not know they are simulated.

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, Barrier, Mutex, PoisonError};
use std::thread;
use std::time::Duration;

use anyhow::{Context, anyhow, bail};
use rand::{Rng, SeedableRng};
use rand_chacha::ChaCha8Rng;
use shoal_proto::cid::Cid;
use shoal_proto::exchange::{Bitfield, Config, Exchange, PeerKey, Role};
use shoal_proto::image::PieceList;
use shoal_proto::image::pieces::Piece;
use shoal_proto::time::Time;

use crate::checks::{conservation, liveness, lost};
use crate::graph;
use crate::history;
use crate::host::{Connection, Host};
use crate::link::{PIECE_BYTES, QUANTA_PER_PIECE, Server};
use crate::network::{Network, Physics, Release};
use crate::outcome::{Curve, Finish, Outcome, Rack};
use crate::queue::{Event, What};
use crate::scenarios::{Death, Plan, Scenario, Size, Stage};
use crate::shard::{Actor, Failure, Shard, panic_text};
use crate::tally::Tally;
use crate::trader::Trader;

/// Points of a completion curve, per bound.
const CURVE_STEPS_PER_BOUND: u32 = 100;
/// Hosts below which a second thread waits more than it works.
const HOSTS_PER_THREAD_MIN: usize = 150;

/// The links of so many hosts, each named once.
pub(crate) type Links = fn(usize) -> Vec<(usize, usize)>;

/// What holds for every scenario.
#[derive(Clone, Debug)]
pub(crate) struct Options {
    pub(crate) seed: u64,
    /// A host's invariants are walked after one of its events in so many.
    pub(crate) check_every: u64,
    pub(crate) node_bytes_per_s: f64,
    /// In uplinks of a node; `None` for the scenario's.
    pub(crate) seeder_rate: Option<f64>,
    pub(crate) latency_block_times: f64,
    /// Of control messages, in latencies.
    pub(crate) jitter: f64,
    pub(crate) neighbours: usize,
    /// Rates of a host's processor (decoding and hashing) and disk.
    pub(crate) verify_bytes_per_s: f64,
    pub(crate) store_bytes_per_s: f64,
    /// Processor time of one control message.
    pub(crate) message_cpu: Duration,
    /// Quanta that control messages wait behind in a sender's device.
    pub(crate) device_quanta: usize,
    /// Quanta of a connection on their way.
    pub(crate) window_quanta: u8,
    pub(crate) release: Release,
    /// `None` for as many as the size is worth.
    pub(crate) threads: Option<usize>,
    /// A host whose events are told.
    pub(crate) trace: Option<u32>,
    /// Who knows whom, of so many hosts; `None` for random links.
    pub(crate) links: Option<Links>,
    /// A run that takes this many times the longest bound is stuck.
    pub(crate) patience_bounds: u32,
}

impl Default for Options {
    fn default() -> Self {
        Self {
            seed: 1,
            check_every: 1,
            node_bytes_per_s: 12.5e6,
            seeder_rate: None,
            latency_block_times: 0.05,
            jitter: 0.0,
            neighbours: 20,
            verify_bytes_per_s: f64::INFINITY,
            store_bytes_per_s: f64::INFINITY,
            message_cpu: Duration::ZERO,
            device_quanta: 1,
            window_quanta: 8,
            release: Release::Written,
            threads: None,
            trace: None,
            links: None,
            patience_bounds: 20,
        }
    }
}

/// A trader is made of its role, its list, what it holds and a seed.
pub(crate) type Make<T> = fn(Role, Arc<PieceList>, Bitfield, u64) -> T;

#[derive(Debug)]
pub(crate) struct Simulation<T> {
    network: Network,
    shards: Vec<Shard<T>>,
    deadline: Time,
    bound: Duration,
    racks: Vec<Vec<u32>>,
    seeder_trunkless: bool,
}

pub(crate) fn exchange(role: Role, pieces: Arc<PieceList>, held: Bitfield, seed: u64) -> Exchange {
    Exchange::new(Config::default(), role, pieces, held, seed)
}

/// As a node tunes it.
pub(crate) fn exchange_over_tcp(role: Role, pieces: Arc<PieceList>, held: Bitfield, seed: u64) -> Exchange {
    Exchange::new(Config::over_tcp(), role, pieces, held, seed)
}

impl<T: Trader> Simulation<T> {
    pub(crate) fn new(
        scenario: &Scenario,
        size: Size,
        options: &Options,
        make: Make<T>,
    ) -> anyhow::Result<Self> {
        let block_time = Duration::from_secs_f64(f64::from(PIECE_BYTES) / options.node_bytes_per_s);
        let seeder_rate = options.seeder_rate.unwrap_or(scenario.seeder_rate);
        let stage = Stage { size, block_time, seeder_rate };
        let mut rng = ChaCha8Rng::seed_from_u64(options.seed);
        let plan = (scenario.plan)(&stage, &mut rng);
        let piece_time = |bytes_per_s: f64| Duration::from_secs_f64(f64::from(PIECE_BYTES) / bytes_per_s);
        let physics = Physics {
            latency: block_time.mul_f64(options.latency_block_times),
            jitter: options.jitter,
            verify: piece_time(options.verify_bytes_per_s),
            store: piece_time(options.store_bytes_per_s),
            message: options.message_cpu,
            device_max: options.device_quanta.max(1),
            window: options.window_quanta.max(1),
            release: options.release,
        };
        let zones: Vec<Vec<u32>> = plan.members.iter().map(|member| member.zones.clone()).collect();
        let network = Network::new(physics, zones);
        if network.hop.is_zero() {
            bail!("a latency of less than a few nanoseconds");
        }
        let trunks = trunks(&plan, options.node_bytes_per_s);
        let actors = plan.members.len() + trunks.len();
        let threads = options.threads.unwrap_or_else(|| worthwhile_threads(actors)).clamp(1, actors);
        let longest = plan.members.iter().map(|member| member.joins + member.bound).max();
        let longest = longest.context("a plan without members")?;
        let liars: Arc<[bool]> = plan.members.iter().map(|member| member.liar).collect();
        let tally = Tally::new(stage.bound() / CURVE_STEPS_PER_BOUND, liars);
        let shards = (0..threads).map(|index| Shard::new(index, threads, &network, tally.clone()));
        let mut simulation = Self {
            shards: shards.collect(),
            deadline: Time::ZERO + longest * options.patience_bounds,
            bound: stage.bound(),
            racks: racks(&plan),
            seeder_trunkless: trunks.is_empty(),
            network,
        };
        let links = match options.links {
            Some(links) => links(plan.members.len()),
            None => graph::links(&plan, options.neighbours, &mut rng),
        };
        simulation.populate(&plan, options, make, &mut rng)?;
        simulation.connect(&plan, &links)?;
        for (at, server) in trunks.into_iter().enumerate() {
            let actor = plan.members.len() + at;
            simulation.shards[actor % threads].actors.push(Actor::Trunk { server, planned: 0 });
        }
        Ok(simulation)
    }

    fn populate(
        &mut self,
        plan: &Plan,
        options: &Options,
        make: Make<T>,
        rng: &mut ChaCha8Rng,
    ) -> anyhow::Result<()> {
        let pieces = list(plan.pieces)?;
        let threads = self.shards.len();
        for (at, member) in plan.members.iter().enumerate() {
            let held = match (&member.held, member.role) {
                (Some(held), _) => Bitfield::clone(held),
                (None, Role::Seeder) => Bitfield::full(plan.pieces),
                (None, Role::Node) => Bitfield::empty(plan.pieces),
            };
            let trader = make(member.role, Arc::clone(&pieces), held, rng.random());
            let host = u32::try_from(at)?;
            let rate = options.node_bytes_per_s;
            let mut made = Host::new(host, member.clone(), trader, rate, &self.network);
            made.watch(options.check_every, options.trace == Some(host), plan.some_is_lost);
            let shard = &mut self.shards[at % threads];
            shard.awaited += usize::from(made.is_awaited());
            shard.actors.push(Actor::Host(Box::new(made)));
            self.plan(Time::ZERO + member.joins, host, What::Join, 0);
            if let Death::At(dies) = member.dies {
                self.plan(Time::ZERO + dies, host, What::Die, 1);
            }
        }
        Ok(())
    }

    /// Each link is one connection, or one before a partition and one after.
    fn connect(&mut self, plan: &Plan, links: &[(usize, usize)]) -> anyhow::Result<()> {
        for &(one, other) in links {
            let members = [&plan.members[one], &plan.members[other]];
            let opens = members[0].joins.max(members[1].joins);
            let cut = plan.partition.filter(|_| members[0].side != members[1].side);
            let sessions = match cut {
                None => vec![(opens, None)],
                Some(cut) if opens < cut.from => vec![(opens, Some(cut.from)), (cut.until, None)],
                Some(cut) => vec![(opens.max(cut.until), None)],
            };
            let ends = [u32::try_from(one)?, u32::try_from(other)?];
            for (opens, closes) in sessions {
                let keys = ends.map(|host| {
                    PeerKey(u32::try_from(self.host(host).connections.len()).unwrap_or(u32::MAX))
                });
                for (near, far) in [(0, 1), (1, 0)] {
                    let connection = Connection::new(ends[far], keys[far]);
                    self.host(ends[near]).connections.push(connection);
                    self.plan(Time::ZERO + opens, ends[near], What::Opens(keys[near]), 2 + keys[near].0);
                    if let Some(closes) = closes {
                        self.plan(Time::ZERO + closes, ends[near], What::Lost(keys[near]), 2 + keys[near].0);
                    }
                }
            }
        }
        Ok(())
    }

    fn host(&mut self, host: u32) -> &mut Host<T> {
        let threads = self.shards.len();
        match &mut self.shards[host as usize % threads].actors[host as usize / threads] {
            Actor::Host(host) => host,
            Actor::Trunk { .. } => unreachable!("trunks come after the hosts"),
        }
    }

    /// Plans something from outside: before all that the host itself plans for the same instant.
    fn plan(&mut self, at: Time, to: u32, what: What, order: u32) {
        let threads = self.shards.len();
        self.shards[to as usize % threads].calendar.plan(Event { at, to, order: u64::from(order), what });
    }

    /// Runs until every live node is complete.
    pub(crate) fn run(mut self) -> anyhow::Result<Outcome> {
        let stuck = self.run_windows();
        let traces: Vec<String> = self
            .shards
            .iter()
            .flat_map(Shard::hosts)
            .filter_map(|host| host.trace.as_ref())
            .map(|t| t.text())
            .collect();
        for trace in traces {
            eprintln!("{trace}");
        }
        let failure = self.shards.iter_mut().filter_map(|shard| shard.failure.take());
        if let Some(failure) = failure.min_by_key(|failure| (failure.at, failure.actor)) {
            return Err(failure.error);
        }
        if let Some(stuck) = stuck {
            bail!("{stuck}: {}", liveness::lacking(&self.all_hosts()));
        }
        self.check_at_end()?;
        lost::check(&self.all_hosts())?;
        Ok(self.outcome())
    }

    /// Returns why it cannot go on, when it cannot.
    fn run_windows(&mut self) -> Option<String> {
        let threads = self.shards.len();
        let gate = Gathering {
            barrier: Barrier::new(threads),
            firsts: (0..threads).map(|_| AtomicU64::new(0)).collect(),
            awaited: (0..threads).map(|_| AtomicUsize::new(0)).collect(),
            failed: AtomicBool::new(false),
            mailboxes: (0..threads * threads).map(|_| Mutex::default()).collect(),
            deadline: self.deadline,
        };
        let network = &self.network;
        let (own, others) = self.shards.split_first_mut()?;
        thread::scope(|scope| {
            for (index, shard) in others.iter_mut().enumerate() {
                let gate = &gate;
                scope.spawn(move || gate.run(index + 1, shard, network));
            }
            gate.run(0, own, network)
        })
    }

    fn all_hosts(&self) -> Vec<&Host<T>> {
        let mut hosts: Vec<&Host<T>> = self.shards.iter().flat_map(Shard::hosts).collect();
        hosts.sort_by_key(|host| host.at);
        hosts
    }

    fn check_at_end(&self) -> anyhow::Result<()> {
        let hosts = self.all_hosts();
        for host in &hosts {
            if host.alive {
                catch_unwind(AssertUnwindSafe(|| host.trader.assert_invariants()))
                    .map_err(|panic| panic_text(&*panic))?;
            }
        }
        let mut under_way: Vec<Vec<u64>> = hosts.iter().map(|host| vec![0; host.connections.len()]).collect();
        for event in self.shards.iter().flat_map(|shard| shard.calendar.rest()) {
            if let What::Arrives(travel) = &event.what {
                under_way[travel.to as usize][travel.quantum.peer.0 as usize] += 1;
            }
        }
        for host in &hosts {
            for (connection, under_way) in host.connections.iter().zip(&under_way[host.at as usize]) {
                let sender = &hosts[connection.host as usize].connections[connection.back.0 as usize];
                conservation::Quanta::settle(&connection.quanta, host.at, &sender.quanta, *under_way)?;
            }
        }
        Ok(())
    }

    fn outcome(&self) -> Outcome {
        let hosts = self.all_hosts();
        let mut tally = self.shards[0].tally.clone();
        self.shards[1..].iter().for_each(|shard| tally.add(&shard.tally));
        let finishes = hosts.iter().filter(|host| host.member.role == Role::Node).map(|host| Finish {
            host: host.at,
            over_bound: host
                .finished
                .map(|finished| finished.since(host.joined).as_secs_f64() / host.member.bound.as_secs_f64()),
            finished: host.finished.map(|finished| finished.since(Time::ZERO)),
            measured: host.member.measured,
            died: host.dead,
        });
        let finishes: Vec<Finish> = finishes.collect();
        let nodes = |host: &&&Host<T>| host.member.role == Role::Node;
        let last = hosts.iter().filter_map(|host| host.finished).max().unwrap_or(Time::ZERO);
        let pieces = hosts[0].trader.held().len();
        Outcome {
            complete: hosts.iter().filter(nodes).filter(|host| host.trader.is_complete()).count(),
            seeder_pieces: hosts.iter().filter(|host| !nodes(host)).map(|host| host.pieces_sent).sum(),
            busiest_pieces: hosts.iter().filter(nodes).map(|host| host.pieces_sent).max().unwrap_or(0),
            racks: self.rack_outcomes(&finishes, pieces),
            curve: Curve::new(&tally, &finishes, self.bound),
            finishes,
            bound: self.bound,
            ended: last.since(Time::ZERO),
            events: hosts.iter().map(|host| host.history.events).sum(),
            rollout: None,
            digest: history::digest(hosts.iter().map(|host| &host.history)),
            tally,
        }
    }

    /// What came in over each zone's trunk, and when its last node was done.
    fn rack_outcomes(&self, finishes: &[Finish], pieces: usize) -> Vec<Rack> {
        if self.seeder_trunkless {
            return Vec::new();
        }
        let threads = self.shards.len();
        let served =
            |actor: u32| match &self.shards[actor as usize % threads].actors[actor as usize / threads] {
                Actor::Trunk { server, .. } => server.served,
                Actor::Host(_) => 0,
            };
        let zones = self.racks.iter().enumerate().filter(|(_, members)| !members.is_empty());
        zones
            .map(|(zone, members)| {
                let down = self.network.hosts() + 2 * u32::try_from(zone).unwrap_or(u32::MAX) + 1;
                let in_zone =
                    |finish: &&Finish| finish.measured && members.binary_search(&finish.host).is_ok();
                let over_bound = finishes.iter().filter(in_zone).filter_map(|finish| finish.over_bound);
                Rack {
                    copies_in: served(down) as f64 / f64::from(QUANTA_PER_PIECE) / pieces as f64,
                    last_over_bound: over_bound.fold(0.0, f64::max),
                }
            })
            .collect()
    }
}

/// Where the threads meet between two windows.
struct Gathering {
    barrier: Barrier,
    /// The first window of each thread in which anything happens.
    firsts: Vec<AtomicU64>,
    awaited: Vec<AtomicUsize>,
    failed: AtomicBool,
    /// Events from one thread (row) to another (column).
    mailboxes: Vec<Mutex<Vec<Event>>>,
    deadline: Time,
}

impl Gathering {
    /// One thread's part. Every thread comes to the same end, and says the same of it.
    fn run<T: Trader>(&self, index: usize, shard: &mut Shard<T>, network: &Network) -> Option<String> {
        let threads = self.firsts.len();
        loop {
            self.firsts[index].store(shard.calendar.first().unwrap_or(u64::MAX), Ordering::Relaxed);
            self.awaited[index].store(shard.awaited, Ordering::Relaxed);
            if shard.failure.is_some() {
                self.failed.store(true, Ordering::Relaxed);
            }
            self.barrier.wait();
            let window = self.firsts.iter().map(|first| first.load(Ordering::Relaxed)).min()?;
            let awaited: usize = self.awaited.iter().map(|awaited| awaited.load(Ordering::Relaxed)).sum();
            if awaited == 0 || self.failed.load(Ordering::Relaxed) {
                return None;
            }
            if window == u64::MAX {
                return Some("nothing is left to happen".into());
            }
            let end = shard.calendar.end_of(window);
            if end > self.deadline {
                return Some(format!("stuck after {:?}", end.since(Time::ZERO)));
            }
            let went = catch_unwind(AssertUnwindSafe(|| shard.run_window(window, network)));
            if let Err(panic) = went {
                shard.failure = Some(Failure { at: end, actor: u32::MAX, error: panic_text(&*panic) });
            }
            for (other, outbox) in shard.outboxes.iter_mut().enumerate().filter(|&(other, _)| other != index)
            {
                let mailbox = &self.mailboxes[index * threads + other];
                std::mem::swap(outbox, &mut *mailbox.lock().unwrap_or_else(PoisonError::into_inner));
            }
            self.barrier.wait();
            for other in (0..threads).filter(|&other| other != index) {
                let mailbox = &self.mailboxes[other * threads + index];
                let mut mailbox = mailbox.lock().unwrap_or_else(PoisonError::into_inner);
                mailbox.drain(..).for_each(|event| shard.calendar.plan(event));
            }
        }
    }
}

fn worthwhile_threads(actors: usize) -> usize {
    let cores = thread::available_parallelism().map_or(1, usize::from);
    (actors / HOSTS_PER_THREAD_MIN).clamp(1, cores)
}

fn list(pieces: usize) -> anyhow::Result<Arc<PieceList>> {
    let piece = |at: usize| Piece { cid: Cid::of(&at.to_le_bytes()), raw_bytes: PIECE_BYTES };
    Ok(Arc::new(PieceList::new((0..pieces).map(piece).collect())?))
}

/// Both directions of every zone's trunk, in the order of the zones.
fn trunks(plan: &Plan, node_bytes_per_s: f64) -> Vec<Server> {
    let rates = plan.trunks.iter().flat_map(|rate| [rate, rate]);
    rates.map(|rate| Server::new(rate * node_bytes_per_s)).collect()
}

/// The hosts of each zone, ascending.
fn racks(plan: &Plan) -> Vec<Vec<u32>> {
    let mut racks = vec![Vec::new(); plan.trunks.len()];
    for (host, member) in (0u32..).zip(&plan.members) {
        member.zones.iter().for_each(|&zone| racks[zone as usize].push(host));
    }
    racks
}

impl From<Failure> for anyhow::Error {
    fn from(failure: Failure) -> Self {
        anyhow!("{:#}", failure.error)
    }
}
