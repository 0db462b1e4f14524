//! What a run found.

mod table;

use serde::Serialize;
use serde_json::{Map, Value};

use crate::lab::machine::Machine;

/// Sizes in bytes, times in seconds, rates in bits per second.
#[derive(Debug, Serialize)]
pub(super) struct Report {
    /// What printed this.
    pub(super) command: String,
    pub(super) machine: Machine,
    pub(super) scenario: String,
    pub(super) rate: u64,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) racks: Option<RacksReport>,
    #[serde(flatten)]
    pub(super) ours: Ours,
    /// The same with nodes that know no racks.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) without_rack_labels: Option<Ours>,
    /// Other tools on the same network.
    pub(super) tools: Vec<ToolReport>,
}

#[derive(Debug, Serialize)]
pub(super) struct RacksReport {
    pub(super) racks: usize,
    pub(super) hosts_each: usize,
    pub(super) ratio: f64,
    /// Of each rack, each way.
    pub(super) uplink_rate: u64,
}

/// What any tool took, from the moment at which all began until the last finish.
#[derive(Debug, Serialize)]
pub(super) struct Figures {
    /// What one host needs: all of the image or of the archive; of an update what the host fetched, on average.
    pub(super) compressed_bytes: f64,
    /// What the compressed bytes take on one link.
    pub(super) wire_s: f64,
    /// Of nodes that are neither slow nor late nor killed: their last finish, from the common start.
    pub(super) last_s: Option<f64>,
    pub(super) median_s: Option<f64>,
    pub(super) last_over_wire: Option<f64>,
    pub(super) median_over_wire: Option<f64>,
    /// What the seeder's link carried, headers and all.
    pub(super) seeder_wire_bytes: u64,
    /// The same, of the compressed bytes.
    pub(super) seeder_wire_copies: f64,
    pub(super) seeder_packets: u64,
    /// What came over each node's link, headers and all, on average.
    pub(super) node_wire_bytes: f64,
    /// What came into each rack, headers and all, of the compressed bytes.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub(super) rack_copies: Vec<f64>,
    /// Packets that queues threw away.
    pub(super) drops: u64,
    pub(super) seeder_cpu_s: f64,
    pub(super) nodes_cpu_s: f64,
    /// Processor time of all programs, of what the machine had.
    pub(super) cpu_utilisation: f64,
}

/// What Shoal did.
#[derive(Debug, Serialize)]
pub(super) struct Ours {
    pub(super) pieces: u64,
    pub(super) raw_bytes: u64,
    /// Of the whole image, compressed: of the content and of the manifest.
    pub(super) image_bytes: u64,
    #[serde(flatten)]
    pub(super) figures: Figures,
    /// Every node that was left alone has the tree.
    pub(super) verified: bool,
    /// Payload from the seeder, of the compressed bytes; of all nodes that finished.
    pub(super) seeder_copies: f64,
    /// Of all payload that came.
    pub(super) duplicate_ratio: f64,
    /// Of the node that took most memory.
    pub(super) peak_rss_bytes: f64,
    pub(super) nodes: Vec<Node>,
}

#[derive(Debug, Serialize)]
pub(super) struct Node {
    pub(super) host: usize,
    pub(super) verified: bool,
    pub(super) killed: bool,
    /// Neither slow nor late.
    pub(super) usual: bool,
    /// From its own start to the applied tree.
    pub(super) finish_s: Option<f64>,
    pub(super) cpu_s: f64,
    /// What `install` or `update` printed.
    #[serde(flatten)]
    pub(super) said: Map<String, Value>,
}

impl Node {
    pub(super) fn number(&self, field: &str) -> f64 {
        self.said.get(field).and_then(Value::as_f64).unwrap_or(0.0)
    }
}

/// What another tool did.
#[derive(Debug, Serialize)]
pub(super) struct ToolReport {
    pub(super) tool: &'static str,
    /// None when it did not get as far as the common start.
    #[serde(flatten)]
    pub(super) figures: Option<Figures>,
    /// Every host has a tree.
    pub(super) finished: bool,
    /// Every host's tree equals the source.
    pub(super) verified: bool,
    /// What went wrong first.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) failure: Option<String>,
    pub(super) nodes: Vec<ToolNode>,
}

#[derive(Debug, Serialize)]
pub(super) struct ToolNode {
    pub(super) host: usize,
    pub(super) verified: bool,
    /// The first path at which the tree is not the source's.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) differs_at: Option<String>,
    pub(super) finish_s: Option<f64>,
    pub(super) cpu_s: f64,
}

impl ToolReport {
    /// Of a tool that did not get as far as the common start.
    pub(super) fn failed(tool: &'static str, error: &anyhow::Error) -> Self {
        let failure = Some(format!("{error:#}"));
        Self { tool, figures: None, finished: false, verified: false, failure, nodes: Vec::new() }
    }
}

impl Report {
    /// Whether our own nodes have the tree, and those of the comparison without labels.
    pub(super) fn is_verified(&self) -> bool {
        self.ours.verified && self.without_rack_labels.as_ref().is_none_or(|ours| ours.verified)
    }
}

/// The middle of some values, the upper of two.
pub(super) fn median(values: &mut [f64]) -> Option<f64> {
    values.sort_by(f64::total_cmp);
    values.get(values.len() / 2).copied()
}
