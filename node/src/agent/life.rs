//! How far a node is with a release, as it is written down before each step takes effect.
//!
//! ```text
//! idle ──▶ fetching ──▶ staged ──▶ applying ──▶ confirming ──▶ confirmed
//!            ▲  ▲          │           │             │
//!            │  └──────────┘           └──▶ rolling_back ──▶ rolled_back, failed
//!            └── another release, or leave to try again
//! ```

use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};
use shoal_proto::cid::Cid;
use shoal_proto::fleet::Stage;
use shoal_proto::release::Release;

use crate::durable;

/// Version of the file; another one is refused.
const FORMAT: u32 = 1;

#[derive(Debug, thiserror::Error)]
pub enum Error {
    #[error(transparent)]
    File(#[from] durable::Error),
    #[error("{} is damaged: {why}; remove it to start afresh", .path.display())]
    Damaged { path: PathBuf, why: String },
}

/// Where a node is. **Invariant:** `step` grows with every change, and with every start of the agent.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Life {
    format: u32,
    pub step: u64,
    pub stage: Stage,
    /// The release that the stage is about, 0 before the first, and its image.
    pub release: u64,
    pub image: Option<String>,
    /// The attempt that was begun last, and the one that there is leave for.
    pub attempt: u32,
    pub permitted: u32,
    /// What the tree was before the attempt: what it goes back to.
    pub before: Option<Before>,
    /// When an unconfirmed tree goes back, in seconds since 1970.
    pub confirm_by_s: Option<u64>,
    /// The boot that the tree was changed in, when another one is to follow.
    pub boot: Option<String>,
    /// What failed last.
    pub error: Option<String>,
}

/// An image that a tree was.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Before {
    pub image: String,
    pub name: Option<String>,
}

impl Default for Life {
    fn default() -> Self {
        Self {
            format: FORMAT,
            step: 0,
            stage: Stage::Idle,
            release: 0,
            image: None,
            attempt: 0,
            permitted: 0,
            before: None,
            confirm_by_s: None,
            boot: None,
            error: None,
        }
    }
}

impl Life {
    pub fn path(data: &Path) -> PathBuf {
        data.join("agent.json")
    }

    pub fn load(data: &Path) -> Result<Self, Error> {
        let path = Self::path(data);
        let Some(bytes) = durable::read(&path)? else { return Ok(Self::default()) };
        let damaged = |why: String| Error::Damaged { path: path.clone(), why };
        let life: Self = serde_json::from_slice(&bytes).map_err(|error| damaged(error.to_string()))?;
        if life.format != FORMAT {
            return Err(damaged(format!("it has format {}, this build reads {FORMAT}", life.format)));
        }
        let mut images = life.image.iter().chain(life.before.iter().map(|before| &before.image));
        match images.find(|image| image.parse::<Cid>().is_err()) {
            Some(image) => Err(damaged(format!("{image:?} is no image"))),
            None => Ok(life),
        }
    }

    /// Takes a step: on disk when it returns.
    pub fn save(&mut self, data: &Path) -> Result<(), Error> {
        self.step += 1;
        let text = serde_json::to_vec_pretty(self).expect("a life is plain data");
        Ok(durable::write(&Self::path(data), &text, durable::PRIVATE)?)
    }

    /// The image of the release.
    pub fn image(&self) -> Option<Cid> {
        self.image.as_ref()?.parse().ok()
    }

    /// Whether the tree may be anything but one whole image.
    pub fn is_changing(&self) -> bool {
        matches!(self.stage, Stage::Applying | Stage::Confirming | Stage::RollingBack)
    }

    /// Turns to another release. `runs` is what the tree is.
    ///
    /// # Panics
    /// While the tree is changing.
    pub fn turn_to(&mut self, release: &Release, runs: Option<Cid>) {
        assert!(!self.is_changing(), "a tree that is {} turns to no other release", self.stage);
        let stage = match release.image {
            None => Stage::Idle,
            image if image == runs => Stage::Confirmed,
            Some(_) => Stage::Fetching,
        };
        *self = Self {
            step: self.step,
            stage,
            release: release.number,
            image: release.image.map(|image| image.to_string()),
            ..Self::default()
        };
    }

    /// Takes leave to apply; true when it is news. It stands until the attempt begins, or it is taken back.
    pub fn permit(&mut self, release: u64, attempt: u32) -> bool {
        let is_news = release == self.release && attempt > self.attempt && attempt != self.permitted;
        if is_news {
            self.permitted = attempt;
        }
        is_news
    }

