//! Who is whose neighbour: whom to know, to dial, to let in, to tell of whom, and to let go.
//!
//! A node wants some two dozen neighbours, drawn at random from all that it hears of: half of them it dials at once,
//! the rest one by one, so that those who are about to dial it are not overtaken (`dialing`). Where racks are known
//! most neighbours are of the own rack, and a few are not. It goes on to look for those it lost, so that a swarm that
//! fell apart grows together again. Every new neighbour is told of others (`telling`): the seeder is where nodes meet
//! at first, and nobody has to be. A peer without room says whom else to ask.
//!
//! Nothing here walks over all known peers (`book`): the work for one input is bounded by a frame.

mod book;
mod config;
mod dialing;
mod telling;
#[cfg(test)]
mod tests;

use std::collections::VecDeque;
use std::fmt;
use std::time::Duration;

pub use config::Config;

use book::{Book, Known, Slot, State};
use rand::SeedableRng;
use rand_chacha::ChaCha8Rng;

use crate::time::Time;
use crate::zone::{Distance, Zone};

/// How long a new connection may take to say hello.
const HELLO_MAX: Duration = Duration::from_secs(10);
/// How long a peer that there is no room for has to read whom else to ask.
const FAREWELL_MAX: Duration = Duration::from_secs(2);
/// How long others are told of a peer that there was no room for.
const TELL_REFUSED_FOR: Duration = Duration::from_secs(300);
/// A connection that held this long ended for no fault of the peer.
const STEADY: Duration = Duration::from_secs(10);
/// How long a neighbour that was lost is looked for.
const LOST_FOR: Duration = Duration::from_secs(3600);
/// How long a peer that broke the protocol is shunned.
pub const BAN: Duration = Duration::from_secs(300);

/// A peer as others tell of it: unproved, only worth a dial.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Contact<N, A> {
    pub id: N,
    pub addresses: Vec<A>,
    pub zone: Zone,
}

/// What a peer said of itself.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Greeting<A> {
    /// Where it says that it can be dialed: perhaps nowhere.
    pub addresses: Vec<A>,
    pub zone: Zone,
    pub seeder: bool,
}

/// What the driver has to do.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Output<N, A> {
    /// Connect to the peer and say how that went ([`Neighbourhood::handle_connected`],
    /// [`Neighbourhood::handle_dial_failed`]). A peer from the ticket may have no address here: the driver knows it.
    Dial { peer: N, addresses: Vec<A> },
    /// Tell a neighbour of others.
    Tell { to: N, peers: Vec<Contact<N, A>> },
    /// Ask a neighbour of whom it knows.
    Ask { peer: N },
    /// Tell the peer that there is no room here and whom else to ask. It is hung up on a little later, unless it goes.
    Refuse { peer: N, peers: Vec<Contact<N, A>> },
    /// Hang up. The neighbourhood has forgotten the connection: it wants no [`Neighbourhood::handle_disconnected`].
    Disconnect { peer: N, reason: Reason },
}

/// Why a connection ends.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Reason {
    Banned,
    NoHello,
    /// There is no room here, nor for a word about it.
    Crowded,
    /// There is no room here, and it was told so.
    NoRoom,
    /// There is no room there.
    Refused,
    /// One of the two is no member: said by the driver alone.
    NoMember,
}

/// One peer's side of the neighbour graph: one input (`handle_*`), then drain [`Neighbourhood::poll_output`] until
/// `None`, then sleep until [`Neighbourhood::poll_timeout`] and call [`Neighbourhood::handle_timeout`].
///
/// `N` names a peer, `A` is an address. The driver keeps at most one connection with each peer and reports its end
/// before the beginning of another.
///
/// **Invariant:** at most `neighbours_max` peers have a place, those from the ticket aside.
#[derive(Debug)]
pub struct Neighbourhood<N, A> {
    config: Config,
    own: N,
    zone: Zone,
    book: Book<N, A>,
    rng: ChaCha8Rng,
    outputs: VecDeque<Output<N, A>>,
    /// When the first neighbour came.
    started_at: Option<Time>,
    /// The next dial of those that are not made at once.
    top_up_at: Time,
    /// The next question, and how long the one after that waits.
    ask_at: Time,
    ask_wait: Duration,
    timeout: Option<Time>,
}

