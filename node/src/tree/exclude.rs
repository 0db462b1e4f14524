//! Exclude patterns, in rsync's language.
//!
//! | pattern | leaves out |
//! |---|---|
//! | `/etc/mtab` | that path: a leading slash anchors at the top of the tree |
//! | `*.o`, `a/b` | a path that *ends* so, component by component, wherever it lies |
//! | `cache/` | a directory only, with all that is in it |
//! | `/tmp/*` | all that is in it, and not the directory |
//! | `*` `?` `[a-z]` `[!a]` | match within one component; `\` takes the next character as it is |
//! | `**` | matches slashes too; `dir/***` also the directory itself |
//!
//! A pattern with a `**` anywhere may match from any component on, as one with a slash does.

/// A list of patterns; a path that one of them matches is left out.
#[derive(Clone, Debug, Default)]
pub struct Excludes(Vec<Pattern>);

#[derive(Clone, Debug)]
struct Pattern {
    anchored: bool,
    directory_only: bool,
    /// Compared to as many components of the end of a path; `None` when it may match any number (`**`).
    components: Option<usize>,
    glob: Vec<u8>,
    /// `dir/***`: the pattern of the directory itself.
    with_self: bool,
}

/// A pattern that no path could match.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum PatternError {
    #[error("an empty exclude pattern")]
    Empty,
    #[error("exclude pattern {0:?} has a [ without its ]")]
    OpenClass(String),
}

impl Excludes {
    pub fn new<P: AsRef<[u8]>>(patterns: impl IntoIterator<Item = P>) -> Result<Self, PatternError> {
        patterns
            .into_iter()
            .map(|pattern| Pattern::parse(pattern.as_ref()))
            .collect::<Result<_, _>>()
            .map(Self)
    }

    /// Whether `path`, components joined with slashes and without one in front, is left out. The root never is.
    pub fn matches(&self, path: &[u8], directory: bool) -> bool {
        !path.is_empty() && self.0.iter().any(|pattern| pattern.matches(path, directory))
    }

    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }
}

impl Pattern {
    fn parse(text: &[u8]) -> Result<Self, PatternError> {
        let (anchored, rest) = text.strip_prefix(b"/").map_or((false, text), |rest| (true, rest));
        let (with_self, rest) = rest.strip_suffix(b"/***").map_or((false, rest), |rest| (true, rest));
        let (directory_only, rest) = rest.strip_suffix(b"/").map_or((false, rest), |rest| (true, rest));
        if rest.is_empty() {
            return Err(PatternError::Empty);
        }
        let mut at = 0;
        while at < rest.len() {
            match rest[at] {
                b'\\' => at += 2,
                b'[' => {
                    let class = Class::parse(&rest[at..]);
                    at +=
                        class.ok_or_else(|| PatternError::OpenClass(text.escape_ascii().to_string()))?.bytes;
                }
                _ => at += 1,
            }
        }
        let deep = rest.windows(2).any(|pair| pair == b"**");
        let components = (!deep).then(|| rest.iter().filter(|&&byte| byte == b'/').count() + 1);
        Ok(Self { anchored, directory_only, components, glob: rest.to_vec(), with_self })
    }

    fn matches(&self, path: &[u8], directory: bool) -> bool {
        if self.with_self {
            // The directory, or anything below it: whatever matches the directory leaves out its content too.
            return directory && self.matches_end(path);
        }
        (directory || !self.directory_only) && self.matches_end(path)
    }

    fn matches_end(&self, path: &[u8]) -> bool {
        if self.anchored {
            return glob(&self.glob, path);
        }
        let starts = std::iter::once(0)
            .chain(path.iter().enumerate().filter(|(_, byte)| **byte == b'/').map(|(at, _)| at + 1));
        starts.into_iter().any(|start| {
            let tail = &path[start..];
            let count = tail.iter().filter(|&&byte| byte == b'/').count() + 1;
            self.components.is_none_or(|components| components == count) && glob(&self.glob, tail)
        })
    }
}

