//! What an installing node tells whoever watches: numbers and reasons, never a terminal.

use std::collections::VecDeque;
use std::time::{Duration, Instant};

use crate::peer::{Status, TradeStatus, Traffic};

/// Silence after which a snapshot says what it waits for.
const STALL: Duration = Duration::from_secs(5);
/// Time over which the rate is taken.
const RATE_WINDOW: Duration = Duration::from_secs(5);

/// Watches an install. Called from the install's own task: must return at once.
pub trait Monitor: Send + Sync {
    fn update(&self, snapshot: &Snapshot);
}

/// Watches nothing.
#[derive(Debug)]
pub struct Unwatched;

impl Monitor for Unwatched {
    fn update(&self, _: &Snapshot) {}
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Stage {
    Joining,
    Manifest,
    Planning,
    Pieces,
    Metadata,
    Complete,
}

/// How far an install is.
#[derive(Clone, Debug)]
pub struct Snapshot {
    pub stage: Stage,
    pub pieces: usize,
    pub held: usize,
    pub neighbours: usize,
    pub traffic: Traffic,
    /// Compressed bytes that came lately, for each second.
    pub rate_bytes_per_s: u64,
    pub eta: Option<Duration>,
    /// Why nothing came for [`STALL`]: from whom what is missing.
    pub waiting: Option<String>,
}

/// Makes snapshots of successive statuses: takes the rate, and notices a stall.
#[derive(Debug)]
pub struct Meter {
    samples: VecDeque<(Instant, u64, usize)>,
    advanced: Instant,
}

impl Meter {
    pub fn new(now: Instant) -> Self {
        Self { samples: VecDeque::new(), advanced: now }
    }

    pub fn snapshot(&mut self, now: Instant, stage: Stage, status: &Status) -> Snapshot {
        let trade = status.trades.last();
        let (pieces, held) = trade.map_or((0, 0), |trade| (trade.pieces - trade.unwanted, trade.held));
        let bytes = status.traffic.from_seeders_bytes + status.traffic.from_peers_bytes;
        if self.samples.back().is_none_or(|(_, before, held_before)| bytes > *before || held > *held_before) {
            self.advanced = now;
        }
        self.samples.push_back((now, bytes, held));
        while self.samples.front().is_some_and(|(at, ..)| now - *at > RATE_WINDOW) {
            self.samples.pop_front();
        }
        let (since, bytes_before, held_before) = self.samples.front().copied().unwrap_or((now, bytes, held));
        let millis = u64::try_from((now - since).as_millis()).unwrap_or(u64::MAX).max(1);
        let rate_bytes_per_s = (bytes - bytes_before).saturating_mul(1000) / millis;
        let lately = held.saturating_sub(held_before);
        let eta = (lately > 0).then(|| (now - since).mul_f64((pieces - held) as f64 / lately as f64));
        let stalled = now - self.advanced >= STALL && held < pieces.max(1);
        Snapshot {
            stage,
            pieces,
            held,
            neighbours: status.neighbours,
            traffic: status.traffic,
            rate_bytes_per_s,
            eta,
            waiting: stalled.then(|| why(status, trade)),
        }
    }
}

fn why(status: &Status, trade: Option<&TradeStatus>) -> String {
    if status.neighbours == 0 {
        let trouble = status.trouble.as_deref().unwrap_or("no address answers");
        return format!("no neighbour: {trouble}");
    }
    let Some(trade) = trade else {
        return format!("none of {} neighbours has told of the image yet", status.neighbours);
    };
    match trade.waiting.first() {
        None => "the last pieces are being written".to_owned(),
        Some((piece, holders)) if holders.is_empty() => {
            format!("piece {piece}: none of {} neighbours holds it", status.neighbours)
        }
        Some((piece, holders)) if holders.len() == 1 => format!("piece {piece}: only held by {}", holders[0]),
        Some((piece, holders)) => {
            format!(
                "piece {piece}: {} neighbours hold it and none sends it, {} among them",
                holders.len(),
                holders[0]
            )
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::peer::PeerId;
    use shoal_proto::cid::Cid;
    use shoal_proto::image::{Piece, PieceList};

    fn status(held: usize, bytes: u64, holders: Vec<PeerId>) -> Status {
        let list = PieceList::new(vec![Piece { cid: Cid::of(b"x"), raw_bytes: 1 }; 10]).unwrap();
        let waiting = vec![(list.index(8).unwrap(), holders)];
        let trade = TradeStatus { list: list.name(), pieces: 10, held, unwanted: 0, neighbours: 1, waiting };
        let traffic = Traffic { from_peers_bytes: bytes, ..Traffic::default() };
        Status { neighbours: 1, traffic, trades: vec![trade], ..Status::default() }
    }

    #[test]
    fn rate_and_eta_follow_what_came_lately() {
        let start = Instant::now();
        let mut meter = Meter::new(start);
        meter.snapshot(start, Stage::Pieces, &status(0, 0, Vec::new()));
        let snapshot =
            meter.snapshot(start + Duration::from_secs(2), Stage::Pieces, &status(5, 1000, Vec::new()));
        assert_eq!(snapshot.rate_bytes_per_s, 500);
        assert_eq!(snapshot.eta, Some(Duration::from_secs(2)));
        assert_eq!(snapshot.waiting, None);
    }

    #[test]
    fn a_stall_names_the_piece_and_its_only_holder() {
        let start = Instant::now();
        let mut meter = Meter::new(start);
        let peer = PeerId::random();
        for second in 0..=5 {
            let now = start + Duration::from_secs(second);
            let snapshot = meter.snapshot(now, Stage::Pieces, &status(9, 7, vec![peer]));
            let expected = (second == 5).then(|| format!("piece 8: only held by {peer}"));
            assert_eq!(snapshot.waiting, expected, "after {second} s");
        }
    }
}
