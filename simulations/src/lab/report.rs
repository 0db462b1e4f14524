//! What a run found.

use std::fmt::Write;

use serde::Serialize;
use serde_json::{Map, Value};

/// Sizes in bytes, times in seconds, rates in bits per second.
#[derive(Debug, Serialize)]
pub(super) struct Report {
    pub(super) scenario: String,
    pub(super) rate: u64,
    pub(super) pieces: u64,
    pub(super) raw_bytes: u64,
    /// Of the content and of the manifest.
    pub(super) compressed_bytes: u64,
    /// What the compressed bytes take on one link.
    pub(super) wire_s: f64,
    pub(super) nodes: Vec<Node>,
    /// Every node that was left alone has the tree.
    pub(super) verified: bool,
    pub(super) last_s: f64,
    pub(super) median_s: f64,
    /// Of nodes that are neither slow nor late nor killed: their last finish, from the common start.
    pub(super) last_over_wire: f64,
    pub(super) median_over_wire: f64,
    /// Payload from the seeder, of the compressed bytes; of all nodes that finished.
    pub(super) seeder_copies: f64,
    /// What the seeder's link carried until the last finish, headers and all, of the compressed bytes.
    pub(super) seeder_wire_copies: f64,
    pub(super) seeder_packets: u64,
    /// Packets that hosts' own queues threw away.
    pub(super) drops: u64,
    /// Of all payload that came.
    pub(super) duplicate_ratio: f64,
    pub(super) seeder_cpu_s: f64,
    pub(super) nodes_cpu_s: f64,
    /// Processor time of all programs, of what the machine had until the last finish.
    pub(super) cpu_utilisation: f64,
    /// Other tools on the same network.
    pub(super) tools: Vec<Value>,
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
    /// What `install` printed.
    #[serde(flatten)]
    pub(super) install: Map<String, Value>,
}

impl Node {
    pub(super) fn number(&self, field: &str) -> f64 {
        self.install.get(field).and_then(Value::as_f64).unwrap_or(0.0)
    }
}

impl Report {
    pub(super) fn text(&self) -> String {
        let mut text = String::new();
        let mut line = |name: &str, value: String| {
            writeln!(text, "{name:<22} {value}").expect("a string grows");
        };
        let finished = self.nodes.iter().filter(|node| node.finish_s.is_some()).count();
        line(
            "nodes",
            format!("{finished} of {} finished at {} Mbit/s", self.nodes.len(), self.rate as f64 / 1e6),
        );
        line("image", format!("{} bytes compressed in {} pieces", self.compressed_bytes, self.pieces));
        line(
            "last / wire",
            format!("{:.3}  ({:.2} s of {:.2} s)", self.last_over_wire, self.last_s, self.wire_s),
        );
        line("median / wire", format!("{:.3}", self.median_over_wire));
        line(
            "seeder copies",
            format!("{:.3}  ({:.3} on the wire)", self.seeder_copies, self.seeder_wire_copies),
        );
        line("duplicates", format!("{:.3} %", self.duplicate_ratio * 100.0));
        line(
            "processor",
            format!(
                "{:.1} s nodes, {:.1} s seeder, {:.0} % of the machine",
                self.nodes_cpu_s,
                self.seeder_cpu_s,
                self.cpu_utilisation * 100.0
            ),
        );
        line("dropped packets", self.drops.to_string());
        line("verified", if self.verified { "every tree" } else { "NOT every tree" }.to_owned());
        text
    }
}

/// The middle of some values, the upper of two.
pub(super) fn median(values: &mut [f64]) -> f64 {
    values.sort_by(f64::total_cmp);
    values.get(values.len() / 2).copied().unwrap_or(f64::NAN)
}
