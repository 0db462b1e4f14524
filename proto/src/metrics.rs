//! What is measured, by one name everywhere: the seeder, the agents, the simulator, the dashboards.

/// A figure that somebody may watch.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Metric {
    /// As Prometheus scrapes it; of a counter, without the `_total` that its text has.
    pub name: &'static str,
    pub help: &'static str,
    pub kind: Kind,
    pub labels: &'static [&'static str],
    /// The field of the simulator's report that says the same of a run.
    pub simulated: Option<&'static str>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// Only grows.
    Counter,
    Gauge,
}

pub const NODES: Metric =
    gauge("shoal_nodes", "Nodes of the fleet by the stage that they reported last", &["stage"], None);
pub const NODES_SILENT: Metric =
    gauge("shoal_nodes_silent", "Nodes that have not reported for five minutes", &[], None);
pub const SENT_BYTES: Metric =
    counter("shoal_seeder_sent_bytes", "Bytes of pieces that the seeder sent", &[], None);
pub const RECEIVED_BYTES: Metric = gauge(
    "shoal_nodes_received_bytes",
    "Bytes of pieces that the nodes received since their agents began, by where they came from",
    &["from"],
    None,
);
pub const ROLLOUT_PHASE: Metric = gauge(
    "shoal_rollout_phase",
    "1 for the phase that the rollout of a channel is in",
    &["channel", "phase"],
    Some("phase"),
);
pub const ROLLOUT_WAVE: Metric =
    gauge("shoal_rollout_waves_passed", "Waves whose gate was passed", &["channel"], Some("waves_passed"));
pub const ROLLOUT_TOUCHED: Metric = gauge(
    "shoal_rollout_nodes_touched",
    "Nodes that had leave to apply the release",
    &["channel"],
    Some("nodes_touched"),
);
pub const ROLLOUT_NODES: Metric = gauge(
    "shoal_rollout_nodes",
    "Nodes of the waves that began, by how they stand",
    &["channel", "standing"],
    None,
);

/// All that a seeder exports.
pub const SEEDER: &[Metric] = &[
    NODES,
    NODES_SILENT,
    SENT_BYTES,
    RECEIVED_BYTES,
    ROLLOUT_PHASE,
    ROLLOUT_WAVE,
    ROLLOUT_TOUCHED,
    ROLLOUT_NODES,
];

const fn gauge(
    name: &'static str,
    help: &'static str,
    labels: &'static [&'static str],
    simulated: Option<&'static str>,
) -> Metric {
    Metric { name, help, kind: Kind::Gauge, labels, simulated }
}

const fn counter(
    name: &'static str,
    help: &'static str,
    labels: &'static [&'static str],
    simulated: Option<&'static str>,
) -> Metric {
    Metric { name, help, kind: Kind::Counter, labels, simulated }
}

impl Metric {
    /// The name in the text that is scraped.
    pub fn exported(&self) -> String {
        match self.kind {
            Kind::Counter => format!("{}_total", self.name),
            Kind::Gauge => self.name.to_owned(),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_and_labels_are_what_prometheus_takes() {
        let allowed = |name: &str| name.bytes().all(|byte| byte.is_ascii_lowercase() || byte == b'_');
        for metric in SEEDER {
            assert!(metric.name.starts_with("shoal_") && allowed(metric.name), "{}", metric.name);
            assert!(metric.labels.iter().all(|label| allowed(label)), "{}", metric.name);
            assert_eq!(SEEDER.iter().filter(|other| other.name == metric.name).count(), 1, "{}", metric.name);
        }
        assert_eq!(SENT_BYTES.exported(), "shoal_seeder_sent_bytes_total");
    }
}
