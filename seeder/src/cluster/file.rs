//! `cluster.toml`, read and checked as a whole: all that is wrong is named at once.
//!
//! ```toml
//! overrides = "overrides"          # folders beside this file; these are the defaults
//! scripts = "scripts"
//! script_timeout = "10m"
//! confidential = ["secrets"]       # overrides that only those get who are entitled to them
//!
//! [global]                         # what every host gets
//! image = "debian-12"
//! overrides = ["base"]             # the first wins over the others
//! variables = { NTP = "10.0.0.1" }
//! preserve = ["/var/lib/mysql/"]
//!
//! [group.gpu]
//! hosts = ["node[001-064]", "test7"]
//! priority = 10                    # a lower number is more important
//! overrides = ["cuda", "ib"]
//! mode = "auto"
//! exclude = { full = ["/opt/big/"], sync = [], update = [] }
//!
//! [host.node007]                   # what one host gets besides
//! overrides = ["node007"]
//! ```

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};
use std::time::Duration;

use shoal_proto::assignment::{Assignment, LayerName, OWN_VARIABLE_PREFIX, SCRIPT_TIMEOUT_S};
use shoal_proto::host::HostName;
use toml::de::DeTable;

use super::reader::{Keys, Reader, Value};
use super::{Cluster, Group, Part, Problem, hosts, patterns, scripts, whiteouts};

/// More than anybody writes.
const FILE_BYTES_MAX: u64 = 16 << 20;
/// A group of this name would be mistaken for everybody in the name of a script.
pub(super) const CLASS_OF_ALL: &str = "all";

/// Reads a cluster file, and looks at the folders that it names.
///
/// # Errors
/// All that is wrong, by file and line.
pub fn read(file: &Path) -> Result<Cluster, Vec<Problem>> {
    read_with(file, None)
}

/// As [`read`], of a copy without overrides whose scripts are in `scripts_dir`.
pub(super) fn read_with(file: &Path, scripts_dir: Option<&Path>) -> Result<Cluster, Vec<Problem>> {
    let one = |what: String| vec![Problem { file: file.to_owned(), line: 1, what }];
    let bytes = std::fs::metadata(file).map_err(|error| one(format!("cannot be read: {error}")))?.len();
    if bytes > FILE_BYTES_MAX {
        return Err(one(format!("has {bytes} bytes, expected at most {FILE_BYTES_MAX}")));
    }
    let text = std::fs::read_to_string(file).map_err(|error| one(format!("cannot be read: {error}")))?;
    let (table, errors) = DeTable::parse_recoverable(&text);
    let mut reading =
        Reading { reader: Reader::new(file, &text), named: BTreeMap::new(), override_lines: BTreeMap::new() };
    for error in &errors {
        let what = format!("is no TOML: {}", error.message().replace('\n', ", "));
        reading.reader.problem(error.span().unwrap_or(0..0), what);
    }
    let cluster = reading.cluster(file, table.get_ref());
    if errors.is_empty() {
        reading.check_images(&cluster);
        if scripts_dir.is_none() {
            reading.check_overrides(&cluster);
        }
    }
    let mut problems = reading.reader.problems;
    let mut cluster = cluster;
    if errors.is_empty() {
        let named = reading.named.get("scripts").filter(|_| scripts_dir.is_none());
        let beside = folder_beside(file, named.map_or("scripts", |(_, name)| name));
        let (folder, required) = (scripts_dir.unwrap_or(&beside), named.map(|(line, _)| *line));
        cluster.scripts = scripts::read(folder, required.map(|line| (file, line)), &cluster, &mut problems);
    }
    problems.sort();
    problems.dedup();
    if problems.is_empty() { Ok(cluster) } else { Err(problems) }
}

fn folder_beside(file: &Path, name: &str) -> PathBuf {
    file.parent().unwrap_or(Path::new("")).join(name)
}

struct Reading {
    reader: Reader,
    /// Folders that the file names, and the lines that do.
    named: BTreeMap<&'static str, (usize, String)>,
    /// Where each override is named first.
    override_lines: BTreeMap<LayerName, usize>,
}

