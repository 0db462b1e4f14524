//! What this peer knows of channels, what it reports of itself and what it is told.

use std::collections::BTreeMap;

use libp2p::PeerId;
use shoal_proto::fleet::{Follow, Orders, Report};
use shoal_proto::release::{Channel, News, Permit, Refusal, Release};
use shoal_proto::signing::{PublicKey, Signed};
use tokio::sync::{mpsc, watch};

/// How a peer takes part in a fleet.
#[derive(Debug, Default)]
pub struct FleetConfig {
    /// The channel to follow.
    pub follow: Option<Channel>,
    /// What was known of channels before. What the publisher did not sign counts as nothing.
    pub known: Vec<Signed<Release>>,
    /// Where the reports of nodes go; one that finds no room there is not heard.
    pub reports: Option<mpsc::Sender<(PeerId, Report)>>,
}

/// What the seeder said last.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Heard {
    /// The newest leave for this node, verified and in time when it came.
    pub permit: Option<Permit>,
    /// Begin nothing, whatever was permitted.
    pub hold: bool,
    /// Reports that were answered since the start.
    pub answers: u64,
}

/// The newest statement about each channel. **Invariant:** by [`Release::judge`], it only gets newer.
#[derive(Debug)]
pub(super) struct Channels {
    publisher: Option<PublicKey>,
    followed: Option<Channel>,
    known: BTreeMap<Channel, (Release, Signed<Release>)>,
    newest: watch::Sender<Option<Signed<Release>>>,
}

/// Why a statement about a channel was not taken.
#[derive(Debug, thiserror::Error)]
pub(super) enum Unlearnt {
    /// Nobody honest says this.
    #[error("{0}")]
    Forged(String),
    #[error(transparent)]
    Refused(#[from] Refusal),
}

impl Channels {
    pub(super) fn new(
        publisher: Option<PublicKey>,
        followed: Option<Channel>,
        known: Vec<Signed<Release>>,
        newest: watch::Sender<Option<Signed<Release>>>,
    ) -> Self {
        let mut channels = Self { publisher, followed, known: BTreeMap::new(), newest };
        for signed in known {
            // What was believed in time stays believed.
            match channels.verify(&signed) {
                Ok(release) => channels.put(release, signed),
                Err(why) => tracing::warn!(why, "a known release does not count"),
            }
        }
        channels
    }

    pub(super) fn followed(&self) -> Option<&Channel> {
        self.followed.as_ref()
    }

    pub(super) fn get(&self, channel: &Channel) -> Option<&(Release, Signed<Release>)> {
        self.known.get(channel)
    }

    /// What this side says when it follows the channel.
    pub(super) fn follow(&self, channel: &Channel) -> Follow {
        let (number, stated_s) =
            self.get(channel).map_or((0, 0), |(release, _)| (release.number, release.stated_s));
        Follow { channel: channel.clone(), number, stated_s }
    }

    /// Takes a statement if it is about a channel that matters here and newer than the known one; says which then.
    pub(super) fn learn(&mut self, now_s: u64, told: Signed<Release>) -> Result<Option<Channel>, Unlearnt> {
        if self.publisher.is_none() || self.known.values().any(|(_, known)| *known == told) {
            return Ok(None);
        }
        let release = self.verify(&told).map_err(Unlearnt::Forged)?;
        let channel = release.channel.clone();
        if self.followed.as_ref().is_some_and(|followed| *followed != channel) {
            return Ok(None);
        }
        match release.judge(self.get(&channel).map(|(known, _)| known), now_s)? {
            News::Known => Ok(None),
            News::New | News::Restated => {
                self.put(release, told);
                Ok(Some(channel))
            }
        }
    }

    fn verify(&self, signed: &Signed<Release>) -> Result<Release, String> {
        let publisher = self.publisher.as_ref().ok_or("nobody is known to sign it")?;
        Ok(signed.verify(publisher).map_err(|error| error.to_string())?.into_inner())
    }

    fn put(&mut self, release: Release, signed: Signed<Release>) {
        if self.followed.as_ref() == Some(&release.channel) {
            self.newest.send_replace(Some(signed.clone()));
        }
        self.known.insert(release.channel.clone(), (release, signed));
    }

    /// A permit that counts for this peer at this time.
    pub(super) fn check_permit(
        &self,
        own: PeerId,
        now_s: u64,
        permit: &Signed<Permit>,
    ) -> Result<Permit, String> {
        let publisher = self.publisher.as_ref().ok_or("nobody is known to sign it")?;
        let permit = permit.verify(publisher).map_err(|error| error.to_string())?.into_inner();
        if permit.peer != own {
            return Err(format!("it is for {}", permit.peer));
        }
        if Some(&permit.channel) != self.followed.as_ref() {
            return Err(format!("it is for channel {}", permit.channel));
        }
        match permit.is_stale(now_s) {
            true => Err(format!("it was given {} s ago", now_s - permit.stated_s)),
            false => Ok(permit),
        }
    }

