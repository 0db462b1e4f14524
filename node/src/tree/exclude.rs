//! Which paths a capture leaves out: rules in rsync's language, the first that matches decides.
//!
//! | rule | does |
//! |---|---|
//! | `P`, `- P` | leaves out what the pattern P matches, a directory with all that is in it |
//! | `+ P` | takes what P matches, unless an earlier rule left it or a directory around it out |
//! | `!` | forgets all rules before it |
//!
//! | pattern | matches |
//! |---|---|
//! | `/etc/mtab` | that path: a leading slash anchors at the top of the tree |
//! | `*.o`, `a/b` | a path that *ends* so, component by component, wherever it lies |
//! | `cache/` | a directory only |
//! | `/tmp/*` | all that is in it, and not the directory |
//! | `*` `?` `[a-z]` `[!a]` `[[:digit:]]` | within one component |
//! | `**` | slashes too; in front also the slash before the first component, so `**/x` matches any `x` |
//! | `dir/***` | the directory and all that is in it |
//! | `\*` | the next character as it is, in a pattern with one of `*`, `?`, `[`; otherwise a backslash is one |
//!
//! What no rule matches is taken. In a file of rules, empty lines and those that begin with `#` or `;` say nothing.

/// Rules in order.
#[derive(Clone, Debug, Default)]
pub struct Excludes(Vec<Rule>);

#[derive(Clone, Debug)]
struct Rule {
    include: bool,
    pattern: Pattern,
}

#[derive(Clone, Debug)]
struct Pattern {
    place: Place,
    directory_only: bool,
    /// Without the slashes in front and at the end.
    glob: Vec<u8>,
    /// Whether the glob is more than text.
    wild: bool,
    /// `dir/***`: a directory is matched with a slash after it, too.
    with_self: bool,
}

/// Which part of a path is compared.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Place {
    Whole,
    /// As `Whole`, with a slash in front.
    WholeAfterSlash,
    /// So many components of its end.
    End(usize),
    /// From any component to its end.
    AnyEnd,
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
    /// Takes rules as the table says, in order.
    pub fn new<R: AsRef<[u8]>>(rules: impl IntoIterator<Item = R>) -> Result<Self, PatternError> {
        let mut parsed = Vec::new();
        for rule in rules {
            let rule = rule.as_ref();
            let (include, pattern) = match rule {
                b"!" => {
                    parsed.clear();
                    continue;
                }
                [b'+', b' ', pattern @ ..] => (true, pattern),
                [b'-', b' ', pattern @ ..] => (false, pattern),
                pattern => (false, pattern),
            };
            parsed.push(Rule { include, pattern: Pattern::parse(pattern)? });
        }
        Ok(Self(parsed))
    }

    /// The rules of a file's text: a line each, without what says nothing.
    pub fn lines(text: &str) -> impl Iterator<Item = &str> {
        text.split(['\n', '\r']).filter(|line| !line.is_empty() && !line.starts_with(['#', ';']))
    }

    /// Whether `path`, components joined with slashes and without one in front, is left out. The root never is.
    ///
    /// To be asked of a path only when the directories around it are taken.
    pub fn matches(&self, path: &[u8], directory: bool) -> bool {
        let first = || self.0.iter().find(|rule| rule.pattern.matches(path, directory));
        !path.is_empty() && first().is_some_and(|rule| !rule.include)
    }

    /// These rules after others, which decide first.
    pub fn after(self, first: Self) -> Self {
        Self(first.0.into_iter().chain(self.0).collect())
    }

    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }
}

impl Pattern {
    fn parse(text: &[u8]) -> Result<Self, PatternError> {
        let (anchored, rest) = text.strip_prefix(b"/").map_or((false, text), |rest| (true, rest));
        let (directory_only, rest) = rest.strip_suffix(b"/").map_or((false, rest), |rest| (true, rest));
        if rest.is_empty() {
            return Err(PatternError::Empty);
        }
        let wild = rest.iter().any(|byte| b"*?[".contains(byte));
        let mut at = 0;
        while wild && at < rest.len() {
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
        let place = match () {
            () if anchored => Place::Whole,
            () if rest.starts_with(b"**") => Place::WholeAfterSlash,
            () if deep => Place::AnyEnd,
            () => Place::End(rest.iter().filter(|&&byte| byte == b'/').count() + 1),
        };
        Ok(Self { place, directory_only, glob: rest.to_vec(), wild, with_self: rest.ends_with(b"/***") })
    }

    fn matches(&self, path: &[u8], directory: bool) -> bool {
        if self.directory_only && !directory {
            return false;
        }
        if self.with_self && directory {
            return self.matches_text(&[path, b"/"].concat());
        }
        self.matches_text(path)
    }

    fn matches_text(&self, text: &[u8]) -> bool {
        match self.place {
            Place::Whole => self.equals(text),
            Place::WholeAfterSlash => self.equals(&[b"/", text].concat()),
            Place::End(components) => {
                let mut starts = starts(text).rev();
                starts.nth(components - 1).is_some_and(|start| self.equals(&text[start..]))
            }
            Place::AnyEnd => starts(text).any(|start| self.equals(&text[start..])),
        }
    }

    fn equals(&self, text: &[u8]) -> bool {
        if self.wild { glob(&self.glob, text) } else { self.glob == text }
    }
}

/// Where each component starts.
fn starts(path: &[u8]) -> impl DoubleEndedIterator<Item = usize> {
    let after = (0..path.len()).filter(|&at| path[at] == b'/').map(|at| at + 1);
    std::iter::once(0).chain(after)
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
        b'\\' => (pattern.get(1) == Some(&byte)).then_some(2),
        b'[' => {
            let class = Class::parse(pattern)?;
            (byte != b'/' && class.contains(byte)).then_some(class.bytes)
        }
        own => (own == byte).then_some(1),
    }
}

