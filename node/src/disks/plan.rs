//! What becomes of one disk: a pure decision from its layout and what is on it.

use std::fmt::Write;
use std::path::{Path, PathBuf};

use crate::disks::layout::{Disk, Extent, FileSystem, Label, Partition, PartitionType};

/// Partitions begin at multiples of this, as every tool has it: erase blocks and RAID stripes divide it.
const ALIGNMENT_BYTES: u64 = 1 << 20;
/// Kept free at the end of a gpt for its second copy; the table itself takes 33 sectors.
const GPT_TAIL_BYTES: u64 = ALIGNMENT_BYTES;
/// A dos table counts sectors in 32 bits.
const DOS_SECTORS_MAX: u64 = u32::MAX as u64;

/// What is on a disk now.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Facts {
    pub sectors: u64,
    pub sector_bytes: u64,
    /// The table's kind, as `sfdisk` calls it.
    pub label: Option<String>,
    pub label_id: Option<String>,
    pub partitions: Vec<Existing>,
}

/// A partition that a disk has, in the words of `sfdisk`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Existing {
    pub number: usize,
    pub start: u64,
    pub sectors: u64,
    pub kind: String,
    pub uuid: Option<String>,
    pub name: Option<String>,
    pub attributes: Option<String>,
    pub boot: bool,
}

/// What is to be done with a disk.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct DiskPlan {
    pub device: PathBuf,
    /// What `sfdisk` is told.
    pub script: String,
    /// Numbers of the partitions that are there now and go.
    pub lost: Vec<usize>,
    pub partitions: Vec<Planned>,
}

/// A partition that a disk is to have.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Planned {
    /// From 1.
    pub number: usize,
    pub start: u64,
    pub sectors: u64,
    pub keep: bool,
    pub partition: Partition,
}

