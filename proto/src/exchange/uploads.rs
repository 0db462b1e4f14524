//! The upload side: to whom room is granted, and what becomes of a grant.

use std::time::Duration;

use rand::Rng;

use super::neighbours::{Peer, Upload};
use super::pace::percent;
use super::super_seeding::SuperSeeding;
use super::{Declined, Event, Exchange, Fault, Message, Output, PeerKey};
use crate::image::PieceIndex;
use crate::time::Time;
use crate::zone::{Distance, ZONE_LEVELS_MAX};

/// Doublings of the wait after declines in a row.
const RETRY_DOUBLINGS_MAX: u32 = 3;
/// Pieces that a neighbour may get by name from a seeder and share with nobody.
const LET_DOWN_MAX: u32 = 1;

impl Exchange {
    /// Grants until every slot is taken or no neighbour is left to grant to. Every change on the upload side ends
    /// here, so this also notes when it has to be looked at again.
    pub(super) fn refill(&mut self, now: Time) {
        while self.seeding.is_some() && self.slots_taken() < self.uploads_max() {
            if !self.grant_by_name(now) {
                break;
            }
        }
        if self.uploads_max() > 0 && self.slots_taken() >= self.uploads_max() {
            self.retry_at = None;
            self.uploads_under_way = true;
            return;
        }
        let mut taken = self.survey(now);
        while taken < self.uploads_max() && self.grant_by_choice(now) {
            // A seeder's quota may just have ended.
            taken = if self.seeding.is_some() { self.survey(now) } else { taken + 1 };
        }
        if taken >= self.uploads_max() {
            self.retry_at = None;
        }
    }

    fn uploads_max(&self) -> usize {
        self.upload_share.min(self.config.uploads_in_hand)
    }

    /// Slots taken, as far as they matter: the walk ends when all are.
    fn slots_taken(&self) -> usize {
        let taken = self.neighbours.all().iter().filter(|peer| peer.upload.holds_slot());
        taken.take(self.uploads_max()).count()
    }

    /// One walk over the neighbours: notes the candidates for a grant, the end of the first wait and whether
    /// anything is under way; returns the slots taken.
    fn survey(&mut self, now: Time) -> usize {
        let quota_left = self.quota_left();
        let starved_since = self.starved_since(now);
        // The starved come after what the whole swarm waits for.
        let nothing_to_name = self.seeding.as_ref().is_none_or(SuperSeeding::has_nothing_to_name);
        let mut taken = 0;
        let mut near = [0; ZONE_LEVELS_MAX + 1];
        let mut far_in_hand = [0; ZONE_LEVELS_MAX + 1];
        self.candidates.clear();
        self.far_candidates.clear();
        self.retry_at = None;
        self.uploads_under_way = false;
        for (slot, peer) in self.neighbours.all().iter().enumerate() {
            near[peer.distance.levels()] += usize::from(peer.announced && !peer.seeder);
            if peer.upload != Upload::Idle {
                far_in_hand[peer.distance.levels()] += usize::from(peer.upload.holds_slot());
                taken += usize::from(peer.upload.holds_slot());
                self.uploads_under_way = true;
            } else if peer.lacking > 0 && !peer.seeder {
                self.uploads_under_way |= self.seeding.is_some();
                if peer.not_before > now {
                    self.retry_at = Some(self.retry_at.map_or(peer.not_before, |at| at.min(peer.not_before)));
                } else if self.seeding.is_none()
                    || quota_left
                    || nothing_to_name && peer.fed_elsewhere < starved_since
                {
                    let far = self.seeding.is_none() && peer.distance > Distance::NONE;
                    if far { &mut self.far_candidates } else { &mut self.candidates }.push(slot);
                }
            }
        }
        if !self.far_candidates.is_empty() {
            self.bound_far(near, far_in_hand);
        }
        taken
    }

    /// Gives the next piece that nobody shows to the next neighbour in turn. False when there is none of either.
    fn grant_by_name(&mut self, now: Time) -> bool {
        let look_again = now + self.repair_after();
        let Some(seeding) = &mut self.seeding else { return false };
        let peers = self.neighbours.all();
        let brisk = peers.iter().any(|peer| peer.announced && !peer.seeder && peer.slow_until <= now);
        let start = seeding.last_target.map_or(0, |last| peers.partition_point(|peer| peer.key <= last));
        let (before, after) = peers.split_at(start);
        let ready = |peer: &&Peer| peer.is_grantable(now) && (!brisk || peer.slow_until <= now);
        let mut in_turn = after.iter().chain(before).filter(ready).peekable();
        while let Some(piece) = seeding.next(self.neighbours.copies(), look_again, &mut self.rng) {
            if in_turn.peek().is_none() {
                return false;
            }
            seeding.take(piece);
            if let Some(target) = in_turn.clone().find(|peer| peer.lacks(piece)).map(|peer| peer.key) {
                seeding.last_target = Some(target);
                self.grant(now, target, Some(piece));
                return true;
            }
            // None of them wants it: others may come.
            seeding.watch_given(piece, now, look_again, None);
        }
        false
    }

