//! Emptying a directory, whatever is in it.

use std::io;
use std::path::{Path, PathBuf};

use rustix::io::Errno;

use super::root;

/// What could not be removed.
#[derive(Debug, thiserror::Error)]
pub enum ClearError {
    #[error("cannot open {}", path.display())]
    Open { path: PathBuf, source: io::Error },
    #[error("cannot remove {name} from {}", path.display())]
    Remove { path: PathBuf, name: String, source: Errno },
}

/// Removes everything in `target` but the entry called `keep`: immutable files and closed directories too, as far as
/// this user may, and never through a symbolic link. The caller made sure that nothing is mounted below.
pub fn clear(target: &Path, keep: &str) -> Result<(), ClearError> {
    let top =
        root::open_top(target).map_err(|source| ClearError::Open { path: target.to_owned(), source })?;
    let failed = |name: &[u8], source| ClearError::Remove {
        path: target.to_owned(),
        name: name.escape_ascii().to_string(),
        source,
    };
    for name in root::list(&top).map_err(|error| failed(b".", error))? {
        if *name != *keep.as_bytes() {
            root::remove(&top, &name).map_err(|error| failed(&name, error))?;
        }
    }
    Ok(())
}
