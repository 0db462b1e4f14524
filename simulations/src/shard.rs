//! One thread's share of the actors, and how it takes them through a window.

use std::cmp::Reverse;
use std::collections::BinaryHeap;
use std::mem;

use shoal_proto::time::Time;

use crate::host::{Host, Scene};
use crate::link::Server;
use crate::network::Network;
use crate::queue::{Calendar, Event, Travel, What};
use crate::tally::Tally;
use crate::trader::Trader;

/// A host, or one direction of a zone's trunk.
#[derive(Debug)]
pub(crate) enum Actor<T> {
    Host(Box<Host<T>>),
    Trunk { server: Server, planned: u32 },
}

/// A failed check: the first in virtual time is the one that is told.
#[derive(Debug)]
pub(crate) struct Failure {
    pub(crate) at: Time,
    pub(crate) actor: u32,
    pub(crate) error: anyhow::Error,
}

/// The actors `index`, `index + count`, `index + 2 × count`…
#[derive(Debug)]
pub(crate) struct Shard<T> {
    index: usize,
    count: usize,
    pub(crate) actors: Vec<Actor<T>>,
    pub(crate) calendar: Calendar,
    pub(crate) tally: Tally,
    /// Live nodes, or nodes to come, that lack something.
    pub(crate) awaited: usize,
    pub(crate) failure: Option<Failure>,
    /// For each shard, what this one planned for its actors.
    pub(crate) outboxes: Vec<Vec<Event>>,
    /// Of the actor at hand, within the window.
    soon: BinaryHeap<Reverse<Soon>>,
    /// Kept for their memory.
    keys: Vec<(u32, Time, u64, u32)>,
    out: Vec<Event>,
}

/// An event of the actor at hand, ordered by time.
#[derive(Debug)]
struct Soon(Event);

impl PartialEq for Soon {
    fn eq(&self, other: &Self) -> bool {
        self.key() == other.key()
    }
}

impl Eq for Soon {}

impl PartialOrd for Soon {
    fn partial_cmp(&self, other: &Self) -> Option<std::cmp::Ordering> {
        Some(self.cmp(other))
    }
}

impl Ord for Soon {
    fn cmp(&self, other: &Self) -> std::cmp::Ordering {
        self.key().cmp(&other.key())
    }
}

impl Soon {
    fn key(&self) -> (Time, u64) {
        (self.0.at, self.0.order)
    }
}

impl<T: Trader> Shard<T> {
    pub(crate) fn new(index: usize, count: usize, network: &Network, tally: Tally) -> Self {
        let hop = u64::try_from(network.hop.as_nanos()).expect("a latency below centuries").max(1);
        Self {
            index,
            count,
            actors: Vec::new(),
            calendar: Calendar::new(hop),
            tally,
            awaited: 0,
            failure: None,
            outboxes: (0..count).map(|_| Vec::new()).collect(),
            soon: BinaryHeap::new(),
            keys: Vec::new(),
            out: Vec::new(),
        }
    }

    pub(crate) fn hosts(&self) -> impl Iterator<Item = &Host<T>> {
        self.actors.iter().filter_map(|actor| match actor {
            Actor::Host(host) => Some(&**host),
            Actor::Trunk { .. } => None,
        })
    }

    /// All that happens to its actors in one window, actor by actor.
    pub(crate) fn run_window(&mut self, window: u64, network: &Network) {
        let mut events = self.calendar.take(window);
        let end = self.calendar.end_of(window);
        let mut keys = mem::take(&mut self.keys);
        keys.extend(events.iter().zip(0u32..).map(|(event, at)| (event.to, event.at, event.order, at)));
        keys.sort_unstable();
        for keys_of_one in keys.chunk_by(|one, next| one.0 == next.0) {
            self.run_actor(keys_of_one, &mut events, end, network);
        }
        keys.clear();
        self.keys = keys;
        self.calendar.give_back(events);
    }

    /// What happens to one actor: `keys` names its events in order, and more may come of them before `end`.
    fn run_actor(
        &mut self,
        keys: &[(u32, Time, u64, u32)],
        events: &mut [Event],
        end: Time,
        network: &Network,
    ) {
        let actor = keys[0].0;
        let awaited = self.is_awaited(actor);
        let mut known = keys.iter().peekable();
        loop {
            let first = match (known.peek(), self.soon.peek()) {
                (Some(&&(_, at, order, _)), Some(Reverse(soon))) => (at, order) < soon.key(),
                (Some(_), None) => true,
                (None, Some(_)) => false,
                (None, None) => break,
            };
            let (at, what) = if first {
                let Some(&(_, at, _, index)) = known.next() else { break };
                (at, mem::replace(&mut events[index as usize].what, What::Timer))
            } else {
                let Some(Reverse(Soon(event))) = self.soon.pop() else { break };
                (event.at, event.what)
            };
            if let Err(error) = self.step(actor, at, what, network) {
                let error = error.context(format!("after {:?}", at.since(Time::ZERO)));
                if self.failure.as_ref().is_none_or(|earlier| (at, actor) < (earlier.at, earlier.actor)) {
                    self.failure = Some(Failure { at, actor, error });
                }
                self.soon.clear();
                break;
            }
            self.route(actor, end);
        }
        match (awaited, self.is_awaited(actor)) {
            (true, false) => self.awaited -= 1,
            (false, true) => self.awaited += 1,
            _ => {}
        }
    }

    fn is_awaited(&self, actor: u32) -> bool {
        match &self.actors[actor as usize / self.count] {
            Actor::Host(host) => host.is_awaited(),
            Actor::Trunk { .. } => false,
        }
    }

    fn step(&mut self, actor: u32, now: Time, what: What, network: &Network) -> anyhow::Result<()> {
        match &mut self.actors[actor as usize / self.count] {
            Actor::Host(host) => {
                let mut scene = Scene { now, network, tally: &mut self.tally, out: &mut self.out };
                host.step(&mut scene, what)
            }
            Actor::Trunk { server, planned } => {
                let What::Arrives(travel) = what else {
                    anyhow::bail!("a trunk carries quanta only");
                };
                let through = server.serve(now);
                let travel = Travel { hops: travel.hops + 1, ..travel };
                let (to, after) = network.next_hop(&travel);
                let order = u64::from(actor) << 32 | u64::from(*planned);
                *planned += 1;
                self.out.push(Event { at: through + after, to, order, what: What::Arrives(travel) });
                Ok(())
            }
        }
    }

    fn route(&mut self, actor: u32, end: Time) {
        for event in self.out.drain(..) {
            if event.to == actor && event.at < end {
                self.soon.push(Reverse(Soon(event)));
                continue;
            }
            debug_assert!(event.at >= end, "an actor hears of another within a window");
            let shard = event.to as usize % self.count;
            if shard == self.index {
                self.calendar.plan(event);
            } else {
                self.outboxes[shard].push(event);
            }
        }
    }
}

/// What a failed check says, with what broke an invariant by panicking.
pub(crate) fn panic_text(panic: &(dyn std::any::Any + Send)) -> anyhow::Error {
    let text = panic
        .downcast_ref::<String>()
        .map(String::as_str)
        .or_else(|| panic.downcast_ref::<&str>().copied())
        .unwrap_or("no message");
    anyhow::anyhow!("{text}").context("an invariant is broken")
}
