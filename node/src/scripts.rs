//! The cluster's scripts: run one after the other, and gone on with where one failed.
//!
//! As root, and in a target that is not this system's root, a script runs in a chroot of the target, with `/dev`, `/proc`,
//! `/run` and `/sys` bound into it in a mount namespace of its own; otherwise in the target's directory. Those before
//! an install run in this system, for the target has nothing yet. All processes of a script end when its time is over, or
//! this one ends. What a script says is kept in `DATA/targets/NAME/scripts/STAGE.NAME.log`.
//!
//! | variable | is |
//! |---|---|
//! | `SHOAL_HOST`, `HOSTNAME` | the host's name in the cluster file |
//! | `SHOAL_IMAGE`, `IMAGENAME` | the image's name |
//! | `SHOAL_IMAGE_ID` | the image's id |
//! | `SHOAL_GROUPS`, `GROUPNAMES` | the host's groups, the most important first |
//! | `SHOAL_LAYERS` | the overrides, the lowest first |
//! | `SHOAL_STAGE` | `pre-install`, `post-install`, `pre-update` or `post-update` |
//! | `SHOAL_SCRIPT` | the script's name |
//! | `SHOAL_TARGET` | the tree, as the script sees it: `/` in a chroot |
//! | others | the variables of the cluster file; of the system's environment nothing |

use std::fs::{self, File, FileTimes};
use std::io::{self, Read, Write};
use std::os::unix::fs::PermissionsExt;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Command, ExitStatus, Stdio};
use std::sync::mpsc;
use std::time::{Duration, Instant};

use rustix::mount::{MountPropagationFlags, mount_bind_recursive, mount_change};
use rustix::process::{Pid, Signal};
use rustix::thread::UnshareFlags;
use shoal_proto::assignment::{Assignment, Script, Stage};
use shoal_proto::cid::Cid;

use crate::durable;
use crate::state::{self, Pending, TargetState};

/// Most bytes that are kept of what a script says.
const LOG_BYTES_MAX: u64 = 1 << 20;
/// Lines of it that are shown when it failed.
const LINES_SHOWN: usize = 5;
/// Where a script stands while it runs, at the top of the tree that it runs in.
const PLACE: &str = ".shoal-script";
/// What is bound into a chroot.
const BOUND: [&str; 4] = ["dev", "proc", "run", "sys"];
/// How long what a script left behind may go on saying something.
const LAST_WORDS: Duration = Duration::from_secs(1);
const PATH: &str = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin";
/// The hidden verb of `shoal-node` that [`enter`] is behind.
pub const VERB: &str = "run-script";

