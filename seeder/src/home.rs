//! The seeder's directory.
//!
//! ```text
//! DATA/                  0700
//!   lock                 flock while a command writes or serves, holds the pid
//!   keys/publisher       signs images, 0600
//!   keys/peer            the seeder's identity in the swarm, 0600
//!   keys/swarm           the swarm secret, 0600
//!   keys/operator        what the dashboard asks for before it changes something, 0600
//!   keys/swarm-next      the next one, 0600, while the secret is rotated
//!   images/NAME          one published image (catalog.rs)
//!   images/.NAME.seen    what its capture saw, for the next one (node: tree/capture/seen.rs)
//!   members              who may join: the operator's decisions (members.rs)
//!   hosts                which key is which host's (bindings.rs)
//!   cluster/             the published cluster file and its scripts (cluster/published.rs)
//!   releases/CHANNEL     what the channel was at, the newest last (releases.rs)
//!   rollouts/CHANNEL     the channel's rollout, as it stands (rollouts.rs)
//!   rollouts/CHANNEL.log its decisions, a line of JSON each
//!   lists/               sled: piece lists of the images; made again from the blocks (lists.rs)
//!   store/               packs and index of every block (node: store.rs)
//!   control              socket of the running `serve` (control.rs)
//!   addresses            where `serve` last listened, for `ticket`
//!   http                 the port of its last `serve --http`, for `boot`
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
    #[error("{} names no port: run `shoal-seeder serve --http` once, or give --url", .0.display())]
    NoHttp(PathBuf),
}

/// The seeder's directory and keys; the keys are made on first use.
#[derive(Debug)]
pub struct Home {
    dir: PathBuf,
    pub publisher: Keypair,
    pub peer: Keypair,
}

impl Home {
    pub fn open(dir: &Path) -> Result<Self, Error> {
        let keys_dir = dir.join("keys");
        durable::create_private_dir(&keys_dir)?;
        let home = Self {
            dir: dir.to_owned(),
            publisher: keys::load_or_create(&keys_dir.join("publisher"))?,
            peer: keys::load_or_create(&keys_dir.join("peer"))?,
        };
        home.secret()?;
        Ok(home)
    }

    fn secret_file(&self) -> PathBuf {
        self.dir.join("keys/swarm")
    }

    fn next_secret_file(&self) -> PathBuf {
        self.dir.join("keys/swarm-next")
    }

    /// The secret of the current swarm.
    pub fn secret(&self) -> Result<SwarmSecret, Error> {
        Ok(SwarmSecret::from_bytes(keys::load_or_create_secret(&self.secret_file())?))
    }

    /// The secret that is to replace the current one, while it is rotated.
    pub fn next_secret(&self) -> Result<Option<SwarmSecret>, Error> {
        match durable::read(&self.next_secret_file())? {
            Some(_) => self.draw_next_secret().map(Some),
            None => Ok(None),
        }
    }

    /// Draws the next secret, unless there is one.
    pub fn draw_next_secret(&self) -> Result<SwarmSecret, Error> {
        Ok(SwarmSecret::from_bytes(keys::load_or_create_secret(&self.next_secret_file())?))
    }

    /// The next secret becomes the current one, which is gone.
    pub fn adopt_next_secret(&self) -> Result<(), Error> {
        Ok(durable::replace(&self.next_secret_file(), &self.secret_file())?)
    }

    /// What whoever wants to change something over HTTP has to know; drawn on first use.
    pub fn operator_token(&self) -> Result<String, Error> {
        let secret = keys::load_or_create_secret(&self.dir.join("keys/operator"))?;
        Ok(data_encoding::HEXLOWER.encode(&secret))
    }

    /// Takes the directory for this process: only one may write or serve.
    pub fn lock(&self) -> Result<DirLock, Error> {
        Ok(DirLock::take(&self.dir)?)
    }

    /// The directory itself: also for what is needed only while a command runs.
    pub fn dir(&self) -> &Path {
        &self.dir
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

    pub fn members_file(&self) -> PathBuf {
        self.dir.join("members")
    }

    pub fn hosts_file(&self) -> PathBuf {
        self.dir.join("hosts")
    }

    pub fn cluster_dir(&self) -> PathBuf {
        self.dir.join("cluster")
    }

    pub fn releases_dir(&self) -> PathBuf {
        self.dir.join("releases")
    }

    pub fn rollouts_dir(&self) -> PathBuf {
        self.dir.join("rollouts")
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

    pub fn write_http_port(&self, port: u16) -> Result<(), Error> {
        Ok(durable::write(&self.dir.join("http"), format!("{port}\n").as_bytes(), durable::PUBLIC)?)
    }

    /// The port on which the seeder last answered over HTTP.
    pub fn http_port(&self) -> Result<u16, Error> {
        let path = self.dir.join("http");
        let text = durable::read(&path)?.unwrap_or_default();
        String::from_utf8_lossy(&text).trim().parse().map_err(|_| Error::NoHttp(path))
    }

    /// Names the next secret where there is one. `members` is the number of the list of members that whoever joins has
    /// to know.
    pub fn ticket(
        &self,
        addresses: Vec<HostPort>,
        image: Option<ImageName>,
        members: u64,
    ) -> Result<Ticket, Error> {
        let secret = match self.next_secret()? {
            Some(next) => next,
            None => self.secret()?,
        };
        Ok(Ticket {
            seeder: self.peer.public().to_peer_id(),
            addresses,
            publisher: self.publisher.public(),
            secret,
            image,
            members,
        })
    }
}
