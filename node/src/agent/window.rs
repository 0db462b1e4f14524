//! When a machine may change: times of the day, in UTC.

use std::str::FromStr;
use std::time::Duration;

const DAY_S: u64 = 24 * 3600;
const DAYS: [&str; 7] = ["Mon", "Tue", "Wed", "Thu", "Fri", "Sat", "Sun"];
/// 1970 began on a Thursday.
const FIRST_DAY: u64 = 3;

/// `[DAY,DAY… ]HH:MM-HH:MM`: from the first time until the second one, which is on the next day when it is not later.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Window {
    /// On which days it opens, Monday first.
    days: [bool; 7],
    opens_s: u64,
    open_for_s: u64,
}

#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error(
    "{0:?} is no window: HH:MM-HH:MM, with days before it if not every day, such as Sat,Sun 02:00-05:00 (UTC)"
)]
pub struct WindowError(String);

impl Window {
    /// Whether it is open, at a time in seconds since 1970.
    pub fn is_open(&self, now_s: u64) -> bool {
        let day = now_s / DAY_S;
        // One that opened yesterday may be open yet.
        [day.checked_sub(1), Some(day)].into_iter().flatten().any(|day| {
            let opened_s = day * DAY_S + self.opens_s;
            self.opens_on(day) && (opened_s..opened_s + self.open_for_s).contains(&now_s)
        })
    }

    /// How long until it is open.
    pub fn opens_in(&self, now_s: u64) -> Duration {
        if self.is_open(now_s) {
            return Duration::ZERO;
        }
        let today = now_s / DAY_S;
        let opens =
            (today..=today + 7).filter(|day| self.opens_on(*day)).map(|day| day * DAY_S + self.opens_s);
        let next = opens.filter(|opens_s| *opens_s > now_s).min();
        Duration::from_secs(next.map_or(DAY_S, |next| next - now_s))
    }

    fn opens_on(&self, day: u64) -> bool {
        self.days[((day + FIRST_DAY) % 7) as usize]
    }
}

/// How long until one of the windows is open; no window is always open.
pub fn opens_in(windows: &[Window], now_s: u64) -> Duration {
    windows.iter().map(|window| window.opens_in(now_s)).min().unwrap_or_default()
}

impl FromStr for Window {
    type Err = WindowError;

    fn from_str(text: &str) -> Result<Self, WindowError> {
        parse(text).ok_or_else(|| WindowError(text.to_owned()))
    }
}

fn parse(text: &str) -> Option<Window> {
    let (named, times) = match text.trim().rsplit_once(' ') {
        Some((named, times)) => (Some(named.trim()), times),
        None => (None, text.trim()),
    };
    let mut days = [named.is_none(); 7];
    for name in named.into_iter().flat_map(|named| named.split(',')) {
        days[DAYS.iter().position(|day| day.eq_ignore_ascii_case(name.trim()))?] = true;
    }
    let (opens, closes) = times.split_once('-')?;
    let (opens_s, closes_s) = (time_of_day(opens)?, time_of_day(closes)?);
    let open_for_s = if closes_s > opens_s { closes_s - opens_s } else { closes_s + DAY_S - opens_s };
    Some(Window { days, opens_s, open_for_s })
}

fn time_of_day(text: &str) -> Option<u64> {
    let (hours, minutes) = text.split_once(':')?;
    let number = |text: &str| (text.len() == 2).then(|| text.parse::<u64>().ok())?;
    let (hours, minutes) = (number(hours)?, number(minutes)?);
    (hours < 24 && minutes < 60).then_some(hours * 3600 + minutes * 60)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Saturday, 21 November 2026, 00:00 UTC.
    const SATURDAY_S: u64 = 1_795_219_200;

    #[test]
    fn a_window_is_open_from_its_first_minute_to_its_last() {
        let window: Window = "02:00-05:00".parse().unwrap();
        let open = [7199, 7200, 17_999, 18_000].map(|second| window.is_open(SATURDAY_S + second));
        assert_eq!(open, [false, true, true, false]);
        assert_eq!(window.opens_in(SATURDAY_S), Duration::from_secs(7200));
        assert_eq!(window.opens_in(SATURDAY_S + 18_000), Duration::from_secs(DAY_S - 10_800));
    }

    #[test]
    fn a_window_over_midnight_belongs_to_the_day_on_which_it_opens() {
        let window: Window = "sat, Sun 22:00-04:00".parse().unwrap();
        let open = |day: u64, hour: u64| window.is_open(SATURDAY_S + day * DAY_S + hour * 3600);
        assert_eq!(
            [open(0, 3), open(0, 22), open(1, 3), open(1, 23), open(2, 3)],
            [false, true, true, true, true]
        );
        assert!(!open(2, 4) && !open(2, 23) && !open(3, 3));
        assert_eq!(window.opens_in(SATURDAY_S + 3 * DAY_S), Duration::from_secs(4 * DAY_S + 22 * 3600));
        assert_eq!(opens_in(&[], SATURDAY_S), Duration::ZERO);
    }

    #[test]
    fn a_whole_day_is_a_window() {
        let window: Window = "00:00-00:00".parse().unwrap();
        assert!([0, 43_200, 86_399].iter().all(|second| window.is_open(SATURDAY_S + second)));
    }

    #[test]
    fn what_is_no_window_is_named() {
        for bad in [
            "",
            "2:00-05:00",
            "02:00",
            "24:00-05:00",
            "02:60-05:00",
            "Sam 02:00-05:00",
            "Sat",
            "-",
            "é:00-05:00",
        ] {
            let error = bad.parse::<Window>().unwrap_err().to_string();
            assert!(error.contains(&format!("{bad:?}")), "{error}");
        }
    }
}
