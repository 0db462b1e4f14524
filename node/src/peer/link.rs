//! One connection: four tasks that move frames and pieces, and the channels that join them to the driver.
//!
//! Back-pressure runs from end to end: a reader waits for its share of the inflow budget before it reads a payload,
//! so that a slow disk stops the peer by its Yamux window; a writer waits for the socket, so that at most
//! [`UPLOADS_PER_LINK_MAX`] pieces wait for one peer, and those only by name.

use std::collections::{BTreeMap, BTreeSet};
use std::net::{IpAddr, SocketAddr};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use futures::AsyncWriteExt;
use libp2p::swarm::ConnectionId;
use libp2p::{PeerId, Stream};
use shoal_proto::cid::Cid;
use shoal_proto::exchange::PeerKey;
use shoal_proto::image::{PieceIndex, PieceList};
use shoal_proto::time::Time;
use shoal_proto::wire::{Frame, Hello, PeerRole};
use tokio::sync::{OwnedSemaphorePermit, Semaphore, mpsc};
use tokio::task::AbortHandle;

use crate::block::{EncodedBlock, Encoding, payload_bytes_max};
use crate::peer::codec::{self, FrameReader, StreamError};
use crate::peer::streams::{Lane, Opened};
use crate::store::Store;

/// Control frames that may wait for one peer; a peer that does not read them is disconnected.
pub(super) const CONTROL_QUEUE_MAX: usize = 2048;
/// Pieces that may wait to be written to one peer; above the exchanges' own bound on uploads in hand.
pub(super) const UPLOADS_PER_LINK_MAX: usize = 64;
/// How long a peer may take for one piece: a few that never say that theirs arrived would hold every upload slot.
const CONFIRMATION_MAX: Duration = Duration::from_secs(300);
/// Piece lists that one peer may join: two for each image that it trades.
const JOINS_MAX: usize = 256;
/// Bytes of control frames written in one go.
const CONTROL_BATCH_BYTES: usize = 64 << 10;
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
    /// The store could not supply a piece that an exchange promised.
    Unreadable {
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
    pub(super) block: EncodedBlock,
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

/// The lists that a peer sends pieces of, by its own numbers: shared by the driver and the bulk reader.
#[derive(Clone, Debug, Default)]
struct TheirLists(Arc<Mutex<BTreeMap<u32, Arc<PieceList>>>>);

impl TheirLists {
    fn insert(&self, exchange: u32, list: Arc<PieceList>) {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).insert(exchange, list);
    }

    fn find(&self, exchange: u32) -> Option<Arc<PieceList>> {
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
    pub(super) hello: Option<Hello>,
    their_lists: TheirLists,
    /// The peer's numbers for the lists it joined.
    joined: BTreeMap<u32, Cid>,
    /// Whether it is a neighbour, or only told of others.
    pub(super) welcome: bool,
    /// Our numbers of the trades that this peer was told of.
    told: BTreeSet<u32>,
    /// Our numbers of the trades that both sides joined.
    trading: BTreeSet<u32>,
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
    pub(super) store: Arc<Store>,
    pub(super) inflow: InflowBudget,
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
        welcome: bool,
    ) -> Self {
        let (control, control_out) = mpsc::channel(CONTROL_QUEUE_MAX);
        let (uploads, uploads_out) = mpsc::channel(UPLOADS_PER_LINK_MAX);
        Self {
            key,
            peer,
            connection,
            remote_ip,
            we_dialed,
            hello: None,
            their_lists: TheirLists::default(),
            joined: BTreeMap::new(),
            welcome,
            told: BTreeSet::new(),
            trading: BTreeSet::new(),
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
    pub(super) fn begin_trade(&mut self, ours: u32, list: &Arc<PieceList>) -> bool {
        let name = list.name();
        let Some((&theirs, _)) = self.joined.iter().find(|(_, joined)| **joined == name) else {
            return false;
        };
        self.their_lists.insert(theirs, list.clone());
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

    /// Queues a piece; false when the peer does not read its pieces.
    #[must_use]
    pub(super) fn upload(&mut self, now: Time, upload: Upload) -> bool {
        if self.unconfirmed == 0 {
            self.confirmed_at = now;
        }
        self.unconfirmed += 1;
        self.uploads.try_send(upload).is_ok()
    }

    /// The peer said that a piece arrived, or one that was promised to it could not be read.
    pub(super) fn note_confirmed(&mut self, now: Time) {
        self.unconfirmed = self.unconfirmed.saturating_sub(1);
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
                spawn(key, around.clone(), write_control(stream, frames))
            }
            Opened::Outbound(Lane::Bulk, stream) => {
                let Some(uploads) = self.unopened.1.take() else { return };
                spawn(key, around.clone(), write_bulk(key, stream, uploads, around))
            }
            Opened::Inbound(Lane::Control, stream) => {
                spawn(key, around.clone(), read_control(key, stream, around))
            }
            Opened::Inbound(Lane::Bulk, stream) => {
                spawn(key, around.clone(), read_bulk(key, stream, self.their_lists.clone(), around))
            }
            Opened::Failed(why) => {
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

async fn write_control(mut stream: Stream, mut frames: mpsc::Receiver<Frame>) -> Result<(), StreamError> {
    let mut buffer = Vec::new();
    while let Some(frame) = frames.recv().await {
        codec::append_frame(&mut buffer, frame);
        while buffer.len() < CONTROL_BATCH_BYTES {
            let Ok(frame) = frames.try_recv() else { break };
            codec::append_frame(&mut buffer, frame);
        }
        stream.write_all(&buffer).await?;
        stream.flush().await?;
        buffer.clear();
    }
    stream.close().await?;
    Ok(())
}

async fn read_control(key: PeerKey, stream: Stream, around: Surroundings) -> Result<(), StreamError> {
    let mut reader = FrameReader::new(stream);
    loop {
        let frame = reader.read().await?;
        if around.driver.send(FromLink::Frame(key, frame)).await.is_err() {
            return Ok(());
        }
    }
}

async fn write_bulk(
    key: PeerKey,
    mut stream: Stream,
    mut uploads: mpsc::Receiver<Upload>,
    around: Surroundings,
) -> Result<(), StreamError> {
    while let Some(Upload { exchange, piece, list }) = uploads.recv().await {
        let cid = list.piece(piece).cid;
        let store = around.store.clone();
        let read = tokio::task::spawn_blocking(move || store.get(&cid)).await;
        match read {
            Ok(Ok(Some(block))) => {
                codec::write_piece(&mut stream, exchange, piece.get(), &block).await?;
                around.sent_bytes.fetch_add(block.payload.len() as u64, Ordering::Relaxed);
            }
            other => {
                let why = match other {
                    Ok(Err(error)) => error.to_string(),
                    Err(error) => error.to_string(),
                    Ok(Ok(_)) => "not in the store".to_owned(),
                };
                tracing::warn!(%cid, %piece, why, "a held piece cannot be read and is withdrawn");
                // Else it could not be stored again once it was fetched again.
                around.store.discard(&cid);
                if around.driver.send(FromLink::Unreadable { to: key, exchange, piece }).await.is_err() {
                    return Ok(());
                }
            }
        }
    }
    stream.close().await?;
    Ok(())
}

async fn read_bulk(
    key: PeerKey,
    mut stream: Stream,
    lists: TheirLists,
    around: Surroundings,
) -> Result<(), StreamError> {
    loop {
        let header = codec::read_bulk_header(&mut stream).await?;
        let wrong = |why: &str| {
            StreamError::Piece(format!("{why} (exchange {}, piece {})", header.exchange, header.piece))
        };
        let list = lists.find(header.exchange).ok_or_else(|| wrong("no such exchange"))?;
        let piece = list.index(header.piece).ok_or_else(|| wrong("no such piece"))?;
        let encoding = Encoding::from_code(header.encoding).ok_or_else(|| wrong("unknown encoding"))?;
        let block = list.piece(piece);
        let bytes = header.payload_bytes as usize;
        if bytes > payload_bytes_max(block.raw_bytes) {
            return Err(wrong("longer than its raw length allows"));
        }
        let permit = around.inflow.reserve(bytes).await;
        let payload = codec::read_payload(&mut stream, bytes, || {
            let progress = FromLink::Progress { from: key, exchange: header.exchange, piece: header.piece };
            // Only a hint: a full queue means that the driver hears from this link soon anyway.
            let _ = around.driver.try_send(progress);
        })
        .await?;
        let block = EncodedBlock { cid: block.cid, encoding, raw_bytes: block.raw_bytes, payload };
        let received = ReceivedPiece { from: key, exchange: header.exchange, piece, block, permit };
        if around.driver.send(FromLink::Piece(received)).await.is_err() {
            return Ok(());
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use shoal_proto::image::Piece;

    #[test]
    fn a_peer_that_never_says_that_a_piece_arrived_is_due_and_one_that_does_is_not() {
        let list = Arc::new(PieceList::new(vec![Piece { cid: Cid::of(b"x"), raw_bytes: 1 }]).unwrap());
        let upload = || Upload { exchange: 0, piece: list.index(0).unwrap(), list: list.clone() };
        let connection = ConnectionId::new_unchecked(1);
        let mut link = Link::new(PeerKey(1), PeerId::random(), connection, None, true, true);
        assert_eq!(link.confirmation_due(), None);
        let start = Time::ZERO + Duration::from_secs(1000);
        assert!(link.upload(start, upload()) && link.upload(start, upload()));
        assert_eq!(link.confirmation_due(), Some(start + CONFIRMATION_MAX));
        let later = start + Duration::from_secs(60);
        link.note_confirmed(later);
        assert_eq!(link.confirmation_due(), Some(later + CONFIRMATION_MAX));
        link.note_confirmed(later);
        assert_eq!(link.confirmation_due(), None);
    }
}
