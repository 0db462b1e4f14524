//! The only process of the machine, in a root in memory, with the old root at `/oldroot` and everything that the image
//! needs beside it.

use std::fs::{self, File, OpenOptions};
use std::io::{self, Write};
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Command, ExitCode};
use std::sync::Arc;
use std::time::Duration;

use rustix::mount::{MountFlags, UnmountFlags, mount, mount_bind_recursive, mount_remount, unmount};
use rustix::process::{chdir, chroot};
use rustix::system::{RebootCommand, reboot};
use shoal_proto::cid::Cid;
use shoal_proto::image::Manifest;

use crate::join::verified_in;
use crate::manifest::{self, read_manifest};
use crate::replace::Plan;
use crate::state::{Phase, Record, State, TargetState};
use crate::store::{self, Store};
use crate::tree::apply::{Apply, ApplyError, ApplyOptions};
use crate::tree::clear::{ClearError, clear};

/// How systemd calls this program when the machine is to be shut down.
pub const PROGRAM: &str = "/shutdown";
/// How this program calls itself to run a command in the new root.
pub const INSIDE: &str = "shoal-inside";

const OLD_ROOT: &str = "/oldroot";
const LOST_AND_FOUND: &str = "lost+found";
/// Where the state of an installed machine is (see [`crate::state::default_dir`]).
const STATE: &str = "var/lib/shoal/node";
/// A file system of a boot loader's own: its files are not the image's.
const BOOT_LOADER_KIND: &str = "vfat";
const TRIES: usize = 3;
const PAUSE: Duration = Duration::from_secs(10);

