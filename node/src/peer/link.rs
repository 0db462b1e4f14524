//! One connection: four tasks that move frames and pieces, and the channels that join them to the driver.
//!
//! Back-pressure runs from end to end: a reader waits for its share of the inflow budget before it reads a payload,
//! so that a slow disk stops the peer by its Yamux window; a writer waits for the socket, so that at most
//! [`UPLOADS_PER_LINK_MAX`] pieces wait for one peer, and those only by name.

mod lanes;

use std::collections::{BTreeMap, BTreeSet};
use std::net::{IpAddr, SocketAddr};
use std::num::NonZeroU8;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use futures::AsyncWriteExt;
use libp2p::swarm::ConnectionId;
use libp2p::{PeerId, Stream};
use shoal_proto::cid::Cid;
use shoal_proto::exchange::PeerKey;
use shoal_proto::fleet::Follow;
use shoal_proto::image::{PieceIndex, PieceList};
use shoal_proto::time::Time;
use shoal_proto::wire::{Frame, Hello, Part, PeerRole};
use shoal_proto::zone::Zone;
use tokio::sync::{OwnedSemaphorePermit, Semaphore, mpsc};
use tokio::task::AbortHandle;

use crate::block::{EncodedBlock, EncodedPart, Encoding, payload_bytes_max};
use crate::peer::codec::{self, FrameReader, StreamError};
use crate::peer::limits::{Limits, Pace};
use crate::peer::parts::Parts;
use crate::peer::patience::Patience;
use crate::peer::serve::{Delivery, Shelves};
use crate::peer::socket::Meter;
use crate::peer::streams::{Lane, Opened};

/// Control frames that may wait for one peer; a peer that does not read them is disconnected.
pub(super) const CONTROL_QUEUE_MAX: usize = 2048;
/// Frames waiting for a peer from which on its questions stay unanswered: an answer may be long, and it reads none.
const UNREAD_MAX: usize = 64;
/// Pieces that may wait to be written to one peer; above the exchanges' own bound on uploads in hand.
pub(super) const UPLOADS_PER_LINK_MAX: usize = 64;
/// How long a peer may take for one piece: a few that never say that theirs arrived would hold every upload slot.
const CONFIRMATION_MAX: Duration = Duration::from_secs(300);
/// Piece lists that one peer may join: two for each image that it trades.
const JOINS_MAX: usize = 256;
/// Encoded bytes of received pieces that a peer keeps in memory until they are stored.
const INFLOW_BYTES_MAX: usize = 48 << 20;
/// The unit of the inflow budget.
const INFLOW_UNIT_BYTES: usize = 64 << 10;

/// What the tasks of a connection tell the driver.
#[derive(Debug)]
pub(super) enum FromLink {
    Frame(PeerKey, Frame),
    Progress {
        from: PeerKey,
        exchange: u32,
        piece: u32,
    },
    Piece(ReceivedPiece),
    /// A piece has left: its last byte was taken by the connection.
    Written {
        to: PeerKey,
        exchange: u32,
        piece: PieceIndex,
    },
    /// A piece that an exchange promised cannot be had any more.
    Unreadable {
        to: PeerKey,
        exchange: u32,
        piece: PieceIndex,
    },
    /// A piece that its receiver called off was not written.
    Unsent {
        to: PeerKey,
        exchange: u32,
        piece: PieceIndex,
    },
    /// The names of a peer to dial were looked up.
    Resolved {
        peer: PeerId,
        addresses: Vec<SocketAddr>,
        failures: Vec<String>,
    },
    Ended {
        peer: PeerKey,
        why: String,
        fault: bool,
    },
}

/// A piece off the wire: lengths checked, nothing else.
#[derive(Debug)]
pub(super) struct ReceivedPiece {
    pub(super) from: PeerKey,
    /// The sender's number for the list.
    pub(super) exchange: u32,
    pub(super) piece: PieceIndex,
    pub(super) delivery: Delivery,
    /// Its share of the inflow budget, given back when it is stored or dropped.
    pub(super) permit: OwnedSemaphorePermit,
}

