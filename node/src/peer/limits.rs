//! How fast pieces may leave and come: buckets that the tasks of all connections share.

use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use shoal_proto::rate::{Bucket, Rate};
use shoal_proto::time::Time;
use tokio::time::Instant;

use crate::peer::muxer::FRAME_PAYLOAD_BYTES;

/// Limits of what a peer moves, in bytes of pieces as they travel: messages between peers and the headers of the
/// network come on top.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Limits {
    /// To all peers together.
    pub up: Option<Rate>,
    /// To each of them.
    pub up_per_peer: Option<Rate>,
    /// From all of them together: what comes faster waits at the other end, but for what the network holds.
    pub down: Option<Rate>,
}

/// Bytes moved at once where nothing is limited.
pub(super) const SLICE_BYTES: usize = FRAME_PAYLOAD_BYTES;

/// What bytes have to pass, one after the other.
#[derive(Clone, Debug)]
pub(super) struct Pace {
    origin: Instant,
    buckets: Vec<Arc<Mutex<Bucket>>>,
    slice_bytes: usize,
}

impl Pace {
    pub(super) fn free() -> Self {
        Self { origin: Instant::now(), buckets: Vec::new(), slice_bytes: SLICE_BYTES }
    }

    pub(super) fn limited(rate: Option<Rate>) -> Self {
        Self::free().and(rate)
    }

    /// This pace, shared with its clones, and a rate of its own.
    #[must_use]
    pub(super) fn and(mut self, rate: Option<Rate>) -> Self {
        if let Some(rate) = rate {
            self.slice_bytes = self.slice_bytes.min(rate.slice_bytes());
            // The narrower first: what waits there takes nothing from the others' share.
            self.buckets.insert(0, Arc::new(Mutex::new(Bucket::new(rate))));
        }
        self
    }

    pub(super) fn is_free(&self) -> bool {
        self.buckets.is_empty()
    }

    /// How many bytes to pass at once.
    pub(super) fn slice_bytes(&self) -> usize {
        self.slice_bytes
    }

    /// Waits until so many bytes may move.
    pub(super) async fn pass(&self, bytes: usize) {
        for gate in 0..self.buckets.len() {
            let wait = self.take(gate, Time::ZERO + self.origin.elapsed(), bytes);
            if !wait.is_zero() {
                tokio::time::sleep(wait).await;
            }
        }
    }

    /// Takes bytes from one of the buckets; says how long to wait before the next.
    fn take(&self, gate: usize, now: Time, bytes: usize) -> Duration {
        self.buckets[gate].lock().unwrap_or_else(PoisonError::into_inner).take(now, bytes)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const SECONDS: u64 = 10;

    /// Bytes that writers pass in ten seconds, each at its pace, on a clock that only their waiting moves.
    fn passed(paces: &[Pace]) -> Vec<usize> {
        let mut passed = vec![0; paces.len()];
        // When a writer goes on, and at which of its gates.
        let mut next = vec![(Time::ZERO + Duration::from_secs(1), 0); paces.len()];
        let end = Time::ZERO + Duration::from_secs(1 + SECONDS);
        loop {
            let writer = (0..paces.len()).min_by_key(|writer| next[*writer].0).unwrap();
            let ((now, gate), pace) = (next[writer], &paces[writer]);
            if now >= end {
                return passed;
            }
            if gate == pace.buckets.len() {
                passed[writer] += pace.slice_bytes();
                next[writer].1 = 0;
            } else {
                next[writer] = (now + pace.take(gate, now, pace.slice_bytes()), gate + 1);
            }
        }
    }

    fn rate(text: &str) -> Option<Rate> {
        Some(text.parse().unwrap())
    }

    #[test]
    fn writers_share_a_rate_evenly() {
        let shared = Pace::limited(rate("8MB/s"));
        let counts = passed(&[shared.clone(), shared.clone(), shared.clone(), shared]);
        let all: usize = counts.iter().sum();
        assert!((76_000_000..=82_400_000).contains(&all), "{counts:?}");
        assert!(counts.iter().all(|count| (19_000_000..=21_000_000).contains(count)), "{counts:?}");
    }

    #[test]
    fn a_peers_own_limit_leaves_the_rest_to_others() {
        let shared = Pace::limited(rate("8MB/s"));
        let counts = passed(&[shared.clone().and(rate("1MB/s")), shared.clone().and(rate("20MB/s"))]);
        assert!((9_500_000..=10_300_000).contains(&counts[0]), "{counts:?}");
        assert!((67_000_000..=73_000_000).contains(&counts[1]), "{counts:?}");
    }

    #[test]
    fn what_is_not_limited_does_not_wait() {
        let pace = Pace::limited(None).and(None);
        assert!(pace.is_free() && pace.slice_bytes() == SLICE_BYTES);
    }
}
