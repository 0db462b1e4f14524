//! One process under test: its output line by line, its end, its death.

use std::io::{BufRead, BufReader, Read};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::sync::{Arc, Condvar, Mutex, MutexGuard};
use std::time::{Duration, Instant};

use rustix::process::{Pid, Signal, kill_process};

use crate::DEADLINE;

/// A running process. Killed when dropped.
#[derive(Debug)]
pub struct Process {
    name: String,
    child: Child,
    output: Arc<Output>,
}

/// A process that ended by itself or on a signal, with all it said.
#[derive(Debug)]
pub struct Finished {
    pub status: ExitStatus,
    pub stdout: Vec<String>,
    pub stderr: Vec<String>,
}

#[derive(Debug, Default)]
struct Output {
    lines: Mutex<Lines>,
    changed: Condvar,
}

#[derive(Debug, Default)]
struct Lines {
    stdout: Vec<String>,
    stderr: Vec<String>,
    /// How many of the two streams have ended.
    ended: usize,
}

type Stream = fn(&mut Lines) -> &mut Vec<String>;
const STDOUT: Stream = |lines| &mut lines.stdout;
const STDERR: Stream = |lines| &mut lines.stderr;

impl Process {
    pub fn start(mut command: Command) -> Self {
        let program = command.get_program().to_string_lossy().into_owned();
        let name = program.rsplit('/').next().unwrap_or(&program).to_owned();
        command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped());
        let mut child = command.spawn().unwrap_or_else(|error| panic!("cannot start {command:?}: {error}"));
        let output = Arc::new(Output::default());
        collect(child.stdout.take().expect("piped"), STDOUT, &output);
        collect(child.stderr.take().expect("piped"), STDERR, &output);
        Self { name, child, output }
    }

    pub fn pid(&self) -> u32 {
        self.child.id()
    }

    /// Waits for a line on standard output; returns the first that `wanted` accepts, said already or to come.
    ///
    /// # Panics
    /// When the process ends without saying it, or the deadline passes.
    pub fn stdout_line(&self, wanted: impl Fn(&str) -> bool) -> String {
        self.line(STDOUT, &wanted)
    }

    /// As [`stdout_line`](Self::stdout_line), on standard error.
    pub fn stderr_line(&self, wanted: impl Fn(&str) -> bool) -> String {
        self.line(STDERR, &wanted)
    }

    /// What the process has said on standard output so far.
    pub fn stdout(&self) -> Vec<String> {
        self.output.lock().stdout.clone()
    }

    fn line(&self, stream: Stream, wanted: &dyn Fn(&str) -> bool) -> String {
        let mut found = None;
        self.wait(|lines| {
            found = stream(lines).iter().find(|line| wanted(line)).cloned();
            found.is_some()
        });
        found.unwrap_or_else(|| panic!("{} ended without the line waited for:\n{}", self.name, self.said()))
    }

    /// Waits so long for a line on standard output, and returns the first that `wanted` accepts if one came; also
    /// `None` when the process ends without it.
    pub fn stdout_line_within(&self, time: Duration, wanted: impl Fn(&str) -> bool) -> Option<String> {
        self.line_within(STDOUT, time, &wanted)
    }

    /// As [`stdout_line_within`](Self::stdout_line_within), on standard error.
    pub fn stderr_line_within(&self, time: Duration, wanted: impl Fn(&str) -> bool) -> Option<String> {
        self.line_within(STDERR, time, &wanted)
    }

    fn line_within(&self, stream: Stream, time: Duration, wanted: &dyn Fn(&str) -> bool) -> Option<String> {
        let mut found = None;
        self.wait_until(Instant::now() + time, |lines| {
            found = stream(lines).iter().find(|line| wanted(line)).cloned();
            found.is_some()
        });
        found
    }

    /// Waits until the process ends.
    pub fn finish(mut self) -> Finished {
        self.wait(|lines| lines.ended == 2);
        let status = self.child.wait().expect("a child can be waited for");
        let lines = self.output.lock();
        Finished { status, stdout: lines.stdout.clone(), stderr: lines.stderr.clone() }
    }

    /// Asks the process to end (SIGTERM).
    pub fn terminate(&self) {
        let pid = i32::try_from(self.pid()).ok().and_then(Pid::from_raw).expect("a pid");
        kill_process(pid, Signal::TERM).expect("a child not yet waited for can be signalled");
    }

    /// Ends the process as a power failure of its own would (SIGKILL).
    pub fn kill(mut self) {
        self.end();
    }

    /// As [`kill`](Self::kill), and returns what the process had said by then.
    pub fn killed(mut self) -> Finished {
        let _ = self.child.kill();
        self.finish()
    }

    /// The most memory that the process has had resident so far.
    pub fn peak_rss_bytes(&self) -> u64 {
        let path = format!("/proc/{}/status", self.pid());
        let status =
            std::fs::read_to_string(&path).unwrap_or_else(|error| panic!("cannot read {path}: {error}"));
        let line = status.lines().find_map(|line| line.strip_prefix("VmHWM:")).expect("Linux says VmHWM");
        line.trim().trim_end_matches(" kB").parse::<u64>().expect("a number of KiB") * 1024
    }

    /// User and system seconds that the process has taken so far, in steps of 10 ms.
    pub fn cpu_s(&self) -> f64 {
        let path = format!("/proc/{}/stat", self.pid());
        let stat =
            std::fs::read_to_string(&path).unwrap_or_else(|error| panic!("cannot read {path}: {error}"));
        // The name, in parentheses, may hold anything; the fields after it are numbered from 3.
        let (_, fields) = stat.rsplit_once(") ").expect("Linux puts the name in parentheses");
        let field =
            |number: usize| fields.split(' ').nth(number - 3).and_then(|ticks| ticks.parse::<u64>().ok());
        let (user, system) = field(14).zip(field(15)).expect("Linux counts ticks");
        (user + system) as f64 / rustix::param::clock_ticks_per_second() as f64
    }

    /// Waits until `done`, or until both streams have ended.
    fn wait(&self, done: impl FnMut(&mut Lines) -> bool) {
        if !self.wait_until(Instant::now() + DEADLINE, done) {
            panic!("{} keeps the test waiting:\n{}", self.name, self.said());
        }
    }

    /// False when the deadline passed first.
    fn wait_until(&self, deadline: Instant, mut done: impl FnMut(&mut Lines) -> bool) -> bool {
        let mut lines = self.output.lock();
        while !done(&mut lines) && lines.ended < 2 {
            let left = deadline.saturating_duration_since(Instant::now());
            if left.is_zero() {
                return false;
            }
            lines = self.output.changed.wait_timeout(lines, left).expect("no reader panics").0;
        }
        true
    }

    fn said(&self) -> String {
        let lines = self.output.lock();
        [&lines.stdout[..], &lines.stderr[..]].concat().join("\n")
    }

    fn end(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        self.end();
    }
}

