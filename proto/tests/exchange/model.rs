//! Any list of inputs, and an exchange beside what must be true of it.

use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::Duration;

use shoal_proto::cid::Cid;
use shoal_proto::exchange::{
    Announcement, Bitfield, Config, Declined, Event, Exchange, Message, Output, PeerKey, Receipt, Role,
};
use shoal_proto::image::pieces::Piece;
use shoal_proto::image::{PieceIndex, PieceList};
use shoal_proto::time::Time;
use shoal_proto::zone::Distance;

/// Two words of a bitfield, so that word boundaries are met.
pub(crate) const PIECES: u32 = 70;
/// More than an uploader has slots.
pub(crate) const PEERS: u32 = 7;

/// One input.
#[derive(Clone, Debug)]
pub(crate) enum Operation {
    Connect(u32),
    Disconnect(u32),
    AnnounceOther(u32, usize),
    Say(u32, Said),
    Progress(u32, u32),
    Received(u32, u32),
    Stored(u32),
    Corrupt(u32),
    Dropped(u32),
    Sent(u32, u32),
    Unsent(u32, u32),
    Lost(u32),
    Wait(u64),
    /// Answers what the exchange last asked: the deeper states are out of reach of blind inputs.
    Comply,
}

/// A message with plain numbers for pieces.
#[derive(Clone, Debug)]
pub(crate) enum Said {
    Seeder,
    Announce(Vec<u32>),
    Selective(Vec<u32>, Vec<u32>),
    Have(Vec<u32>),
    Grant(Option<u32>),
    Request(u32),
    Decline(bool),
    Cancel(u32),
    Withdraw(u32),
    Intent(u32, bool),
    Covered(Vec<u32>, bool),
}

/// The exchange beside what must be true of it, kept the simplest way.
pub(crate) struct Model {
    exchange: Exchange,
    list: Arc<PieceList>,
    now: Time,
    /// A driver never reuses a key: peer `n`'s current one is `n + PEERS * lives[n]`.
    lives: Vec<u32>,
    connected: BTreeSet<PeerKey>,
    held: BTreeSet<PieceIndex>,
    unwanted: Bitfield,
    writing: BTreeSet<PieceIndex>,
    sending: BTreeSet<(PeerKey, PieceIndex)>,
    granted: Vec<(PeerKey, Option<PieceIndex>)>,
    requested: Vec<(PeerKey, PieceIndex)>,
}

impl Model {
    pub(crate) fn new(role: Role, held: &[u32], unwanted: &[u32]) -> Self {
        let piece = |at: u32| Piece { cid: Cid::of(&at.to_le_bytes()), raw_bytes: 1 };
        let list =
            Arc::new(PieceList::new((0..PIECES).map(piece).collect()).expect("a list within its bounds"));
        let held = match role {
            Role::Seeder => Bitfield::full(PIECES as usize),
            Role::Node => set(&list, held),
        };
        let unwanted = set(&list, unwanted);
        Self {
            held: held.iter().collect(),
            exchange: Exchange::new(Config::default(), role, Arc::clone(&list), held, 1)
                .without(unwanted.clone()),
            unwanted,
            list,
            now: Time::ZERO,
            lives: vec![0; PEERS as usize],
            connected: BTreeSet::new(),
            writing: BTreeSet::new(),
            sending: BTreeSet::new(),
            granted: Vec::new(),
            requested: Vec::new(),
        }
    }

    fn key(&self, peer: u32) -> PeerKey {
        PeerKey(peer + PEERS * self.lives[peer as usize])
    }

    fn piece(&self, number: u32) -> PieceIndex {
        self.list.index(number).expect("a number below PIECES")
    }

    fn message(&self, said: Said) -> Message {
        match said {
            Said::Seeder => Message::Announce(Announcement::Seeder),
            Said::Announce(held) => Message::Announce(Announcement::Held(set(&self.list, &held))),
            Said::Selective(held, unwanted) => Message::Announce(Announcement::Selective {
                held: set(&self.list, &held),
                unwanted: set(&self.list, &unwanted),
            }),
            Said::Have(pieces) => Message::Have(pieces.into_iter().map(|piece| self.piece(piece)).collect()),
            Said::Grant(named) => Message::Grant(named.map(|piece| self.piece(piece))),
            Said::Request(piece) => Message::Request(self.piece(piece)),
            Said::Decline(true) => Message::Decline(Declined::Busy),
            Said::Decline(false) => Message::Decline(Declined::Nothing),
            Said::Cancel(piece) => Message::Cancel(self.piece(piece)),
            Said::Withdraw(piece) => Message::Withdraw(self.piece(piece)),
            Said::Intent(piece, live) => Message::Intent { piece: self.piece(piece), live },
            Said::Covered(pieces, covered) => {
                let pieces = pieces.into_iter().map(|piece| self.piece(piece)).collect();
                if covered { Message::Covered(pieces) } else { Message::Uncovered(pieces) }
            }
        }
    }

