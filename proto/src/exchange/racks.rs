//! Racks: each takes each piece about once over its uplink, and so does each zone of racks.
//!
//! Whoever fetches a piece from distance `d` tells all its neighbours nearer than `d`: an *intent*. A piece that some
//! neighbour nearer than `d` holds or intends to fetch is *covered* at `d`: it is not taken from `d` or farther, and
//! neighbours at `d` are told, who then do not grant for its sake; what they are told covers it for *their* farther
//! neighbours in turn. Nobody relies on that for long: an intent ends with its fetch, its lease or its teller, and a
//! piece that stays covered without coming is taken from afar after all (`Config::patience_percent`), so that a rack
//! whose holders are stuck is never starved; each such fetch is an intent again.

use std::time::Duration;

use rand::Rng;

use super::message::HAVES_PER_MESSAGE_MAX;
use super::neighbours::Peer;
use super::pace::percent;
use super::{Bitfield, Exchange, Fault, Message, PeerKey};
use crate::image::PieceIndex;
use crate::time::Time;
use crate::zone::{Distance, ZONE_LEVELS_MAX};

/// Most intents remembered of one peer; a fetcher has fewer pieces coming.
const INTENTS_PER_PEER_MAX: usize = 64;
/// What a rack has coming over its uplink at most, in what one uploader has in hand: a rack needs one upload's worth,
/// and the rest is for unevenness.
const RACK_UPLOADS: usize = 3;
/// Leases after which a peer's intent to fetch one piece is believed no more, however often it is repeated.
const LEASES_MAX: u32 = 4;

/// What a neighbour says it is fetching from afar, oldest first.
#[derive(Debug, Default)]
pub(super) struct HeardIntents(Vec<HeardIntent>);

#[derive(Debug)]
struct HeardIntent {
    piece: PieceIndex,
    first: Time,
    /// Not live from then on.
    until: Time,
}

impl HeardIntents {
    /// Returns whether it is believed.
    fn hear(&mut self, now: Time, piece: PieceIndex, lease: Duration) -> bool {
        if let Some(known) = self.0.iter_mut().find(|intent| intent.piece == piece) {
            known.until = (now + lease).min(known.first + lease * LEASES_MAX);
            return known.until > now;
        }
        if self.0.len() == INTENTS_PER_PEER_MAX {
            self.0.remove(0);
        }
        self.0.push(HeardIntent { piece, first: now, until: now + lease });
        true
    }

    /// The piece came.
    pub(super) fn forget(&mut self, piece: PieceIndex) {
        self.0.retain(|intent| intent.piece != piece);
    }

    /// Remembered all the same: a piece is intended for [`LEASES_MAX`] leases, with breaks or without.
    fn end(&mut self, now: Time, piece: PieceIndex) {
        if let Some(known) = self.0.iter_mut().find(|intent| intent.piece == piece) {
            known.until = known.until.min(now);
        }
    }

    fn live(&self, now: Time) -> impl Iterator<Item = (PieceIndex, Time)> + '_ {
        self.0.iter().filter(move |intent| intent.until > now).map(|intent| (intent.piece, intent.until))
    }
}

/// What this side knows and says of what is where.
#[derive(Debug, Default)]
pub(super) struct Racks {
    /// One per distance at which a neighbour was met, but for its own rack; nearest first.
    levels: Vec<Level>,
    /// Own fetches from afar that neighbours were told of.
    told: Vec<ToldIntent>,
    /// Hundredths of `Config::patience_percent`, drawn when the first neighbour from afar is met: a rack must not
    /// lose its patience as one.
    patience_percent: u32,
    /// Uploads that may still begin, by distance: valid only within a refill.
    far_room: [usize; ZONE_LEVELS_MAX + 1],
    /// When to look at the levels again.
    due: Option<Time>,
    /// When they were last looked at.
    looked: Time,
}

