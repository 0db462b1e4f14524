//! Who is a member, as far as this peer knows: the newest list of the publisher's that it was told.

use std::collections::BTreeMap;
use std::net::IpAddr;

use libp2p::PeerId;
use shoal_proto::members::{Members, Standing};
use shoal_proto::signing::{PublicKey, Signed};
use shoal_proto::time::Time;
use tokio::sync::watch;

use crate::peer::Knocked;

/// Keys remembered that wait for approval: beyond it the one that asked longest ago goes.
const WAITING_MAX: usize = 1024;

/// What a peer needs to know of who may take part.
#[derive(Clone, Debug, Default)]
pub struct MembersConfig {
    /// Whose lists count; with nobody's, whoever knows the secret is a member.
    pub publisher: Option<PublicKey>,
    /// The list that was known before. One that the publisher did not sign counts as none.
    pub known: Option<Signed<Members>>,
    /// There is a list of this number, as the ticket says: before it or a newer one is known, nobody but the peers of
    /// the ticket is let in.
    pub number_min: u64,
}

/// What is to be done about a peer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Admission {
    Member,
    /// To be told that it is none.
    Barred {
        revoked: bool,
    },
    /// Nobody knows yet.
    Unknown,
}

/// **Invariant:** the number of the list only grows.
#[derive(Debug)]
pub(super) struct Roll {
    publisher: Option<PublicKey>,
    number_min: u64,
    members: Members,
    signed: watch::Sender<Option<Signed<Members>>>,
    waiting: BTreeMap<PeerId, (Option<IpAddr>, Time)>,
}

impl Roll {
    pub(super) fn new(config: MembersConfig, signed: watch::Sender<Option<Signed<Members>>>) -> Self {
        let MembersConfig { publisher, known, number_min } = config;
        let mut roll =
            Self { publisher, number_min, members: Members::default(), signed, waiting: BTreeMap::new() };
        if let Some(known) = known
            && let Err(why) = roll.learn(known)
        {
            tracing::warn!(why, "the known list of members does not count");
        }
        roll
    }

    pub(super) fn number(&self) -> u64 {
        self.members.number
    }

    pub(super) fn signed(&self) -> Option<Signed<Members>> {
        self.signed.borrow().clone()
    }

    /// Takes a list if it is newer than the known one; says whether it was.
    pub(super) fn learn(&mut self, told: Signed<Members>) -> Result<bool, String> {
        let Some(publisher) = &self.publisher else { return Ok(false) };
        if self.signed.borrow().as_ref() == Some(&told) {
            return Ok(false);
        }
        let members = told.verify(publisher).map_err(|error| error.to_string())?.into_inner();
        if members.number <= self.members.number {
            return Ok(false);
        }
        self.waiting.retain(|peer, _| members.standing(peer) == Standing::Unapproved);
        self.members = members;
        self.signed.send_replace(Some(told));
        Ok(true)
    }

    /// Whether a peer is let in. `named`: by the ticket, which is the word for it.
    pub(super) fn admission(&self, peer: &PeerId, named: bool) -> Admission {
        match self.members.standing(peer) {
            _ if named => Admission::Member,
            Standing::Revoked => Admission::Barred { revoked: true },
            _ if self.members.number < self.number_min => Admission::Unknown,
            Standing::Unapproved => Admission::Barred { revoked: false },
            Standing::Member => Admission::Member,
        }
    }

    /// A peer was told that nobody approved it yet.
    pub(super) fn note_waiting(&mut self, now: Time, peer: PeerId, address: Option<IpAddr>) {
        if self.waiting.len() >= WAITING_MAX
            && let Some(oldest) = self.waiting.iter().min_by_key(|(_, (_, at))| *at).map(|(peer, _)| *peer)
        {
            self.waiting.remove(&oldest);
        }
        self.waiting.insert(peer, (address, now));
    }

