//! Bytes per second: how a limit is written, and the bucket that keeps to it.

use std::fmt;
use std::str::FromStr;
use std::time::Duration;

use crate::time::Time;

/// Lowest rate that can be set: below it a piece of the largest size takes longer than peers have patience.
pub const RATE_MIN: Rate = Rate { bytes_per_s: 125_000 };
/// Highest rate that can be set: a terabit per second.
pub const RATE_MAX: Rate = Rate { bytes_per_s: 125_000_000_000 };
/// What may be made up for after a pause: a fiftieth of a second's bytes.
const BURST: Duration = Duration::from_millis(20);
/// Least and most bytes to take at once.
const SLICE_MIN_BYTES: u64 = 1 << 10;
const SLICE_MAX_BYTES: u64 = 64 << 10;

/// What each unit of a written rate is in bits per second.
const UNITS: [(&str, f64); 8] = [
    ("bit", 1e0),
    ("kbit", 1e3),
    ("mbit", 1e6),
    ("gbit", 1e9),
    ("b", 8e0),
    ("kb", 8e3),
    ("mb", 8e6),
    ("gb", 8e9),
];

/// Bytes per second, within [`RATE_MIN`] and [`RATE_MAX`]. Written as `50mbit` or `10MB/s`: decimal multiples, in
/// letters of either case, `bit` for bits and `B` for bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Rate {
    bytes_per_s: u64,
}

#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum RateError {
    #[error("{0:?} is no rate: it takes a number and a unit, such as 50mbit or 10MB/s")]
    Malformed(String),
    #[error("a rate of {0:?} is too low: at least {RATE_MIN} is needed")]
    TooLow(String),
    #[error("a rate of {0:?} is too high: leave the limit away")]
    TooHigh(String),
}

/// A token bucket over somebody else's clock: in any second at most 1.03 times the rate goes through, and all of it
/// when somebody is waiting.
#[derive(Clone, Debug)]
pub struct Bucket {
    rate: Rate,
    /// When all that was taken is paid for.
    paid_at: Time,
}

impl Rate {
    pub const fn bytes_per_s(self) -> u64 {
        self.bytes_per_s
    }

    /// How many bytes to take from a [`Bucket`] at once: a hundredth of a second's, within bounds.
    pub fn slice_bytes(self) -> usize {
        let bytes = (self.bytes_per_s / 100).clamp(SLICE_MIN_BYTES, SLICE_MAX_BYTES);
        usize::try_from(bytes).expect("SLICE_MAX_BYTES is small")
    }
}

impl FromStr for Rate {
    type Err = RateError;

    fn from_str(text: &str) -> Result<Self, RateError> {
        let malformed = || RateError::Malformed(text.to_owned());
        let unit_at = text.find(|c: char| !c.is_ascii_digit() && c != '.').ok_or_else(malformed)?;
        let (number, unit) = text.split_at(unit_at);
        let number: f64 = number.parse().map_err(|_| malformed())?;
        let unit = unit.trim_start().to_ascii_lowercase();
        let unit = unit.strip_suffix("/s").unwrap_or(&unit);
        let (_, bits) = UNITS.iter().find(|(name, _)| *name == unit).ok_or_else(malformed)?;
        let bytes_per_s = number * bits / 8.0;
        if bytes_per_s < RATE_MIN.bytes_per_s as f64 {
            return Err(RateError::TooLow(text.to_owned()));
        }
        if bytes_per_s > RATE_MAX.bytes_per_s as f64 {
            return Err(RateError::TooHigh(text.to_owned()));
        }
        #[expect(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "within the bounds")]
        Ok(Self { bytes_per_s: bytes_per_s as u64 })
    }
}

impl fmt::Display for Rate {
    /// In the largest unit that it is a whole number of.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let bits = self.bytes_per_s * 8;
        let units = [(1_000_000_000, "gbit"), (1_000_000, "mbit"), (1_000, "kbit"), (1, "bit")];
        let (size, unit) =
            units.into_iter().find(|(size, _)| bits.is_multiple_of(*size)).expect("bits are whole");
        write!(f, "{}{unit}", bits / size)
    }
}

impl Bucket {
    pub fn new(rate: Rate) -> Self {
        Self { rate, paid_at: Time::ZERO }
    }

    pub fn rate(&self) -> Rate {
        self.rate
    }

