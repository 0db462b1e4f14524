//! How fast transfers go here: the measure of every wait that scales with the network.

use std::time::Duration;

use super::Config;

/// A running median of transfer times.
///
/// The median, because one straggler in twenty must not stretch everyone's timers. Each sample moves it by an eighth
/// of itself towards the sample, so it follows a network that changes tenfold within twenty transfers.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Pace {
    nanos: Option<u64>,
}

impl Pace {
    pub(super) fn sample(&mut self, took: Duration) {
        let took = u64::try_from(took.as_nanos()).unwrap_or(u64::MAX).max(1);
        self.nanos = Some(match self.nanos {
            None => took,
            Some(median) if took > median => (median + median / 8 + 1).min(took),
            Some(median) => (median - median / 8).max(took),
        });
    }

    /// The usual transfer, from request to last byte; `None` before the first one.
    pub(super) fn transfer(&self) -> Option<Duration> {
        self.nanos.map(Duration::from_nanos)
    }

    /// The time one piece would take over the link alone. An uploader shares its link among its uploads in hand,
    /// so that many block-times are what a transfer takes.
    pub(super) fn block_time(&self, config: &Config) -> Duration {
        match self.transfer() {
            None => config.block_time_start,
            Some(transfer) => {
                let shared_by = u32::try_from(config.uploads_in_hand.max(1)).unwrap_or(u32::MAX);
                (transfer / shared_by).clamp(config.block_time_min, config.block_time_max)
            }
        }
    }
}

/// `percent` hundredths of `duration`.
pub(super) fn percent(duration: Duration, percent: u32) -> Duration {
    duration * percent / 100
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_straggler_in_twenty_does_not_stretch_the_pace() {
        let mut pace = Pace::default();
        for sample in 0..400 {
            pace.sample(Duration::from_millis(if sample % 20 == 19 { 4000 } else { 100 }));
        }
        assert!(pace.transfer().unwrap() < Duration::from_millis(115), "{pace:?}");
    }

    #[test]
    fn pace_follows_a_network_that_slows_tenfold() {
        let mut pace = Pace::default();
        pace.sample(Duration::from_millis(100));
        for _ in 0..20 {
            pace.sample(Duration::from_secs(1));
        }
        assert_eq!(pace.transfer(), Some(Duration::from_secs(1)));
    }

    #[test]
    fn block_time_stays_within_its_bounds() {
        let config = Config::default();
        let mut pace = Pace::default();
        assert_eq!(pace.block_time(&config), config.block_time_start);
        pace.sample(Duration::ZERO);
        assert_eq!(pace.block_time(&config), config.block_time_min);
        for _ in 0..400 {
            pace.sample(Duration::from_secs(3600));
        }
        assert_eq!(pace.block_time(&config), config.block_time_max);
    }
}
