//! Keys and secrets as files: 32 bytes in lower-case hexadecimal and a newline, mode 0600, made on first use.

use std::path::{Path, PathBuf};

use data_encoding::HEXLOWER_PERMISSIVE;
use rand::RngCore;
use shoal_proto::signing::Keypair;

use crate::durable;

#[derive(Debug, thiserror::Error)]
pub enum Error {
    #[error(transparent)]
    File(#[from] durable::Error),
    #[error("{} does not hold a key of 32 bytes", .0.display())]
    Malformed(PathBuf),
}

/// Reads the ed25519 key at `path`, or makes it.
pub fn load_or_create(path: &Path) -> Result<Keypair, Error> {
    let seed = load_or_create_secret(path)?;
    Ok(Keypair::ed25519_from_bytes(seed).expect("any 32 bytes are an ed25519 seed"))
}

/// Reads the 32 secret bytes at `path`, or draws them.
pub fn load_or_create_secret(path: &Path) -> Result<[u8; 32], Error> {
    if let Some(text) = durable::read_private(path)? {
        let malformed = || Error::Malformed(path.to_owned());
        let bytes = HEXLOWER_PERMISSIVE.decode(text.trim_ascii_end()).map_err(|_| malformed())?;
        return bytes.try_into().map_err(|_| malformed());
    }
    let mut secret = [0; 32];
    rand::rng().fill_bytes(&mut secret);
    let text = format!("{}\n", HEXLOWER_PERMISSIVE.encode(&secret));
    if durable::create(path, text.as_bytes(), durable::PRIVATE)? {
        Ok(secret)
    } else {
        // Another process was first: one key is everybody's.
        load_or_create_secret(path)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_key_is_made_once_and_read_ever_after() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("key");
        let made = load_or_create(&path).unwrap().public();
        assert_eq!(load_or_create(&path).unwrap().public(), made);
        assert_ne!(load_or_create(&dir.path().join("other")).unwrap().public(), made);
    }

    #[test]
    fn two_that_make_a_key_at_once_get_the_same() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("key");
        let keys: Vec<[u8; 32]> = std::thread::scope(|scope| {
            let made: Vec<_> =
                (0..8).map(|_| scope.spawn(|| load_or_create_secret(&path).unwrap())).collect();
            made.into_iter().map(|thread| thread.join().unwrap()).collect()
        });
        assert!(keys.iter().all(|key| *key == keys[0]));
    }

    #[test]
    fn a_damaged_key_is_named_and_kept() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("key");
        durable::write(&path, b"short", durable::PRIVATE).unwrap();
        let error = load_or_create(&path).unwrap_err().to_string();
        assert!(error.contains(path.to_str().unwrap()), "{error}");
        assert_eq!(durable::read(&path).unwrap().unwrap(), b"short");
    }
}
