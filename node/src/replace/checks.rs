//! The guard rails: on which machine a root is never replaced, and what there is to know of the others.

use std::fs;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

use rustix::fs::statvfs;
use shoal_proto::cid::Cid;

use crate::elf::asks_for_loader;
use crate::mountinfo::{self, Mount};
use crate::replace::{Error, Plan, STAGE, SystemMount};
use crate::state::default_dir;

/// File systems that a root can be replaced on: one tree, on one device.
const ROOT_KINDS: [&str; 5] = ["ext2", "ext3", "ext4", "xfs", "f2fs"];
/// Parts of an operating system that some sites give a file system of their own. What is mounted elsewhere is data.
const SYSTEM_POINTS: [&str; 6] = ["/boot", "/boot/efi", "/efi", "/opt", "/usr", "/var"];
/// What the machine needs beside the image's blocks: for the kernel, for this program, for the running services.
const RESERVE_BYTES: u64 = 256 << 20;
/// Blocks of system files are hardly ever compressed to less than a fifth.
const COMPRESSION_MAX: u64 = 5;

/// Why the root of this machine is not replaced.
#[derive(Debug, thiserror::Error)]
pub enum Refusal {
    #[error("only root may replace the root file system")]
    NotRoot,
    #[error("this is no booted system but a chroot or a container: its root is not replaced")]
    Chroot,
    #[error("the machine is not run by systemd, which would hand it over at shutdown")]
    NoSystemd,
    #[error("this machine is a seeder ({} is there): its root is not replaced", .0.display())]
    Seeder(PathBuf),
    #[error("this program needs libraries of the system that is to be replaced: use a statically linked one")]
    Dynamic,
    #[error("the root is {found}; only a root of kind {} on a device of its own can be replaced", ROOT_KINDS.join(", "))]
    RootKind { found: String },
    #[error("{STAGE} is in use: an earlier replacement waits for the shutdown, or another program does")]
    StageInUse,
    #[error("cannot read {}", .path.display())]
    Unreadable {
        path: PathBuf,
        #[source]
        source: std::io::Error,
    },
}

/// A machine whose root may be replaced.
#[derive(Debug)]
pub(super) struct Machine {
    root_device: String,
    disk: String,
    mounts: Vec<SystemMount>,
    fstab: String,
    /// How large the file system in memory may become.
    pub(super) stage_bytes: u64,
}

/// Looks at this machine; changes nothing.
pub(super) fn machine() -> Result<Machine, Refusal> {
    if !rustix::process::geteuid().is_root() {
        return Err(Refusal::NotRoot);
    }
    let identity = |path: &str| {
        let found = fs::metadata(path);
        found.map(|found| (found.dev(), found.ino())).map_err(|source| unreadable(path, source))
    };
    if identity("/proc/1/root/")? != identity("/")? || Path::new("/run/systemd/container").exists() {
        return Err(Refusal::Chroot);
    }
    if !Path::new("/run/systemd/system").is_dir() {
        return Err(Refusal::NoSystemd);
    }
    let seeder = default_dir("seeder").join("keys");
    if seeder.exists() {
        return Err(Refusal::Seeder(seeder));
    }
    let program = fs::read("/proc/self/exe").map_err(|source| unreadable("/proc/self/exe", source))?;
    if asks_for_loader(&program) != Some(false) {
        return Err(Refusal::Dynamic);
    }
    let mounts = mountinfo::read();
    if mounts.iter().any(|mount| mount.point == Path::new(STAGE)) {
        return Err(Refusal::StageInUse);
    }
    let root = mounts.iter().rfind(|mount| mount.point == Path::new("/"));
    let kind = root.map_or("", |mount| mount.kind.as_str());
    let (Some(device), true) = (device_of("/"), ROOT_KINDS.contains(&kind)) else {
        return Err(Refusal::RootKind { found: kind.to_owned() });
    };
    Ok(Machine {
        disk: disk_of(&device),
        root_device: device,
        mounts: system_mounts(&mounts),
        fstab: fs::read_to_string("/etc/fstab").unwrap_or_default(),
        stage_bytes: available_bytes().saturating_sub(RESERVE_BYTES),
    })
}