    /// What orders say to this peer, on top of what it heard before; why a permit in them does not count.
    pub(super) fn hear(
        &self,
        own: PeerId,
        now_s: u64,
        orders: &Orders,
        heard: &mut Heard,
    ) -> Result<(), String> {
        heard.answers += 1;
        if Some(&orders.channel) != self.followed.as_ref() {
            return Ok(());
        }
        heard.hold = orders.hold;
        match &orders.permit {
            None => {
                heard.permit = None;
                Ok(())
            }
            Some(permit) => {
                heard.permit = Some(self.check_permit(own, now_s, permit)?);
                Ok(())
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use shoal_proto::cid::Cid;
    use shoal_proto::release::RELEASE_HOLDS_S;
    use shoal_proto::signing::Keypair;

    const NOW_S: u64 = 2_000_000_000;

    fn key(seed: u8) -> Keypair {
        Keypair::ed25519_from_bytes([seed; 32]).unwrap()
    }

    fn channel(name: &str) -> Channel {
        name.parse().unwrap()
    }

    fn release(number: u64, stated_s: u64) -> Release {
        let image = Some(Cid::of(&number.to_le_bytes()));
        Release { channel: channel("stable"), number, image, stated_s, holds_s: RELEASE_HOLDS_S }
    }

    fn channels(known: Vec<Signed<Release>>) -> Channels {
        Channels::new(Some(key(9).public()), Some(channel("stable")), known, watch::channel(None).0)
    }

    #[test]
    fn only_a_newer_statement_of_the_publishers_about_the_channel_counts() {
        let mut channels = channels(Vec::new());
        let mut learn = |release: &Release, by| channels.learn(NOW_S, Signed::sign(release, &key(by)));
        assert!(matches!(learn(&release(1, NOW_S), 8), Err(Unlearnt::Forged(_))));
        assert_eq!(learn(&release(5, NOW_S), 9).unwrap(), Some(channel("stable")));
        assert_eq!(learn(&release(5, NOW_S), 9).unwrap(), None);
        assert!(matches!(learn(&release(4, NOW_S), 9), Err(Unlearnt::Refused(Refusal::Older { .. }))));
        let stale = release(6, NOW_S - RELEASE_HOLDS_S - 1);
        assert!(matches!(learn(&stale, 9), Err(Unlearnt::Refused(Refusal::Stale { .. }))));
        let other = Release { channel: channel("other"), ..release(9, NOW_S) };
        assert_eq!(learn(&other, 9).unwrap(), None);
        assert_eq!(channels.follow(&channel("stable")).number, 5);
        assert_eq!(
            channels.newest.borrow().as_ref(),
            channels.get(&channel("stable")).map(|(_, signed)| signed)
        );
    }

    #[test]
    fn what_was_known_before_a_restart_is_not_taken_back() {
        let known = Signed::sign(&release(5, NOW_S - RELEASE_HOLDS_S - 9), &key(9));
        let mut channels = channels(vec![known, Signed::sign(&release(7, NOW_S), &key(8))]);
        assert_eq!(channels.follow(&channel("stable")).number, 5);
        let older = channels.learn(NOW_S, Signed::sign(&release(4, NOW_S), &key(9)));
        assert!(matches!(older, Err(Unlearnt::Refused(Refusal::Older { .. }))));
    }

    #[test]
    fn a_permit_counts_for_its_node_in_its_channel_in_time_and_by_the_publishers_key() {
        let channels = channels(Vec::new());
        let own = key(1).public().to_peer_id();
        let good = Permit {
            channel: channel("stable"),
            release: 5,
            attempt: 1,
            peer: own,
            stated_s: NOW_S - 60,
            holds_s: 60,
        };
        let check =
            |permit: &Permit, by, now_s| channels.check_permit(own, now_s, &Signed::sign(permit, &key(by)));
        assert_eq!(check(&good, 9, NOW_S), Ok(good.clone()));
        let refused = [
            (good.clone(), 8, NOW_S),
            (good.clone(), 9, NOW_S + 1),
            (Permit { peer: key(2).public().to_peer_id(), ..good.clone() }, 9, NOW_S),
            (Permit { channel: channel("other"), ..good.clone() }, 9, NOW_S),
        ];
        for (permit, by, now_s) in refused {
            assert!(check(&permit, by, now_s).is_err(), "{permit:?} by {by} at {now_s}");
        }
        let mut heard = Heard::default();
        let orders = |permit: &Permit, hold| Orders {
            channel: channel("stable"),
            permit: Some(Signed::sign(permit, &key(9))),
            hold,
            report_in_s: 5,
        };
        channels.hear(own, NOW_S, &orders(&good, false), &mut heard).unwrap();
        assert_eq!(heard, Heard { permit: Some(good.clone()), hold: false, answers: 1 });
        let stop = Orders { permit: None, ..orders(&good, true) };
        channels.hear(own, NOW_S, &stop, &mut heard).unwrap();
        assert_eq!(heard, Heard { permit: None, hold: true, answers: 2 });
    }
}
