//! A program on a host: held at the start until all are ready, its output read line by line, killed when dropped.

use std::fs::File;
use std::path::Path;
use std::process::Stdio;
use std::time::{Duration, Instant};

use anyhow::{Context, bail, ensure};
use rustix::process::{Pid, Signal, kill_process};
use serde_json::Value;
use tokio::io::{AsyncBufReadExt, AsyncWriteExt, BufReader, Lines};
use tokio::process::{Child, ChildStdin, ChildStdout, Command};

/// Waits for a line before it becomes the program, so that all begin together however long it takes to start them.
const GATE: &str = r#"[ -z "$1" ] || echo "$1" > /proc/sys/net/ipv4/tcp_congestion_control || exit 1
shift; read -r go; exec "$@" < /dev/null"#;
/// How long a program may take to end once it is told to.
const END_MAX: Duration = Duration::from_secs(30);

#[derive(Debug)]
pub(super) struct Process {
    name: String,
    child: Child,
    gate: Option<ChildStdin>,
    lines: Lines<BufReader<ChildStdout>>,
}

impl Process {
    /// Starts `program` in a network namespace; it waits for [`begin`](Self::begin). What it says besides its results
    /// goes to the file `log`.
    pub(super) fn prepare(
        namespace: &str,
        congestion: Option<&str>,
        program: &Path,
        arguments: &[&str],
        log: &Path,
    ) -> anyhow::Result<Self> {
        let name = program.file_name().unwrap_or_default().to_string_lossy().into_owned();
        let mut command = Command::new("ip");
        command
            .args(["netns", "exec", namespace, "sh", "-c", GATE, "sh", congestion.unwrap_or_default()])
            .arg(program);
        command.args(arguments).stdin(Stdio::piped()).stdout(Stdio::piped());
        let log = File::create(log).with_context(|| format!("cannot create {}", log.display()))?;
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

    /// Processor seconds so far.
    pub(super) fn cpu_s(&self) -> anyhow::Result<f64> {
        let path = format!("/proc/{}/stat", self.child.id().context("it has ended")?);
        let stat = std::fs::read_to_string(&path).with_context(|| format!("cannot read {path}"))?;
        // The name in brackets may hold anything; the 14th and 15th field are the ticks as user and as system.
        let fields: Vec<&str> = stat.rsplit(')').next().unwrap_or_default().split_whitespace().collect();
        ensure!(fields.len() > 12, "{path} has too few fields");
        let ticks = fields[11].parse::<u64>()? + fields[12].parse::<u64>()?;
        Ok(ticks as f64 / rustix::param::clock_ticks_per_second() as f64)
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