#[derive(Debug, thiserror::Error)]
enum Error {
    #[error("cannot read {}", .path.display())]
    Read {
        path: PathBuf,
        #[source]
        source: io::Error,
    },
    #[error("cannot understand the plan")]
    Plan(#[from] serde_json::Error),
    #[error("cannot mount {}", .path.display())]
    Mount {
        path: PathBuf,
        #[source]
        source: rustix::io::Errno,
    },
    #[error("cannot write {}", .path.display())]
    Write {
        path: PathBuf,
        #[source]
        source: io::Error,
    },
    #[error("the plan names no image")]
    NoImage,
    #[error("{missing} pieces of the image are not in memory")]
    Incomplete { missing: usize },
    #[error("the boot loader's command ended with {0}")]
    BootLoader(std::process::ExitStatus),
    #[error(transparent)]
    State(#[from] crate::state::Error),
    #[error(transparent)]
    Store(#[from] store::Error),
    #[error(transparent)]
    Manifest(#[from] manifest::Error),
    #[error(transparent)]
    Clear(#[from] ClearError),
    #[error(transparent)]
    Apply(#[from] ApplyError),
}

/// Replaces the old root and boots. Returns never: the kernel panics when its first process ends.
pub fn run() -> ! {
    let mut console = Console::open();
    console.say("the machine is down to this program");
    match Takeover::open() {
        // Nothing was changed: the old system is as good as it was.
        Err(error) => console.fail("nothing was replaced", &error),
        Ok(takeover) => takeover.replace(&mut console),
    }
    // What could be written is written, and what is broken cannot be mended from here.
    rustix::fs::sync();
    let _ = mount_remount(OLD_ROOT, MountFlags::RDONLY, c"");
    console.say("rebooting");
    let error = reboot(RebootCommand::Restart);
    console.say(&format!("cannot reboot: {error:?}"));
    loop {
        std::thread::sleep(PAUSE);
    }
}

/// Runs a shell's command in another root: what [`run`] calls this program for. Arguments: the root, the command.
pub fn inside() -> ExitCode {
    let mut arguments = std::env::args_os().skip(1);
    let (Some(root), Some(command)) = (arguments.next(), arguments.next()) else { return ExitCode::from(2) };
    if let Err(error) = chroot(Path::new(&root)).and_then(|()| chdir("/")) {
        eprintln!("shoal: cannot enter {}: {error}", Path::new(&root).display());
        return ExitCode::FAILURE;
    }
    let error = Command::new("/bin/sh").arg("-c").arg(command).exec();
    eprintln!("shoal: cannot run /bin/sh: {error}");
    ExitCode::FAILURE
}

/// Everything that was staged, checked, before the first change.
struct Takeover {
    plan: Plan,
    state: State,
    target: TargetState,
    record: Record,
    image: Cid,
    manifest: Arc<Manifest>,
    store: Store,
}

impl Takeover {
    fn open() -> Result<Self, Error> {
        let text = read(Path::new("/plan.json"))?;
        let plan: Plan = serde_json::from_slice(&text)?;
        let state = State::open(Path::new("/state"))?;
        let target = state.target(Path::new("/"))?;
        let record = target.record()?.ok_or(Error::NoImage)?;
        let image = record.image().ok_or(Error::NoImage)?;
        let manifest = Arc::new(read_manifest(&target, &image)?);
        let store = Store::open(Path::new("/store"))?;
        let missing = manifest
            .content()
            .indexes()
            .filter(|piece| !store.contains(&manifest.content().piece(*piece).cid));
        match missing.count() {
            0 => {}
            missing => return Err(Error::Incomplete { missing }),
        }
        mount_remount(OLD_ROOT, MountFlags::empty(), c"")
            .map_err(|source| Error::Mount { path: OLD_ROOT.into(), source })?;
        Ok(Self { plan, state, target, record, image, manifest, store })
    }

    /// Replaces the tree, again when that fails, and has the boot loader installed.
    fn replace(&self, console: &mut Console) {
        console.say(&format!("replacing {} by image {}", self.plan.root_device, self.image));
        for attempt in 1..=TRIES {
            match self.write_tree(console) {
                Ok(()) => break,
                Err(error) if attempt < TRIES => console.fail("trying again", &error),
                Err(error) => return console.fail("the root is not complete and will not boot", &error),
            }
            std::thread::sleep(PAUSE);
        }
        console.say("the tree is complete");
        match self.install_boot_loader() {
            Ok(()) => console.say("the boot loader is installed"),
            Err(error) => console.fail("the machine may not boot", &error),
        }
    }

    fn write_tree(&self, console: &mut Console) -> Result<(), Error> {
        let top = Path::new(OLD_ROOT);
        for system in self.plan.mounts.iter().rev() {
            let _ = unmount(top.join(&system.point), UnmountFlags::empty());
        }
        clear(top, LOST_AND_FOUND)?;
        for system in self.plan.mounts.iter().filter(|system| system.kind != BOOT_LOADER_KIND) {
            let point = self.mount(system)?;
            clear(&point, LOST_AND_FOUND)?;
        }
        console.say("the old system is gone");
        let apply = Apply::create(self.manifest.clone(), top, ApplyOptions::default())?;
        let list = self.manifest.content();
        let written = verified_in(&self.store, list, |piece, raw| apply.write_piece(piece, raw))?;
        if written.count() < list.len() {
            return Err(Error::Incomplete { missing: list.len() - written.count() });
        }
        let applied = apply.finish()?;
        let record = Record { phase: Phase::Complete, lost: applied.losses.kinds(), ..self.record.clone() };
        self.target.write_record(&record)?;
        copy_tree(self.state.dir(), &top.join(STATE))?;
        self.write_fstab(&top.join("etc/fstab"))?;
        rustix::fs::sync();
        Ok(())
    }

    /// The machine's file systems stay what they are: its fstab goes with it, unless the image names file systems.
    fn write_fstab(&self, path: &Path) -> Result<(), Error> {
        let found = fs::read_to_string(path).unwrap_or_default();
        if crate::disks::names_file_system(&found) || !path.parent().is_some_and(Path::is_dir) {
            return Ok(());
        }
        fs::write(path, &self.plan.fstab).map_err(|source| Error::Write { path: path.to_owned(), source })
    }

    fn mount(&self, system: &super::SystemMount) -> Result<PathBuf, Error> {
        let point = Path::new(OLD_ROOT).join(&system.point);
        fs::create_dir_all(&point).map_err(|source| Error::Write { path: point.clone(), source })?;
        mount(system.device.as_str(), &point, system.kind.as_str(), MountFlags::empty(), None)
            .map_err(|source| Error::Mount { path: point.clone(), source })?;
        Ok(point)
    }

    fn install_boot_loader(&self) -> Result<(), Error> {
        let top = Path::new(OLD_ROOT);
        for system in self.plan.mounts.iter().filter(|system| system.kind == BOOT_LOADER_KIND) {
            self.mount(system)?;
        }
        for name in ["dev", "proc", "sys"] {
            let point = top.join(name);
            fs::create_dir_all(&point).map_err(|source| Error::Write { path: point.clone(), source })?;
            mount_bind_recursive(Path::new("/").join(name), &point)
                .map_err(|source| Error::Mount { path: point, source })?;
        }
        let mut command = Command::new("/proc/self/exe");
        command.arg0(INSIDE).arg(OLD_ROOT).arg(&self.plan.boot_loader).env_clear();
        command.env("PATH", "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin");
        command.env("SHOAL_DISK", &self.plan.disk).env("SHOAL_ROOT_DEVICE", &self.plan.root_device);
        let ended =
            command.status().map_err(|source| Error::Read { path: "/proc/self/exe".into(), source })?;
        for name in ["sys", "proc", "dev"] {
            let _ = unmount(top.join(name), UnmountFlags::DETACH);
        }
        for system in self.plan.mounts.iter().rev() {
            let _ = unmount(top.join(&system.point), UnmountFlags::empty());
        }
        if ended.success() { Ok(()) } else { Err(Error::BootLoader(ended)) }
    }
}

fn read(path: &Path) -> Result<Vec<u8>, Error> {
    fs::read(path).map_err(|source| Error::Read { path: path.to_owned(), source })
}

/// Copies a tree of plain files and directories, for their owner only: what the state is made of.
fn copy_tree(from: &Path, to: &Path) -> Result<(), Error> {
    crate::durable::create_private_dir(to).map_err(crate::state::Error::from)?;
    let listed = fs::read_dir(from).map_err(|source| Error::Read { path: from.to_owned(), source })?;
    for entry in listed.flatten() {
        let (path, copy) = (entry.path(), to.join(entry.file_name()));
        let kind = entry.file_type().map_err(|source| Error::Read { path: path.clone(), source })?;
        if kind.is_dir() {
            copy_tree(&path, &copy)?;
        } else if kind.is_file() {
            fs::copy(&path, &copy).map_err(|source| Error::Write { path: copy, source })?;
        }
    }
    Ok(())
}

/// Where a person may read what happens: there is no log any more.
struct Console(Option<File>);

impl Console {
    fn open() -> Self {
        Self(OpenOptions::new().write(true).open("/dev/console").ok())
    }

    fn say(&mut self, text: &str) {
        if let Some(console) = &mut self.0 {
            let _ = writeln!(console, "shoal: {text}\r");
        }
    }

    fn fail(&mut self, what: &str, error: &dyn std::error::Error) {
        let mut text = format!("{what}: {error}");
        let mut cause = error.source();
        while let Some(source) = cause {
            text.push_str(&format!(": {source}"));
            cause = source.source();
        }
        self.say(&text);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_state_goes_over_whole() {
        let (from, to) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
        fs::create_dir_all(from.path().join("targets/a")).unwrap();
        fs::write(from.path().join("key"), "key").unwrap();
        fs::write(from.path().join("targets/a/record.json"), "{}").unwrap();
        let copy = to.path().join("var/lib/shoal/node");
        copy_tree(from.path(), &copy).unwrap();
        copy_tree(from.path(), &copy).unwrap();
        assert_eq!(fs::read(copy.join("key")).unwrap(), b"key");
        assert_eq!(fs::read(copy.join("targets/a/record.json")).unwrap(), b"{}");
    }
}
