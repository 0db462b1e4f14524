//! What a host is to be: the publisher's statement which image it gets, which layers lie over it, how it is installed.
//!
//! The seeder resolves its cluster file for one host and signs the result; a node applies it, whether it installs or
//! updates. There is no second resolver.

use std::collections::BTreeMap;
use std::fmt;
use std::str::FromStr;

use prost::Message as _;

use crate::cid::{Cid, DIGEST_BYTES};
use crate::host::{HostName, HostNameError};
use crate::image::name::{ImageName, ImageNameError, NAME_BYTES_MAX};
use crate::image::root::{RootError, RootRecord};
use crate::signing::Statement;

#[allow(unreachable_pub, missing_docs, clippy::all)]
mod generated {
    include!(concat!(env!("OUT_DIR"), "/shoal.cluster.v1.rs"));
}

/// Version of the statement; another one is refused.
const VERSION: u32 = 1;
/// Most layers over one image.
pub const LAYERS_MAX: usize = 64;
/// Most bytes of the scripts that one host runs: they travel in the statement.
pub const SCRIPTS_BYTES_MAX: usize = 160 << 10;
/// How long a script may take when nobody says otherwise.
pub const SCRIPT_TIMEOUT_S: u32 = 600;
/// What the catalog calls the captured tree of a layer begins so.
pub const LAYER_PREFIX: &str = "override:";
/// Most bytes of the name of an override.
const LAYER_NAME_BYTES_MAX: usize = NAME_BYTES_MAX - LAYER_PREFIX.len();
/// Variables of Shoal's own begin so.
pub const OWN_VARIABLE_PREFIX: &str = "SHOAL_";

/// What an operator calls an override: an image name without `:`.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct LayerName(String);

#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error(
    "not the name of an override: {0:?} (1 to {LAYER_NAME_BYTES_MAX} of A-Z a-z 0-9 . _ - +, a letter or a digit first)"
)]
pub struct LayerNameError(String);

impl LayerName {
    pub fn as_str(&self) -> &str {
        &self.0
    }

    /// What the catalog calls its captured tree.
    pub fn image_name(&self) -> ImageName {
        format!("{LAYER_PREFIX}{}", self.0).parse().expect("the prefix and a checked name are one")
    }
}

impl FromStr for LayerName {
    type Err = LayerNameError;

    fn from_str(text: &str) -> Result<Self, LayerNameError> {
        let fits =
            !text.contains(':') && text.len() <= LAYER_NAME_BYTES_MAX && text.parse::<ImageName>().is_ok();
        if fits {
            Ok(Self(text.to_owned()))
        } else {
            Err(LayerNameError(text.chars().take(NAME_BYTES_MAX).collect()))
        }
    }
}

impl fmt::Display for LayerName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

/// How a host comes to its tree.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Mode {
    /// In place where the machine already runs an image, else [`Full`](Self::Full).
    Auto,
    /// The target is emptied and written anew.
    Full,
    /// In place, whatever is there.
    Sync,
    /// Nothing is touched.
    None,
}

impl Mode {
    pub const ALL: [Self; 4] = [Self::Auto, Self::Full, Self::Sync, Self::None];

    pub const fn name(self) -> &'static str {
        match self {
            Self::Auto => "auto",
            Self::Full => "full",
            Self::Sync => "sync",
            Self::None => "none",
        }
    }
}

impl FromStr for Mode {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let named = Self::ALL.into_iter().find(|mode| mode.name() == text);
        named.ok_or_else(|| format!("{text:?} is none of auto, full, sync, none"))
    }
}

impl fmt::Display for Mode {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

/// When a script runs.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Stage {
    /// Before anything of a full install is written.
    PreInstall,
    /// In the tree, once it is complete.
    PostInstall,
    /// In the tree, once all that an update needs is here, and before anything changes.
    PreUpdate,
    /// In the tree, once it is the image.
    PostUpdate,
}

