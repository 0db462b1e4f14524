//! Which image a fleet shall run: the publisher's numbered statement about a channel.
//!
//! It travels from follower to follower. A node takes one that is newer than the one it knows and was stated lately:
//! whoever keeps the newer ones from it can hold it back for no longer than a statement holds.

use std::fmt;
use std::str::FromStr;

use prost::Message as _;

use crate::cid::{Cid, DIGEST_BYTES};
use crate::image::ImageName;
use crate::signing::{PeerId, Statement};
use crate::wire::generated;

/// Most bytes of a channel's name.
pub const CHANNEL_BYTES_MAX: usize = 64;
/// Seconds that a statement about a channel holds: the seeder repeats it long before.
pub const RELEASE_HOLDS_S: u64 = 7 * 24 * 3600;
/// Seconds in which a permit has to reach its node.
pub const PERMIT_HOLDS_S: u64 = 3600;
/// Version of the formats; another one is refused.
const VERSION: u32 = 1;
/// A statement may be this many seconds ahead of the reader's clock.
const AHEAD_MAX_S: u64 = 24 * 3600;

/// What a fleet follows: a name as an image has one, of at most [`CHANNEL_BYTES_MAX`] bytes.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Channel(ImageName);

#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error(
    "not a channel: {0:?} (1 to {CHANNEL_BYTES_MAX} of A-Z a-z 0-9 . _ - : +, a letter or a digit first)"
)]
pub struct ChannelError(String);

/// The publisher's statement "channel CHANNEL is at NUMBER, which is IMAGE".
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Release {
    pub channel: Channel,
    /// Grows with every release and every withdrawal.
    pub number: u64,
    /// `None` when the channel is withdrawn: nobody is to go on towards its last image.
    pub image: Option<Cid>,
    /// When it was said, in seconds since 1970: the same release is said again and again.
    pub stated_s: u64,
    /// How long that counts.
    pub holds_s: u64,
}

/// The publisher's leave for one node to apply one release.
///
/// It names the node, so that nobody else can use it, and the attempt, of which a node begins each once: to say it
/// again changes nothing.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Permit {
    pub channel: Channel,
    pub release: u64,
    /// Grows with every retry.
    pub attempt: u32,
    pub peer: PeerId,
    pub stated_s: u64,
    pub holds_s: u64,
}

/// What a statement is to one who knows another.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum News {
    /// A higher number.
    New,
    /// The same release, said again later.
    Restated,
    /// Nothing that was not known.
    Known,
}

/// Why a statement of the publisher's does not count.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Refusal {
    #[error("release {told} of {channel} is older than release {known}, which is known")]
    Older { channel: Channel, told: u64, known: u64 },
    #[error("release {number} of {channel} was stated {age_s} s ago and held for {holds_s} s")]
    Stale { channel: Channel, number: u64, age_s: u64, holds_s: u64 },
    #[error("release {number} of {channel} is stated {ahead_s} s in the future: is the clock right?")]
    Ahead { channel: Channel, number: u64, ahead_s: u64 },
    #[error("release {number} of {channel} is stated for two images")]
    Contradicts { channel: Channel, number: u64 },
}

