//! Shell commands of the operator's, that may hang.

use std::io;
use std::os::unix::process::CommandExt;
use std::process::{Child, Command, ExitStatus, Stdio};
use std::thread;
use std::time::{Duration, Instant};

use rustix::process::{Pid, Signal, kill_process_group};

/// How often a command is looked at.
const EXIT_INTERVAL: Duration = Duration::from_millis(10);

#[derive(Debug, thiserror::Error)]
pub enum Error {
    #[error("cannot run {command:?}")]
    Run { command: String, source: io::Error },
    #[error("{command:?} is not done after {} s", .after.as_secs_f32())]
    TooSlow { command: String, after: Duration },
    #[error("{command:?} failed: {status}")]
    Failed { command: String, status: ExitStatus },
}

/// Runs a shell command to its end, with these variables besides its own; what it started ends with it when it takes
/// too long. Its output goes where this process has its own.
pub fn run(command: &str, variables: &[(&str, String)], patience: Duration) -> Result<(), Error> {
    let failed = |source| Error::Run { command: command.to_owned(), source };
    let deadline = Instant::now() + patience;
    let mut child = Command::new("sh")
        .args(["-c", command])
        .envs(variables.iter().map(|(name, value)| (name, value)))
        .stdin(Stdio::null())
        // Standard output is for results.
        .stdout(io::stderr())
        .process_group(0)
        .spawn()
        .map_err(failed)?;
    loop {
        match child.try_wait() {
            Ok(Some(status)) if status.success() => return Ok(()),
            Ok(Some(status)) => return Err(Error::Failed { command: command.to_owned(), status }),
            Ok(None) if Instant::now() < deadline => thread::sleep(EXIT_INTERVAL),
            Ok(None) => {
                end(&mut child);
                return Err(Error::TooSlow { command: command.to_owned(), after: patience });
            }
            Err(error) => {
                end(&mut child);
                return Err(failed(error));
            }
        }
    }
}

/// Kills the command and what it started. One that ended meanwhile is no trouble.
pub(crate) fn end(child: &mut Child) {
    if let Some(group) = i32::try_from(child.id()).ok().and_then(Pid::from_raw) {
        let _ = kill_process_group(group, Signal::KILL);
    }
    let _ = child.wait();
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn how_a_command_ended_is_said_with_the_command() {
        let run = |command| run(command, &[("WORD", "x".to_owned())], Duration::from_millis(300));
        run("test \"$WORD\" = x").unwrap();
        assert_eq!(run("exit 3").unwrap_err().to_string(), "\"exit 3\" failed: exit status: 3");
        let error = run("sleep 1000 & sleep 1000").unwrap_err().to_string();
        assert_eq!(error, "\"sleep 1000 & sleep 1000\" is not done after 0.3 s");
    }
}
