//! A program on a host: held at the start until all are ready, its output read line by line, killed when dropped.

use std::fs::File;
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::time::{Duration, Instant};

use anyhow::{Context, bail};
use rustix::process::{Pid, Signal, kill_process};
use serde_json::Value;
use tokio::io::{AsyncBufReadExt, AsyncWriteExt, BufReader, Lines};
use tokio::process::{Child, ChildStdin, ChildStdout, Command};

/// Waits for a line before it becomes the program, so that all begin together however long it takes to start them.
const GATE: &str = r#"[ -z "$1" ] || echo "$1" > /proc/sys/net/ipv4/tcp_congestion_control || exit 1
shift; read -r go; exec "$@" < /dev/null"#;
/// How long a program may take to end once it is told to.
const END_MAX: Duration = Duration::from_secs(30);

/// Where a program runs.
#[derive(Debug)]
pub(super) struct Spot<'a> {
    pub(super) namespace: String,
    pub(super) congestion: Option<&'a str>,
    /// Takes what the program says besides its results.
    pub(super) log: PathBuf,
}

#[derive(Debug)]
pub(super) struct Process {
    name: String,
    child: Child,
    gate: Option<ChildStdin>,
    lines: Lines<BufReader<ChildStdout>>,
}

impl Process {
    /// Starts `program` on a host; it waits for [`begin`](Self::begin).
    pub(super) fn prepare(
        host: &Spot,
        program: &Path,
        arguments: &[&str],
        environment: &[(&str, String)],
    ) -> anyhow::Result<Self> {
        let name = program.file_name().unwrap_or_default().to_string_lossy().into_owned();
        let mut command = Command::new("ip");
        command
            .args(["netns", "exec", &host.namespace, "sh", "-c", GATE, "sh"])
            .arg(host.congestion.unwrap_or_default())
            .arg(program);
        command.args(arguments).stdin(Stdio::piped()).stdout(Stdio::piped());
        command.envs(environment.iter().map(|(name, value)| (name, value)));
        let log = File::create(&host.log).with_context(|| format!("cannot create {}", host.log.display()))?;
        command.stderr(log).kill_on_drop(true);
        // What a terminal sends to a whole group, this program alone receives, and tells the others.
        command.process_group(0);
        let mut child = command.spawn().with_context(|| format!("cannot start {name}"))?;
        let gate = child.stdin.take();
        let lines = BufReader::new(child.stdout.take().context("no standard output")?).lines();
        Ok(Self { name, child, gate, lines })
    }

    pub(super) async fn begin(&mut self) -> anyhow::Result<()> {
        let mut gate = self.gate.take().context("it runs already")?;
        gate.write_all(b"go\n").await.with_context(|| format!("{} is gone", self.name))
    }

    /// The next object that the program prints.
    pub(super) async fn object(&mut self) -> anyhow::Result<Value> {
        loop {
            match self.lines.next_line().await? {
                Some(line) if line.starts_with('{') => return Ok(serde_json::from_str(&line)?),
                Some(_) => {}
                None => bail!("{} ended without its result", self.name),
            }
        }
    }

    /// Waits until the program prints `line`.
    pub(super) async fn line(&mut self, line: &str) -> anyhow::Result<()> {
        loop {
            match self.lines.next_line().await? {
                Some(said) if said == line => return Ok(()),
                Some(_) => {}
                None => bail!("it ended early"),
            }
        }
    }

    pub(super) fn kill(&mut self) {
        // One that has ended is as good.
        let _ = self.child.start_kill();
    }

    /// Lets the program leave.
    pub(super) async fn end(&mut self) -> anyhow::Result<()> {
        let pid = self.child.id().and_then(|pid| i32::try_from(pid).ok()).and_then(Pid::from_raw);
        if let Some(pid) = pid {
            kill_process(pid, Signal::TERM)?;
        }
        let ended = tokio::time::timeout(END_MAX, self.child.wait()).await;
        ended.with_context(|| format!("{} does not end", self.name))??;
        Ok(())
    }
}

/// Runs a program where we are to its end; returns the object that it prints, whatever its exit code.
pub(super) async fn object_of(program: &Path, arguments: &[&str]) -> anyhow::Result<Value> {
    let output = Command::new(program).args(arguments).stdin(Stdio::null()).kill_on_drop(true).output().await;
    let output = output.with_context(|| format!("cannot run {}", program.display()))?;
    let why = String::from_utf8_lossy(&output.stderr);
    serde_json::from_slice(&output.stdout)
        .with_context(|| format!("{} {} failed: {}", program.display(), arguments.join(" "), why.trim()))
}

/// Seconds from `start` until now.
pub(super) fn since(start: Instant) -> f64 {
    start.elapsed().as_secs_f64()
}
