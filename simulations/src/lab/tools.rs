//! Other tools that bring the same tree to the same hosts. A tool is three shell scripts: what is prepared, what the
//! server runs and what each client runs. All clients begin at once; a client is done when its tree is there, unpacked.
//!
//! The scripts find in their environment: `TREE` (the source, at the server), `SHARED` (a folder with what was prepared,
//! `image.tar.zst` among it), `TARGET` (where the tree belongs), `SERVER` and `ME` (addresses), `NEXT` (that of the host
//! after this; empty at the last), `HOSTS` (besides the server), `KBIT` (of a link, each way). They start in a folder of
//! the host's own.

mod aria2;
mod bittorrent;
mod chain;
mod job;
mod libtorrent;
mod rqbit;
mod rsync;
mod transmission;
mod udpcast;
mod uftp;

use std::process::{Command, Stdio};

use anyhow::ensure;
use clap::ValueEnum;

pub(super) use job::perform_all;

/// Tools by the name that the user knows.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub(super) enum Peer {
    Aria2,
    Rsync,
    Udpcast,
    Uftp,
    /// socat and tee, from host to host
    Chain,
    Transmission,
    Rqbit,
    Libtorrent,
}

impl Peer {
    pub(super) fn tool(self) -> &'static Tool {
        match self {
            Self::Aria2 => &aria2::TOOL,
            Self::Rsync => &rsync::TOOL,
            Self::Udpcast => &udpcast::TOOL,
            Self::Uftp => &uftp::TOOL,
            Self::Chain => &chain::TOOL,
            Self::Transmission => &transmission::TOOL,
            Self::Rqbit => &rqbit::TOOL,
            Self::Libtorrent => &libtorrent::TOOL,
        }
    }
}

#[derive(Debug)]
pub(super) struct Tool {
    pub(super) name: &'static str,
    needs: &'static [Need],
    /// Brings what lacks to an older tree; other tools bring a whole archive.
    pub(super) updates: bool,
    /// Run in the shared folder, before the clock, one after another.
    prepare: &'static [&'static str],
    server: Server,
    /// Ends when the tree is there; may leave programs behind that go on serving.
    client: &'static str,
    /// How many compressed bytes one client had to receive.
    payload: Payload,
}

/// Something that has to be installed.
#[derive(Debug)]
enum Need {
    /// A program on the path, and the command that installs it.
    Program(&'static str, &'static str),
    /// A command that succeeds when all is there, and the command that installs it.
    Works(&'static [&'static str], &'static str),
}

#[derive(Debug)]
enum Server {
    /// Started before the clock; prints `ready`.
    Before(&'static str),
    /// Started with the clients.
    Along(&'static str),
}

#[derive(Debug)]
enum Payload {
    Archive,
    /// A file in the client's folder has a line with this before the number.
    Said {
        file: &'static str,
        before: &'static str,
    },
}

const TAR: Need = Need::Program("tar", "apt-get install tar");
const ZSTD: Need = Need::Program("zstd", "apt-get install zstd");

impl Tool {
    /// That all is installed.
    pub(super) fn check(&self) -> anyhow::Result<()> {
        let of_archives: &[Need] = if matches!(self.payload, Payload::Archive) { &[TAR, ZSTD] } else { &[] };
        for need in self.needs.iter().chain(of_archives) {
            let (found, what, install) = match need {
                Need::Program(name, install) => (is_on_path(name), (*name).to_owned(), install),
                Need::Works(command, install) => (works(command), command.join(" "), install),
            };
            ensure!(found, "{} cannot run, there is no {what}: {install}", self.name);
        }
        Ok(())
    }
}

fn is_on_path(program: &str) -> bool {
    let path = std::env::var_os("PATH").unwrap_or_default();
    std::env::split_paths(&path).any(|folder| folder.join(program).is_file())
}

fn works(command: &[&str]) -> bool {
    let mut started = Command::new(command[0]);
    started.args(&command[1..]).stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null());
    started.status().is_ok_and(|status| status.success())
}
