//! What an image is captured from: a directory of this machine, a tar or a container image.
//!
//! | written | means |
//! |---|---|
//! | `PATH` | what is there: a directory, an OCI layout, a tar or an archive of an OCI layout |
//! | `-` | a tar on standard input |
//! | `dir:PATH` | that directory, whatever it looks like |
//! | `tar:PATH` | that tar, whatever it looks like |
//! | `oci:PATH`, `oci:PATH:NAME` | that OCI layout or archive; of several images the one of this name |
//! | `golden:NAME`, `golden:NAME@KEY` | the tree that a machine offers under this name (golden.rs) |

use std::fmt;
use std::io;
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};
use shoal_node::tree::archive::{Archive, ArchiveError, is_layout};

/// Where a tree comes from. Travels to the running seeder as JSON: a path that is no UTF-8 is refused there.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Source {
    /// An absolute path.
    Directory(PathBuf),
    /// A tar; by default also an archive of an OCI layout. An absolute path.
    Archive(PathBuf),
    Tar(PathBuf),
    /// An OCI layout or an archive of one, and which of its images. An absolute path.
    Oci(PathBuf, Option<String>),
    /// A tar on the standard input of the process that asks, by the path at which its user can open it.
    Input(PathBuf),
    /// What a golden client offers under this name.
    Golden(String),
}

#[derive(Debug, thiserror::Error)]
pub enum Error {
    #[error("cannot capture {}", path.display())]
    Missing { path: PathBuf, source: io::Error },
    #[error("cannot capture standard input: it is a terminal, and a tar is expected")]
    Terminal,
}

impl From<PathBuf> for Source {
    /// A directory.
    fn from(path: PathBuf) -> Self {
        Self::Directory(path)
    }
}

impl Source {
    /// What an operator means by `text`, as the table says. Looks at what is there.
    pub fn parse(text: &str) -> Result<Self, Error> {
        if text == "-" {
            if io::IsTerminal::is_terminal(&io::stdin()) {
                return Err(Error::Terminal);
            }
            return Ok(Self::Input(format!("/proc/{}/fd/0", std::process::id()).into()));
        }
        if let Some(name) = text.strip_prefix("golden:") {
            return Ok(Self::Golden(name.to_owned()));
        }
        if let Some(path) = text.strip_prefix("dir:") {
            return Ok(Self::Directory(absolute(path)?));
        }
        if let Some(path) = text.strip_prefix("tar:") {
            return Ok(Self::Tar(absolute(path)?));
        }
        if let Some(path) = text.strip_prefix("oci:") {
            let (path, name) = split_name(path);
            return Ok(Self::Oci(absolute(path)?, name.map(str::to_owned)));
        }
        let path = absolute(text)?;
        Ok(match path.is_dir() {
            true if is_layout(&path) => Self::Oci(path, None),
            true => Self::Directory(path),
            false => Self::Archive(path),
        })
    }

    /// Reads an archive.
    ///
    /// # Panics
    /// When it is a tree that is captured as it stands.
    pub(crate) fn open(&self, scratch: &Path) -> Result<Archive, ArchiveError> {
        match self {
            Self::Archive(path) => Archive::open(path, None, scratch),
            Self::Tar(path) | Self::Input(path) => Archive::open_tar(path, scratch),
            Self::Oci(path, name) => Archive::open_oci(path, name.as_deref(), scratch),
            Self::Directory(_) | Self::Golden(_) => panic!("{self} is no archive"),
        }
    }
}

/// As `images` shows it.
impl fmt::Display for Source {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Directory(path) | Self::Archive(path) => write!(f, "{}", path.display()),
            Self::Tar(path) => write!(f, "tar:{}", path.display()),
            Self::Oci(path, None) => write!(f, "oci:{}", path.display()),
            Self::Oci(path, Some(name)) => write!(f, "oci:{}:{name}", path.display()),
            Self::Input(_) => f.write_str("standard input"),
            Self::Golden(name) => write!(f, "golden:{name}"),
        }
    }
}

fn absolute(path: &str) -> Result<PathBuf, Error> {
    Path::new(path).canonicalize().map_err(|source| Error::Missing { path: path.into(), source })
}

/// A path and what comes behind it; colons may be in both.
fn split_name(text: &str) -> (&str, Option<&str>) {
    if Path::new(text).exists() {
        return (text, None);
    }
    let mut colons = text.match_indices(':').map(|(at, _)| at);
    let end = colons.find(|&at| Path::new(&text[..at]).exists());
    end.map_or((text, None), |at| (&text[..at], Some(&text[at + 1..])))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_source_is_what_is_there_unless_it_is_said() {
        let dir = tempfile::tempdir().unwrap();
        let top = dir.path().canonicalize().unwrap();
        let at = |name: &str| top.join(name);
        std::fs::create_dir_all(at("layout")).unwrap();
        std::fs::create_dir_all(at("a:b")).unwrap();
        for file in ["layout/oci-layout", "layout/index.json", "x.tar"] {
            std::fs::write(at(file), "").unwrap();
        }
        let parse = |prefix: &str, name: &str| {
            Source::parse(&format!("{prefix}{}/{name}", top.display())).map_err(|error| error.to_string())
        };
        let named = |name: &str| Some(name.to_owned());
        assert_eq!(parse("", "layout"), Ok(Source::Oci(at("layout"), None)));
        assert_eq!(parse("dir:", "layout"), Ok(Source::Directory(at("layout"))));
        assert_eq!(parse("", "x.tar"), Ok(Source::Archive(at("x.tar"))));
        assert_eq!(parse("oci:", "x.tar:repo:tag"), Ok(Source::Oci(at("x.tar"), named("repo:tag"))));
        assert_eq!(parse("oci:", "a:b"), Ok(Source::Oci(at("a:b"), None)));
        assert_eq!(parse("oci:", "a:b:c"), Ok(Source::Oci(at("a:b"), named("c"))));
        assert_eq!(parse("tar:", "none"), Err(format!("cannot capture {}/none", top.display())));
    }
}
