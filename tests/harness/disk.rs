//! A file system of a given kind, on a file of our own.

use std::fs::{self, File};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use tempfile::TempDir;

use crate::skipped;

/// Set where every file system must be tested: a missing `mkfs` is a failure then.
const ALL: &str = "SHOAL_TEST_ALL_FS";
/// The least that every `mkfs` accepts. The file that it lies in takes only the room of what is written.
const DISK_BYTES: u64 = 1 << 30;

/// The file systems that a machine's tree may lie on.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum FileSystem {
    Ext4,
    Xfs,
    Btrfs,
    Tmpfs,
}

/// A mounted file system, empty but for what its `mkfs` made. Unmounted when dropped, with what was mounted below.
#[derive(Debug)]
pub struct Disk {
    kind: FileSystem,
    /// Holds the file that it lies in, and the mount point unless that is elsewhere.
    _folder: TempDir,
    point: PathBuf,
}

impl FileSystem {
    pub const ALL: [Self; 4] = [Self::Ext4, Self::Xfs, Self::Btrfs, Self::Tmpfs];

    pub const fn name(self) -> &'static str {
        match self {
            Self::Ext4 => "ext4",
            Self::Xfs => "xfs",
            Self::Btrfs => "btrfs",
            Self::Tmpfs => "tmpfs",
        }
    }
}

impl Disk {
    /// Makes one; `None`, said aloud, where there is no `mkfs` for it. Needs root.
    ///
    /// # Panics
    /// When it cannot be made or mounted.
    pub fn new(kind: FileSystem) -> Option<Self> {
        Self::made_with(kind, &[])
    }

    /// As [`new`](Self::new), with further arguments for `mkfs`.
    pub fn made_with(kind: FileSystem, arguments: &[&str]) -> Option<Self> {
        let folder = tempfile::tempdir().expect("a temporary folder can be made");
        let point = folder.path().join("mounted");
        fs::create_dir(&point).expect("the folder is new");
        Self::make(kind, folder, point, arguments, DISK_BYTES)
    }

    /// As [`new`](Self::new), mounted at `point`, a folder.
    pub fn at(kind: FileSystem, point: &Path) -> Option<Self> {
        Self::at_with_room(kind, point, DISK_BYTES)
    }

    /// As [`at`](Self::at), with room for `bytes`.
    pub fn at_with_room(kind: FileSystem, point: &Path, bytes: u64) -> Option<Self> {
        let folder = tempfile::tempdir().expect("a temporary folder can be made");
        Self::make(kind, folder, point.to_owned(), &[], bytes)
    }

    fn make(
        kind: FileSystem,
        folder: TempDir,
        point: PathBuf,
        arguments: &[&str],
        bytes: u64,
    ) -> Option<Self> {
        let mkfs = format!("mkfs.{}", kind.name());
        if kind != FileSystem::Tmpfs && !on_path(&mkfs) {
            assert!(std::env::var_os(ALL).is_none(), "{ALL} is set and there is no {mkfs}");
            skipped(&format!("needs {mkfs}"));
            return None;
        }
        let mut mount = Command::new("mount");
        if kind == FileSystem::Tmpfs {
            mount.args(["-t", "tmpfs", "tmpfs"]);
        } else {
            let image = folder.path().join("image");
            File::create(&image).and_then(|file| file.set_len(bytes)).expect("a hole takes no room");
            let mut make = Command::new(mkfs);
            make.arg(if kind == FileSystem::Ext4 { "-qF" } else { "-q" });
            make.args(arguments).arg(&image);
            run(&mut make);
            mount.args(["-o", "loop"]).arg(&image);
        }
        run(mount.arg(&point));
        Some(Self { kind, _folder: folder, point })
    }

    pub fn kind(&self) -> FileSystem {
        self.kind
    }

    /// Where it is mounted.
    pub fn path(&self) -> &Path {
        &self.point
    }

    /// Mounts a file system on a folder below this one: an empty one, or `bound`.
    ///
    /// # Panics
    /// When it cannot be mounted.
    pub fn mount(point: &Path, bound: Option<&Path>) {
        let mut mount = Command::new("mount");
        match bound {
            Some(bound) => mount.arg("--bind").arg(bound),
            None => mount.args(["-t", "tmpfs", "tmpfs"]),
        };
        run(mount.arg(point));
    }
}

impl Drop for Disk {
    fn drop(&mut self) {
        let unmounted = Command::new("umount").args(["--lazy", "--recursive"]).arg(self.path()).status();
        assert!(unmounted.is_ok_and(|status| status.success()) || std::thread::panicking());
    }
}

fn on_path(program: &str) -> bool {
    let path = std::env::var_os("PATH").unwrap_or_default();
    std::env::split_paths(&path).any(|folder| folder.join(program).is_file())
}

fn run(command: &mut Command) {
    let output = command.stdin(Stdio::null()).output().unwrap_or_else(|error| panic!("{command:?}: {error}"));
    assert!(output.status.success(), "{command:?}: {}", String::from_utf8_lossy(&output.stderr));
}