impl Reading {
    fn cluster(&mut self, file: &Path, table: &DeTable<'_>) -> Cluster {
        let mut keys = Keys::of(table, "the file");
        for name in ["overrides", "scripts"] {
            if let Some(value) = keys.take(name)
                && let Some(folder) = self.reader.string(name, value, "the name of a folder")
            {
                let line = self.reader.line(&value.span());
                self.named.insert(name, (line, folder.to_owned()));
            }
        }
        let override_dir =
            folder_beside(file, self.named.get("overrides").map_or("overrides", |(_, name)| name));
        let confidential =
            keys.take("confidential").map_or(Vec::new(), |value| self.names(value, "confidential"));
        let script_timeout = keys.take("script_timeout").and_then(|value| self.timeout(value));
        let global = match keys.take("global") {
            Some(value) => self.part_of("global", value),
            None => Part::default(),
        };
        let (mut groups, mut single) = (Vec::new(), BTreeMap::new());
        for (name, key, value) in self.tables(&mut keys, "group") {
            groups.extend(self.group(&name, key, value));
        }
        for (name, key, value) in self.tables(&mut keys, "host") {
            match name.parse::<HostName>() {
                Ok(host) => drop(single.insert(host, self.part_of(&format!("host.{name}"), value))),
                Err(error) => {
                    self.reader.problem(key, format!("{error}, expected a host as in [host.node007]"))
                }
            }
        }
        self.reader.finish(keys);
        groups.sort_by_key(|group: &Group| {
            (group.priority.is_none(), group.priority, group.name.to_lowercase(), group.name.clone())
        });
        Cluster {
            file: file.to_owned(),
            override_dir,
            confidential: confidential.into_iter().collect(),
            global,
            groups,
            hosts: single,
            scripts: Vec::new(),
            script_timeout: script_timeout.unwrap_or(Duration::from_secs(SCRIPT_TIMEOUT_S.into())),
        }
    }

    /// The tables in `[KIND.NAME]`, with the places of their names.
    fn tables<'t, 'i>(
        &mut self,
        keys: &mut Keys<'t, 'i>,
        kind: &'static str,
    ) -> Vec<(String, std::ops::Range<usize>, &'t Value<'i>)> {
        let Some(value) = keys.take(kind) else { return Vec::new() };
        let Some(table) = self.reader.table(kind, value) else { return Vec::new() };
        table.iter().map(|(key, value)| (key.get_ref().to_string(), key.span(), value)).collect()
    }

    fn timeout(&mut self, value: &Value<'_>) -> Option<Duration> {
        let expected = "a time from 1s to 24h, such as 90s or 10m";
        let text = self.reader.string("script_timeout", value, expected)?;
        let range = Duration::from_secs(1)..=Duration::from_secs(24 * 3600);
        let parsed = humantime::parse_duration(text).ok().filter(|time| range.contains(time));
        if parsed.is_none() {
            self.reader.problem(value.span(), format!("script_timeout is {text:?}, expected {expected}"));
        }
        parsed
    }

    fn group(&mut self, name: &str, key: std::ops::Range<usize>, value: &Value<'_>) -> Option<Group> {
        let place = format!("group.{name}");
        if name.parse::<HostName>().is_err() || name == CLASS_OF_ALL {
            let what = format!(
                "{name:?} is no name for a group, expected 1 to 63 of A-Z a-z 0-9 - _, and not \"{CLASS_OF_ALL}\""
            );
            self.reader.problem(key.clone(), what);
        }
        let table = self.reader.table(&place, value)?;
        let mut keys = Keys::of(table, format!("[{place}]"));
        let hosts = keys.take("hosts");
        let line = self.reader.line(&hosts.map_or(key.clone(), |value| value.span()));
        let members = match hosts {
            Some(value) => self.members(value),
            None => {
                let what = format!("[{place}] names no hosts, expected such as hosts = [\"node[001-256]\"]");
                self.reader.problem(key, what);
                BTreeSet::new()
            }
        };
        let priority = keys.take("priority").and_then(|value| self.reader.number("priority", value));
        let part = self.part(&mut keys);
        self.reader.finish(keys);
        Some(Group { name: name.to_owned(), priority, members, part, line })
    }

