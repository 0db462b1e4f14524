//! What a node remembers between runs.
//!
//! ```text
//! DATA/                     0700, one process at a time
//!   lock                    flock, holds the pid
//!   key                     the node's identity, 0600
//!   control                 socket of the command at work, for `status` (control.rs)
//!   members/KEY             the newest list of members that this publisher signed, as `root` below
//!   channels/KEY-CHANNEL    the newest release of a channel that this publisher signed, as `root` below
//!   agent.json              how far the agent is with a release (agent/life.rs): replaced whole
//!   targets/NAME/           one installed or half-installed tree; NAME is a hash of its absolute path
//!     record.json           which images, how far: replaced whole
//!     pending.json          which scripts of the cluster ran, while not all of them did
//!     scripts/              what they said
//!     identity/             what makes the machine this one, while its tree is replaced (identity.rs)
//!     images/IMAGE/         each image that the record names
//!       root                the signed root record: 64 bytes of signature, then the payload
//!       manifest            its manifest
//!     store/                packs and index (store.rs), unless --store says otherwise
//!     kept/                 a store of chunks, each a block, that the previous image has and this one lacks: for rollback
//! ```
//!
//! **Invariant:** `record.json` says `complete` only after the tree was synced.

use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};
use shoal_proto::assignment::Stage;
use shoal_proto::cid::Cid;
use shoal_proto::image::RootRecord;
use shoal_proto::members::Members;
use shoal_proto::release::{Channel, Release};
use shoal_proto::signing::{Keypair, PublicKey, SIGNATURE_BYTES, Signed, Statement};

use crate::durable::{self, DirLock};
use crate::keys;
use crate::tree::verify::DriftKind;

#[derive(Debug, thiserror::Error)]
pub enum Error {
    #[error(transparent)]
    File(#[from] durable::Error),
    #[error(transparent)]
    Key(#[from] keys::Error),
    #[error("cannot find {}", .path.display())]
    Target {
        path: PathBuf,
        #[source]
        source: std::io::Error,
    },
    #[error("{} is damaged: {why}; remove it to start afresh", .path.display())]
    Damaged { path: PathBuf, why: String },
}

/// A node's state directory, held by this process.
#[derive(Debug)]
pub struct State {
    dir: PathBuf,
    pub key: Keypair,
    _lock: DirLock,
}

/// The state of one target tree.
#[derive(Debug, Clone)]
pub struct TargetState {
    dir: PathBuf,
}

/// What is known of a target tree.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Record {
    /// The tree as it was named, for people.
    pub target: String,
    /// Image id.
    pub image: String,
    /// What the image was asked for by, when by a name.
    pub name: Option<String>,
    pub phase: Phase,
    /// What the install could not set, and `verify` does not compare.
    #[serde(default)]
    pub lost: Vec<DriftKind>,
    /// While updating: other images that may have left something in the tree, the one that was complete first.
    #[serde(default)]
    pub owners: Vec<String>,
    /// While updating: it is a rollback, which another rollback finishes.
    #[serde(default)]
    pub rolling_back: bool,
    /// The image before this one, which a rollback returns to.
    #[serde(default)]
    pub previous: Option<Previous>,
    /// What the cluster file says of the machine, when it is in one.
    #[serde(default)]
    pub layered: Option<Layered>,
}

/// An image with layers over it, which is recorded as one image of its own: their fold.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Layered {
    /// By which name the cluster file knows the machine.
    pub host: String,
    /// Id of the image below all layers.
    pub image: String,
    /// Their names, the lowest first.
    pub layers: Vec<String>,
    /// What the lists of the cluster file leave to the machine: rules before the default ones.
    pub rules: Vec<String>,
}

/// Scripts that are under way.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Pending {
    pub stage: String,
    /// Id of what the tree is to be.
    pub image: String,
    /// Those that ran, by the hash of their content and their names.
    pub done: Vec<String>,
}

