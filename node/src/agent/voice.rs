//! What an agent says of itself: to the seeder, as long as it has a place in the swarm.

use std::sync::Arc;
use std::time::{Duration, Instant};

use shoal_proto::cid::Cid;
use shoal_proto::fleet::{Order, Progress, Report, Stage};
use tokio::sync::watch;
use tokio::task::AbortHandle;

use super::config::Config;
use super::life::Life;
use crate::peer::Observer;
use crate::progress::{self, Meter};

/// How often the progress of a transfer is looked at.
const LOOK_INTERVAL: Duration = Duration::from_secs(2);

/// Where an agent is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct View {
    step: u64,
    stage: Stage,
    release: u64,
    attempt: u32,
    /// What the tree is, when that is one whole image.
    image: Option<Cid>,
    error: Option<String>,
    pub(super) waits: Option<String>,
}

impl View {
    pub(super) fn new(life: &Life, image: Option<Cid>) -> Self {
        Self {
            step: life.step,
            stage: life.stage,
            release: life.release,
            attempt: life.attempt,
            image,
            error: life.error.clone(),
            waits: None,
        }
    }
}

/// Speaks until it is dropped.
#[derive(Debug)]
pub(super) struct Voice(AbortHandle);

impl Voice {
    pub(super) fn start(config: Arc<Config>, observer: Observer, view: watch::Receiver<View>) -> Self {
        Self(tokio::spawn(speak(config, observer, view)).abort_handle())
    }
}

impl Drop for Voice {
    fn drop(&mut self) {
        self.0.abort();
    }
}

async fn speak(config: Arc<Config>, observer: Observer, mut view: watch::Receiver<View>) {
    let mut meter = Meter::new(Instant::now());
    let mut sent_before = (Instant::now(), 0);
    let mut said: Option<View> = None;
    loop {
        let Ok(status) = observer.status().await else { return };
        let now = Instant::now();
        let snapshot = meter.snapshot(now, progress::Stage::Pieces, &status);
        let sent_bytes = snapshot.traffic.sent_bytes;
        let millis = u64::try_from((now - sent_before.0).as_millis()).unwrap_or(u64::MAX).max(1);
        let up_bytes_per_s = sent_bytes.saturating_sub(sent_before.1).saturating_mul(1000) / millis;
        sent_before = (now, sent_bytes);
        let shown = view.borrow_and_update().clone();
        let permille = snapshot.held.saturating_mul(1000) / snapshot.pieces.max(1);
        let report = Report {
            order: Order { step: shown.step, beat: 0 },
            host: config.host.clone(),
            groups: config.groups.clone(),
            rack: config.join.rack.clone(),
            channel: config.channel.clone(),
            release: shown.release,
            attempt: shown.attempt,
            image: shown.image,
            stage: shown.stage,
            progress: Progress {
                fetched_permille: u16::try_from(permille.min(1000)).expect("at most a thousand"),
                down_bytes_per_s: snapshot.rate_bytes_per_s,
                up_bytes_per_s,
                from_seeder_bytes: snapshot.traffic.from_seeders_bytes,
                from_peers_bytes: snapshot.traffic.from_peers_bytes,
                sent_bytes,
            },
            waits: shown.waits.clone().or(snapshot.waiting.filter(|_| shown.stage == Stage::Fetching)),
            error: shown.error.clone(),
        };
        let is_news = said.as_ref().is_none_or(|said| (said.step, said.stage) != (shown.step, shown.stage));
        said = Some(shown);
        if observer.report(report, is_news).await.is_err() {
            return;
        }
        tokio::select! {
            changed = view.changed() => {
                if changed.is_err() {
                    return;
                }
            }
            () = tokio::time::sleep(LOOK_INTERVAL) => {}
        }
    }
}
