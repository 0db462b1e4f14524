//! The download side: which grants are taken up, and what becomes of a request.

use super::neighbours::{STALL_WEIGHT, WITHDRAWAL_WEIGHT};
use super::pace::percent;
use super::{Declined, Event, Exchange, Fault, Message, Output, PeerKey, Receipt, picker};
use crate::image::PieceIndex;
use crate::time::Time;

impl Exchange {
    /// Answers at once: late binding lives from it.
    pub(super) fn on_grant(
        &mut self,
        now: Time,
        key: PeerKey,
        named: Option<PieceIndex>,
    ) -> Result<(), Fault> {
        let Some(slot) = self.neighbours.slot(key) else { return Ok(()) };
        let shown = &self.neighbours.all()[slot].shown;
        if named.is_some_and(|piece| !shown.contains(piece)) {
            return Err(Fault::Protocol("a grant of a piece it does not hold"));
        }
        let busy = self.fetches.slots_held() >= self.most_coming(slot)
            || self.is_rack_busy(now, slot)
            || self.fetches.writing().len() >= self.config.writing_max;
        let choice = if self.settled.is_full() {
            Err(Declined::Nothing)
        } else if busy {
            Err(Declined::Busy)
        } else {
            self.choose(now, slot, named).ok_or(Declined::Nothing)
        };
        match choice {
            Ok(piece) => {
                self.note_fed(now, slot);
                self.fetches.ask(now, key, piece);
                self.send(key, Message::Request(piece));
            }
            Err(why) => self.send(key, Message::Decline(why)),
        }
        Ok(())
    }

    /// The piece to ask of a granter: the named one, else its rarest, else one that someone else is slow to send.
    fn choose(&mut self, now: Time, slot: usize, named: Option<PieceIndex>) -> Option<PieceIndex> {
        let open = self.offered_by(now, slot);
        let peer = &self.neighbours.all()[slot];
        let offered = open.as_ref().unwrap_or(&peer.shown);
        let coming = self.fetches.coming();
        if let Some(piece) = named {
            let wanted = offered.contains(piece) && !self.settled.contains(piece) && !coming.contains(piece);
            return wanted.then_some(piece);
        }
        let copies = self.neighbours.copies();
        let picked = picker::rarest(offered, &self.settled, coming, copies, &mut self.rng);
        if picked.is_some() || self.down.transfer().is_none() {
            // Before one transfer was measured nobody can say which request is old.
            return picked;
        }
        if self.fetches.coming().count() + self.settled.count() < self.pieces.len() {
            return None;
        }
        let overdue = percent(self.block_time(), self.config.endgame_percent).max(self.config.endgame_min);
        self.fetches.overdue(offered, peer.key, now, overdue)
    }

    /// A shown piece is to be had there no more; a request for it is off, though its bytes may still come.
    pub(super) fn on_withdraw(&mut self, key: PeerKey, piece: PieceIndex) -> Result<(), Fault> {
        let Some(slot) = self.neighbours.slot(key) else { return Ok(()) };
        self.neighbours.withdraw(slot, piece, &self.held);
        let broken = self.abandon(key, piece)
            && self.neighbours.all_mut()[slot].note_broken_promise(WITHDRAWAL_WEIGHT);
        if broken { Err(Fault::Promises) } else { Ok(()) }
    }

    /// Takes a request back without blame for bytes that come all the same. False when there was none.
    fn abandon(&mut self, key: PeerKey, piece: PieceIndex) -> bool {
        let there = self.fetches.drop_request(key, piece).is_some();
        if let (true, Some(peer)) = (there, self.neighbours.peer(key)) {
            peer.abandon(piece);
        }
        there
    }

    /// Some bytes of a requested piece arrived: the peer is alive, if slow.
    pub fn handle_progress(&mut self, now: Time, peer: PeerKey, piece: PieceIndex) {
        if let Some(fetch) = self.fetches.find(peer, piece) {
            fetch.heard = now;
            self.famine.feed(now);
        }
    }