    /// Grants a piece of its choice to the less complete of a few random candidates, who is one no more.
    fn grant_by_choice(&mut self, now: Time) -> bool {
        if !self.far_candidates.is_empty() && self.grant_far(now) {
            return true;
        }
        let candidates = &mut self.candidates;
        let mut best: Option<usize> = None;
        for drawn in 0..self.config.choices.min(candidates.len()) {
            let at = self.rng.random_range(drawn..candidates.len());
            candidates.swap(drawn, at);
            let count = |at: usize| self.neighbours.all()[candidates[at]].shown.count();
            if best.is_none_or(|best| count(drawn) < count(best)) {
                best = Some(drawn);
            }
        }
        let Some(best) = best else { return false };
        let slot = candidates.swap_remove(best);
        if let Some(seeding) = &mut self.seeding {
            seeding.chosen += 1;
        }
        self.uploads_under_way = true;
        self.grant(now, self.neighbours.all()[slot].key, None);
        true
    }

    pub(super) fn grant(&mut self, now: Time, key: PeerKey, piece: Option<PieceIndex>) {
        let peer = self.neighbours.peer(key).expect("granted to a neighbour");
        peer.upload = Upload::Granted { piece, since: now, holds_slot: true };
        self.send(key, Message::Grant(piece));
    }

    /// Whether a seeder may still give pieces that are to be had elsewhere.
    fn quota_left(&self) -> bool {
        let Some(seeding) = &self.seeding else { return true };
        let quota = self.pieces.len() as u64 * u64::from(self.config.seeder_quota_permille) / 1000;
        seeding.chosen < quota
    }

    /// A neighbour of a seeder is starved when it has been fed by nobody else since this.
    fn starved_since(&self, now: Time) -> Time {
        let patience = percent(self.block_time(), self.config.starved_percent).max(self.config.starved_min);
        Time::from_nanos(now.since(Time::ZERO + patience).as_nanos().try_into().unwrap_or(u64::MAX))
    }

    /// How long a given piece may stay unseen before it is given again.
    fn repair_after(&self) -> Duration {
        percent(self.block_time(), self.config.repair_percent).max(self.config.repair_min)
    }

    pub(super) fn on_request(&mut self, now: Time, key: PeerKey, piece: PieceIndex) -> Result<(), Fault> {
        let held = self.held.contains(piece);
        let Some(peer) = self.neighbours.peer(key) else { return Ok(()) };
        let Upload::Granted { piece: named, holds_slot, .. } = peer.upload else {
            return Err(Fault::Protocol("a request without a grant"));
        };
        if named.is_some_and(|named| named != piece) {
            return Err(Fault::Protocol("a request for another piece than the granted one"));
        }
        peer.declines = 0;
        if held {
            peer.upload = Upload::Sending { piece, since: now, holds_slot, cancelled: false };
            peer.note_sent(piece);
            self.outputs.push_back(Output::SendPiece { peer: key, piece });
            let look_again = now + self.repair_after();
            if let Some(seeding) = &mut self.seeding {
                seeding.take(piece);
                seeding.watch_given(piece, now, look_again, named.map(|_| key));
            }
        } else {
            // It crossed our withdrawal, which tells the peer.
            peer.upload = Upload::Idle;
            self.refill(now);
        }
        Ok(())
    }

    pub(super) fn on_decline(&mut self, now: Time, key: PeerKey, why: Declined) -> Result<(), Fault> {
        let retry = percent(self.block_time(), self.config.retry_percent);
        let sated = percent(self.block_time(), self.config.sated_percent);
        let Some(peer) = self.neighbours.peer(key) else { return Ok(()) };
        let Upload::Granted { piece: named, .. } = peer.upload else {
            return Err(Fault::Protocol("a decline without a grant"));
        };
        peer.upload = Upload::Idle;
        let wait = match why {
            Declined::Busy => {
                let doublings = peer.declines.min(RETRY_DOUBLINGS_MAX);
                peer.declines = peer.declines.saturating_add(1);
                retry * (1 << doublings)
            }
            Declined::Nothing => {
                peer.sated = true;
                sated
            }
        };
        // Half to one and a half of it, so that uploaders that were declined together do not come back together.
        peer.not_before = now + wait * self.rng.random_range(500..1500) / 1000;
        if let Some(named) = named {
            match why {
                Declined::Busy => self.give_back(named),
                // It is on its way there from elsewhere: look later whether it came.
                Declined::Nothing => self.watch(now, named),
            }
        }
        self.refill(now);
        Ok(())
    }

    /// The bytes may be on their way already, and then they arrive for nothing.
    pub(super) fn on_cancel(&mut self, key: PeerKey, piece: PieceIndex) {
        let Some(peer) = self.neighbours.peer(key) else { return };
        if let Upload::Sending { piece: sending, cancelled, .. } = &mut peer.upload {
            *cancelled |= *sending == piece;
        }
    }

