//! SystemImager's `cluster.xml` as a `cluster.toml`, so that a site moves with what it has.
//!
//! | SystemImager | here |
//! |---|---|
//! | `<name>` and `<override>` at the top | `[global]`, and every override named there |
//! | `<group>`: `<name>`, `<priority>`, `<image>`, `<override>`, `<node>` | `[group.NAME]` |
//! | a priority that is missing or 0 | none: least important |
//! | `node001-node256`, lists with commas or spaces, names of groups | `node[001-256]`, single hosts, their hosts |
//! | a host in an override of its own name | `[host.NAME]` with that override |
//! | exclude lists for updates | `exclude.update` and `exclude.sync` of `[global]` |
//!
//! What has no counterpart is named, and nothing is left out without a word: commands that print hosts
//! (`<dynamic_node>`), domains and ranges of addresses, which filled `/etc/hosts`.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt::Write;
use std::path::Path;

use roxmltree::{Document, Node};
use shoal_proto::assignment::LayerName;
use shoal_proto::host::HostName;
use shoal_proto::image::ImageName;

use super::{Problem, hosts, patterns};

/// A cluster file, and what it could not say.
#[derive(Clone, Debug)]
pub struct Imported {
    pub toml: String,
    pub notes: Vec<Problem>,
}

/// What is read beside `cluster.xml`.
#[derive(Clone, Copy, Debug, Default)]
pub struct Sources<'a> {
    /// The folder of overrides, as the new file names it.
    pub overrides: Option<&'a Path>,
    /// The folder of scripts.
    pub scripts: Option<&'a Path>,
    /// Lists of what an update leaves alone.
    pub excludes: &'a [&'a Path],
    /// For hosts without one.
    pub image: Option<&'a ImageName>,
}

#[derive(Debug, Default)]
struct Group {
    line: usize,
    priority: Option<u32>,
    image: Option<ImageName>,
    overrides: Vec<LayerName>,
    /// As they are written.
    expressions: Vec<(usize, String)>,
    members: BTreeSet<HostName>,
}

struct Reading<'f> {
    file: &'f Path,
    problems: Vec<Problem>,
    notes: Vec<Problem>,
}

/// Reads SystemImager's file.
///
/// # Errors
/// All that is wrong in it, by file and line.
pub fn import(file: &Path, sources: Sources<'_>) -> Result<Imported, Vec<Problem>> {
    let one = |line: usize, what: String| vec![Problem { file: file.to_owned(), line, what }];
    let text = std::fs::read_to_string(file).map_err(|error| one(1, format!("cannot be read: {error}")))?;
    let document = Document::parse(&text)
        .map_err(|error| one(usize::try_from(error.pos().row).unwrap_or(1), format!("is no XML: {error}")))?;
    let mut reading = Reading { file, problems: Vec::new(), notes: Vec::new() };
    let (supergroups, global, mut groups) = reading.master(&document);
    let ranges: BTreeMap<String, Vec<(usize, String)>> =
        groups.iter().map(|(name, group)| (name.clone(), group.expressions.clone())).collect();
    for (name, group) in &mut groups {
        group.members = reading.members(name, &ranges, &supergroups, &mut BTreeSet::new());
    }
    for group in groups.values() {
        if let (Some(folder), Some(image)) = (sources.overrides, &group.image)
            && folder.join(image.as_str()).is_dir()
        {
            let what = format!(
                "image {image} has an override of its own name, which was laid right over it: name it last in a group's overrides, or put it into the image"
            );
            reading.note(group.line, what);
        }
    }
    let excludes = reading.excludes(sources.excludes);
    let own = own_overrides(sources.overrides, &groups);
    let toml = write(&reading, sources, &global, &groups, &own, &excludes);
    let Reading { problems, notes, .. } = reading;
    if problems.is_empty() { Ok(Imported { toml, notes }) } else { Err(problems) }
}

