//! Whom to dial and when, and what happens when nothing does.

use std::fmt;
use std::time::Duration;

use rand::Rng;

use super::book::{Pool, Slot, State};
use super::{Neighbourhood, Output, Reason};
use crate::time::Time;

/// First and longest wait before a peer that failed is dialed again.
const RETRY_MIN: Duration = Duration::from_millis(500);
const RETRY_MAX: Duration = Duration::from_secs(20);
const RETRY_DOUBLINGS_MAX: u32 = 6;
/// Dials in a row that fail before a peer that never was a neighbour is forgotten.
pub(super) const FAILURES_MAX: u32 = 8;
/// How long a peer that had no room is left alone, doubled by each further time, …
const FULL_WAIT: Duration = Duration::from_secs(60);
const FULL_DOUBLINGS_MAX: u32 = 3;
/// … but for one from the ticket, while there are fewer neighbours than this.
const LONELY_WAIT: Duration = Duration::from_secs(5);
const LONELY_MAX: usize = 8;
/// How long a peer that we had no room for is left alone.
const REFUSED_WAIT: Duration = Duration::from_secs(30);
/// Dials that are not made at once are made one by one: meanwhile others may come.
const TOP_UP_INTERVAL: Duration = Duration::from_millis(100);
/// A dial that takes longer is likelier to fail: another is made in its place.
const DIAL_PATIENCE: Duration = Duration::from_secs(1);
/// How long after the first neighbour it is too early to say that one's rack is small.
const GATHER: Duration = Duration::from_secs(3);
/// Neighbours beyond those wanted for which lost ones are still dialed.
const LOST_EXTRA: usize = 4;
/// First and longest wait between two questions for peers.
pub(super) const ASK_MIN: Duration = Duration::from_secs(1);
const ASK_MAX: Duration = Duration::from_secs(60);

impl<N: Copy + Ord + fmt::Debug, A: Clone + PartialEq> Neighbourhood<N, A> {
    /// Does what is due, and works out when to wake. Every input that may change that ends here.
    pub(super) fn advance(&mut self, now: Time) {
        while let Some((_, slot)) = self.book.first_alarm().filter(|(due, _)| *due <= now) {
            self.on_alarm(now, slot);
        }
        let later = self.dial_due(now);
        let question = self.ask_due(now);
        let alarm = self.book.first_alarm().map(|(due, _)| due);
        let gathered = self.started_at.map(|at| at + GATHER).filter(|at| *at > now);
        self.timeout = [alarm, later, question, gathered].into_iter().flatten().min();
    }

    fn on_alarm(&mut self, now: Time, slot: Slot) {
        let known = self.book.get(slot);
        let peer = known.id;
        match known.state {
            State::Dialing { .. } => self.place(slot, State::Dialing { hoped: false }, None),
            State::Greeting { .. } => {
                self.disconnect(peer, Reason::NoHello);
                self.retry_later(now, slot);
            }
            State::Leaving => {
                self.disconnect(peer, Reason::NoRoom);
                let retry_at = self.refused_retry(now);
                self.rest(slot, retry_at);
            }
            State::Waiting => self.wake(now, slot),
            State::Ready | State::Neighbour { .. } => self.book.change(slot, |known| known.alarm = None),
        }
    }

    /// A peer's wait is over.
    fn wake(&mut self, now: Time, slot: Slot) {
        self.book.change(slot, |known| {
            known.alarm = None;
            known.lost_until = known.lost_until.filter(|until| *until > now);
        });
        let lonely = self.book.neighbours().len() < LONELY_MAX;
        let known = self.book.get(slot);
        let hopeless = known.addresses.is_empty() || known.failures >= FAILURES_MAX;
        if known.bootstrap && known.full_until > now && !lonely {
            let until = known.full_until;
            self.place(slot, State::Waiting, Some(until));
        } else if hopeless && !known.bootstrap && known.lost_until.is_none() {
            self.book.forget(slot);
        } else {
            self.place(slot, State::Ready, None);
        }
    }

    /// Dials whom it can; returns when it can dial the next.
    fn dial_due(&mut self, now: Time) -> Option<Time> {
        while let Some(slot) = self.book.pool(Pool::Bootstrap).draw(&mut self.rng) {
            self.dial(now, slot);
        }
        while self.expected() < self.wanted(now).iter().sum::<usize>() + LOST_EXTRA {
            if self.draw_and_dial(now, Pool::Lost).is_none() {
                break;
            }
        }
        let mut next = None;
        for (side, pool) in [(1, Pool::Near), (0, Pool::Far)] {
            while self.lacking(now)[side] > 0 {
                let eager = self.book.tally().ours[side] < self.wanted(now)[side] / 2;
                if !eager && now < self.top_up_at {
                    next = (self.book.pool(pool).len() > 0).then_some(self.top_up_at).or(next);
                    break;
                }
                if self.draw_and_dial(now, pool).is_none() {
                    break;
                }
                self.top_up_at = now + self.jittered(TOP_UP_INTERVAL);
            }
        }
        // With every dial taken, the end of one of them is the next input.
        next.filter(|_| self.may_dial())
    }

