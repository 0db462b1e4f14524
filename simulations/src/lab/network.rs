//! The hosts' network: a bridge, and a shaped link from it to each host; or a bridge for each rack, each behind a
//! shaped uplink of its own.

use std::collections::BTreeMap;
use std::fs;
use std::ops::Sub;
use std::os::unix::fs::MetadataExt;
use std::process::Command;
use std::str::FromStr;
use std::time::Duration;

use anyhow::{Context, bail};
use rustix::process::{Pid, Signal, kill_process};
use serde_json::Value;

use crate::lab::NAME;

/// Bytes that pass a shaper at once. Above one segment as the kernel hands it over (64 KiB), or the shaper takes it
/// apart at the cost of much processor time.
const BURST_BYTES: u32 = 128 << 10;
/// The bridge that the seeder is at, and every host unless there are racks.
const CORE: &str = "bridge";
/// The bridge of hosts that are cut off.
const ISLAND: &str = "island";
/// How often a namespace is looked through for processes that are to be gone, and how long to wait in between.
const KILLS_MAX: u32 = 500;
const KILL_PAUSE: Duration = Duration::from_millis(10);

/// Bits per second.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Rate(pub(super) u64);

impl Rate {
    pub(super) fn bytes_per_s(self) -> f64 {
        self.0 as f64 / 8.0
    }

    /// What `links` of this rate carry together, divided by `ratio`.
    #[expect(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "far below 2^53")]
    pub(super) fn of_several(self, links: usize, ratio: f64) -> Self {
        Self((self.0 as f64 * links as f64 / ratio) as u64)
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

/// Hosts behind a common uplink. The seeder's host is outside.
#[derive(Clone, Copy, Debug)]
pub(super) struct Racks {
    pub(super) count: usize,
    pub(super) hosts_each: usize,
    /// Of each rack, each way.
    pub(super) uplink: Rate,
}

impl Racks {
    /// The rack of a host, from 0; none of the seeder's.
    pub(super) fn of(self, host: usize) -> Option<usize> {
        Some(host.checked_sub(1)? / self.hosts_each)
    }
}

/// Namespaces, gone with this value, and whatever runs in them.
#[derive(Debug)]
pub(super) struct Network {
    prefix: String,
    /// The hosts made so far.
    hosts: usize,
    shape: Shape,
    racks: Option<Racks>,
}

/// What passed a shaper, headers and all.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Counters {
    pub(super) bytes: u64,
    pub(super) packets: u64,
    pub(super) drops: u64,
}

impl Sub for Counters {
    type Output = Self;

    fn sub(self, earlier: Self) -> Self {
        Self {
            bytes: self.bytes - earlier.bytes,
            packets: self.packets - earlier.packets,
            drops: self.drops - earlier.drops,
        }
    }
}

/// What passed all shapers.
#[derive(Clone, Debug, Default)]
pub(super) struct Traffic {
    /// From each host.
    pub(super) sent: Vec<Counters>,
    /// To each host.
    pub(super) came: Vec<Counters>,
    /// Into each rack.
    pub(super) into_racks: Vec<Counters>,
}

impl Traffic {
    /// What passed since `earlier`, on the same network.
    pub(super) fn since(&self, earlier: &Self) -> Self {
        let since = |now: &[Counters], then: &[Counters]| {
            now.iter().zip(then).map(|(now, then)| *now - *then).collect()
        };
        Self {
            sent: since(&self.sent, &earlier.sent),
            came: since(&self.came, &earlier.came),
            into_racks: since(&self.into_racks, &earlier.into_racks),
        }
    }

    /// Packets that all queues threw away.
    pub(super) fn drops(&self) -> u64 {
        [&self.sent, &self.came, &self.into_racks].into_iter().flatten().map(|counters| counters.drops).sum()
    }
}

impl Network {
    /// A host for each rate, the seeder's first.
    pub(super) fn create(rates: &[Rate], shape: Shape, racks: Option<Racks>) -> anyhow::Result<Self> {
        let mut network = Self { prefix: format!("{NAME}-{}", std::process::id()), hosts: 0, shape, racks };
        let namespace = network.bridge();
        run("ip", &["netns", "add", &namespace])?;
        network.add_bridge(CORE)?;
        network.add_bridge(ISLAND)?;
        if let Some(racks) = racks {
            for rack in 0..racks.count {
                network.add_rack(rack, racks.uplink)?;
            }
        }
        for rate in rates {
            network.add_host(*rate)?;
        }
        Ok(network)
    }

