//! TOML with places: every value is taken together with the line that it stands in, and every problem is kept.

use std::collections::BTreeSet;
use std::ops::Range;
use std::path::{Path, PathBuf};

use toml::Spanned;
use toml::de::{DeTable, DeValue};

use super::Problem;

/// Reads the tables of one file and collects what is wrong.
#[derive(Debug)]
pub(super) struct Reader {
    file: PathBuf,
    /// Where each line begins.
    lines: Vec<usize>,
    pub(super) problems: Vec<Problem>,
}

/// A table whose keys are taken one by one; what nobody takes is unknown.
pub(super) struct Keys<'t, 'i> {
    table: &'t DeTable<'i>,
    /// For messages: `[group.web]`.
    pub(super) place: String,
    taken: BTreeSet<&'static str>,
}

pub(super) type Value<'i> = Spanned<DeValue<'i>>;

impl Reader {
    pub(super) fn new(file: &Path, text: &str) -> Self {
        let starts = text.bytes().enumerate().filter(|(_, byte)| *byte == b'\n').map(|(at, _)| at + 1);
        Self {
            file: file.to_owned(),
            lines: std::iter::once(0).chain(starts).collect(),
            problems: Vec::new(),
        }
    }

    pub(super) fn line(&self, span: &Range<usize>) -> usize {
        self.lines.partition_point(|start| *start <= span.start)
    }

    pub(super) fn problem(&mut self, span: Range<usize>, what: String) {
        let line = self.line(&span);
        self.problems.push(Problem { file: self.file.clone(), line, what });
    }

    /// A value of another kind than it should be.
    fn mistyped(&mut self, name: &str, value: &Value<'_>, expected: &str) {
        let found = kind(value.get_ref());
        self.problem(value.span(), format!("{name} is {found}, expected {expected}"));
    }

    pub(super) fn string<'v>(&mut self, name: &str, value: &'v Value<'_>, expected: &str) -> Option<&'v str> {
        let text = value.get_ref().as_str();
        if text.is_none() {
            self.mistyped(name, value, expected);
        }
        text
    }

    pub(super) fn parsed<T: std::str::FromStr<Err: std::fmt::Display>>(
        &mut self,
        name: &str,
        value: &Value<'_>,
        expected: &str,
    ) -> Option<T> {
        match self.string(name, value, expected)?.parse() {
            Ok(parsed) => Some(parsed),
            Err(error) => {
                self.problem(value.span(), format!("{name} is {error}, expected {expected}"));
                None
            }
        }
    }

    pub(super) fn boolean(&mut self, name: &str, value: &Value<'_>) -> Option<bool> {
        let said = value.get_ref().as_bool();
        if said.is_none() {
            self.mistyped(name, value, "true or false");
        }
        said
    }

    pub(super) fn number(&mut self, name: &str, value: &Value<'_>) -> Option<u32> {
        let expected = "a whole number from 0 to 4294967295";
        let Some(number) = value.get_ref().as_integer() else {
            self.mistyped(name, value, expected);
            return None;
        };
        let parsed = u32::from_str_radix(number.as_str(), number.radix()).ok();
        if parsed.is_none() {
            self.problem(value.span(), format!("{name} is {}, expected {expected}", number.as_str()));
        }
        parsed
    }

    /// The elements of an array; a text alone is an array of one.
    pub(super) fn list<'v, 'i>(&mut self, name: &str, value: &'v Value<'i>) -> Vec<&'v Value<'i>> {
        match value.get_ref() {
            DeValue::Array(array) => array.iter().collect(),
            DeValue::String(_) => vec![value],
            _ => {
                self.mistyped(name, value, "a list of texts");
                Vec::new()
            }
        }
    }

    pub(super) fn table<'v, 'i>(&mut self, name: &str, value: &'v Value<'i>) -> Option<&'v DeTable<'i>> {
        let table = value.get_ref().as_table();
        if table.is_none() {
            self.mistyped(name, value, "a table");
        }
        table
    }

    /// Complains of every key that nobody took.
    pub(super) fn finish(&mut self, keys: Keys<'_, '_>) {
        let known: Vec<&str> = keys.taken.iter().copied().collect();
        for key in keys.table.keys().filter(|key| !keys.taken.contains(key.get_ref().as_ref())) {
            let what = format!(
                "unknown key {:?} in {}, expected one of {}",
                key.get_ref(),
                keys.place,
                known.join(", ")
            );
            self.problem(key.span(), what);
        }
    }
}

impl<'t, 'i> Keys<'t, 'i> {
    pub(super) fn of(table: &'t DeTable<'i>, place: impl Into<String>) -> Self {
        Self { table, place: place.into(), taken: BTreeSet::new() }
    }

    pub(super) fn take(&mut self, key: &'static str) -> Option<&'t Value<'i>> {
        self.taken.insert(key);
        self.table.get(key)
    }
}

/// A value's kind, with an article.
fn kind(value: &DeValue<'_>) -> &'static str {
    match value {
        DeValue::String(_) => "a text",
        DeValue::Integer(_) => "a whole number",
        DeValue::Float(_) => "a number with a point",
        DeValue::Boolean(_) => "true or false",
        DeValue::Datetime(_) => "a date",
        DeValue::Array(_) => "a list",
        DeValue::Table(_) => "a table",
    }
}