impl<N: Copy + Ord + fmt::Debug, A: Clone + PartialEq> Neighbourhood<N, A> {
    /// `bootstrap` are the peers of the ticket; `seed` seeds every random choice. Dials them on the first
    /// [`Neighbourhood::handle_timeout`].
    ///
    /// # Panics
    /// When `config` contradicts itself.
    pub fn new(config: Config, own: N, zone: Zone, bootstrap: Vec<N>, seed: u64) -> Self {
        config.assert_sound();
        let mut this = Self {
            config,
            own,
            zone,
            book: Book::new(),
            rng: ChaCha8Rng::seed_from_u64(seed),
            outputs: VecDeque::new(),
            started_at: None,
            top_up_at: Time::ZERO,
            ask_at: Time::ZERO,
            ask_wait: dialing::ASK_MIN,
            timeout: Some(Time::ZERO),
        };
        for peer in bootstrap.into_iter().filter(|peer| *peer != own) {
            let slot = this.entry(peer).expect("a ticket names few peers");
            this.book.change(slot, |known| {
                known.bootstrap = true;
                known.state = State::Ready;
            });
        }
        this
    }

    /// A connection with a peer stands. `dialed`: by this side.
    pub fn handle_connected(&mut self, now: Time, peer: N, dialed: bool) {
        let Some(slot) = self.entry(peer) else { return self.disconnect(peer, Reason::Crowded) };
        let known = self.book.get(slot);
        if known.is_here() {
            return;
        }
        if known.banned_until > now {
            let until = known.banned_until;
            self.disconnect(peer, Reason::Banned);
            self.rest(slot, until);
        } else if known.bootstrap || self.book.tally().places() < self.config.neighbours_max {
            self.place(slot, State::Greeting { dialed }, Some(now + HELLO_MAX));
        } else if self.book.tally().leaving < self.config.leaving_max {
            self.place(slot, State::Leaving, Some(now + FAREWELL_MAX));
        } else {
            self.disconnect(peer, Reason::Crowded);
            let retry_at = self.refused_retry(now);
            self.rest(slot, retry_at);
        }
        self.advance(now);
    }

    /// A peer's first words on a connection.
    pub fn handle_hello(&mut self, now: Time, peer: N, greeting: Greeting<A>) {
        let Some(slot) = self.book.find(peer) else { return };
        let state = self.book.get(slot).state;
        if !matches!(state, State::Greeting { .. } | State::Leaving) {
            return;
        }
        let near = self.is_near(&greeting.zone);
        self.book.change(slot, |known| {
            known.near = near;
            known.zone = greeting.zone;
            known.seeder = greeting.seeder;
            known.add_addresses(greeting.addresses);
        });
        match state {
            State::Greeting { dialed } if self.has_room_for(slot, dialed) => self.welcome(now, slot, dialed),
            _ => self.refuse(now, slot),
        }
        self.advance(now);
    }

    /// A dial came to nothing.
    pub fn handle_dial_failed(&mut self, now: Time, peer: N) {
        let Some(slot) = self.book.find(peer) else { return };
        if let State::Dialing { .. } = self.book.get(slot).state {
            self.retry_later(now, slot);
        }
        self.advance(now);
    }

    /// The connection is gone, whoever closed it.
    pub fn handle_disconnected(&mut self, now: Time, peer: N) {
        let Some(slot) = self.book.find(peer) else { return };
        match self.book.get(slot).state {
            State::Greeting { .. } => self.retry_later(now, slot),
            State::Leaving => {
                let retry_at = self.refused_retry(now);
                self.rest(slot, retry_at);
            }
            State::Neighbour { since, .. } => {
                self.book.change(slot, |known| {
                    known.tell_until = None;
                    known.lost_until = Some(now + LOST_FOR);
                    if now.since(since) >= STEADY {
                        known.failures = 0;
                        known.refusals = 0;
                    }
                });
                self.retry_later(now, slot);
                self.ask_soon(now);
            }
            State::Ready | State::Waiting | State::Dialing { .. } => return,
        }
        self.advance(now);
    }