    fn add_bridge(&self, name: &str) -> anyhow::Result<()> {
        let namespace = self.bridge();
        // Without snooping what is sent to a group reaches every port, whether or not a router asks who listens.
        run("ip", &["-n", &namespace, "link", "add", name, "up", "type", "bridge", "mcast_snooping", "0"])?;
        Ok(())
    }

    fn add_rack(&self, rack: usize, uplink: Rate) -> anyhow::Result<()> {
        let namespace = self.bridge();
        let (bridge, inward, outward) = (rack_bridge(rack), inward(rack), format!("out{rack}"));
        self.add_bridge(&bridge)?;
        run("ip", &["-n", &namespace, "link", "add", &inward, "type", "veth", "peer", "name", &outward])?;
        for (port, bridge, queue) in
            [(&inward, CORE, self.shape.downlink_queue), (&outward, &*bridge, self.shape.uplink_queue)]
        {
            run("ip", &["-n", &namespace, "link", "set", port, "master", bridge, "up"])?;
            shape_device("add", &namespace, port, uplink, queue)?;
        }
        Ok(())
    }

    fn add_host(&mut self, rate: Rate) -> anyhow::Result<()> {
        let (index, bridge) = (self.hosts, self.bridge());
        let host = self.namespace(index);
        let port = port(index);
        let at = self.racks.and_then(|racks| racks.of(index)).map_or(CORE.to_owned(), rack_bridge);
        run("ip", &["netns", "add", &host])?;
        self.hosts += 1;
        run("ip", &["-n", &host, "link", "set", "lo", "up"])?;
        run(
            "ip",
            &["-n", &host, "link", "add", "eth0", "type", "veth", "peer", "name", &port, "netns", &bridge],
        )?;
        run("ip", &["-n", &bridge, "link", "set", &port, "master", &at, "up"])?;
        let address = format!("{}/16", Self::address(index));
        run("ip", &["-n", &host, "address", "add", &address, "broadcast", "+", "dev", "eth0"])?;
        run("ip", &["-n", &host, "link", "set", "eth0", "up"])?;
        run("ip", &["-n", &host, "route", "add", "224.0.0.0/4", "dev", "eth0"])?;
        shape_device("add", &host, "eth0", rate, self.shape.uplink_queue)?;
        shape_device("add", &bridge, &port, rate, self.shape.downlink_queue)
    }

    /// Gives a host's link another rate, each way.
    pub(super) fn change_rate(&self, host: usize, rate: Rate) -> anyhow::Result<()> {
        shape_device("change", &self.namespace(host), "eth0", rate, self.shape.uplink_queue)?;
        shape_device("change", &self.bridge(), &port(host), rate, self.shape.downlink_queue)
    }

    /// Moves a host's link to a bridge that only such hosts are at.
    pub(super) fn cut_off(&self, host: usize) -> anyhow::Result<()> {
        self.plug(host, ISLAND)
    }

    /// Moves a host's link back to the bridge that the seeder is at.
    pub(super) fn connect(&self, host: usize) -> anyhow::Result<()> {
        self.plug(host, CORE)
    }

    fn plug(&self, host: usize, bridge: &str) -> anyhow::Result<()> {
        run("ip", &["-n", &self.bridge(), "link", "set", &port(host), "master", bridge]).map(drop)
    }

    /// The namespace of all bridges.
    fn bridge(&self) -> String {
        format!("{}-bridge", self.prefix)
    }

    pub(super) fn namespace(&self, host: usize) -> String {
        format!("{}-{host}", self.prefix)
    }

    pub(super) fn address(host: usize) -> String {
        format!("10.77.0.{}", host + 1)
    }

    /// What passed every shaper so far.
    pub(super) fn traffic(&self) -> anyhow::Result<Traffic> {
        let bridge = shapers(&self.bridge())?;
        let at = |shapers: &BTreeMap<String, Counters>, device: &str| {
            shapers.get(device).copied().with_context(|| format!("tc shows no {device}"))
        };
        let racks = self.racks.map_or(0, |racks| racks.count);
        Ok(Traffic {
            sent: (0..self.hosts)
                .map(|host| at(&shapers(&self.namespace(host))?, "eth0"))
                .collect::<anyhow::Result<_>>()?,
            came: (0..self.hosts).map(|host| at(&bridge, &port(host))).collect::<anyhow::Result<_>>()?,
            into_racks: (0..racks).map(|rack| at(&bridge, &inward(rack))).collect::<anyhow::Result<_>>()?,
        })
    }

