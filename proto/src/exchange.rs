//! The state machine of one peer's side of trading one piece list.
//!
//! The policy is *late binding*: nothing queues at an uploader. One that has room grants it to the less complete of
//! two random neighbours (`uploads`); the receiver answers at once with a request for its rarest missing piece
//! there, or declines (`downloads`, `picker`). A seeder hides what it holds and gives each piece once by name
//! before any twice (`super_seeding`). No wait is a constant of some network: waits are multiples of the time a
//! transfer was measured to take (`pace`), within the bounds of [`Config`].

pub mod bitfield;
mod config;
mod downloads;
mod event;
mod famine;
mod fetches;
mod haves;
pub mod message;
mod neighbours;
mod pace;
mod picker;
mod racks;
mod super_seeding;
#[cfg(test)]
mod tests;
mod uploads;

use std::collections::VecDeque;
use std::sync::Arc;
use std::time::Duration;

pub use bitfield::Bitfield;
pub use config::Config;
pub use event::{Event, Fault, Output, Receipt};
pub use message::{Announcement, Declined, Message};

use famine::Famine;
use fetches::Fetches;
use haves::Haves;
use neighbours::{Neighbours, Upload};
use pace::{Pace, percent};
use racks::Racks;
use rand::{Rng, SeedableRng};
use rand_chacha::ChaCha8Rng;
use super_seeding::SuperSeeding;

use crate::image::{PieceIndex, PieceList};
use crate::time::Time;
use crate::zone::Distance;

/// Least and most time between two looks at what is overdue. A look costs a walk over the neighbours.
const LOOK_INTERVAL_MIN: Duration = Duration::from_millis(10);
const LOOK_INTERVAL_MAX: Duration = Duration::from_millis(250);
/// Block-times between two looks.
const LOOK_INTERVAL_PERCENT: u32 = 200;

/// A peer as the driver numbers it: stable while the peer is connected to this exchange, never reused.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct PeerKey(pub u32);

/// How this side trades.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Role {
    /// Holds everything, hides its bitfield and grants every piece once by name before any twice (BEP 16).
    Seeder,
    /// Fetches what it lacks and serves what it holds.
    Node,
}

/// Trades one piece list with its neighbours: one input (`handle_*`), then drain [`Exchange::poll_output`] until
/// `None`, then sleep until [`Exchange::poll_timeout`] and call [`Exchange::handle_timeout`].
///
/// **Invariant:** a piece is missing, requested, writing or held: exactly one. An unwanted one is missing or held.
#[derive(Debug)]
pub struct Exchange {
    config: Config,
    pieces: Arc<PieceList>,
    held: Bitfield,
    /// Pieces that this side can do without: never asked for.
    unwanted: Option<Bitfield>,
    /// What is not asked for: `held` and `unwanted` together.
    settled: Bitfield,
    neighbours: Neighbours,
    fetches: Fetches,
    haves: Haves,
    famine: Famine,
    racks: Racks,
    /// This exchange's share of the node's uploads in hand.
    upload_share: usize,
    /// Present in a seeder, which never fetches.
    seeding: Option<SuperSeeding>,
    /// Request to last byte, of downloads and of uploads.
    down: Pace,
    up: Pace,
    rng: ChaCha8Rng,
    outputs: VecDeque<Output>,
    /// What [`Exchange::poll_timeout`] says.
    timeout: Option<Time>,
    /// The next look at what is overdue, when anything is under way.
    look_at: Option<Time>,
    /// End of the first wait of a neighbour that there is room for.
    retry_at: Option<Time>,
    /// Whether anything is under way on the upload side, as of the last refill: may be stale towards true.
    uploads_under_way: bool,
    /// Neighbours that may be granted to: valid only within a refill, kept for its memory.
    candidates: Vec<usize>,
    /// The same, outside the rack.
    far_candidates: Vec<usize>,
}

impl Exchange {
    /// `held` says what this side has at the start; `seed` seeds every random choice.
    ///
    /// # Panics
    /// When `held` is of another length than `pieces`.
    pub fn new(config: Config, role: Role, pieces: Arc<PieceList>, held: Bitfield, seed: u64) -> Self {
        assert_eq!(held.len(), pieces.len(), "a bitfield of another list");
        let mut rng = ChaCha8Rng::seed_from_u64(seed);
        let seeding = (role == Role::Seeder)
            .then(|| SuperSeeding::new(&held, rng.random_range(0..pieces.len().max(1))));
        Self {
            upload_share: usize::MAX,
            config,
            neighbours: Neighbours::new(pieces.len()),
            fetches: Fetches::new(pieces.len()),
            pieces,
            settled: held.clone(),
            held,
            unwanted: None,
            haves: Haves::default(),
            famine: Famine::default(),
            racks: Racks::default(),
            seeding,
            down: Pace::default(),
            up: Pace::default(),
            rng,
            outputs: VecDeque::new(),
            timeout: None,
            look_at: None,
            retry_at: None,
            uploads_under_way: false,
            candidates: Vec::new(),
            far_candidates: Vec::new(),
        }
    }

