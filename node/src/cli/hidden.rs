//! Keeps a ticket out of `ps`: whoever may list this machine's processes is no member of the swarm yet.

use std::env;
use std::ffi::OsString;
use std::fs::File;
use std::io::{self, Write};
use std::os::fd::AsRawFd;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::process::CommandExt;
use std::process::Command;

use rustix::fs::{MemfdFlags, memfd_create};

/// How a ticket begins.
const SCHEME: &[u8] = b"shoal://";
/// Where a process finds its own open files.
const OPEN_FILES: &str = "/proc/self/fd/";

/// Starts this program again, as the same process, with each ticket among its arguments moved to a file in memory
/// that its argument then names (`@FILE`). Returns when there is none to hide, or why none could be hidden.
pub(super) fn hide_tickets() -> io::Result<()> {
    let mut arguments: Vec<OsString> = env::args_os().collect();
    // Open until the program starts again, and from then on by their numbers.
    let mut files = Vec::new();
    for argument in &mut arguments {
        let bytes = argument.as_bytes();
        // Behind an option's name, perhaps.
        let Some(at) = bytes.windows(SCHEME.len()).position(|part| part == SCHEME) else { continue };
        let mut file = File::from(memfd_create("ticket", MemfdFlags::empty())?);
        file.write_all(&bytes[at..])?;
        let path = format!("{OPEN_FILES}{}", file.as_raw_fd());
        File::open(&path)?;
        let mut hidden = OsString::from(std::ffi::OsStr::from_bytes(&bytes[..at]));
        hidden.push(format!("@{path}"));
        *argument = hidden;
        files.push(file);
    }
    match arguments.split_first() {
        Some((name, rest)) if !files.is_empty() => {
            Err(Command::new(env::current_exe()?).arg0(name).args(rest).exec())
        }
        _ => Ok(()),
    }
}

/// Reads the file that an argument names, and empties it when it is one of [`hide_tickets`]: what this program starts
/// inherits it.
pub(super) fn read(path: &str) -> io::Result<String> {
    let text = std::fs::read_to_string(path)?;
    if path.starts_with(OPEN_FILES) {
        let _ = File::options().write(true).open(path).and_then(|file| file.set_len(0));
    }
    Ok(text)
}
