//! The 16 times that were used last: nearly every file of a package has one of them.

use super::super::entry::Mtime;

/// How many; ranks and what follows them share five bits.
pub(super) const RECENT_TIMES: usize = 16;

/// Most recently used first, none twice.
#[derive(Debug, Default)]
pub(super) struct RecentTimes(Vec<Mtime>);

impl RecentTimes {
    /// The rank of `mtime` before this use, `None` when it is not among them. It has rank 0 from now on.
    pub(super) fn use_time(&mut self, mtime: Mtime) -> Option<usize> {
        let rank = self.0.iter().position(|&recent| recent == mtime);
        match rank {
            Some(rank) => self.0[..=rank].rotate_right(1),
            None => {
                self.0.truncate(RECENT_TIMES - 1);
                self.0.insert(0, mtime);
            }
        }
        rank
    }

    pub(super) fn at_rank(&self, rank: usize) -> Option<Mtime> {
        self.0.get(rank).copied()
    }

    pub(super) fn contains(&self, mtime: Mtime) -> bool {
        self.0.contains(&mtime)
    }
}
