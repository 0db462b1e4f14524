//! How a command reaches the seeder that already serves: JSON lines on a Unix socket in its directory, one there, and
//! back how far it is, now and then, and what came of it.
//!
//! Only one process may write to a seeder's store. A `capture` that finds it serving asks it to do the capture, and
//! the image is on offer at once. The socket lies in a directory that only its owner may enter.

use std::io;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use serde::{Deserialize, Serialize};
use tokio::io::{AsyncBufReadExt, AsyncReadExt, AsyncWriteExt, BufReader};
use tokio::net::{UnixListener, UnixStream};

use crate::home::Home;
use crate::progress::{CaptureMeter, CaptureSnapshot};
use crate::publish::{CaptureRequest, Published};
use crate::serve::Desk;

/// Longest request or answer.
const LINE_BYTES_MAX: u64 = 1 << 20;

/// Time between two words of how far a capture is.
const PROGRESS_INTERVAL: Duration = Duration::from_millis(200);

/// Wait after a failed accept.
const ACCEPT_PAUSE: Duration = Duration::from_secs(1);

#[derive(Debug, thiserror::Error)]
pub enum Error {
    #[error("cannot open the control socket {}", .path.display())]
    Socket {
        path: PathBuf,
        #[source]
        source: io::Error,
    },
    #[error("the running seeder broke off the conversation")]
    BrokenOff(#[source] io::Error),
    #[error("the running seeder cannot be understood (is it another version?)")]
    Malformed(#[source] serde_json::Error),
    /// What went wrong over there, in its words.
    #[error("{0}")]
    Refused(String),
}

#[derive(Debug, Serialize, Deserialize)]
enum Reply {
    /// The capture goes on.
    Progress(CaptureSnapshot),
    Captured(Published),
    Failed(String),
}

/// Answers requests until the task is dropped.
pub async fn answer_requests(home: &Home, desk: Arc<Desk>) -> Result<(), Error> {
    let path = home.control_socket();
    let failed = |source| Error::Socket { path: path.clone(), source };
    // Left by a seeder that was killed; the lock says that none is running.
    match std::fs::remove_file(&path) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(failed(error)),
        _ => {}
    }
    let listener = UnixListener::bind(&path).map_err(failed)?;
    loop {
        let stream = match listener.accept().await {
            Ok((stream, _)) => stream,
            Err(error) => {
                // Such as too many open files: passes, and is no reason to stop seeding.
                tracing::warn!(%error, "a control request was not accepted");
                tokio::time::sleep(ACCEPT_PAUSE).await;
                continue;
            }
        };
        let desk = desk.clone();
        tokio::spawn(async move {
            if let Err(error) = answer(stream, desk).await {
                tracing::warn!(%error, "a control request failed");
            }
        });
    }
}

async fn answer(stream: UnixStream, desk: Arc<Desk>) -> Result<(), Error> {
    let mut stream = BufReader::new(stream);
    let line = read_line(&mut stream).await?;
    let reply = match serde_json::from_str::<CaptureRequest>(&line) {
        Err(error) => Reply::Failed(format!("a malformed request: {error}")),
        Ok(request) => capture_for(&mut stream, request, desk).await,
    };
    write_line(&mut stream, &reply).await
}

async fn capture_for(stream: &mut BufReader<UnixStream>, request: CaptureRequest, desk: Arc<Desk>) -> Reply {
    let meter = Arc::new(CaptureMeter::default());
    let watched = meter.clone();
    let mut capture = tokio::task::spawn_blocking(move || desk.capture(&request, &*meter));
    let mut told = CaptureSnapshot::default();
    let done = loop {
        match tokio::time::timeout(PROGRESS_INTERVAL, &mut capture).await {
            Ok(done) => break done,
            Err(_) if told == watched.snapshot() => {}
            Err(_) => {
                told = watched.snapshot();
                // Whoever asked may be gone: the image is made all the same.
                let _ = write_line(stream, &Reply::Progress(told)).await;
            }
        }
    };
    match done {
        Ok(Ok(published)) => Reply::Captured(published),
        Ok(Err(error)) => Reply::Failed(format!("{:#}", anyhow::Error::from(error))),
        Err(error) => Reply::Failed(error.to_string()),
    }
}

/// Has the running seeder do a capture. `watch` is told how far it is.
pub async fn capture(
    home: &Home,
    request: &CaptureRequest,
    watch: impl Fn(&CaptureSnapshot),
) -> Result<Published, Error> {
    let path = home.control_socket();
    let stream = UnixStream::connect(&path).await.map_err(|source| Error::Socket { path, source })?;
    let mut stream = BufReader::new(stream);
    write_line(&mut stream, request).await?;
    loop {
        match serde_json::from_str(&read_line(&mut stream).await?).map_err(Error::Malformed)? {
            Reply::Progress(snapshot) => watch(&snapshot),
            Reply::Captured(published) => return Ok(published),
            Reply::Failed(why) => return Err(Error::Refused(why)),
        }
    }
}

async fn write_line(stream: &mut BufReader<UnixStream>, value: &impl Serialize) -> Result<(), Error> {
    let mut line = serde_json::to_vec(value).map_err(Error::Malformed)?;
    line.push(b'\n');
    stream.write_all(&line).await.map_err(Error::BrokenOff)
}

async fn read_line(stream: &mut BufReader<UnixStream>) -> Result<String, Error> {
    let mut line = String::new();
    stream.take(LINE_BYTES_MAX).read_line(&mut line).await.map_err(Error::BrokenOff)?;
    if line.ends_with('\n') { Ok(line) } else { Err(Error::BrokenOff(io::ErrorKind::UnexpectedEof.into())) }
}