/// A piece to be written to a peer.
#[derive(Debug)]
pub(super) struct Upload {
    /// Our number for the list.
    pub(super) exchange: u32,
    pub(super) piece: PieceIndex,
    pub(super) list: Arc<PieceList>,
    /// What of the piece the peer asked for, when not all of it.
    pub(super) part: Option<Part>,
    /// Set once it is not worth beginning any more.
    pub(super) is_off: Arc<AtomicBool>,
}

/// A request of the peer's, from its frame to the upload that answers it: at most one in each exchange.
#[derive(Debug)]
struct Requested {
    piece: PieceIndex,
    part: Option<Part>,
    is_off: Arc<AtomicBool>,
}

/// Bounds the bytes of received pieces in memory, over all connections of a peer.
#[derive(Clone, Debug)]
pub(super) struct InflowBudget(Arc<Semaphore>);

impl InflowBudget {
    pub(super) fn new() -> Self {
        Self(Arc::new(Semaphore::new(INFLOW_BYTES_MAX / INFLOW_UNIT_BYTES)))
    }

    async fn reserve(&self, bytes: usize) -> OwnedSemaphorePermit {
        let units = bytes.div_ceil(INFLOW_UNIT_BYTES).clamp(1, INFLOW_BYTES_MAX / INFLOW_UNIT_BYTES);
        let units = u32::try_from(units).expect("the budget is small");
        self.0.clone().acquire_many_owned(units).await.expect("the budget is never closed")
    }
}

/// The lists that a peer sends pieces of, by its own numbers, with the parts that were asked for: shared by the driver
/// and the bulk reader.
#[derive(Clone, Debug, Default)]
struct TheirLists(Arc<Mutex<BTreeMap<u32, TheirList>>>);

#[derive(Clone, Debug)]
struct TheirList {
    list: Arc<PieceList>,
    parts: Parts,
}

impl TheirLists {
    fn insert(&self, exchange: u32, list: TheirList) {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).insert(exchange, list);
    }

    fn find(&self, exchange: u32) -> Option<TheirList> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).get(&exchange).cloned()
    }
}

/// The driver's end of one connection. Dropping it ends the connection's tasks.
#[derive(Debug)]
pub(super) struct Link {
    pub(super) key: PeerKey,
    pub(super) peer: PeerId,
    pub(super) connection: ConnectionId,
    pub(super) remote_ip: Option<IpAddr>,
    pub(super) we_dialed: bool,
    pub(super) meter: Arc<Meter>,
    pub(super) hello: Option<Hello>,
    /// The channel that the peer follows, and what it knows of it.
    pub(super) follows: Option<Follow>,
    pub(super) patience: Patience,
    their_lists: TheirLists,
    /// The peer's numbers for the lists it joined.
    joined: BTreeMap<u32, Cid>,
    /// Our numbers of the trades that this peer was told of.
    told: BTreeSet<u32>,
    /// Our numbers of the trades that both sides joined.
    trading: BTreeSet<u32>,
    /// What the peer requested last, by our numbers.
    requested: BTreeMap<u32, Requested>,
    /// Pieces handed to the connection whose arrival was not said yet, and when the last was said.
    unconfirmed: usize,
    confirmed_at: Time,
    control: mpsc::Sender<Frame>,
    uploads: mpsc::Sender<Upload>,
    /// Taken by the writer tasks when their streams open.
    unopened: (Option<mpsc::Receiver<Frame>>, Option<mpsc::Receiver<Upload>>),
    tasks: Vec<AbortHandle>,
}

/// What a link's tasks need of their surroundings.
#[derive(Clone, Debug)]
pub(super) struct Surroundings {
    pub(super) shelves: Shelves,
    pub(super) inflow: InflowBudget,
    pub(super) limits: Limits,
    /// What pieces keep to on their way out, on all connections together, and on their way in.
    pub(super) up: Pace,
    pub(super) down: Pace,
    /// Bytes of pieces written to all peers.
    pub(super) sent_bytes: Arc<AtomicU64>,
    pub(super) driver: mpsc::Sender<FromLink>,
}