#[derive(Clone, Copy, Debug)]
struct ToldIntent {
    piece: PieceIndex,
    /// How far away the piece comes from.
    distance: Distance,
    /// When it was last said.
    said: Time,
}

/// The boundary between what is nearer than `distance` and the rest.
#[derive(Debug)]
struct Level {
    distance: Distance,
    /// Shown, intended or said to be covered by a neighbour nearer than `distance`, or on its way here from afar, as of
    /// the last look.
    near: Bitfield,
    /// When a neighbour nearer by last came to have each piece of `near`, in milliseconds.
    since: Vec<u32>,
    /// What neighbours at `distance` were told: `near` without what is overdue.
    covered: Bitfield,
}

impl Racks {
    fn level(&self, distance: Distance) -> Option<&Level> {
        self.levels.iter().find(|level| level.distance == distance)
    }

    pub(super) fn assert_invariants(&self, coming: &Bitfield) {
        assert!(self.levels.is_sorted_by(|one, next| one.distance < next.distance));
        for level in &self.levels {
            assert!(!level.covered.has_any_not_in(&level.near), "covered by nobody");
        }
        for (at, told) in self.told.iter().enumerate() {
            assert!(coming.contains(told.piece), "{:?} is intended and does not come", told.piece);
            assert!(self.told[..at].iter().all(|other| other.piece != told.piece));
        }
    }

    /// When to call [`Exchange::look_around`].
    pub(super) fn due(&self) -> Option<Time> {
        self.due
    }

    fn look_by(&mut self, at: Time) {
        self.due = Some(self.due.map_or(at, |due| due.min(at)));
    }
}

impl Level {
    /// Pieces of `near` that are wanted here and have been for longer than `patience`; and when the next one will.
    fn overdue(
        &self,
        now: Time,
        near: &Bitfield,
        settled: &Bitfield,
        patience: Duration,
    ) -> (Bitfield, Option<Time>) {
        let mut overdue = Bitfield::empty(near.len());
        let mut next: Option<Time> = None;
        let words = near.words().iter().zip(settled.words()).zip(self.near.words());
        for (at, ((near, settled), known)) in (0u32..).zip(words) {
            let mut waited_for = near & !settled & known;
            while waited_for != 0 {
                let piece = PieceIndex::new(at * u64::BITS + waited_for.trailing_zeros());
                let until = from_millis(self.since[piece.at()]) + patience;
                if until <= now {
                    overdue.insert(piece);
                } else {
                    next = Some(next.map_or(until, |next| next.min(until)));
                }
                waited_for &= waited_for - 1;
            }
        }
        (overdue, next)
    }
}

impl Exchange {
    /// A neighbour was met, and has the announcement.
    pub(super) fn meet(&mut self, now: Time, key: PeerKey, distance: Distance) {
        if distance == Distance::NONE {
            return;
        }
        if self.racks.levels.is_empty() {
            self.racks.patience_percent = self.rng.random_range(100..200);
        }
        if let Err(at) = self.racks.levels.binary_search_by_key(&distance, |level| level.distance) {
            let nothing = || Bitfield::empty(self.pieces.len());
            let (near, covered, since) = (nothing(), nothing(), vec![0; self.pieces.len()]);
            self.racks.levels.insert(at, Level { distance, near, since, covered });
            return self.look_around(now);
        }
        let level = self.racks.level(distance).expect("it was found");
        let mut unheld = level.covered.clone();
        unheld.remove_all(&self.held);
        self.say_covered(&[key], unheld.iter().collect(), true);
    }

    /// Something changed about what is to be had nearer by.
    pub(super) fn note_near(&mut self, now: Time) {
        if !self.racks.levels.is_empty() {
            let due = self.racks.looked + self.have_interval();
            self.racks.look_by(due.max(now));
        }
    }