impl Machine {
    /// Whether an image of so many bytes has room on the root, and its blocks in memory.
    pub(super) fn check_room(&self, raw_bytes: u64) -> Result<(), Error> {
        let room = |what, need: u64, have: u64| match have {
            have if have < need => {
                Err(Error::NoRoom { what, need_mib: need.div_ceil(1 << 20), have_mib: have >> 20 })
            }
            _ => Ok(()),
        };
        let found = statvfs("/").map_err(|errno| unreadable("/", errno.into()))?;
        // Inodes and a journal take some of it.
        room("the root", raw_bytes + raw_bytes / 20, found.f_blocks * found.f_frsize)?;
        room("the image in memory", raw_bytes / COMPRESSION_MAX, self.stage_bytes)
    }

    pub(super) fn plan(self, image: Cid, boot_loader: String) -> Plan {
        let Self { root_device, disk, mounts, fstab, .. } = self;
        Plan { image: image.to_string(), root_device, disk, mounts, fstab, boot_loader }
    }
}

fn unreadable(path: &str, source: std::io::Error) -> Refusal {
    Refusal::Unreadable { path: path.into(), source }
}

/// The block device that holds `path`.
fn device_of(path: &str) -> Option<String> {
    let number = fs::metadata(path).ok()?.dev();
    let (major, minor) = (rustix::fs::major(number), rustix::fs::minor(number));
    let real = Path::new("/sys/dev/block").join(format!("{major}:{minor}")).canonicalize().ok()?;
    Some(format!("/dev/{}", real.file_name()?.to_str()?))
}

/// The disk of a partition; the device itself when it is none.
fn disk_of(device: &str) -> String {
    let name = device.trim_start_matches("/dev/");
    let whole = || {
        let sys = Path::new("/sys/class/block").join(name).canonicalize().ok()?;
        let disk = sys.join("partition").exists().then(|| sys.parent())??;
        Some(format!("/dev/{}", disk.file_name()?.to_str()?))
    };
    whole().unwrap_or_else(|| device.to_owned())
}

fn system_mounts(mounts: &[Mount]) -> Vec<SystemMount> {
    let mut found: Vec<SystemMount> = Vec::new();
    for point in SYSTEM_POINTS {
        let Some(mount) = mounts.iter().rfind(|mount| mount.point == Path::new(point)) else { continue };
        let Some(device) = device_of(point) else { continue };
        let point = point.trim_start_matches('/').to_owned();
        found.push(SystemMount { device, point, kind: mount.kind.clone() });
    }
    found
}

/// What the kernel could hand out now.
fn available_bytes() -> u64 {
    let text = fs::read_to_string("/proc/meminfo").unwrap_or_default();
    let line = text.lines().find_map(|line| line.strip_prefix("MemAvailable:"));
    let kib: Option<u64> = line.and_then(|line| line.trim().trim_end_matches(" kB").parse().ok());
    kib.unwrap_or(0) << 10
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn neither_an_ordinary_user_nor_a_test_replaces_a_root() {
        // Whatever runs the tests, this program is linked to the libraries of its machine.
        let refusal = machine().unwrap_err();
        assert!(!refusal.to_string().is_empty());
    }

    #[test]
    fn only_parts_of_the_system_are_emptied_with_the_root() {
        let mount = |point: &str| Mount { point: point.into(), root: "/".into(), kind: "ext4".into() };
        let found = system_mounts(&[mount("/"), mount("/home"), mount("/srv")]);
        assert_eq!(found, []);
    }

    #[test]
    fn an_image_that_is_too_large_is_refused_before_it_is_fetched() {
        let machine = Machine {
            root_device: String::new(),
            disk: String::new(),
            mounts: Vec::new(),
            fstab: String::new(),
            stage_bytes: 100 << 20,
        };
        let error = machine.check_room(1 << 60).unwrap_err().to_string();
        assert!(error.starts_with("the root needs about "), "{error}");
        let error = machine.check_room(501 << 20).map(drop).unwrap_err().to_string();
        assert_eq!(error, "the image in memory needs about 101 MiB and has 100 MiB");
        machine.check_room(499 << 20).unwrap();
    }
}