    /// Lets a new exchange do without some pieces: it never asks for them and is complete without them. One that it
    /// holds all the same is announced and served like any other, and missed no more when it is lost.
    ///
    /// # Panics
    /// When `unwanted` is of another length than the list, or the exchange has met a neighbour.
    #[must_use]
    pub fn without(mut self, unwanted: Bitfield) -> Self {
        assert_eq!(unwanted.len(), self.pieces.len(), "a bitfield of another list");
        assert!(self.neighbours.all().is_empty(), "a neighbour was told otherwise");
        self.settled.insert_all(&unwanted);
        self.unwanted = (!unwanted.is_empty()).then_some(unwanted);
        self
    }

    /// Both sides trade this list from now on. `distance` is how far away the peer stands, the same on both sides.
    pub fn handle_connected(&mut self, now: Time, peer: PeerKey, distance: Distance) {
        if !self.neighbours.insert(peer, distance, now) {
            return;
        }
        let held = || self.held.clone();
        let announcement = match (&self.seeding, &self.unwanted) {
            (Some(_), _) if self.held.is_full() => Announcement::Seeder,
            (_, Some(unwanted)) => Announcement::Selective { held: held(), unwanted: unwanted.clone() },
            _ => Announcement::Held(held()),
        };
        self.send(peer, Message::Announce(announcement));
        if distance > Distance::NONE {
            self.meet(now, peer, distance);
            self.plan_timeout(now);
        }
    }

    /// The connection is gone, whoever closed it. Does nothing for a peer that a fault removed already.
    pub fn handle_disconnected(&mut self, now: Time, peer: PeerKey) {
        self.forget(now, peer);
        self.refill(now);
        self.plan_timeout(now);
    }

    /// A message from a peer, in the order it sent them. A message from a peer that is gone is ignored.
    pub fn handle_message(&mut self, now: Time, peer: PeerKey, message: Message) {
        let Some(slot) = self.neighbours.slot(peer) else { return };
        if self.neighbours.all()[slot].announced == matches!(message, Message::Announce(_)) {
            return self.fault(now, peer, Fault::Protocol("an announcement that is not its first and only"));
        }
        let result = match message {
            Message::Announce(announcement) => self.on_announce(now, slot, announcement),
            // The one frequent message: it gives nobody more to do, so the timeout stands.
            Message::Have(pieces) => return self.on_have(now, slot, &pieces),
            Message::Grant(named) => self.on_grant(now, peer, named),
            Message::Request(piece) => self.on_request(now, peer, piece),
            Message::Decline(why) => self.on_decline(now, peer, why),
            Message::Cancel(piece) => {
                self.on_cancel(peer, piece);
                Ok(())
            }
            Message::Withdraw(piece) => {
                let kept = self.on_withdraw(peer, piece);
                self.note_unseen(now, piece);
                self.note_near(now);
                self.refill(now);
                kept
            }
            Message::Intent { piece, live } => {
                self.on_intent(now, slot, piece, live);
                Ok(())
            }
            Message::Covered(pieces) => self.on_covered(now, slot, &pieces, true),
            Message::Uncovered(pieces) => self.on_covered(now, slot, &pieces, false),
        };
        match result {
            Ok(()) => self.plan_timeout(now),
            Err(fault) => self.fault(now, peer, fault),
        }
    }

    fn on_announce(&mut self, now: Time, slot: usize, announcement: Announcement) -> Result<(), Fault> {
        let pieces = self.pieces.len();
        let (seeder, shown, unwanted) = match announcement {
            Announcement::Seeder => (true, Bitfield::full(pieces), None),
            Announcement::Held(shown) => (false, shown, None),
            Announcement::Selective { held, unwanted } => (false, held, Some(unwanted)),
        };
        if shown.len() != pieces || unwanted.as_ref().is_some_and(|unwanted| unwanted.len() != pieces) {
            return Err(Fault::Protocol("a bitfield of another list"));
        }
        self.neighbours.announce(slot, seeder, shown, unwanted, &self.held);
        self.note_near(now);
        self.note_replicated();
        self.refill(now);
        Ok(())
    }

