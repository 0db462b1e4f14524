//! Names inside an image. Bytes, not text: a tree keeps whatever its file system allowed.

use std::fmt;

/// Longest name of one entry, as in every Linux file system.
pub const COMPONENT_BYTES_MAX: usize = 255;
/// Deepest entry. A path of such depth is far beyond `PATH_MAX`; the bound keeps hostile trees cheap to walk.
pub const DEPTH_MAX: usize = 8192;

/// One name: 1 to 255 bytes, no slash, no NUL, not `.` and not `..`.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Component<'a>(&'a [u8]);

/// A name that could leave its directory, or that no directory could hold.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum PathError {
    #[error("an empty name")]
    Empty,
    #[error("a name of {0} bytes where at most {COMPONENT_BYTES_MAX} are allowed")]
    TooLong(usize),
    #[error("the name {0:?}, which means another directory")]
    Dots(&'static str),
    #[error("a name with a slash in it")]
    Slash,
    #[error("a name with a NUL in it")]
    Nul,
    #[error("a path that starts at the root of the file system")]
    Absolute,
    #[error("a path of more than {DEPTH_MAX} names")]
    TooDeep,
}

impl<'a> Component<'a> {
    pub fn new(name: &'a [u8]) -> Result<Self, PathError> {
        match name {
            b"" => Err(PathError::Empty),
            b"." => Err(PathError::Dots(".")),
            b".." => Err(PathError::Dots("..")),
            _ if name.len() > COMPONENT_BYTES_MAX => Err(PathError::TooLong(name.len())),
            _ if name.contains(&b'/') => Err(PathError::Slash),
            _ if name.contains(&0) => Err(PathError::Nul),
            _ => Ok(Self(name)),
        }
    }

    pub const fn bytes(self) -> &'a [u8] {
        self.0
    }
}

impl fmt::Debug for Component<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "\"{}\"", self.0.escape_ascii())
    }
}

/// A path below the root of an image: components that are each a [`Component`], none for the root itself.
///
/// Ordered by components: all that lies in a directory comes right after it, before a name that only starts alike.
#[derive(Clone, PartialEq, Eq, Hash, Default)]
pub struct ImagePath {
    /// Components with a slash between them.
    joined: Vec<u8>,
}

impl ImagePath {
    /// The root directory.
    pub const ROOT: Self = Self { joined: Vec::new() };

    /// Checks `a/b/c`; the empty path is the root.
    pub fn parse(joined: &[u8]) -> Result<Self, PathError> {
        if joined.first() == Some(&b'/') {
            return Err(PathError::Absolute);
        }
        let mut path = Self::ROOT;
        if joined.is_empty() {
            return Ok(path);
        }
        for (depth, name) in joined.split(|&byte| byte == b'/').enumerate() {
            if depth == DEPTH_MAX {
                return Err(PathError::TooDeep);
            }
            path.push(Component::new(name)?);
        }
        Ok(path)
    }

    pub fn push(&mut self, name: Component<'_>) {
        if !self.joined.is_empty() {
            self.joined.push(b'/');
        }
        self.joined.extend_from_slice(name.bytes());
    }

    pub fn components(&self) -> impl DoubleEndedIterator<Item = Component<'_>> {
        self.joined.split(|&byte| byte == b'/').filter(|name| !name.is_empty()).map(Component)
    }

    /// Whether it lies in `directory`, at whatever depth.
    pub fn is_below(&self, directory: &Self) -> bool {
        let rest = self.joined.strip_prefix(&directory.joined[..]);
        rest.is_some_and(
            |rest| if directory.is_root() { !rest.is_empty() } else { rest.first() == Some(&b'/') },
        )
    }

    pub fn is_root(&self) -> bool {
        self.joined.is_empty()
    }

    /// Components with a slash between them, for showing and for matching; not for opening.
    pub fn bytes(&self) -> &[u8] {
        &self.joined
    }
}

impl PartialOrd for ImagePath {
    fn partial_cmp(&self, other: &Self) -> Option<std::cmp::Ordering> {
        Some(self.cmp(other))
    }
}

impl Ord for ImagePath {
    fn cmp(&self, other: &Self) -> std::cmp::Ordering {
        self.components().cmp(other.components())
    }
}

/// `.` for the root; bytes that are no printable ASCII or UTF-8 text are escaped.
impl fmt::Display for ImagePath {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match std::str::from_utf8(&self.joined) {
            Ok("") => f.write_str("."),
            Ok(text) if !text.contains(char::is_control) => f.write_str(text),
            _ => write!(f, "{}", self.joined.escape_ascii()),
        }
    }
}

impl fmt::Debug for ImagePath {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn paths_that_could_leave_the_tree_are_refused() {
        let cases: [(&[u8], PathError); 9] = [
            (b"/etc", PathError::Absolute),
            (b"..", PathError::Dots("..")),
            (b"a/../b", PathError::Dots("..")),
            (b"a/./b", PathError::Dots(".")),
            (b"a//b", PathError::Empty),
            (b"a/", PathError::Empty),
            (b"a\0", PathError::Nul),
            (&[b'n'; 256], PathError::TooLong(256)),
            (&b"d/".repeat(DEPTH_MAX + 1), PathError::TooDeep),
        ];
        for (bytes, error) in cases {
            assert_eq!(ImagePath::parse(bytes), Err(error));
        }
        assert_eq!(Component::new(b"a/b"), Err(PathError::Slash));
    }

    #[test]
    fn odd_names_are_kept() {
        for bytes in [&b"..."[..], b"a/-b", b"\xff\xfe/\n", &[b'n'; 255], b""] {
            assert_eq!(ImagePath::parse(bytes).unwrap().bytes(), bytes);
        }
        assert_eq!(ImagePath::parse(b"a\xff/\n").unwrap().to_string(), "a\\xff/\\n");
        assert_eq!(ImagePath::ROOT.to_string(), ".");
    }

    #[test]
    fn a_directory_sorts_right_before_what_is_in_it() {
        let sorted = ["", "a", "a/b", "a/b/c", "a-", "a-/z", "b"]
            .map(|path| ImagePath::parse(path.as_bytes()).unwrap());
        assert!(sorted.is_sorted());
    }
}
