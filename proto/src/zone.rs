//! Where a machine stands: the rack, the row, the hall it is in.
//!
//! ```text
//! rack07             one level
//! row3/rack07        two: the outermost zone first, the rack last
//! ```

use std::fmt;
use std::str::FromStr;

/// Most bytes of a label.
pub const ZONE_BYTES_MAX: usize = 64;
/// Most levels of a label.
pub const ZONE_LEVELS_MAX: usize = 8;

/// The zones that a machine is in, from the outermost to its rack: names of ASCII letters, digits, `.`, `_`, `-`,
/// `:` or `+`, with slashes between. Empty when nothing is known ([`Zone::UNKNOWN`]).
#[derive(Clone, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Zone(String);

/// How many levels of zones a transfer between two machines leaves: 0 within a rack, 1 to another rack of the row,
/// 2 to another row.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Distance(u8);

#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum ZoneError {
    #[error("a rack label of {0} bytes, at most {ZONE_BYTES_MAX} are allowed")]
    TooLong(usize),
    #[error("rack label {0:?} has more than {ZONE_LEVELS_MAX} levels")]
    TooDeep(String),
    #[error("rack label {0:?} has a level without a name")]
    EmptyName(String),
    #[error("rack label {label:?} has {found:?} in a name (allowed are A-Z a-z 0-9 . _ - : +)")]
    Character { label: String, found: char },
}

impl Zone {
    /// Nobody said where the machine stands.
    pub const UNKNOWN: Self = Self(String::new());

    pub fn as_str(&self) -> &str {
        &self.0
    }

    pub fn is_unknown(&self) -> bool {
        self.0.is_empty()
    }

    /// Names from the outermost zone to the rack; none when nothing is known.
    pub fn names(&self) -> impl Iterator<Item = &str> {
        self.0.split('/').filter(|name| !name.is_empty())
    }

    /// How far a transfer between the two goes: the levels of the deeper label below the innermost zone that both
    /// are in. An unknown label is outside every zone; two unknown ones are together. The same from either side.
    pub fn distance(&self, other: &Self) -> Distance {
        let together = self.names().zip(other.names()).take_while(|(one, other)| one == other).count();
        let levels = self.names().count().max(other.names().count());
        Distance(u8::try_from(levels - together).expect("at most ZONE_LEVELS_MAX"))
    }
}

impl Distance {
    /// Within one rack.
    pub const NONE: Self = Self(0);

    /// `levels` zones are left; more than there can be count as the most there can be.
    pub fn new(levels: usize) -> Self {
        Self(u8::try_from(levels.min(ZONE_LEVELS_MAX)).expect("ZONE_LEVELS_MAX is small"))
    }

    pub fn levels(self) -> usize {
        self.0.into()
    }
}

impl FromStr for Zone {
    type Err = ZoneError;

    /// The empty text is [`Zone::UNKNOWN`].
    fn from_str(text: &str) -> Result<Self, ZoneError> {
        if text.len() > ZONE_BYTES_MAX {
            return Err(ZoneError::TooLong(text.len()));
        }
        if text.is_empty() {
            return Ok(Self::UNKNOWN);
        }
        let allowed = |letter: char| letter.is_ascii_alphanumeric() || "._-:+".contains(letter);
        if let Some(found) = text.chars().find(|&letter| letter != '/' && !allowed(letter)) {
            return Err(ZoneError::Character { label: text.to_owned(), found });
        }
        if text.split('/').any(str::is_empty) {
            return Err(ZoneError::EmptyName(text.to_owned()));
        }
        if text.split('/').count() > ZONE_LEVELS_MAX {
            return Err(ZoneError::TooDeep(text.to_owned()));
        }
        Ok(Self(text.to_owned()))
    }
}

impl fmt::Display for Zone {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl fmt::Display for Distance {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn distance(one: &str, other: &str) -> usize {
        let (one, other): (Zone, Zone) = (one.parse().unwrap(), other.parse().unwrap());
        assert_eq!(one.distance(&other), other.distance(&one), "the same from either side");
        one.distance(&other).levels()
    }

    #[test]
    fn distance_counts_the_levels_left() {
        assert_eq!(distance("rack07", "rack07"), 0);
        assert_eq!(distance("rack07", "rack08"), 1);
        assert_eq!(distance("row3/rack07", "row3/rack07"), 0);
        assert_eq!(distance("row3/rack07", "row3/rack08"), 1);
        assert_eq!(distance("row3/rack07", "row4/rack07"), 2, "a rack's name counts within its row only");
        assert_eq!(distance("hall1/row3/rack07", "hall2/row3/rack07"), 3);
    }

    #[test]
    fn the_unknown_is_as_far_as_the_outermost() {
        assert_eq!(distance("", "rack07"), 1);
        assert_eq!(distance("", "row3/rack07"), 2);
        assert_eq!(distance("", ""), 0, "a network of which nothing is known is flat");
        assert_eq!(distance("row3", "row3/rack07"), 1);
        assert_eq!(distance("row4", "row3/rack07"), 2);
    }

    #[test]
    fn labels_that_are_none_are_refused_with_the_reason() {
        for good in ["", "rack07", "row3/rack07", "a/b/c/d/e/f/g/h", "DC-1:hall_2.b+", &"x".repeat(64)] {
            assert_eq!(good.parse::<Zone>().unwrap().to_string(), good);
        }
        let refusal = |text: &str| text.parse::<Zone>().unwrap_err().to_string();
        assert_eq!(refusal(&"x".repeat(65)), "a rack label of 65 bytes, at most 64 are allowed");
        for bad in ["/", "/rack07", "row3/", "row3//rack07"] {
            assert_eq!(refusal(bad), format!("rack label {bad:?} has a level without a name"));
        }
        assert_eq!(refusal("a/b/c/d/e/f/g/h/i"), "rack label \"a/b/c/d/e/f/g/h/i\" has more than 8 levels");
        for (bad, found) in [("rack 7", ' '), ("rack\n", '\n'), ("räck", 'ä'), ("a\\b", '\\')] {
            let expected =
                format!("rack label {bad:?} has {found:?} in a name (allowed are A-Z a-z 0-9 . _ - : +)");
            assert_eq!(refusal(bad), expected);
        }
    }
}