impl Pending {
    pub(crate) fn of(stage: Stage, image: &Cid) -> Self {
        Self { stage: stage.name().to_owned(), image: image.to_string(), done: Vec::new() }
    }

    pub(crate) fn is_of(&self, stage: Stage, image: &Cid) -> bool {
        self.stage == stage.name() && self.image == image.to_string()
    }
}

/// An image that a tree held before.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Previous {
    pub image: String,
    pub name: Option<String>,
    #[serde(default)]
    pub layered: Option<Layered>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Phase {
    /// The image is known and the target still holds what is to go.
    Emptying,
    /// Pieces are being fetched and written: the tree is not to be used.
    Installing,
    /// Paths are being replaced: each is of this image or of one of the owners.
    Updating,
    /// The tree was complete and synced.
    Complete,
}

/// Where a node keeps its state when nobody says otherwise: `/var/lib/shoal/PART` for root, else below
/// `$XDG_DATA_HOME` or `~/.local/share`.
pub fn default_dir(part: &str) -> PathBuf {
    if rustix::process::geteuid().is_root() {
        return Path::new("/var/lib/shoal").join(part);
    }
    let home = || std::env::var_os("HOME").map(|home| Path::new(&home).join(".local/share"));
    let base =
        std::env::var_os("XDG_DATA_HOME").filter(|dir| !dir.is_empty()).map(PathBuf::from).or_else(home);
    base.unwrap_or_else(std::env::temp_dir).join("shoal").join(part)
}

impl State {
    /// Makes or opens the directory, takes it for this process, and makes the node's key on first use.
    pub fn open(dir: &Path) -> Result<Self, Error> {
        durable::create_private_dir(dir)?;
        let lock = DirLock::take(dir)?;
        let key = keys::load_or_create(&dir.join("key"))?;
        Ok(Self { dir: dir.to_owned(), key, _lock: lock })
    }

    pub fn dir(&self) -> &Path {
        &self.dir
    }

    /// The state of the tree at `target`, which must exist.
    pub fn target(&self, target: &Path) -> Result<TargetState, Error> {
        TargetState::at(&self.dir, target)
    }
}

impl TargetState {
    /// The state of the tree at `target` below `data`, whoever holds it: for reading only.
    pub fn at(data: &Path, target: &Path) -> Result<Self, Error> {
        let path =
            target.canonicalize().map_err(|source| Error::Target { path: target.to_owned(), source })?;
        let name = Cid::of(path.as_os_str().as_encoded_bytes());
        let name = data_encoding::HEXLOWER.encode(&name.digest()[..12]);
        Ok(Self { dir: data.join("targets").join(name) })
    }

    /// The node's state directory.
    pub fn data_dir(&self) -> &Path {
        self.dir.ancestors().nth(2).unwrap_or(&self.dir)
    }

    pub fn store_dir(&self) -> PathBuf {
        self.dir.join("store")
    }

    /// Chunks that the previous image needs.
    pub fn kept_dir(&self) -> PathBuf {
        self.dir.join("kept")
    }

    fn image_dir(&self, image: &Cid) -> PathBuf {
        self.dir.join("images").join(image.to_string())
    }

    /// The manifest of an image that the record names, as one stream.
    pub fn manifest_path(&self, image: &Cid) -> PathBuf {
        self.image_dir(image).join("manifest")
    }

    pub fn record(&self) -> Result<Option<Record>, Error> {
        let path = self.dir.join("record.json");
        let Some(bytes) = durable::read(&path)? else { return Ok(None) };
        match serde_json::from_slice::<Record>(&bytes) {
            Ok(record) if record.names().any(|image| image.parse::<Cid>().is_err()) => {
                Err(Error::Damaged { path, why: "an image has no valid name".to_owned() })
            }
            Ok(record) => Ok(Some(record)),
            Err(error) => Err(Error::Damaged { path, why: error.to_string() }),
        }
    }

