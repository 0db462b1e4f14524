//! How many neighbours, and how many of whom.

use crate::wire::PEERS_PER_FRAME_MAX;

/// Bounds of one neighbourhood. Seeders among the neighbours count towards `neighbours_max` alone.
#[derive(Clone, Debug)]
pub struct Config {
    /// Neighbours looked for where nothing is known of racks: with fewer than 20 there are lonely nodes in the tail of
    /// a transfer, and each one more costs an announcement for every piece.
    pub wanted: usize,
    /// Neighbours looked for in one's own rack, where that is known.
    pub near_wanted: usize,
    /// Neighbours looked for outside one's own rack, where that is known.
    pub far_wanted: usize,
    /// In a small rack, neighbours outside it are looked for until there are this many in all.
    pub wanted_min: usize,
    /// Peers let in. Far above `wanted`: the rest is room for those who cannot be dialed and so can only come.
    pub neighbours_max: usize,
    /// Peers there is no room for that may be told so at once; those beyond are hung up on.
    pub leaving_max: usize,
    /// Dials under way at once, besides those from the ticket.
    pub dials_max: usize,
    /// Peers remembered.
    pub known_max: usize,
    /// Random peers told of in one frame, and so many of the asker's own rack besides.
    pub told_max: usize,
}

impl Config {
    pub fn node() -> Self {
        Self {
            wanted: 24,
            near_wanted: 32,
            far_wanted: 8,
            wanted_min: 20,
            neighbours_max: 64,
            leaving_max: 64,
            dials_max: 32,
            known_max: 1024,
            told_max: 24,
        }
    }

    /// A seeder is everybody's first address: it dials nobody who did not leave it, and knows many.
    pub fn seeder() -> Self {
        Self {
            wanted: 0,
            near_wanted: 0,
            far_wanted: 0,
            wanted_min: 0,
            neighbours_max: 256,
            leaving_max: 256,
            known_max: 4096,
            ..Self::node()
        }
    }

    pub(super) fn assert_sound(&self) {
        assert!(2 * self.told_max <= PEERS_PER_FRAME_MAX, "a frame holds what is told");
        let busy_max = self.neighbours_max + self.leaving_max + self.dials_max;
        assert!(self.known_max >= 2 * busy_max, "there is always somebody to forget");
    }
}
