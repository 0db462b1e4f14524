//! How a command reaches the seeder that already serves: JSON lines on a Unix socket in its directory, one there, and
//! back how far it is, now and then, and what came of it.
//!
//! Only one process may write to a seeder's store. A `capture` that finds it serving asks it to do the capture, and
//! the image is on offer at once. The socket lies in a directory that only its owner may enter.

use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use serde::{Deserialize, Serialize};
use shoal_proto::release::Channel;
use shoal_proto::rollout::Plan;
use tokio::io::{AsyncBufReadExt, AsyncReadExt, AsyncWriteExt, BufReader};
use tokio::net::{UnixListener, UnixStream};

use crate::cluster::look::{Look, Seen};
use crate::cluster::published::ClusterReport;
use crate::export::{ExportRequest, Exported};
use crate::fleet::FleetReport;
use crate::golden::OfferReport;
use crate::home::Home;
use crate::members::{Change, NodesReport, as_text};
use crate::progress::{CaptureMeter, CaptureSnapshot};
use crate::publish::{CaptureRequest, Published};
use crate::releases::{Decision, ReleaseRecord};
use crate::rollouts::{Act, RolloutReport};
use crate::serve::{self, Desk, RotationReport, Step};

/// Longest request or answer.
const LINE_BYTES_MAX: u64 = 128 << 20;

/// Time between two words of how far a capture is.
const PROGRESS_INTERVAL: Duration = Duration::from_millis(200);

/// What a reply is that answers another request.
const UNASKED: &str = "the running seeder answered something else";

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
enum Request {
    Capture(CaptureRequest),
    Export(ExportRequest),
    Offers,
    /// Who may join, after a change if there is one.
    Nodes(Option<Change>),
    Secret(Step),
    /// Publish this cluster file.
    Cluster(PathBuf),
    Look(Look),
    Release(Decision),
    StartRollout(Box<Plan>),
    Act {
        #[serde(with = "as_text")]
        channel: Channel,
        act: Act,
    },
    Fleet,
}

#[derive(Debug, Serialize, Deserialize)]
enum Reply {
    /// The capture goes on.
    Progress(CaptureSnapshot),
    Captured(Published),
    Exported(Exported),
    Offers(Vec<OfferReport>),
    Nodes(NodesReport),
    Secret(RotationReport),
    Cluster(ClusterReport),
    Look(Box<Seen>),
    Release(ReleaseRecord),
    Rollout(RolloutReport),
    Fleet(Box<FleetReport>),
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
    let reply = match serde_json::from_str(&line) {
        Err(error) => Reply::Failed(format!("a malformed request: {error}")),
        Ok(Request::Nodes(change)) => reply(desk.nodes(change.as_ref()).await, Reply::Nodes),
        Ok(Request::Secret(step)) => reply(desk.rotate(step).await, Reply::Secret),
        Ok(Request::Release(decision)) => reply(desk.release(&decision).await, Reply::Release),
        Ok(Request::StartRollout(plan)) => reply(desk.start_rollout(*plan).await, Reply::Rollout),
        Ok(Request::Act { channel, act }) => reply(desk.act(channel, act).await, Reply::Rollout),
        Ok(Request::Fleet) => reply(desk.fleet().await.map(Box::new), Reply::Fleet),
        Ok(Request::Capture(request)) => {
            let work =
                move |desk: &Desk, meter: &CaptureMeter| desk.capture(&request, meter).map(Reply::Captured);
            work_for(&mut stream, work, desk).await
        }
        Ok(Request::Cluster(file)) => {
            let work = move |desk: &Desk, meter: &CaptureMeter| {
                desk.publish_cluster(&file, meter).map(Reply::Cluster)
            };
            work_for(&mut stream, work, desk).await
        }
        Ok(Request::Look(look)) => {
            let work =
                move |desk: &Desk, _: &CaptureMeter| desk.look(&look).map(|seen| Reply::Look(Box::new(seen)));
            work_for(&mut stream, work, desk).await
        }
        Ok(Request::Offers) => reply(desk.offers().await, Reply::Offers),
        Ok(Request::Export(request)) => {
            let work = move |desk: &Desk, _: &CaptureMeter| desk.export(&request).map(Reply::Exported);
            work_for(&mut stream, work, desk).await
        }
    };
    write_line(&mut stream, &reply).await
}

fn reply<T>(done: Result<T, serve::Error>, reply: impl FnOnce(T) -> Reply) -> Reply {
    match done {
        Ok(report) => reply(report),
        Err(error) => Reply::Failed(format!("{:#}", anyhow::Error::from(error))),
    }
}

/// Does what takes its time, and says now and then how far it is.
async fn work_for(
    stream: &mut BufReader<UnixStream>,
    work: impl FnOnce(&Desk, &CaptureMeter) -> Result<Reply, serve::Error> + Send + 'static,
    desk: Arc<Desk>,
) -> Reply {
    let meter = Arc::new(CaptureMeter::default());
    let watched = meter.clone();
    let mut capture = tokio::task::spawn_blocking(move || work(&desk, &meter));
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
        Ok(Ok(reply)) => reply,
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
    let mut stream = ask(home, &Request::Capture(request.clone())).await?;
    loop {
        match hear(&mut stream).await? {
            Reply::Progress(snapshot) => watch(&snapshot),
            Reply::Captured(published) => return Ok(published),
            Reply::Failed(why) => return Err(Error::Refused(why)),
            _ => return Err(Error::Refused(UNASKED.to_owned())),
        }
    }
}

