//! The exchanges that a peer runs, each with its list, its sink and whoever waits for it.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use shoal_proto::cid::Cid;
use shoal_proto::exchange::{Bitfield, Config, Exchange, Role};
use shoal_proto::image::PieceList;
use shoal_proto::time::Time;
use tokio::sync::oneshot;

use crate::peer::{Error, ListKind, PieceSink};

/// A piece list to trade, with what the store has of it.
pub(super) struct TradeRequest {
    pub(super) list: Arc<PieceList>,
    pub(super) kind: ListKind,
    pub(super) held: Bitfield,
    pub(super) sink: Arc<dyn PieceSink>,
    pub(super) done: oneshot::Sender<Result<(), Error>>,
}

pub(super) struct Trade {
    pub(super) list: Arc<PieceList>,
    pub(super) kind: ListKind,
    pub(super) exchange: Exchange,
    pub(super) sink: Arc<dyn PieceSink>,
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
        let TradeRequest { list, kind, held, sink, done } = request;
        let name = list.name();
        if let Some(&number) = self.by_list.get(&name) {
            let trade = self.running.get_mut(&number).expect("by_list names running trades");
            trade.done = Some(done);
            trade.check_done();
            return number;
        }
        let number = u32::try_from(self.running.len()).expect("a peer trades few lists");
        let exchange = Exchange::new(tuning(), role, list.clone(), held, seed);
        let mut trade = Trade { list, kind, exchange, sink, unsunk: 0, done: Some(done) };
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
    pub(super) fn handle_stored(&mut self) {
        self.unsunk += 1;
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
