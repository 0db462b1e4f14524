//! The hosts' files.

use std::path::{Path, PathBuf};

use anyhow::Context;

use crate::lab::{NAME, leftovers};

/// All files of the lab, gone with this value unless they are kept.
#[derive(Debug)]
pub(super) struct Folder {
    path: PathBuf,
    hosts: usize,
}

impl Folder {
    /// A folder in `dir`, for host 0, which serves, and as many others as `hosts` says.
    pub(super) fn create(dir: &Path, hosts: usize) -> anyhow::Result<Self> {
        let path = dir.canonicalize()?.join(format!("{NAME}-{}", std::process::id()));
        std::fs::create_dir(&path).with_context(|| format!("cannot create {}", path.display()))?;
        Ok(Self { path, hosts })
    }

    /// Folders for one deployment, each host's with an empty one called `target` in it.
    pub(super) fn files(&self, name: &str) -> anyhow::Result<Files> {
        let files = Files { path: self.path.join(name) };
        for host in 0..=self.hosts {
            std::fs::create_dir_all(files.of(host, "target"))?;
        }
        Ok(files)
    }

    /// Lets the files stay, and says where.
    pub(super) fn keep(&self) -> anyhow::Result<()> {
        std::fs::write(self.path.join(leftovers::KEPT), "")?;
        eprintln!("shoal-sim: the hosts' files are in {}", self.path.display());
        Ok(())
    }
}

impl Drop for Folder {
    fn drop(&mut self) {
        if self.path.join(leftovers::KEPT).exists() {
            return;
        }
        if let Err(error) = std::fs::remove_dir_all(&self.path) {
            eprintln!("shoal-sim: cannot remove {}: {error}", self.path.display());
        }
    }
}

/// The hosts' files in one deployment.
#[derive(Debug)]
pub(super) struct Files {
    path: PathBuf,
}

impl Files {
    pub(super) fn host(&self, host: usize) -> PathBuf {
        self.path.join(host.to_string())
    }

    pub(super) fn of(&self, host: usize, what: &str) -> String {
        self.host(host).join(what).to_string_lossy().into_owned()
    }

    /// What the host's program said, besides its results.
    pub(super) fn log(&self, host: usize) -> PathBuf {
        self.host(host).join("log")
    }

    /// The last line in the host's log.
    pub(super) fn last_words(&self, host: usize) -> String {
        let said = std::fs::read_to_string(self.log(host)).unwrap_or_default();
        said.lines().rfind(|line| !line.trim().is_empty()).unwrap_or_default().to_owned()
    }

    pub(super) fn remove(self) -> anyhow::Result<()> {
        std::fs::remove_dir_all(&self.path).with_context(|| format!("cannot remove {}", self.path.display()))
    }
}
