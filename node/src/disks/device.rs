//! What the kernel and `sfdisk` say of a disk, and whether anybody uses it.

use std::fs;
use std::os::unix::fs::FileTypeExt;
use std::path::{Path, PathBuf};
use std::process::Command;

use serde::Deserialize;

use crate::disks::plan::{Existing, Facts};

/// The kernel counts sizes in these, whatever the disk's own sectors.
const KERNEL_SECTOR_BYTES: u64 = 512;

#[derive(Debug, thiserror::Error)]
pub enum DeviceError {
    #[error("cannot use {}", .path.display())]
    Unusable {
        path: PathBuf,
        #[source]
        source: std::io::Error,
    },
    #[error("{} is no whole disk", .0.display())]
    NoDisk(PathBuf),
    #[error("{} is in use: {why}", .path.display())]
    InUse { path: PathBuf, why: String },
    #[error("cannot run {program}: is it installed?")]
    Missing {
        program: &'static str,
        #[source]
        source: std::io::Error,
    },
    #[error("{command} failed: {said}")]
    Failed { command: String, said: String },
    #[error("cannot understand what sfdisk says of {}", .path.display())]
    Nonsense {
        path: PathBuf,
        #[source]
        source: serde_json::Error,
    },
    #[error("{} did not appear after its disk was partitioned", .0.display())]
    NoPartition(PathBuf),
}

/// A whole disk that nobody uses.
#[derive(Debug)]
pub(super) struct Device {
    /// The device itself, with no symbolic link.
    pub(super) path: PathBuf,
    name: String,
}

impl Device {
    /// Finds the disk that `path` names.
    pub(super) fn find(path: &Path) -> Result<Self, DeviceError> {
        let unusable = |source| DeviceError::Unusable { path: path.to_owned(), source };
        let real = path.canonicalize().map_err(unusable)?;
        let kind = fs::metadata(&real).map_err(unusable)?.file_type();
        let name = real.file_name().map(|name| name.to_string_lossy().into_owned()).unwrap_or_default();
        let device = Self { path: real, name };
        let whole = device.sys().join("queue").is_dir() && !device.sys().join("partition").exists();
        if !kind.is_block_device() || !whole {
            return Err(DeviceError::NoDisk(path.to_owned()));
        }
        Ok(device)
    }

    fn sys(&self) -> PathBuf {
        Path::new("/sys/class/block").join(&self.name)
    }

    /// Refuses a disk that is mounted, swapped to, or below a volume or an array, with one of its partitions or whole.
    pub(super) fn check_unused(&self) -> Result<(), DeviceError> {
        let in_use = |why: String| Err(DeviceError::InUse { path: self.path.clone(), why });
        let mut names = vec![self.name.clone()];
        names.extend(self.partitions());
        for name in &names {
            let sys = Path::new("/sys/class/block").join(name);
            let number = fs::read_to_string(sys.join("dev")).unwrap_or_default();
            if let Some(point) = mounted(number.trim()) {
                return in_use(format!("{name} is mounted at {point}"));
            }
            if let Some(holder) = fs::read_dir(sys.join("holders")).into_iter().flatten().flatten().next() {
                return in_use(format!("{} lies on {name}", holder.file_name().to_string_lossy()));
            }
        }
        let swaps = fs::read_to_string("/proc/swaps").unwrap_or_default();
        let swaps = swaps.lines().skip(1).filter_map(|line| line.split_whitespace().next());
        for swap in swaps {
            let real = Path::new(swap).canonicalize().unwrap_or_else(|_| PathBuf::from(swap));
            if names.iter().any(|name| real == Path::new("/dev").join(name)) {
                return in_use(format!("{swap} is swapped to"));
            }
        }
        Ok(())
    }

    /// The kernel's names of its partitions.
    fn partitions(&self) -> Vec<String> {
        let found = fs::read_dir(self.sys()).into_iter().flatten().flatten();
        let partitions = found.filter(|entry| entry.path().join("partition").exists());
        let mut names: Vec<String> =
            partitions.map(|entry| entry.file_name().to_string_lossy().into_owned()).collect();
        names.sort();
        names
    }

    /// The device of a partition: `sda` has `sda1`, `nvme0n1` has `nvme0n1p1`.
    pub(super) fn partition(&self, number: usize) -> PathBuf {
        let between = if self.name.ends_with(|c: char| c.is_ascii_digit()) { "p" } else { "" };
        Path::new("/dev").join(format!("{}{between}{number}", self.name))
    }

    pub(super) fn facts(&self) -> Result<Facts, DeviceError> {
        let read = |file: &str| -> Result<u64, DeviceError> {
            let path = self.sys().join(file);
            let text = fs::read_to_string(&path)
                .map_err(|source| DeviceError::Unusable { path: path.clone(), source })?;
            Ok(text.trim().parse().unwrap_or(0))
        };
        let sector_bytes = read("queue/logical_block_size")?.max(KERNEL_SECTOR_BYTES);
        let sectors = read("size")? * KERNEL_SECTOR_BYTES / sector_bytes;
        let mut facts = Facts { sectors, sector_bytes, label: None, label_id: None, partitions: Vec::new() };
        let mut dump = Command::new("sfdisk");
        dump.arg("--json").arg(&self.path);
        let output = dump.output().map_err(|source| DeviceError::Missing { program: "sfdisk", source })?;
        // A disk without a table is an error to it.
        if !output.status.success() {
            return Ok(facts);
        }
        let dump: Dump = serde_json::from_slice(&output.stdout)
            .map_err(|source| DeviceError::Nonsense { path: self.path.clone(), source })?;
        facts.label = Some(dump.partitiontable.label);
        facts.label_id = dump.partitiontable.id;
        facts.partitions =
            dump.partitiontable.partitions.into_iter().filter_map(DumpedPartition::read).collect();
        Ok(facts)
    }
}

/// Where a block device of this number ("8:1") is mounted.
fn mounted(number: &str) -> Option<String> {
    let mounts = fs::read_to_string("/proc/self/mountinfo").unwrap_or_default();
    let mut mounts = mounts.lines().map(|line| line.split(' ').collect::<Vec<_>>());
    let mount = mounts.find(|fields| fields.get(2) == Some(&number))?;
    Some((*mount.get(4)?).to_owned())
}

#[derive(Deserialize)]
struct Dump {
    partitiontable: DumpedTable,
}

#[derive(Deserialize)]
struct DumpedTable {
    label: String,
    id: Option<String>,
    #[serde(default)]
    partitions: Vec<DumpedPartition>,
}

#[derive(Deserialize)]
struct DumpedPartition {
    node: String,
    start: u64,
    size: u64,
    #[serde(rename = "type")]
    kind: String,
    uuid: Option<String>,
    name: Option<String>,
    attrs: Option<String>,
    #[serde(default)]
    bootable: bool,
}

impl DumpedPartition {
    fn read(self) -> Option<Existing> {
        let digits = self.node.len() - self.node.trim_end_matches(|c: char| c.is_ascii_digit()).len();
        let number = self.node[self.node.len() - digits..].parse().ok()?;
        let Self { start, size, kind, uuid, name, attrs, bootable, .. } = self;
        Some(Existing { number, start, sectors: size, kind, uuid, name, attributes: attrs, boot: bootable })
    }
}