/// Whether `pattern` matches all of `text`.
fn glob(pattern: &[u8], text: &[u8]) -> bool {
    // The last star of each kind, where to go on after it and how much it took: trying a longer run of the nearest
    // star is enough, and when that may not cross a slash, of the nearest double star.
    let (mut at, mut pos) = (0, 0);
    let mut single: Option<(usize, usize)> = None;
    let mut double: Option<(usize, usize)> = None;
    loop {
        if pattern[at..].starts_with(b"**") {
            at += pattern[at..].iter().take_while(|&&byte| byte == b'*').count();
            (double, single) = (Some((at, pos)), None);
            continue;
        }
        if pattern.get(at) == Some(&b'*') {
            at += 1;
            single = Some((at, pos));
            continue;
        }
        if at == pattern.len() && pos == text.len() {
            return true;
        }
        if let Some(bytes) = (pos < text.len()).then(|| one(&pattern[at..], text[pos])).flatten() {
            at += bytes;
            pos += 1;
            continue;
        }
        if let Some((after, taken)) =
            single.filter(|&(_, taken)| text.get(taken).is_some_and(|&byte| byte != b'/'))
        {
            single = Some((after, taken + 1));
            (at, pos) = (after, taken + 1);
        } else if let Some((after, taken)) = double.filter(|&(_, taken)| taken < text.len()) {
            (double, single) = (Some((after, taken + 1)), None);
            (at, pos) = (after, taken + 1);
        } else {
            return false;
        }
    }
}

/// The length of the first element of `pattern` when it matches `byte`.
fn one(pattern: &[u8], byte: u8) -> Option<usize> {
    match *pattern.first()? {
        b'?' => (byte != b'/').then_some(1),
        b'\\' if pattern.len() > 1 => (pattern[1] == byte).then_some(2),
        b'[' => {
            let class = Class::parse(pattern)?;
            (byte != b'/' && class.contains(byte)).then_some(class.bytes)
        }
        own => (own == byte).then_some(1),
    }
}

/// `[a-z_]`, `[!a-z]` or `[^a-z]`.
struct Class<'a> {
    negated: bool,
    members: &'a [u8],
    /// Of the pattern, brackets included.
    bytes: usize,
}

impl<'a> Class<'a> {
    fn parse(pattern: &'a [u8]) -> Option<Self> {
        let inner = pattern.get(1..)?;
        let negated = matches!(inner.first(), Some(b'!' | b'^'));
        let start = usize::from(negated);
        // A bracket that comes first is a member.
        let len = inner.get(start + 1..)?.iter().position(|&byte| byte == b']')? + 1;
        Some(Self { negated, members: &inner[start..start + len], bytes: start + len + 2 })
    }

    fn contains(&self, byte: u8) -> bool {
        let mut members = self.members;
        let mut found = false;
        while let [first, rest @ ..] = members {
            if let [b'-', last, after @ ..] = rest {
                found |= (*first..=*last).contains(&byte);
                members = after;
            } else {
                found |= *first == byte;
                members = rest;
            }
        }
        found != self.negated
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn patterns_match_as_in_rsync() {
        let cases = [
            ("/etc/mtab", "etc/mtab", true),
            ("/etc/mtab", "usr/etc/mtab", false),
            ("mtab", "etc/mtab", true),
            ("etc/mtab", "usr/etc/mtab", true),
            ("etc/mtab", "usretc/mtab", false),
            ("*.o", "src/a.o", true),
            ("*.o", "src/a.o/b", false),
            ("/tmp/*", "tmp/x", true),
            ("/tmp/*", "tmp", false),
            ("/tmp/*", "tmp/x/y", false),
            ("/tmp/**", "tmp/x/y", true),
            ("/a/**/z", "a/b/c/z", true),
            ("/a/**/z", "a/z", false),
            ("**/z", "a/z", true),
            ("a*b*c", "xaxbxc", false),
            ("a*b*c", "axbxbxc", true),
            ("/a*/b", "ax/y/b", false),
            ("?", "x", true),
            ("?", "xy", false),
            ("[a-c]x", "bx", true),
            ("[!a-c]x", "bx", false),
            ("[]]x", "]x", true),
            ("[a-]", "-", true),
            ("\\*", "*", true),
            ("\\*", "x", false),
            ("/a**b*c", "axx/bxx/bc", true),
        ];
        for (pattern, path, expected) in cases {
            let excludes = Excludes::new([pattern]).unwrap();
            assert_eq!(excludes.matches(path.as_bytes(), false), expected, "{pattern} on {path}");
        }
    }

    #[test]
    fn a_trailing_slash_means_directories() {
        for pattern in ["cache/", "/var/cache/", "cache/***"] {
            let excludes = Excludes::new([pattern]).unwrap();
            assert!(excludes.matches(b"var/cache", true), "{pattern}");
            assert!(!excludes.matches(b"var/cache", false), "{pattern}");
        }
    }

    #[test]
    fn patterns_that_match_nothing_are_refused() {
        assert_eq!(Excludes::new([""]).unwrap_err(), PatternError::Empty);
        assert_eq!(Excludes::new(["/"]).unwrap_err(), PatternError::Empty);
        assert_eq!(Excludes::new(["a[b"]).unwrap_err(), PatternError::OpenClass("a[b".to_owned()));
    }
}