impl Link {
    pub(super) fn new(
        key: PeerKey,
        peer: PeerId,
        connection: ConnectionId,
        remote_ip: Option<IpAddr>,
        we_dialed: bool,
        meter: Arc<Meter>,
    ) -> Self {
        let (control, control_out) = mpsc::channel(CONTROL_QUEUE_MAX);
        let (uploads, uploads_out) = mpsc::channel(UPLOADS_PER_LINK_MAX);
        Self {
            key,
            peer,
            connection,
            remote_ip,
            we_dialed,
            meter,
            hello: None,
            follows: None,
            patience: Patience::default(),
            their_lists: TheirLists::default(),
            joined: BTreeMap::new(),
            told: BTreeSet::new(),
            trading: BTreeSet::new(),
            requested: BTreeMap::new(),
            unconfirmed: 0,
            confirmed_at: Time::ZERO,
            control,
            uploads,
            unopened: (Some(control_out), Some(uploads_out)),
            tasks: Vec::new(),
        }
    }

    pub(super) fn is_seeder(&self) -> bool {
        self.hello.as_ref().is_some_and(|hello| hello.role == PeerRole::Seeder)
    }

    /// Where it says that it stands.
    pub(super) fn rack(&self) -> Zone {
        self.hello.as_ref().map_or(Zone::UNKNOWN, |hello| hello.rack.clone())
    }

    /// The peer calls `list` by `exchange` from now on.
    pub(super) fn note_join(&mut self, exchange: u32, list: Cid) -> Result<(), &'static str> {
        if self.joined.len() >= JOINS_MAX {
            return Err("it joins too many piece lists");
        }
        if self.joined.insert(exchange, list).is_some_and(|before| before != list) {
            return Err("it calls two piece lists by one number");
        }
        Ok(())
    }

    /// Notes that the peer is told of a trade; true the first time.
    pub(super) fn note_told(&mut self, ours: u32) -> bool {
        self.told.insert(ours)
    }

    /// The list that the peer calls by this number.
    pub(super) fn joined_list(&self, exchange: u32) -> Option<Cid> {
        self.joined.get(&exchange).copied()
    }

    /// Notes that both sides trade `list`; true when the peer had joined it and this is new.
    pub(super) fn begin_trade(&mut self, ours: u32, list: &Arc<PieceList>, parts: &Parts) -> bool {
        let name = list.name();
        let Some((&theirs, _)) = self.joined.iter().find(|(_, joined)| **joined == name) else {
            return false;
        };
        self.their_lists.insert(theirs, TheirList { list: list.clone(), parts: parts.clone() });
        self.trading.insert(ours)
    }

    /// Whether both sides trade the list that we call by this number.
    pub(super) fn trades(&self, ours: u32) -> bool {
        self.trading.contains(&ours)
    }

    /// Queues a frame; false when the peer does not read its frames.
    #[must_use]
    pub(super) fn send(&self, frame: Frame) -> bool {
        self.control.try_send(frame).is_ok()
    }

    /// Whether the peer is slow to read what it is told.
    pub(super) fn is_behind(&self) -> bool {
        CONTROL_QUEUE_MAX - self.control.capacity() > UNREAD_MAX
    }

    /// The peer requests a piece, or a part of it, in the exchange that we call `ours`.
    pub(super) fn note_request(&mut self, ours: u32, piece: PieceIndex, part: Option<Part>) {
        self.requested.insert(ours, Requested { piece, part, is_off: Arc::default() });
    }

    /// The upload that answers the peer's last request in the exchange; stays known until the next one.
    pub(super) fn answer(&mut self, ours: u32, piece: PieceIndex, list: &Arc<PieceList>) -> Upload {
        let requested = self.requested.get(&ours).filter(|requested| requested.piece == piece);
        let (part, is_off) = requested
            .map_or_else(Default::default, |requested| (requested.part.clone(), requested.is_off.clone()));
        Upload { exchange: ours, piece, list: list.clone(), part, is_off }
    }

    /// The piece is not to be written any more, if that has not begun.
    pub(super) fn call_off(&mut self, ours: u32, piece: PieceIndex) {
        if let Some(requested) = self.requested.get(&ours).filter(|requested| requested.piece == piece) {
            requested.is_off.store(true, Ordering::Relaxed);
        }
    }

    /// Queues a piece; false when the peer does not read its pieces.
    #[must_use]
    pub(super) fn upload(&mut self, now: Time, upload: Upload) -> bool {
        if self.unconfirmed == 0 {
            self.confirmed_at = now;
        }
        self.unconfirmed += 1;
        self.uploads.try_send(upload).is_ok()
    }

    /// The peer said that a piece arrived, or one that was promised to it was not written after all.
    pub(super) fn note_confirmed(&mut self, now: Time) {
        if self.unconfirmed > 0 {
            self.unconfirmed -= 1;
            self.patience.note_piece();
        }
        self.confirmed_at = now;
    }

    /// When this peer has had pieces for too long without a word of any of them.
    pub(super) fn confirmation_due(&self) -> Option<Time> {
        (self.unconfirmed > 0).then(|| self.confirmed_at + CONFIRMATION_MAX)
    }

    /// Starts the task of a stream that opened.
    pub(super) fn start(&mut self, opened: Opened, around: &Surroundings) {
        let key = self.key;
        let around = around.clone();
        let task = match opened {
            Opened::Outbound(Lane::Control, stream) => {
                let Some(frames) = self.unopened.0.take() else { return };
                spawn(key, around.clone(), lanes::write_control(stream, frames))
            }
            Opened::Outbound(Lane::Bulk, stream) => {
                let Some(uploads) = self.unopened.1.take() else { return };
                spawn(
                    key,
                    around.clone(),
                    lanes::write_bulk(key, stream, uploads, self.meter.clone(), around),
                )
            }
            Opened::Inbound(Lane::Control, stream) => {
                spawn(key, around.clone(), lanes::read_control(key, stream, around))
            }
            Opened::Inbound(Lane::Bulk, stream) => {
                spawn(key, around.clone(), lanes::read_bulk(key, stream, self.their_lists.clone(), around))
            }
            // Not the link's: see the driver.
            Opened::Outbound(Lane::Session, _) | Opened::Inbound(Lane::Session, _) => return,
            Opened::Failed(_, why) => {
                spawn(key, around, async move { Err(StreamError::Broken(std::io::Error::other(why))) })
            }
        };
        self.tasks.push(task);
    }
}

