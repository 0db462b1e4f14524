//! The driver's dealings with a fleet: how a release gets around, how a report gets to the seeder and orders back.
//!
//! A node that the seeder has no room for visits it: it dials, is told so, and gives its report before it leaves. The
//! seeder says when the next one is due, so that it decides itself how much it has to hear.

use super::*;
use crate::clock::unix_s;
use crate::peer::fleet::{Heard, Unlearnt};
use shoal_proto::fleet::{Follow, Orders, Report};
use shoal_proto::release::{Channel, Release};

/// Between two reports at least, whatever changes, and at most, whatever the seeder said.
const REPORT_INTERVAL_MIN: Duration = Duration::from_secs(1);
const REPORT_INTERVAL_MAX: Duration = Duration::from_secs(3600);
/// How long an answer may take before the report is given again, and the longest wait when none ever comes.
const ANSWER_MIN: Duration = Duration::from_secs(5);
const ANSWER_MAX: Duration = Duration::from_secs(60);

/// What this node says of itself, and to whom it has said it.
#[derive(Debug)]
pub(super) struct Reporting {
    latest: Option<Report>,
    /// Reports that were given, so that each is newer than the last.
    beats: u64,
    /// When the next one is given; `None` while there is nothing to say.
    due: Option<Time>,
    /// The last was given and is not answered.
    is_open: bool,
    given_at: Time,
    patience: Duration,
    heard: watch::Sender<Heard>,
}

impl Reporting {
    pub(super) fn new(heard: watch::Sender<Heard>) -> Self {
        Self {
            latest: None,
            beats: 0,
            due: None,
            is_open: false,
            given_at: Time::ZERO,
            patience: ANSWER_MIN,
            heard,
        }
    }

    pub(super) fn next_timeout(&self) -> Option<Time> {
        self.due
    }

    /// Whether a connection is worth keeping a moment for the answer.
    pub(super) fn awaits_answer(&self) -> bool {
        self.is_open
    }

    /// Takes what there is to say now; at once when that is news.
    fn set(&mut self, now: Time, report: Report, is_news: bool) {
        if is_news || self.latest.is_none() {
            let soon = if self.beats == 0 { now } else { now.max(self.given_at + REPORT_INTERVAL_MIN) };
            self.due = Some(self.due.map_or(soon, |due| due.min(soon)));
            self.patience = ANSWER_MIN;
        }
        self.latest = Some(report);
    }

    /// The report to give now.
    fn give(&mut self, now: Time) -> Option<Report> {
        let mut report = self.latest.clone()?;
        self.beats += 1;
        report.order.beat = self.beats;
        self.is_open = true;
        self.given_at = now;
        // Until it is answered.
        self.due = Some(now + self.patience);
        Some(report)
    }
}

impl Driver {
    /// What this peer has to say at the beginning of a conversation.
    pub(super) fn introduce_fleet(&mut self, key: PeerKey) {
        if let Some(channel) = self.channels.followed() {
            let follow = self.channels.follow(channel);
            self.send(key, Frame::Follow(follow));
        }
        let is_reporter = self.links.get(&key).is_some_and(|link| self.discovery.is_bootstrap(&link.peer));
        // A seeder that was away knows nothing of this node.
        if is_reporter {
            self.give_report();
        }
    }

    /// A peer follows a channel. Who knows less is told, and who knows more is asked.
    pub(super) fn handle_follow(&mut self, key: PeerKey, follow: Follow) {
        let own = self.channels.follow(&follow.channel);
        let matters = self.channels.followed() == Some(&follow.channel) || self.role == PeerRole::Seeder;
        let Some(link) = self.links.get_mut(&key) else { return };
        let is_behind = matters && (own.number, own.stated_s) < (follow.number, follow.stated_s);
        let channel = follow.channel.clone();
        link.follows = Some(follow);
        if is_behind {
            self.send(key, Frame::Follow(own));
        } else {
            self.tell_release(key, &channel);
        }
    }