    pub fn write_record(&self, record: &Record) -> Result<(), Error> {
        durable::create_private_dir(&self.dir)?;
        let text = serde_json::to_vec_pretty(record).expect("a record is plain data");
        Ok(durable::write(&self.dir.join("record.json"), &text, durable::PRIVATE)?)
    }

    pub fn root(&self, image: &Cid) -> Result<Option<Signed<RootRecord>>, Error> {
        read_signed(&self.image_dir(image).join("root"))
    }

    pub fn write_root(&self, root: &Signed<RootRecord>) -> Result<(), Error> {
        write_signed(&self.image_dir(&root.cid()).join("root"), root)
    }

    /// What scripts said.
    pub fn scripts_dir(&self) -> PathBuf {
        self.dir.join("scripts")
    }

    /// What makes the machine this one, while its tree is replaced.
    pub(crate) fn identity_dir(&self) -> PathBuf {
        self.dir.join("identity")
    }

    fn pending_path(&self) -> PathBuf {
        self.dir.join("pending.json")
    }

    /// Scripts that are under way.
    pub fn pending(&self) -> Result<Option<Pending>, Error> {
        let path = self.pending_path();
        let Some(bytes) = durable::read(&path)? else { return Ok(None) };
        serde_json::from_slice(&bytes)
            .map(Some)
            .map_err(|error| Error::Damaged { path, why: error.to_string() })
    }

    pub fn write_pending(&self, pending: Option<&Pending>) -> Result<(), Error> {
        let path = self.pending_path();
        let Some(pending) = pending else {
            return match std::fs::remove_file(&path) {
                Err(source) if source.kind() != std::io::ErrorKind::NotFound => {
                    Err(durable::Error::Write { path, source }.into())
                }
                _ => Ok(()),
            };
        };
        durable::create_private_dir(&self.dir)?;
        let text = serde_json::to_vec_pretty(pending).expect("names are plain data");
        Ok(durable::write(&path, &text, durable::PRIVATE)?)
    }

    fn members_path(&self, publisher: &PublicKey) -> PathBuf {
        self.data_dir().join("members").join(publisher.to_peer_id().to_string())
    }

    /// The newest list of members of a publisher that this node knows, whatever the target.
    pub fn members(&self, publisher: &PublicKey) -> Result<Option<Signed<Members>>, Error> {
        read_signed(&self.members_path(publisher))
    }

    pub fn write_members(&self, publisher: &PublicKey, members: &Signed<Members>) -> Result<(), Error> {
        write_signed(&self.members_path(publisher), members)
    }

    fn release_path(&self, publisher: &PublicKey, channel: &Channel) -> PathBuf {
        self.data_dir().join("channels").join(format!("{}-{channel}", publisher.to_peer_id()))
    }

    /// The newest release of a publisher's channel that this node knows.
    pub fn release(
        &self,
        publisher: &PublicKey,
        channel: &Channel,
    ) -> Result<Option<Signed<Release>>, Error> {
        read_signed(&self.release_path(publisher, channel))
    }

    pub fn write_release(
        &self,
        publisher: &PublicKey,
        channel: &Channel,
        release: &Signed<Release>,
    ) -> Result<(), Error> {
        write_signed(&self.release_path(publisher, channel), release)
    }

    /// Forgets images that the record does not name.
    pub fn prune(&self) -> Result<(), Error> {
        let Some(record) = self.record()? else { return Ok(()) };
        let named: Vec<&String> = record.names().collect();
        for found in std::fs::read_dir(self.dir.join("images")).into_iter().flatten().flatten() {
            if !named.iter().any(|image| **image == *found.file_name().to_string_lossy())
                && let Err(error) = std::fs::remove_dir_all(found.path())
            {
                tracing::warn!(path = %found.path().display(), %error, "cannot remove what is kept of an old image");
            }
        }
        Ok(())
    }
}