    /// Processor seconds of each host so far: of what runs there, and of their children that have ended.
    pub(super) fn cpu_s(&self) -> anyhow::Result<Vec<f64>> {
        let processes = self.processes()?;
        Ok(processes.iter().map(|pids| pids.iter().map(|pid| cpu_s(*pid)).sum()).collect())
    }

    /// Ends whatever runs on the hosts, at once.
    pub(super) fn kill_all(&self) -> anyhow::Result<()> {
        for _ in 0..KILLS_MAX {
            let left: Vec<Pid> = self.processes()?.concat();
            if left.is_empty() {
                return Ok(());
            }
            for pid in left {
                // One that has ended is as good.
                let _ = kill_process(pid, Signal::KILL);
            }
            std::thread::sleep(KILL_PAUSE);
        }
        bail!("a host's process does not end")
    }

    /// What runs on each host.
    fn processes(&self) -> anyhow::Result<Vec<Vec<Pid>>> {
        let mut host_of = BTreeMap::new();
        for host in 0..self.hosts {
            let path = format!("/run/netns/{}", self.namespace(host));
            host_of.insert(fs::metadata(&path).with_context(|| format!("cannot find {path}"))?.ino(), host);
        }
        let mut found = vec![Vec::new(); self.hosts];
        for entry in fs::read_dir("/proc").context("cannot list processes")? {
            let entry = entry?;
            let pid = entry.file_name().to_str().and_then(|name| name.parse().ok()).and_then(Pid::from_raw);
            // One that has ended meanwhile has no namespace.
            let namespace = fs::metadata(entry.path().join("ns/net")).ok().map(|namespace| namespace.ino());
            if let (Some(pid), Some(host)) = (pid, namespace.and_then(|inode| host_of.get(&inode))) {
                found[*host].push(pid);
            }
        }
        Ok(found)
    }
}

impl Drop for Network {
    fn drop(&mut self) {
        if let Err(error) = self.kill_all() {
            eprintln!("shoal-sim: {error:#}");
        }
        let hosts = (0..self.hosts).map(|host| self.namespace(host));
        for namespace in hosts.chain([self.bridge()]) {
            if let Err(error) = run("ip", &["netns", "delete", &namespace]) {
                eprintln!("shoal-sim: {error:#}");
            }
        }
    }
}

/// The bridge's end of a host's link.
fn port(host: usize) -> String {
    format!("h{host}")
}

fn rack_bridge(rack: usize) -> String {
    format!("rack{rack}")
}

/// What passes into a rack passes the shaper of this device.
fn inward(rack: usize) -> String {
    format!("in{rack}")
}

fn shape_device(verb: &str, namespace: &str, device: &str, rate: Rate, queue: u32) -> anyhow::Result<()> {
    let (rate, burst) = (format!("{}bit", rate.0), BURST_BYTES.to_string());
    let queue = queue.max(BURST_BYTES).to_string();
    let shaper = ["tbf", "rate", &rate, "burst", &burst, "limit", &queue];
    run("tc", &[&["-n", namespace, "qdisc", verb, "dev", device, "root"][..], &shaper].concat())?;
    Ok(())
}

/// What passed each shaper of a namespace, by device.
fn shapers(namespace: &str) -> anyhow::Result<BTreeMap<String, Counters>> {
    let shown = run("tc", &["-n", namespace, "-s", "-j", "qdisc", "show"])?;
    let shown: Vec<Value> = serde_json::from_str(&shown).context("tc prints no JSON")?;
    let shapers = shown.iter().filter(|qdisc| qdisc["kind"] == "tbf");
    let counted = shapers.map(|qdisc| {
        let count =
            |field: &str| qdisc[field].as_u64().with_context(|| format!("tc shows no {field}: {qdisc}"));
        let counters =
            Counters { bytes: count("bytes")?, packets: count("packets")?, drops: count("drops")? };
        Ok((qdisc["dev"].as_str().unwrap_or_default().to_owned(), counters))
    });
    counted.collect()
}

/// Processor seconds so far of a process and of its children that it has seen end; 0 of one that has ended.
fn cpu_s(pid: Pid) -> f64 {
    let stat = fs::read_to_string(format!("/proc/{}/stat", pid.as_raw_nonzero())).unwrap_or_default();
    // The name in brackets may hold anything; the 14th to 17th field are the ticks as user and as system, its own and
    // its children's.
    let fields = stat.rsplit(')').next().unwrap_or_default().split_whitespace().skip(11).take(4);
    let ticks: u64 = fields.filter_map(|field| field.parse::<u64>().ok()).sum();
    ticks as f64 / rustix::param::clock_ticks_per_second() as f64
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
