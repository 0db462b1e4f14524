//! Discovery: the [`Neighbourhood`] in the words of libp2p and of the wire.

use std::collections::BTreeMap;
use std::net::{IpAddr, SocketAddr};

use libp2p::PeerId;
use shoal_proto::neighbourhood::{Config, Contact, Neighbourhood};
use shoal_proto::ticket::HostPort;
use shoal_proto::wire::{PeerAddresses, PeerRole};
use shoal_proto::zone::Zone;

/// Whom this peer knows, and by which names it may find those of the ticket.
pub(super) struct Discovery {
    pub(super) graph: Neighbourhood<PeerId, SocketAddr>,
    names: BTreeMap<PeerId, Vec<HostPort>>,
}

/// Where to dial a peer.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Places {
    pub(super) addresses: Vec<SocketAddr>,
    /// Looked up at every dial, because addresses change.
    pub(super) names: Vec<HostPort>,
}

impl Discovery {
    pub(super) fn new(
        role: PeerRole,
        own: PeerId,
        rack: Zone,
        bootstrap: Vec<(PeerId, Vec<HostPort>)>,
        seed: u64,
    ) -> Self {
        let config = match role {
            PeerRole::Node => Config::node(),
            PeerRole::Seeder => Config::seeder(),
        };
        let names: BTreeMap<PeerId, Vec<HostPort>> = bootstrap.into_iter().collect();
        let peers = names.keys().copied().collect();
        Self { graph: Neighbourhood::new(config, own, rack, peers, seed), names }
    }

    /// Whether the ticket names the peer.
    pub(super) fn is_bootstrap(&self, peer: &PeerId) -> bool {
        self.names.contains_key(peer)
    }

    /// The peers that the ticket names.
    pub(super) fn bootstrap(&self) -> Vec<PeerId> {
        self.names.keys().copied().collect()
    }

    /// Where to dial a peer that the neighbourhood knows by `addresses`.
    pub(super) fn places(&self, peer: &PeerId, addresses: Vec<SocketAddr>) -> Places {
        let names = self.names.get(peer).map_or(&[][..], Vec::as_slice);
        let literal = |name: &HostPort| Some(SocketAddr::new(name.host.parse::<IpAddr>().ok()?, name.port));
        Places {
            addresses: addresses.into_iter().chain(names.iter().filter_map(literal)).collect(),
            names: names.iter().filter(|name| literal(name).is_none()).cloned().collect(),
        }
    }
}

pub(super) fn contacts(peers: Vec<PeerAddresses>) -> Vec<Contact<PeerId, SocketAddr>> {
    let contact = |peer: PeerAddresses| Contact { id: peer.id, addresses: peer.addresses, zone: peer.rack };
    peers.into_iter().map(contact).collect()
}

pub(super) fn peer_addresses(contacts: Vec<Contact<PeerId, SocketAddr>>) -> Vec<PeerAddresses> {
    let told = |Contact { id, addresses, zone }| PeerAddresses { id, addresses, rack: zone };
    contacts.into_iter().map(told).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_of_the_ticket_are_looked_up_and_addresses_in_it_are_not() {
        let (seeder, other) = (PeerId::random(), PeerId::random());
        let ticket = ["10.0.0.1:1", "[fe80::1]:2", "seeder.example:3"].map(|name| name.parse().unwrap());
        let bootstrap = vec![(seeder, ticket.to_vec())];
        let discovery = Discovery::new(PeerRole::Node, PeerId::random(), Zone::UNKNOWN, bootstrap, 1);
        let heard: SocketAddr = "10.0.0.9:9".parse().unwrap();
        let places = discovery.places(&seeder, vec![heard]);
        assert_eq!(places.addresses, ["10.0.0.9:9", "10.0.0.1:1", "[fe80::1]:2"].map(|a| a.parse().unwrap()));
        assert_eq!(places.names, &ticket[2..]);
        assert_eq!(discovery.places(&other, vec![heard]), Places { addresses: vec![heard], names: vec![] });
        assert!(discovery.is_bootstrap(&seeder) && !discovery.is_bootstrap(&other));
    }
}