/// Has the running seeder publish a cluster file. `watch` is told how far it is.
pub async fn publish_cluster(
    home: &Home,
    file: &Path,
    watch: impl Fn(&CaptureSnapshot),
) -> Result<ClusterReport, Error> {
    let mut stream = ask(home, &Request::Cluster(file.to_owned())).await?;
    loop {
        match hear(&mut stream).await? {
            Reply::Progress(snapshot) => watch(&snapshot),
            Reply::Cluster(report) => return Ok(report),
            Reply::Failed(why) => return Err(Error::Refused(why)),
            _ => return Err(Error::Refused(UNASKED.to_owned())),
        }
    }
}

/// Asks the running seeder what a host's tree is made of.
pub async fn look(home: &Home, look: &Look) -> Result<Seen, Error> {
    let mut stream = ask(home, &Request::Look(look.clone())).await?;
    loop {
        match hear(&mut stream).await? {
            Reply::Progress(_) => {}
            Reply::Look(seen) => return Ok(*seen),
            Reply::Failed(why) => return Err(Error::Refused(why)),
            _ => return Err(Error::Refused(UNASKED.to_owned())),
        }
    }
}

/// Asks the running seeder what golden clients offer.
pub async fn offers(home: &Home) -> Result<Vec<OfferReport>, Error> {
    let mut stream = ask(home, &Request::Offers).await?;
    match hear(&mut stream).await? {
        Reply::Offers(offers) => Ok(offers),
        Reply::Failed(why) => Err(Error::Refused(why)),
        _ => Err(Error::Refused(UNASKED.to_owned())),
    }
}

/// Has the running seeder write the tree of an image.
pub async fn export(home: &Home, request: &ExportRequest) -> Result<Exported, Error> {
    let mut stream = ask(home, &Request::Export(request.clone())).await?;
    loop {
        match hear(&mut stream).await? {
            Reply::Progress(_) => {}
            Reply::Exported(exported) => return Ok(exported),
            Reply::Failed(why) => return Err(Error::Refused(why)),
            _ => return Err(Error::Refused(UNASKED.to_owned())),
        }
    }
}

/// Asks the running seeder who may join and who has, after a change if there is one.
pub async fn nodes(home: &Home, change: Option<Change>) -> Result<NodesReport, Error> {
    let mut stream = ask(home, &Request::Nodes(change)).await?;
    match hear(&mut stream).await? {
        Reply::Nodes(report) => Ok(report),
        Reply::Failed(why) => Err(Error::Refused(why)),
        _ => Err(Error::Refused(UNASKED.to_owned())),
    }
}

/// Has the running seeder take a step in the rotation of its secret.
pub async fn rotate(home: &Home, step: Step) -> Result<RotationReport, Error> {
    let mut stream = ask(home, &Request::Secret(step)).await?;
    match hear(&mut stream).await? {
        Reply::Secret(report) => Ok(report),
        Reply::Failed(why) => Err(Error::Refused(why)),
        _ => Err(Error::Refused(UNASKED.to_owned())),
    }
}

/// Has the running seeder release an image, or withdraw a channel.
pub async fn release(home: &Home, decision: Decision) -> Result<ReleaseRecord, Error> {
    let mut stream = ask(home, &Request::Release(decision)).await?;
    match hear(&mut stream).await? {
        Reply::Release(record) => Ok(record),
        Reply::Failed(why) => Err(Error::Refused(why)),
        _ => Err(Error::Refused(UNASKED.to_owned())),
    }
}

/// Has the running seeder begin a rollout.
pub async fn start_rollout(home: &Home, plan: Plan) -> Result<RolloutReport, Error> {
    rollout(home, &Request::StartRollout(Box::new(plan))).await
}

/// Has the running seeder pause a rollout, or let it go on.
pub async fn act(home: &Home, channel: Channel, act: Act) -> Result<RolloutReport, Error> {
    rollout(home, &Request::Act { channel, act }).await
}

async fn rollout(home: &Home, request: &Request) -> Result<RolloutReport, Error> {
    let mut stream = ask(home, request).await?;
    match hear(&mut stream).await? {
        Reply::Rollout(report) => Ok(report),
        Reply::Failed(why) => Err(Error::Refused(why)),
        _ => Err(Error::Refused(UNASKED.to_owned())),
    }
}

/// Asks the running seeder how its fleet does.
pub async fn fleet(home: &Home) -> Result<FleetReport, Error> {
    let mut stream = ask(home, &Request::Fleet).await?;
    match hear(&mut stream).await? {
        Reply::Fleet(report) => Ok(*report),
        Reply::Failed(why) => Err(Error::Refused(why)),
        _ => Err(Error::Refused(UNASKED.to_owned())),
    }
}

async fn ask(home: &Home, request: &Request) -> Result<BufReader<UnixStream>, Error> {
    let path = home.control_socket();
    let stream = UnixStream::connect(&path).await.map_err(|source| Error::Socket { path, source })?;
    let mut stream = BufReader::new(stream);
    write_line(&mut stream, request).await?;
    Ok(stream)
}

async fn hear(stream: &mut BufReader<UnixStream>) -> Result<Reply, Error> {
    serde_json::from_str(&read_line(stream).await?).map_err(Error::Malformed)
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