impl Output {
    fn lock(&self) -> MutexGuard<'_, Lines> {
        self.lines.lock().expect("no reader panics")
    }
}

impl Finished {
    /// # Panics
    /// With what the process said, unless it ended with exit code 0.
    pub fn expect_success(self) -> Self {
        assert!(self.status.success(), "ended with {}:\n{}", self.status, self.stderr.join("\n"));
        self
    }
}

fn collect(from: impl Read + Send + 'static, stream: Stream, output: &Arc<Output>) {
    let output = Arc::clone(output);
    std::thread::spawn(move || {
        for line in BufReader::new(from).split(b'\n') {
            let Ok(line) = line else { break };
            stream(&mut output.lock()).push(String::from_utf8_lossy(&line).into_owned());
            output.changed.notify_all();
        }
        output.lock().ended += 1;
        output.changed.notify_all();
    });
}

#[cfg(test)]
mod tests {
    use super::*;

    fn shell(script: &str) -> Process {
        let mut command = Command::new("sh");
        command.args(["-c", script]);
        Process::start(command)
    }

    #[test]
    fn lines_are_waited_for_and_kept() {
        let process = shell("echo one; echo two; echo three >&2; read forever < /dev/zero");
        assert_eq!(process.stderr_line(|line| line.starts_with("th")), "three");
        assert_eq!(process.stdout_line(|line| line.starts_with("t")), "two");
        assert_eq!(process.stdout_line(|line| line.starts_with("o")), "one");
    }

    #[test]
    fn an_end_is_seen_with_its_status_and_all_that_was_said() {
        let finished = shell("echo a; echo b >&2; exit 3").finish();
        assert_eq!(finished.status.code(), Some(3));
        assert_eq!((&finished.stdout[..], &finished.stderr[..]), (&["a".into()][..], &["b".into()][..]));
    }

    #[test]
    #[should_panic(expected = "sh ended without the line waited for:\nonly this")]
    fn a_line_that_never_comes_fails_the_test() {
        shell("echo only this").stdout_line(|line| line == "another");
    }

    #[test]
    fn a_dropped_process_is_dead() {
        let process = shell("echo up; exec cat /dev/zero > /dev/null");
        process.stdout_line(|line| line == "up");
        let folder = format!("/proc/{}", process.pid());
        assert!(std::path::Path::new(&folder).exists());
        drop(process);
        assert!(!std::path::Path::new(&folder).exists());
    }
}
