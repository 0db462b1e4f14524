//! The fleet as Prometheus scrapes it, under the names of [`shoal_proto::metrics`].

use std::sync::atomic::AtomicU64;

use prometheus_client::encoding::text::encode;
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::gauge::Gauge;
use prometheus_client::registry::Registry;
use shoal_proto::fleet::Stage;
use shoal_proto::metrics::{
    self, Metric, NODES, NODES_SILENT, RECEIVED_BYTES, ROLLOUT_NODES, ROLLOUT_PHASE, ROLLOUT_TOUCHED,
    ROLLOUT_WAVE, SENT_BYTES,
};

use crate::fleet::FleetReport;

/// A node that has not reported for so long is silent.
const SILENT_S: u64 = 300;
const PHASES: [&str; 4] = ["running", "paused", "halted", "complete"];

type Labels = Vec<(&'static str, String)>;
type Gauges = Family<Labels, Gauge<i64>>;

pub(super) fn text(report: &FleetReport) -> String {
    let mut registry = Registry::default();
    let mut gauges = |metric: Metric| {
        let family = Gauges::default();
        registry.register(metric.name, metric.help, family.clone());
        move |labels: &[&str], value: usize| {
            let labels = metric.labels.iter().copied().zip(labels.iter().map(|label| (*label).to_owned()));
            family.get_or_create(&labels.collect()).set(i64::try_from(value).unwrap_or(i64::MAX));
        }
    };
    let nodes = gauges(NODES);
    for stage in Stage::ALL {
        nodes(&[stage.name()], report.stages.get(stage.name()).copied().unwrap_or(0));
    }
    gauges(NODES_SILENT)(&[], report.nodes.iter().filter(|node| node.ago_s >= SILENT_S).count());
    let received = gauges(RECEIVED_BYTES);
    let sum = |bytes: fn(&crate::fleet::NodeReport) -> u64| {
        usize::try_from(report.nodes.iter().map(bytes).sum::<u64>()).unwrap_or(usize::MAX)
    };
    received(&["seeder"], sum(|node| node.progress.from_seeder_bytes));
    received(&["peers"], sum(|node| node.progress.from_peers_bytes));
    let (phases, waves) = (gauges(ROLLOUT_PHASE), gauges(ROLLOUT_WAVE));
    let (touched, standings) = (gauges(ROLLOUT_TOUCHED), gauges(ROLLOUT_NODES));
    for rollout in &report.rollouts {
        let channel = rollout.channel.as_str();
        for phase in PHASES {
            phases(&[channel, phase], usize::from(rollout.phase == phase));
        }
        waves(&[channel], rollout.waves.iter().filter(|wave| wave.state == "done").count());
        touched(&[channel], rollout.nodes_touched);
        let tallies = || rollout.waves.iter().map(|wave| wave.tally);
        standings(&[channel, "queued"], tallies().map(|tally| tally.queued).sum());
        standings(&[channel, "told"], tallies().map(|tally| tally.told).sum());
        standings(&[channel, "healthy"], tallies().map(|tally| tally.healthy).sum());
        standings(&[channel, "failed"], tallies().map(|tally| tally.failed).sum());
    }
    let sent = Counter::<u64, AtomicU64>::default();
    sent.inc_by(report.sent_bytes);
    registry.register(SENT_BYTES.name, SENT_BYTES.help, sent);
    debug_assert_eq!(metrics::SEEDER.len(), 8, "each is set above");
    let mut text = String::new();
    encode(&mut text, &registry).expect("a string takes any text");
    text
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::rollouts::RolloutReport;
    use std::collections::{BTreeMap, BTreeSet};

    fn report() -> FleetReport {
        let rollout = RolloutReport {
            channel: "stable".into(),
            release: 3,
            image: String::new(),
            phase: "halted".into(),
            why: None,
            seeder: String::new(),
            nodes: 9,
            nodes_touched: 4,
            waves: Vec::new(),
            failed: Vec::new(),
        };
        FleetReport {
            stages: BTreeMap::from([("staged".to_owned(), 7)]),
            rollouts: vec![rollout],
            sent_bytes: 99,
            ..FleetReport::default()
        }
    }

    /// The names of the samples in a text; an error when a line is not of the format.
    fn samples(text: &str) -> Result<BTreeSet<String>, String> {
        let body = text.strip_suffix("# EOF\n").ok_or("it does not end")?;
        let mut names = BTreeSet::new();
        for line in body.lines() {
            if let Some(comment) = line.strip_prefix("# ") {
                let known = ["HELP ", "TYPE ", "UNIT "].iter().any(|kind| comment.starts_with(kind));
                known.then_some(()).ok_or_else(|| line.to_owned())?;
                continue;
            }
            let (sample, value) = line.rsplit_once(' ').ok_or_else(|| line.to_owned())?;
            value.parse::<f64>().map_err(|_| line.to_owned())?;
            let name = match sample.split_once('{') {
                Some((name, labels)) => {
                    let labels = labels.strip_suffix('}').ok_or_else(|| line.to_owned())?;
                    let is_label =
                        |label: &str| label.split_once("=\"").is_some_and(|(_, rest)| rest.ends_with('"'));
                    let are_labels = labels.is_empty() || labels.split(',').all(is_label);
                    are_labels.then_some(()).ok_or_else(|| line.to_owned())?;
                    name
                }
                None => sample,
            };
            names.insert(name.to_owned());
        }
        Ok(names)
    }

    #[test]
    fn every_metric_of_the_table_is_in_the_text_and_nothing_else() {
        let text = text(&report());
        let wanted: BTreeSet<String> = metrics::SEEDER.iter().map(Metric::exported).collect();
        assert_eq!(samples(&text), Ok(wanted), "{text}");
        assert!(text.contains("shoal_nodes{stage=\"staged\"} 7\n"), "{text}");
        assert!(text.contains("shoal_rollout_phase{channel=\"stable\",phase=\"halted\"} 1\n"), "{text}");
        assert!(text.contains("shoal_seeder_sent_bytes_total 99\n"), "{text}");
    }

    #[test]
    fn the_dashboard_and_the_alerts_ask_for_what_there_is() {
        let board: serde_json::Value =
            serde_json::from_str(include_str!("../../dist/grafana-dashboard.json")).unwrap();
        let panels = board["panels"].as_array().unwrap().iter();
        let targets = panels.flat_map(|panel| panel["targets"].as_array().unwrap());
        let mut queries: Vec<String> =
            targets.map(|target| target["expr"].as_str().unwrap().to_owned()).collect();
        assert!(queries.len() >= 6);
        let alerts = include_str!("../../dist/prometheus-alerts.yml");
        let asked = alerts.lines().filter_map(|line| line.trim().strip_prefix("expr: "));
        queries.extend(asked.map(str::to_owned));
        assert!(queries.len() >= 9);
        let known: BTreeSet<String> = metrics::SEEDER.iter().map(Metric::exported).collect();
        for query in queries {
            let words = query.split(|c: char| !(c.is_ascii_alphanumeric() || c == '_'));
            let mut named = words.filter(|word| word.starts_with("shoal_")).peekable();
            assert!(named.peek().is_some(), "{query}");
            named.for_each(|name| assert!(known.contains(name), "{query} asks for {name}"));
        }
    }
}