    fn members(&mut self, value: &Value<'_>) -> BTreeSet<HostName> {
        let mut members = BTreeSet::new();
        let expressions = self.reader.list("hosts", value);
        if expressions.is_empty() {
            self.reader.problem(value.span(), "hosts is empty, expected at least one host".to_owned());
        }
        for expression in expressions {
            let expected = "hosts such as \"node[001-256,300]\"";
            let Some(text) = self.reader.string("a host", expression, expected) else { continue };
            match hosts::expand(text) {
                Ok(names) => members.extend(names),
                Err(why) => self.reader.problem(expression.span(), format!("{why}, expected {expected}")),
            }
        }
        if members.len() > hosts::HOSTS_MAX {
            let what = format!("hosts means {} hosts, expected at most {}", members.len(), hosts::HOSTS_MAX);
            self.reader.problem(value.span(), what);
        }
        members
    }

    fn part_of(&mut self, place: &str, value: &Value<'_>) -> Part {
        let Some(table) = self.reader.table(place, value) else { return Part::default() };
        let mut keys = Keys::of(table, format!("[{place}]"));
        let part = self.part(&mut keys);
        self.reader.finish(keys);
        part
    }

    fn part(&mut self, keys: &mut Keys<'_, '_>) -> Part {
        let mut part = Part::default();
        if let Some(value) = keys.take("image") {
            part.image = self.reader.parsed("image", value, "the name of a captured image");
            part.image_line = self.reader.line(&value.span());
        }
        if let Some(value) = keys.take("overrides") {
            part.overrides = self.names(value, "overrides");
        }
        if let Some(value) = keys.take("mode") {
            part.mode = self.reader.parsed("mode", value, "one of auto, full, sync, none");
        }
        let mut switch =
            |reading: &mut Self, key| keys.take(key).and_then(|value| reading.reader.boolean(key, value));
        part.confirm = switch(self, "confirm");
        part.machine_id = switch(self, "machine_id");
        part.host_name = switch(self, "host_name");
        part.ssh_host_keys = switch(self, "ssh_host_keys");
        if let Some(value) = keys.take("exclude")
            && let Some(table) = self.reader.table("exclude", value)
        {
            let mut lists = Keys::of(table, format!("{} exclude", keys.place));
            part.lists.exclude_full = self.patterns(&mut lists, "full");
            part.lists.exclude_sync = self.patterns(&mut lists, "sync");
            part.lists.exclude_update = self.patterns(&mut lists, "update");
            self.reader.finish(lists);
        }
        part.lists.preserve = self.patterns(keys, "preserve");
        part.lists.no_new_files = self.patterns(keys, "no_new_files");
        if let Some(value) = keys.take("variables") {
            part.variables = self.variables(value);
        }
        part
    }

    /// Names of overrides, none twice.
    fn names(&mut self, value: &Value<'_>, key: &str) -> Vec<LayerName> {
        let mut names: Vec<LayerName> = Vec::new();
        for element in self.reader.list(key, value) {
            let expected = "the name of a folder of overrides";
            let Some(name) = self.reader.parsed::<LayerName>("an override", element, expected) else {
                continue;
            };
            if names.contains(&name) {
                self.reader.problem(element.span(), format!("{key} has {name} twice, expected each once"));
                continue;
            }
            let line = self.reader.line(&element.span());
            let first = self.override_lines.entry(name.clone()).or_insert(line);
            *first = line.min(*first);
            names.push(name);
        }
        names
    }