impl Reading<'_> {
    fn problem(&mut self, line: usize, what: String) {
        self.problems.push(Problem { file: self.file.to_owned(), line, what });
    }

    fn note(&mut self, line: usize, what: String) {
        self.notes.push(Problem { file: self.file.to_owned(), line, what });
    }

    /// The names of everybody, the global overrides, and the groups.
    fn master(
        &mut self,
        document: &Document<'_>,
    ) -> (BTreeSet<String>, Vec<LayerName>, BTreeMap<String, Group>) {
        let root = document.root_element();
        if root.tag_name().name() != "master" {
            let found = root.tag_name().name().to_owned();
            self.problem(line(document, root), format!("begins with <{found}>, expected <master>"));
        }
        let (mut supergroups, mut global, mut groups) = (BTreeSet::new(), Vec::new(), BTreeMap::new());
        for node in root.children().filter(Node::is_element) {
            let at = line(document, node);
            match node.tag_name().name() {
                "name" => drop(supergroups.insert(content(node))),
                "override" => global.extend(self.override_of(at, &content(node))),
                "group" => {
                    if let Some((name, group)) = self.group(document, node)
                        && groups.insert(name.clone(), group).is_some()
                    {
                        self.problem(at, format!("has group {name} twice, expected each once"));
                    }
                }
                other => {
                    self.problem(
                        at,
                        format!("has <{other}> in <master>, expected <name>, <override> or <group>"),
                    );
                }
            }
        }
        (supergroups, global, groups)
    }

    fn group(&mut self, document: &Document<'_>, node: Node<'_, '_>) -> Option<(String, Group)> {
        let mut group = Group { line: line(document, node), ..Group::default() };
        let mut name = None;
        for child in node.children().filter(Node::is_element) {
            let (at, text) = (line(document, child), content(child));
            match child.tag_name().name() {
                "name" => name = Some((at, text)),
                "priority" if text.is_empty() || text == "0" => {}
                "priority" => match text.parse() {
                    Ok(priority) => group.priority = Some(priority),
                    Err(_) => self.problem(at, format!("has priority {text:?}, expected a whole number")),
                },
                "image" if text.is_empty() => {}
                "image" => match text.parse() {
                    Ok(image) => group.image = Some(image),
                    Err(error) => self.problem(at, format!("{error}, expected the name of an image")),
                },
                "override" if text.is_empty() => {}
                "override" => group.overrides.extend(self.override_of(at, &text)),
                "node" => group.expressions.push((at, text)),
                "dynamic_node" => {
                    self.note(at, format!("runs {text:?} for hosts: name them in the new file"))
                }
                tag @ ("ip-range" | "domain") => {
                    self.note(at, format!("has <{tag}> {text:?}: put /etc/hosts into an override"));
                }
                other => {
                    let expected = "<name>, <priority>, <image>, <override>, <node>, <dynamic_node>, <ip-range> or <domain>";
                    self.problem(at, format!("has <{other}> in <group>, expected {expected}"));
                }
            }
        }
        match name {
            Some((at, name)) if name.parse::<HostName>().is_err() || name == super::file::CLASS_OF_ALL => {
                self.problem(
                    at,
                    format!("has group {name:?}, expected a name of A-Z a-z 0-9 - _, not \"all\""),
                );
                None
            }
            Some((_, name)) => Some((name, group)),
            None => {
                self.problem(group.line, "has a <group> without a name, expected <name>".to_owned());
                None
            }
        }
    }

    fn override_of(&mut self, at: usize, text: &str) -> Option<LayerName> {
        if text.is_empty() {
            return None;
        }
        match text.parse() {
            Ok(name) => Some(name),
            Err(error) => {
                self.problem(at, format!("{error}, expected the name of an override"));
                None
            }
        }
    }

    /// The hosts of a group: names, ranges, and hosts of other groups.
    fn members(
        &mut self,
        name: &str,
        ranges: &BTreeMap<String, Vec<(usize, String)>>,
        supergroups: &BTreeSet<String>,
        around: &mut BTreeSet<String>,
    ) -> BTreeSet<HostName> {
        let mut members = BTreeSet::new();
        if !around.insert(name.to_owned()) {
            return members;
        }
        for (at, expression) in ranges.get(name).into_iter().flatten() {
            for item in items(expression) {
                if ranges.contains_key(&item) && item != name {
                    members.extend(self.members(&item, ranges, supergroups, around));
                } else if supergroups.contains(&item) {
                    for other in ranges.keys() {
                        members.extend(self.members(other, ranges, supergroups, around));
                    }
                } else {
                    match range(&item) {
                        Ok(names) => members.extend(names),
                        Err(why) => self.problem(*at, format!("{why}, expected such as node001-node256")),
                    }
                }
            }
        }
        around.remove(name);
        members
    }

    fn excludes(&mut self, files: &[&Path]) -> Vec<String> {
        let mut found: Vec<String> = Vec::new();
        for file in files {
            let text = match std::fs::read_to_string(file) {
                Ok(text) => text,
                Err(error) => {
                    let what = format!("cannot be read: {error}, expected a list of patterns");
                    self.problems.push(Problem { file: file.to_path_buf(), line: 1, what });
                    continue;
                }
            };
            for (at, pattern) in text.lines().map(str::trim).enumerate() {
                let pattern = pattern.strip_prefix("- ").unwrap_or(pattern);
                if pattern.is_empty()
                    || pattern.starts_with(['#', ';'])
                    || found.iter().any(|known| known == pattern)
                {
                    continue;
                }
                match patterns::never_matches(pattern) {
                    None => found.push(pattern.to_owned()),
                    Some(why) => {
                        self.problems.push(Problem { file: file.to_path_buf(), line: at + 1, what: why });
                    }
                }
            }
        }
        found
    }
}