    /// Leave is taken back; true when there was some that was not used.
    pub fn hold(&mut self) -> bool {
        let had_leave = self.may_apply() && !self.is_changing();
        if had_leave {
            self.permitted = self.attempt;
        }
        had_leave
    }

    pub fn may_apply(&self) -> bool {
        self.permitted > self.attempt
    }

    /// The next stage on the way, which must be one that this one leads to.
    ///
    /// # Panics
    /// When it is not.
    pub fn advance(&mut self, stage: Stage) {
        let may = matches!(
            (self.stage, stage),
            (Stage::Fetching, Stage::Staged)
                | (Stage::Staged | Stage::RolledBack | Stage::Failed, Stage::Fetching)
                | (Stage::Staged, Stage::Applying)
                | (Stage::Applying, Stage::Confirming)
                | (Stage::Confirming, Stage::Confirmed)
                | (Stage::Applying | Stage::Confirming, Stage::RollingBack)
                | (Stage::RollingBack, Stage::RolledBack | Stage::Failed)
        );
        assert!(may, "{} does not lead to {stage}", self.stage);
        if stage == Stage::Applying {
            self.attempt = self.permitted;
            self.error = None;
        }
        if !matches!(stage, Stage::Confirming) {
            self.confirm_by_s = None;
            self.boot = None;
        }
        self.stage = stage;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn release(number: u64, image: Option<&[u8]>) -> Release {
        Release { channel: "c".parse().unwrap(), number, image: image.map(Cid::of), stated_s: 0, holds_s: 0 }
    }

    fn staged() -> Life {
        let mut life = Life::default();
        life.turn_to(&release(3, Some(b"new")), Some(Cid::of(b"old")));
        life.advance(Stage::Staged);
        life
    }

    #[test]
    fn every_step_is_on_disk_and_newer_than_the_last() {
        let dir = tempfile::tempdir().unwrap();
        let mut life = Life::load(dir.path()).unwrap();
        assert_eq!(life, Life::default());
        life.turn_to(&release(3, Some(b"new")), None);
        life.save(dir.path()).unwrap();
        life.advance(Stage::Staged);
        life.save(dir.path()).unwrap();
        assert_eq!((Life::load(dir.path()).unwrap(), life.step), (life, 2));
        durable::write(&Life::path(dir.path()), b"{}", durable::PRIVATE).unwrap();
        let error = Life::load(dir.path()).unwrap_err().to_string();
        assert!(error.contains("agent.json is damaged"), "{error}");
    }

    #[test]
    fn leave_is_used_once_and_only_for_its_release() {
        let mut life = staged();
        assert!(!life.permit(2, 1) && !life.may_apply());
        assert!(life.permit(3, 1) && !life.permit(3, 1) && life.may_apply());
        life.advance(Stage::Applying);
        assert!(!life.permit(3, 1) && !life.may_apply(), "an attempt that was begun is not begun again");
        assert!(!life.hold(), "and is not held up");
        life.advance(Stage::RollingBack);
        life.advance(Stage::RolledBack);
        assert!(!life.permit(3, 1) && life.permit(3, 2));
        assert!(life.hold() && !life.may_apply());
        assert!(life.permit(3, 2), "what was held up may be allowed again");
        life.advance(Stage::Fetching);
        assert!(life.may_apply());
        // Another release asks for leave of its own.
        life.turn_to(&release(4, Some(b"newer")), Some(Cid::of(b"old")));
        assert!(!life.may_apply() && life.stage == Stage::Fetching && life.attempt == 0);
    }

    #[test]
    fn a_release_that_runs_already_is_confirmed_and_a_withdrawn_one_is_nothing_to_do() {
        let mut life = staged();
        life.turn_to(&release(4, Some(b"old")), Some(Cid::of(b"old")));
        assert_eq!(life.stage, Stage::Confirmed);
        life.turn_to(&release(5, None), Some(Cid::of(b"old")));
        assert_eq!((life.stage, life.image()), (Stage::Idle, None));
    }

    #[test]
    #[should_panic(expected = "staged does not lead to confirmed")]
    fn no_stage_is_left_out() {
        staged().advance(Stage::Confirmed);
    }

    #[test]
    #[should_panic(expected = "a tree that is applying turns to no other release")]
    fn a_changing_tree_turns_to_no_other_release() {
        let mut life = staged();
        life.permit(3, 1);
        life.advance(Stage::Applying);
        life.turn_to(&release(4, None), None);
    }
}
