//! What happens next: events in the order of their time, and within one instant in the order they were planned.

use std::cmp::Reverse;
use std::collections::{BinaryHeap, VecDeque};

use shoal_proto::exchange::{Message, PeerKey};
use shoal_proto::time::Time;

/// Something planned for a time. Names hosts by their place in the simulation.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Planned {
    /// A host's uplink has sent a quantum.
    Left(u32),
    /// A host's downlink has received a quantum.
    Delivered(u32),
    /// A host asked to be woken.
    Timer(u32),
    /// A host joins.
    Join(u32),
    /// A host dies.
    Die(u32),
    /// A host learns that the connection it numbers so is gone.
    Lost(u32, PeerKey),
}

/// A control message on its way.
#[derive(Debug)]
pub(crate) struct Mail {
    pub(crate) to: u32,
    /// The sender, as the receiver numbers it.
    pub(crate) peer: PeerKey,
    pub(crate) message: Message,
}

#[derive(Debug)]
pub(crate) enum Next {
    Planned(Planned),
    Mail(Mail),
}

/// All control messages take equally long, so they wait in a plain row; the heap has a few entries per host.
#[derive(Debug, Default)]
pub(crate) struct Queue {
    heap: BinaryHeap<Reverse<(Time, u64, Planned)>>,
    mail: VecDeque<(Time, Mail)>,
    sequence: u64,
}

impl Queue {
    pub(crate) fn plan(&mut self, at: Time, planned: Planned) {
        self.heap.push(Reverse((at, self.sequence, planned)));
        self.sequence += 1;
    }

    /// `at` is never earlier than that of the mail before.
    pub(crate) fn post(&mut self, at: Time, mail: Mail) {
        debug_assert!(self.mail.back().is_none_or(|&(last, _)| last <= at));
        self.mail.push_back((at, mail));
    }

    pub(crate) fn pop(&mut self) -> Option<(Time, Next)> {
        let planned = self.heap.peek().map(|Reverse((at, ..))| *at);
        let mail = self.mail.front().map(|&(at, _)| at);
        if mail.is_some_and(|mail| planned.is_none_or(|planned| mail <= planned)) {
            return self.mail.pop_front().map(|(at, mail)| (at, Next::Mail(mail)));
        }
        self.heap.pop().map(|Reverse((at, _, planned))| (at, Next::Planned(planned)))
    }
}