    fn on_have(&mut self, now: Time, slot: usize, pieces: &[PieceIndex]) {
        for &piece in pieces {
            let news = self.neighbours.show(slot, piece, &self.held);
            let peer = &mut self.neighbours.all_mut()[slot];
            if news && !peer.was_sent(piece) {
                peer.fed_elsewhere = now;
            }
            if let (true, 2, Some(seeding)) = (news, self.neighbours.copies_of(piece), &mut self.seeding) {
                seeding.note_spread(now, piece);
            }
        }
        if self.note_shown(now, self.neighbours.all()[slot].distance, pieces) {
            self.plan_timeout(now);
        }
        self.note_replicated();
    }

    /// A held piece can no longer be read: it is missing again, and neighbours are told. Uploads of it are over.
    pub fn handle_lost(&mut self, now: Time, piece: PieceIndex) {
        if !self.held.remove(piece) {
            return;
        }
        if self.unwanted.as_ref().is_none_or(|unwanted| !unwanted.contains(piece)) {
            self.settled.remove(piece);
        }
        self.neighbours.lost_here(piece);
        self.haves.forget(piece);
        if let Some(seeding) = &mut self.seeding {
            seeding.lose(piece);
        }
        for slot in 0..self.neighbours.all().len() {
            let peer = &mut self.neighbours.all_mut()[slot];
            if matches!(peer.upload, Upload::Sending { piece: sending, .. } if sending == piece) {
                peer.upload = Upload::Idle;
            }
            let key = peer.key;
            self.send(key, Message::Withdraw(piece));
        }
        self.refill(now);
        self.plan_timeout(now);
    }

    /// The time that [`Exchange::poll_timeout`] said has come. Early or late is no harm.
    pub fn handle_timeout(&mut self, now: Time) {
        self.send_haves(now);
        if self.racks.due().is_some_and(|due| due <= now) {
            self.look_around(now);
        }
        if self.look_at.is_some_and(|look_at| look_at <= now) {
            self.look_at = None;
            self.release_downloads(now);
            self.release_uploads(now);
            self.look_at_given(now);
        }
        self.look_for_famine(now);
        self.refill(now);
        self.plan_timeout(now);
    }

    /// How many uploads this exchange may have in hand from now on, where the node's uplink serves others too: at
    /// least one, at most what the configuration says. What is in hand already is finished.
    pub fn handle_upload_share(&mut self, now: Time, uploads: usize) {
        let share = uploads.max(1);
        if std::mem::replace(&mut self.upload_share, share) < share {
            self.refill(now);
            self.plan_timeout(now);
        }
    }

    /// Whether an upload is under way, or a neighbour lacks something held here. Walks the neighbours.
    pub fn wants_uploads(&self) -> bool {
        let wants =
            |peer: &neighbours::Peer| peer.upload != Upload::Idle || (peer.lacking > 0 && !peer.seeder);
        self.neighbours.all().iter().any(wants)
    }

    pub fn poll_output(&mut self) -> Option<Output> {
        self.outputs.pop_front()
    }

    /// When to call [`Exchange::handle_timeout`] unless another input comes first; may lie in the past.
    pub fn poll_timeout(&self) -> Option<Time> {
        self.timeout
    }

    pub fn held(&self) -> &Bitfield {
        &self.held
    }

    /// Pieces that are neither held nor wanted.
    pub fn unwanted(&self) -> usize {
        self.settled.count() - self.held.count()
    }

    /// Whether every piece is held, but for unwanted ones.
    pub fn is_complete(&self) -> bool {
        self.settled.is_full()
    }

    /// The fewest neighbours that hold any one piece (0 when some piece is held by none of them). Seeders do not
    /// count. Walks the list.
    pub fn copies_elsewhere(&self) -> usize {
        self.neighbours.copies().iter().min().copied().unwrap_or(0).into()
    }

    /// What this side waits for: its missing pieces that fewest neighbours hold, with those neighbours (at most
    /// `pieces_max` pieces). A seeder's word counts here. Walks the list.
    pub fn waiting_for(&self, pieces_max: usize) -> Vec<(PieceIndex, Vec<PeerKey>)> {
        let mut missing: Vec<_> =
            self.pieces.indexes().filter(|&piece| !self.settled.contains(piece)).collect();
        missing.sort_by_key(|&piece| (self.neighbours.copies_of(piece), piece));
        missing.truncate(pieces_max);
        let holders = |piece| {
            let holders = self.neighbours.all().iter().filter(|peer| peer.shown.contains(piece));
            holders.map(|peer| peer.key).collect()
        };
        missing.into_iter().map(|piece| (piece, holders(piece))).collect()
    }

