//! The short name of a machine, by which a cluster file knows it.

use std::fmt;
use std::str::FromStr;

/// Longest name of a host (RFC 1123).
pub const HOST_NAME_BYTES_MAX: usize = 63;

/// 1 to 63 ASCII letters, digits, `-` or `_`, beginning with a letter or a digit. A name without its domain: two machines
/// of one cluster have two of them.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct HostName(String);

#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error(
    "not a host name: {0:?} (1 to {HOST_NAME_BYTES_MAX} of A-Z a-z 0-9 - _, a letter or a digit first, without a domain)"
)]
pub struct HostNameError(String);

impl HostName {
    pub fn as_str(&self) -> &str {
        &self.0
    }

    /// The host in a name that may have a domain: `node07` of `node07.example.org`.
    pub fn of_full_name(name: &str) -> Result<Self, HostNameError> {
        name.split_once('.').map_or(name, |(host, _)| host).parse()
    }

    /// What comes before the first digit: what hosts that are numbered have in common. May be empty.
    pub fn base(&self) -> &str {
        let end = self.0.bytes().position(|byte| byte.is_ascii_digit()).unwrap_or(self.0.len());
        &self.0[..end]
    }
}

impl FromStr for HostName {
    type Err = HostNameError;

    fn from_str(text: &str) -> Result<Self, HostNameError> {
        let allowed = |byte: u8| byte.is_ascii_alphanumeric() || b"-_".contains(&byte);
        let fits = (1..=HOST_NAME_BYTES_MAX).contains(&text.len()) && text.bytes().all(allowed);
        if fits && text.as_bytes()[0].is_ascii_alphanumeric() {
            Ok(Self(text.to_owned()))
        } else {
            Err(HostNameError(text.chars().take(HOST_NAME_BYTES_MAX).collect()))
        }
    }
}

impl fmt::Display for HostName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_with_a_domain_a_slash_or_a_dash_in_front_are_refused() {
        for good in ["node07", "n", "gpu-3", "0x", "A_b"] {
            assert_eq!(good.parse::<HostName>().unwrap().as_str(), good);
        }
        for bad in ["", "-n", "node07.example.org", "a/b", "a b", "naïve", &"x".repeat(64)] {
            assert!(bad.parse::<HostName>().is_err(), "{bad:?}");
        }
        assert_eq!(HostName::of_full_name("node07.example.org").unwrap().as_str(), "node07");
        assert_eq!("gpu-3b4".parse::<HostName>().unwrap().base(), "gpu-");
    }
}
