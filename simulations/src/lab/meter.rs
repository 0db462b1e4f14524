//! What a deployment takes, read from the network and from its processes when it begins and when it is over.

use std::time::Instant;

use crate::lab::machine;
use crate::lab::network::{Network, Rate, Traffic};
use crate::lab::process::since;
use crate::lab::report::{Figures, median};
use crate::lab::run::SEEDER;

/// Running since the common start.
#[derive(Debug)]
pub(super) struct Meter {
    started: Instant,
    traffic: Traffic,
    cpu_s: Vec<f64>,
}

/// From the common start until the meter was read.
#[derive(Debug)]
pub(super) struct Usage {
    pub(super) elapsed_s: f64,
    pub(super) traffic: Traffic,
    /// Processor time by host.
    pub(super) cpu_s: Vec<f64>,
}

impl Meter {
    pub(super) fn start(network: &Network) -> anyhow::Result<Self> {
        let (traffic, cpu_s) = (network.traffic()?, network.cpu_s()?);
        Ok(Self { started: Instant::now(), traffic, cpu_s })
    }

    pub(super) fn elapsed_s(&self) -> f64 {
        since(self.started)
    }

    /// Reads the meter; to be called while the programs still run.
    pub(super) fn read(&self, network: &Network) -> anyhow::Result<Usage> {
        let (elapsed_s, traffic) = (self.elapsed_s(), network.traffic()?.since(&self.traffic));
        let mut cpu_s = network.cpu_s()?;
        for (now, then) in cpu_s.iter_mut().zip(&self.cpu_s) {
            // Less where a process is gone that nobody waited for.
            *now = (*now - then).max(0.0);
        }
        Ok(Usage { elapsed_s, traffic, cpu_s })
    }
}

impl Usage {
    /// `finishes` are of the hosts that nothing was done to, one value for each of them that finished.
    pub(super) fn figures(
        &self,
        rate: Rate,
        compressed_bytes: f64,
        hosts: usize,
        mut finishes: Vec<f64>,
    ) -> Figures {
        let wire_s = compressed_bytes / rate.bytes_per_s();
        let median_s = median(&mut finishes);
        let last_s = finishes.last().copied().filter(|_| finishes.len() == hosts);
        let sent = self.traffic.sent[SEEDER];
        let nodes = &self.traffic.came[SEEDER + 1..];
        let (seeder_cpu_s, nodes_cpu_s) = (self.cpu_s[SEEDER], self.cpu_s[SEEDER + 1..].iter().sum::<f64>());
        let copies = |bytes: u64| bytes as f64 / compressed_bytes;
        Figures {
            compressed_bytes,
            wire_s,
            last_s,
            median_s,
            last_over_wire: last_s.map(|last_s| last_s / wire_s),
            median_over_wire: median_s.map(|median_s| median_s / wire_s),
            seeder_wire_bytes: sent.bytes,
            seeder_wire_copies: copies(sent.bytes),
            seeder_packets: sent.packets,
            node_wire_bytes: nodes.iter().map(|node| node.bytes).sum::<u64>() as f64 / nodes.len() as f64,
            rack_copies: self.traffic.into_racks.iter().map(|rack| copies(rack.bytes)).collect(),
            drops: self.traffic.drops(),
            seeder_cpu_s,
            nodes_cpu_s,
            cpu_utilisation: (nodes_cpu_s + seeder_cpu_s) / (machine::cores() as f64 * self.elapsed_s),
        }
    }
}
