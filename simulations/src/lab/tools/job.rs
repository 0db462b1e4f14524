//! One deployment by one tool: its scripts on the hosts, and what they took.

use std::path::Path;
use std::time::Duration;

use anyhow::{Context, bail};
use futures::future::join_all;

use super::{Payload, Server, Tool};
use crate::lab::folder::Files;
use crate::lab::meter::{Meter, Usage};
use crate::lab::network::Network;
use crate::lab::process::Process;
use crate::lab::report::{ToolNode, ToolReport};
use crate::lab::run::{SEEDER, Stage, read_tree};

/// Longer than any preparation takes: an archive of some gigabytes, its hash.
const PREPARE_MAX: Duration = Duration::from_secs(600);
const SERVE_MAX: Duration = Duration::from_secs(60);

/// Before every script.
const PRELUDE: &str = r#"set -eu
cd "$HERE"
# Makes the tree of an archive that comes in.
unpack() { zstd -dcq | tar -xp --xattrs --xattrs-include='*' --acls --numeric-owner -C "$TARGET"; }
# Says that the server is ready as soon as something listens on a port.
ready_on() { wait_for "$1"; echo ready; }
# Waits until the program last started listens on a port.
wait_for() { until ss -Hltn "sport = :$1" | grep -q .; do kill -0 $! 2> /dev/null || exit 1; sleep 0.02; done; }
# Starts a tracker, which says that the server is ready when a seed has announced itself.
track() { /usr/bin/python3 tracker.py & wait_for 6969; }
# Makes a pipe called `got`, and a program that says so there.
make_hook() { mkfifo got; printf '#!/bin/sh\necho got > %s/got\n' "$HERE" > hook; chmod 755 hook; }
"#;

const ARCHIVE: &str = "tar -c --xattrs --xattrs-include='*' --acls --numeric-owner -C \"$TREE\" . \
    | zstd -q -3 -T0 -o image.tar.zst\n";

/// One after another, each from nothing, given up after `patience`.
pub(in crate::lab) async fn perform_all(
    stage: &Stage<'_>,
    patience: Duration,
) -> anyhow::Result<Vec<ToolReport>> {
    let mut reports = Vec::new();
    for peer in &stage.lab.with {
        let tool = peer.tool();
        let files = stage.folder.files(tool.name)?;
        let job = Job { stage, tool, files: &files, patience };
        let report = job.perform().await;
        // Whatever it left, which may go on serving.
        stage.network.kill_all()?;
        reports.push(report.unwrap_or_else(|error| ToolReport::failed(tool.name, &error)));
        if !stage.lab.keep {
            files.remove()?;
        }
    }
    Ok(reports)
}

/// One deployment by one tool.
#[derive(Debug)]
struct Job<'a> {
    stage: &'a Stage<'a>,
    tool: &'a Tool,
    files: &'a Files,
    patience: Duration,
}

/// When a client's tree was there, nothing of one that was given up, or why it never will be.
type Finish = anyhow::Result<Option<f64>>;

