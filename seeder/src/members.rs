//! Who may join: the operator's decisions, in one file, and the publisher's signed list made of them.

use std::collections::{BTreeMap, BTreeSet};
use std::path::PathBuf;

use serde::{Deserialize, Serialize};
use shoal_node::control::{BanReport, ban_reports};
use shoal_node::durable;
use shoal_node::peer::{PeerId, Status};
use shoal_proto::host::HostName;
use shoal_proto::members::{KEYS_MAX, Members, Policy};
use shoal_proto::signing::Signed;

use crate::bindings::{self, Bindings};
use crate::home::Home;

#[derive(Debug, thiserror::Error)]
pub enum Error {
    #[error(transparent)]
    File(#[from] durable::Error),
    #[error("{} is damaged: {why}", .path.display())]
    Damaged { path: PathBuf, why: String },
    #[error("{0} is the seeder's own key")]
    Own(PeerId),
    #[error("{0} is no key of a node (they begin with 12D3KooW)")]
    NoKey(PeerId),
    #[error("{KEYS_MAX} keys are named already, and a list holds no more")]
    Full,
}

/// A decision of the operator's.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Change {
    Approve(#[serde(with = "as_text")] PeerId),
    Revoke(#[serde(with = "as_text")] PeerId),
    Policy(#[serde(with = "as_text")] Policy),
    /// Let a key in, as the key of this host.
    ApproveAs(#[serde(with = "as_text")] PeerId, #[serde(with = "as_text")] HostName),
}

/// Who may join, who has, and who wants to, as `nodes --json` prints it. Times in seconds.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
pub struct NodesReport {
    pub policy: String,
    /// Of the list; 0 when there never was one.
    pub number: u64,
    pub approved: Vec<String>,
    pub revoked: Vec<String>,
    /// Keys by the host that each is of.
    #[serde(default)]
    pub hosts: BTreeMap<String, String>,
    /// Whether a seeder runs, which alone knows the rest.
    pub serving: bool,
    pub connected: Vec<NodeReport>,
    /// Who asked to join and is not approved, the latest first.
    pub waiting: Vec<NodeReport>,
    pub banned: Vec<BanReport>,
}

#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct NodeReport {
    pub peer: String,
    pub address: Option<String>,
    /// When it asked last; absent of one that is connected.
    pub ago_s: Option<f64>,
}

#[derive(Serialize, Deserialize)]
struct MembersFile {
    format: u32,
    number: u64,
    policy: String,
    approved: BTreeSet<String>,
    revoked: BTreeSet<String>,
}

/// Version of the file; another one is refused.
const FORMAT: u32 = 1;

pub(crate) mod as_text {
    use std::fmt::Display;
    use std::str::FromStr;

    use serde::{Deserialize, Deserializer, Serializer};

    pub(crate) fn serialize<T: Display, S: Serializer>(value: &T, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(value)
    }

    pub(crate) fn deserialize<'de, T: FromStr<Err: Display>, D: Deserializer<'de>>(
        deserializer: D,
    ) -> Result<T, D::Error> {
        String::deserialize(deserializer)?.parse().map_err(serde::de::Error::custom)
    }
}

/// The decisions so far: none, when nobody made one.
pub fn load(home: &Home) -> Result<Members, Error> {
    let path = home.members_file();
    let Some(bytes) = durable::read(&path)? else { return Ok(Members::default()) };
    decode(&bytes).map_err(|why| Error::Damaged { path, why })
}

fn decode(bytes: &[u8]) -> Result<Members, String> {
    let file: MembersFile = serde_json::from_slice(bytes).map_err(|error| error.to_string())?;
    if file.format != FORMAT {
        return Err(format!("it has format {}, this build reads {FORMAT}", file.format));
    }
    let peers = |texts: BTreeSet<String>| -> Result<BTreeSet<PeerId>, String> {
        texts.into_iter().map(|text| text.parse().map_err(|_| format!("{text:?} is no peer id"))).collect()
    };
    Ok(Members {
        number: file.number,
        policy: file.policy.parse()?,
        approved: peers(file.approved)?,
        revoked: peers(file.revoked)?,
    })
}

/// The publisher's word for the decisions; `None` before the first one.
pub fn sign(home: &Home, members: &Members) -> Option<Signed<Members>> {
    (members.number > 0).then(|| Signed::sign(members, &home.publisher))
}

/// Takes a decision, and remembers it before anyone hears of it. Whoever calls holds [`Home::lock`].
pub fn decide(home: &Home, change: &Change) -> Result<Members, Error> {
    let before = load(home)?;
    let own = home.peer.public().to_peer_id();
    let mut members = before.clone();
    match change {
        Change::Approve(peer) | Change::ApproveAs(peer, _) | Change::Revoke(peer)
            if !Members::can_name(peer) =>
        {
            return Err(Error::NoKey(*peer));
        }
        Change::Revoke(peer) if *peer == own => return Err(Error::Own(*peer)),
        Change::Approve(peer) | Change::ApproveAs(peer, _) => {
            members.revoked.remove(peer);
            members.approved.insert(*peer);
        }
        Change::Revoke(peer) => {
            members.approved.remove(peer);
            members.revoked.insert(*peer);
        }
        Change::Policy(policy) => members.policy = *policy,
    }
    if members == before {
        return Ok(members);
    }
    // For peers that know the seeder from others, and not by a ticket.
    members.approved.insert(own);
    if members.approved.len() + members.revoked.len() > KEYS_MAX {
        return Err(Error::Full);
    }
    members.number += 1;
    write(home, &members)?;
    Ok(members)
}

/// Remembers what a decision says of which key is which host's. Whoever calls holds [`Home::lock`].
pub fn bind(home: &Home, change: &Change) -> Result<Bindings, bindings::Error> {
    let mut bound = Bindings::load(home)?;
    match change {
        Change::ApproveAs(peer, host) => bound.bind(home, host, *peer)?,
        Change::Revoke(peer) => bound.release(home, peer)?,
        Change::Approve(_) | Change::Policy(_) => {}
    }
    Ok(bound)
}

/// Takes over a list from the swarm that is newer than the decisions here, as after these came back from a backup: a
/// decision would have no effect otherwise. Whoever calls holds [`Home::lock`].
pub fn catch_up(home: &Home, heard: &Signed<Members>) -> Result<(), Error> {
    let Ok(heard) = heard.verify(&home.publisher.public()) else { return Ok(()) };
    let own = load(home)?;
    if heard.number > own.number {
        tracing::warn!(
            heard = heard.number,
            own = own.number,
            "the swarm knows newer decisions about members"
        );
        write(home, &heard)?;
    }
    Ok(())
}

fn write(home: &Home, members: &Members) -> Result<(), Error> {
    let texts = |peers: &BTreeSet<PeerId>| peers.iter().map(PeerId::to_string).collect();
    let file = MembersFile {
        format: FORMAT,
        number: members.number,
        policy: members.policy.to_string(),
        approved: texts(&members.approved),
        revoked: texts(&members.revoked),
    };
    let text = serde_json::to_vec_pretty(&file).expect("a list of members is plain data");
    Ok(durable::write(&home.members_file(), &text, durable::PRIVATE)?)
}

impl NodesReport {
    /// `statuses` are those of the running seeder, in each of its swarms; there are none when none runs.
    pub fn new(members: &Members, bound: &Bindings, statuses: &[Status]) -> Self {
        let texts = |peers: &BTreeSet<PeerId>| peers.iter().map(PeerId::to_string).collect();
        let node = |peer: &PeerId, address: Option<std::net::IpAddr>, ago_s| NodeReport {
            peer: peer.to_string(),
            address: address.map(|address| address.to_string()),
            ago_s,
        };
        let connected = statuses.iter().flat_map(|status| &status.peers);
        let waiting = statuses.iter().flat_map(|status| &status.unapproved);
        Self {
            policy: members.policy.to_string(),
            number: members.number,
            approved: texts(&members.approved),
            revoked: texts(&members.revoked),
            hosts: bound.iter().map(|(host, key)| (host.to_string(), key.to_string())).collect(),
            serving: !statuses.is_empty(),
            connected: connected.map(|met| node(&met.peer, met.address, None)).collect(),
            waiting: waiting
                .map(|knocked| node(&knocked.peer, knocked.address, Some(knocked.ago.as_secs_f64())))
                .collect(),
            banned: statuses.iter().flat_map(ban_reports).collect(),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use shoal_proto::signing::Keypair;

    fn peer(seed: u8) -> PeerId {
        Keypair::ed25519_from_bytes([seed; 32]).unwrap().public().to_peer_id()
    }

    #[test]
    fn each_decision_is_a_new_list_and_none_is_none() {
        let dir = tempfile::tempdir().unwrap();
        let home = Home::open(dir.path()).unwrap();
        assert!(sign(&home, &load(&home).unwrap()).is_none());
        let own = home.peer.public().to_peer_id();
        let decide = |change| decide(&home, &change).unwrap();
        let first = decide(Change::Approve(peer(1)));
        assert_eq!((first.number, &first.approved), (1, &BTreeSet::from([peer(1), own])));
        assert_eq!(decide(Change::Approve(peer(1))).number, 1);
        assert_eq!(decide(Change::Policy(Policy::Secret)).number, 1);
        let second = decide(Change::Revoke(peer(1)));
        assert_eq!((second.number, second.revoked.contains(&peer(1))), (2, true));
        assert!(!second.approved.contains(&peer(1)));
        let third = decide(Change::Policy(Policy::Approve));
        assert_eq!((third.number, load(&home).unwrap()), (3, third.clone()));
        let back = decide(Change::Approve(peer(1)));
        assert!(back.revoked.is_empty() && back.approved.contains(&peer(1)));
        let signed = sign(&home, &back).unwrap();
        assert_eq!(*signed.verify(&home.publisher.public()).unwrap(), back);
    }

    #[test]
    fn decisions_from_a_backup_catch_up_with_the_swarm_and_only_with_the_publishers_word() {
        let dir = tempfile::tempdir().unwrap();
        let home = Home::open(dir.path()).unwrap();
        decide(&home, &Change::Revoke(peer(1))).unwrap();
        let newer = Members { number: 9, revoked: [peer(2)].into(), ..Members::default() };
        let stranger = Keypair::ed25519_from_bytes([7; 32]).unwrap();
        catch_up(&home, &Signed::sign(&newer, &stranger)).unwrap();
        assert_eq!(load(&home).unwrap().number, 1);
        catch_up(&home, &Signed::sign(&newer, &home.publisher)).unwrap();
        assert_eq!(load(&home).unwrap(), newer);
        let older = Members { number: 8, ..Members::default() };
        catch_up(&home, &Signed::sign(&older, &home.publisher)).unwrap();
        assert_eq!(decide(&home, &Change::Revoke(peer(3))).unwrap().number, 10);
    }

    #[test]
    fn the_seeder_does_not_revoke_itself_and_a_damaged_file_is_named() {
        let dir = tempfile::tempdir().unwrap();
        let home = Home::open(dir.path()).unwrap();
        let own = home.peer.public().to_peer_id();
        assert!(matches!(decide(&home, &Change::Revoke(own)), Err(Error::Own(_))));
        assert!(matches!(decide(&home, &Change::Approve(PeerId::random())), Err(Error::NoKey(_))));
        durable::write(&home.members_file(), b"{}", durable::PRIVATE).unwrap();
        let error = load(&home).unwrap_err().to_string();
        assert!(error.contains("members is damaged"), "{error}");
    }
}
