//! What a rollout remembers of its nodes, and what it says of its decisions.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use super::as_text;
use super::plan::Unavailable;
use crate::cid::Cid;
use crate::fleet::{Order, Stage};
use crate::time::Time;
use crate::zone::Zone;

/// What is known of a node.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Node {
    pub host: String,
    pub groups: Vec<String>,
    #[serde(with = "as_text")]
    pub rack: Zone,
    #[serde(with = "as_text::option")]
    pub image: Option<Cid>,
    pub stage: Stage,
    pub order: Order,
    /// The wave that took it.
    pub wave: Option<usize>,
    /// How often it was told, or was to be.
    pub attempt: u32,
    pub standing: Standing,
}

/// How far a node is in the rollout.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Standing {
    /// No wave took it.
    Outside,
    /// Its wave has begun; it waits for others to be well again.
    Queued,
    Told {
        at: Time,
    },
    Healthy,
    Failed {
        why: String,
        is_down: bool,
    },
}

/// A decision, or what led to one. Numbered from 1 without a gap.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Event {
    pub number: u64,
    pub at: Time,
    #[serde(flatten)]
    pub what: What,
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "event", rename_all = "snake_case")]
pub enum What {
    Started {
        release: u64,
        image: String,
        waves: Vec<String>,
    },
    WaveBegan {
        wave: usize,
        nodes: usize,
    },
    /// Everybody that it would take is through already.
    WaveSkipped {
        wave: usize,
    },
    Told {
        wave: usize,
        peer: String,
        host: String,
        attempt: u32,
    },
    Healthy {
        wave: usize,
        peer: String,
        host: String,
    },
    Failed {
        wave: usize,
        peer: String,
        host: String,
        why: String,
    },
    /// As many are well as need to be: now they have to stay so.
    Soaking {
        wave: usize,
    },
    GatePassed {
        wave: usize,
        nodes: usize,
        healthy: usize,
        failed: usize,
    },
    Paused,
    Resumed,
    Halted {
        why: String,
    },
    Retried {
        nodes: usize,
    },
    Completed {
        healthy: usize,
        failed: usize,
    },
}

/// How a wave is doing.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Tally {
    pub nodes: usize,
    pub queued: usize,
    pub told: usize,
    pub healthy: usize,
    pub failed: usize,
}

/// Nodes that have leave to apply and are not well again.
#[derive(Debug, Default)]
pub(super) struct Unwell {
    pub(super) in_all: u32,
    pub(super) of_group: BTreeMap<String, u32>,
    pub(super) of_rack: BTreeMap<String, u32>,
}

impl Unwell {
    pub(super) fn of<'a>(nodes: impl Iterator<Item = &'a Node>) -> Self {
        let mut this = Self::default();
        for node in nodes {
            if matches!(node.standing, Standing::Told { .. } | Standing::Failed { is_down: true, .. }) {
                this.add(node);
            }
        }
        this
    }

    pub(super) fn has_room_for(&self, max: &Unavailable, node: &Node) -> bool {
        let fits = |max: Option<u32>, count: u32| max.is_none_or(|max| count < max);
        let count = |counts: &BTreeMap<String, u32>, name: &str| counts.get(name).copied().unwrap_or(0);
        fits(max.in_all, self.in_all)
            && node.groups.iter().all(|group| fits(max.of_group, count(&self.of_group, group)))
            && (node.rack.is_unknown() || fits(max.of_rack, count(&self.of_rack, node.rack.as_str())))
    }

    pub(super) fn add(&mut self, node: &Node) {
        self.in_all += 1;
        for group in &node.groups {
            *self.of_group.entry(group.clone()).or_default() += 1;
        }
        if !node.rack.is_unknown() {
            *self.of_rack.entry(node.rack.to_string()).or_default() += 1;
        }
    }
}
