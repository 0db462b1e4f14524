//! How a command ends: four exit codes, and the one line that says why.

use std::io::IsTerminal;
use std::process::ExitCode;

use crate::peer::LookupError;
use crate::{install, join, update};

/// What the exit code of every command means.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Exit {
    Done = 0,
    Failed = 1,
    Usage = 2,
    /// Corrupt, unsigned or drifted.
    VerificationFailed = 3,
}

impl From<Exit> for ExitCode {
    fn from(exit: Exit) -> Self {
        Self::from(exit as u8)
    }
}

/// Ends a command: prints an error as one line with everything that caused it.
pub fn end(program: &str, result: anyhow::Result<Exit>) -> ExitCode {
    match result {
        Ok(exit) => exit.into(),
        Err(error) => {
            eprintln!("{program}: {error:#}");
            exit_of(&error).into()
        }
    }
}

fn exit_of(error: &anyhow::Error) -> Exit {
    let unbelieved = |cause: &(dyn std::error::Error + 'static)| {
        matches!(cause.downcast_ref(), Some(LookupError::NotBelieved(_)))
            || cause.downcast_ref().is_some_and(join::Error::is_unbelieved)
            || matches!(cause.downcast_ref(), Some(install::Error::Join(error)) if error.is_unbelieved())
            || matches!(cause.downcast_ref(), Some(update::Error::Join(error)) if error.is_unbelieved())
            || matches!(cause.downcast_ref(), Some(install::Error::Goal(error)) if error.is_unbelieved())
            || matches!(cause.downcast_ref(), Some(update::Error::Goal(error)) if error.is_unbelieved())
    };
    let unusable = |cause: &(dyn std::error::Error + 'static)| {
        cause.is::<Usage>()
            || matches!(cause.downcast_ref(), Some(install::Error::NoImageNamed))
            || matches!(cause.downcast_ref(), Some(update::Error::NoImageNamed))
    };
    if error.chain().any(unbelieved) {
        Exit::VerificationFailed
    } else if error.chain().any(unusable) {
        Exit::Usage
    } else {
        Exit::Failed
    }
}

/// An argument that can never work, whatever the state of the world.
#[derive(Debug, thiserror::Error)]
#[error("{0}")]
pub struct Usage(pub String);

/// Logs go to standard error; `-v` says more, `SHOAL_LOG` says exactly what.
pub fn start_logging(verbose: u8) {
    let default = match verbose {
        0 => "shoal=warn,shoal_node=warn,shoal_seeder=warn",
        1 => "shoal_node=info,shoal_seeder=info",
        2 => "shoal_node=debug,shoal_seeder=debug",
        _ => "shoal_node=trace,shoal_seeder=trace,libp2p=debug",
    };
    let filter = tracing_subscriber::EnvFilter::try_from_env("SHOAL_LOG")
        .unwrap_or_else(|_| tracing_subscriber::EnvFilter::new(default));
    let log = tracing_subscriber::fmt().with_env_filter(filter).with_writer(std::io::stderr);
    log.with_ansi(std::io::stderr().is_terminal()).init();
}

/// Waits until somebody asks the process to end: SIGINT or SIGTERM.
pub async fn interrupted() {
    let mut terminate = tokio::signal::unix::signal(tokio::signal::unix::SignalKind::terminate())
        .expect("the runtime handles signals");
    tokio::select! {
        _ = tokio::signal::ctrl_c() => {}
        _ = terminate.recv() => {}
    }
}
