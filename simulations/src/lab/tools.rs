//! Other tools that bring the same tree to the same hosts. A tool is three shell scripts: what is prepared, what the
//! server runs and what each client runs. All clients begin at once; a client is done when its tree is there, unpacked.
//!
//! The scripts find in their environment: `TREE` (the source, at the server), `SHARED` (a folder with what was prepared,
//! `image.tar.zst` among it), `TARGET` (where the tree belongs), `SERVER` and `ME` (addresses), `NEXT` (that of the host
//! after this; empty at the last), `HOSTS` (besides the server), `KBIT` (of a link, each way). They start in a folder of
//! the host's own.

mod aria2;
mod bittorrent;
mod chain;
mod libtorrent;
mod rqbit;
mod rsync;
mod transmission;
mod udpcast;
mod uftp;

use std::path::Path;
use std::process::{Command, Stdio};
use std::time::Duration;

use anyhow::{Context, ensure};
use clap::ValueEnum;
use futures::future::join_all;

use crate::lab::folder::Files;
use crate::lab::meter::{Meter, Usage};
use crate::lab::network::Network;
use crate::lab::process::Process;
use crate::lab::report::{ToolNode, ToolReport};
use crate::lab::run::{SEEDER, Stage, read_tree};

/// Longer than any preparation takes: an archive of some gigabytes, its hash.
const PREPARE_MAX: Duration = Duration::from_secs(600);
const SERVE_MAX: Duration = Duration::from_secs(60);

/// Tools by the name that the user knows.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub(super) enum Peer {
    Aria2,
    Rsync,
    Udpcast,
    Uftp,
    /// socat and tee, from host to host
    Chain,
    Transmission,
    Rqbit,
    Libtorrent,
}

impl Peer {
    pub(super) fn tool(self) -> &'static Tool {
        match self {
            Self::Aria2 => &aria2::TOOL,
            Self::Rsync => &rsync::TOOL,
            Self::Udpcast => &udpcast::TOOL,
            Self::Uftp => &uftp::TOOL,
            Self::Chain => &chain::TOOL,
            Self::Transmission => &transmission::TOOL,
            Self::Rqbit => &rqbit::TOOL,
            Self::Libtorrent => &libtorrent::TOOL,
        }
    }
}

#[derive(Debug)]
pub(super) struct Tool {
    pub(super) name: &'static str,
    needs: &'static [Need],
    /// Brings what lacks to an older tree; other tools bring a whole archive.
    pub(super) updates: bool,
    /// Run in the shared folder, before the clock, one after another.
    prepare: &'static [&'static str],
    server: Server,
    /// Ends when the tree is there; may leave programs behind that go on serving.
    client: &'static str,
    /// How many compressed bytes one client had to receive.
    payload: Payload,
}

/// Something that has to be installed.
#[derive(Debug)]
enum Need {
    /// A program on the path, and the command that installs it.
    Program(&'static str, &'static str),
    /// A command that succeeds when all is there, and the command that installs it.
    Works(&'static [&'static str], &'static str),
}

#[derive(Debug)]
enum Server {
    /// Started before the clock; prints `ready`.
    Before(&'static str),
    /// Started with the clients.
    Along(&'static str),
}

#[derive(Debug)]
enum Payload {
    Archive,
    /// A file in the client's folder has a line with this before the number.
    Said {
        file: &'static str,
        before: &'static str,
    },
}

const TAR: Need = Need::Program("tar", "apt-get install tar");
const ZSTD: Need = Need::Program("zstd", "apt-get install zstd");

/// Before every script.
const PRELUDE: &str = r#"set -eu
cd "$HERE"
# Makes the tree of an archive that comes in.
unpack() { zstd -dcq | tar -xp --xattrs --xattrs-include='*' --acls --numeric-owner -C "$TARGET"; }
# Says that the server is ready as soon as something listens on a port.
ready_on() { until ss -Hltn "sport = :$1" | grep -q .; do sleep 0.02; done; echo ready; }
"#;

const ARCHIVE: &str = "tar -c --xattrs --xattrs-include='*' --acls --numeric-owner -C \"$TREE\" . \
    | zstd -q -3 -T0 -o image.tar.zst\n";

impl Tool {
    /// That all is installed.
    pub(super) fn check(&self) -> anyhow::Result<()> {
        let of_archives: &[Need] = if matches!(self.payload, Payload::Archive) { &[TAR, ZSTD] } else { &[] };
        for need in self.needs.iter().chain(of_archives) {
            let (found, what, install) = match need {
                Need::Program(name, install) => (is_on_path(name), (*name).to_owned(), install),
                Need::Works(command, install) => (works(command), command.join(" "), install),
            };
            ensure!(found, "{} cannot run, there is no {what}: {install}", self.name);
        }
        Ok(())
    }
}

fn is_on_path(program: &str) -> bool {
    let path = std::env::var_os("PATH").unwrap_or_default();
    std::env::split_paths(&path).any(|folder| folder.join(program).is_file())
}

fn works(command: &[&str]) -> bool {
    let mut started = Command::new(command[0]);
    started.args(&command[1..]).stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null());
    started.status().is_ok_and(|status| status.success())
}

/// One after another, each from nothing, given up after `patience`.
pub(super) async fn perform_all(stage: &Stage<'_>, patience: Duration) -> anyhow::Result<Vec<ToolReport>> {
    let mut reports = Vec::new();
    for peer in &stage.lab.with {
        let tool = peer.tool();
        let files = stage.folder.files(tool.name)?;
        let job = Job { stage, tool, files: &files, patience };
        reports.push(job.perform().await.with_context(|| format!("{} failed", tool.name))?);
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
type Finish = Option<Result<f64, String>>;

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
            let ready = tokio::time::timeout(SERVE_MAX, server.line("ready")).await;
            ready
                .context("the server does not begin")
                .flatten()
                .map_err(|error| self.failure(SEEDER, &error))?;
        }
        let clients = hosts.map(|host| self.process(host, self.tool.client));
        let mut clients = clients.collect::<anyhow::Result<Vec<Process>>>()?;

        eprintln!("shoal-sim: {} begins", self.tool.name);
        let meter = Meter::start(&self.stage.network)?;
        if !is_before {
            server.begin().await?;
        }
        let finishes = clients.iter_mut().map(|client| self.finish(client, &meter));
        let finishes: Vec<_> = join_all(finishes).await;
        let usage = meter.read(&self.stage.network)?;
        // Whatever they left, which may go on serving.
        self.stage.network.kill_all()?;
        let finishes = finishes.into_iter().enumerate().map(|(index, finish)| {
            finish
                .transpose()
                .map(|finish| finish.map_err(|error| format!("{:#}", self.failure(index + 1, &error))))
        });
        self.report(finishes.collect(), &usage).await
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
        let done = tokio::time::timeout(PREPARE_MAX, process.line("done")).await;
        done.context("it takes too long").flatten().map_err(|error| self.failure(host, &error))
    }

    /// When the client's tree is there; nothing when it takes too long.
    async fn finish(&self, client: &mut Process, meter: &Meter) -> anyhow::Result<Option<f64>> {
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
            let finish_s = match finish.transpose() {
                Ok(finish_s) => finish_s,
                Err(why) => {
                    failure.get_or_insert(why);
                    None
                }
            };
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
        let hosts = usual.len();
        Ok(ToolReport {
            tool: self.tool.name,
            figures: usage.figures(self.stage.lab.rate, self.payload_bytes(&nodes)?, hosts, finished),
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