    fn may_dial(&self) -> bool {
        self.book.tally().dialing < self.config.dials_max
    }

    fn draw_and_dial(&mut self, now: Time, pool: Pool) -> Option<()> {
        if !self.may_dial() {
            return None;
        }
        let slot = self.book.pool(pool).draw(&mut self.rng)?;
        self.dial(now, slot);
        Some(())
    }

    fn dial(&mut self, now: Time, slot: Slot) {
        self.place(slot, State::Dialing { hoped: true }, Some(now + DIAL_PATIENCE));
        let known = self.book.get(slot);
        self.outputs.push_back(Output::Dial { peer: known.id, addresses: known.addresses.clone() });
    }

    /// Neighbours wanted outside the own rack, and inside it.
    fn wanted(&self, now: Time) -> [usize; 2] {
        let Self { config, book, .. } = self;
        if self.zone.is_unknown() {
            return [config.wanted, 0];
        }
        let gathered = self.started_at.is_some_and(|at| at + GATHER <= now);
        let near = book.tally().neighbours[1] + book.tally().coming[1];
        let fill = if gathered { config.wanted_min.saturating_sub(near) } else { 0 };
        [config.far_wanted.max(fill), config.near_wanted]
    }

    /// Neighbours that there are or may soon be, seeders left out.
    fn expected(&self) -> usize {
        let tally = self.book.tally();
        tally.neighbours.iter().sum::<usize>() + tally.coming.iter().sum::<usize>()
    }

    fn lacking(&self, now: Time) -> [usize; 2] {
        let tally = self.book.tally();
        let wanted = self.wanted(now);
        [0, 1].map(|side| wanted[side].saturating_sub(tally.neighbours[side] + tally.coming[side]))
    }

    /// Asks somebody when there is nobody left to dial; returns when it asks the next.
    fn ask_due(&mut self, now: Time) -> Option<Time> {
        let lacking = self.lacking(now);
        let nobody = |side: usize, pool| lacking[side] > 0 && self.book.pool(pool).len() == 0;
        if !nobody(0, Pool::Far) && !nobody(1, Pool::Near) {
            return None;
        }
        if self.ask_at <= now {
            let asked = self.book.neighbours().draw(&mut self.rng)?;
            self.outputs.push_back(Output::Ask { peer: self.book.get(asked).id });
            self.ask_at = now + self.jittered(self.ask_wait);
            self.ask_wait = (self.ask_wait * 2).min(ASK_MAX);
        }
        Some(self.ask_at)
    }

    /// Asking is worth it again: somebody went, or there was news.
    pub(super) fn ask_soon(&mut self, now: Time) {
        self.ask_wait = ASK_MIN;
        let soon = now + self.jittered(ASK_MIN);
        self.ask_at = if self.ask_at > now { self.ask_at.min(soon) } else { soon };
    }

    /// The peer cannot be reached, or its connection did not last.
    pub(super) fn retry_later(&mut self, now: Time, slot: Slot) {
        let failures = self.book.get(slot).failures;
        let wait = RETRY_MIN * (1 << failures.min(RETRY_DOUBLINGS_MAX));
        let until = now + self.jittered(wait.min(RETRY_MAX));
        self.book.change(slot, |known| known.failures = failures.saturating_add(1));
        self.rest(slot, until);
    }

    /// When a peer that has no room is looked at again, and until when it is taken to have none.
    pub(super) fn full_wait(&mut self, now: Time, slot: Slot) -> (Time, Time) {
        let known = self.book.get(slot);
        let (bootstrap, refusals) = (known.bootstrap, known.refusals);
        let wait = FULL_WAIT * (1 << refusals.min(FULL_DOUBLINGS_MAX));
        let full_until = now + self.jittered(wait);
        let retry_at = if bootstrap { now + self.jittered(LONELY_WAIT) } else { full_until };
        (retry_at, full_until)
    }

    pub(super) fn refused_retry(&mut self, now: Time) -> Time {
        now + self.jittered(REFUSED_WAIT)
    }

    /// So that a fleet does not come back to one peer all at once.
    fn jittered(&mut self, wait: Duration) -> Duration {
        wait * self.rng.random_range(750..1250) / 1000
    }
}
