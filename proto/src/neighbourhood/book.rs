//! What is known of each peer, and indexes of it, so that no step walks over all of them.

use std::collections::{BTreeMap, BTreeSet};

use rand::Rng;
use rand_chacha::ChaCha8Rng;

use super::Contact;
use crate::time::Time;
use crate::wire::ADDRESSES_PER_PEER_MAX;
use crate::zone::Zone;

/// Entries looked at for one that is worth least.
const FORGET_SAMPLE: usize = 16;

/// A place in the book: stable while the peer is known.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct Slot(usize);

/// Which end of a dial somebody is waiting for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Pool {
    /// From the ticket: dialed whatever neighbours there are.
    Bootstrap,
    /// A neighbour whose connection broke.
    Lost,
    /// In one's own rack.
    Near,
    Far,
}

pub(super) const POOLS: usize = 4;

/// **Invariant:** a known peer is in exactly one of these.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum State {
    /// It may be dialed.
    Ready,
    /// It may be dialed, or is forgotten, at the alarm.
    Waiting,
    /// `hoped`: not for so long yet that it is likelier to fail.
    Dialing {
        hoped: bool,
    },
    /// Connected, and has not said hello; has a place.
    Greeting {
        dialed: bool,
    },
    Neighbour {
        dialed: bool,
        since: Time,
    },
    /// Connected for as long as it takes to be told whom else to ask.
    Leaving,
}

#[derive(Clone, Debug)]
pub(super) struct Known<N, A> {
    pub(super) id: N,
    pub(super) addresses: Vec<A>,
    pub(super) zone: Zone,
    /// Whether it is in our own rack.
    pub(super) near: bool,
    /// From the ticket: never forgotten.
    pub(super) bootstrap: bool,
    pub(super) seeder: bool,
    pub(super) state: State,
    /// When the state is looked at again.
    pub(super) alarm: Option<Time>,
    /// Dials that failed, or connections that did not last, in a row.
    pub(super) failures: u32,
    /// Times in a row that it had no room.
    pub(super) refusals: u32,
    /// It had no room: not worth another try before this, unless there is nobody else.
    pub(super) full_until: Time,
    pub(super) banned_until: Time,
    /// It was a neighbour, and is missed until then.
    pub(super) lost_until: Option<Time>,
    /// Others are told of it until then.
    pub(super) tell_until: Option<Time>,
    /// How often others were told of it.
    pub(super) told: u32,
}

/// Counts of the peers that are here or coming; the pair is (outside our rack, inside it), seeders left out.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Tally {
    pub(super) neighbours: [usize; 2],
    pub(super) seeders: usize,
    /// Connected or hoped for, no hello yet.
    pub(super) coming: [usize; 2],
    /// Of all these, by our own dial.
    pub(super) ours: [usize; 2],
    pub(super) greeting: usize,
    pub(super) leaving: usize,
    pub(super) dialing: usize,
}

/// Slots in no particular order, to draw from.
#[derive(Debug, Default)]
pub(super) struct Bag {
    members: Vec<Slot>,
    places: BTreeMap<Slot, usize>,
}

/// **Invariant:** every index is a function of the entries: `change` is the one way to change an entry.
#[derive(Debug)]
pub(super) struct Book<N, A> {
    entries: Vec<Option<Known<N, A>>>,
    free: Vec<Slot>,
    by_id: BTreeMap<N, Slot>,
    alarms: BTreeSet<(Time, Slot)>,
    pools: [Bag; POOLS],
    neighbours: Bag,
    tellable: Bag,
    tellable_by_zone: BTreeMap<Zone, Bag>,
    tally: Tally,
}

impl<N: Copy, A: Clone + PartialEq> Known<N, A> {
    fn new(id: N) -> Self {
        Self {
            id,
            addresses: Vec::new(),
            zone: Zone::UNKNOWN,
            near: false,
            bootstrap: false,
            seeder: false,
            state: State::Waiting,
            alarm: None,
            failures: 0,
            refusals: 0,
            full_until: Time::ZERO,
            banned_until: Time::ZERO,
            lost_until: None,
            tell_until: None,
            told: 0,
        }
    }

    pub(super) fn is_here(&self) -> bool {
        matches!(self.state, State::Greeting { .. } | State::Neighbour { .. } | State::Leaving)
    }

    /// The newest addresses first; returns whether one of them is new.
    pub(super) fn add_addresses(&mut self, addresses: Vec<A>) -> bool {
        let news = addresses.iter().any(|address| !self.addresses.contains(address));
        for address in addresses.into_iter().rev() {
            self.addresses.retain(|other| *other != address);
            self.addresses.insert(0, address);
        }
        self.addresses.truncate(ADDRESSES_PER_PEER_MAX);
        news
    }

