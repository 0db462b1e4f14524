//! Who may take part: the publisher's numbered list of members.
//!
//! Whoever holds the swarm secret may join until the publisher says otherwise: it revokes keys, or lets in only those
//! that it approved. The list travels from peer to peer; one with a lower number never replaces one with a higher.
//! The seeder of the ticket needs no entry: the ticket is the word for it.

use std::collections::BTreeSet;
use std::fmt;
use std::str::FromStr;

use prost::Message as _;

use crate::signing::{PeerId, Statement};
use crate::wire::generated;

/// Keys in a list, approved and revoked together: as many as fit a signed statement.
pub const KEYS_MAX: usize = 8000;
/// Version of the list's format; another one is refused.
const MEMBERS_VERSION: u32 = 1;
/// Bytes of an ed25519 public key.
const KEY_BYTES: usize = 32;
/// What stands before such a key in a peer id: an identity multihash of 36 bytes, a protobuf of type 1 with 32 bytes.
const PEER_ID_PREFIX: [u8; 6] = [0x00, 0x24, 0x08, 0x01, 0x12, 0x20];

/// Who is let in without being named.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Policy {
    /// Whoever knows the swarm secret.
    #[default]
    Secret,
    /// Nobody: each key is approved by itself.
    Approve,
}

/// What a list says of a key.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Standing {
    Member,
    /// Nobody approved it yet.
    Unapproved,
    Revoked,
}

/// The publisher's list.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Members {
    /// Grows with every change; 0 is the list that was never signed: everybody, but for nobody.
    pub number: u64,
    pub policy: Policy,
    pub approved: BTreeSet<PeerId>,
    pub revoked: BTreeSet<PeerId>,
}

#[derive(Debug, thiserror::Error)]
pub enum MembersError {
    #[error("not a list of members")]
    Decode(#[from] prost::DecodeError),
    #[error("a list of members of version {0}, this build reads {MEMBERS_VERSION}")]
    Version(u32),
    #[error("a list of members without a number")]
    Number,
    #[error("a list of members without a known policy")]
    Policy,
    #[error("a list of members with {0} keys where at most {KEYS_MAX} are allowed")]
    TooMany(usize),
    #[error("a list of members whose keys are cut short, or not in order")]
    Keys,
}

impl Members {
    pub fn standing(&self, peer: &PeerId) -> Standing {
        if self.revoked.contains(peer) {
            Standing::Revoked
        } else if self.policy == Policy::Secret || self.approved.contains(peer) {
            Standing::Member
        } else {
            Standing::Unapproved
        }
    }

    /// Whether a list can name the peer: its key is ed25519, as every key of a node is.
    pub fn can_name(peer: &PeerId) -> bool {
        key_of(peer).is_some()
    }
}

impl Statement for Members {
    const DOMAIN: &'static str = "shoal swarm members v1";
    type Error = MembersError;

    fn to_payload(&self) -> Vec<u8> {
        generated::Members {
            version: MEMBERS_VERSION,
            number: self.number,
            policy: match self.policy {
                Policy::Secret => generated::Policy::Secret.into(),
                Policy::Approve => generated::Policy::Approve.into(),
            },
            approved: keys_of(&self.approved),
            revoked: keys_of(&self.revoked),
        }
        .encode_to_vec()
    }

    fn from_payload(payload: &[u8]) -> Result<Self, MembersError> {
        let list = generated::Members::decode(payload)?;
        if list.version != MEMBERS_VERSION {
            return Err(MembersError::Version(list.version));
        }
        if list.number == 0 {
            return Err(MembersError::Number);
        }
        let policy = match list.policy() {
            generated::Policy::Secret => Policy::Secret,
            generated::Policy::Approve => Policy::Approve,
            generated::Policy::Unspecified => return Err(MembersError::Policy),
        };
        let (approved, revoked) = (peers_of(&list.approved)?, peers_of(&list.revoked)?);
        match approved.len() + revoked.len() {
            keys if keys > KEYS_MAX => Err(MembersError::TooMany(keys)),
            _ => Ok(Self { number: list.number, policy, approved, revoked }),
        }
    }
}

impl fmt::Display for Policy {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Secret => "secret",
            Self::Approve => "approve",
        })
    }
}

impl FromStr for Policy {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        match text {
            "secret" => Ok(Self::Secret),
            "approve" => Ok(Self::Approve),
            _ => Err(format!("{text:?} is no policy: secret or approve")),
        }
    }
}