    /// Who waits for approval, the latest first.
    pub(super) fn waiting(&self, now: Time) -> Vec<Knocked> {
        let mut waiting: Vec<_> = self.waiting.iter().collect();
        waiting.sort_by_key(|(_, (_, at))| std::cmp::Reverse(*at));
        let knocked = |(peer, (address, at)): (&PeerId, &(Option<IpAddr>, Time))| Knocked {
            peer: *peer,
            address: *address,
            ago: now.since(*at),
        };
        waiting.into_iter().map(knocked).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use shoal_proto::members::Policy;
    use shoal_proto::signing::Keypair;

    fn key(seed: u8) -> Keypair {
        Keypair::ed25519_from_bytes([seed; 32]).unwrap()
    }

    fn peer(seed: u8) -> PeerId {
        key(seed).public().to_peer_id()
    }

    fn list(number: u64, policy: Policy, revoked: &[u8]) -> Members {
        let revoked = revoked.iter().map(|seed| peer(*seed)).collect();
        Members { number, policy, approved: [peer(1)].into(), revoked }
    }

    fn roll(number_min: u64) -> Roll {
        let config = MembersConfig { publisher: Some(key(9).public()), known: None, number_min };
        Roll::new(config, watch::channel(None).0)
    }

    #[test]
    fn only_a_newer_list_of_the_publishers_counts() {
        let mut roll = roll(0);
        let sign = |number, by| Signed::sign(&list(number, Policy::Secret, &[2]), &key(by));
        assert!(roll.learn(sign(1, 8)).is_err());
        assert_eq!(roll.admission(&peer(2), false), Admission::Member);
        assert_eq!(roll.learn(sign(5, 9)), Ok(true));
        assert_eq!(roll.admission(&peer(2), false), Admission::Barred { revoked: true });
        // The older list does not know of the revocation.
        let older = Signed::sign(&list(4, Policy::Secret, &[]), &key(9));
        assert_eq!(roll.learn(older), Ok(false));
        let same = Signed::sign(&list(5, Policy::Secret, &[]), &key(9));
        assert_eq!(roll.learn(same), Ok(false));
        assert_eq!(roll.admission(&peer(2), false), Admission::Barred { revoked: true });
        assert_eq!(roll.learn(Signed::sign(&list(6, Policy::Secret, &[]), &key(9))), Ok(true));
        assert_eq!(roll.admission(&peer(2), false), Admission::Member);
    }

    #[test]
    fn before_the_list_of_the_ticket_is_known_only_its_peers_are_let_in() {
        let mut roll = roll(3);
        roll.learn(Signed::sign(&list(2, Policy::Secret, &[4]), &key(9))).unwrap();
        assert_eq!(roll.admission(&peer(1), false), Admission::Unknown);
        assert_eq!(roll.admission(&peer(4), false), Admission::Barred { revoked: true });
        assert_eq!(roll.admission(&peer(7), true), Admission::Member);
        roll.learn(Signed::sign(&list(3, Policy::Approve, &[]), &key(9))).unwrap();
        assert_eq!(roll.admission(&peer(1), false), Admission::Member);
        assert_eq!(roll.admission(&peer(2), false), Admission::Barred { revoked: false });
    }

    #[test]
    fn who_waits_is_remembered_until_approved_and_no_more_than_there_is_room_for() {
        let mut roll = roll(0);
        roll.learn(Signed::sign(&list(1, Policy::Approve, &[]), &key(9))).unwrap();
        roll.note_waiting(Time::from_nanos(1), peer(2), None);
        roll.note_waiting(Time::from_nanos(2), peer(3), None);
        let waiting: Vec<PeerId> = roll.waiting(Time::ZERO).iter().map(|knocked| knocked.peer).collect();
        assert_eq!(waiting, [peer(3), peer(2)]);
        let mut approved = list(2, Policy::Approve, &[]);
        approved.approved.insert(peer(3));
        roll.learn(Signed::sign(&approved, &key(9))).unwrap();
        assert_eq!(roll.waiting(Time::ZERO).len(), 1);
        for second in 0..2000 {
            roll.note_waiting(Time::from_nanos(second), PeerId::random(), None);
        }
        assert_eq!(roll.waiting.len(), WAITING_MAX);
    }
}
