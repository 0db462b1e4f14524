//! Starts to write to the disk while pieces still come, so that the last sync finds little left.

use std::os::fd::OwnedFd;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::mpsc::{SyncSender, sync_channel};
use std::thread::JoinHandle;

use rustix::io::Errno;

/// So much is written between two syncs.
const STEP_BYTES: u64 = 64 << 20;

/// A thread that syncs the target again and again. It ends when this is dropped, with no sync under way.
#[derive(Debug)]
pub(super) struct Writeback {
    written_bytes: AtomicU64,
    wake: Option<SyncSender<()>>,
    thread: Option<JoinHandle<()>>,
}

impl Writeback {
    /// `top` is a descriptor of its own: a failed write is told once to each, and the last sync must hear of it.
    pub(super) fn start(top: OwnedFd) -> Self {
        let (wake, woken) = sync_channel(1);
        let work = move || {
            while woken.recv().is_ok() {
                // Whatever fails here fails the last sync too.
                let _: Result<(), Errno> = rustix::fs::syncfs(&top);
            }
        };
        let thread = std::thread::Builder::new().name("writeback".into()).spawn(work).ok();
        Self { written_bytes: AtomicU64::new(0), wake: Some(wake), thread }
    }

    /// Counts what was written. Never waits.
    pub(super) fn wrote(&self, bytes: usize) {
        let before = self.written_bytes.fetch_add(bytes as u64, Ordering::Relaxed);
        if (before + bytes as u64) / STEP_BYTES > before / STEP_BYTES {
            self.sync_soon();
        }
    }

    /// Asks for a sync. Never waits.
    pub(super) fn sync_soon(&self) {
        if let Some(wake) = &self.wake {
            // Full: one is asked for already.
            let _ = wake.try_send(());
        }
    }
}

impl Drop for Writeback {
    fn drop(&mut self) {
        self.wake = None;
        if let Some(thread) = self.thread.take() {
            // It does not panic.
            let _ = thread.join();
        }
    }
}