#[derive(Debug, thiserror::Error, PartialEq, Eq)]
pub enum PlanError {
    #[error("partition {number} of {} does not fit: it takes {wanted_mib} MiB, and {free_mib} MiB are free in one piece", .device.display())]
    NoRoom { device: PathBuf, number: usize, wanted_mib: u64, free_mib: u64 },
    #[error("partition {number} of {} is to be kept and is not there", .device.display())]
    NotThere { device: PathBuf, number: usize },
    #[error("{} has a partition to keep in a table of kind {found}, and the layout says {wanted}", .device.display())]
    OtherLabel { device: PathBuf, found: String, wanted: &'static str },
}

/// A stretch of free sectors.
#[derive(Clone, Copy, Debug)]
struct Gap {
    start: u64,
    end: u64,
}

impl Gap {
    fn sectors(self) -> u64 {
        self.end.saturating_sub(self.start)
    }
}

/// Decides where every partition lies. Those that are kept stay; of the others each goes, in the layout's order, into
/// the first gap with room; `rest` takes what is left of the largest gap, and in an empty table its place in the order.
pub fn plan(disk: &Disk, facts: &Facts) -> Result<DiskPlan, PlanError> {
    let kept = kept(disk, facts)?;
    let mut gaps = gaps(disk, facts, &kept);
    let unit = (ALIGNMENT_BYTES / facts.sector_bytes).max(1);
    let mut places: Vec<Option<(u64, u64)>> = vec![None; disk.partitions.len()];
    let mut rest = None;
    // In an empty table the partitions after `rest` are laid from the end, so that all lie in the layout's order.
    let ordered = kept.is_empty();
    for (index, partition) in disk.partitions.iter().enumerate() {
        let Extent::Bytes(bytes) = partition.extent else {
            if partition.extent == Extent::Rest {
                rest = Some(index);
                if ordered {
                    break;
                }
            }
            continue;
        };
        let sectors = in_units(bytes, facts, unit);
        let gap = gaps.iter_mut().find(|gap| gap.sectors() >= sectors);
        let Some(gap) = gap else { return Err(no_room(disk, facts, index, bytes, &gaps)) };
        places[index] = Some((gap.start, sectors));
        gap.start += sectors;
    }
    if let Some(rest) = rest {
        if ordered {
            for index in (rest + 1..disk.partitions.len()).rev() {
                let Extent::Bytes(bytes) = disk.partitions[index].extent else { continue };
                let sectors = in_units(bytes, facts, unit);
                let Some(gap) = gaps.iter_mut().find(|gap| gap.sectors() >= sectors) else {
                    return Err(no_room(disk, facts, index, bytes, &gaps));
                };
                gap.end -= sectors;
                places[index] = Some((gap.end, sectors));
            }
        }
        let largest =
            gaps.iter().copied().max_by_key(|gap| gap.sectors()).filter(|gap| gap.sectors() >= unit);
        let Some(gap) = largest else {
            return Err(no_room(disk, facts, rest, ALIGNMENT_BYTES, &gaps));
        };
        places[rest] = Some((gap.start, gap.sectors()));
    }
    let planned = |(index, partition): (usize, &Partition)| {
        let found = kept.iter().find(|existing| existing.number == index + 1);
        let (start, sectors) = match found {
            Some(existing) => (existing.start, existing.sectors),
            None => places[index].expect("a partition that is not kept was placed"),
        };
        let keep = found.is_some();
        Planned { number: index + 1, start, sectors, keep, partition: partition.clone() }
    };
    let partitions: Vec<Planned> = disk.partitions.iter().enumerate().map(planned).collect();
    let stays = |existing: &Existing| kept.iter().any(|kept| kept.number == existing.number);
    let lost = facts.partitions.iter().filter(|existing| !stays(existing)).map(|existing| existing.number);
    Ok(DiskPlan {
        device: disk.device.clone(),
        script: script(disk, facts, &partitions, &kept),
        lost: lost.collect(),
        partitions,
    })
}

fn kept<'a>(disk: &Disk, facts: &'a Facts) -> Result<Vec<&'a Existing>, PlanError> {
    let mut kept = Vec::new();
    for (index, partition) in disk.partitions.iter().enumerate() {
        if partition.extent != Extent::Kept {
            continue;
        }
        let (device, number) = (disk.device.clone(), index + 1);
        let Some(existing) = facts.partitions.iter().find(|existing| existing.number == number) else {
            return Err(PlanError::NotThere { device, number });
        };
        kept.push(existing);
    }
    if !kept.is_empty() && facts.label.as_deref() != Some(disk.label.name()) {
        let found = facts.label.clone().unwrap_or_else(|| "none".to_owned());
        return Err(PlanError::OtherLabel { device: disk.device.clone(), found, wanted: disk.label.name() });
    }
    Ok(kept)
}

/// The free stretches between what is kept, aligned.
fn gaps(disk: &Disk, facts: &Facts, kept: &[&Existing]) -> Vec<Gap> {
    let unit = (ALIGNMENT_BYTES / facts.sector_bytes).max(1);
    let tail = if disk.label == Label::Gpt { GPT_TAIL_BYTES / facts.sector_bytes } else { 0 };
    let last = facts.sectors.saturating_sub(tail);
    let end = if disk.label == Label::Dos { last.min(DOS_SECTORS_MAX) } else { last };
    let mut taken: Vec<(u64, u64)> =
        kept.iter().map(|existing| (existing.start, existing.start + existing.sectors)).collect();
    taken.sort_unstable();
    taken.push((end, end));
    let mut gaps = Vec::new();
    let mut start = unit;
    for (from, to) in taken {
        gaps.push(Gap { start, end: from / unit * unit });
        start = to.next_multiple_of(unit);
    }
    gaps
}

/// A size in sectors, rounded up to whole units.
fn in_units(bytes: u64, facts: &Facts, unit: u64) -> u64 {
    bytes.div_ceil(facts.sector_bytes).next_multiple_of(unit)
}

