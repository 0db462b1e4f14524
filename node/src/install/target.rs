//! The directory that an install writes into: empty, or emptied, and never one that this machine lives on.

use std::fs::{self, DirEntry};
use std::io;
use std::path::{Path, PathBuf};

use crate::mountinfo;
use crate::tree::clear::{ClearError, clear};

/// An entry that every fresh ext file system has: a target that holds nothing else is empty.
const LOST_AND_FOUND: &str = "lost+found";
/// Directories that a running machine cannot do without.
const VITAL: [&str; 10] = ["/", "/bin", "/dev", "/etc", "/home", "/lib", "/proc", "/run", "/sys", "/usr"];
/// File systems that are no place for a tree.
const PSEUDO: [&str; 8] =
    ["proc", "sysfs", "devtmpfs", "devpts", "cgroup", "cgroup2", "securityfs", "debugfs"];

#[derive(Debug, thiserror::Error)]
pub enum Error {
    #[error("cannot use {} as target", .path.display())]
    Unusable {
        path: PathBuf,
        #[source]
        source: io::Error,
    },
    #[error("{} is not empty; --force empties it first", .0.display())]
    NotEmpty(PathBuf),
    #[error("{} is not emptied: {why}", .path.display())]
    Refused { path: PathBuf, why: String },
    #[error(transparent)]
    Clear(#[from] ClearError),
}

/// Whether `target` has to be emptied first; an error unless it is empty or `force` says that it may be. Refuses to
/// empty what the machine, this process or its state (`kept`) lives on, and what holds another mounted file system.
pub(super) fn check(target: &Path, force: bool, kept: &[&Path]) -> Result<bool, Error> {
    let unusable = |source| Error::Unusable { path: target.to_owned(), source };
    let path = target.canonicalize().map_err(unusable)?;
    let found = entries(&path).map_err(unusable)?;
    if found.is_empty() {
        return Ok(false);
    }
    if !force {
        return Err(Error::NotEmpty(target.to_owned()));
    }
    if let Some(why) = refusal(&path, kept) {
        return Err(Error::Refused { path: target.to_owned(), why });
    }
    Ok(true)
}

/// Whether `target` holds nothing but `lost+found`.
pub(super) fn is_empty(target: &Path) -> Result<bool, Error> {
    let found = entries(target).map_err(|source| Error::Unusable { path: target.to_owned(), source })?;
    Ok(found.is_empty())
}

/// Removes everything in `target` but `lost+found`, once [`check`] allowed it.
pub(super) fn empty(target: &Path) -> Result<(), Error> {
    Ok(clear(target, LOST_AND_FOUND)?)
}

fn entries(dir: &Path) -> io::Result<Vec<DirEntry>> {
    let dir = dir.canonicalize()?;
    let mounts = mountinfo::read();
    let below: Vec<&Path> = mounts.iter().map(|mount| mount.point.as_path()).collect();
    let below: Vec<&Path> =
        below.into_iter().filter(|point| *point != dir && point.starts_with(&dir)).collect();
    content(&dir, &below)
}

/// What counts in a directory: not `lost+found`, and not the way to file systems that are mounted below it for the
/// tree to come and are as empty.
fn content(dir: &Path, mounted: &[&Path]) -> io::Result<Vec<DirEntry>> {
    let mut found = Vec::new();
    for entry in fs::read_dir(dir)? {
        let entry = entry?;
        let path = entry.path();
        let leads_to_mount = mounted.iter().any(|point| point.starts_with(&path));
        let is_bare = || Ok::<_, io::Error>(leads_to_mount && content(&path, mounted)?.is_empty());
        if entry.file_name() != LOST_AND_FOUND && !is_bare()? {
            found.push(entry);
        }
    }
    Ok(found)
}

/// Why emptying `path`, which is canonical, would hurt more than its content.
fn refusal(path: &Path, kept: &[&Path]) -> Option<String> {
    if VITAL.iter().any(|vital| Path::new(vital).canonicalize().is_ok_and(|vital| vital == path)) {
        return Some("this machine runs on it".to_owned());
    }
    let here = [std::env::current_exe().ok(), std::env::current_dir().ok()].into_iter().flatten();
    let kept = kept.iter().filter_map(|path| path.canonicalize().ok());
    if let Some(inside) = here.chain(kept).find(|inside| inside.starts_with(path)) {
        return Some(format!("{} is in it", inside.display()));
    }
    let mounts = mountinfo::read();
    if let Some(below) = mounts.iter().find(|mount| mount.point != path && mount.point.starts_with(path)) {
        return Some(format!("a file system is mounted at {}", below.point.display()));
    }
    let own = mounts.iter().filter(|mount| path.starts_with(&mount.point));
    let own = own.max_by_key(|mount| mount.point.as_os_str().len())?;
    PSEUDO.contains(&own.kind.as_str()).then(|| format!("it is on a {} file system", own.kind))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_force_empties_and_lost_and_found_is_nothing() {
        let dir = tempfile::tempdir().unwrap();
        fs::create_dir(dir.path().join(LOST_AND_FOUND)).unwrap();
        assert!(!check(dir.path(), false, &[]).unwrap());
        fs::create_dir_all(dir.path().join("a/b")).unwrap();
        std::os::unix::fs::symlink("/etc", dir.path().join("link")).unwrap();
        assert!(matches!(check(dir.path(), false, &[]), Err(Error::NotEmpty(_))));
        assert!(check(dir.path(), true, &[]).unwrap());
        empty(dir.path()).unwrap();
        assert_eq!(fs::read_dir(dir.path()).unwrap().count(), 1);
        assert!(Path::new("/etc/passwd").exists());
    }

    #[test]
    fn what_the_machine_or_the_process_lives_on_is_never_emptied() {
        let dir = tempfile::tempdir().unwrap();
        fs::create_dir_all(dir.path().join("target/data")).unwrap();
        let target = dir.path().join("target");
        let error = check(&target, true, &[&target.join("data")]).unwrap_err().to_string();
        assert!(error.contains("target/data is in it"), "{error}");
        assert!(target.join("data").exists());
        for vital in ["/", "/usr", "/etc/../etc", "/dev"] {
            assert!(refusal(&Path::new(vital).canonicalize().unwrap(), &[]).is_some(), "{vital}");
        }
        assert!(refusal(&std::env::current_dir().unwrap(), &[]).is_some());
    }

    #[test]
    fn a_pseudo_file_system_and_what_holds_a_mount_are_refused() {
        assert!(refusal(Path::new("/proc/self"), &[]).is_some());
        assert!(refusal(Path::new("/proc"), &[]).is_some());
    }
}