    pub(super) fn contact(&self) -> Contact<N, A> {
        Contact { id: self.id, addresses: self.addresses.clone(), zone: self.zone.clone() }
    }

    fn pool(&self) -> Pool {
        match self {
            Self { bootstrap: true, .. } => Pool::Bootstrap,
            Self { lost_until: Some(_), .. } => Pool::Lost,
            Self { near: true, .. } => Pool::Near,
            _ => Pool::Far,
        }
    }

    /// How much it would be missed, were it forgotten: `None` when it must not be.
    fn worth(&self) -> Option<(bool, bool, std::cmp::Reverse<u32>)> {
        let idle = matches!(self.state, State::Ready | State::Waiting);
        let worth = (self.banned_until > Time::ZERO, self.lost_until.is_some() || self.tell_until.is_some());
        (idle && !self.bootstrap).then_some((worth.0, worth.1, std::cmp::Reverse(self.failures)))
    }
}

impl Tally {
    /// Peers that have a place.
    pub(super) fn places(&self) -> usize {
        self.greeting + self.neighbours.iter().sum::<usize>() + self.seeders
    }

    fn count<N, A>(&mut self, known: &Known<N, A>, add: bool) {
        let step = |count: &mut usize| *count = if add { *count + 1 } else { *count - 1 };
        let side = usize::from(known.near);
        let is_node = !known.seeder && !known.bootstrap;
        match known.state {
            State::Ready | State::Waiting => {}
            State::Leaving => step(&mut self.leaving),
            State::Dialing { hoped } => {
                step(&mut self.dialing);
                if hoped && is_node {
                    step(&mut self.coming[side]);
                    step(&mut self.ours[side]);
                }
            }
            State::Greeting { dialed } => {
                step(&mut self.greeting);
                if is_node {
                    step(&mut self.coming[side]);
                    if dialed {
                        step(&mut self.ours[side]);
                    }
                }
            }
            State::Neighbour { .. } if known.seeder => step(&mut self.seeders),
            State::Neighbour { dialed, .. } => {
                step(&mut self.neighbours[side]);
                if dialed {
                    step(&mut self.ours[side]);
                }
            }
        }
    }
}

impl Bag {
    pub(super) fn len(&self) -> usize {
        self.members.len()
    }

    pub(super) fn all(&self) -> &[Slot] {
        &self.members
    }

    pub(super) fn draw(&self, rng: &mut ChaCha8Rng) -> Option<Slot> {
        (!self.members.is_empty()).then(|| self.members[rng.random_range(0..self.members.len())])
    }

    fn insert(&mut self, slot: Slot) {
        self.places.insert(slot, self.members.len());
        self.members.push(slot);
    }

    fn remove(&mut self, slot: Slot) {
        let place = self.places.remove(&slot).expect("a member");
        self.members.swap_remove(place);
        if let Some(moved) = self.members.get(place) {
            self.places.insert(*moved, place);
        }
    }
}

impl<N: Copy + Ord, A: Clone + PartialEq> Book<N, A> {
    pub(super) fn new() -> Self {
        Self {
            entries: Vec::new(),
            free: Vec::new(),
            by_id: BTreeMap::new(),
            alarms: BTreeSet::new(),
            pools: Default::default(),
            neighbours: Bag::default(),
            tellable: Bag::default(),
            tellable_by_zone: BTreeMap::new(),
            tally: Tally::default(),
        }
    }

    pub(super) fn len(&self) -> usize {
        self.by_id.len()
    }

    pub(super) fn find(&self, id: N) -> Option<Slot> {
        self.by_id.get(&id).copied()
    }

    pub(super) fn get(&self, slot: Slot) -> &Known<N, A> {
        self.entries[slot.0].as_ref().expect("a slot of the book")
    }

    pub(super) fn all(&self) -> impl Iterator<Item = &Known<N, A>> {
        self.entries.iter().flatten()
    }

    pub(super) fn tally(&self) -> &Tally {
        &self.tally
    }

    pub(super) fn pool(&self, pool: Pool) -> &Bag {
        &self.pools[pool as usize]
    }

    /// Neighbours, seeders among them.
    pub(super) fn neighbours(&self) -> &Bag {
        &self.neighbours
    }

    pub(super) fn tellable(&self) -> &Bag {
        &self.tellable
    }

    pub(super) fn tellable_in(&self, zone: &Zone) -> Option<&Bag> {
        self.tellable_by_zone.get(zone)
    }

