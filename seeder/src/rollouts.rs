//! The rollouts of this seeder, one for each channel: their state on disk, and the log of their decisions.
//!
//! A decision is on disk before anybody hears of it ([`Book::commit`]): first the state, with the decisions that led to
//! it, then the log. A seeder that is killed in between finds them in the state and adds them to the log. The state
//! names the seeder that decides; another one, though it has the publisher's key, does not.

use std::collections::BTreeMap;
use std::fs::OpenOptions;
use std::io::{self, Read, Seek, SeekFrom, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};
use shoal_node::durable;
use shoal_proto::release::Channel;
use shoal_proto::rollout::{Event, Phase, Plan, PlanError, Rollout, Standing, Tally};
use shoal_proto::time::Time;

use crate::home::Home;

/// Version of the files; another one is refused.
const FORMAT: u32 = 1;
/// More than the longest line of a log.
const TAIL_BYTES: u64 = 64 << 10;

#[derive(Debug, thiserror::Error)]
pub enum Error {
    #[error(transparent)]
    File(#[from] durable::Error),
    #[error("cannot list {}", .path.display())]
    List {
        path: PathBuf,
        #[source]
        source: io::Error,
    },
    #[error("cannot write the log {}", .path.display())]
    Log {
        path: PathBuf,
        #[source]
        source: io::Error,
    },
    #[error("{} is damaged: {why}", .path.display())]
    Damaged { path: PathBuf, why: String },
    #[error(transparent)]
    Plan(#[from] PlanError),
    #[error("channel {0} has no rollout")]
    None(Channel),
    #[error("release {release} of channel {channel} is on its way already: halt it first")]
    Underway { channel: Channel, release: u64 },
    #[error("the rollout of channel {channel} is decided by seeder {seeder}, not by this one")]
    Elsewhere { channel: Channel, seeder: String },
    #[error("the rollout of channel {channel} is {phase}: there is nothing to {act}")]
    NothingTo { channel: Channel, phase: &'static str, act: &'static str },
}

/// A word of the operator's.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Act {
    Pause,
    Resume,
    Halt,
    /// Of the nodes that failed.
    Retry,
}

/// Every rollout that there is.
#[derive(Debug)]
pub struct Book {
    dir: PathBuf,
    own: String,
    rollouts: BTreeMap<Channel, Kept>,
}

#[derive(Debug)]
struct Kept {
    rollout: Rollout,
    /// Who decides.
    seeder: String,
}

#[derive(Serialize, Deserialize)]
struct RolloutFile {
    format: u32,
    seeder: String,
    rollout: Rollout,
}

/// A rollout as `rollout status --json` prints it. Times in seconds since 1970.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct RolloutReport {
    pub channel: String,
    pub release: u64,
    pub image: String,
    /// `running`, `paused`, `halted` or `complete`.
    pub phase: String,
    /// Why it halted.
    pub why: Option<String>,
    /// The seeder that decides.
    pub seeder: String,
    pub nodes: usize,
    /// Nodes that ever had leave to apply.
    pub nodes_touched: usize,
    pub waves: Vec<WaveReport>,
    pub failed: Vec<FailureReport>,
}

#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct WaveReport {
    /// As it was asked for: `1`, `10%`, `group=web`…
    pub wave: String,
    /// `waiting`, `running`, `soaking` or `done`.
    pub state: String,
    #[serde(flatten)]
    pub tally: Tally,
    /// Healthy nodes that the gate needs.
    pub needed: usize,
    /// When it has soaked for long enough, if nothing happens.
    pub soaked_s: Option<u64>,
}

#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct FailureReport {
    pub peer: String,
    pub host: String,
    pub why: String,
}

impl Act {
    fn name(self) -> &'static str {
        match self {
            Self::Pause => "pause",
            Self::Resume => "resume",
            Self::Halt => "halt",
            Self::Retry => "retry",
        }
    }
}