impl Drop for Link {
    fn drop(&mut self) {
        self.tasks.iter().for_each(AbortHandle::abort);
    }
}

/// Runs one task of a link and reports its end.
fn spawn(
    peer: PeerKey,
    around: Surroundings,
    task: impl Future<Output = Result<(), StreamError>> + Send + 'static,
) -> AbortHandle {
    let ended = async move {
        if let Err(error) = task.await {
            let ended = FromLink::Ended { peer, why: error.to_string(), fault: error.is_fault() };
            // The driver is gone only when the peer stops: nobody is left to tell.
            let _ = around.driver.send(ended).await;
        }
    };
    tokio::spawn(ended).abort_handle()
}

#[cfg(test)]
mod tests {
    use super::*;
    use shoal_proto::image::Piece;

    #[test]
    fn a_peer_that_never_says_that_a_piece_arrived_is_due_and_one_that_does_is_not() {
        let list = Arc::new(PieceList::new(vec![Piece { cid: Cid::of(b"x"), raw_bytes: 1 }]).unwrap());
        let connection = ConnectionId::new_unchecked(1);
        let mut link = Link::new(PeerKey(1), PeerId::random(), connection, None, true, Arc::default());
        assert_eq!(link.confirmation_due(), None);
        let start = Time::ZERO + Duration::from_secs(1000);
        for _ in 0..2 {
            let upload = link.answer(0, list.index(0).unwrap(), &list);
            assert!(link.upload(start, upload));
        }
        assert_eq!(link.confirmation_due(), Some(start + CONFIRMATION_MAX));
        let later = start + Duration::from_secs(60);
        link.note_confirmed(later);
        assert_eq!(link.confirmation_due(), Some(later + CONFIRMATION_MAX));
        link.note_confirmed(later);
        assert_eq!(link.confirmation_due(), None);
    }
}