    /// Neighbours nearer by show these pieces: worth a look when they are new there.
    pub(super) fn note_shown(&mut self, now: Time, distance: Distance, pieces: &[PieceIndex]) -> bool {
        let is_news = |level: &Level| {
            level.distance > distance && pieces.iter().any(|&piece| !level.near.contains(piece))
        };
        let news = self.racks.levels.iter().any(is_news);
        for level in self.racks.levels.iter_mut().filter(|level| level.distance > distance) {
            pieces.iter().for_each(|piece| level.since[piece.at()] = millis(now.since(Time::ZERO)));
        }
        if news {
            self.note_near(now);
        }
        news
    }

    /// A neighbour takes a request: what it holds is to be had from it, now or next time.
    pub(super) fn note_fed(&mut self, now: Time, slot: usize) {
        let peer = &self.neighbours.all()[slot];
        for level in self.racks.levels.iter_mut().filter(|level| level.distance > peer.distance) {
            let words = peer.shown.words().iter().zip(self.settled.words());
            for (at, (shown, settled)) in (0u32..).zip(words) {
                let mut missing = shown & !settled;
                while missing != 0 {
                    let piece = PieceIndex::new(at * u64::BITS + missing.trailing_zeros());
                    level.since[piece.at()] = millis(now.since(Time::ZERO));
                    missing &= missing - 1;
                }
            }
        }
    }

    pub(super) fn on_intent(&mut self, now: Time, slot: usize, piece: PieceIndex, live: bool) {
        let lease = self.lease();
        let peer = &mut self.neighbours.all_mut()[slot];
        let distance = peer.distance;
        if !live {
            peer.intents.end(now, piece);
        } else if !peer.shown.contains(piece) && peer.intents.hear(now, piece, lease) {
            self.give_time(now, distance, piece, lease);
        }
        self.note_near(now);
    }

    /// A piece that was waited for too long is fetched from afar by a neighbour: it gets a lease's time to arrive.
    fn give_time(&mut self, now: Time, distance: Distance, piece: PieceIndex, lease: Duration) {
        let patience = self.patience();
        let least = now.since(Time::ZERO + patience) + lease;
        for level in self.racks.levels.iter_mut().filter(|level| level.distance > distance) {
            let since = &mut level.since[piece.at()];
            *since = (*since).max(millis(least));
        }
    }

    /// Returns the fault, if it is one.
    pub(super) fn on_covered(
        &mut self,
        now: Time,
        slot: usize,
        pieces: &[PieceIndex],
        covered: bool,
    ) -> Result<(), Fault> {
        if self.neighbours.all()[slot].distance == Distance::NONE {
            return Err(Fault::Protocol("a word of what is nearer, within the rack"));
        }
        for &piece in pieces {
            self.neighbours.cover(slot, piece, covered, &self.held);
        }
        self.note_near(now);
        if !covered {
            self.refill(now);
        }
        Ok(())
    }

    /// How many uploads may go how far: one to each distance, or as many as the neighbours nearer by leave idle.
    pub(super) fn bound_far(
        &mut self,
        near: [usize; ZONE_LEVELS_MAX + 1],
        in_hand: [usize; ZONE_LEVELS_MAX + 1],
    ) {
        let mut nearer = 0;
        for (distance, room) in self.racks.far_room.iter_mut().enumerate() {
            let most = self.config.uploads_in_hand.saturating_sub(nearer).max(1);
            *room = most.saturating_sub(in_hand[distance]);
            nearer += near[distance];
        }
        self.drop_far();
    }

    fn drop_far(&mut self) {
        let room = self.racks.far_room;
        let peers = self.neighbours.all();
        self.far_candidates.retain(|&slot| room[peers[slot].distance.levels()] > 0);
    }

    /// Grants to the less complete of two random neighbours outside the rack, where there is one that lacks something
    /// there and an upload may go so far: before any in the rack, which waits for what the other racks give in turn.
    pub(super) fn grant_far(&mut self, now: Time) -> bool {
        let [one, two] = [(); 2].map(|()| self.rng.random_range(0..self.far_candidates.len()));
        let count = |at: usize| self.neighbours.all()[self.far_candidates[at]].shown.count();
        let slot = self.far_candidates.swap_remove(if count(two) < count(one) { two } else { one });
        let Peer { key, distance, .. } = self.neighbours.all()[slot];
        self.racks.far_room[distance.levels()] -= 1;
        self.drop_far();
        self.grant(now, key, None);
        true
    }