    /// Whether a `SendPiece` handed out is still worth beginning: neither cancelled nor overtaken by a disconnect.
    /// When not, say [`Exchange::handle_unsent`] instead of writing it.
    pub fn is_send_wanted(&self, peer: PeerKey, piece: PieceIndex) -> bool {
        self.neighbours.slot(peer).is_some_and(|slot| {
            matches!(self.neighbours.all()[slot].upload,
                Upload::Sending { piece: sending, cancelled, .. } if sending == piece && !cancelled)
        })
    }

    /// A `SendPiece` was dropped before its first byte.
    pub fn handle_unsent(&mut self, now: Time, peer: PeerKey, piece: PieceIndex) {
        if self.end_sending(peer, piece).is_some() {
            self.give_back(piece);
            self.refill(now);
            self.plan_timeout(now);
        }
    }

    /// All bytes of a `SendPiece` were handed to the connection.
    pub fn handle_sent(&mut self, now: Time, peer: PeerKey, piece: PieceIndex) {
        let Some(since) = self.end_sending(peer, piece) else { return };
        let took = now.since(since);
        let usual = self.up.transfer();
        self.up.sample(took);
        let slow = usual.is_some_and(|usual| took > percent(usual, self.config.slow_percent));
        let slow_until = now + percent(self.block_time(), self.config.slow_pause_percent);
        if let (true, Some(peer)) = (slow, self.neighbours.peer(peer)) {
            peer.slow_until = slow_until;
        }
        self.outputs.push_back(Output::Event(Event::Sent { piece, to: peer }));
        self.refill(now);
        self.plan_timeout(now);
    }

    /// Frees the upload; returns when it began, or `None` when there was none (the peer went, the piece was lost).
    fn end_sending(&mut self, key: PeerKey, piece: PieceIndex) -> Option<Time> {
        let peer = self.neighbours.peer(key)?;
        match peer.upload {
            Upload::Sending { piece: sending, since, .. } if sending == piece => {
                peer.upload = Upload::Idle;
                Some(since)
            }
            _ => None,
        }
    }

    /// A seeder's named grant came to nothing.
    pub(super) fn give_back(&mut self, piece: PieceIndex) {
        if let Some(seeding) = &mut self.seeding
            && self.held.contains(piece)
        {
            seeding.give_back(piece);
        }
    }

    /// A seeder looks later whether a neighbour shows the piece.
    pub(super) fn watch(&mut self, now: Time, piece: PieceIndex) {
        let look_again = now + self.repair_after();
        if let Some(seeding) = &mut self.seeding
            && self.held.contains(piece)
        {
            seeding.watch_given(piece, now, look_again, None);
        }
    }

    /// A seeder looks whether what it gave has spread. Who has shared nothing of it gets no other piece by name for a
    /// while, and after [`LET_DOWN_MAX`] such pieces only when nobody else is there: it is cut off, or lies to
    /// everybody.
    pub(super) fn look_at_given(&mut self, now: Time) {
        let pause = percent(self.block_time(), self.config.slow_pause_percent);
        let patience = self.repair_after() * 2;
        let Some(seeding) = &mut self.seeding else { return };
        let copies = self.neighbours.copies();
        for key in seeding.look_again(now, copies, self.neighbours.takers(), patience) {
            if let Some(peer) = self.neighbours.peer(key) {
                peer.let_down += 1;
                let again = peer.let_down > LET_DOWN_MAX;
                peer.slow_until = if again { Time::from_nanos(u64::MAX) } else { now + pause };
            }
        }
    }

    /// Takes slots back from grants that stay unanswered and from uploads that take far too long; a straggler keeps
    /// its one transfer but holds up nobody.
    pub(super) fn release_uploads(&mut self, now: Time) {
        let slow_after = self.up.transfer().map(|usual| percent(usual, self.config.slow_percent));
        let grant_timeout = self.config.grant_timeout;
        let is_free = |upload: Upload| upload != Upload::Idle && !upload.holds_slot();
        let mut released = self.neighbours.all().iter().filter(|peer| is_free(peer.upload)).count();
        for slot in 0..self.neighbours.all().len() {
            if released >= self.config.released_max {
                return;
            }
            let upload = &mut self.neighbours.all_mut()[slot].upload;
            match upload {
                Upload::Granted { piece, since, holds_slot: holds_slot @ true }
                    if now.since(*since) > grant_timeout =>
                {
                    *holds_slot = false;
                    released += 1;
                    if let Some(piece) = *piece {
                        self.give_back(piece);
                    }
                }
                Upload::Sending { since, holds_slot: holds_slot @ true, .. }
                    if slow_after.is_some_and(|slow_after| now.since(*since) > slow_after) =>
                {
                    *holds_slot = false;
                    released += 1;
                }
                _ => {}
            }
        }
    }
}