/// `[a-z_]`, `[!a-z]`, `[^a-z]`, `[[:alpha:]]`.
struct Class<'a> {
    negated: bool,
    members: &'a [u8],
    /// Of the pattern, brackets included.
    bytes: usize,
}

/// What a class may name as `[:name:]`.
type Named = (&'static [u8], fn(&u8) -> bool);
const NAMED: [Named; 12] = [
    (b"alnum", u8::is_ascii_alphanumeric),
    (b"alpha", u8::is_ascii_alphabetic),
    (b"blank", |byte| b" \t".contains(byte)),
    (b"cntrl", u8::is_ascii_control),
    (b"digit", u8::is_ascii_digit),
    (b"graph", u8::is_ascii_graphic),
    (b"lower", u8::is_ascii_lowercase),
    (b"print", |byte| (b' '..0x7f).contains(byte)),
    (b"punct", u8::is_ascii_punctuation),
    (b"space", |byte| byte.is_ascii_whitespace() || *byte == 0x0b),
    (b"upper", u8::is_ascii_uppercase),
    (b"xdigit", u8::is_ascii_hexdigit),
];

/// A member of a class and how many bytes it is written in.
enum Member {
    Byte(u8, usize),
    Named(fn(&u8) -> bool, usize),
}

impl Member {
    fn first(text: &[u8]) -> Option<Self> {
        if let Some(rest) = text.strip_prefix(b"[:") {
            let len = rest.windows(2).position(|pair| pair == b":]")?;
            let named = NAMED.iter().find(|(name, _)| *name == &rest[..len])?;
            return Some(Self::Named(named.1, len + 4));
        }
        match *text {
            [b'\\', byte, ..] => Some(Self::Byte(byte, 2)),
            [byte, ..] => Some(Self::Byte(byte, 1)),
            [] => None,
        }
    }

    fn bytes(&self) -> usize {
        match self {
            Self::Byte(_, bytes) | Self::Named(_, bytes) => *bytes,
        }
    }
}

impl<'a> Class<'a> {
    fn parse(pattern: &'a [u8]) -> Option<Self> {
        let inner = pattern.get(1..)?;
        let negated = matches!(inner.first(), Some(b'!' | b'^'));
        let start = usize::from(negated);
        // A bracket that comes first is a member.
        let mut end = start;
        while end == start || *inner.get(end)? != b']' {
            end += Member::first(&inner[end..])?.bytes();
        }
        Some(Self { negated, members: &inner[start..end], bytes: end + 2 })
    }

    fn contains(&self, byte: u8) -> bool {
        let mut members = self.members;
        let mut found = false;
        while let Some(member) = Member::first(members) {
            members = &members[member.bytes()..];
            let low = match member {
                Member::Named(is, _) => {
                    found |= is(&byte);
                    continue;
                }
                Member::Byte(low, _) => low,
            };
            if let [b'-', rest @ ..] = members
                && let Some(Member::Byte(high, bytes)) = Member::first(rest)
            {
                found |= (low..=high).contains(&byte);
                members = &rest[bytes..];
            } else {
                found |= low == byte;
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
            ("**/z", "z", true),
            ("a**z", "x/a/b/z", true),
            ("a\\b", "a\\b", true),
            ("[[:digit:]-]", "7", true),
            ("[[:digit:]-]", "x", false),
            ("[\\]-a]", "^", true),
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
    fn the_first_rule_that_matches_decides() {
        let rules = ["lost", "!", "+ /a/b", "- /a/*", "+ *.c", "- /c***", "- *.c/"];
        let excludes = Excludes::new(rules).unwrap();
        for (path, expected) in
            [("a/b", false), ("a/x.c", true), ("x.c", false), ("c.c", false), ("c", true), ("lost", false)]
        {
            assert_eq!(excludes.matches(path.as_bytes(), false), expected, "{path}");
        }
    }

    #[test]
    fn lines_that_say_nothing_are_left_out() {
        let text = "# what\n; ever\r\n\n  blanks \n- a\n #b\n!";
        assert_eq!(Excludes::lines(text).collect::<Vec<_>>(), ["  blanks ", "- a", " #b", "!"]);
    }

    #[test]
    fn patterns_that_match_nothing_are_refused() {
        assert_eq!(Excludes::new([""]).unwrap_err(), PatternError::Empty);
        assert_eq!(Excludes::new(["/"]).unwrap_err(), PatternError::Empty);
        assert_eq!(Excludes::new(["a[b"]).unwrap_err(), PatternError::OpenClass("a[b".to_owned()));
    }
}
