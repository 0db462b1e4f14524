//! The exchanges that a peer runs, each with its list, its sink and whoever waits for it.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::Duration;

use shoal_proto::cid::Cid;
use shoal_proto::exchange::{Config, Exchange, Message, Role};
use shoal_proto::image::{PieceIndex, PieceList};
use shoal_proto::rate::Rate;
use shoal_proto::time::Time;
use shoal_proto::wire::{Part, TradeFrame};
use tokio::sync::oneshot;

use crate::peer::parts::Parts;
use crate::peer::{Error, Lacking, ListKind, Listing, PieceSink};

/// A piece list to trade, with what there is of it.
pub(super) struct TradeRequest {
    pub(super) listing: Listing,
    pub(super) sink: Arc<dyn PieceSink>,
    pub(super) done: oneshot::Sender<Result<(), Error>>,
}

pub(super) struct Trade {
    pub(super) list: Arc<PieceList>,
    pub(super) kind: ListKind,
    /// Whom it is traded with is for the driver to check.
    pub(super) private: bool,
    pub(super) exchange: Exchange,
    pub(super) sink: Arc<dyn PieceSink>,
    /// Every part that was ever asked for.
    pub(super) parts: Parts,
    /// Pieces whose local bytes are not to be had any more: asked for whole until they come.
    whole: BTreeSet<PieceIndex>,
    /// Pieces that are stored and not yet in the sink.
    unsunk: usize,
    done: Option<oneshot::Sender<Result<(), Error>>>,
}

/// Uploads in hand of a peer, on all connections and in all exchanges: at most, and where a limit makes them few.
const UPLOADS_MAX: usize = 10;
const UPLOADS_MIN: usize = 2;
/// How often the uploads in hand are shared out anew among the exchanges.
const SHARE_INTERVAL: Duration = Duration::from_millis(100);
/// Where the uplink is limited, no more uploads are in hand than it takes this long to send.
const IN_HAND: Duration = Duration::from_secs(2);
/// The bytes of a usual piece.
const PIECE_BYTES: u64 = 1 << 20;

/// All trades of a peer, by the number that it calls them by on every connection.
pub(super) struct Trades {
    running: BTreeMap<u32, Trade>,
    by_list: BTreeMap<Cid, u32>,
    /// Uploads in hand of all exchanges together, as far as one for each of them allows.
    uploads_max: usize,
    share_at: Time,
}

impl Trades {
    /// Trades over an uplink of this rate; `None` when nothing limits it.
    pub(super) fn new(up: Option<Rate>) -> Self {
        let uploads_max = up.map_or(UPLOADS_MAX, |rate| {
            let in_time = rate.bytes_per_s() * IN_HAND.as_secs() / PIECE_BYTES;
            usize::try_from(in_time).unwrap_or(UPLOADS_MAX).clamp(UPLOADS_MIN, UPLOADS_MAX)
        });
        Self { running: BTreeMap::new(), by_list: BTreeMap::new(), uploads_max, share_at: Time::ZERO }
    }

    /// Shares the uploads in hand out among the exchanges that have something to give, when it is time to; returns
    /// those that may have something to say.
    pub(super) fn share_uplink(&mut self, now: Time) -> Vec<u32> {
        if now < self.share_at {
            return Vec::new();
        }
        self.share_at = now + SHARE_INTERVAL;
        let wanting: Vec<bool> = self.running.values().map(|trade| trade.exchange.wants_uploads()).collect();
        let busy = wanting.iter().filter(|wants| **wants).count();
        for (trade, wants) in self.running.values_mut().zip(wanting) {
            // One that begins to want some takes them from the others as they finish theirs.
            let sharing = busy + usize::from(!wants);
            trade.exchange.handle_upload_share(now, self.uploads_max / sharing);
        }
        self.numbers()
    }