impl Stage {
    pub const ALL: [Self; 4] = [Self::PreInstall, Self::PostInstall, Self::PreUpdate, Self::PostUpdate];

    /// The folder of its scripts.
    pub const fn name(self) -> &'static str {
        match self {
            Self::PreInstall => "pre-install",
            Self::PostInstall => "post-install",
            Self::PreUpdate => "pre-update",
            Self::PostUpdate => "post-update",
        }
    }
}

/// A tree that lies over the image.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Layer {
    pub name: LayerName,
    pub root: RootRecord,
    pub confidential: bool,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Script {
    pub stage: Stage,
    /// As in its folder: `NNclass.description`.
    pub name: String,
    pub content: Vec<u8>,
}

/// Patterns in rsync's language, the most important first.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Lists {
    /// Left out by a full install.
    pub exclude_full: Vec<String>,
    /// Left alone by an install in place.
    pub exclude_sync: Vec<String>,
    /// Left alone by an update.
    pub exclude_update: Vec<String>,
    /// Left as it is by everything, an emptied target included.
    pub preserve: Vec<String>,
    /// Kept as the image has it where it exists, and not created where it does not.
    pub no_new_files: Vec<String>,
}

impl Lists {
    /// All of them, by the names that a cluster file has for them.
    pub fn named(&self) -> [(&'static str, &Vec<String>); 5] {
        [
            ("exclude.full", &self.exclude_full),
            ("exclude.sync", &self.exclude_sync),
            ("exclude.update", &self.exclude_update),
            ("preserve", &self.preserve),
            ("no_new_files", &self.no_new_files),
        ]
    }
}

/// Which of the built-in fixups are done.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Identity {
    /// `etc/machine-id` is kept across a reinstall, and never the image's.
    pub machine_id: bool,
    /// `etc/hostname` is the host's name.
    pub host_name: bool,
    /// `etc/ssh/ssh_host_*` are kept across a reinstall, and never the image's.
    pub ssh_host_keys: bool,
}

impl Default for Identity {
    fn default() -> Self {
        Self { machine_id: true, host_name: true, ssh_host_keys: true }
    }
}

/// What one host is to be.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Assignment {
    pub host: HostName,
    pub image: ImageName,
    pub image_id: Cid,
    /// The most important first.
    pub groups: Vec<String>,
    /// The last one wins.
    pub layers: Vec<Layer>,
    /// The node's command decides when nothing is said.
    pub mode: Option<Mode>,
    pub confirm: bool,
    pub lists: Lists,
    pub variables: BTreeMap<String, String>,
    /// In the order in which they run.
    pub scripts: Vec<Script>,
    pub script_timeout_s: u32,
    pub identity: Identity,
}