#[derive(Debug, thiserror::Error)]
pub enum Error {
    #[error(transparent)]
    State(#[from] state::Error),
    #[error(transparent)]
    File(#[from] durable::Error),
    #[error("{stage} script {name} {why}; the same command again goes on with it; it said (all of it in {}):{tail}", .log.display())]
    Failed { stage: &'static str, name: String, why: String, log: PathBuf, tail: String },
    #[error("cannot run {stage} script {name}")]
    Run {
        stage: &'static str,
        name: String,
        #[source]
        source: io::Error,
    },
}

/// For what scripts run.
#[derive(Clone, Debug)]
pub(crate) struct Setting {
    pub(crate) assignment: Assignment,
    /// The tree that is installed or updated.
    pub(crate) target: PathBuf,
    /// The goal that the tree is to be.
    pub(crate) goal: Cid,
    pub(crate) state: TargetState,
}

impl Setting {
    /// Whether the scripts of this stage, or of the one after it, are under way for this goal.
    pub(crate) fn is_pending(&self, stage: Stage) -> Result<bool, Error> {
        Ok(self.state.pending()?.is_some_and(|pending| pending.is_of(stage, &self.goal)))
    }

    /// Remembers that this stage is next: a run that is killed goes on with it.
    pub(crate) fn expect(&self, stage: Stage) -> Result<(), Error> {
        if self.assignment.scripts_of(stage).next().is_some() && !self.is_pending(stage)? {
            self.state.write_pending(Some(&Pending::of(stage, &self.goal)))?;
        }
        Ok(())
    }

    /// Runs the scripts of a stage that did not run yet for this goal.
    pub(crate) fn run(&self, stage: Stage) -> Result<(), Error> {
        let mut scripts = self.assignment.scripts_of(stage).peekable();
        if scripts.peek().is_none() {
            if self.is_pending(stage)? {
                self.state.write_pending(None)?;
            }
            return Ok(());
        }
        self.expect(stage)?;
        let mut pending = self.state.pending()?.unwrap_or_else(|| Pending::of(stage, &self.goal));
        for script in scripts {
            let done = format!("{} {}", Cid::of(&script.content), script.name);
            if pending.done.contains(&done) {
                continue;
            }
            tracing::info!(stage = stage.name(), script = script.name, "running a script");
            self.run_one(script)?;
            pending.done.push(done);
            self.state.write_pending(Some(&pending))?;
        }
        // What comes before something else stays said until that is expected.
        if matches!(stage, Stage::PostInstall | Stage::PostUpdate) {
            self.state.write_pending(None)?;
        }
        Ok(())
    }

    fn run_one(&self, script: &Script) -> Result<(), Error> {
        let failed = |source| Error::Run { stage: script.stage.name(), name: script.name.clone(), source };
        let log = self.state.scripts_dir().join(format!("{}.{}.log", script.stage.name(), script.name));
        durable::create_private_dir(&self.state.scripts_dir())?;
        let outside = script.stage == Stage::PreInstall;
        let top = if outside { self.state.scripts_dir() } else { self.target.clone() };
        let place = top.join(PLACE);
        let modified = fs::metadata(&top).and_then(|found| found.modified()).map_err(failed)?;
        let put = || -> io::Result<PathBuf> {
            remove(&place)?;
            fs::create_dir(&place)?;
            fs::set_permissions(&place, fs::Permissions::from_mode(0o700))?;
            let file = place.join(&script.name);
            fs::write(&file, &script.content)?;
            fs::set_permissions(&file, fs::Permissions::from_mode(0o700))?;
            Ok(file)
        };
        let file = put().map_err(failed)?;
        let is_root = rustix::process::geteuid().is_root();
        let target = self.target.canonicalize().map_err(failed)?;
        let in_chroot = is_root && !outside && target != Path::new("/");
        let mut command = Command::new(std::env::current_exe().map_err(failed)?);
        command.arg(VERB);
        if in_chroot {
            command.arg("--root").arg(&target).arg(Path::new("/").join(PLACE).join(&script.name));
        } else {
            command.arg(file.canonicalize().map_err(failed)?);
            command.current_dir(if outside { Path::new("/") } else { &target });
        }
        self.set_environment(&mut command, script, if in_chroot { Path::new("/") } else { &target });
        let timeout = Duration::from_secs(self.assignment.script_timeout_s.into());
        let ended = run_bounded(command, &log, timeout);
        remove(&place).map_err(failed)?;
        // As if the script had never been there: the time of the tree's top is the image's.
        let times = FileTimes::new().set_modified(modified);
        File::open(&top).and_then(|top| top.set_times(times)).map_err(failed)?;
        let why = match ended.map_err(failed)? {
            Some(status) if status.success() => return Ok(()),
            Some(status) => format!("failed with {status}"),
            None => format!("took longer than {} s", timeout.as_secs()),
        };
        let tail = tail_of(&log);
        Err(Error::Failed { stage: script.stage.name(), name: script.name.clone(), why, log, tail })
    }

    fn set_environment(&self, command: &mut Command, script: &Script, target: &Path) {
        let said = &self.assignment;
        let layers: Vec<&str> = said.layers.iter().map(|layer| layer.name.as_str()).collect();
        let groups = said.groups.join(" ");
        command.env_clear().env("PATH", PATH).env("LC_ALL", "C.UTF-8").env("HOME", "/root");
        command.env("HOSTNAME", said.host.as_str()).env("IMAGENAME", said.image.as_str());
        command.env("GROUPNAMES", &groups);
        command.envs(&said.variables);
        command.env("SHOAL_HOST", said.host.as_str()).env("SHOAL_IMAGE", said.image.as_str());
        command.env("SHOAL_IMAGE_ID", said.image_id.to_string()).env("SHOAL_GROUPS", groups);
        command.env("SHOAL_LAYERS", layers.join(" ")).env("SHOAL_STAGE", script.stage.name());
        command.env("SHOAL_SCRIPT", &script.name).env("SHOAL_TARGET", target);
    }
}

/// Runs a command, and ends it with all that it started when its time is over: `None` then. Both of its outputs go to
/// `log`.
fn run_bounded(mut command: Command, log: &Path, timeout: Duration) -> io::Result<Option<ExitStatus>> {
    let mut kept = File::create(log)?;
    kept.set_permissions(fs::Permissions::from_mode(0o600))?;
    let (mut said, says) = io::pipe()?;
    command.stdin(Stdio::null()).stdout(says.try_clone()?).stderr(says).process_group(0);
    let mut child = command.spawn()?;
    // It holds the other ends of the pipe.
    drop(command);
    let (done, heard) = mpsc::channel::<()>();
    std::thread::spawn(move || {
        let _done = done;
        let _ = io::copy(&mut (&mut said).take(LOG_BYTES_MAX), &mut kept);
        let _ = kept.flush();
        // Nobody is to wait for a full pipe.
        let _ = io::copy(&mut said, &mut io::sink());
    });
    let deadline = Instant::now() + timeout;
    let mut pause = Duration::from_millis(2);
    let ended = loop {
        if let Some(status) = child.try_wait()? {
            break Some(status);
        }
        if Instant::now() >= deadline {
            break None;
        }
        std::thread::sleep(pause.min(deadline.saturating_duration_since(Instant::now())));
        pause = (pause * 2).min(Duration::from_millis(100));
    };
    if ended.is_none() {
        if let Some(group) = i32::try_from(child.id()).ok().and_then(Pid::from_raw) {
            // It may have ended meanwhile.
            let _ = rustix::process::kill_process_group(group, Signal::KILL);
        }
        child.wait()?;
    }
    // Never sent: it ends when the thread does.
    let _ = heard.recv_timeout(LAST_WORDS);
    Ok(ended)
}

fn tail_of(log: &Path) -> String {
    let text = fs::read(log).unwrap_or_default();
    let text = String::from_utf8_lossy(&text).into_owned();
    let lines: Vec<String> = text
        .lines()
        .map(|line| line.chars().filter(|shown| !shown.is_control()).take(200).collect())
        .collect();
    let last = &lines[lines.len().saturating_sub(LINES_SHOWN)..];
    if last.is_empty() { " nothing".to_owned() } else { format!(" {}", last.join(" | ")) }
}

/// Removes what stands at a path, if anything does.
fn remove(place: &Path) -> io::Result<()> {
    let removed = match fs::symlink_metadata(place) {
        Ok(found) if found.is_dir() => fs::remove_dir_all(place),
        Ok(_) => fs::remove_file(place),
        Err(error) => Err(error),
    };
    match removed {
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
        removed => removed,
    }
}

/// Becomes the script at `path`, in a chroot of `root` if one is given. Returns only when that fails.
///
/// Behind a verb of its own, for a process can give up its root only for itself.
pub fn enter(root: Option<&Path>, path: &Path) -> io::Error {
    match become_script(root, path) {
        Ok(never) => match never {},
        Err(error) => error,
    }
}

fn become_script(root: Option<&Path>, path: &Path) -> io::Result<std::convert::Infallible> {
    // Nobody would wait for the script any more.
    rustix::process::set_parent_process_death_signal(Some(Signal::KILL))?;
    if let Some(root) = root {
        bind_into(root);
        rustix::process::chroot(root)?;
        rustix::process::chdir("/")?;
    }
    Err(Command::new(path).exec())
}

/// Makes the system's own file systems to be had below `root`, for this process alone, as far as that may be done.
fn bind_into(root: &Path) {
    #[expect(deprecated, reason = "it is unsafe with tables of files, which stay shared here")]
    let alone = rustix::thread::unshare(UnshareFlags::NEWNS).is_ok()
        && mount_change("/", MountPropagationFlags::REC | MountPropagationFlags::PRIVATE).is_ok();
    if !alone {
        return;
    }
    for name in BOUND {
        let place = root.join(name);
        // A link would lead out of the target.
        let is_directory = fs::symlink_metadata(&place).is_ok_and(|found| found.is_dir());
        if is_directory {
            // Without it, what needs it says so itself.
            let _ = mount_bind_recursive(Path::new("/").join(name), &place);
        }
    }
}
