//! What happens next: events in windows of virtual time.
//!
//! No host hears of another sooner than one *hop*, so what happens within one window of that length happens to each
//! host by itself: hosts are taken one after the other, on any number of threads, and the outcome is the same.

use std::collections::BTreeMap;

use shoal_proto::exchange::{Declined, Message, PeerKey};
use shoal_proto::image::PieceIndex;
use shoal_proto::time::Time;

use crate::link::Quantum;

/// Windows kept in a ring; later events wait in a map.
const RING: u64 = 256;

/// Something that happens to one actor: a host, or a trunk between zones.
#[derive(Debug)]
pub(crate) struct Event {
    pub(crate) at: Time,
    pub(crate) to: u32,
    /// Who planned it and its how manyth that was: orders what happens to one actor in the same instant.
    pub(crate) order: u64,
    pub(crate) what: What,
}

#[derive(Debug)]
pub(crate) enum What {
    /// A control message from the peer that the receiver numbers so.
    Mail(PeerKey, Letter),
    /// A quantum reaches a trunk or, at the end of its way, a downlink.
    Arrives(Travel),
    /// The last quantum of a piece is through the downlink; whether its bytes are what the piece's name says.
    Received(PeerKey, PieceIndex, bool),
    /// The far end confirmed this many quanta, the last of this piece among them.
    Confirmed(PeerKey, u8, Option<PieceIndex>),
    /// The uplink has sent a quantum.
    Left,
    /// A verified piece is stored, or found corrupt.
    Stored(PieceIndex, bool),
    /// The host asked to be woken.
    Timer,
    Join,
    Die,
    /// A connection opens, is cut, or is found dead.
    Opens(PeerKey),
    Lost(PeerKey),
}

/// A control message in little room: the frequent ones take no memory of their own.
#[derive(Debug)]
pub(crate) enum Letter {
    Have(PieceIndex),
    Grant(Option<PieceIndex>),
    Request(PieceIndex),
    Decline(Declined),
    Other(Box<Message>),
}

impl From<Message> for Letter {
    fn from(message: Message) -> Self {
        match message {
            Message::Have(ref pieces) if pieces.len() == 1 => Self::Have(pieces[0]),
            Message::Grant(named) => Self::Grant(named),
            Message::Request(piece) => Self::Request(piece),
            Message::Decline(why) => Self::Decline(why),
            other => Self::Other(Box::new(other)),
        }
    }
}

impl From<Letter> for Message {
    fn from(letter: Letter) -> Self {
        match letter {
            Letter::Have(piece) => Self::Have(vec![piece]),
            Letter::Grant(named) => Self::Grant(named),
            Letter::Request(piece) => Self::Request(piece),
            Letter::Decline(why) => Self::Decline(why),
            Letter::Other(message) => *message,
        }
    }
}

/// A quantum between two hosts.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Travel {
    pub(crate) from: u32,
    pub(crate) to: u32,
    /// `peer` is the sender, as the receiver numbers it.
    pub(crate) quantum: Quantum,
    /// Trunks passed.
    pub(crate) hops: u8,
    /// The sender is a liar: the bytes are not the piece's.
    pub(crate) corrupt: bool,
}

/// The events of one thread's actors, by window.
#[derive(Debug)]
pub(crate) struct Calendar {
    window_nanos: u64,
    /// First window that has not been taken.
    next: u64,
    ring: Vec<Vec<Event>>,
    far: BTreeMap<u64, Vec<Event>>,
    /// Memory of windows that are over, for those to come.
    spare: Vec<Vec<Event>>,
}

impl Calendar {
    pub(crate) fn new(window_nanos: u64) -> Self {
        let ring = (0..RING).map(|_| Vec::new()).collect();
        Self { window_nanos, next: 0, ring, far: BTreeMap::new(), spare: Vec::new() }
    }

    pub(crate) fn window_of(&self, at: Time) -> u64 {
        at.nanos() / self.window_nanos
    }

    /// End of a window: the first instant that is not in it.
    pub(crate) fn end_of(&self, window: u64) -> Time {
        Time::from_nanos((window + 1) * self.window_nanos)
    }

    pub(crate) fn plan(&mut self, event: Event) {
        let window = self.window_of(event.at);
        debug_assert!(window >= self.next, "planned for the past");
        if window < self.next + RING {
            let events = &mut self.ring[(window % RING) as usize];
            if events.capacity() == 0
                && let Some(spare) = self.spare.pop()
            {
                *events = spare;
            }
            events.push(event);
        } else {
            self.far.entry(window).or_default().push(event);
        }
    }

    /// The first window from `self.next` on in which anything happens.
    pub(crate) fn first(&self) -> Option<u64> {
        let near =
            (self.next..self.next + RING).find(|window| !self.ring[(window % RING) as usize].is_empty());
        near.or_else(|| self.far.keys().next().copied())
    }

    /// The events of `window`, in no order. All earlier windows are over. [`Calendar::give_back`] the memory.
    pub(crate) fn take(&mut self, window: u64) -> Vec<Event> {
        self.next = window + 1;
        let mut events = std::mem::take(&mut self.ring[(window % RING) as usize]);
        if let Some(mut late) = self.far.remove(&window) {
            events.append(&mut late);
        }
        while let Some(entry) = self.far.first_entry() {
            if *entry.key() >= self.next + RING {
                break;
            }
            let window = *entry.key();
            let mut late = entry.remove();
            self.ring[(window % RING) as usize].append(&mut late);
        }
        events
    }

    pub(crate) fn give_back(&mut self, mut events: Vec<Event>) {
        events.clear();
        self.spare.push(events);
    }

    /// All that is still planned.
    pub(crate) fn rest(&self) -> impl Iterator<Item = &Event> {
        self.ring.iter().chain(self.far.values()).flatten()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn event(at: u64) -> Event {
        Event { at: Time::from_nanos(at), to: 0, order: 0, what: What::Timer }
    }

    #[test]
    fn events_come_in_their_windows_however_far_ahead() {
        let mut calendar = Calendar::new(10);
        let times = [3, 9, 10, 2559, 2560, 99_999];
        times.iter().rev().for_each(|&at| calendar.plan(event(at)));
        let mut seen = Vec::new();
        while let Some(window) = calendar.first() {
            let events = calendar.take(window);
            for event in &events {
                assert_eq!(calendar.window_of(event.at), window);
                assert!(event.at < calendar.end_of(window));
            }
            let mut at: Vec<u64> = events.iter().map(|event| event.at.nanos()).collect();
            at.sort_unstable();
            seen.extend(at);
            calendar.give_back(events);
        }
        assert_eq!(seen, times);
    }

    #[test]
    fn one_can_plan_ahead_of_a_window_that_was_taken_late() {
        let mut calendar = Calendar::new(10);
        calendar.plan(event(50_000));
        let first = calendar.first().unwrap();
        calendar.take(first);
        calendar.plan(event(50_010));
        assert_eq!(calendar.first(), Some(5001));
        assert_eq!(calendar.rest().count(), 1);
    }
}
