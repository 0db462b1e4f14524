//! The hosts' network: a bridge, and a shaped link from it to each host.

use std::process::Command;
use std::str::FromStr;

use anyhow::{Context, bail};
use serde_json::Value;

use crate::lab::NAME;

/// Bytes that pass a shaper at once. Above one segment as the kernel hands it over (64 KiB), or the shaper takes it
/// apart at the cost of much processor time.
const BURST_BYTES: u32 = 128 << 10;

/// Bits per second.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Rate(pub(super) u64);

impl Rate {
    pub(super) fn bytes_per_s(self) -> f64 {
        self.0 as f64 / 8.0
    }
}

impl FromStr for Rate {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let wrong = || format!("{text} is no rate such as 100mbit");
        let split = text.find(|c: char| !c.is_ascii_digit()).ok_or_else(wrong)?;
        let (number, unit) = text.split_at(split);
        let unit = match unit {
            "kbit" => 1_000,
            "mbit" => 1_000_000,
            "gbit" => 1_000_000_000,
            _ => return Err(wrong()),
        };
        let bits =
            number.parse::<u64>().ok().and_then(|number| number.checked_mul(unit)).ok_or_else(wrong)?;
        if !(100_000..=100_000_000_000).contains(&bits) {
            return Err(format!("{text} is not between 100kbit and 100gbit"));
        }
        Ok(Self(bits))
    }
}

/// How every link is shaped.
#[derive(Clone, Copy, Debug)]
pub(super) struct Shape {
    pub(super) uplink_queue: u32,
    pub(super) downlink_queue: u32,
}

/// Namespaces, gone with this value.
#[derive(Debug)]
pub(super) struct Network {
    prefix: String,
    /// The hosts made so far.
    hosts: usize,
}

/// What passed a host's own shaper, headers and all.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Counters {
    pub(super) bytes: u64,
    pub(super) packets: u64,
    pub(super) drops: u64,
}

impl Network {
    pub(super) fn create(rates: &[Rate], shape: Shape) -> anyhow::Result<Self> {
        let mut network = Self { prefix: format!("{NAME}-{}", std::process::id()), hosts: 0 };
        let bridge = network.bridge();
        run("ip", &["netns", "add", &bridge])?;
        run("ip", &["-n", &bridge, "link", "add", "bridge", "type", "bridge"])?;
        run("ip", &["-n", &bridge, "link", "set", "bridge", "up"])?;
        for rate in rates {
            network.add_host(*rate, shape)?;
        }
        Ok(network)
    }

    fn add_host(&mut self, rate: Rate, shape: Shape) -> anyhow::Result<()> {
        let (index, bridge) = (self.hosts, self.bridge());
        let host = self.namespace(index);
        let port = format!("h{index}");
        run("ip", &["netns", "add", &host])?;
        self.hosts += 1;
        run("ip", &["-n", &host, "link", "set", "lo", "up"])?;
        run(
            "ip",
            &["-n", &host, "link", "add", "eth0", "type", "veth", "peer", "name", &port, "netns", &bridge],
        )?;
        run("ip", &["-n", &bridge, "link", "set", &port, "master", "bridge", "up"])?;
        let address = format!("{}/16", Self::address(index));
        run("ip", &["-n", &host, "address", "add", &address, "dev", "eth0"])?;
        run("ip", &["-n", &host, "link", "set", "eth0", "up"])?;
        for (namespace, device, queue) in
            [(&host, "eth0", shape.uplink_queue), (&bridge, &*port, shape.downlink_queue)]
        {
            let (rate, burst) = (format!("{}bit", rate.0), BURST_BYTES.to_string());
            let queue = queue.max(BURST_BYTES).to_string();
            let shaper = ["tbf", "rate", &rate, "burst", &burst, "limit", &queue];
            run("tc", &[&["-n", namespace, "qdisc", "add", "dev", device, "root"][..], &shaper].concat())?;
        }
        Ok(())
    }

    fn bridge(&self) -> String {
        format!("{}-bridge", self.prefix)
    }

    pub(super) fn namespace(&self, host: usize) -> String {
        format!("{}-{host}", self.prefix)
    }

    pub(super) fn address(host: usize) -> String {
        format!("10.77.0.{}", host + 1)
    }

    pub(super) fn sent(&self, host: usize) -> anyhow::Result<Counters> {
        let shown = run("tc", &["-n", &self.namespace(host), "-s", "-j", "qdisc", "show", "dev", "eth0"])?;
        let shown: Value = serde_json::from_str(&shown).context("tc prints no JSON")?;
        let count = |field: &str| shown[0][field].as_u64().with_context(|| format!("tc shows no {field}"));
        Ok(Counters { bytes: count("bytes")?, packets: count("packets")?, drops: count("drops")? })
    }
}

impl Drop for Network {
    fn drop(&mut self) {
        let hosts = (0..self.hosts).map(|host| self.namespace(host));
        for namespace in hosts.chain([self.bridge()]) {
            if let Err(error) = run("ip", &["netns", "delete", &namespace]) {
                eprintln!("shoal-sim: {error:#}");
            }
        }
    }
}

/// Runs a program to its end and returns what it printed.
pub(super) fn run(program: &str, arguments: &[&str]) -> anyhow::Result<String> {
    let output = Command::new(program).args(arguments).output();
    let output = output.with_context(|| format!("cannot run {program}"))?;
    if !output.status.success() {
        let why = String::from_utf8_lossy(&output.stderr);
        bail!("{program} {} failed: {}", arguments.join(" "), why.trim());
    }
    Ok(String::from_utf8_lossy(&output.stdout).into_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_rate_is_a_number_with_its_unit() {
        assert_eq!("50mbit".parse(), Ok(Rate(50_000_000)));
        assert_eq!("1gbit".parse(), Ok(Rate(1_000_000_000)));
        assert_eq!("250kbit".parse(), Ok(Rate(250_000)));
        for wrong in ["", "50", "mbit", "50MB", "-1mbit", "99999999999999999999gbit", "1kbit"] {
            assert!(wrong.parse::<Rate>().is_err(), "{wrong}");
        }
    }
}
