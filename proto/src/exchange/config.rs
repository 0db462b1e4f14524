//! Tuning. The defaults are the measured ones: the late-binding study's where it has one.

use std::time::Duration;

/// Bounds and waits of one exchange.
///
/// Waits that scale with the network are given in hundredths of a *block-time*: the time one piece would take over
/// this side's link alone. No one knows that time beforehand, so `pace` derives it from
/// finished transfers, within [`Config::block_time_min`] and [`Config::block_time_max`].
#[derive(Clone, Debug)]
pub struct Config {
    /// Pieces an uploader sends or has granted at once. With 3 a new piece spreads faster, since fewer transfers share
    /// the link (1.058 of the bound for 1.065, at 300 nodes and 300 pieces), but the link idles when a grant and its
    /// answer take 0.4 block-times (1.104 for 1.082), and when an upload ends only as the far end confirms it (1.151
    /// for 1.105; 5 would be better there, 1.088, and worse else, 1.072).
    pub uploads_in_hand: usize,
    /// Pieces a receiver has coming before it declines: one more than `uploads_in_hand`.
    pub fetches_coming: usize,
    /// Pieces that a receiver takes from outside its rack beyond `fetches_coming`: the whole rack waits for them.
    pub fetches_from_afar: usize,
    /// Pieces received but not yet verified and stored before a receiver declines: a slow disk slows the peers.
    pub writing_max: usize,
    /// Random neighbours among which an uploader grants to the least complete. More than two herd.
    pub choices: usize,
    /// Transfers so slow that they give their slot free, on either side, before they hold it all the same.
    pub released_max: usize,

    /// Block-time until a transfer has been measured.
    pub block_time_start: Duration,
    /// A block-time is never taken as less: timers of a real driver are no finer.
    pub block_time_min: Duration,
    /// A block-time is never taken as more: 1 MiB at 1 Mbit/s.
    pub block_time_max: Duration,

    /// Wait after a first decline of a busy neighbour, ± half at random, doubled by each further one up to eight times.
    /// Of 10, 15, 16 and 25, with 1000 nodes and 2000 pieces, a seeder of ten times the rate ends at 1.010 for 1.011,
    /// but single seeds with 500 pieces later than before; and 15 is 3 % more messages than 25, more than is promised
    /// where a tenth of the nodes has most of the image.
    pub retry_percent: u32,
    /// Wait after a decline of a neighbour to which everything is coming already, ± half at random; a piece that it
    /// lacks ends the wait as soon as it is held here. The grant after it is for the endgame. It spares control
    /// messages (30.7 per piece for 32.0 at 300 nodes and 300 pieces); the last node finishes no sooner for it.
    pub sated_percent: u32,
    /// Least time between two batches of haves: the first of a burst leaves at once.
    pub have_interval_percent: u32,
    /// `have_interval_percent` never comes to more than this.
    pub have_interval_max: Duration,
    /// Age of a request from which one duplicate of it may be asked elsewhere when nothing else is missing there.
    pub endgame_percent: u32,
    /// `endgame_percent` never comes to less than this.
    pub endgame_min: Duration,
    /// A seeder gives a piece again that no neighbour shows this long after it was given.
    pub repair_percent: u32,
    /// `repair_percent` never comes to less than this: where a seeder is ten times as fast as its neighbours, its
    /// block-times are a tenth of theirs, and what it gave is on its way for long.
    pub repair_min: Duration,
    /// A neighbour of a seeder that shows no new piece but the seeder's own for this long is served beyond the
    /// quota.
    pub starved_percent: u32,
    /// `starved_percent` never comes to less than this.
    pub starved_min: Duration,

    /// How long a neighbour's intent to fetch a piece from afar keeps others from it, unless it is repeated.
    pub lease_percent: u32,
    /// `lease_percent` never comes to less than this.
    pub lease_min: Duration,
    /// A missing piece that is covered nearer by for this long, and up to twice as long by chance, is taken from afar
    /// all the same.
    pub patience_percent: u32,
    /// `patience_percent` never comes to less than this.
    pub patience_min: Duration,

    /// A transfer is slow when it takes this many times the usual (hundredths).
    pub slow_percent: u32,
    /// A neighbour that was slow to take a piece from a seeder gets no other by name for this long.
    pub slow_pause_percent: u32,
    /// A request is given up when nothing of it arrived for this many times the usual transfer (hundredths)…
    pub stall_percent: u32,
    /// … but not before this, …
    pub stall_min: Duration,
    /// … and at the latest after this.
    pub stall_max: Duration,
    /// Nothing arrived for this long: missing pieces that no neighbour shows are called unavailable. More than a
    /// seeder takes to reconnect after a hiccup, less than anyone watches in silence.
    pub unavailable_after: Duration,
    /// A grant unanswered for this long holds its slot no more. Its peer gets no other until it answers.
    pub grant_timeout: Duration,

    /// Grants a seeder makes by the receiver's choice once it has nothing to name, in thousandths of the list;
    /// then it is silent but for repairs and the starved. The swarm finishes no later without any.
    pub seeder_quota_permille: u32,
}

impl Config {
    /// For transfers over TCP, which shares links less evenly than a simulated network whose switches have room for
    /// every piece on its way: more are under way at once, or links idle.
    ///
    /// Sixteen hosts at 20 Mbit/s in namespaces, 880 pieces of 104 kB, last finish ÷ (bytes ÷ rate): 1.23 with 4 and 5,
    /// 1.20 with 6 and 7, 1.19 with 8 and 9, 1.17 with 10 and 12; eight at 100 Mbit/s: 1.13 with 8 and 9, 1.14 with 12
    /// and 14. A usual transfer then takes as many block-times as there are uploads in hand: what is to be fetched twice
    /// must be several times as old as that: with once, a twentieth of all bytes came twice, with three times a
    /// hundredth on a machine that was short of processors. There a transfer of milliseconds may take a hundred times
    /// that: nothing younger than two seconds is fetched twice either.
    pub fn over_tcp() -> Self {
        Self {
            uploads_in_hand: 10,
            fetches_coming: 12,
            endgame_percent: 4000,
            endgame_min: Duration::from_secs(2),
            ..Self::default()
        }
    }
}

impl Default for Config {
    fn default() -> Self {
        Self {
            uploads_in_hand: 4,
            fetches_coming: 5,
            fetches_from_afar: 1,
            writing_max: 8,
            choices: 2,
            released_max: 8,
            block_time_start: Duration::from_millis(20),
            block_time_min: Duration::from_millis(1),
            block_time_max: Duration::from_secs(8),
            retry_percent: 25,
            sated_percent: 800,
            have_interval_percent: 25,
            have_interval_max: Duration::from_millis(20),
            endgame_percent: 800,
            endgame_min: Duration::ZERO,
            repair_percent: 3000,
            repair_min: Duration::from_millis(2500),
            starved_percent: 4000,
            starved_min: Duration::from_secs(3),
            lease_percent: 800,
            lease_min: Duration::from_millis(500),
            patience_percent: 3200,
            patience_min: Duration::from_secs(1),
            slow_percent: 300,
            slow_pause_percent: 6400,
            stall_percent: 400,
            stall_min: Duration::from_secs(3),
            stall_max: Duration::from_secs(30),
            unavailable_after: Duration::from_secs(5),
            grant_timeout: Duration::from_secs(2),
            seeder_quota_permille: 0,
        }
    }
}
