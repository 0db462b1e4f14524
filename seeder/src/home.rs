//! The seeder's directory.
//!
//! ```text
//! DATA/                  0700
//!   lock                 flock while a command writes or serves, holds the pid
//!   keys/publisher       signs images, 0600
//!   keys/peer            the seeder's identity in the swarm, 0600
//!   keys/swarm           the swarm secret, 0600
//!   images/NAME          one published image (catalog.rs)
//!   images/.NAME.seen    what its capture saw, for the next one (node: tree/capture/seen.rs)
//!   lists/               sled: piece lists of the images; made again from the blocks (lists.rs)
//!   store/               packs and index of every block (node: store.rs)
//!   control              socket of the running `serve` (control.rs)
//!   addresses            where `serve` last listened, for `ticket`
//! ```

use std::path::{Path, PathBuf};

use shoal_node::durable::{self, DirLock};
use shoal_node::keys;
use shoal_proto::image::ImageName;
use shoal_proto::signing::Keypair;
use shoal_proto::ticket::{HostPort, SwarmSecret, Ticket};

#[derive(Debug, thiserror::Error)]
pub enum Error {
    #[error(transparent)]
    File(#[from] durable::Error),
    #[error(transparent)]
    Key(#[from] keys::Error),
    #[error("{} names no address: run `shoal-seeder serve` once, or give --host", .0.display())]
    NeverServed(PathBuf),
}

/// The seeder's directory and keys; the keys are made on first use.
#[derive(Debug)]
pub struct Home {
    dir: PathBuf,
    pub publisher: Keypair,
    pub peer: Keypair,
    pub secret: SwarmSecret,
}

impl Home {
    pub fn open(dir: &Path) -> Result<Self, Error> {
        let keys_dir = dir.join("keys");
        durable::create_private_dir(&keys_dir)?;
        Ok(Self {
            dir: dir.to_owned(),
            publisher: keys::load_or_create(&keys_dir.join("publisher"))?,
            peer: keys::load_or_create(&keys_dir.join("peer"))?,
            secret: SwarmSecret::from_bytes(keys::load_or_create_secret(&keys_dir.join("swarm"))?),
        })
    }

    /// Takes the directory for this process: only one may write or serve.
    pub fn lock(&self) -> Result<DirLock, Error> {
        Ok(DirLock::take(&self.dir)?)
    }

    pub fn store_dir(&self) -> PathBuf {
        self.dir.join("store")
    }

    pub fn images_dir(&self) -> PathBuf {
        self.dir.join("images")
    }

    pub fn lists_dir(&self) -> PathBuf {
        self.dir.join("lists")
    }

    pub fn control_socket(&self) -> PathBuf {
        self.dir.join("control")
    }

    pub fn write_addresses(&self, addresses: &[HostPort]) -> Result<(), Error> {
        let text: String = addresses.iter().map(|address| format!("{address}\n")).collect();
        Ok(durable::write(&self.dir.join("addresses"), text.as_bytes(), durable::PUBLIC)?)
    }

    /// Where the seeder listened last; with `host`, at that host and the same ports.
    pub fn addresses(&self, host: Option<&str>) -> Result<Vec<HostPort>, Error> {
        let path = self.dir.join("addresses");
        let text = durable::read(&path)?.unwrap_or_default();
        let text = String::from_utf8_lossy(&text);
        let mut addresses: Vec<HostPort> = text.lines().filter_map(|line| line.parse().ok()).collect();
        if let Some(host) = host {
            addresses.iter_mut().for_each(|address| host.clone_into(&mut address.host));
            addresses.sort_by_key(|address| address.port);
            addresses.dedup();
        }
        if addresses.is_empty() { Err(Error::NeverServed(path)) } else { Ok(addresses) }
    }

    pub fn ticket(&self, addresses: Vec<HostPort>, image: Option<ImageName>) -> Ticket {
        Ticket {
            seeder: self.peer.public().to_peer_id(),
            addresses,
            publisher: self.publisher.public(),
            secret: self.secret.clone(),
            image,
        }
    }
}