impl Book {
    pub fn open(home: &Home) -> Result<Self, Error> {
        let (dir, own) = (home.rollouts_dir(), home.peer.public().to_peer_id().to_string());
        let mut book = Self { dir, own, rollouts: BTreeMap::new() };
        let listed = match std::fs::read_dir(&book.dir) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(book),
            listed => listed.map_err(|source| Error::List { path: book.dir.clone(), source })?,
        };
        for entry in listed.flatten() {
            let name = entry.file_name().to_string_lossy().into_owned();
            // Logs, and what a killed write left.
            if name.ends_with(".log") || name.starts_with('.') {
                continue;
            }
            let path = entry.path();
            let Some(bytes) = durable::read(&path)? else { continue };
            let damaged = |why: String| Error::Damaged { path: path.clone(), why };
            let file: RolloutFile =
                serde_json::from_slice(&bytes).map_err(|error| damaged(error.to_string()))?;
            if file.format != FORMAT {
                return Err(damaged(format!("it has format {}, this build reads {FORMAT}", file.format)));
            }
            let channel = file.rollout.plan().channel.clone();
            book.rollouts.insert(channel, Kept { rollout: file.rollout, seeder: file.seeder });
        }
        Ok(book)
    }

    fn path(&self, channel: &Channel) -> PathBuf {
        self.dir.join(channel.to_string())
    }

    /// Where the decisions about a channel are written.
    pub fn log_path(&self, channel: &Channel) -> PathBuf {
        self.dir.join(format!("{channel}.log"))
    }

    /// Begins to bring a release to its channel.
    pub fn start(&mut self, now: Time, plan: Plan) -> Result<(), Error> {
        let channel = plan.channel.clone();
        if let Some(kept) = self.rollouts.get(&channel) {
            if kept.seeder != self.own {
                return Err(Error::Elsewhere { channel, seeder: kept.seeder.clone() });
            }
            let before = kept.rollout.plan().release;
            let is_on = matches!(kept.rollout.phase(), Phase::Running | Phase::Paused);
            // A newer release leaves the older one where it is.
            if is_on && before == plan.release {
                return Err(Error::Underway { channel, release: before });
            }
        }
        let number = self.rollouts.get(&channel).map_or(1, |kept| kept.rollout.next_number());
        let rollout = Rollout::start(now, plan)?.numbered_from(number);
        self.rollouts.insert(channel, Kept { rollout, seeder: self.own.clone() });
        Ok(())
    }

    /// Does what the operator says; the caller commits.
    pub fn act(&mut self, now: Time, channel: &Channel, act: Act) -> Result<(), Error> {
        let own = self.own.clone();
        let kept = self.rollouts.get_mut(channel).ok_or_else(|| Error::None(channel.clone()))?;
        if kept.seeder != own {
            return Err(Error::Elsewhere { channel: channel.clone(), seeder: kept.seeder.clone() });
        }
        let rollout = &mut kept.rollout;
        let has_done = match act {
            Act::Pause => rollout.pause(now),
            Act::Resume => rollout.resume(now),
            Act::Halt => rollout.halt(now, "by the operator"),
            Act::Retry => rollout.retry(now) > 0,
        };
        let phase = phase_name(rollout.phase());
        match has_done {
            true => Ok(()),
            false => Err(Error::NothingTo { channel: channel.clone(), phase, act: act.name() }),
        }
    }

    /// The rollout of a channel that this seeder decides.
    pub fn get_mut(&mut self, channel: &Channel) -> Option<&mut Rollout> {
        let own = &self.own;
        self.rollouts.get_mut(channel).filter(|kept| kept.seeder == *own).map(|kept| &mut kept.rollout)
    }

    /// As [`get_mut`](Self::get_mut), to look at.
    pub fn get(&self, channel: &Channel) -> Option<&Rollout> {
        self.rollouts.get(channel).filter(|kept| kept.seeder == self.own).map(|kept| &kept.rollout)
    }

    /// The channels whose rollouts this seeder decides.
    pub fn channels(&self) -> Vec<Channel> {
        let ours = self.rollouts.iter().filter(|(_, kept)| kept.seeder == self.own);
        ours.map(|(channel, _)| channel.clone()).collect()
    }

    pub fn next_timeout(&self) -> Option<Time> {
        let ours = self.rollouts.values().filter(|kept| kept.seeder == self.own);
        ours.filter_map(|kept| kept.rollout.poll_timeout()).min()
    }

    /// Writes down what was decided about a channel, and returns it: from then on it may take effect.
    pub fn commit(&mut self, channel: &Channel) -> Result<Vec<Event>, Error> {
        let (path, log) = (self.path(channel), self.log_path(channel));
        let Some(kept) = self.rollouts.get_mut(channel) else { return Ok(Vec::new()) };
        if !kept.rollout.has_events() {
            return Ok(Vec::new());
        }
        durable::create_private_dir(&self.dir)?;
        let file = RolloutFile { format: FORMAT, seeder: kept.seeder.clone(), rollout: kept.rollout.clone() };
        let text = serde_json::to_vec(&file).expect("a rollout is plain data");
        durable::write(&path, &text, durable::PRIVATE)?;
        let events: Vec<Event> = std::iter::from_fn(|| kept.rollout.poll_event()).collect();
        append(&log, &events).map_err(|source| Error::Log { path: log, source })?;
        Ok(events)
    }

    pub fn reports(&self) -> Vec<RolloutReport> {
        self.rollouts.values().map(|kept| RolloutReport::new(&kept.rollout, &kept.seeder)).collect()
    }

    pub fn report(&self, channel: &Channel) -> Result<RolloutReport, Error> {
        let kept = self.rollouts.get(channel).ok_or_else(|| Error::None(channel.clone()))?;
        Ok(RolloutReport::new(&kept.rollout, &kept.seeder))
    }
}