fn no_room(disk: &Disk, facts: &Facts, index: usize, wanted_bytes: u64, gaps: &[Gap]) -> PlanError {
    let free = gaps.iter().map(|gap| gap.sectors()).max().unwrap_or(0);
    PlanError::NoRoom {
        device: disk.device.clone(),
        number: index + 1,
        wanted_mib: wanted_bytes.div_ceil(1 << 20),
        free_mib: (free * facts.sector_bytes) >> 20,
    }
}

fn script(disk: &Disk, facts: &Facts, partitions: &[Planned], kept: &[&Existing]) -> String {
    let mut text = format!("label: {}\nunit: sectors\n", disk.label.name());
    if !kept.is_empty()
        && let Some(id) = &facts.label_id
    {
        let _ = writeln!(text, "label-id: {id}");
    }
    for planned in partitions {
        let existing = kept.iter().find(|existing| existing.number == planned.number);
        let kind =
            existing.map_or_else(|| type_code(planned.partition.kind, disk.label), |found| &found.kind);
        let _ = write!(text, "start={}, size={}, type={kind}", planned.start, planned.sectors);
        if let Some(uuid) =
            existing.and_then(|found| found.uuid.as_ref()).filter(|_| disk.label == Label::Gpt)
        {
            let _ = write!(text, ", uuid={uuid}");
        }
        let name = existing.map_or(planned.partition.name.as_ref(), |found| found.name.as_ref());
        if let Some(name) = name {
            let _ = write!(text, ", name=\"{name}\"");
        }
        if let Some(attributes) = existing.and_then(|found| found.attributes.as_ref()) {
            let _ = write!(text, ", attrs=\"{attributes}\"");
        }
        if existing.map_or(planned.partition.boot, |found| found.boot) {
            text.push_str(", bootable");
        }
        text.push('\n');
    }
    text
}

fn type_code(kind: PartitionType, label: Label) -> &'static str {
    match (label, kind) {
        (Label::Gpt, PartitionType::Linux) => "0FC63DAF-8483-4772-8E79-3D69D8477DE4",
        (Label::Gpt, PartitionType::Esp) => "C12A7328-F81F-11D2-BA4B-00A0C93EC93B",
        (Label::Gpt, PartitionType::Swap) => "0657FD6D-A4AB-43C4-84E5-0933C84B4F4F",
        (Label::Gpt, PartitionType::BiosBoot) => "21686148-6449-6E6F-744E-656564454649",
        (Label::Gpt, PartitionType::Lvm) => "E6D6D379-F507-44C2-A23C-238F2A3DF928",
        (Label::Gpt, PartitionType::Raid) => "A19D880F-05FC-4D3B-A006-743F0F84911E",
        (Label::Dos, PartitionType::Esp) => "ef",
        (Label::Dos, PartitionType::Swap) => "82",
        (Label::Dos, PartitionType::Lvm) => "8e",
        (Label::Dos, PartitionType::Raid) => "fd",
        (Label::Dos, PartitionType::Linux | PartitionType::BiosBoot) => "83",
    }
}

/// The command that makes a file system on `device`.
pub fn mkfs(filesystem: FileSystem, partition: &Partition, device: &Path) -> (&'static str, Vec<String>) {
    let (program, quiet, label): (_, &[&str], _) = match filesystem {
        FileSystem::Ext4 => ("mkfs.ext4", &["-q", "-F"], "-L"),
        FileSystem::Xfs => ("mkfs.xfs", &["-q", "-f"], "-L"),
        FileSystem::Btrfs => ("mkfs.btrfs", &["-q", "-f"], "-L"),
        FileSystem::Vfat => ("mkfs.vfat", &[], "-n"),
        FileSystem::Swap => ("mkswap", &["-q", "-f"], "-L"),
    };
    let mut arguments: Vec<String> = quiet.iter().map(|argument| (*argument).to_owned()).collect();
    if let Some(text) = &partition.fs_label {
        arguments.extend([label.to_owned(), text.clone()]);
    }
    arguments.extend(partition.mkfs.iter().cloned());
    arguments.push(device.display().to_string());
    (program, arguments)
}

#[cfg(test)]
mod tests;
