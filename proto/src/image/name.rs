//! What people call an image, and the publisher's word for what it means.

use std::fmt;
use std::str::FromStr;

use prost::Message as _;

use crate::cid::{Cid, DIGEST_BYTES};
use crate::signing::Statement;
use crate::wire::generated;

/// Most bytes of an image name.
pub const NAME_BYTES_MAX: usize = 128;
/// Version of the name record's format; another one is refused.
const NAME_RECORD_VERSION: u32 = 1;

/// What an operator calls an image: 1 to 128 ASCII letters, digits, `.`, `_`, `-`, `:` or `+`, beginning with a
/// letter or a digit. Safe as a file name and in a ticket.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct ImageName(String);

#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error(
    "not an image name: {0:?} (1 to {NAME_BYTES_MAX} of A-Z a-z 0-9 . _ - : +, a letter or a digit first)"
)]
pub struct ImageNameError(String);

/// The publisher's statement "image NAME is IMAGE".
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct NameRecord {
    pub name: ImageName,
    pub image: Cid,
}

#[derive(Debug, thiserror::Error)]
pub enum NameRecordError {
    #[error("not a name record")]
    Decode(#[from] prost::DecodeError),
    #[error("a name record of version {0}, this build reads {NAME_RECORD_VERSION}")]
    Version(u32),
    #[error(transparent)]
    Name(#[from] ImageNameError),
    #[error("a name record whose image id has {0} bytes instead of {DIGEST_BYTES}")]
    ImageId(usize),
}

impl ImageName {
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl FromStr for ImageName {
    type Err = ImageNameError;

    fn from_str(text: &str) -> Result<Self, ImageNameError> {
        let allowed = |byte: u8| byte.is_ascii_alphanumeric() || b"._-:+".contains(&byte);
        let fits = (1..=NAME_BYTES_MAX).contains(&text.len()) && text.bytes().all(allowed);
        if fits && text.as_bytes()[0].is_ascii_alphanumeric() {
            Ok(Self(text.to_owned()))
        } else {
            Err(ImageNameError(text.chars().take(NAME_BYTES_MAX).collect()))
        }
    }
}

impl fmt::Display for ImageName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl Statement for NameRecord {
    const DOMAIN: &'static str = "shoal image name v1";
    type Error = NameRecordError;

    fn to_payload(&self) -> Vec<u8> {
        generated::NameRecord {
            version: NAME_RECORD_VERSION,
            name: self.name.to_string(),
            image: self.image.digest().to_vec(),
        }
        .encode_to_vec()
    }

    fn from_payload(payload: &[u8]) -> Result<Self, NameRecordError> {
        let record = generated::NameRecord::decode(payload)?;
        if record.version != NAME_RECORD_VERSION {
            return Err(NameRecordError::Version(record.version));
        }
        let digest = <[u8; DIGEST_BYTES]>::try_from(record.image.as_slice())
            .map_err(|_| NameRecordError::ImageId(record.image.len()))?;
        Ok(Self { name: record.name.parse()?, image: Cid::from_digest(digest) })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_that_could_be_paths_or_flags_are_refused() {
        for good in ["debian-12", "web:2026.11", "a", "0+x_y"] {
            assert!(good.parse::<ImageName>().is_ok(), "{good}");
        }
        for bad in ["", ".", "..", "-rf", "a/b", "a b", "naïve", "a\n", &"x".repeat(129)] {
            assert!(bad.parse::<ImageName>().is_err(), "{bad:?}");
        }
    }

    #[test]
    fn name_record_round_trips_and_refuses_what_it_does_not_know() {
        let record = NameRecord { name: "debian".parse().unwrap(), image: Cid::of(b"root") };
        assert_eq!(NameRecord::from_payload(&record.to_payload()).unwrap(), record);
        let next = generated::NameRecord { version: 2, name: "debian".into(), image: vec![0; 32] };
        assert!(matches!(NameRecord::from_payload(&next.encode_to_vec()), Err(NameRecordError::Version(2))));
        let short = generated::NameRecord { version: 1, name: "debian".into(), image: vec![0; 31] };
        assert!(matches!(
            NameRecord::from_payload(&short.encode_to_vec()),
            Err(NameRecordError::ImageId(31))
        ));
    }
}
