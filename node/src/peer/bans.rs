//! Who was thrown out, and what for: by key, and where one machine brings key after key, by its address too.
//!
//! The neighbourhood shuns a key by itself; this is the record of it, for people and for the [door](super::door).

use std::collections::BTreeMap;
use std::net::IpAddr;

use libp2p::PeerId;
use shoal_proto::neighbourhood::BAN;
use shoal_proto::time::Time;

use crate::peer::Banned;

/// Bans remembered: beyond it the oldest goes.
const BANS_MAX: usize = 256;
/// Banned keys of one address from which on nobody new is let in from there. Machines behind one translated address
/// share it: a few liars among them close it to nobody.
pub(super) const KEYS_PER_ADDRESS_MAX: usize = 8;
/// Peers remembered after they went, for the blame that comes late: more than pieces can wait to be verified.
const DEPARTED_MAX: usize = 256;
/// Bytes of a reason that are kept: it may quote the peer.
const WHY_BYTES_MAX: usize = 256;

#[derive(Debug)]
struct Ban {
    address: Option<IpAddr>,
    why: String,
    since: Time,
    until: Time,
}

/// **Invariant:** at most [`BANS_MAX`] bans and [`DEPARTED_MAX`] departed peers.
#[derive(Debug, Default)]
pub(super) struct Bans {
    by_peer: BTreeMap<PeerId, Ban>,
}

impl Bans {
    /// Notes that a peer broke the protocol; says whether its address is to be closed as well.
    pub(super) fn note(&mut self, now: Time, peer: PeerId, address: Option<IpAddr>, why: &str) -> bool {
        self.by_peer.retain(|_, ban| ban.until > now);
        if self.by_peer.len() >= BANS_MAX
            && let Some(oldest) = self.by_peer.iter().min_by_key(|(_, ban)| ban.since).map(|(peer, _)| *peer)
        {
            self.by_peer.remove(&oldest);
        }
        let why = why.chars().take(WHY_BYTES_MAX).collect();
        self.by_peer.insert(peer, Ban { address, why, since: now, until: now + BAN });
        let alike = |ban: &&Ban| address.is_some() && ban.address == address;
        self.by_peer.values().filter(alike).count() >= KEYS_PER_ADDRESS_MAX
    }

    /// The bans in force, the latest first.
    pub(super) fn list(&self, now: Time) -> Vec<Banned> {
        let mut bans: Vec<_> = self.by_peer.iter().filter(|(_, ban)| ban.until > now).collect();
        bans.sort_by_key(|(_, ban)| std::cmp::Reverse(ban.since));
        let banned = |(peer, ban): (&PeerId, &Ban)| Banned {
            peer: *peer,
            address: ban.address,
            why: ban.why.clone(),
            ago: now.since(ban.since),
            left: ban.until.since(now),
        };
        bans.into_iter().map(banned).collect()
    }
}

/// Who had a connection that is no more, by the key that it had then.
#[derive(Debug, Default)]
pub(super) struct Departed(BTreeMap<u32, (PeerId, Option<IpAddr>)>);

impl Departed {
    pub(super) fn note(&mut self, key: u32, peer: PeerId, address: Option<IpAddr>) {
        if self.0.len() >= DEPARTED_MAX {
            // Keys are given in order.
            self.0.pop_first();
        }
        self.0.insert(key, (peer, address));
    }

    pub(super) fn find(&self, key: u32) -> Option<(PeerId, Option<IpAddr>)> {
        self.0.get(&key).copied()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::time::Duration;

    fn at(seconds: u64) -> Time {
        Time::ZERO + Duration::from_secs(seconds)
    }

    #[test]
    fn an_address_is_closed_after_many_keys_and_not_after_one_that_comes_back() {
        let mut bans = Bans::default();
        let address: Option<IpAddr> = Some([192, 0, 2, 1].into());
        let comes_back = PeerId::random();
        for second in 0..20 {
            assert!(!bans.note(at(second), comes_back, address, "lies"));
        }
        for key in 2..KEYS_PER_ADDRESS_MAX {
            assert!(!bans.note(at(20), PeerId::random(), address, "lies"), "at {key} keys");
            assert!(!bans.note(at(20), PeerId::random(), None, "lies"));
            assert!(!bans.note(at(20), PeerId::random(), Some([192, 0, 2, 2].into()), "lies"));
            bans.by_peer.retain(|_, ban| ban.address != Some([192, 0, 2, 2].into()));
        }
        assert!(bans.note(at(20), PeerId::random(), address, "lies"));
        // Those bans are over.
        assert!(!bans.note(at(20) + BAN, PeerId::random(), address, "lies"));
    }

    #[test]
    fn bans_are_listed_with_their_reasons_as_long_as_they_hold_and_are_bounded() {
        let mut bans = Bans::default();
        let (first, second) = (PeerId::random(), PeerId::random());
        bans.note(at(1), first, None, "one");
        bans.note(at(2), second, None, &"x".repeat(1000));
        let list = bans.list(at(3));
        assert_eq!(list.iter().map(|ban| ban.peer).collect::<Vec<_>>(), [second, first]);
        assert_eq!(
            (list[1].why.as_str(), list[1].ago, list[0].why.len()),
            ("one", Duration::from_secs(2), 256)
        );
        assert_eq!(bans.list(at(1) + BAN).len(), 1);
        for second in 0..1000 {
            bans.note(at(second % 100), PeerId::random(), None, "lies");
        }
        assert!(bans.by_peer.len() <= BANS_MAX);
    }

    #[test]
    fn the_departed_are_remembered_for_a_while() {
        let mut departed = Departed::default();
        let peer = PeerId::random();
        departed.note(1, peer, None);
        assert_eq!(departed.find(1), Some((peer, None)));
        for key in 2..1000 {
            departed.note(key, PeerId::random(), None);
        }
        assert!(departed.find(1).is_none() && departed.0.len() == DEPARTED_MAX);
    }
}
