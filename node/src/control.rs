//! How `shoal-node status` reaches the command that runs: a Unix socket in the state directory that answers whoever
//! connects with one line of JSON. The directory may be entered by its owner alone.

use std::io;
use std::os::fd::AsRawFd;
use std::path::{Path, PathBuf};
use std::time::Duration;

use serde::{Deserialize, Serialize};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{UnixListener, UnixStream};
use tokio::task::AbortHandle;

use crate::peer::{Observer, Status};

/// Longest answer.
const ANSWER_BYTES_MAX: u64 = 4 << 20;
/// How long the running command may take to answer, and whoever asks to read.
const ANSWER_MAX: Duration = Duration::from_secs(10);
/// Wait after a failed accept.
const ACCEPT_PAUSE: Duration = Duration::from_secs(1);
const SOCKET: &str = "control";

#[derive(Debug, thiserror::Error)]
pub enum Error {
    #[error("no shoal-node is at work with the state in {}", .0.display())]
    NobodyThere(PathBuf),
    #[error("cannot ask the shoal-node that is at work with the state in {}", .path.display())]
    Ask {
        path: PathBuf,
        #[source]
        source: io::Error,
    },
    #[error("the shoal-node at work cannot be understood (is it another version?)")]
    Malformed(#[source] serde_json::Error),
}

/// What a node is doing, as `status --json` prints it. Sizes in bytes, times in seconds.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Report {
    /// The node's peer id.
    pub peer: String,
    pub addresses: Vec<String>,
    pub neighbours: usize,
    pub seeders: usize,
    pub bytes_from_seeder: u64,
    pub bytes_from_peers: u64,
    pub sent_bytes: u64,
    pub duplicate_bytes: u64,
    pub corrupt_bytes: u64,
    pub lists: Vec<ListReport>,
    /// Why the seeder cannot be reached, while there is no neighbour.
    pub trouble: Option<String>,
    /// Number of the newest list of members that is known, 0 for none.
    pub members: u64,
    /// Who broke the protocol lately, the latest first.
    pub banned: Vec<BanReport>,
}

/// How much of a piece list is here.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct ListReport {
    pub list: String,
    pub pieces: usize,
    pub held: usize,
    /// Neither held nor wanted.
    pub unwanted: usize,
    pub neighbours: usize,
}

/// A peer that is neither dialed nor let in for a while.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct BanReport {
    pub peer: String,
    pub address: Option<String>,
    pub why: String,
    pub ago_s: f64,
    pub left_s: f64,
}

impl Report {
    pub fn new(observer: &Observer, status: &Status) -> Self {
        let Status { traffic, .. } = status;
        Self {
            peer: observer.id.to_string(),
            addresses: observer.addresses.iter().map(ToString::to_string).collect(),
            neighbours: status.neighbours,
            seeders: status.seeders,
            bytes_from_seeder: traffic.from_seeders_bytes,
            bytes_from_peers: traffic.from_peers_bytes,
            sent_bytes: traffic.sent_bytes,
            duplicate_bytes: traffic.duplicate_bytes,
            corrupt_bytes: traffic.corrupt_bytes,
            lists: status
                .trades
                .iter()
                .map(|trade| ListReport {
                    list: trade.list.to_string(),
                    pieces: trade.pieces,
                    held: trade.held,
                    unwanted: trade.unwanted,
                    neighbours: trade.neighbours,
                })
                .collect(),
            trouble: status.trouble.clone(),
            members: status.members,
            banned: ban_reports(status),
        }
    }
}

pub fn ban_reports(status: &Status) -> Vec<BanReport> {
    let report = |ban: &crate::peer::Banned| BanReport {
        peer: ban.peer.to_string(),
        address: ban.address.map(|address| address.to_string()),
        why: ban.why.clone(),
        ago_s: ban.ago.as_secs_f64(),
        left_s: ban.left.as_secs_f64(),
    };
    status.banned.iter().map(report).collect()
}

/// Answers from now on whoever asks how the peer of the state in `dir` does; ends when dropped. A node that cannot be
/// asked does its work all the same.
#[derive(Debug)]
pub(crate) struct Desk(Option<AbortHandle>);

impl Desk {
    pub(crate) fn open(dir: &Path, observer: Observer) -> Self {
        match listen(dir) {
            Ok(listener) => Self(Some(tokio::spawn(answer_all(listener, observer)).abort_handle())),
            Err(error) => {
                tracing::warn!(dir = %dir.display(), %error, "this node cannot be asked for its status");
                Self(None)
            }
        }
    }
}

impl Drop for Desk {
    fn drop(&mut self) {
        if let Some(task) = &self.0 {
            task.abort();
        }
    }
}

/// The path of a socket may have 107 bytes, and that of a state directory more: it is named by a descriptor.
fn through_descriptor<T>(dir: &Path, act: impl FnOnce(&Path) -> io::Result<T>) -> io::Result<T> {
    let dir = std::fs::File::open(dir)?;
    act(&Path::new("/proc/self/fd").join(dir.as_raw_fd().to_string()).join(SOCKET))
}

fn listen(dir: &Path) -> io::Result<UnixListener> {
    // Left by a command that was killed; the lock of the state says that none is running.
    match std::fs::remove_file(dir.join(SOCKET)) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
        _ => {}
    }
    through_descriptor(dir, |path| UnixListener::bind(path))
}

async fn answer_all(listener: UnixListener, observer: Observer) {
    loop {
        let Ok((stream, _)) = listener.accept().await else {
            // Such as too many open files: it passes.
            tokio::time::sleep(ACCEPT_PAUSE).await;
            continue;
        };
        let observer = observer.clone();
        tokio::spawn(async move {
            // Who does not wait for the answer needs none.
            let _ = tokio::time::timeout(ANSWER_MAX, answer(stream, &observer)).await;
        });
    }
}

async fn answer(mut stream: UnixStream, observer: &Observer) -> io::Result<()> {
    let status = observer.status().await.map_err(io::Error::other)?;
    let mut line = serde_json::to_vec(&Report::new(observer, &status))?;
    line.push(b'\n');
    stream.write_all(&line).await?;
    stream.shutdown().await
}

/// Asks the command that is at work with the state in `dir`.
pub async fn ask(dir: &Path) -> Result<Report, Error> {
    let failed = |source| Error::Ask { path: dir.to_owned(), source };
    let connected = through_descriptor(dir, |path| {
        let stream = std::os::unix::net::UnixStream::connect(path)?;
        stream.set_nonblocking(true)?;
        UnixStream::from_std(stream)
    });
    let stream = connected.map_err(|error| match error.kind() {
        io::ErrorKind::NotFound | io::ErrorKind::ConnectionRefused => Error::NobodyThere(dir.to_owned()),
        _ => failed(error),
    })?;
    let mut answer = Vec::new();
    let read = async { stream.take(ANSWER_BYTES_MAX).read_to_end(&mut answer).await };
    match tokio::time::timeout(ANSWER_MAX, read).await {
        Ok(Ok(0)) => Err(failed(io::ErrorKind::UnexpectedEof.into())),
        Ok(Ok(_)) => serde_json::from_slice(&answer).map_err(Error::Malformed),
        Ok(Err(error)) => Err(failed(error)),
        Err(_) => Err(failed(io::ErrorKind::TimedOut.into())),
    }
}
