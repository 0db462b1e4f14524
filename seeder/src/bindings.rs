//! Which key is which host's: the operator's word, without which no host gets anything confidential.
//!
//! A host has at most one key, and a key is at most one host's: a node that is bound cannot pass for another host, and
//! nobody else can pass for the host of a bound one.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};
use shoal_node::durable;
use shoal_node::peer::PeerId;
use shoal_proto::host::HostName;

use crate::home::Home;

/// Version of the file; another one is refused.
const FORMAT: u32 = 1;

#[derive(Debug, thiserror::Error)]
pub enum Error {
    #[error(transparent)]
    File(#[from] durable::Error),
    #[error("{} is damaged: {why}", .path.display())]
    Damaged { path: std::path::PathBuf, why: String },
}

/// Keys by host.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Bindings(BTreeMap<HostName, PeerId>);

#[derive(Serialize, Deserialize)]
struct HostsFile {
    format: u32,
    hosts: BTreeMap<String, String>,
}

impl Bindings {
    pub fn load(home: &Home) -> Result<Self, Error> {
        let path = home.hosts_file();
        let Some(bytes) = durable::read(&path)? else { return Ok(Self::default()) };
        decode(&bytes).map_err(|why| Error::Damaged { path, why })
    }

    pub fn key_of(&self, host: &HostName) -> Option<&PeerId> {
        self.0.get(host)
    }

    pub fn host_of(&self, key: &PeerId) -> Option<&HostName> {
        self.0.iter().find(|(_, bound)| *bound == key).map(|(host, _)| host)
    }

    pub fn iter(&self) -> impl Iterator<Item = (&HostName, &PeerId)> {
        self.0.iter()
    }

    /// Binds a key to a host from now on, and to no other, and remembers it. Whoever calls holds [`Home::lock`].
    pub fn bind(&mut self, home: &Home, host: &HostName, key: PeerId) -> Result<(), Error> {
        let mut bound = self.0.clone();
        bound.retain(|_, other| *other != key);
        bound.insert(host.clone(), key);
        self.replace(home, bound)
    }

    /// A key is no host's any more.
    pub fn release(&mut self, home: &Home, key: &PeerId) -> Result<(), Error> {
        let mut bound = self.0.clone();
        bound.retain(|_, other| other != key);
        self.replace(home, bound)
    }

    fn replace(&mut self, home: &Home, bound: BTreeMap<HostName, PeerId>) -> Result<(), Error> {
        if bound == self.0 {
            return Ok(());
        }
        let text = |(host, key): (&HostName, &PeerId)| (host.to_string(), key.to_string());
        let file = HostsFile { format: FORMAT, hosts: bound.iter().map(text).collect() };
        let bytes = serde_json::to_vec_pretty(&file).expect("hosts and keys are plain data");
        durable::write(&home.hosts_file(), &bytes, durable::PRIVATE)?;
        self.0 = bound;
        Ok(())
    }
}

fn decode(bytes: &[u8]) -> Result<Bindings, String> {
    let file: HostsFile = serde_json::from_slice(bytes).map_err(|error| error.to_string())?;
    if file.format != FORMAT {
        return Err(format!("it has format {}, this build reads {FORMAT}", file.format));
    }
    let mut bound = BTreeMap::new();
    for (host, key) in file.hosts {
        let host = host.parse().map_err(|error| format!("{error}"))?;
        bound.insert(host, key.parse().map_err(|_| format!("{key:?} is no peer id"))?);
    }
    Ok(Bindings(bound))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_key_is_one_hosts_and_a_host_has_one_key() {
        let dir = tempfile::tempdir().unwrap();
        let home = Home::open(dir.path()).unwrap();
        let (one, other) = (PeerId::random(), PeerId::random());
        let host = |name: &str| name.parse::<HostName>().unwrap();
        let mut bound = Bindings::load(&home).unwrap();
        bound.bind(&home, &host("a"), one).unwrap();
        bound.bind(&home, &host("b"), one).unwrap();
        assert_eq!((bound.key_of(&host("a")), bound.host_of(&one)), (None, Some(&host("b"))));
        bound.bind(&home, &host("b"), other).unwrap();
        assert_eq!((bound.host_of(&one), bound.host_of(&other)), (None, Some(&host("b"))));
        assert_eq!(Bindings::load(&home).unwrap(), bound);
        bound.release(&home, &other).unwrap();
        assert_eq!(Bindings::load(&home).unwrap(), Bindings::default());
    }
}