    /// Whether enough pieces are coming from as far as that neighbour or farther, for this side and those who are
    /// nearer to it: more would only crowd the link that they share.
    pub(super) fn is_rack_busy(&self, now: Time, slot: usize) -> bool {
        let distance = self.neighbours.all()[slot].distance;
        if distance == Distance::NONE {
            return false;
        }
        let near = self.neighbours.all().iter().filter(|peer| peer.distance < distance);
        let theirs: usize = near.map(|peer| peer.intents.live(now).count()).sum();
        theirs + self.racks.told.len() >= self.config.uploads_in_hand * RACK_UPLOADS
    }

    /// Pieces that may be coming when a neighbour grants another.
    pub(super) fn most_coming(&self, slot: usize) -> usize {
        let far = self.neighbours.all()[slot].distance > Distance::NONE;
        self.config.fetches_coming + if far { self.config.fetches_from_afar } else { 0 }
    }

    /// What may be taken from a neighbour, as far as the zones go: what it shows, without what is covered nearer by.
    pub(super) fn offered_by(&self, now: Time, slot: usize) -> Option<Bitfield> {
        let peer = &self.neighbours.all()[slot];
        let level = self.racks.level(peer.distance)?;
        let (near, _) = self.near(now, peer.distance);
        let (overdue, _) = level.overdue(now, &near, &self.settled, self.patience());
        let mut offered = peer.shown.clone();
        let mut covered = near;
        covered.remove_all(&overdue);
        offered.remove_all(&covered);
        Some(offered)
    }

    /// What this side fetches from afar and what neighbours nearer than `distance` show, intend or say to be covered,
    /// and when the first intent ends.
    fn near(&self, now: Time, distance: Distance) -> (Bitfield, Option<Time>) {
        let mut near = Bitfield::empty(self.pieces.len());
        let mut first_end: Option<Time> = None;
        for own in &self.racks.told {
            near.insert(own.piece);
        }
        let is_near = |peer: &&Peer| peer.distance < distance && !peer.seeder;
        for peer in self.neighbours.all().iter().filter(is_near) {
            near.insert_all(&peer.shown);
            peer.covered.iter().for_each(|covered| near.insert_all(covered));
            for (piece, until) in peer.intents.live(now) {
                near.insert(piece);
                first_end = Some(first_end.map_or(until, |end| end.min(until)));
            }
        }
        (near, first_end)
    }

    /// Looks what is covered, and tells those who should know.
    pub(super) fn look_around(&mut self, now: Time) {
        let patience = self.patience();
        self.racks.due = None;
        self.racks.looked = now;
        for at in 0..self.racks.levels.len() {
            let distance = self.racks.levels[at].distance;
            let (near, intents_end) = self.near(now, distance);
            let level = &mut self.racks.levels[at];
            let mut news = near.clone();
            news.remove_all(&level.near);
            news.iter().for_each(|piece| level.since[piece.at()] = millis(now.since(Time::ZERO)));
            level.near = near;
            let (overdue, next_overdue) = level.overdue(now, &level.near, &self.settled, patience);
            let mut covered = level.near.clone();
            covered.remove_all(&overdue);
            let mut gained = covered.clone();
            gained.remove_all(&level.covered);
            // What is held here is not granted anyway.
            gained.remove_all(&self.held);
            let mut lost = std::mem::replace(&mut level.covered, covered);
            lost.remove_all(&level.covered);
            [intents_end, next_overdue].into_iter().flatten().for_each(|at| self.racks.look_by(at));
            let at_distance = |peer: &&Peer| peer.distance == distance;
            let keys: Vec<_> =
                self.neighbours.all().iter().filter(at_distance).map(|peer| peer.key).collect();
            self.say_covered(&keys, gained.iter().collect(), true);
            self.say_covered(&keys, lost.iter().collect(), false);
        }
    }

