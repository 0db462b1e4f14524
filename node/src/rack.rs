//! Where the machine stands, as a command of the operator's says.

use std::io::{self, BufRead, BufReader, Read};
use std::os::unix::process::CommandExt;
use std::process::{Child, Command, ExitStatus, Stdio};
use std::sync::mpsc;
use std::thread;
use std::time::{Duration, Instant};

use shoal_proto::zone::{Zone, ZoneError};

use crate::command;

/// How long a rack command may take.
pub const COMMAND_MAX: Duration = Duration::from_secs(10);
/// Most bytes read of what it prints; a label is far shorter, and what follows its line does not matter.
const OUTPUT_BYTES_MAX: u64 = 4096;
/// How often a command that said its line is looked at.
const EXIT_INTERVAL: Duration = Duration::from_millis(5);

#[derive(Debug, thiserror::Error)]
pub enum Error {
    #[error("cannot run the rack command {command:?}")]
    Run { command: String, source: io::Error },
    #[error("the rack command {command:?} is not done after {} s", .after.as_secs_f32())]
    TooSlow { command: String, after: Duration },
    #[error("the rack command {command:?} failed: {status}")]
    Failed { command: String, status: ExitStatus },
    #[error("the rack command {0:?} prints no label")]
    Silent(String),
    #[error("the rack command {command:?} prints no label that can be used")]
    Label { command: String, source: ZoneError },
}

/// The label that a shell command prints as its first line, within [`COMMAND_MAX`]. Blanks around it do not count.
pub fn ask(command: &str) -> Result<Zone, Error> {
    ask_within(command, COMMAND_MAX)
}

fn ask_within(command: &str, patience: Duration) -> Result<Zone, Error> {
    let failed = |source| Error::Run { command: command.to_owned(), source };
    let deadline = Instant::now() + patience;
    let mut child = Command::new("sh")
        .args(["-c", command])
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        // Its own group, so that what it started ends with it.
        .process_group(0)
        .spawn()
        .map_err(failed)?;
    let answered = wait(&mut child, deadline);
    if !matches!(answered, Ok(Some(_))) {
        command::end(&mut child);
    }
    let (line, status) = answered
        .map_err(failed)?
        .ok_or_else(|| Error::TooSlow { command: command.to_owned(), after: patience })?;
    if !status.success() {
        return Err(Error::Failed { command: command.to_owned(), status });
    }
    match line.trim() {
        "" => Err(Error::Silent(command.to_owned())),
        label => label.parse().map_err(|source| Error::Label { command: command.to_owned(), source }),
    }
}

/// Its first line and how it ended; `None` when that takes too long.
fn wait(child: &mut Child, deadline: Instant) -> io::Result<Option<(String, ExitStatus)>> {
    let output = child.stdout.take().expect("piped");
    let (said, hear) = mpsc::sync_channel(1);
    // Ends with the pipe, at the latest when the group is killed.
    thread::spawn(move || {
        let mut output = BufReader::new(output);
        let mut line = Vec::new();
        let read = output.by_ref().take(OUTPUT_BYTES_MAX).read_until(b'\n', &mut line);
        // Whoever asked may have given up.
        let _ = said.send(read.map(|_| String::from_utf8_lossy(&line).into_owned()));
        // What follows is read as well, or the command would die of a closed pipe.
        let _ = io::copy(&mut output, &mut io::sink());
    });
    let Ok(line) = hear.recv_timeout(deadline.saturating_duration_since(Instant::now())) else {
        return Ok(None);
    };
    let line = line?;
    loop {
        if let Some(status) = child.try_wait()? {
            return Ok(Some((line, status)));
        }
        if Instant::now() >= deadline {
            return Ok(None);
        }
        thread::sleep(EXIT_INTERVAL);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn refusal(command: &str) -> String {
        let error = anyhow::Error::from(ask(command).unwrap_err());
        format!("{error:#}")
    }

    #[test]
    fn the_first_line_is_the_label() {
        let label = ask("echo ' row3/rack07 '; echo and more").unwrap();
        assert_eq!(label.as_str(), "row3/rack07");
    }

    #[test]
    fn a_command_that_prints_much_is_no_trouble() {
        assert_eq!(ask("echo rack07; seq 100000").unwrap().as_str(), "rack07");
    }

    #[test]
    fn what_goes_wrong_is_said_with_the_command() {
        assert_eq!(refusal("exit 3"), "the rack command \"exit 3\" failed: exit status: 3");
        assert_eq!(refusal("true"), "the rack command \"true\" prints no label");
        assert_eq!(
            refusal("echo rack 7"),
            "the rack command \"echo rack 7\" prints no label that can be used: rack label \"rack 7\" has ' ' in a \
             name (allowed are A-Z a-z 0-9 . _ - : +)"
        );
        let endless = refusal("tr '\\0' x </dev/zero");
        assert!(endless.contains("a rack label of 4096 bytes") || endless.contains("not done"), "{endless}");
    }

    #[test]
    fn a_command_that_hangs_is_ended_with_what_it_started() {
        let patience = Duration::from_millis(50);
        for command in ["sleep 1000 & sleep 1000", "echo rack07; sleep 1000"] {
            let error = ask_within(command, patience).unwrap_err().to_string();
            assert_eq!(error, format!("the rack command {command:?} is not done after 0.05 s"));
        }
    }
}