/// Adds the events that the log has not yet, a line each, and waits until the disk has them.
fn append(path: &Path, events: &[Event]) -> io::Result<()> {
    let mut options = OpenOptions::new();
    options.create(true).truncate(false).read(true).write(true).mode(durable::PRIVATE);
    let mut file = options.open(path)?;
    let bytes = file.seek(SeekFrom::End(0))?;
    let tail_at = bytes.saturating_sub(TAIL_BYTES);
    file.seek(SeekFrom::Start(tail_at))?;
    let mut tail = Vec::new();
    file.read_to_end(&mut tail)?;
    // A line that a crash cut short is not there.
    let whole = tail.iter().rposition(|byte| *byte == b'\n').map_or(0, |end| end + 1);
    let last = tail[..whole].trim_ascii_end().rsplit(|byte| *byte == b'\n').next();
    let last =
        last.and_then(|line| serde_json::from_slice::<Event>(line).ok()).map_or(0, |event| event.number);
    let mut lines = Vec::new();
    for event in events.iter().filter(|event| event.number > last) {
        serde_json::to_writer(&mut lines, event)?;
        lines.push(b'\n');
    }
    file.set_len(tail_at + whole as u64)?;
    file.seek(SeekFrom::End(0))?;
    file.write_all(&lines)?;
    file.sync_all()
}

fn phase_name(phase: &Phase) -> &'static str {
    match phase {
        Phase::Running => "running",
        Phase::Paused => "paused",
        Phase::Halted { .. } => "halted",
        Phase::Complete => "complete",
    }
}

fn seconds(time: Time) -> u64 {
    time.since(Time::ZERO).as_secs()
}

