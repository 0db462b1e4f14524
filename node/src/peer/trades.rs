//! The exchanges that a peer runs, each with its list, its sink and whoever waits for it.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::Duration;

use shoal_proto::cid::Cid;
use shoal_proto::exchange::{Bitfield, Config, Exchange, Message, Role};
use shoal_proto::image::{PieceIndex, PieceList};
use shoal_proto::time::Time;
use shoal_proto::wire::{Part, TradeFrame};
use tokio::sync::oneshot;

use crate::peer::parts::Parts;
use crate::peer::{Error, Lacking, ListKind, PieceSink};

/// A piece list to trade, with what there is of it.
pub(super) struct TradeRequest {
    pub(super) list: Arc<PieceList>,
    pub(super) kind: ListKind,
    pub(super) held: Bitfield,
    pub(super) unwanted: Bitfield,
    pub(super) sink: Arc<dyn PieceSink>,
    pub(super) done: oneshot::Sender<Result<(), Error>>,
}

pub(super) struct Trade {
    pub(super) list: Arc<PieceList>,
    pub(super) kind: ListKind,
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

/// All trades of a peer, by the number that it calls them by on every connection.
#[derive(Default)]
pub(super) struct Trades {
    running: BTreeMap<u32, Trade>,
    by_list: BTreeMap<Cid, u32>,
}

impl Trades {
    /// Starts a trade and returns its number; a list that is traded already keeps its trade, and `request.done` is
    /// told when that one completes.
    pub(super) fn start(&mut self, request: TradeRequest, role: Role, seed: u64) -> u32 {
        let TradeRequest { list, kind, held, unwanted, sink, done } = request;
        let name = list.name();
        if let Some(&number) = self.by_list.get(&name) {
            let trade = self.running.get_mut(&number).expect("by_list names running trades");
            trade.done = Some(done);
            trade.check_done();
            return number;
        }
        let number = u32::try_from(self.running.len()).expect("a peer trades few lists");
        let exchange = Exchange::new(tuning(), role, list.clone(), held, seed).without(unwanted);
        let (parts, whole) = (Parts::default(), BTreeSet::new());
        let mut trade = Trade { list, kind, exchange, sink, parts, whole, unsunk: 0, done: Some(done) };
        trade.check_done();
        self.running.insert(number, trade);
        self.by_list.insert(name, number);
        number
    }

    pub(super) fn find(&self, list: &Cid) -> Option<u32> {
        self.by_list.get(list).copied()
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
        self.running.values().filter_map(|trade| trade.exchange.poll_timeout()).min()
    }

    /// Whether every content list that is traded has another holder for each of its pieces.
    pub(super) fn replicated(&self) -> bool {
        let mut content = self.running.values().filter(|trade| trade.kind == ListKind::Content).peekable();
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

/// Deeper than the simulated optimum of 4 and 5: a real control message waits behind bulk bytes in socket and link
/// queues, several piece-times where the study assumed a twentieth of one. Eight hosts at 50 Mbit/s in namespaces, 245
/// pieces, last finish ÷ (bytes ÷ rate): 1.27 with 4 and 5, 1.20 with 6 and 7, 1.17 with 8 and 10, 1.17 with 12 and 14.
/// A usual transfer then takes as many block-times as there are uploads in hand: what is to be fetched twice must be
/// five times as old as that: with once, a twentieth of all bytes came twice (measured), with three times a hundredth
/// on a machine that was short of processors. There a transfer of milliseconds may take a hundred times that: nothing
/// younger than two seconds is fetched twice either.
fn tuning() -> Config {
    Config {
        uploads_in_hand: 8,
        fetches_coming: 10,
        endgame_percent: 4000,
        endgame_min: Duration::from_secs(2),
        ..Config::default()
    }
}