    pub(super) fn first_alarm(&self) -> Option<(Time, Slot)> {
        self.alarms.first().copied()
    }

    pub(super) fn note_told(&mut self, slot: Slot) {
        // Not indexed.
        let known = self.entries[slot.0].as_mut().expect("a slot of the book");
        known.told = known.told.saturating_add(1);
    }

    /// Changes an entry, and with it every index.
    pub(super) fn change(&mut self, slot: Slot, change: impl FnOnce(&mut Known<N, A>)) {
        let mut known = self.entries[slot.0].take().expect("a slot of the book");
        self.unindex(slot, &known);
        change(&mut known);
        self.index(slot, &known);
        self.entries[slot.0] = Some(known);
    }

    /// The entry of a peer, made when there is none; `None` when there are `known_max` that are all needed.
    pub(super) fn entry(&mut self, id: N, known_max: usize, rng: &mut ChaCha8Rng) -> Option<Slot> {
        if let Some(slot) = self.find(id) {
            return Some(slot);
        }
        if self.len() >= known_max {
            let least = self.least_worth(rng)?;
            self.forget(least);
        }
        let slot = self.free.pop().unwrap_or_else(|| {
            self.entries.push(None);
            Slot(self.entries.len() - 1)
        });
        self.by_id.insert(id, slot);
        self.entries[slot.0] = Some(Known::new(id));
        Some(slot)
    }

    pub(super) fn forget(&mut self, slot: Slot) {
        let known = self.entries[slot.0].take().expect("a slot of the book");
        self.unindex(slot, &known);
        self.by_id.remove(&known.id);
        self.free.push(slot);
    }

    /// Of a few entries drawn at random, the one that would be missed least.
    fn least_worth(&self, rng: &mut ChaCha8Rng) -> Option<Slot> {
        let drawn = (0..FORGET_SAMPLE).map(|_| Slot(rng.random_range(0..self.entries.len())));
        let worth = drawn.filter_map(|slot| Some((self.entries[slot.0].as_ref()?.worth()?, slot)));
        worth.min().map(|(_, slot)| slot)
    }

    fn index(&mut self, slot: Slot, known: &Known<N, A>) {
        self.tally.count(known, true);
        if let Some(alarm) = known.alarm {
            self.alarms.insert((alarm, slot));
        }
        match known.state {
            State::Ready => self.pools[known.pool() as usize].insert(slot),
            State::Neighbour { .. } => self.neighbours.insert(slot),
            _ => {}
        }
        if known.tell_until.is_some() {
            self.tellable.insert(slot);
            if !known.zone.is_unknown() {
                self.tellable_by_zone.entry(known.zone.clone()).or_default().insert(slot);
            }
        }
    }

    fn unindex(&mut self, slot: Slot, known: &Known<N, A>) {
        self.tally.count(known, false);
        if let Some(alarm) = known.alarm {
            self.alarms.remove(&(alarm, slot));
        }
        match known.state {
            State::Ready => self.pools[known.pool() as usize].remove(slot),
            State::Neighbour { .. } => self.neighbours.remove(slot),
            _ => {}
        }
        if known.tell_until.is_some() {
            self.tellable.remove(slot);
            if let Some(zone) = self.tellable_by_zone.get_mut(&known.zone) {
                zone.remove(slot);
                if zone.len() == 0 {
                    self.tellable_by_zone.remove(&known.zone);
                }
            }
        }
    }

    pub(super) fn assert_invariants(&self) {
        let mut again = Self::new();
        for (at, known) in self.entries.iter().enumerate() {
            let Some(known) = known else { continue };
            again.index(Slot(at), known);
            assert_eq!(self.by_id.get(&known.id), Some(&Slot(at)));
        }
        assert_eq!(self.by_id.len() + self.free.len(), self.entries.len());
        assert_eq!(self.tally, again.tally);
        assert_eq!(self.alarms, again.alarms);
        let zones = self.tellable_by_zone.iter().zip(&again.tellable_by_zone);
        assert!(self.tellable_by_zone.keys().eq(again.tellable_by_zone.keys()));
        let bags =
            zones.map(|((_, one), (_, other))| (one, other)).chain(self.pools.iter().zip(&again.pools));
        let bags = bags.chain([(&self.neighbours, &again.neighbours), (&self.tellable, &again.tellable)]);
        for (bag, again) in bags {
            assert!(bag.places.keys().eq(again.places.keys()));
            assert!(bag.places.iter().all(|(slot, place)| bag.members[*place] == *slot));
            assert_eq!(bag.places.len(), bag.members.len());
        }
    }
}
