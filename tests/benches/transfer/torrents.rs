//! The same bytes by BitTorrent, unencrypted: what others take for one copy on this machine.

use std::net::TcpListener;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::Instant;

use anyhow::{Context, bail, ensure};
use harness::Process;
use serde_json::Value;

use crate::measure::Costs;

const SCRIPT: &str = include_str!("torrent.py");
/// The distribution's own comes second: another one may come first on the path, and lack the binding.
const PYTHONS: [&str; 2] = ["python3", "/usr/bin/python3"];

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Tool {
    Libtorrent,
    Rqbit,
}

impl Tool {
    pub(crate) const fn name(self) -> &'static str {
        match self {
            Self::Libtorrent => "libtorrent",
            Self::Rqbit => "rqbit",
        }
    }

    pub(crate) fn parse(name: &str) -> anyhow::Result<Self> {
        let all = [Self::Libtorrent, Self::Rqbit];
        all.into_iter().find(|tool| tool.name() == name).with_context(|| format!("no tool is called {name}"))
    }
}

/// A torrent of a folder, and the programs that trade it.
pub(crate) struct Torrent {
    python: &'static str,
    script: PathBuf,
    torrent: PathBuf,
    /// What the source lies in.
    beside: PathBuf,
    fetched: PathBuf,
}

impl Torrent {
    /// Of `source`, which lies in `folder`. Fails when one of the tools is not installed; both need libtorrent, which
    /// makes the torrent.
    pub(crate) fn make(source: &Path, folder: &Path, tools: &[Tool]) -> anyhow::Result<Self> {
        let python = PYTHONS.into_iter().find(|python| runs(python, &["-c", "import libtorrent"]));
        let python = python.context("not installed: libtorrent's Python binding (python3-libtorrent)")?;
        let needs_rqbit = tools.contains(&Tool::Rqbit);
        ensure!(!needs_rqbit || runs("rqbit", &["--version"]), "not installed: rqbit (cargo install rqbit)");
        let [script, torrent, fetched] = ["torrent.py", "torrent", "fetched"].map(|name| folder.join(name));
        std::fs::write(&script, SCRIPT)?;
        let made = Self { python, script, torrent, beside: folder.to_owned(), fetched };
        let mut make = made.libtorrent("make");
        make.arg(source).arg(&made.torrent);
        Process::start(make).finish().expect_success();
        Ok(made)
    }

    /// From the start of the fetching process to the last verified byte; the other one seeds by then.
    pub(crate) fn transfer(&self, tool: Tool, bytes: u64) -> anyhow::Result<Costs> {
        std::fs::create_dir(&self.fetched)?;
        let costs = match tool {
            Tool::Libtorrent => self.by_libtorrent()?,
            Tool::Rqbit => self.by_rqbit()?,
        };
        let came = bytes_below(&self.fetched)?;
        ensure!(came == bytes, "{} fetched {came} of {bytes} bytes", tool.name());
        std::fs::remove_dir_all(&self.fetched)?;
        Ok(costs)
    }

    fn libtorrent(&self, what: &str) -> Command {
        let mut command = Command::new(self.python);
        command.arg(&self.script).arg(what);
        command
    }

    fn by_libtorrent(&self) -> anyhow::Result<Costs> {
        let mut seed = self.libtorrent("seed");
        seed.arg(&self.torrent).arg(&self.beside);
        let seed = Process::start(seed);
        let ready: Value = serde_json::from_str(&seed.stdout_line(|line| line.starts_with('{')))?;
        let before_s = seed.cpu_s();
        let mut fetch = self.libtorrent("fetch");
        fetch.arg(&self.torrent).arg(&self.fetched).arg(ready["port"].to_string());
        let fetch = Process::start(fetch);
        let done: Value = serde_json::from_str(&fetch.stdout_line(|line| line.starts_with('{')))?;
        let elapsed_s = done["elapsed_s"].as_f64().context("the script says how long it took")?;
        Ok(Costs::between(&seed, before_s, &fetch, elapsed_s))
    }

    fn by_rqbit(&self) -> anyhow::Result<Costs> {
        let [seed_port, fetch_port] = free_ports()?;
        let mut seed = rqbit(seed_port);
        seed.arg("--overwrite").arg("-o").args([&self.beside, &self.torrent]);
        let seed = Process::start(seed);
        seed.stdout_line(|line| line.contains("needed 0"));
        let before_s = seed.cpu_s();
        let mut fetch = rqbit(fetch_port);
        fetch.arg(format!("--initial-peers=127.0.0.1:{seed_port}")).arg("-o");
        fetch.args([&self.fetched, &self.torrent]);
        let began = Instant::now();
        let fetch = Process::start(fetch);
        fetch.stdout_line(|line| line.contains("finished downloading"));
        Ok(Costs::between(&seed, before_s, &fetch, began.elapsed().as_secs_f64()))
    }
}

fn rqbit(port: u16) -> Command {
    let mut command = Command::new("rqbit");
    command.args(["--disable-dht", "--disable-lsd", "--disable-upnp-port-forward", "--listen-ip=127.0.0.1"]);
    command.arg(format!("--listen-port={port}")).args(["download", "--disable-http-api"]);
    command
}

/// Held at once, so that they differ.
fn free_ports() -> std::io::Result<[u16; 2]> {
    let held = [TcpListener::bind("127.0.0.1:0")?, TcpListener::bind("127.0.0.1:0")?];
    Ok([held[0].local_addr()?.port(), held[1].local_addr()?.port()])
}

fn runs(program: &str, arguments: &[&str]) -> bool {
    let mut command = Command::new(program);
    command.args(arguments).stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null());
    command.status().is_ok_and(|status| status.success())
}

fn bytes_below(folder: &Path) -> anyhow::Result<u64> {
    let mut bytes = 0;
    for entry in std::fs::read_dir(folder)? {
        let entry = entry?;
        let kind = entry.file_type()?;
        bytes += match () {
            () if kind.is_dir() => bytes_below(&entry.path())?,
            () if kind.is_file() => entry.metadata()?.len(),
            () => bail!("{} is neither a file nor a folder", entry.path().display()),
        };
    }
    Ok(bytes)
}
