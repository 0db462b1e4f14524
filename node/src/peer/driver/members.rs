//! The driver's dealings with who is a member: who is shown the door, and how a new list gets around.

use super::*;
use crate::peer::roll::Admission;
use libp2p::swarm::ConnectionId;
use shoal_proto::members::Members;
use shoal_proto::signing::Signed;

/// How long a peer that is no member has to read so.
const FAREWELL_MAX: Duration = Duration::from_secs(2);
/// Peers that may be told so at once; those beyond are hung up on.
const BARRED_MAX: usize = 64;

/// Connections of those who are told that they are no members, and of nothing else.
#[derive(Debug, Default)]
pub(super) struct Lobby(BTreeMap<ConnectionId, (Link, Time)>);

impl Lobby {
    pub(super) fn get_mut(&mut self, connection: ConnectionId) -> Option<&mut Link> {
        self.0.get_mut(&connection).map(|(link, _)| link)
    }

    pub(super) fn remove(&mut self, connection: ConnectionId) {
        self.0.remove(&connection);
    }

    pub(super) fn next_timeout(&self) -> Option<Time> {
        self.0.values().map(|(_, until)| *until).min()
    }

    fn take_due(&mut self, now: Time) -> Vec<ConnectionId> {
        let due = self.0.iter().filter(|(_, (_, until))| *until <= now);
        let due: Vec<ConnectionId> = due.map(|(connection, _)| *connection).collect();
        due.iter().for_each(|connection| self.remove(*connection));
        due
    }
}

impl Driver {
    /// Lets a peer with a new connection in, or tells it that it is no member, and nothing else.
    pub(super) fn admit(&mut self, link: Link) -> Option<Link> {
        let now = self.now();
        let (peer, connection) = (link.peer, link.connection);
        let revoked = match self.roll.admission(&peer, self.discovery.is_bootstrap(&peer)) {
            Admission::Member => return Some(link),
            Admission::Barred { revoked } => Some(revoked),
            Admission::Unknown => None,
        };
        tracing::debug!(%peer, ?revoked, "no member, as far as is known here");
        // A dial is over; what comes from elsewhere never began.
        self.discovery.graph.handle_dial_failed(now, peer);
        self.drain_graph();
        if revoked == Some(false) {
            self.roll.note_waiting(now, peer, link.remote_ip);
        }
        match revoked.filter(|_| self.lobby.0.len() < BARRED_MAX) {
            Some(revoked) => {
                // The first frame of a new queue has room.
                let _ = link.send(Frame::Barred { revoked });
                self.lobby.0.insert(connection, (link, now + FAREWELL_MAX));
            }
            None => {
                self.swarm.close_connection(connection);
            }
        }
        None
    }

    pub(super) fn clear_lobby(&mut self, now: Time) {
        for connection in self.lobby.take_due(now) {
            self.swarm.close_connection(connection);
        }
    }

    /// A peer told of a list.
    pub(super) fn handle_members(&mut self, key: PeerKey, told: Signed<Members>) {
        match self.roll.learn(told) {
            Ok(true) => self.apply_members(),
            Ok(false) => {}
            Err(why) => self.fault(key, &format!("it told a list of members that does not count: {why}")),
        }
    }

    /// The publisher's own word, here.
    pub(super) fn set_members(&mut self, members: Signed<Members>) -> Result<(), String> {
        if self.roll.learn(members)? {
            self.apply_members();
        }
        Ok(())
    }

    /// Hangs up on who is no member any more, and tells the others of the new list.
    fn apply_members(&mut self) {
        let number = self.roll.number();
        tracing::info!(number, "a new list of members");
        let connected: Vec<(PeerKey, PeerId)> =
            self.links.values().map(|link| (link.key, link.peer)).collect();
        for (key, peer) in connected {
            if self.roll.admission(&peer, self.discovery.is_bootstrap(&peer)) == Admission::Member {
                self.tell_members(key);
            } else {
                tracing::warn!(%peer, "a neighbour is no member any more");
                self.hang_up(key, Reason::NoMember);
            }
        }
    }

    /// Tells a peer that said hello of the list, if its own is older.
    pub(super) fn tell_members(&mut self, key: PeerKey) {
        let number = self.roll.number();
        let Some(hello) = self.links.get_mut(&key).and_then(|link| link.hello.as_mut()) else { return };
        let known = hello.members;
        hello.members = known.max(number);
        if known < number
            && let Some(signed) = self.roll.signed()
        {
            self.send(key, Frame::Members(signed));
        }
    }

    /// This side is no member, as a peer says. Only a peer of the ticket is believed.
    pub(super) fn handle_barred(&mut self, key: PeerKey, revoked: bool) {
        let Some(peer) = self.links.get(&key).map(|link| link.peer) else { return };
        if self.discovery.is_bootstrap(&peer) {
            let own = *self.swarm.local_peer_id();
            let trouble = if revoked {
                LookupError::Revoked(own).to_string()
            } else {
                format!("this node waits for approval; at the seeder: shoal-seeder nodes approve {own}")
            };
            if self.trouble.as_ref() != Some(&trouble) {
                tracing::warn!("{trouble}");
            }
            self.trouble = Some(trouble);
            if revoked {
                for lookup in self.lookups.drain(..) {
                    let _ = lookup.reply.send(Err(LookupError::Revoked(own)));
                }
            }
        }
        self.hang_up(key, Reason::NoMember);
    }
}