    pub(crate) fn perform(&mut self, operation: Operation) {
        match operation {
            Operation::Connect(peer) => {
                let key = self.key(peer);
                self.connected.insert(key);
                // In the rack, in the row, beyond.
                self.exchange.handle_connected(self.now, key, Distance::new(peer as usize % 3));
            }
            Operation::Disconnect(peer) => {
                let key = self.key(peer);
                self.gone(key);
                self.exchange.handle_disconnected(self.now, key);
            }
            Operation::AnnounceOther(peer, len) => {
                self.say(self.key(peer), Message::Announce(Announcement::Held(Bitfield::empty(len))));
            }
            Operation::Say(peer, said) => self.say(self.key(peer), self.message(said)),
            Operation::Progress(peer, piece) => {
                self.exchange.handle_progress(self.now, self.key(peer), self.piece(piece));
            }
            Operation::Received(peer, piece) => self.received(self.key(peer), self.piece(piece)),
            Operation::Stored(piece) => self.stored(self.piece(piece)),
            Operation::Corrupt(piece) => {
                let piece = self.piece(piece);
                self.writing.remove(&piece);
                self.exchange.handle_corrupt(self.now, piece);
            }
            Operation::Dropped(piece) => {
                let piece = self.piece(piece);
                self.writing.remove(&piece);
                self.exchange.handle_dropped(self.now, piece);
            }
            Operation::Sent(peer, piece) => self.sent(self.key(peer), self.piece(piece)),
            Operation::Unsent(peer, piece) => {
                let (key, piece) = (self.key(peer), self.piece(piece));
                self.sending.remove(&(key, piece));
                self.exchange.handle_unsent(self.now, key, piece);
            }
            Operation::Lost(piece) => {
                let piece = self.piece(piece);
                self.held.remove(&piece);
                self.sending.retain(|&(_, sending)| sending != piece);
                self.exchange.handle_lost(self.now, piece);
            }
            Operation::Wait(nanos) => {
                self.now = self.now + Duration::from_nanos(nanos);
                self.exchange.handle_timeout(self.now);
            }
            Operation::Comply => self.comply(),
        }
        self.check();
    }

    fn say(&mut self, key: PeerKey, message: Message) {
        if matches!(message, Message::Request(_) | Message::Decline(_)) {
            // An answer uses its grant up, whoever gives it.
            self.granted.retain(|&(peer, _)| peer != key);
        }
        self.exchange.handle_message(self.now, key, message);
    }

    fn comply(&mut self) {
        self.now = self.now + Duration::from_millis(3);
        if let Some(&(key, named)) = self.granted.last() {
            let piece = named.or(self.held.first().copied()).unwrap_or(self.piece(0));
            self.say(key, Message::Request(piece));
        } else if let Some(&(key, piece)) = self.sending.first() {
            self.sent(key, piece);
        } else if let Some(&(key, piece)) = self.requested.last() {
            self.received(key, piece);
        } else if let Some(&piece) = self.writing.first() {
            self.stored(piece);
        }
    }

    fn received(&mut self, key: PeerKey, piece: PieceIndex) {
        self.requested.retain(|&request| request != (key, piece));
        if self.exchange.handle_received(self.now, key, piece) == Receipt::Wanted {
            assert!(!self.held.contains(&piece), "{piece:?} wanted though held");
            assert!(self.writing.insert(piece), "{piece:?} wanted while it is being written");
        }
    }

    fn stored(&mut self, piece: PieceIndex) {
        self.exchange.handle_stored(self.now, piece);
        if self.writing.remove(&piece) {
            self.held.insert(piece);
        }
    }

    fn sent(&mut self, key: PeerKey, piece: PieceIndex) {
        self.sending.remove(&(key, piece));
        self.exchange.handle_sent(self.now, key, piece);
    }

    fn gone(&mut self, key: PeerKey) {
        self.connected.remove(&key);
        self.granted.retain(|&(peer, _)| peer != key);
        self.requested.retain(|&(peer, _)| peer != key);
        self.sending.retain(|&(peer, _)| peer != key);
        self.lives[(key.0 % PEERS) as usize] += 1;
    }

    fn check(&mut self) {
        self.exchange.assert_invariants();
        while let Some(output) = self.exchange.poll_output() {
            match output {
                Output::Send { peer, message } => self.check_sent(peer, message),
                Output::SendPiece { peer, piece } => {
                    assert!(self.connected.contains(&peer) && self.held.contains(&piece));
                    assert!(self.sending.insert((peer, piece)), "{piece:?} goes to {peer:?} twice at once");
                }
                Output::Disconnect { peer, .. } => {
                    assert!(self.connected.contains(&peer), "{peer:?} disconnected twice");
                    self.gone(peer);
                }
                Output::Event(Event::Held { piece, .. }) => assert!(self.held.contains(&piece)),
                Output::Event(Event::Complete) => assert!(self.is_complete()),
                Output::Event(_) => {}
            }
        }
        assert!(self.exchange.held().iter().eq(self.held.iter().copied()));
        assert_eq!(self.exchange.is_complete(), self.is_complete());
    }

    fn is_complete(&self) -> bool {
        self.list.indexes().all(|piece| self.held.contains(&piece) || self.unwanted.contains(piece))
    }

    fn check_sent(&mut self, peer: PeerKey, message: Message) {
        assert!(self.connected.contains(&peer), "{message:?} to {peer:?}, who is gone");
        match message {
            Message::Have(pieces) => assert!(pieces.iter().all(|piece| self.held.contains(piece))),
            Message::Grant(named) => {
                assert!(named.is_none_or(|piece| self.held.contains(&piece)));
                assert!(self.granted.iter().all(|&(other, _)| other != peer), "two grants to {peer:?}");
                self.granted.push((peer, named));
            }
            Message::Request(piece) => {
                assert!(!self.held.contains(&piece) && !self.writing.contains(&piece));
                assert!(!self.unwanted.contains(piece));
                self.requested.push((peer, piece));
            }
            _ => {}
        }
    }
}

fn set(list: &PieceList, pieces: &[u32]) -> Bitfield {
    let mut set = Bitfield::empty(list.len());
    for &piece in pieces {
        set.insert(list.index(piece).expect("a number below PIECES"));
    }
    set
}