fn read_signed<T: Statement>(path: &Path) -> Result<Option<Signed<T>>, Error> {
    let Some(mut signature) = durable::read(path)? else { return Ok(None) };
    if signature.len() < SIGNATURE_BYTES {
        return Err(Error::Damaged { path: path.to_owned(), why: format!("{} bytes", signature.len()) });
    }
    let payload = signature.split_off(SIGNATURE_BYTES);
    Ok(Some(Signed::from_parts(payload, signature)))
}

fn write_signed<T: Statement>(path: &Path, signed: &Signed<T>) -> Result<(), Error> {
    durable::create_private_dir(path.parent().unwrap_or(path))?;
    let bytes = [signed.signature(), signed.payload()].concat();
    Ok(durable::write(path, &bytes, durable::PRIVATE)?)
}

impl Record {
    fn names(&self) -> impl Iterator<Item = &String> {
        let previous = self.previous.as_ref().map(|previous| &previous.image);
        self.owners.iter().chain([&self.image]).chain(previous)
    }

    /// The published image below all layers; without any, the image itself.
    pub fn published_image(&self) -> Option<Cid> {
        match &self.layered {
            Some(layered) => layered.image.parse().ok(),
            None => self.image(),
        }
    }

    /// The image that is complete or under way.
    pub fn image(&self) -> Option<Cid> {
        self.image.parse().ok()
    }

    /// All images that may have left something in the tree, the one that was complete last first.
    pub fn applied(&self) -> Vec<Cid> {
        let mut applied: Vec<Cid> = Vec::new();
        for image in self.owners.iter().chain([&self.image]).filter_map(|image| image.parse().ok()) {
            if !applied.contains(&image) {
                applied.push(image);
            }
        }
        applied
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_record_outlives_its_process() {
        let dir = tempfile::tempdir().unwrap();
        let target = tempfile::tempdir().unwrap();
        let record = Record {
            target: target.path().display().to_string(),
            image: Cid::of(b"image").to_string(),
            name: Some("debian".into()),
            phase: Phase::Installing,
            lost: vec![DriftKind::Owner],
            owners: vec![Cid::of(b"owner").to_string()],
            rolling_back: false,
            previous: Some(Previous { image: Cid::of(b"previous").to_string(), name: None, layered: None }),
            layered: Some(Layered { host: "node07".into(), ..Layered::default() }),
        };
        let root = Signed::<RootRecord>::from_parts(vec![1, 2, 3], vec![9; SIGNATURE_BYTES]);
        {
            let state = State::open(dir.path()).unwrap().target(target.path()).unwrap();
            assert_eq!(state.record().unwrap(), None);
            state.write_record(&record).unwrap();
            state.write_root(&root).unwrap();
        }
        let state = State::open(dir.path()).unwrap().target(&target.path().join(".")).unwrap();
        assert_eq!(state.record().unwrap(), Some(record));
        assert_eq!(state.root(&root.cid()).unwrap().unwrap().payload(), [1, 2, 3]);
        // Not named by the record.
        state.prune().unwrap();
        assert!(state.root(&root.cid()).unwrap().is_none());
    }

    #[test]
    fn two_trees_have_two_states() {
        let (dir, one, two) =
            (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
        let state = State::open(dir.path()).unwrap();
        assert_ne!(state.target(one.path()).unwrap().dir, state.target(two.path()).unwrap().dir);
        assert!(matches!(state.target(&one.path().join("none")), Err(Error::Target { .. })));
    }

    #[test]
    fn a_damaged_record_is_named() {
        let (dir, tree) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
        let state = State::open(dir.path()).unwrap().target(tree.path()).unwrap();
        durable::create_private_dir(&state.dir).unwrap();
        durable::write(&state.dir.join("record.json"), b"{", durable::PRIVATE).unwrap();
        assert!(state.record().unwrap_err().to_string().contains("record.json"));
    }
}