    /// A neighbour told of others.
    pub fn handle_told(&mut self, now: Time, contacts: Vec<Contact<N, A>>) {
        self.learn(now, contacts);
        self.advance(now);
    }

    /// A peer has no room, and told whom else to ask.
    pub fn handle_refused(&mut self, now: Time, peer: N, contacts: Vec<Contact<N, A>>) {
        self.learn(now, contacts);
        let slot = self.book.find(peer);
        if let Some(slot) = slot.filter(|slot| self.is_placed(*slot)) {
            self.disconnect(peer, Reason::Refused);
            let (retry_at, full_until) = self.full_wait(now, slot);
            self.book.change(slot, |known| {
                known.refusals += 1;
                known.full_until = full_until;
                known.lost_until = None;
                known.tell_until = None;
            });
            self.rest(slot, retry_at);
        }
        self.advance(now);
    }

    /// A neighbour asks whom to dial.
    pub fn handle_peers_wanted(&mut self, now: Time, peer: N) {
        let Some(slot) = self.book.find(peer) else { return };
        if let State::Neighbour { .. } = self.book.get(slot).state {
            let peers = self.contacts_for(now, slot);
            self.outputs.push_back(Output::Tell { to: peer, peers });
        }
    }

    /// A peer broke the protocol, and the driver hung up: it is not dialed, not let in and not told of for a while.
    pub fn handle_fault(&mut self, now: Time, peer: N) {
        // Without an entry, all of which are needed: it comes back, and is thrown out again.
        let Some(slot) = self.entry(peer) else { return };
        self.book.change(slot, |known| {
            known.banned_until = now + BAN;
            known.lost_until = None;
            known.tell_until = None;
        });
        self.rest(slot, now + BAN);
        self.advance(now);
    }

    /// The time that [`Neighbourhood::poll_timeout`] said has come. Early or late is no harm.
    pub fn handle_timeout(&mut self, now: Time) {
        self.advance(now);
    }

    pub fn poll_output(&mut self) -> Option<Output<N, A>> {
        self.outputs.pop_front()
    }

    /// When to call [`Neighbourhood::handle_timeout`] unless another input comes first; may lie in the past.
    pub fn poll_timeout(&self) -> Option<Time> {
        self.timeout
    }

    /// Whether the peer is connected and has a place, so that it may be traded with.
    pub fn is_welcome(&self, peer: N) -> bool {
        self.book.find(peer).is_some_and(|slot| self.is_placed(slot))
    }

    /// The peers that said hello and have a place, in no particular order.
    pub fn neighbours(&self) -> impl Iterator<Item = N> {
        self.book.neighbours().all().iter().map(|slot| self.book.get(*slot).id)
    }

    /// Panics when an invariant is broken. Walks everything: for tests and simulations.
    pub fn assert_invariants(&self) {
        self.book.assert_invariants();
        let tally = self.book.tally();
        let guests = self.book.all().filter(|known| known.bootstrap && known.is_here()).count();
        assert!(tally.places() <= self.config.neighbours_max + guests, "{tally:?}");
        assert!(tally.leaving <= self.config.leaving_max + 1, "{tally:?}");
        assert!(self.book.len() <= self.config.known_max);
        assert!(self.book.find(self.own).is_none(), "a peer is no neighbour of its own");
    }

    fn entry(&mut self, peer: N) -> Option<Slot> {
        self.book.entry(peer, self.config.known_max, &mut self.rng)
    }

    fn is_near(&self, zone: &Zone) -> bool {
        !self.zone.is_unknown() && self.zone.distance(zone) == Distance::NONE
    }