impl Job<'_> {
    async fn perform(&self) -> anyhow::Result<ToolReport> {
        let hosts = 1..self.stage.parts.len();
        if let Some(old) = &self.stage.lab.update {
            let old = old.to_str().context("the tree's name is no text")?;
            for host in hosts.clone() {
                self.to_its_end(host, &format!("rsync -aHAX --numeric-ids '{old}/' \"$TARGET/\"")).await?;
            }
        }
        let archive = if matches!(self.tool.payload, Payload::Archive) { ARCHIVE } else { "" };
        self.to_its_end(SEEDER, &(archive.to_owned() + &self.tool.prepare.concat())).await?;
        let (script, is_before) = match self.tool.server {
            Server::Before(script) => (script, true),
            Server::Along(script) => (script, false),
        };
        let mut server = self.process(SEEDER, script)?;
        if is_before {
            server.begin().await?;
            self.said(SEEDER, &mut server, "ready", SERVE_MAX).await?;
        }
        let clients = hosts.map(|host| self.process(host, self.tool.client));
        let mut clients = clients.collect::<anyhow::Result<Vec<Process>>>()?;

        eprintln!("shoal-sim: {} begins", self.tool.name);
        let meter = Meter::start(&self.stage.network)?;
        if !is_before {
            server.begin().await?;
        }
        let finishes = clients.iter_mut().map(|client| self.finish(client, &meter));
        let finishes = join_all(finishes).await;
        let usage = meter.read(&self.stage.network)?;
        // Whatever they left, before the trees are read.
        self.stage.network.kill_all()?;
        self.report(finishes, &usage).await
    }

    /// A script on a host; it stays after its end, with what its children used.
    fn process(&self, host: usize, script: &str) -> anyhow::Result<Process> {
        let is_last = host + 1 == self.stage.parts.len();
        let environment = [
            ("HERE", self.files.host(host).to_string_lossy().into_owned()),
            ("SHARED", self.files.host(SEEDER).to_string_lossy().into_owned()),
            ("TREE", self.stage.lab.source.canonicalize()?.to_string_lossy().into_owned()),
            ("TARGET", self.files.of(host, "target")),
            ("SERVER", Network::address(SEEDER)),
            ("ME", Network::address(host)),
            ("NEXT", if is_last { String::new() } else { Network::address(host + 1) }),
            ("HOSTS", (self.stage.parts.len() - 1).to_string()),
            ("KBIT", (self.stage.lab.rate.0 / 1000).to_string()),
        ];
        let script = format!("{PRELUDE}{script}\necho done\nsleep infinity\n");
        let spot = self.stage.spot(host, self.files.log(host));
        Process::prepare(&spot, Path::new("sh"), &["-c", &script], &environment)
    }

    async fn to_its_end(&self, host: usize, script: &str) -> anyhow::Result<()> {
        let mut process = self.process(host, script)?;
        process.begin().await?;
        self.said(host, &mut process, "done", PREPARE_MAX).await
    }

    async fn said(
        &self,
        host: usize,
        process: &mut Process,
        line: &str,
        patience: Duration,
    ) -> anyhow::Result<()> {
        match tokio::time::timeout(patience, process.line(line)).await {
            Ok(said) => said.map_err(|error| self.failure(host, &error)),
            Err(_) => bail!("host {host}: nothing after {} s", patience.as_secs()),
        }
    }

    /// When the client's tree is there; nothing when it takes too long.
    async fn finish(&self, client: &mut Process, meter: &Meter) -> Finish {
        client.begin().await?;
        match tokio::time::timeout(self.patience, client.line("done")).await {
            Ok(done) => done.map(|()| Some(meter.elapsed_s())),
            Err(_) => Ok(None),
        }
    }

    fn failure(&self, host: usize, error: &anyhow::Error) -> anyhow::Error {
        anyhow::anyhow!("host {host}: {error:#}: {}", self.files.last_words(host))
    }

    async fn report(&self, finishes: Vec<Finish>, usage: &Usage) -> anyhow::Result<ToolReport> {
        let mut nodes = Vec::new();
        let mut failure = None;
        for (index, finish) in finishes.into_iter().enumerate() {
            let host = index + 1;
            let tree = read_tree(self.files.of(host, "target").into()).await?;
            let differs_at = self.stage.wanted.first_difference(&tree);
            let differs_at = differs_at.map(|path| format!("./{}", path.display()));
            let (verified, cpu_s) = (differs_at.is_none(), usage.cpu_s[host]);
            let finish_s = finish.unwrap_or_else(|error| {
                failure.get_or_insert(self.failure(host, &error).to_string());
                None
            });
            nodes.push(ToolNode { host, verified, differs_at, finish_s, cpu_s });
        }
        let done = nodes.iter().filter(|node| node.finish_s.is_some()).count();
        if done < nodes.len() && failure.is_none() {
            let within = self.patience.as_secs_f64();
            failure =
                Some(format!("did not finish within {within:.1} s: {done} of {} hosts did", nodes.len()));
        }
        let usual: Vec<&ToolNode> = nodes.iter().filter(|node| self.stage.parts[node.host].usual).collect();
        let finished = usual.iter().filter_map(|node| node.finish_s).collect();
        let (hosts, payload_bytes) = (usual.len(), self.payload_bytes(&nodes)?);
        Ok(ToolReport {
            tool: self.tool.name,
            figures: Some(usage.figures(self.stage.lab.rate, payload_bytes, hosts, finished)),
            finished: done == nodes.len(),
            verified: nodes.iter().all(|node| node.verified),
            failure,
            nodes,
        })
    }

    /// The compressed bytes that one client had to receive; on average, of those that finished.
    fn payload_bytes(&self, nodes: &[ToolNode]) -> anyhow::Result<f64> {
        let (file, before) = match self.tool.payload {
            Payload::Archive => {
                let archive = self.files.host(SEEDER).join("image.tar.zst");
                return Ok(std::fs::metadata(archive).context("there is no archive")?.len() as f64);
            }
            Payload::Said { file, before } => (file, before),
        };
        let finished = nodes.iter().filter(|node| node.finish_s.is_some());
        let bytes = finished.map(|node| {
            let path = self.files.host(node.host).join(file);
            let said =
                std::fs::read_to_string(&path).with_context(|| format!("cannot read {}", path.display()))?;
            let number = said.lines().find_map(|line| line.strip_prefix(before)?.trim().parse::<u64>().ok());
            number.with_context(|| format!("{} has no {before}", path.display()))
        });
        let bytes = bytes.collect::<anyhow::Result<Vec<u64>>>()?;
        Ok(bytes.iter().sum::<u64>() as f64 / bytes.len() as f64)
    }
}