fn key_of(peer: &PeerId) -> Option<[u8; KEY_BYTES]> {
    peer.to_bytes().strip_prefix(&PEER_ID_PREFIX)?.try_into().ok()
}

/// In the order of their bytes: one list has one encoding.
fn keys_of(peers: &BTreeSet<PeerId>) -> Vec<u8> {
    let keys: BTreeSet<[u8; KEY_BYTES]> = peers.iter().filter_map(key_of).collect();
    keys.into_iter().flatten().collect()
}

fn peers_of(keys: &[u8]) -> Result<BTreeSet<PeerId>, MembersError> {
    let (keys, []) = keys.as_chunks::<KEY_BYTES>() else { return Err(MembersError::Keys) };
    if !keys.is_sorted_by(|one, next| one < next) {
        return Err(MembersError::Keys);
    }
    let peer = |key: &[u8; KEY_BYTES]| PeerId::from_bytes(&[&PEER_ID_PREFIX[..], key].concat());
    keys.iter().map(peer).collect::<Result<_, _>>().map_err(|_| MembersError::Keys)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::signing::{Keypair, SIGNED_BYTES_MAX};

    fn peer(seed: u8) -> PeerId {
        Keypair::ed25519_from_bytes([seed; 32]).unwrap().public().to_peer_id()
    }

    fn list(policy: Policy) -> Members {
        Members { number: 7, policy, approved: [1, 2, 3].map(peer).into(), revoked: [3, 4].map(peer).into() }
    }

    #[test]
    fn the_secret_lets_in_all_but_the_revoked_and_approval_only_the_approved() {
        let standing = |policy, seed| list(policy).standing(&peer(seed));
        assert_eq!([1, 3, 4, 5].map(|seed| standing(Policy::Secret, seed)), {
            [Standing::Member, Standing::Revoked, Standing::Revoked, Standing::Member]
        });
        assert_eq!([1, 3, 4, 5].map(|seed| standing(Policy::Approve, seed)), {
            [Standing::Member, Standing::Revoked, Standing::Revoked, Standing::Unapproved]
        });
        assert_eq!(Members::default().standing(&peer(9)), Standing::Member);
    }

    #[test]
    fn a_list_comes_back_as_it_went_and_the_longest_fits_a_statement() {
        for policy in [Policy::Secret, Policy::Approve] {
            assert_eq!(Members::from_payload(&list(policy).to_payload()).unwrap(), list(policy));
            assert_eq!(policy.to_string().parse(), Ok(policy));
        }
        let keys = (0..KEYS_MAX).map(|number| {
            let key = blake3::hash(&number.to_le_bytes());
            PeerId::from_bytes(&[&PEER_ID_PREFIX[..], key.as_bytes()].concat()).unwrap()
        });
        let longest = Members { approved: keys.collect(), revoked: [].into(), ..list(Policy::Approve) };
        let payload = longest.to_payload();
        assert!(payload.len() <= SIGNED_BYTES_MAX, "{} bytes", payload.len());
        assert_eq!(Members::from_payload(&payload).unwrap(), longest);
        let longer = Members { revoked: [peer(1)].into(), ..longest };
        let error = Members::from_payload(&longer.to_payload()).unwrap_err();
        assert!(matches!(error, MembersError::TooMany(8001)), "{error}");
    }

    #[test]
    fn a_list_that_cannot_be_is_refused() {
        let good = generated::Members::decode(&list(Policy::Approve).to_payload()[..]).unwrap();
        let refusal = |list: generated::Members| Members::from_payload(&list.encode_to_vec()).unwrap_err();
        let (mut unordered, mut cut) = (good.clone(), good.clone());
        unordered.approved.rotate_left(KEY_BYTES);
        cut.revoked.pop();
        assert!(matches!(refusal(unordered), MembersError::Keys));
        assert!(matches!(refusal(cut), MembersError::Keys));
        assert!(matches!(refusal(generated::Members { number: 0, ..good.clone() }), MembersError::Number));
        assert!(matches!(refusal(generated::Members { policy: 0, ..good.clone() }), MembersError::Policy));
        assert!(matches!(refusal(generated::Members { version: 2, ..good }), MembersError::Version(2)));
    }

    #[test]
    fn a_peer_id_that_is_no_ed25519_key_cannot_be_named() {
        // The SHA-256 of a key, as those of other kinds are called.
        let other = PeerId::from_bytes(&[&[0x12, 32][..], &[7; 32]].concat()).unwrap();
        assert!(Members::can_name(&peer(1)) && !Members::can_name(&other));
    }
}