fn line(document: &Document<'_>, node: Node<'_, '_>) -> usize {
    usize::try_from(document.text_pos_at(node.range().start).row).unwrap_or(1)
}

fn content(node: Node<'_, '_>) -> String {
    node.text().unwrap_or_default().trim().to_owned()
}

/// The items of a list: commas, spaces and line ends between them.
fn items(expression: &str) -> Vec<String> {
    let separated = expression.split(|c: char| c == ',' || c.is_whitespace());
    separated.filter(|item| !item.is_empty()).map(str::to_owned).collect()
}

/// One host, or `node001-node256`; `\-` is a dash of a name. A domain at both ends is dropped.
fn range(item: &str) -> Result<Vec<HostName>, String> {
    const DASH: char = '\u{1}';
    let escaped = item.replace("\\-", &DASH.to_string());
    let plain = |text: &str| text.replace(DASH, "-");
    let single = |text: &str| HostName::of_full_name(&plain(text)).map_err(|error| error.to_string());
    let Some((from, to)) = escaped.split_once('-') else { return Ok(vec![single(&escaped)?]) };
    let short = |end: &str| end.split_once('.').map_or(end, |(host, _)| host).to_owned();
    let (from, to) = (short(from), short(to));
    let digits = |end: &str| end.len() - end.trim_end_matches(|c: char| c.is_ascii_digit()).len();
    let (head, first) = from.split_at(from.len() - digits(&from));
    let (tail, last) = to.split_at(to.len() - digits(&to));
    if first.is_empty() || last.is_empty() || head != tail {
        // A name with a dash that nobody escaped.
        return single(&escaped).map(|host| vec![host]).map_err(|error| format!("{item:?}: {error}"));
    }
    hosts::expand(&format!("{}[{first}-{last}]", plain(head)))
}

/// Hosts that have an override of their own name: SystemImager lays it over all others.
fn own_overrides(folder: Option<&Path>, groups: &BTreeMap<String, Group>) -> BTreeSet<HostName> {
    let members: BTreeSet<&HostName> = groups.values().flat_map(|group| &group.members).collect();
    let Some(folder) = folder else { return BTreeSet::new() };
    members.into_iter().filter(|host| folder.join(host.as_str()).is_dir()).cloned().collect()
}

