//! The time of day, which statements and reports are about.

use std::time::{Duration, SystemTime, UNIX_EPOCH};

use shoal_proto::time::Time;

/// Since 1970; zero on a clock that is before that.
fn since_1970() -> Duration {
    SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default()
}

/// Seconds since 1970.
pub fn unix_s() -> u64 {
    since_1970().as_secs()
}

/// Since 1970, for state machines whose state outlives a process.
pub fn unix_time() -> Time {
    Time::ZERO + since_1970()
}