    fn patterns(&mut self, keys: &mut Keys<'_, '_>, key: &'static str) -> Vec<String> {
        let Some(value) = keys.take(key) else { return Vec::new() };
        let mut patterns: Vec<String> = Vec::new();
        for element in self.reader.list(key, value) {
            let Some(pattern) = self.reader.string("a pattern", element, "a text such as /var/log/*") else {
                continue;
            };
            if let Some(why) = patterns::never_matches(pattern) {
                self.reader.problem(element.span(), why);
            } else if patterns.iter().any(|known| known == pattern) {
                let what = format!(
                    "{key} has {pattern:?} twice, so the second can never decide, expected each once"
                );
                self.reader.problem(element.span(), what);
            } else {
                patterns.push(pattern.to_owned());
            }
        }
        patterns
    }

    fn variables(&mut self, value: &Value<'_>) -> BTreeMap<String, String> {
        let mut variables = BTreeMap::new();
        let Some(table) = self.reader.table("variables", value) else { return variables };
        for (key, value) in table.iter() {
            let name = key.get_ref().to_string();
            if !Assignment::is_variable_name(&name) || name.starts_with(OWN_VARIABLE_PREFIX) {
                let what = format!(
                    "{name:?} is no name for a variable, expected A-Z a-z 0-9 _, no digit first, and not {OWN_VARIABLE_PREFIX}… which Shoal sets"
                );
                self.reader.problem(key.span(), what);
                continue;
            }
            let Some(text) = self.reader.string(&name, value, "a text") else { continue };
            if text.contains('\0') {
                self.reader
                    .problem(value.span(), format!("{name} has a NUL in it, expected text without one"));
                continue;
            }
            variables.insert(name, text.to_owned());
        }
        variables
    }

    /// Every override that somebody gets is a folder, and takes away only what can be there.
    fn check_overrides(&mut self, cluster: &Cluster) {
        let used = cluster.overrides();
        for (name, &line) in &self.override_lines {
            let problem = |what: String| Problem { file: cluster.file.clone(), line, what };
            if !used.contains(name) {
                let what =
                    format!("{name} is confidential and nobody gets it, expected it in some overrides");
                self.reader.problems.push(problem(what));
                continue;
            }
            let folder = cluster.override_dir.join(name.as_str());
            if !folder.is_dir() {
                let what = format!("there is no override {name}, expected the folder {}", folder.display());
                self.reader.problems.push(problem(what));
                continue;
            }
            whiteouts::check(&folder, &mut self.reader.problems);
        }
    }

    /// Every host gets an image.
    fn check_images(&mut self, cluster: &Cluster) {
        if cluster.host_names().is_empty() && self.reader.problems.is_empty() {
            self.reader
                .problem(0..0, "names no host, expected a [group.NAME] with hosts or a [host.NAME]".into());
        }
        if cluster.global.image.is_some() {
            return;
        }
        let lacks = |host: &HostName| {
            let named = |part: &Part| part.image.is_some();
            let by_group =
                cluster.groups.iter().any(|group| group.members.contains(host) && named(&group.part));
            !by_group && !cluster.hosts.get(host).is_some_and(named)
        };
        let mut complaints = Vec::new();
        for group in &cluster.groups {
            let lacking: Vec<&HostName> = group.members.iter().filter(|host| lacks(host)).collect();
            if let Some(first) = lacking.first() {
                let others = match lacking.len() - 1 {
                    0 => String::new(),
                    others => format!(" and {others} more of group {}", group.name),
                };
                let what = format!(
                    "{first}{others} gets no image, expected one in [global], a group or [host.{first}]"
                );
                complaints.push((group.line, what));
            }
        }
        let grouped = |host: &HostName| cluster.groups.iter().any(|group| group.members.contains(host));
        for host in cluster.hosts.keys().filter(|host| lacks(host) && !grouped(host)) {
            complaints.push((1, format!("{host} gets no image, expected one in [global] or [host.{host}]")));
        }
        let file = cluster.file.clone();
        self.reader.problems.extend(complaints.into_iter().map(|(line, what)| Problem {
            file: file.clone(),
            line,
            what,
        }));
    }
}
