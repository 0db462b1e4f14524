//! Carries plans out with the system's own tools.

use std::ffi::OsStr;
use std::fmt::Write as _;
use std::fs;
use std::io::{self, Write as _};
use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};
use std::time::{Duration, Instant};

use crate::disks::device::{Device, DeviceError};
use crate::disks::layout::{Extent, FileSystem, Layout};
use crate::disks::names_file_system;
use crate::disks::plan::{self, DiskPlan, PlanError, mkfs, plan};

/// How long the kernel and udev may take to show a new partition.
const APPEAR_MAX: Duration = Duration::from_secs(20);
const APPEAR_INTERVAL: Duration = Duration::from_millis(50);

#[derive(Debug, thiserror::Error)]
pub enum Error {
    #[error(transparent)]
    Device(#[from] DeviceError),
    #[error(transparent)]
    Plan(#[from] PlanError),
    #[error("cannot make the mount point {}", .path.display())]
    MountPoint {
        path: PathBuf,
        #[source]
        source: io::Error,
    },
    #[error("cannot write {}", .path.display())]
    Fstab {
        path: PathBuf,
        #[source]
        source: io::Error,
    },
}

/// Disks that a layout fits on, that nobody uses, and that are not touched yet.
#[derive(Debug)]
pub struct Prepared {
    layout: Layout,
    disks: Vec<(Device, DiskPlan)>,
}

/// Looks at every disk of a layout; refuses them all when one is in use or has no room.
pub fn prepare(layout: Layout) -> Result<Prepared, Error> {
    let mut disks = Vec::new();
    for disk in &layout.disks {
        let device = Device::find(&disk.device)?;
        device.check_unused()?;
        let plan = plan(disk, &device.facts()?)?;
        disks.push((device, plan));
    }
    Ok(Prepared { layout, disks })
}

impl Prepared {
    /// The plans, in words: a line for each partition, after one for its disk.
    pub fn describe(&self) -> String {
        let mut text = String::new();
        for (device, plan) in &self.disks {
            let lost = match plan.lost.len() {
                0 => String::new(),
                count => format!(", {count} partitions with all that they hold go"),
            };
            let _ = writeln!(text, "{} ({}){lost}", plan.device.display(), device.path.display());
            for planned in &plan.partitions {
                let filesystem = planned.partition.filesystem.map_or("-", FileSystem::name);
                let point = planned.partition.mount.as_deref().map_or("-".into(), Path::to_string_lossy);
                let kept = if planned.keep { "  kept" } else { "" };
                let (number, start, sectors) = (planned.number, planned.start, planned.sectors);
                let _ = writeln!(text, "  {number}: sectors {start}+{sectors}  {filesystem}  {point}{kept}");
            }
        }
        text
    }

    /// Partitions the disks, makes the file systems and mounts those below `target`, which exists. Asks nobody: the
    /// caller did.
    pub fn perform(self, target: &Path) -> Result<Mounted, Error> {
        for (device, plan) in &self.disks {
            device.check_unused()?;
            partition(device, plan)?;
            for planned in plan.partitions.iter().filter(|planned| !planned.keep) {
                let path = device.partition(planned.number);
                match planned.partition.filesystem {
                    Some(filesystem) => {
                        let (program, arguments) = mkfs(filesystem, &planned.partition, &path);
                        run(program, &arguments, b"")?;
                    }
                    // What lay there before must not be found there.
                    None => {
                        run("wipefs", &[OsStr::new("--all"), OsStr::new("--quiet"), path.as_os_str()], b"")?;
                    }
                }
            }
        }
        let mut mounted = Mounted { target: target.to_owned(), points: Vec::new(), fstab: String::new() };
        mounted.fstab = self.fstab()?;
        // What is kept is no place for the image's files; the machine finds it in its fstab.
        let new = |extent| extent != Extent::Kept;
        for (point, partition) in self.layout.mounts().into_iter().filter(|(_, made)| new(made.extent)) {
            let device = self.device_at(point).expect("the mount is of the layout");
            let path = target.join(point.strip_prefix("/").expect("a mount point is absolute"));
            fs::create_dir_all(&path).map_err(|source| Error::MountPoint { path: path.clone(), source })?;
            let filesystem = partition.filesystem.expect("what is mounted has a file system");
            let mut arguments = vec![OsStr::new("-t"), OsStr::new(filesystem.name())];
            if let Some(options) = &partition.options {
                arguments.extend([OsStr::new("-o"), OsStr::new(options)]);
            }
            arguments.extend([device.as_os_str(), path.as_os_str()]);
            run("mount", &arguments, b"")?;
            mounted.points.push(path);
        }
        Ok(mounted)
    }

    fn devices(&self) -> impl Iterator<Item = (PathBuf, &plan::Planned)> {
        self.disks.iter().flat_map(|(device, plan)| {
            plan.partitions.iter().map(|planned| (device.partition(planned.number), planned))
        })
    }

    fn device_at(&self, point: &Path) -> Option<PathBuf> {
        let mut devices = self.devices();
        devices.find(|(_, planned)| planned.partition.mount.as_deref() == Some(point)).map(|(path, _)| path)
    }

    /// A line for each file system, by its UUID.
    fn fstab(&self) -> Result<String, Error> {
        let mut lines = Vec::new();
        for (path, planned) in self.devices() {
            let Some(filesystem) = planned.partition.filesystem else { continue };
            let swap = filesystem == FileSystem::Swap;
            let point = match &planned.partition.mount {
                Some(point) => point.as_path(),
                None if swap => Path::new("none"),
                None => continue,
            };
            let arguments = ["-p", "-s", "UUID", "-o", "value"].map(OsStr::new);
            let said = run("blkid", &[&arguments[..], &[path.as_os_str()]].concat(), b"")?;
            let uuid = String::from_utf8_lossy(&said.stdout).trim().to_owned();
            let options = match &planned.partition.options {
                Some(options) => options,
                None if swap => "sw",
                None => "defaults",
            };
            let check = match (filesystem, point == Path::new("/")) {
                (FileSystem::Ext4, true) => 1,
                (FileSystem::Ext4 | FileSystem::Vfat, false) => 2,
                _ => 0,
            };
            let name = filesystem.name();
            lines.push((
                point.to_owned(),
                format!("UUID={uuid} {} {name} {options} 0 {check}\n", point.display()),
            ));
        }
        lines.sort();
        Ok(lines.into_iter().map(|(_, line)| line).collect())
    }
}

/// The file systems of a layout, mounted. They stay mounted when this is dropped: the caller may have more to do there.
#[derive(Debug)]
pub struct Mounted {
    target: PathBuf,
    points: Vec<PathBuf>,
    fstab: String,
}

impl Mounted {
    /// Where file systems are mounted, parents first.
    pub fn points(&self) -> &[PathBuf] {
        &self.points
    }

    /// Writes `etc/fstab` into the target, unless the image brought one that names a file system. Says whether it did.
    pub fn write_fstab(&self) -> Result<bool, Error> {
        let path = self.target.join("etc/fstab");
        let failed = |source| Error::Fstab { path: path.clone(), source };
        let found = match fs::read_to_string(&path) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => String::new(),
            read => read.map_err(failed)?,
        };
        if names_file_system(&found) || !self.target.join("etc").is_dir() {
            return Ok(false);
        }
        fs::write(&path, &self.fstab).map_err(failed)?;
        Ok(true)
    }
}

/// Writes the partition table and waits until its partitions are there.
fn partition(device: &Device, plan: &DiskPlan) -> Result<(), Error> {
    // A kept partition keeps its signatures; those that are new get a file system or are wiped.
    let arguments = ["--quiet", "--wipe", "always", "--wipe-partitions", "never"].map(OsStr::new);
    run("sfdisk", &[&arguments[..], &[device.path.as_os_str()]].concat(), plan.script.as_bytes())?;
    if !plan.partitions.iter().all(|planned| device.partition(planned.number).exists()) {
        // A kernel that reads no such tables is told; one that does says that it knows.
        let mut tell = Command::new("partx");
        tell.arg("--update").arg(&device.path).stdout(Stdio::null()).stderr(Stdio::null());
        let _ = tell.status();
    }
    let deadline = Instant::now() + APPEAR_MAX;
    for planned in &plan.partitions {
        let path = device.partition(planned.number);
        while !path.exists() {
            if Instant::now() > deadline {
                return Err(DeviceError::NoPartition(path).into());
            }
            std::thread::sleep(APPEAR_INTERVAL);
        }
    }
    // Where udev is at work it looks at each new device, and mkfs finds them busy until it is done.
    let _ = Command::new("udevadm").args(["settle", "--timeout=20"]).stderr(Stdio::null()).status();
    Ok(())
}

/// Runs a tool to its end.
fn run(program: &'static str, arguments: &[impl AsRef<OsStr>], input: &[u8]) -> Result<Output, DeviceError> {
    let missing = |source| DeviceError::Missing { program, source };
    let mut command = Command::new(program);
    command.args(arguments).stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
    let mut child = command.spawn().map_err(missing)?;
    // One that does not read it says itself what it lacks.
    let _ = child.stdin.take().expect("piped").write_all(input);
    let output = child.wait_with_output().map_err(missing)?;
    if !output.status.success() {
        let words = arguments.iter().map(|argument| argument.as_ref().to_string_lossy().into_owned());
        let command = std::iter::once(program.to_owned()).chain(words).collect::<Vec<_>>().join(" ");
        let said = String::from_utf8_lossy(&output.stderr);
        let said = said.lines().map(str::trim).filter(|line| !line.is_empty()).collect::<Vec<_>>().join("; ");
        return Err(DeviceError::Failed { command, said });
    }
    Ok(output)
}
