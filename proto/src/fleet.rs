//! What a node of a fleet says of itself, and what it is told.

use std::collections::BTreeSet;
use std::fmt;

use serde::{Deserialize, Serialize};

use crate::cid::Cid;
use crate::release::{Channel, Permit};
use crate::signing::Signed;
use crate::zone::Zone;

/// Most bytes of a machine's name, and of a group's.
pub const NAME_BYTES_MAX: usize = 64;
/// Most groups that a node is in.
pub const GROUPS_MAX: usize = 8;
/// Most bytes of a reason.
pub const REASON_BYTES_MAX: usize = 256;

/// How far a node is with a release.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Stage {
    /// There is no release that it has to get to.
    #[default]
    Idle,
    /// What it lacks is on its way.
    Fetching,
    /// Everything is here: it waits for its window and for leave.
    Staged,
    /// The tree is changing.
    Applying,
    /// The tree is the release; whether the machine is well is being found out.
    Confirming,
    Confirmed,
    /// It is not well, and the tree is changing back.
    RollingBack,
    RolledBack,
    /// It stands still: a person has to look.
    Failed,
}

/// A node's newest word of itself.
///
/// `order` says which of two is newer, however they arrive.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Report {
    pub order: Order,
    /// The machine's name: for people, and for lists of machines.
    pub host: String,
    pub groups: BTreeSet<String>,
    pub rack: Zone,
    pub channel: Channel,
    /// The release that the stage is about, 0 for none.
    pub release: u64,
    /// The attempt at it that was begun last, 0 for none.
    pub attempt: u32,
    /// What the tree is; `None` while it is nothing whole.
    pub image: Option<Cid>,
    pub stage: Stage,
    pub progress: Progress,
    /// Why it waits.
    pub waits: Option<String>,
    /// What failed last.
    pub error: Option<String>,
}

/// The steps of a node's life, and the reports since the last of them. Steps outlive the process.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub struct Order {
    pub step: u64,
    pub beat: u64,
}

/// How the transfer goes. Bytes as they travel, since the node's process began.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Progress {
    /// Thousandths of what is to be fetched.
    pub fetched_permille: u16,
    pub down_bytes_per_s: u64,
    pub up_bytes_per_s: u64,
    pub from_seeder_bytes: u64,
    pub from_peers_bytes: u64,
    pub sent_bytes: u64,
}

/// "I follow this channel, and know this much of it."
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Follow {
    pub channel: Channel,
    /// Of the newest known release, 0 for none, and when it was stated.
    pub number: u64,
    pub stated_s: u64,
}

/// What a node is told when it reports.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Orders {
    pub channel: Channel,
    /// Leave to apply, for the node to verify.
    pub permit: Option<Signed<Permit>>,
    /// Begin nothing, whatever was permitted.
    pub hold: bool,
    /// When to report again unless something changes.
    pub report_in_s: u32,
}

impl Stage {
    pub const ALL: [Self; 9] = [
        Self::Idle,
        Self::Fetching,
        Self::Staged,
        Self::Applying,
        Self::Confirming,
        Self::Confirmed,
        Self::RollingBack,
        Self::RolledBack,
        Self::Failed,
    ];

    pub fn name(self) -> &'static str {
        match self {
            Self::Idle => "idle",
            Self::Fetching => "fetching",
            Self::Staged => "staged",
            Self::Applying => "applying",
            Self::Confirming => "confirming",
            Self::Confirmed => "confirmed",
            Self::RollingBack => "rolling_back",
            Self::RolledBack => "rolled_back",
            Self::Failed => "failed",
        }
    }
}

impl fmt::Display for Stage {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(self.name())
    }
}

/// Cuts a text to at most so many bytes, at a character's border.
pub fn cut(text: &str, bytes_max: usize) -> &str {
    let most = bytes_max.min(text.len());
    let end = (0..=most).rev().find(|end| text.is_char_boundary(*end)).unwrap_or(0);
    &text[..end]
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_text_is_cut_between_characters() {
        assert_eq!([cut("naïve", 3), cut("naïve", 4), cut("naïve", 9)], ["na", "naï", "naïve"]);
    }
}