    /// Takes `bytes`, at most [`Rate::slice_bytes`] for an even flow, and says how long to wait before they are moved.
    /// Who comes first is served first.
    pub fn take(&mut self, now: Time, bytes: usize) -> Duration {
        let earliest = Time::from_nanos(now.nanos().saturating_sub(nanos(BURST)));
        let turn = self.paid_at.max(earliest);
        let price = u128::from(bytes as u64) * 1_000_000_000 / u128::from(self.rate.bytes_per_s);
        self.paid_at = turn + Duration::from_nanos(u64::try_from(price).unwrap_or(u64::MAX));
        turn.since(now)
    }
}

fn nanos(duration: Duration) -> u64 {
    u64::try_from(duration.as_nanos()).unwrap_or(u64::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn rate(text: &str) -> Rate {
        text.parse().unwrap()
    }

    #[test]
    fn rates_are_written_in_bits_or_bytes() {
        for (text, bytes_per_s) in [
            ("50mbit", 6_250_000),
            ("50Mbit/s", 6_250_000),
            ("10MB/s", 10_000_000),
            ("10 MB/s", 10_000_000),
            ("1.5gbit", 187_500_000),
            ("1000kbit", 125_000),
            ("200kB", 200_000),
            ("1000gbit", 125_000_000_000),
        ] {
            assert_eq!(rate(text).bytes_per_s(), bytes_per_s, "{text}");
        }
        for (text, shown) in [("10MB/s", "80mbit"), ("1000kbit", "1mbit"), ("1.5gbit", "1500mbit")] {
            assert_eq!(rate(text).to_string(), shown);
            assert_eq!(rate(shown), rate(text));
        }
    }

    #[test]
    fn what_is_no_rate_is_named() {
        let refusal = |text: &str| text.parse::<Rate>().unwrap_err().to_string();
        for text in
            ["", "50", "mbit", "fast", "-5mbit", "5tbit", "1e9bit", "1.2.3mbit", "50 m bit", "∞", "inf"]
        {
            let expected =
                format!("{text:?} is no rate: it takes a number and a unit, such as 50mbit or 10MB/s");
            assert_eq!(refusal(text), expected);
        }
        assert_eq!(refusal("0mbit"), "a rate of \"0mbit\" is too low: at least 1mbit is needed");
        assert_eq!(refusal("999kbit"), "a rate of \"999kbit\" is too low: at least 1mbit is needed");
        assert_eq!(refusal("1001gbit"), "a rate of \"1001gbit\" is too high: leave the limit away");
    }

    /// Moves slices whenever they are due; returns when each was moved.
    fn flow(rate: Rate, start: Time, seconds: u64, writers: usize) -> Vec<Time> {
        let mut bucket = Bucket::new(rate);
        let mut due = vec![start; writers];
        let mut moved = Vec::new();
        let end = start + Duration::from_secs(seconds);
        loop {
            let (writer, now) = due.iter().copied().enumerate().min_by_key(|(_, due)| *due).unwrap();
            let at = now + bucket.take(now, rate.slice_bytes());
            if at > end {
                return moved;
            }
            moved.push(at);
            due[writer] = at;
        }
    }

    #[test]
    fn any_second_has_the_rate_and_hardly_more() {
        for (rate, writers) in [(rate("1mbit"), 1), (rate("50mbit"), 8), (rate("10gbit"), 3)] {
            let moved = flow(rate, Time::ZERO + Duration::from_secs(1000), 4, writers);
            let slice = rate.slice_bytes() as f64;
            for (first, start) in moved.iter().enumerate() {
                let until = *start + Duration::from_secs(1);
                let count = moved[first..].partition_point(|at| *at <= until);
                let ratio = count as f64 * slice / rate.bytes_per_s() as f64;
                let whole = moved.last().is_some_and(|last| *last > until);
                assert!(ratio <= 1.05 && (ratio >= 0.95 || !whole), "{ratio} of {rate} for {writers}");
            }
        }
    }

    #[test]
    fn a_late_writer_makes_up_for_a_little_and_not_for_a_pause() {
        let rate = rate("8mbit");
        let mut bucket = Bucket::new(rate);
        let mut now = Time::ZERO + Duration::from_secs(1);
        let mut taken = 0;
        // Each wakes a millisecond late.
        while now < Time::ZERO + Duration::from_secs(11) {
            now = now + bucket.take(now, rate.slice_bytes()) + Duration::from_millis(1);
            taken += rate.slice_bytes();
        }
        assert!((9_800_000..=10_200_000).contains(&taken), "{taken}");
        let later = now + Duration::from_secs(100);
        let free = (0..).take_while(|_| bucket.take(later, rate.slice_bytes()).is_zero()).count();
        assert!((2..=3).contains(&free), "{free} slices of 10 ms at once");
    }
}