#[derive(Debug, thiserror::Error)]
pub enum AssignmentError {
    #[error("not an assignment")]
    Decode(#[from] prost::DecodeError),
    #[error("an assignment of version {0}, this build reads {VERSION}")]
    Version(u32),
    #[error(transparent)]
    Host(#[from] HostNameError),
    #[error(transparent)]
    Image(#[from] ImageNameError),
    #[error(transparent)]
    Layer(#[from] LayerNameError),
    #[error(transparent)]
    Root(#[from] RootError),
    #[error("an assignment with {what} {value}")]
    Field { what: &'static str, value: String },
}

fn field(what: &'static str, value: impl ToString) -> AssignmentError {
    AssignmentError::Field { what, value: value.to_string() }
}

impl Assignment {
    /// Whether a variable may be called so.
    pub fn is_variable_name(name: &str) -> bool {
        let first = name.bytes().next().is_some_and(|byte| byte.is_ascii_alphabetic() || byte == b'_');
        first && name.bytes().all(|byte| byte.is_ascii_alphanumeric() || byte == b'_')
    }

    pub fn has_confidential(&self) -> bool {
        self.layers.iter().any(|layer| layer.confidential)
    }

    /// The scripts of a stage, in the order in which they run.
    pub fn scripts_of(&self, stage: Stage) -> impl Iterator<Item = &Script> {
        self.scripts.iter().filter(move |script| script.stage == stage)
    }
}

impl Statement for Assignment {
    const DOMAIN: &'static str = "shoal host assignment v1";
    type Error = AssignmentError;

    fn to_payload(&self) -> Vec<u8> {
        let layer = |layer: &Layer| generated::Layer {
            name: layer.name.to_string(),
            root: layer.root.encode(),
            confidential: layer.confidential,
        };
        let script = |script: &Script| generated::Script {
            stage: stage_code(script.stage).into(),
            name: script.name.clone(),
            content: script.content.clone(),
        };
        let lists = self.lists.clone();
        generated::Assignment {
            version: VERSION,
            host: self.host.to_string(),
            image: self.image.to_string(),
            image_id: self.image_id.digest().to_vec(),
            groups: self.groups.clone(),
            layers: self.layers.iter().map(layer).collect(),
            mode: mode_code(self.mode).into(),
            confirm: self.confirm,
            lists: Some(generated::Lists {
                exclude_full: lists.exclude_full,
                exclude_sync: lists.exclude_sync,
                exclude_update: lists.exclude_update,
                preserve: lists.preserve,
                no_new_files: lists.no_new_files,
            }),
            variables: self
                .variables
                .iter()
                .map(|(name, value)| generated::Variable { name: name.clone(), value: value.clone() })
                .collect(),
            scripts: self.scripts.iter().map(script).collect(),
            script_timeout_s: self.script_timeout_s,
            identity: Some(generated::Identity {
                no_machine_id: !self.identity.machine_id,
                no_host_name: !self.identity.host_name,
                no_ssh_host_keys: !self.identity.ssh_host_keys,
            }),
        }
        .encode_to_vec()
    }

    fn from_payload(payload: &[u8]) -> Result<Self, AssignmentError> {
        let said = generated::Assignment::decode(payload)?;
        if said.version != VERSION {
            return Err(AssignmentError::Version(said.version));
        }
        if said.layers.len() > LAYERS_MAX {
            return Err(field("too many layers:", said.layers.len()));
        }
        if said.script_timeout_s == 0 {
            return Err(field("a timeout of", 0));
        }
        let mode = decode_mode(said.mode());
        let image_id = <[u8; DIGEST_BYTES]>::try_from(&said.image_id[..]);
        let mut variables = BTreeMap::new();
        for generated::Variable { name, value } in said.variables {
            if !Self::is_variable_name(&name) || name.starts_with(OWN_VARIABLE_PREFIX) || value.contains('\0')
            {
                return Err(field("a variable that cannot be set:", name));
            }
            variables.insert(name, value);
        }
        let lists = said.lists.unwrap_or_default();
        let identity = said.identity.unwrap_or_default();
        Ok(Self {
            host: said.host.parse()?,
            image: said.image.parse()?,
            image_id: Cid::from_digest(
                image_id.map_err(|_| field("an image id of bytes", said.image_id.len()))?,
            ),
            groups: said.groups,
            layers: said.layers.into_iter().map(decode_layer).collect::<Result<_, _>>()?,
            mode,
            confirm: said.confirm,
            lists: Lists {
                exclude_full: lists.exclude_full,
                exclude_sync: lists.exclude_sync,
                exclude_update: lists.exclude_update,
                preserve: lists.preserve,
                no_new_files: lists.no_new_files,
            },
            variables,
            scripts: said.scripts.into_iter().map(decode_script).collect::<Result<_, _>>()?,
            script_timeout_s: said.script_timeout_s,
            identity: Identity {
                machine_id: !identity.no_machine_id,
                host_name: !identity.no_host_name,
                ssh_host_keys: !identity.no_ssh_host_keys,
            },
        })
    }
}

fn decode_layer(layer: generated::Layer) -> Result<Layer, AssignmentError> {
    Ok(Layer {
        name: layer.name.parse()?,
        root: RootRecord::decode(&layer.root)?,
        confidential: layer.confidential,
    })
}

fn decode_script(script: generated::Script) -> Result<Script, AssignmentError> {
    let stage = match script.stage() {
        generated::Stage::PreInstall => Stage::PreInstall,
        generated::Stage::PostInstall => Stage::PostInstall,
        generated::Stage::PreUpdate => Stage::PreUpdate,
        generated::Stage::PostUpdate => Stage::PostUpdate,
        generated::Stage::Unspecified => return Err(field("a script of no known stage:", script.name)),
    };
    // It becomes the name of a file.
    let plain = script.name.bytes().all(|byte| byte.is_ascii_graphic() && byte != b'/');
    if script.name.is_empty() || script.name.starts_with('.') || script.name.len() > 255 || !plain {
        return Err(field("a script whose name is no file's:", script.name.escape_debug()));
    }
    Ok(Script { stage, name: script.name, content: script.content })
}

fn stage_code(stage: Stage) -> generated::Stage {
    match stage {
        Stage::PreInstall => generated::Stage::PreInstall,
        Stage::PostInstall => generated::Stage::PostInstall,
        Stage::PreUpdate => generated::Stage::PreUpdate,
        Stage::PostUpdate => generated::Stage::PostUpdate,
    }
}

fn mode_code(mode: Option<Mode>) -> generated::Mode {
    match mode {
        None => generated::Mode::Unspecified,
        Some(Mode::Auto) => generated::Mode::Auto,
        Some(Mode::Full) => generated::Mode::Full,
        Some(Mode::Sync) => generated::Mode::Sync,
        Some(Mode::None) => generated::Mode::None,
    }
}

fn decode_mode(mode: generated::Mode) -> Option<Mode> {
    match mode {
        generated::Mode::Unspecified => None,
        generated::Mode::Auto => Some(Mode::Auto),
        generated::Mode::Full => Some(Mode::Full),
        generated::Mode::Sync => Some(Mode::Sync),
        generated::Mode::None => Some(Mode::None),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn assignment() -> Assignment {
        Assignment {
            host: "node07".parse().unwrap(),
            image: "debian".parse().unwrap(),
            image_id: Cid::of(b"image"),
            groups: vec!["gpu".into(), "all-nodes".into()],
            layers: Vec::new(),
            mode: Some(Mode::Sync),
            confirm: true,
            lists: Lists { preserve: vec!["/var/lib/db/".into()], ..Lists::default() },
            variables: [("NTP".to_owned(), "10.0.0.1".to_owned())].into(),
            scripts: vec![Script {
                stage: Stage::PreUpdate,
                name: "10all.hello".into(),
                content: b"#!/bin/sh\n".to_vec(),
            }],
            script_timeout_s: 60,
            identity: Identity { host_name: false, ..Identity::default() },
        }
    }

    #[test]
    fn an_assignment_round_trips_and_what_could_harm_is_refused() {
        let said = assignment();
        assert_eq!(Assignment::from_payload(&said.to_payload()).unwrap(), said);
        let refused = |change: &dyn Fn(&mut Assignment)| {
            let mut said = assignment();
            change(&mut said);
            Assignment::from_payload(&said.to_payload()).unwrap_err().to_string()
        };
        for name in ["../x", "a/b", "", ".hidden", "a\nb"] {
            let error = refused(&|said| said.scripts[0].name = name.into());
            assert!(error.contains("no file's"), "{name:?}: {error}");
        }
        for name in ["SHOAL_HOST", "1x", "LD PRELOAD", ""] {
            let error = refused(&|said| drop(said.variables.insert(name.into(), String::new())));
            assert!(error.contains("cannot be set"), "{name:?}: {error}");
        }
        assert!(refused(&|said| said.script_timeout_s = 0).contains("timeout"));
        assert!("a:b".parse::<LayerName>().is_err() && "x".repeat(120).parse::<LayerName>().is_err());
        assert_eq!("web".parse::<LayerName>().unwrap().image_name().as_str(), "override:web");
    }
}