    fn is_placed(&self, slot: Slot) -> bool {
        matches!(self.book.get(slot).state, State::Greeting { .. } | State::Neighbour { .. })
    }

    /// Where racks are known, room is kept for one's own.
    fn has_room_for(&self, slot: Slot, dialed: bool) -> bool {
        let known = self.book.get(slot);
        let far_max = self.config.neighbours_max - self.config.near_wanted;
        let open = dialed || known.near || known.seeder || known.bootstrap || self.zone.is_unknown();
        open || self.book.tally().neighbours[0] < far_max
    }

    fn welcome(&mut self, now: Time, slot: Slot, dialed: bool) {
        self.book.change(slot, |known| {
            known.lost_until = None;
            // A seeder is named by the ticket.
            let worth_telling = !known.seeder && !known.addresses.is_empty();
            known.tell_until = worth_telling.then_some(Time::from_nanos(u64::MAX));
        });
        self.place(slot, State::Neighbour { dialed, since: now }, None);
        if self.started_at.is_none() {
            self.started_at = Some(now);
            self.ask_soon(now);
        }
        let peers = self.contacts_for(now, slot);
        if !peers.is_empty() {
            self.outputs.push_back(Output::Tell { to: self.book.get(slot).id, peers });
        }
    }

    /// Others learn of it all the same: who is refused is who needs neighbours.
    fn refuse(&mut self, now: Time, slot: Slot) {
        self.book.change(slot, |known| {
            let worth_telling = !known.addresses.is_empty();
            known.tell_until = worth_telling.then_some(now + TELL_REFUSED_FOR);
        });
        self.place(slot, State::Leaving, Some(now + FAREWELL_MAX));
        let peers = self.contacts_for(now, slot);
        self.outputs.push_back(Output::Refuse { peer: self.book.get(slot).id, peers });
    }

    fn learn(&mut self, now: Time, contacts: Vec<Contact<N, A>>) {
        let mut news = false;
        for contact in contacts {
            if contact.id == self.own || contact.addresses.is_empty() {
                continue;
            }
            let near = self.is_near(&contact.zone);
            let Some(slot) = self.entry(contact.id) else { continue };
            let known = self.book.get(slot);
            let is_known = contact.addresses.iter().all(|address| known.addresses.contains(address));
            // What it said itself counts more.
            if known.is_here() || (is_known && known.zone == contact.zone) {
                continue;
            }
            let mut is_new = false;
            self.book.change(slot, |known| {
                known.near = near;
                known.zone = contact.zone;
                is_new = known.add_addresses(contact.addresses);
                if is_new && known.state == State::Waiting && known.full_until <= now {
                    known.failures = 0;
                    known.alarm = Some(now.max(known.banned_until));
                }
            });
            news |= is_new;
        }
        if news {
            self.ask_soon(now);
        }
    }

    fn disconnect(&mut self, peer: N, reason: Reason) {
        self.outputs.push_back(Output::Disconnect { peer, reason });
    }

    fn place(&mut self, slot: Slot, state: State, alarm: Option<Time>) {
        self.book.change(slot, |known| {
            known.state = state;
            known.alarm = alarm;
        });
    }

    /// The peer is not here; it may be dialed again from `until` on, if that is possible at all.
    fn rest(&mut self, slot: Slot, until: Time) {
        let Known { bootstrap, banned_until, ref addresses, .. } = *self.book.get(slot);
        if addresses.is_empty() && !bootstrap && banned_until < until {
            self.book.forget(slot);
        } else {
            self.place(slot, State::Waiting, Some(until.max(banned_until)));
        }
    }
}

impl fmt::Display for Reason {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Banned => "it broke the protocol a short while ago",
            Self::NoHello => "it said no hello",
            Self::Crowded => "there are too many at the door",
            Self::NoRoom => "there are neighbours enough",
            Self::Refused => "it has neighbours enough",
            Self::NoMember => "one of the two is no member",
        })
    }
}