impl RolloutReport {
    fn new(rollout: &Rollout, seeder: &str) -> Self {
        let plan = rollout.plan();
        let (current, has_begun) = rollout.wave();
        let wave = |(at, wave): (usize, &shoal_proto::rollout::Wave)| {
            let tally = rollout.tally(at);
            let soaks = rollout.soaks_since().filter(|_| at == current);
            let state = match at.cmp(&current) {
                std::cmp::Ordering::Less => "done",
                std::cmp::Ordering::Equal if soaks.is_some() => "soaking",
                std::cmp::Ordering::Equal if has_begun => "running",
                _ => "waiting",
            };
            WaveReport {
                wave: wave.to_string(),
                state: state.to_owned(),
                tally,
                needed: plan.gate.needs(tally.nodes),
                soaked_s: soaks.map(|since| seconds(since + plan.gate.soak)),
            }
        };
        let failed = rollout.nodes().iter().filter_map(|(peer, node)| match &node.standing {
            Standing::Failed { why, .. } => {
                Some(FailureReport { peer: peer.to_string(), host: node.host.clone(), why: why.clone() })
            }
            _ => None,
        });
        Self {
            channel: plan.channel.to_string(),
            release: plan.release,
            image: plan.image.to_string(),
            phase: phase_name(rollout.phase()).to_owned(),
            why: match rollout.phase() {
                Phase::Halted { why } => Some(why.clone()),
                _ => None,
            },
            seeder: seeder.to_owned(),
            nodes: rollout.nodes().len(),
            nodes_touched: rollout.touched(),
            waves: plan.waves.iter().enumerate().map(wave).collect(),
            failed: failed.collect(),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use shoal_proto::cid::Cid;
    use shoal_proto::rollout::{Gate, Unavailable};
    use std::time::Duration;

    fn plan(release: u64) -> Plan {
        Plan {
            channel: "stable".parse().unwrap(),
            release,
            image: Cid::of(b"new"),
            waves: ["1", "rest"].map(|wave| wave.parse().unwrap()).to_vec(),
            gate: Gate::default(),
            unavailable: Unavailable::default(),
            frozen: Default::default(),
            patience: Duration::from_secs(60),
            gather: Duration::ZERO,
        }
    }

    fn at(seconds: u64) -> Time {
        Time::ZERO + Duration::from_secs(seconds)
    }

    fn numbers(book: &Book, channel: &Channel) -> Vec<u64> {
        let text = std::fs::read_to_string(book.log_path(channel)).unwrap();
        text.lines().map(|line| serde_json::from_str::<Event>(line).unwrap().number).collect()
    }

    #[test]
    fn what_was_decided_is_on_disk_and_in_the_log_once_however_the_seeder_ended() {
        let dir = tempfile::tempdir().unwrap();
        let home = Home::open(dir.path()).unwrap();
        let mut book = Book::open(&home).unwrap();
        let channel: Channel = "stable".parse().unwrap();
        book.start(at(1), plan(3)).unwrap();
        assert_eq!(book.commit(&channel).unwrap().len(), 1);
        assert!(book.commit(&channel).unwrap().is_empty());
        book.act(at(2), &channel, Act::Pause).unwrap();
        book.commit(&channel).unwrap();
        // Killed between the state and the log, and in the middle of a line.
        let log = std::fs::read_to_string(book.log_path(&channel)).unwrap();
        std::fs::write(book.log_path(&channel), &log[..log.len() - 9]).unwrap();
        let mut book = Book::open(&home).unwrap();
        assert_eq!(book.get(&channel).unwrap().phase(), &Phase::Paused);
        assert_eq!(book.commit(&channel).unwrap().len(), 1);
        assert_eq!(numbers(&book, &channel), [1, 2]);
        // The next one goes on counting.
        assert!(matches!(book.start(at(3), plan(3)), Err(Error::Underway { .. })));
        book.start(at(3), plan(4)).unwrap();
        book.commit(&channel).unwrap();
        assert_eq!(numbers(&book, &channel), [1, 2, 3]);
        assert_eq!(book.report(&channel).unwrap().release, 4);
    }

    #[test]
    fn a_seeder_does_not_decide_what_another_one_began() {
        let (one, two) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
        let (first, second) = (Home::open(one.path()).unwrap(), Home::open(two.path()).unwrap());
        let channel: Channel = "stable".parse().unwrap();
        let mut book = Book::open(&first).unwrap();
        book.start(at(1), plan(3)).unwrap();
        book.commit(&channel).unwrap();
        durable::create_private_dir(&second.rollouts_dir()).unwrap();
        let state = first.rollouts_dir().join("stable");
        std::fs::copy(state, second.rollouts_dir().join("stable")).unwrap();
        let mut other = Book::open(&second).unwrap();
        assert!(other.get(&channel).is_none() && other.channels().is_empty());
        assert!(matches!(other.act(at(2), &channel, Act::Halt), Err(Error::Elsewhere { .. })));
        assert!(matches!(other.start(at(2), plan(4)), Err(Error::Elsewhere { .. })));
        assert_eq!(other.reports().len(), 1);
    }

    #[test]
    fn what_cannot_be_done_is_said() {
        let dir = tempfile::tempdir().unwrap();
        let home = Home::open(dir.path()).unwrap();
        let mut book = Book::open(&home).unwrap();
        let channel: Channel = "stable".parse().unwrap();
        assert!(matches!(book.act(at(1), &channel, Act::Halt), Err(Error::None(_))));
        book.start(at(1), plan(1)).unwrap();
        let error = book.act(at(1), &channel, Act::Resume).unwrap_err().to_string();
        assert_eq!(error, "the rollout of channel stable is running: there is nothing to resume");
    }
}