    fn say_covered(&mut self, peers: &[PeerKey], pieces: Vec<PieceIndex>, covered: bool) {
        for batch in pieces.chunks(HAVES_PER_MESSAGE_MAX) {
            for &peer in peers {
                let pieces = batch.to_vec();
                self.send(peer, if covered { Message::Covered(pieces) } else { Message::Uncovered(pieces) });
            }
        }
    }

    /// Says what is being fetched from afar to those who are nearer, again before their lease ends, and takes it back
    /// when the fetch is over or nothing of it arrives. Every input ends here; without a fetch from afar it does nothing.
    pub(super) fn tell_intents(&mut self, now: Time) {
        if self.racks.levels.is_empty() {
            return;
        }
        let alive = self.alive_since(now);
        for at in (0..self.racks.told.len()).rev() {
            let ToldIntent { piece, distance, .. } = self.racks.told[at];
            if !self.is_fetched_from_afar(piece, alive) && !self.fetches.is_writing(piece) {
                self.racks.told.swap_remove(at);
                if !self.held.contains(piece) {
                    self.say_intent(piece, false, distance);
                }
            }
        }
        let repeat_after = self.lease() / 3;
        for at in 0..self.fetches.asked().len() {
            let fetch = self.fetches.asked()[at];
            let distance = self.neighbours.slot(fetch.from).map(|slot| self.neighbours.all()[slot].distance);
            let Some(distance) =
                distance.filter(|&distance| distance > Distance::NONE && fetch.heard >= alive)
            else {
                continue;
            };
            let intent = ToldIntent { piece: fetch.piece, distance, said: now };
            match self.racks.told.iter_mut().find(|told| told.piece == fetch.piece) {
                Some(told) if now.since(told.said) < repeat_after => continue,
                Some(told) => *told = intent,
                None => {
                    self.racks.told.push(intent);
                    self.note_near(now);
                }
            }
            self.say_intent(fetch.piece, true, distance);
        }
    }

    /// Fetches of which nothing arrived since then are not worth waiting for.
    fn alive_since(&self, now: Time) -> Time {
        let slow = self.down.transfer().map(|usual| percent(usual, self.config.slow_percent));
        let patience = slow.unwrap_or(self.config.stall_min);
        Time::ZERO + now.since(Time::ZERO + patience)
    }

    fn is_fetched_from_afar(&self, piece: PieceIndex, alive: Time) -> bool {
        self.fetches.asked().iter().filter(|fetch| fetch.piece == piece && fetch.heard >= alive).any(
            |fetch| {
                let slot = self.neighbours.slot(fetch.from);
                slot.is_some_and(|slot| self.neighbours.all()[slot].distance > Distance::NONE)
            },
        )
    }

    /// To all that are nearer than `distance`.
    fn say_intent(&mut self, piece: PieceIndex, live: bool, distance: Distance) {
        for slot in 0..self.neighbours.all().len() {
            let peer = &self.neighbours.all()[slot];
            if peer.distance < distance && !peer.seeder && !peer.shown.contains(piece) {
                self.send(peer.key, Message::Intent { piece, live });
            }
        }
    }

    fn lease(&self) -> Duration {
        percent(self.block_time(), self.config.lease_percent).max(self.config.lease_min)
    }

    fn patience(&self) -> Duration {
        let least = percent(self.block_time(), self.config.patience_percent).max(self.config.patience_min);
        percent(least, self.racks.patience_percent)
    }
}

fn millis(duration: Duration) -> u32 {
    duration.as_millis().try_into().unwrap_or(u32::MAX)
}

fn from_millis(millis: u32) -> Time {
    Time::ZERO + Duration::from_millis(millis.into())
}