    /// All bytes of a piece arrived, not yet verified.
    #[must_use]
    pub fn handle_received(&mut self, now: Time, peer: PeerKey, piece: PieceIndex) -> Receipt {
        let Some(neighbour) = self.neighbours.peer(peer) else { return Receipt::Duplicate };
        if let Some(fetch) = self.fetches.drop_request(peer, piece) {
            self.down.sample(now.since(fetch.since));
            self.famine.feed(now);
        } else if let Some(at) = neighbour.abandoned.iter().position(|&abandoned| abandoned == piece) {
            neighbour.abandoned.remove(at);
        } else {
            self.fault(now, peer, Fault::Unrequested);
            return Receipt::Unrequested;
        }
        if let Some(neighbour) = self.neighbours.peer(peer) {
            neighbour.broken_promises = 0;
        }
        let receipt = if self.held.contains(piece) || self.fetches.is_writing(piece) {
            self.outputs.push_back(Output::Event(Event::Duplicate { piece, from: peer }));
            Receipt::Duplicate
        } else {
            self.fetches.start_writing(peer, piece);
            Receipt::Wanted
        };
        self.plan_timeout(now);
        receipt
    }

    /// A received piece matched its name and is stored. Does nothing for a piece that is not being written.
    pub fn handle_stored(&mut self, now: Time, piece: PieceIndex) {
        let Some(from) = self.fetches.finish_writing(piece) else { return };
        while let Some(twin) = self.fetches.asked().iter().find(|fetch| fetch.piece == piece) {
            let elsewhere = twin.from;
            self.abandon(elsewhere, piece);
            self.send(elsewhere, Message::Cancel(piece));
        }
        self.held.insert(piece);
        self.settled.insert(piece);
        self.neighbours.gained_here(piece);
        self.outputs.push_back(Output::Event(Event::Held { piece, from }));
        self.announce_later(now, piece);
        if self.is_complete() {
            self.outputs.push_back(Output::Event(Event::Complete));
        }
        self.refill(now);
        self.plan_timeout(now);
    }

    /// A received piece did not match its name.
    pub fn handle_corrupt(&mut self, now: Time, piece: PieceIndex) {
        let Some(from) = self.fetches.finish_writing(piece) else { return };
        self.outputs.push_back(Output::Event(Event::Corrupt { piece, from }));
        self.fault(now, from, Fault::Corrupt);
    }

    /// A received piece is dropped through nobody's fault: it is missing again, and may be asked of anyone.
    pub fn handle_dropped(&mut self, now: Time, piece: PieceIndex) {
        if self.fetches.finish_writing(piece).is_some() {
            self.refill(now);
            self.plan_timeout(now);
        }
    }

    /// Gives up requests of which nothing arrives, and lets slow ones hold no slot.
    pub(super) fn release_downloads(&mut self, now: Time) {
        let usual = self.down.transfer().unwrap_or_default();
        let stall_after =
            percent(usual, self.config.stall_percent).clamp(self.config.stall_min, self.config.stall_max);
        let stalled = |fetch: &&super::fetches::Fetch| now.since(fetch.heard) > stall_after;
        while let Some(fetch) = self.fetches.asked().iter().find(stalled).copied() {
            self.abandon(fetch.from, fetch.piece);
            let silent = fetch.heard == fetch.since;
            let peer = self.neighbours.peer(fetch.from).expect("asked of a neighbour");
            if silent && peer.note_broken_promise(STALL_WEIGHT) {
                self.fault(now, fetch.from, Fault::Promises);
            } else {
                self.send(fetch.from, Message::Cancel(fetch.piece));
            }
        }
        let Some(slow_after) = self.down.transfer().map(|usual| percent(usual, self.config.slow_percent))
        else {
            return;
        };
        let mut released = self.fetches.asked().len() - self.fetches.slots_held();
        for fetch in self.fetches.asked_mut().iter_mut().filter(|fetch| fetch.holds_slot) {
            if released < self.config.released_max && now.since(fetch.since) > slow_after {
                fetch.holds_slot = false;
                released += 1;
            }
        }
    }
}
