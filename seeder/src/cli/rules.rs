//! `--include`, `--exclude` and `--exclude-from`, in the order in which they were given: the first rule that matches
//! decides, so the order is part of what they say.

use std::path::PathBuf;

use anyhow::Context;
use clap::{Arg, ArgAction, ArgMatches, Args, Command, Error, FromArgMatches, value_parser};
use shoal_node::tree::exclude::Excludes;

const INCLUDE: &str = "include";
const EXCLUDE: &str = "exclude";
const EXCLUDE_FROM: &str = "exclude_from";

/// What was given, in order.
#[derive(Clone, Debug, Default)]
pub(crate) struct Rules(Vec<Given>);

#[derive(Clone, Debug)]
enum Given {
    Rule(String),
    From(PathBuf),
}

impl Rules {
    /// All rules, with those of files in their files' place.
    pub(crate) fn read(self) -> anyhow::Result<Vec<String>> {
        let mut rules = Vec::new();
        for given in self.0 {
            match given {
                Given::Rule(rule) => rules.push(rule),
                Given::From(path) => {
                    let text = std::fs::read_to_string(&path)
                        .with_context(|| format!("cannot read exclude patterns from {}", path.display()))?;
                    rules.extend(Excludes::lines(&text).map(str::to_owned));
                }
            }
        }
        Ok(rules)
    }
}

/// `--include P` is the rule `+ P`, unless P is a whole rule.
fn included(pattern: &str) -> String {
    let whole = pattern == "!" || pattern.starts_with("+ ") || pattern.starts_with("- ");
    if whole { pattern.to_owned() } else { format!("+ {pattern}") }
}

impl Args for Rules {
    fn augment_args(command: Command) -> Command {
        let many =
            |name: &'static str, long: &'static str| Arg::new(name).long(long).action(ArgAction::Append);
        command
            .arg(
                many(EXCLUDE, "exclude")
                    .value_name("PATTERN")
                    .allow_hyphen_values(true)
                    .help("Leave out what matches (rsync's pattern language; the first match decides)"),
            )
            .arg(
                many(INCLUDE, "include")
                    .value_name("PATTERN")
                    .allow_hyphen_values(true)
                    .help("Take what matches, whatever later patterns say"),
            )
            .arg(
                many(EXCLUDE_FROM, "exclude-from")
                    .value_name("FILE")
                    .value_parser(value_parser!(PathBuf))
                    .help("Read patterns from FILE, one a line; \"+ P\" takes what P matches"),
            )
    }

    fn augment_args_for_update(command: Command) -> Command {
        Self::augment_args(command)
    }
}

impl FromArgMatches for Rules {
    fn from_arg_matches(matches: &ArgMatches) -> Result<Self, Error> {
        let mut rules = Self::default();
        rules.update_from_arg_matches(matches)?;
        Ok(rules)
    }

    fn update_from_arg_matches(&mut self, matches: &ArgMatches) -> Result<(), Error> {
        let mut given: Vec<(usize, Given)> = Vec::new();
        for (name, rule) in [(EXCLUDE, str::to_owned as fn(&str) -> String), (INCLUDE, included)] {
            let patterns = matches.get_many::<String>(name).into_iter().flatten();
            let places = matches.indices_of(name).into_iter().flatten();
            given.extend(places.zip(patterns).map(|(place, pattern)| (place, Given::Rule(rule(pattern)))));
        }
        let files = matches.get_many::<PathBuf>(EXCLUDE_FROM).into_iter().flatten();
        let places = matches.indices_of(EXCLUDE_FROM).into_iter().flatten();
        given.extend(places.zip(files).map(|(place, file)| (place, Given::From(file.clone()))));
        given.sort_unstable_by_key(|(place, _)| *place);
        self.0 = given.into_iter().map(|(_, given)| given).collect();
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use clap::Parser;

    use super::*;

    #[derive(Debug, Parser)]
    struct Line {
        #[command(flatten)]
        rules: Rules,
    }

    #[test]
    fn options_keep_their_order_and_files_their_place() {
        let file = tempfile::NamedTempFile::new().unwrap();
        std::fs::write(file.path(), "# comment\n+ c\n\nd\n").unwrap();
        let path = file.path().to_str().unwrap();
        let line = [
            "x",
            "--include",
            "a",
            "--exclude=b",
            "--exclude-from",
            path,
            "--include=- e",
            "--exclude",
            "-f",
        ];
        let rules = Line::try_parse_from(line).unwrap().rules.read().unwrap();
        assert_eq!(rules, ["+ a", "b", "+ c", "d", "- e", "-f"]);
    }
}