/// Bytes that are no such statement.
#[derive(Debug, thiserror::Error)]
pub enum ReleaseError {
    #[error("not a statement about a channel")]
    Decode(#[from] prost::DecodeError),
    #[error("a statement about a channel of version {0}, this build reads {VERSION}")]
    Version(u32),
    #[error(transparent)]
    Channel(#[from] ChannelError),
    #[error("a statement about a channel without a number")]
    Number,
    #[error("a release whose image id has {0} bytes instead of {DIGEST_BYTES}")]
    Image(usize),
    #[error("a permit for no peer id")]
    Peer,
}

impl Release {
    /// What this is to one who knows `known` and whose clock says `now_s` seconds since 1970; or why it does not count.
    pub fn judge(&self, known: Option<&Self>, now_s: u64) -> Result<News, Refusal> {
        let (channel, number) = (self.channel.clone(), self.number);
        let news = match known {
            Some(known) if self.number < known.number => {
                return Err(Refusal::Older { channel, told: number, known: known.number });
            }
            Some(known) if self.number == known.number && self.image != known.image => {
                return Err(Refusal::Contradicts { channel, number });
            }
            Some(known) if self.number == known.number && self.stated_s <= known.stated_s => {
                return Ok(News::Known);
            }
            Some(known) if self.number == known.number => News::Restated,
            _ => News::New,
        };
        if self.stated_s > now_s.saturating_add(AHEAD_MAX_S) {
            return Err(Refusal::Ahead { channel, number, ahead_s: self.stated_s - now_s });
        }
        match is_over(self.stated_s, self.holds_s, now_s) {
            true => {
                let age_s = now_s - self.stated_s;
                Err(Refusal::Stale { channel, number, age_s, holds_s: self.holds_s })
            }
            false => Ok(news),
        }
    }

    /// Whether it is better than what someone knows who told its number and when that was stated.
    pub fn is_newer_than(&self, number: u64, stated_s: u64) -> bool {
        (self.number, self.stated_s) > (number, stated_s)
    }
}

impl Permit {
    /// Whether it came too late for a reader whose clock says `now_s` seconds since 1970.
    pub fn is_stale(&self, now_s: u64) -> bool {
        is_over(self.stated_s, self.holds_s, now_s)
    }
}

fn is_over(stated_s: u64, holds_s: u64, now_s: u64) -> bool {
    now_s.saturating_sub(stated_s) > holds_s
}

impl Statement for Release {
    const DOMAIN: &'static str = "shoal release v1";
    type Error = ReleaseError;

    fn to_payload(&self) -> Vec<u8> {
        generated::Release {
            version: VERSION,
            channel: self.channel.to_string(),
            number: self.number,
            image: self.image.map_or_else(Vec::new, |image| image.digest().to_vec()),
            stated_s: self.stated_s,
            holds_s: self.holds_s,
        }
        .encode_to_vec()
    }

    fn from_payload(payload: &[u8]) -> Result<Self, ReleaseError> {
        let release = generated::Release::decode(payload)?;
        if release.version != VERSION {
            return Err(ReleaseError::Version(release.version));
        }
        if release.number == 0 {
            return Err(ReleaseError::Number);
        }
        let image = match release.image.as_slice() {
            [] => None,
            bytes => {
                let digest = <[u8; DIGEST_BYTES]>::try_from(bytes);
                Some(Cid::from_digest(digest.map_err(|_| ReleaseError::Image(bytes.len()))?))
            }
        };
        Ok(Self {
            channel: release.channel.parse()?,
            number: release.number,
            image,
            stated_s: release.stated_s,
            holds_s: release.holds_s,
        })
    }
}

impl Statement for Permit {
    const DOMAIN: &'static str = "shoal permit v1";
    type Error = ReleaseError;

    fn to_payload(&self) -> Vec<u8> {
        generated::Permit {
            version: VERSION,
            channel: self.channel.to_string(),
            release: self.release,
            attempt: self.attempt,
            peer: self.peer.to_bytes(),
            stated_s: self.stated_s,
            holds_s: self.holds_s,
        }
        .encode_to_vec()
    }

    fn from_payload(payload: &[u8]) -> Result<Self, ReleaseError> {
        let permit = generated::Permit::decode(payload)?;
        if permit.version != VERSION {
            return Err(ReleaseError::Version(permit.version));
        }
        if permit.release == 0 || permit.attempt == 0 {
            return Err(ReleaseError::Number);
        }
        Ok(Self {
            channel: permit.channel.parse()?,
            release: permit.release,
            attempt: permit.attempt,
            peer: PeerId::from_bytes(&permit.peer).map_err(|_| ReleaseError::Peer)?,
            stated_s: permit.stated_s,
            holds_s: permit.holds_s,
        })
    }
}

impl FromStr for Channel {
    type Err = ChannelError;

    fn from_str(text: &str) -> Result<Self, ChannelError> {
        match text.parse() {
            Ok(name) if text.len() <= CHANNEL_BYTES_MAX => Ok(Self(name)),
            _ => Err(ChannelError(text.chars().take(CHANNEL_BYTES_MAX).collect())),
        }
    }
}

impl fmt::Display for Channel {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const NOW_S: u64 = 2_000_000_000;

    fn release(number: u64, image: &[u8], stated_s: u64) -> Release {
        let channel = "stable".parse().unwrap();
        Release { channel, number, image: Some(Cid::of(image)), stated_s, holds_s: RELEASE_HOLDS_S }
    }

    #[test]
    fn only_a_newer_statement_counts_and_one_number_means_one_image() {
        let known = release(5, b"five", NOW_S - 60);
        let judge = |told: &Release| told.judge(Some(&known), NOW_S);
        assert_eq!(judge(&release(6, b"six", NOW_S)), Ok(News::New));
        assert_eq!(judge(&release(5, b"five", NOW_S)), Ok(News::Restated));
        assert_eq!(judge(&known), Ok(News::Known));
        assert_eq!(judge(&release(5, b"five", NOW_S - 90)), Ok(News::Known));
        assert!(matches!(judge(&release(4, b"four", NOW_S)), Err(Refusal::Older { told: 4, known: 5, .. })));
        assert!(matches!(judge(&release(5, b"six", NOW_S)), Err(Refusal::Contradicts { number: 5, .. })));
        let withdrawn = Release { image: None, ..release(6, b"", NOW_S) };
        assert_eq!(judge(&withdrawn), Ok(News::New));
        assert_eq!(known.judge(None, NOW_S), Ok(News::New));
    }

    #[test]
    fn what_was_stated_too_long_ago_or_in_the_future_does_not_count() {
        let last = NOW_S - RELEASE_HOLDS_S;
        assert_eq!(release(1, b"x", last).judge(None, NOW_S), Ok(News::New));
        let error = release(1, b"x", last - 1).judge(None, NOW_S).unwrap_err();
        assert!(matches!(error, Refusal::Stale { number: 1, .. }), "{error}");
        assert_eq!(release(1, b"x", NOW_S + AHEAD_MAX_S).judge(None, NOW_S), Ok(News::New));
        let error = release(1, b"x", NOW_S + AHEAD_MAX_S + 1).judge(None, NOW_S).unwrap_err();
        assert!(matches!(error, Refusal::Ahead { number: 1, .. }), "{error}");
        // What was believed in time stays believed.
        let known = release(3, b"x", last - 1);
        assert_eq!(known.judge(Some(&known), NOW_S), Ok(News::Known));
    }

    #[test]
    fn statements_come_back_as_they_went_and_others_are_refused() {
        let (good, withdrawn) = (release(7, b"x", 9), Release { image: None, ..release(7, b"x", 9) });
        for release in [&good, &withdrawn] {
            assert_eq!(Release::from_payload(&release.to_payload()).unwrap(), *release);
        }
        let permit = Permit {
            channel: "a".parse().unwrap(),
            release: 3,
            attempt: 2,
            peer: PeerId::random(),
            stated_s: 5,
            holds_s: PERMIT_HOLDS_S,
        };
        assert_eq!(Permit::from_payload(&permit.to_payload()).unwrap(), permit);
        assert!(permit.is_stale(5 + PERMIT_HOLDS_S + 1) && !permit.is_stale(5 + PERMIT_HOLDS_S));
        let raw = generated::Release::decode(&good.to_payload()[..]).unwrap();
        let refusal = |raw: generated::Release| Release::from_payload(&raw.encode_to_vec()).unwrap_err();
        assert!(matches!(
            refusal(generated::Release { version: 2, ..raw.clone() }),
            ReleaseError::Version(2)
        ));
        assert!(matches!(refusal(generated::Release { number: 0, ..raw.clone() }), ReleaseError::Number));
        assert!(matches!(
            refusal(generated::Release { image: vec![1; 31], ..raw.clone() }),
            ReleaseError::Image(31)
        ));
        let longest = "c".repeat(CHANNEL_BYTES_MAX);
        assert!(longest.parse::<Channel>().is_ok() && (longest + "c").parse::<Channel>().is_err());
        assert!(matches!(
            refusal(generated::Release { channel: "a/b".into(), ..raw }),
            ReleaseError::Channel(_)
        ));
        let raw = generated::Permit::decode(&permit.to_payload()[..]).unwrap();
        for (raw, why) in [
            (generated::Permit { attempt: 0, ..raw.clone() }, "number"),
            (generated::Permit { peer: vec![1], ..raw.clone() }, "peer id"),
        ] {
            let error = Permit::from_payload(&raw.encode_to_vec()).unwrap_err().to_string();
            assert!(error.contains(why), "{error}");
        }
    }
}
