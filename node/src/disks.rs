//! The disks of a machine as a file declares them: partitions, file systems, where each is mounted.
//!
//! [`Layout::parse`] checks the text as a whole, [`plan`](plan::plan) decides for each disk what becomes of it from what
//! is on it (pure: a dry run prints it), [`perform`] has the system's own `sfdisk` and `mkfs` do it.
//!
//! ```toml
//! [[disk]]
//! device = "/dev/disk/by-id/nvme-SAMSUNG_1234"
//! label = "gpt"                   # or "dos"
//!
//! [[disk.partition]]              # numbered in this order, from 1
//! size = "512MiB"                 # MiB, GiB, TiB, MB, GB, TB, or "rest", once a disk
//! filesystem = "vfat"             # ext4, xfs, btrfs, vfat, swap; none when not said
//! mount = "/boot/efi"
//!
//! [[disk.partition]]
//! size = "rest"
//! filesystem = "ext4"
//! mount = "/"
//! type = "linux"                  # linux, esp, swap, bios-boot, lvm, raid; by the file system when not said
//! name = "root"                   # the partition's name, gpt only
//! fs-label = "ROOT"
//! mkfs = ["-m", "0"]              # further arguments of mkfs
//! options = "noatime"             # of the mount
//! boot = true                     # the active partition, dos only
//!
//! [[disk.partition]]
//! keep = true                     # is there already, at this number, and stays as it is; has no size
//! filesystem = "xfs"
//! mount = "/home"
//! ```
//!
//! **Invariant:** nothing is written to any disk before every disk has a plan that fits and is not in use.

mod device;
mod layout;
pub mod perform;
pub mod plan;

pub use device::DeviceError;
pub use layout::{Disk, Extent, FileSystem, Label, Layout, LayoutError, Partition, PartitionType};

/// Whether an fstab names a file system, and not only comments.
pub(crate) fn names_file_system(fstab: &str) -> bool {
    fstab.lines().any(|line| !line.trim_start().starts_with('#') && !line.trim().is_empty())
}