fn write(
    reading: &Reading<'_>,
    sources: Sources<'_>,
    global: &[LayerName],
    groups: &BTreeMap<String, Group>,
    own: &BTreeSet<HostName>,
    excludes: &[String],
) -> String {
    let mut out = format!("# Made from SystemImager's {}.\n", reading.file.display());
    // Writing to a text cannot fail.
    let mut say = |line: std::fmt::Arguments<'_>| {
        let _ = writeln!(out, "{line}");
    };
    if let Some(folder) = sources.overrides {
        say(format_args!("overrides = {}", quoted(&folder.to_string_lossy())));
    }
    if let Some(folder) = sources.scripts {
        say(format_args!("scripts = {}", quoted(&folder.to_string_lossy())));
    }
    say(format_args!("\n[global]"));
    if let Some(image) = sources.image {
        say(format_args!("image = {}", quoted(image.as_str())));
    }
    say(format_args!("overrides = {}", list(global.iter().map(LayerName::as_str))));
    if !excludes.is_empty() {
        let excludes = list(excludes.iter().map(String::as_str));
        say(format_args!("exclude = {{ sync = {excludes}, update = {excludes} }}"));
    }
    for (name, group) in groups {
        say(format_args!("\n[group.{name}]"));
        say(format_args!("hosts = {}", list(folded(&group.members).iter().map(String::as_str))));
        if let Some(priority) = group.priority {
            say(format_args!("priority = {priority}"));
        }
        if let Some(image) = &group.image {
            say(format_args!("image = {}", quoted(image.as_str())));
        }
        say(format_args!("overrides = {}", list(group.overrides.iter().map(LayerName::as_str))));
    }
    for host in own {
        say(format_args!("\n[host.{host}]\noverrides = {}", list(std::iter::once(host.as_str()))));
    }
    out
}

fn list<'a>(items: impl Iterator<Item = &'a str>) -> String {
    format!("[{}]", items.map(quoted).collect::<Vec<_>>().join(", "))
}

fn quoted(text: &str) -> String {
    let mut out = String::from("\"");
    for shown in text.chars() {
        match shown {
            '"' | '\\' => out.extend(['\\', shown]),
            _ if shown.is_control() => drop(write!(out, "\\u{:04x}", u32::from(shown))),
            _ => out.push(shown),
        }
    }
    out.push('"');
    out
}

/// Hosts as ranges where their numbers follow each other, zeros kept.
fn folded(members: &BTreeSet<HostName>) -> Vec<String> {
    let mut runs: Vec<(String, String, String)> = Vec::new();
    for host in members {
        let name = host.as_str();
        let (head, number) = name.split_at(name.trim_end_matches(|c: char| c.is_ascii_digit()).len());
        let follows = |(of, _, last): &(String, String, String)| {
            let (Ok(last_number), Ok(next)) = (last.parse::<u64>(), number.parse::<u64>()) else {
                return false;
            };
            of == head && last.len() == number.len() && last_number + 1 == next
        };
        match runs.last_mut() {
            Some(run) if follows(run) => number.clone_into(&mut run.2),
            _ => runs.push((head.to_owned(), number.to_owned(), number.to_owned())),
        }
    }
    let text = |(head, first, last): (String, String, String)| match first == last {
        true => format!("{head}{first}"),
        false => format!("{head}[{first}-{last}]"),
    };
    runs.into_iter().map(text).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ranges_keep_their_zeros_lose_their_domains_and_fold_back() {
        let names =
            |item: &str| -> Vec<String> { range(item).unwrap().iter().map(ToString::to_string).collect() };
        assert_eq!(names("n08-n10"), ["n08", "n09", "n10"]);
        assert_eq!(names("n1.example.org-n2.example.org"), ["n1", "n2"]);
        assert_eq!(names(r"a\-b1-a\-b2"), ["a-b1", "a-b2"]);
        assert_eq!(names("login.example.org"), ["login"]);
        assert_eq!(names("my-host"), ["my-host"]);
        assert!(range("n3-n1").is_err() && range("n/1").is_err());
        let members = ["n08", "n09", "n10", "n12", "x"].iter().map(|name| name.parse().unwrap()).collect();
        assert_eq!(folded(&members), ["n[08-10]", "n12", "x"]);
        assert_eq!(quoted("a\"b\\c\n"), r#""a\"b\\c\u000a""#);
    }
}