    /// Starts a trade and returns its number; a list that is traded already keeps its trade, and `request.done` is
    /// told when that one completes.
    pub(super) fn start(&mut self, request: TradeRequest, role: Role, seed: u64) -> u32 {
        let TradeRequest { listing: Listing { list, kind, held, unwanted, private }, sink, done } = request;
        let name = list.name();
        if let Some(&number) = self.by_list.get(&name) {
            let trade = self.running.get_mut(&number).expect("by_list names running trades");
            trade.done = Some(done);
            trade.check_done();
            return number;
        }
        let number = u32::try_from(self.running.len()).expect("a peer trades few lists");
        let exchange = Exchange::new(Config::over_tcp(), role, list.clone(), held, seed).without(unwanted);
        self.share_at = Time::ZERO;
        let (parts, whole) = (Parts::default(), BTreeSet::new());
        let mut trade =
            Trade { list, kind, private, exchange, sink, parts, whole, unsunk: 0, done: Some(done) };
        trade.check_done();
        self.running.insert(number, trade);
        self.by_list.insert(name, number);
        number
    }

    pub(super) fn find(&self, list: &Cid) -> Option<u32> {
        self.by_list.get(list).copied()
    }

    pub(super) fn get(&self, number: u32) -> Option<&Trade> {
        self.running.get(&number)
    }

    pub(super) fn get_mut(&mut self, number: u32) -> Option<&mut Trade> {
        self.running.get_mut(&number)
    }

    pub(super) fn iter(&self) -> impl Iterator<Item = (u32, &Trade)> {
        self.running.iter().map(|(number, trade)| (*number, trade))
    }

    pub(super) fn numbers(&self) -> Vec<u32> {
        self.running.keys().copied().collect()
    }

    pub(super) fn next_timeout(&self) -> Option<Time> {
        let exchanges = self.running.values().filter_map(|trade| trade.exchange.poll_timeout()).min();
        // While they have nothing to wait for they have nothing to share.
        let share = (self.running.len() > 1 && exchanges.is_some()).then_some(self.share_at);
        [exchanges, share].into_iter().flatten().min()
    }

    /// Whether every content list that is traded has another holder for each of its pieces.
    pub(super) fn replicated(&self) -> bool {
        // What is private has no other holder.
        let is_shared = |trade: &&Trade| trade.kind == ListKind::Content && !trade.private;
        let mut content = self.running.values().filter(is_shared).peekable();
        let elsewhere = |trade: &Trade| trade.list.is_empty() || trade.exchange.copies_elsewhere() > 0;
        content.peek().is_some() && content.all(elsewhere)
    }
}

impl Trade {
    /// A message of the exchange as it goes out: a request says which bytes of the piece are lacking.
    pub(super) fn frame(&self, number: u32, message: Message) -> TradeFrame {
        match message {
            Message::Request(piece) => match self.part_lacking(piece) {
                Some(part) => TradeFrame::request_part(number, piece, &part),
                None => TradeFrame::new(number, message),
            },
            _ => TradeFrame::new(number, message),
        }
    }

    fn part_lacking(&self, piece: PieceIndex) -> Option<Part> {
        if self.whole.contains(&piece) {
            return None;
        }
        let Lacking::Ranges(ranges) = self.sink.lacking(piece) else { return None };
        let raw_bytes = self.list.piece(piece).raw_bytes;
        debug_assert!(ranges.end() <= raw_bytes, "{piece} has {raw_bytes} bytes, and {ranges:?} are lacking");
        (ranges.end() <= raw_bytes && ranges.bytes() < raw_bytes).then(|| self.parts.name(piece, ranges))?
    }

    pub(super) fn handle_stored(&mut self, piece: PieceIndex) {
        self.unsunk += 1;
        self.whole.remove(&piece);
    }

    /// A part came, and the rest of the piece is not here any more.
    pub(super) fn handle_unfilled(&mut self, now: Time, piece: PieceIndex) {
        self.whole.insert(piece);
        self.exchange.handle_dropped(now, piece);
    }

    pub(super) fn handle_sunk(&mut self) {
        self.unsunk -= 1;
        self.check_done();
    }

    pub(super) fn fail(&mut self, error: Error) {
        match self.done.take() {
            // A waiter that went away needs no answer.
            Some(done) => drop(done.send(Err(error))),
            None => tracing::error!(list = %self.list.name(), %error, "a trade failed that nobody waits for"),
        }
    }

    fn check_done(&mut self) {
        if self.exchange.is_complete()
            && self.unsunk == 0
            && let Some(done) = self.done.take()
        {
            // A waiter that went away needs no answer.
            let _ = done.send(Ok(()));
        }
    }
}
