//! File systems in memory.

use std::ffi::OsString;
use std::fs::File;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::Context;
use tempfile::TempDir;

use crate::measure::finish;

/// A loop file in memory, with an ext4 that can be made anew. Unmounted and removed when dropped.
pub(crate) struct Disk {
    folder: TempDir,
    mkfs: Vec<OsString>,
    mounted: bool,
}

impl Disk {
    /// `mkfs` are further arguments for `mkfs.ext4`.
    pub(crate) fn new(bytes: u64, mkfs: &[&str]) -> anyhow::Result<Self> {
        let memory = Path::new("/dev/shm");
        let place = if memory.is_dir() { memory.to_owned() } else { std::env::temp_dir() };
        let folder = tempfile::Builder::new().prefix("shoal-bench-").tempdir_in(place)?;
        std::fs::create_dir(folder.path().join("mount"))?;
        let mkfs = mkfs.iter().map(OsString::from).collect();
        let mut disk = Self { folder, mkfs, mounted: false };
        File::create(disk.image())?.set_len(bytes)?;
        disk.renew()?;
        Ok(disk)
    }

    /// Makes an empty file system in place of the old one. Removing files would not do: right after a removal, ext4
    /// searches long for inodes that were not freed a moment ago.
    pub(crate) fn renew(&mut self) -> anyhow::Result<()> {
        self.unmount()?;
        // Without lazy_*, the kernel would go on making the file system while something is measured. With discard,
        // each run would allocate the memory of the loop file anew.
        let mut mkfs = Command::new("mkfs.ext4");
        mkfs.args(["-q", "-F", "-m", "0", "-E", "lazy_itable_init=0,lazy_journal_init=0,nodiscard"]);
        finish(mkfs.args(&self.mkfs).arg(self.image()))?;
        finish(Command::new("mount").args(["-o", "loop"]).arg(self.image()).arg(self.path()))?;
        self.mounted = true;
        let lost_and_found = self.path().join("lost+found");
        std::fs::remove_dir(lost_and_found).context("a new ext4 has a lost+found")
    }

    pub(crate) fn path(&self) -> PathBuf {
        self.folder.path().join("mount")
    }

    /// Leaves nothing to be written that another measurement would pay for.
    pub(crate) fn sync(&self) -> anyhow::Result<()> {
        Ok(rustix::fs::syncfs(File::open(self.path())?)?)
    }

    fn image(&self) -> PathBuf {
        self.folder.path().join("image")
    }

    fn unmount(&mut self) -> anyhow::Result<()> {
        if std::mem::take(&mut self.mounted) {
            finish(Command::new("umount").arg(self.path()))?;
        }
        Ok(())
    }
}

impl Drop for Disk {
    fn drop(&mut self) {
        if let Err(error) = self.unmount() {
            eprintln!("tree: {error:#}");
        }
    }
}
