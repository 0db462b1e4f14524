//! What makes a machine this one and no other: kept across a reinstall, and never the image's.
//!
//! | file | is |
//! |---|---|
//! | `etc/machine-id` | what the machine had; else a new one in place of an image's, and none where the image has none |
//! | `etc/hostname` | the host's name in the cluster file |
//! | `etc/ssh/ssh_host_*` | what the machine had; else what the image has |
//!
//! Each can be switched off in the cluster file. An update leaves all three alone (see
//! [`DEFAULT_RULES`](crate::tree::rules::DEFAULT_RULES)).

use std::fs::{self, File, FileTimes};
use std::io;
use std::os::unix::fs::{MetadataExt, PermissionsExt};
use std::path::{Path, PathBuf};

use rand::RngCore;
use shoal_proto::assignment::Identity;
use shoal_proto::host::HostName;

use crate::durable;

const MACHINE_ID: &str = "etc/machine-id";
const HOST_NAME: &str = "etc/hostname";
const SSH: &str = "etc/ssh";
const SSH_HOST_KEY: &str = "ssh_host_";
/// More than any of these files has.
const FILE_BYTES_MAX: u64 = 1 << 20;

#[derive(Debug, thiserror::Error)]
pub enum Error {
    #[error(transparent)]
    File(#[from] durable::Error),
    #[error("cannot keep the machine's {}", .path.display())]
    Keep {
        path: PathBuf,
        #[source]
        source: io::Error,
    },
    #[error("cannot give the machine back its {}", .path.display())]
    Restore {
        path: PathBuf,
        #[source]
        source: io::Error,
    },
}

/// Copies what is to be kept of `target`, which is about to be emptied, to `kept`. What an earlier run kept counts more:
/// the target may have been emptied since.
pub(crate) fn keep(target: &Path, kept: &Path, identity: Identity) -> Result<(), Error> {
    let mut files = Vec::new();
    if identity.machine_id
        && is_directory(&target.join("etc"))
        && machine_id(&target.join(MACHINE_ID)).is_some()
    {
        files.push(PathBuf::from(MACHINE_ID));
    }
    if identity.ssh_host_keys {
        files.extend(host_keys(target));
    }
    for path in files {
        let (from, to) = (target.join(&path), kept.join(&path));
        if to.exists() {
            continue;
        }
        let copy = || -> io::Result<()> {
            durable::create_private_dir(to.parent().unwrap_or(kept)).map_err(io::Error::other)?;
            let found = fs::metadata(&from)?;
            let bytes = fs::read(&from)?;
            durable::write(&to, &bytes, found.permissions().mode() & 0o7777).map_err(io::Error::other)?;
            // As an ordinary user the owner cannot be another.
            let _ = std::os::unix::fs::chown(&to, Some(found.uid()), Some(found.gid()));
            Ok(())
        };
        copy().map_err(|source| Error::Keep { path, source })?;
    }
    Ok(())
}

/// Makes a tree that was just written this machine's.
pub(crate) fn settle(target: &Path, kept: &Path, identity: Identity, host: &HostName) -> Result<(), Error> {
    let etc = target.join("etc");
    if !is_directory(&etc) {
        return Ok(());
    }
    let times = times_of(&etc);
    if identity.machine_id {
        settle_machine_id(target, kept)?;
    }
    if identity.host_name {
        write(target, Path::new(HOST_NAME), format!("{host}\n").as_bytes(), 0o644)?;
    }
    if identity.ssh_host_keys {
        settle_host_keys(target, kept)?;
    }
    set_times(&etc, times);
    Ok(())
}

/// Gives a tree that was changed in place its host's name.
pub(crate) fn settle_name(target: &Path, identity: Identity, host: &HostName) -> Result<(), Error> {
    let only = Identity { machine_id: false, ssh_host_keys: false, ..identity };
    settle(target, Path::new(""), only, host)
}

/// Forgets what was kept.
pub(crate) fn forget(kept: &Path) {
    // There may be nothing.
    let _ = fs::remove_dir_all(kept);
}

fn settle_machine_id(target: &Path, kept: &Path) -> Result<(), Error> {
    let path = Path::new(MACHINE_ID);
    let own = machine_id(&kept.join(path));
    let images = machine_id(&target.join(path));
    let id = match (own, images) {
        (Some(own), _) => own,
        // Two machines must not have the golden client's.
        (None, Some(_)) => {
            let mut bytes = [0; 16];
            rand::rng().fill_bytes(&mut bytes);
            data_encoding::HEXLOWER.encode(&bytes)
        }
        (None, None) => return Ok(()),
    };
    write(target, path, format!("{id}\n").as_bytes(), 0o444)
}

fn settle_host_keys(target: &Path, kept: &Path) -> Result<(), Error> {
    let (own, images) = (host_keys(kept), host_keys(target));
    if own.is_empty() {
        if !images.is_empty() {
            tracing::warn!(
                "the image has ssh host keys, which all its machines share: see capture --exclude"
            );
        }
        return Ok(());
    }
    let ssh = target.join(SSH);
    if !is_directory(&ssh) {
        return Ok(());
    }
    let times = times_of(&ssh);
    for path in images {
        fs::remove_file(target.join(&path)).map_err(|source| Error::Restore { path, source })?;
    }
    for path in own {
        let from = kept.join(&path);
        let failed = |source| Error::Restore { path: path.clone(), source };
        let found = fs::metadata(&from).map_err(failed)?;
        let bytes = fs::read(&from).map_err(failed)?;
        write(target, &path, &bytes, found.permissions().mode() & 0o7777)?;
        let _ = std::os::unix::fs::chown(target.join(&path), Some(found.uid()), Some(found.gid()));
    }
    set_times(&ssh, times);
    Ok(())
}

/// The host keys below a tree, by their paths in it.
fn host_keys(top: &Path) -> Vec<PathBuf> {
    if !is_directory(&top.join("etc")) || !is_directory(&top.join(SSH)) {
        return Vec::new();
    }
    let listed = fs::read_dir(top.join(SSH)).into_iter().flatten().flatten();
    let is_key = |entry: &fs::DirEntry| {
        entry.file_name().to_string_lossy().starts_with(SSH_HOST_KEY) && is_small_file(&entry.path())
    };
    let mut keys: Vec<PathBuf> =
        listed.filter(is_key).map(|entry| Path::new(SSH).join(entry.file_name())).collect();
    keys.sort();
    keys
}

/// A machine id, unless it is yet to be made.
fn machine_id(path: &Path) -> Option<String> {
    if !is_small_file(path) {
        return None;
    }
    let text = fs::read_to_string(path).ok()?;
    let id = text.trim_end();
    (id.len() == 32 && id.bytes().all(|byte| byte.is_ascii_hexdigit())).then(|| id.to_owned())
}

/// Replaces a file in one step, with the mode of what was there.
fn write(target: &Path, path: &Path, bytes: &[u8], mode: u32) -> Result<(), Error> {
    let place = target.join(path);
    let found = fs::symlink_metadata(&place).ok().filter(fs::Metadata::is_file);
    // A link of that name, which the image may have, is not written through.
    if let Some(name) = place.file_name() {
        let _ = fs::remove_file(place.with_file_name(format!(".{}.new", name.to_string_lossy())));
    }
    let mode = found.map_or(mode, |found| found.permissions().mode() & 0o7777);
    Ok(durable::write(&place, bytes, mode)?)
}

/// Not a link, which could lead out of the tree.
fn is_directory(path: &Path) -> bool {
    fs::symlink_metadata(path).is_ok_and(|found| found.is_dir())
}

fn is_small_file(path: &Path) -> bool {
    fs::symlink_metadata(path).is_ok_and(|found| found.is_file() && found.len() <= FILE_BYTES_MAX)
}

fn times_of(directory: &Path) -> Option<std::time::SystemTime> {
    fs::symlink_metadata(directory).and_then(|found| found.modified()).ok()
}

/// Gives a directory back the time that the image says.
fn set_times(directory: &Path, modified: Option<std::time::SystemTime>) {
    if let (Some(modified), Ok(directory)) = (modified, File::open(directory)) {
        // It is a detail that verify would report.
        let _ = directory.set_times(FileTimes::new().set_modified(modified));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const OLD: &str = "0123456789abcdef0123456789abcdef";
    const GOLDEN: &str = "ffffffffffffffffffffffffffffffff";

    fn tree(machine_id: &str, key: &str) -> tempfile::TempDir {
        let tree = tempfile::tempdir().unwrap();
        fs::create_dir_all(tree.path().join(SSH)).unwrap();
        fs::write(tree.path().join(MACHINE_ID), machine_id).unwrap();
        fs::write(tree.path().join(HOST_NAME), "golden\n").unwrap();
        let place = tree.path().join("etc/ssh/ssh_host_rsa_key");
        fs::write(&place, key).unwrap();
        fs::set_permissions(&place, fs::Permissions::from_mode(0o600)).unwrap();
        tree
    }

    fn read(tree: &tempfile::TempDir, path: &str) -> String {
        fs::read_to_string(tree.path().join(path)).unwrap()
    }

    fn host() -> HostName {
        "node07".parse().unwrap()
    }

    #[test]
    fn a_reinstalled_machine_is_the_one_it_was() {
        let kept = tempfile::tempdir().unwrap();
        keep(tree(OLD, "own key").path(), kept.path(), Identity::default()).unwrap();
        // A second run finds the target written already, with the image's.
        keep(tree(GOLDEN, "golden key").path(), kept.path(), Identity::default()).unwrap();
        let new = tree(GOLDEN, "golden key");
        fs::write(new.path().join("etc/ssh/ssh_host_ed25519_key"), "another golden key").unwrap();
        let before = times_of(&new.path().join("etc"));
        settle(new.path(), kept.path(), Identity::default(), &host()).unwrap();
        assert_eq!(read(&new, MACHINE_ID), format!("{OLD}\n"));
        assert_eq!(read(&new, HOST_NAME), "node07\n");
        assert_eq!(read(&new, "etc/ssh/ssh_host_rsa_key"), "own key");
        assert!(!new.path().join("etc/ssh/ssh_host_ed25519_key").exists());
        let key = fs::metadata(new.path().join("etc/ssh/ssh_host_rsa_key")).unwrap();
        assert_eq!(key.permissions().mode() & 0o7777, 0o600);
        assert_eq!(times_of(&new.path().join("etc")), before);
    }

    #[test]
    fn a_new_machine_has_an_id_of_its_own_and_each_fixup_can_be_switched_off() {
        let kept = tempfile::tempdir().unwrap();
        let new = tree(GOLDEN, "golden key");
        settle(new.path(), kept.path(), Identity::default(), &host()).unwrap();
        let id = read(&new, MACHINE_ID);
        assert!(machine_id(&new.path().join(MACHINE_ID)).is_some() && id != format!("{GOLDEN}\n"), "{id}");
        let unborn = tree("", "golden key");
        settle(unborn.path(), kept.path(), Identity::default(), &host()).unwrap();
        assert_eq!(read(&unborn, MACHINE_ID), "");
        let off = Identity { machine_id: false, host_name: false, ssh_host_keys: false };
        keep(tree(OLD, "own key").path(), kept.path(), off).unwrap();
        assert!(fs::read_dir(kept.path()).unwrap().next().is_none());
        let left = tree(GOLDEN, "golden key");
        settle(left.path(), kept.path(), off, &host()).unwrap();
        assert_eq!(
            (read(&left, MACHINE_ID), read(&left, HOST_NAME)),
            (GOLDEN.to_owned(), "golden\n".to_owned())
        );
    }

    #[test]
    fn a_link_in_the_tree_leads_nowhere() {
        let (outside, tree, kept) =
            (tree(OLD, "key"), tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
        std::os::unix::fs::symlink(outside.path().join("etc"), tree.path().join("etc")).unwrap();
        keep(tree.path(), kept.path(), Identity::default()).unwrap();
        settle(tree.path(), kept.path(), Identity::default(), &host()).unwrap();
        assert_eq!(read(&outside, HOST_NAME), "golden\n");
        assert!(fs::read_dir(kept.path()).unwrap().next().is_none());
    }
}
