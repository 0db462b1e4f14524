//! What a site says of its machines: one `cluster.toml`, folders of overrides and of scripts beside it.
//!
//! ```text
//! cluster.toml       groups, hosts, and what each gets (file.rs reads it and names all that is wrong in it)
//! overrides/NAME/    trees laid over the image; `.wh.` files take away (proto: image/layers.rs)
//! scripts/STAGE/     NNclass.description, STAGE one of pre-install, post-install, pre-update, post-update
//! ```
//!
//! [`Cluster::resolve`] is the one place that says what a host gets: install, update, `explain` and `diff` all ask it.
//! Of what is said of a host once (its image, its mode, a variable) the most important word counts: the host's own, then
//! its groups by priority, then the global one. What adds up (overrides, lists) adds up in that order.

pub mod file;
pub mod hosts;
pub mod import;
pub mod look;
mod patterns;
pub mod published;
mod reader;
pub mod resolve;
pub mod scripts;
mod whiteouts;

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::path::PathBuf;
use std::time::Duration;

pub use shoal_proto::assignment::LayerName;
use shoal_proto::assignment::{Lists, Mode};
use shoal_proto::host::HostName;
use shoal_proto::image::ImageName;

pub use self::file::read;
pub use self::resolve::Resolved;
pub use self::scripts::ScriptFile;

/// Something wrong in a cluster file, an override or a script's name: `FILE:LINE: what, expected what`.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Problem {
    pub file: PathBuf,
    /// From 1.
    pub line: usize,
    pub what: String,
}

impl fmt::Display for Problem {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}:{}: {}", self.file.display(), self.line, self.what)
    }
}

/// A cluster file that was checked as a whole.
#[derive(Clone, Debug)]
pub struct Cluster {
    pub file: PathBuf,
    /// Where the trees of overrides are.
    pub override_dir: PathBuf,
    /// Overrides that only those get who are entitled to them.
    pub confidential: BTreeSet<LayerName>,
    pub global: Part,
    /// The most important first.
    pub groups: Vec<Group>,
    /// What is said of single hosts.
    pub hosts: BTreeMap<HostName, Part>,
    /// In the order of their numbers and names.
    pub scripts: Vec<ScriptFile>,
    pub script_timeout: Duration,
}

/// Machines that have something in common.
#[derive(Clone, Debug)]
pub struct Group {
    pub name: String,
    /// A lower number is more important; without one, less important than all that have one.
    pub priority: Option<u32>,
    pub members: BTreeSet<HostName>,
    pub part: Part,
    /// Where its hosts are named.
    pub line: usize,
}

/// What is said of all hosts, of a group or of a host.
#[derive(Clone, Debug, Default)]
pub struct Part {
    pub image: Option<ImageName>,
    /// Where the image is named.
    pub image_line: usize,
    /// The most important first.
    pub overrides: Vec<LayerName>,
    pub mode: Option<Mode>,
    pub confirm: Option<bool>,
    pub lists: Lists,
    pub variables: BTreeMap<String, String>,
    pub machine_id: Option<bool>,
    pub host_name: Option<bool>,
    pub ssh_host_keys: Option<bool>,
}

impl Cluster {
    /// All hosts that it knows.
    pub fn host_names(&self) -> BTreeSet<&HostName> {
        self.groups.iter().flat_map(|group| &group.members).chain(self.hosts.keys()).collect()
    }

    /// Each override that somebody gets, once.
    pub fn overrides(&self) -> BTreeSet<&LayerName> {
        self.parts().flat_map(|part| &part.overrides).collect()
    }

    /// Each image that somebody gets, with the line that names it first.
    pub fn images(&self) -> BTreeMap<&ImageName, usize> {
        let mut images = BTreeMap::new();
        for part in self.parts() {
            if let Some(image) = &part.image {
                let line = images.entry(image).or_insert(part.image_line);
                *line = part.image_line.min(*line);
            }
        }
        images
    }

    fn parts(&self) -> impl Iterator<Item = &Part> {
        std::iter::once(&self.global)
            .chain(self.groups.iter().map(|group| &group.part))
            .chain(self.hosts.values())
    }
}