    /// Panics when an invariant is broken. Walks everything: for tests and simulations.
    pub fn assert_invariants(&self) {
        self.neighbours.assert_invariants(&self.held);
        self.fetches.assert_invariants(&self.settled);
        self.racks.assert_invariants(self.fetches.coming());
        let mut settled = self.held.clone();
        self.unwanted.iter().for_each(|unwanted| settled.insert_all(unwanted));
        assert_eq!(self.settled, settled);
        let most = self.config.fetches_coming + self.config.fetches_from_afar;
        assert!(self.fetches.slots_held() <= most);
        for fetch in self.fetches.asked() {
            assert!(self.neighbours.slot(fetch.from).is_some(), "{fetch:?} of a peer that is gone");
        }
        let mut in_hand = 0;
        for peer in self.neighbours.all() {
            in_hand += usize::from(peer.upload.holds_slot());
            assert!(peer.upload == Upload::Idle || (peer.announced && !peer.seeder));
            if let Upload::Sending { piece, .. } = peer.upload {
                assert!(self.held.contains(piece), "{piece:?} is sent but not held");
            }
        }
        assert!(in_hand <= self.config.uploads_in_hand, "{in_hand} uploads in hand");
        if let Some(seeding) = &self.seeding {
            seeding.assert_invariants(&self.held);
        }
    }

    fn send(&mut self, peer: PeerKey, message: Message) {
        self.outputs.push_back(Output::Send { peer, message });
    }

    /// A peer broke the protocol: it is gone from here at once.
    fn fault(&mut self, now: Time, peer: PeerKey, reason: Fault) {
        if self.forget(now, peer) {
            self.outputs.push_back(Output::Disconnect { peer, reason });
        }
        self.refill(now);
        self.plan_timeout(now);
    }

    /// Takes back all that was under way with a peer. False when it is no neighbour.
    fn forget(&mut self, now: Time, key: PeerKey) -> bool {
        let Some(peer) = self.neighbours.remove(key) else { return false };
        self.fetches.drop_peer(key);
        self.note_near(now);
        if self.seeding.is_some() {
            match peer.upload {
                Upload::Granted { piece: Some(piece), .. } | Upload::Sending { piece, .. } => {
                    self.give_back(piece)
                }
                _ => {}
            }
            for piece in peer.shown.iter() {
                self.note_unseen(now, piece);
            }
        }
        true
    }

    /// A seeder whose last visible copy of a piece went looks later whether another came.
    fn note_unseen(&mut self, now: Time, piece: PieceIndex) {
        if self.seeding.is_some() && self.neighbours.copies_of(piece) == 0 {
            self.watch(now, piece);
            if let Some(seeding) = &mut self.seeding {
                seeding.replicated = false;
            }
        }
    }

    fn note_replicated(&mut self) {
        if let Some(seeding) = &mut self.seeding
            && !seeding.replicated
            && self.neighbours.unseen() == 0
        {
            seeding.replicated = true;
            self.outputs.push_back(Output::Event(Event::Replicated));
        }
    }

    /// The measure of the waits here: what downloads take, or uploads where nothing is fetched.
    fn block_time(&self) -> Duration {
        let pace = if self.down.transfer().is_some() { &self.down } else { &self.up };
        pace.block_time(&self.config)
    }

    fn have_interval(&self) -> Duration {
        percent(self.block_time(), self.config.have_interval_percent).min(self.config.have_interval_max)
    }

    fn announce_later(&mut self, now: Time, piece: PieceIndex) {
        self.haves.push(piece);
        self.send_haves(now);
    }

    /// Announces what is due.
    fn send_haves(&mut self, now: Time) {
        let interval = self.have_interval();
        while self.haves.due(interval).is_some_and(|due| due <= now) {
            let batch = self.haves.take(now);
            for slot in 0..self.neighbours.all().len() {
                let key = self.neighbours.all()[slot].key;
                self.send(key, Message::Have(batch.clone()));
            }
        }
    }

    /// Works out when to wake: for haves, for a neighbour whose wait ends while there is room for it, and from time
    /// to time while anything is under way that may become overdue.
    fn plan_timeout(&mut self, now: Time) {
        self.tell_intents(now);
        let under_way = self.uploads_under_way
            || !self.fetches.asked().is_empty()
            || self.seeding.as_ref().is_some_and(SuperSeeding::is_watching);
        let look_after = percent(self.block_time(), LOOK_INTERVAL_PERCENT);
        let look_at = now + look_after.clamp(LOOK_INTERVAL_MIN, LOOK_INTERVAL_MAX);
        self.look_at = under_way.then(|| self.look_at.unwrap_or(look_at));
        self.plan_famine(now);
        let haves = self.haves.due(self.have_interval());
        let famine = self.famine.look_at();
        self.timeout =
            [haves, self.retry_at, self.look_at, self.racks.due(), famine].into_iter().flatten().min();
    }
}
