//! What one host gets: everything that is said of it, folded in one order.

use std::collections::BTreeMap;
use std::time::Duration;

use shoal_proto::assignment::{Identity, LayerName, Lists, Mode, Stage};
use shoal_proto::host::HostName;
use shoal_proto::image::ImageName;

use super::file::CLASS_OF_ALL;
use super::{Cluster, Group, Part, ScriptFile};

/// What a command line adds to what the cluster file says.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct CommandLine {
    pub image: Option<ImageName>,
    /// The first wins over the others, and all over the host's.
    pub overrides: Vec<LayerName>,
}

/// What one host gets, by name.
#[derive(Clone, Debug)]
pub struct Resolved<'c> {
    pub host: HostName,
    pub image: ImageName,
    /// The most important first.
    pub groups: Vec<&'c Group>,
    /// Whose word each override is, in the order in which they are laid over the image: the last wins.
    pub layers: Vec<(LayerName, Source)>,
    pub mode: Option<Mode>,
    pub confirm: bool,
    pub lists: Lists,
    pub variables: BTreeMap<String, String>,
    /// In the order in which they run.
    pub scripts: Vec<&'c ScriptFile>,
    pub script_timeout: Duration,
    pub identity: Identity,
}

/// Who says that a host gets an override.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Source {
    Global,
    Group(String),
    Host,
    CommandLine,
}

impl std::fmt::Display for Source {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Global => f.write_str("global"),
            Self::Group(name) => write!(f, "group {name}"),
            Self::Host => f.write_str("host"),
            Self::CommandLine => f.write_str("command line"),
        }
    }
}

impl Resolved<'_> {
    /// The image and the layers over it, the lowest first.
    pub fn names(&self) -> Vec<String> {
        let layers = self.layers.iter().map(|(name, _)| name.to_string());
        std::iter::once(self.image.to_string()).chain(layers).collect()
    }
}

impl Cluster {
    /// What `host` gets: image < global < groups by priority < host < command line. `None` when the file does not name it.
    pub fn resolve(&self, host: &HostName, command: &CommandLine) -> Option<Resolved<'_>> {
        let groups: Vec<&Group> = self.groups.iter().filter(|group| group.members.contains(host)).collect();
        let own = self.hosts.get(host);
        if groups.is_empty() && own.is_none() {
            return None;
        }
        // The most important word first.
        let mut said: Vec<(&Part, Source)> = own.map(|part| (part, Source::Host)).into_iter().collect();
        said.extend(groups.iter().map(|group| (&group.part, Source::Group(group.name.clone()))));
        said.push((&self.global, Source::Global));
        let first = |of: fn(&Part) -> Option<bool>| said.iter().find_map(|(part, _)| of(part));

        let image = command.image.clone().or_else(|| said.iter().find_map(|(part, _)| part.image.clone()))?;
        let mut layers: Vec<(LayerName, Source)> = Vec::new();
        let named = said
            .iter()
            .flat_map(|(part, source)| part.overrides.iter().map(move |name| (name, source.clone())));
        for (name, source) in command.overrides.iter().map(|name| (name, Source::CommandLine)).chain(named) {
            // Of one that several name, the most important place counts: below it, it would change nothing.
            if !layers.iter().any(|(known, _)| known == name) {
                layers.push((name.clone(), source));
            }
        }
        layers.reverse();
        let mut variables = BTreeMap::new();
        for (part, _) in said.iter().rev() {
            variables.extend(part.variables.clone());
        }
        let identity = Identity {
            machine_id: first(|part| part.machine_id).unwrap_or(true),
            host_name: first(|part| part.host_name).unwrap_or(true),
            ssh_host_keys: first(|part| part.ssh_host_keys).unwrap_or(true),
        };
        Some(Resolved {
            scripts: self.scripts_of(host, &image, &groups),
            host: host.clone(),
            image,
            groups,
            layers,
            mode: said.iter().find_map(|(part, _)| part.mode),
            confirm: first(|part| part.confirm).unwrap_or(false),
            lists: lists(&said),
            variables,
            script_timeout: self.script_timeout,
            identity,
        })
    }

    /// The scripts of a host, each once, in the order in which they run.
    fn scripts_of(&self, host: &HostName, image: &ImageName, groups: &[&Group]) -> Vec<&ScriptFile> {
        let mut classes = vec![CLASS_OF_ALL, image.as_str(), host.base()];
        classes.extend(groups.iter().map(|group| group.name.as_str()));
        classes.push(host.as_str());
        let place = |script: &ScriptFile| classes.iter().position(|class| *class == script.class);
        let mut scripts: Vec<(Stage, u8, usize, &ScriptFile)> = self
            .scripts
            .iter()
            .filter_map(|script| Some((script.stage, script.number, place(script)?, script)))
            .collect();
        scripts.sort_by(|one, other| {
            (one.0, one.1, one.2, &one.3.name).cmp(&(other.0, other.1, other.2, &other.3.name))
        });
        scripts.into_iter().map(|(.., script)| script).collect()
    }
}

/// All lists, those of the most important word first.
fn lists(said: &[(&Part, Source)]) -> Lists {
    let all = |of: fn(&Lists) -> &Vec<String>| {
        let mut patterns: Vec<String> = Vec::new();
        for pattern in said.iter().flat_map(|(part, _)| of(&part.lists)) {
            if !patterns.contains(pattern) {
                patterns.push(pattern.clone());
            }
        }
        patterns
    };
    Lists {
        exclude_full: all(|lists| &lists.exclude_full),
        exclude_sync: all(|lists| &lists.exclude_sync),
        exclude_update: all(|lists| &lists.exclude_update),
        preserve: all(|lists| &lists.preserve),
        no_new_files: all(|lists| &lists.no_new_files),
    }
}
