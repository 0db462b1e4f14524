//! Directories that other threads list before the scan comes to them.
//!
//! The scan goes through the tree in path order and takes the nearest of the directories that wait; the helpers take
//! the farthest. So nobody waits for anybody until they meet.

use std::collections::VecDeque;
use std::os::fd::OwnedFd;
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};

use crossbeam_channel::{Receiver, Sender, bounded};
use rustix::fs::Statx;
use rustix::io::Errno;

use super::super::root;

/// Entries that may be known of directories that the scan has not come to: some 5 MB. A directory that has more is
/// listed all the same.
const ENTRIES_AHEAD_MAX: usize = 1 << 14;
/// Directories in directories deeper than this are not listed ahead: each of those keeps a descriptor open.
const DEPTH_MAX: usize = 64;

/// A name and what it is.
pub(super) type Child = (Box<[u8]>, Statx);

/// What is in a directory.
pub(super) struct Listing {
    pub(super) dir: Arc<OwnedFd>,
    /// The first one last.
    pub(super) children: Vec<Child>,
    /// Names that were gone when they were looked at.
    pub(super) vanished: u64,
}

impl Listing {
    /// Lists a directory and looks at everything in it. Moves the position of `dir`.
    pub(super) fn of(dir: Arc<OwnedFd>) -> Result<Self, Errno> {
        let names = root::names_from(&dir)?;
        let mut listing = Self { dir, children: Vec::with_capacity(names.len()), vanished: 0 };
        for name in names.into_iter().rev() {
            match root::stat_in(&listing.dir, &name) {
                Ok(stat) => listing.children.push((name, stat)),
                Err(Errno::NOENT) => listing.vanished += 1,
                Err(error) => return Err(error),
            }
        }
        Ok(listing)
    }

    fn of_name(dir: &OwnedFd, name: &[u8]) -> Result<Self, Errno> {
        Self::of(Arc::new(root::open_directory_in(dir, name)?))
    }
}

/// A directory to be listed.
struct Job {
    number: u64,
    dir: Arc<OwnedFd>,
    name: Box<[u8]>,
    to: Sender<Result<Listing, Errno>>,
}

/// The right to the listing of one directory.
pub(super) struct Ticket {
    /// Its place among the children of its directory.
    pub(super) at: usize,
    number: u64,
    listing: Receiver<Result<Listing, Errno>>,
}

#[derive(Default)]
struct State {
    /// In path order from the back on.
    waiting: VecDeque<Job>,
    /// Of directories listed and not taken yet.
    entries: usize,
    numbered: u64,
    closed: bool,
}

/// What the scan and its helpers share. Tickets are used in path order.
#[derive(Default)]
pub(super) struct Ahead {
    state: Mutex<State>,
    changed: Condvar,
}

impl Ahead {
    /// Has those of `children` listed that are to be entered, in a directory that lies so deep. The last ticket is of
    /// the first one.
    pub(super) fn order(
        &self,
        depth: usize,
        dir: &Arc<OwnedFd>,
        children: &[Child],
        mut enters: impl FnMut(&Child) -> bool,
    ) -> Vec<Ticket> {
        if depth > DEPTH_MAX {
            return Vec::new();
        }
        let (mut tickets, mut jobs) = (Vec::new(), Vec::new());
        for (at, child) in children.iter().enumerate().filter(|(_, child)| enters(child)) {
            let (to, listing) = bounded(1);
            jobs.push(Job { number: 0, dir: Arc::clone(dir), name: child.0.clone(), to });
            tickets.push(Ticket { at, number: 0, listing });
        }
        if tickets.is_empty() {
            return tickets;
        }
        let mut state = self.lock();
        for (mut job, ticket) in jobs.into_iter().zip(&mut tickets) {
            state.numbered += 1;
            (job.number, ticket.number) = (state.numbered, state.numbered);
            state.waiting.push_back(job);
        }
        drop(state);
        self.changed.notify_all();
        tickets
    }

    /// The listing: made now, unless a helper has it or is about it.
    pub(super) fn take(&self, ticket: &Ticket) -> Result<Listing, Errno> {
        if let Some(Job { dir, name, .. }) = self.nearest(ticket.number) {
            return Listing::of_name(&dir, &name);
        }
        let listing = ticket.listing.recv().expect("a helper that took a job answers it")?;
        let mut state = self.lock();
        let full = state.entries >= ENTRIES_AHEAD_MAX;
        state.entries -= listing.children.len();
        drop(state);
        if full {
            self.changed.notify_all();
        }
        Ok(listing)
    }

    /// Lists what waits until the scan is done.
    pub(super) fn help(&self) {
        while let Some(Job { dir, name, to, .. }) = self.farthest() {
            let listing = Listing::of_name(&dir, &name);
            drop(dir);
            if let Ok(listing) = &listing {
                self.lock().entries += listing.children.len();
            }
            // Nobody wants it when the scan was abandoned.
            let _ = to.send(listing);
        }
    }

    fn nearest(&self, number: u64) -> Option<Job> {
        let mut state = self.lock();
        let waits = state.waiting.back().is_some_and(|job| job.number == number);
        if waits { state.waiting.pop_back() } else { None }
    }

    fn farthest(&self) -> Option<Job> {
        let mut state = self.lock();
        loop {
            if state.closed {
                return None;
            }
            if state.entries < ENTRIES_AHEAD_MAX
                && let Some(job) = state.waiting.pop_front()
            {
                return Some(job);
            }
            state = self.changed.wait(state).unwrap_or_else(PoisonError::into_inner);
        }
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Sends the helpers home when it is dropped.
pub(super) struct Closing<'a>(pub(super) &'a Ahead);

impl Drop for Closing<'_> {
    fn drop(&mut self) {
        self.0.lock().closed = true;
        self.0.changed.notify_all();
    }
}
