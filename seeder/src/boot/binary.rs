//! The node's binary over HTTP, for a machine that has nothing yet.
//!
//! HTTP is not trusted: whoever fetches the binary got its hash from `shoal-seeder boot`. The binary is no secret:
//! everybody who reaches the address may have it, without the operator's token.

use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use axum::Router;
use axum::body::Bytes;
use axum::extract::State;
use axum::http::{StatusCode, header};
use axum::response::{IntoResponse, Response};
use axum::routing::get;
use sha2::{Digest, Sha256};
use shoal_node::elf::asks_for_loader;

/// The path of the node's binary.
pub const NODE_PATH: &str = "/shoal-node";
/// Larger than any build of it.
const BINARY_BYTES_MAX: u64 = 256 << 20;

#[derive(Debug, thiserror::Error)]
pub enum Error {
    #[error("cannot read the node's binary {}: name another with --node-binary", .path.display())]
    Unreadable {
        path: PathBuf,
        #[source]
        source: io::Error,
    },
    #[error("{} is no program for Linux on 64 bits", .0.display())]
    NoProgram(PathBuf),
    #[error("{} needs the libraries of the machine it was built on: name a statically linked one with --node-binary", .0.display())]
    Dynamic(PathBuf),
}

/// The node's binary as it is handed out: it runs on any machine of its architecture.
#[derive(Clone, Debug)]
pub struct NodeBinary {
    bytes: Bytes,
    sha256: String,
}

impl NodeBinary {
    /// Reads `path`; without one, `shoal-node` beside this program. It must be statically linked.
    pub fn read(path: Option<&Path>) -> Result<Self, Error> {
        let beside = || std::env::current_exe().unwrap_or_default().with_file_name("shoal-node");
        let path = path.map_or_else(beside, Path::to_owned);
        let unreadable = |source| Error::Unreadable { path: path.clone(), source };
        if std::fs::metadata(&path).map_err(unreadable)?.len() > BINARY_BYTES_MAX {
            return Err(Error::NoProgram(path));
        }
        let bytes = std::fs::read(&path).map_err(unreadable)?;
        match asks_for_loader(&bytes) {
            None => Err(Error::NoProgram(path)),
            Some(true) => Err(Error::Dynamic(path)),
            Some(false) => {
                let sha256 = data_encoding::HEXLOWER.encode(&Sha256::digest(&bytes));
                Ok(Self { bytes: bytes.into(), sha256 })
            }
        }
    }

    /// Its SHA-256 in hexadecimal digits: every system has a tool that checks it.
    pub fn sha256(&self) -> &str {
        &self.sha256
    }
}

/// What a seeder hands out: the binary that was named, or else the one beside this program if it can be used.
///
/// # Errors
/// When the one that was named cannot be used.
pub fn to_hand_out(named: Option<&Path>) -> Result<Option<NodeBinary>, Error> {
    match NodeBinary::read(named) {
        Ok(binary) => Ok(Some(binary)),
        Err(error) if named.is_some() => Err(error),
        Err(error) => {
            tracing::info!(%error, "no node's binary is handed out");
            Ok(None)
        }
    }
}

/// The path that the binary has.
pub fn routes(binary: Option<Arc<NodeBinary>>) -> Router {
    Router::new().route(NODE_PATH, get(node_binary)).with_state(binary)
}

async fn node_binary(State(binary): State<Option<Arc<NodeBinary>>>) -> Response {
    match binary {
        Some(binary) => {
            ([(header::CONTENT_TYPE, "application/octet-stream")], binary.bytes.clone()).into_response()
        }
        None => (StatusCode::NOT_FOUND, "name a statically linked shoal-node with serve --node-binary\n")
            .into_response(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A program with one program header, of this type.
    fn program(kind: u8) -> Vec<u8> {
        let mut bytes = vec![0; 64 + 56];
        bytes[..6].copy_from_slice(b"\x7fELF\x02\x01");
        bytes[32] = 64;
        bytes[54] = 56;
        bytes[56] = 1;
        bytes[64] = kind;
        bytes
    }

    #[test]
    fn only_a_program_that_needs_nothing_of_its_machine_is_handed_out() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("shoal-node");
        let read = |bytes: &[u8]| {
            std::fs::write(&path, bytes).unwrap();
            NodeBinary::read(Some(&path))
        };
        assert!(matches!(read(&program(3)), Err(Error::Dynamic(_))));
        assert!(matches!(read(b"#!/bin/sh\n"), Err(Error::NoProgram(_))));
        assert!(matches!(read(&program(1)[..64]), Err(Error::NoProgram(_))));
        assert!(matches!(NodeBinary::read(Some(Path::new("/nowhere"))), Err(Error::Unreadable { .. })));
        let binary = read(&program(1)).unwrap();
        assert_eq!(binary.sha256(), data_encoding::HEXLOWER.encode(&Sha256::digest(program(1))));
    }
}
