//! How far a capture is, in numbers that travel to whoever asked for it.

use std::sync::atomic::{AtomicU64, Ordering};

use serde::{Deserialize, Serialize};
use shoal_node::tree::capture::CaptureProgress;

/// Counts what a capture tells.
#[derive(Debug, Default)]
pub struct CaptureMeter {
    entries: AtomicU64,
    to_read_bytes: AtomicU64,
    read_bytes: AtomicU64,
    stored_bytes: AtomicU64,
}

/// A [`CaptureMeter`] at one moment.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct CaptureSnapshot {
    /// Zero until the tree was walked through.
    pub entries: u64,
    /// Roughly: files may change.
    pub to_read_bytes: u64,
    pub read_bytes: u64,
    /// Compressed.
    pub stored_bytes: u64,
}

impl CaptureMeter {
    pub fn snapshot(&self) -> CaptureSnapshot {
        let value = |counter: &AtomicU64| counter.load(Ordering::Relaxed);
        CaptureSnapshot {
            entries: value(&self.entries),
            to_read_bytes: value(&self.to_read_bytes),
            read_bytes: value(&self.read_bytes),
            stored_bytes: value(&self.stored_bytes),
        }
    }
}

impl CaptureProgress for CaptureMeter {
    fn scanned(&self, entries: u64, bytes: u64) {
        self.entries.store(entries, Ordering::Relaxed);
        self.to_read_bytes.store(bytes, Ordering::Relaxed);
        // When a capture begins again, so does the count.
        self.read_bytes.store(0, Ordering::Relaxed);
    }

    fn read(&self, bytes: u64) {
        self.read_bytes.fetch_add(bytes, Ordering::Relaxed);
    }

    fn stored(&self, _: u64, compressed_bytes: u64) {
        self.stored_bytes.fetch_add(compressed_bytes, Ordering::Relaxed);
    }
}
