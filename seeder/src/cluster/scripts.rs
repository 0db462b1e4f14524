//! Scripts by SystemImager's names: `NNclass.description`.
//!
//! `NN` are two digits, `class` says for whom the script is: `all`, an image, the base of host names (what comes before
//! the first digit), a group, or one host. The scripts of a host run by their numbers; of the same number first those of
//! all, then of the image, the base name, the groups (the most important first) and the host, then by name. What is no script
//! of such a name is an error, but for `README*`, `*~` and hidden files.

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};

use shoal_proto::assignment::{SCRIPTS_BYTES_MAX, Stage};

use super::file::CLASS_OF_ALL;
use super::{Cluster, Problem};

/// A script of the cluster, with its content.
#[derive(Clone, Debug)]
pub struct ScriptFile {
    pub stage: Stage,
    pub number: u8,
    pub class: String,
    /// The whole name.
    pub name: String,
    pub content: Vec<u8>,
}

/// Reads the scripts in `folder`. `required`: the cluster file names the folder, in this line of it.
pub(super) fn read(
    folder: &Path,
    required: Option<(&Path, usize)>,
    cluster: &Cluster,
    problems: &mut Vec<Problem>,
) -> Vec<ScriptFile> {
    let Ok(listed) = std::fs::read_dir(folder) else {
        if let Some((file, line)) = required {
            let what = format!("there are no scripts, expected the folder {}", folder.display());
            problems.push(Problem { file: file.to_owned(), line, what });
        }
        return Vec::new();
    };
    let classes = classes(cluster);
    let mut found = Vec::new();
    for entry in listed.flatten() {
        let name = entry.file_name().to_string_lossy().into_owned();
        if is_passed_over(&name) {
            continue;
        }
        match Stage::ALL.into_iter().find(|stage| stage.name() == name) {
            Some(stage) if entry.path().is_dir() => {
                read_stage(&entry.path(), stage, &classes, &mut found, problems)
            }
            _ => {
                let names: Vec<&str> = Stage::ALL.iter().map(|stage| stage.name()).collect();
                let what = format!("is no folder of scripts, expected one of {}", names.join(", "));
                problems.push(Problem { file: entry.path(), line: 1, what });
            }
        }
    }
    found.sort_by(|one: &ScriptFile, other| {
        (one.stage, one.number, &one.name).cmp(&(other.stage, other.number, &other.name))
    });
    found
}

fn is_passed_over(name: &str) -> bool {
    name.starts_with("README") || name.starts_with('.') || name.ends_with('~')
}

fn read_stage(
    folder: &Path,
    stage: Stage,
    classes: &BTreeSet<String>,
    found: &mut Vec<ScriptFile>,
    problems: &mut Vec<Problem>,
) {
    let mut problem = |file: PathBuf, what: String| problems.push(Problem { file, line: 1, what });
    for entry in std::fs::read_dir(folder).into_iter().flatten().flatten() {
        let path = entry.path();
        let Ok(name) = entry.file_name().into_string() else {
            problem(path, "has a name that is no text, expected NNclass.description".to_owned());
            continue;
        };
        if is_passed_over(&name) {
            continue;
        }
        let (number, class) = match parse_name(&name, classes) {
            Ok(parsed) => parsed,
            Err(why) => {
                problem(path, why);
                continue;
            }
        };
        match std::fs::metadata(&path) {
            Ok(metadata) if !metadata.is_file() => problem(path, "is no file, expected a script".to_owned()),
            Ok(metadata) if metadata.len() > SCRIPTS_BYTES_MAX as u64 => {
                let what = format!(
                    "has {} bytes, expected at most {SCRIPTS_BYTES_MAX}: large things belong into an override",
                    metadata.len()
                );
                problem(path, what);
            }
            Ok(_) => match std::fs::read(&path) {
                Ok(content) if content.starts_with(b"#!") || content.starts_with(b"\x7fELF") => {
                    found.push(ScriptFile { stage, number, class, name, content });
                }
                Ok(_) => problem(
                    path,
                    "does not say what runs it, expected a first line such as #!/bin/sh".to_owned(),
                ),
                Err(error) => problem(path, format!("cannot be read: {error}, expected a script")),
            },
            Err(error) => problem(path, format!("cannot be read: {error}, expected a script")),
        }
    }
}

/// Takes `NNclass.description` apart. Of several classes that fit, the longest is meant: images have dots in their names.
fn parse_name(name: &str, classes: &BTreeSet<String>) -> Result<(u8, String), String> {
    let expected = "expected NNclass.description such as 10all.install_grub";
    let wrong = |why: String| Err(format!("script name {name:?} {why}, {expected}"));
    if name.len() > 255 || !name.bytes().all(|byte| byte.is_ascii_graphic()) {
        return wrong("has a space or another character that no script's name has".to_owned());
    }
    let digits = name.bytes().take_while(u8::is_ascii_digit).count();
    if digits < 2 {
        return wrong("does not begin with two digits".to_owned());
    }
    let number = name[..2].parse().expect("two digits");
    let rest = &name[2..];
    let Some((class, description)) = rest.split_once('.') else {
        return wrong("has no . between class and description".to_owned());
    };
    if class.is_empty() || description.is_empty() {
        return wrong(format!("has no {}", if class.is_empty() { "class" } else { "description" }));
    }
    let fits = |class: &&String| {
        rest.strip_prefix(class.as_str()).is_some_and(|rest| rest.len() > 1 && rest.starts_with('.'))
    };
    match classes.iter().filter(fits).max_by_key(|class| class.len()) {
        Some(class) => Ok((number, class.clone())),
        None => wrong(format!(
            "has the class {class:?}, which is neither \"{CLASS_OF_ALL}\" nor an image, a group, a host or the base of host names of this cluster"
        )),
    }
}

/// All that a script's class may be.
fn classes(cluster: &Cluster) -> BTreeSet<String> {
    let mut classes = BTreeSet::from([CLASS_OF_ALL.to_owned()]);
    classes.extend(cluster.images().keys().map(ToString::to_string));
    classes.extend(cluster.groups.iter().map(|group| group.name.clone()));
    for host in cluster.host_names() {
        classes.extend([host.to_string(), host.base().to_owned()]);
    }
    classes.remove("");
    classes
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_name_is_a_number_a_class_and_a_description() {
        let classes = ["all", "debian-12", "debian-12.1", "gpu", "7up"].map(str::to_owned).into();
        let parse = |name: &str| parse_name(name, &classes);
        assert_eq!(parse("10all.x").unwrap(), (10, "all".to_owned()));
        assert_eq!(parse("00debian-12.1.x").unwrap(), (0, "debian-12.1".to_owned()), "the longest class");
        assert_eq!(parse("00debian-12.fix").unwrap(), (0, "debian-12".to_owned()));
        assert_eq!(parse("007up.x").unwrap(), (0, "7up".to_owned()));
        for (name, why) in [
            ("1all.x", "two digits"),
            ("all.x", "two digits"),
            ("10all", "no . between"),
            ("10all.", "no description"),
            ("10.x", "no class"),
            ("10nobody.x", "the class \"nobody\""),
            ("10all.a b", "a space"),
        ] {
            let error = parse(name).unwrap_err();
            assert!(error.contains(why) && error.contains("expected NNclass.description"), "{name}: {error}");
        }
    }
}