    /// Tells a peer that follows the channel of its newest release, if it knows an older one.
    fn tell_release(&mut self, key: PeerKey, channel: &Channel) {
        let Some((release, signed)) = self.channels.get(channel) else { return };
        let Some(link) = self.links.get_mut(&key) else { return };
        let Some(follow) = link.follows.as_mut().filter(|follow| follow.channel == *channel) else { return };
        if release.is_newer_than(follow.number, follow.stated_s) {
            (follow.number, follow.stated_s) = (release.number, release.stated_s);
            let signed = signed.clone();
            self.send(key, Frame::Release(signed));
        }
    }

    /// A peer told of a release.
    pub(super) fn handle_release(&mut self, key: PeerKey, told: Signed<Release>) {
        match self.channels.learn(unix_s(), told) {
            Ok(Some(channel)) => self.spread_release(&channel),
            Ok(None) => {}
            Err(Unlearnt::Refused(why)) => tracing::warn!(%why, "a release was refused"),
            Err(Unlearnt::Forged(why)) => {
                self.fault(key, &format!("it told a release that does not count: {why}"));
            }
        }
    }

    /// The publisher's own word, here.
    pub(super) fn set_release(&mut self, told: Signed<Release>) -> Result<(), String> {
        if let Some(channel) = self.channels.learn(unix_s(), told).map_err(|why| why.to_string())? {
            self.spread_release(&channel);
        }
        Ok(())
    }

    fn spread_release(&mut self, channel: &Channel) {
        if let Some((release, _)) = self.channels.get(channel) {
            tracing::info!(%channel, number = release.number, "a new word about a channel");
        }
        let keys: Vec<PeerKey> = self.links.keys().copied().collect();
        keys.into_iter().for_each(|key| self.tell_release(key, channel));
    }

    pub(super) fn set_report(&mut self, report: Report, is_news: bool) {
        let now = self.now();
        self.reporting.set(now, report, is_news);
    }

    /// Gives the report, or goes where it can be given.
    pub(super) fn report_if_due(&mut self) {
        if self.reporting.due.is_some_and(|due| due <= self.now()) {
            if self.reporting.is_open {
                self.reporting.patience = (self.reporting.patience * 2).min(ANSWER_MAX);
            }
            self.give_report();
        }
    }

    fn give_report(&mut self) {
        let now = self.now();
        let Some(report) = self.reporting.give(now) else { return };
        for seeder in self.discovery.bootstrap() {
            match self.by_peer.get(&seeder).copied() {
                Some(key) if self.links[&key].hello.is_some() => {
                    self.send(key, Frame::Report(Box::new(report.clone())));
                }
                // Its hello is on its way, and the report goes back.
                Some(_) => {}
                None => self.find_and_dial(seeder, Vec::new()),
            }
        }
    }

    /// A node says how it is doing.
    pub(super) fn handle_report(&self, key: PeerKey, report: Report) {
        let (Some(link), Some(reports)) = (self.links.get(&key), &self.reports) else { return };
        if reports.try_send((link.peer, report)).is_err() {
            tracing::debug!(peer = %link.peer, "a report found no room");
        }
    }

    /// What this node is told. Only a peer of the ticket is heard, and of its word only what the publisher signed gives
    /// leave to do something.
    pub(super) fn handle_orders(&mut self, key: PeerKey, orders: &Orders) {
        let Some(link) = self.links.get(&key).filter(|link| self.discovery.is_bootstrap(&link.peer)) else {
            return;
        };
        let (peer, own, now) = (link.peer, *self.swarm.local_peer_id(), self.now());
        let mut heard = self.reporting.heard.borrow().clone();
        if let Err(why) = self.channels.hear(own, unix_s(), orders, &mut heard) {
            tracing::warn!(%peer, why, "a permit does not count");
        }
        self.reporting.heard.send_replace(heard);
        self.reporting.is_open = false;
        self.reporting.patience = ANSWER_MIN;
        let wait = Duration::from_secs(orders.report_in_s.into());
        // Not all at the same time.
        let wait =
            wait.clamp(REPORT_INTERVAL_MIN, REPORT_INTERVAL_MAX).mul_f64(rand::rng().random_range(0.9..1.1));
        self.reporting.due = Some(now + wait);
    }

    pub(super) fn send_orders(&mut self, peer: PeerId, orders: Orders) {
        if let Some(key) = self.by_peer.get(&peer).copied() {
            self.send(key, Frame::Orders(orders));
        }
    }
}
