//! The driver's dealings with connections: who is let in, what they say, whom to dial.

use super::*;
use crate::peer::Offer;
use crate::peer::discovery::{self, Places};
use crate::peer::streams::{self, Lane, Opened};
use libp2p::swarm::{ConnectionId, DialError, dial_opts::DialOpts, dial_opts::PeerCondition};
use shoal_proto::neighbourhood::{self, Greeting};
use shoal_proto::ticket::HostPort;
use shoal_proto::wire::ADDRESSES_PER_PEER_MAX;
use std::net::IpAddr;

impl Driver {
    pub(super) fn handle_swarm(&mut self, event: SwarmEvent<BehaviourEvent>) {
        match event {
            SwarmEvent::ConnectionEstablished { peer_id, connection_id, endpoint, .. } => {
                self.handle_connection(peer_id, connection_id, &endpoint);
            }
            SwarmEvent::ConnectionClosed { peer_id, connection_id, cause, .. } => {
                let key = self.by_peer.get(&peer_id).copied();
                let key = key.filter(|key| self.links[key].connection == connection_id);
                self.lobby.remove(connection_id);
                if let Some(key) = key {
                    let why = cause.map_or_else(|| "closed".to_owned(), |cause| cause.to_string());
                    self.forget(key, &why);
                }
            }
            SwarmEvent::OutgoingConnectionError { peer_id: Some(peer), error, .. } => {
                self.handle_dial_error(peer, &error);
            }
            SwarmEvent::IncomingConnectionError { error, send_back_addr, .. } => {
                tracing::debug!(from = %send_back_addr, %error, "a connection was refused");
            }
            SwarmEvent::Behaviour(BehaviourEvent::Streams(streams::Event { peer, connection, opened })) => {
                let link = self.by_peer.get(&peer).and_then(|key| self.links.get_mut(key));
                if let Some(link) = link.filter(|link| link.connection == connection) {
                    match opened {
                        Opened::Inbound(Lane::Session, stream) => self.sessions.accept(peer, stream),
                        Opened::Outbound(Lane::Session, stream) => self.sessions.opened(peer, stream),
                        Opened::Failed(Lane::Session, why) => self.sessions.refused(peer, &why),
                        opened => link.start(opened, &self.around),
                    }
                } else if let (Some(link), Opened::Outbound(Lane::Control, _)) =
                    (self.lobby.get_mut(connection), &opened)
                {
                    // It is told one thing, and nothing that it says is read.
                    link.start(opened, &self.around);
                }
            }
            SwarmEvent::Behaviour(BehaviourEvent::Ping(event)) => match event.result {
                Ok(took) => {
                    let link = self.by_peer.get(&event.peer).and_then(|key| self.links.get(key));
                    if let Some(link) = link.filter(|link| link.connection == event.connection) {
                        link.meter.note_answer(took);
                    }
                }
                Err(error) => {
                    tracing::debug!(peer = %event.peer, %error, "a peer does not answer");
                    self.swarm.close_connection(event.connection);
                }
            },
            _ => {}
        }
    }

    fn handle_connection(&mut self, peer: PeerId, connection: ConnectionId, endpoint: &ConnectedPoint) {
        let now = self.now();
        let we_dialed = endpoint.is_dialer();
        // Every socket of this swarm has a meter.
        let Some(meter) = self.meters.take(endpoint).filter(|_| self.prefers(peer, we_dialed)) else {
            self.swarm.close_connection(connection);
            return;
        };
        let key = PeerKey(self.next_key);
        self.next_key += 1;
        let remote_ip = socket_address(endpoint.get_remote_address()).map(|address| address.ip());
        let link = Link::new(key, peer, connection, remote_ip, we_dialed, meter);
        let Some(link) = self.admit(link) else { return };
        if let Some(old) = self.by_peer.get(&peer).copied() {
            self.swarm.close_connection(self.links[&old].connection);
            self.forget_link(old);
        }
        self.links.insert(key, link);
        self.by_peer.insert(peer, key);
        self.discovery.graph.handle_connected(now, peer, we_dialed);
        let mut ports: Vec<u16> = self.listen.iter().map(SocketAddr::port).collect();
        ports.sort_unstable();
        ports.dedup();
        ports.truncate(ADDRESSES_PER_PEER_MAX);
        let members = self.roll.number();
        self.send(key, Frame::Hello(Hello { role: self.role, ports, rack: self.rack.clone(), members }));
        let welcome = self.discovery.graph.is_welcome(peer);
        tracing::debug!(%peer, we_dialed, welcome, "connected");
        if !welcome {
            return self.drain_graph();
        }
        // A seeder of many images answers joins, and does not list all that it ever traded.
        if self.role == PeerRole::Node {
            self.trades.numbers().into_iter().for_each(|number| self.tell_join(key, number));
        }
        let queries: Vec<Query> = self.lookups.iter().map(|lookup| lookup.query.clone()).collect();
        queries.into_iter().for_each(|query| self.send(key, Frame::Query(query)));
        self.drain_graph();
    }

    /// Whether a new connection with `peer` is the one to keep. Of two connections that cross, both sides keep the
    /// one that the smaller peer id dialed; a second one from the same dialer means that the first is dead.
    fn prefers(&self, peer: PeerId, we_dialed: bool) -> bool {
        let Some(old) = self.by_peer.get(&peer).map(|key| &self.links[key]) else { return true };
        let we_are_smaller = *self.swarm.local_peer_id() < peer;
        old.we_dialed == we_dialed || we_dialed == we_are_smaller
    }

    pub(super) fn handle_link(&mut self, message: FromLink) {
        match message {
            FromLink::Frame(key, frame) => self.handle_frame(key, frame),
            FromLink::Progress { from, exchange, piece } => {
                let now = self.now();
                let Some(number) = self.number_of(from, exchange) else { return };
                let Some(trade) = self.trades.get_mut(number) else { return };
                if let Some(piece) = trade.list.index(piece) {
                    trade.exchange.handle_progress(now, from, piece);
                    self.drain(number);
                }
            }
            FromLink::Piece(received) => self.handle_piece(received),
            FromLink::Unreadable { to, exchange: number, piece } => {
                let now = self.now();
                if let Some(link) = self.links.get_mut(&to) {
                    link.note_confirmed(now);
                }
                if let Some(trade) = self.trades.get_mut(number) {
                    if trade.exchange.held().contains(piece) {
                        self.around.shelves.discard(&trade.list.piece(piece).cid);
                    }
                    trade.exchange.handle_lost(now, piece);
                    self.call_off(number, piece);
                    self.drain(number);
                }
            }
            FromLink::Written { to, exchange: number, piece } => {
                let now = self.now();
                if let Some(trade) = self.trades.get_mut(number) {
                    trade.exchange.handle_sent(now, to, piece);
                    self.drain(number);
                }
            }
            FromLink::Unsent { to, exchange: number, piece } => {
                let now = self.now();
                if let Some(link) = self.links.get_mut(&to) {
                    link.note_confirmed(now);
                }
                if let Some(trade) = self.trades.get_mut(number) {
                    trade.exchange.handle_unsent(now, to, piece);
                    self.drain(number);
                }
            }
            FromLink::Resolved { peer, addresses, failures } if addresses.is_empty() => {
                let now = self.now();
                self.trouble = Some(format!("cannot resolve {}", failures.join("; ")));
                self.discovery.graph.handle_dial_failed(now, peer);
            }
            FromLink::Resolved { peer, addresses, .. } => self.dial(peer, addresses),
            FromLink::Ended { peer, why, fault: true } => self.fault(peer, &why),
            FromLink::Ended { peer, why, fault: false } => {
                if let Some(link) = self.links.get(&peer) {
                    self.swarm.close_connection(link.connection);
                    self.forget(peer, &why);
                }
            }
        }
    }

    fn handle_frame(&mut self, key: PeerKey, frame: Frame) {
        let now = self.now();
        let Some(link) = self.links.get_mut(&key) else { return };
        let (peer, greeted) = (link.peer, link.hello.is_some());
        if let Frame::Barred { revoked } = frame {
            return self.handle_barred(key, revoked);
        }
        if matches!(frame, Frame::Hello(_)) == greeted {
            return self.fault(key, "its first frame was not a hello, or a later one was");
        }
        let is_question = matches!(frame, Frame::Query(_) | Frame::PeersWanted);
        // There is a signature to verify, or something to write down.
        let is_statement =
            matches!(frame, Frame::Members(_) | Frame::Release(_) | Frame::Report(_) | Frame::Orders(_));
        if let Err(why) = link.patience.hear(now, is_question || is_statement) {
            return self.fault(key, why);
        }
        if is_question && link.is_behind() {
            return;
        }
        match frame {
            Frame::Hello(hello) => self.handle_hello(key, hello),
            Frame::Members(members) => self.handle_members(key, members),
            Frame::Barred { .. } => unreachable!("handled above"),
            Frame::Follow(follow) => self.handle_follow(key, follow),
            Frame::Release(release) => self.handle_release(key, release),
            Frame::Report(report) => self.handle_report(key, *report),
            Frame::Orders(orders) => self.handle_orders(key, &orders),
            Frame::PeersWanted => {
                self.discovery.graph.handle_peers_wanted(now, peer);
                self.drain_graph();
            }
            Frame::Peers(peers) => {
                self.discovery.graph.handle_told(now, discovery::contacts(peers));
                self.drain_graph();
            }
            Frame::Refused(peers) => {
                self.discovery.graph.handle_refused(now, peer, discovery::contacts(peers));
                self.drain_graph();
            }
            Frame::Query(query) => {
                let answer = self.directory.answer(&query, &peer);
                let answer = answer.unwrap_or_else(|| Answer::nothing(query));
                self.send(key, Frame::Answer(answer));
            }
            Frame::Answer(answer) => self.handle_answer(key, answer),
            Frame::Join { exchange, list } => self.handle_join(key, exchange, list),
            Frame::Trade(frame) => {
                let Some(number) = self.number_of(key, frame.exchange) else { return };
                let Some(trade) = self.trades.get_mut(number) else { return };
                let (message, part) = match frame.check(&trade.list) {
                    Ok(checked) => checked,
                    Err(error) => return self.fault(key, &error.to_string()),
                };
                let cancelled = if let Message::Cancel(piece) = message { Some(piece) } else { None };
                if let (Message::Request(piece), Some(link)) = (&message, self.links.get_mut(&key)) {
                    link.note_request(number, *piece, part);
                }
                trade.exchange.handle_message(now, key, message);
                if let Some(piece) = cancelled {
                    self.call_off(number, piece);
                }
                self.drain(number);
            }
            Frame::Arrived { .. } => {
                if let Some(link) = self.links.get_mut(&key) {
                    link.note_confirmed(now);
                }
            }
        }
    }

    fn handle_hello(&mut self, key: PeerKey, hello: Hello) {
        let now = self.now();
        let link = self.links.get_mut(&key).expect("checked by the caller");
        let peer = link.peer;
        let addresses = link
            .remote_ip
            .map_or_else(Vec::new, |ip| hello.ports.iter().map(|port| SocketAddr::new(ip, *port)).collect());
        let seeder = hello.role == PeerRole::Seeder;
        let greeting = Greeting { addresses, zone: hello.rack.clone(), seeder };
        tracing::info!(%peer, role = ?hello.role, rack = %hello.rack, "met a peer");
        link.hello = Some(hello);
        let connection = link.connection;
        for _ in 0..self.sessions.wanted_with(&peer) {
            self.swarm.behaviour_mut().streams.open_session(peer, connection);
        }
        self.tell_members(key);
        self.introduce_fleet(key);
        self.discovery.graph.handle_hello(now, peer, greeting);
        self.trouble = None;
        self.drain_graph();
    }

    /// Carries out what the neighbourhood wants.
    pub(super) fn drain_graph(&mut self) {
        while let Some(output) = self.discovery.graph.poll_output() {
            match output {
                neighbourhood::Output::Dial { peer, addresses } => self.find_and_dial(peer, addresses),
                neighbourhood::Output::Tell { to, peers } => {
                    self.send_to(to, Frame::Peers(discovery::peer_addresses(peers)));
                }
                neighbourhood::Output::Ask { peer } => self.send_to(peer, Frame::PeersWanted),
                neighbourhood::Output::Refuse { peer, peers } => {
                    self.send_to(peer, Frame::Refused(discovery::peer_addresses(peers)));
                }
                neighbourhood::Output::Disconnect { peer, reason } => {
                    let Some(key) = self.by_peer.get(&peer).copied() else { continue };
                    let is_asked = !self.lookups.is_empty() || self.reporting.awaits_answer();
                    if reason == Reason::Refused && is_asked {
                        // Its answer is on its way; it hangs up itself, a little later.
                        self.lingering.push(key);
                    } else {
                        self.hang_up(key, reason);
                    }
                }
            }
        }
    }

    pub(super) fn hang_up(&mut self, key: PeerKey, reason: Reason) {
        if let Some(link) = self.links.get(&key) {
            self.swarm.close_connection(link.connection);
            self.forget(key, &reason.to_string());
        }
    }

    fn send_to(&mut self, peer: PeerId, frame: Frame) {
        if let Some(key) = self.by_peer.get(&peer).copied() {
            self.send(key, frame);
        }
    }

    fn handle_answer(&mut self, key: PeerKey, answer: Answer) {
        let Some(at) = self.lookups.iter().position(|lookup| lookup.query == answer.query) else { return };
        let link = &self.links[&key];
        if answer.root.is_none() && answer.assignment.is_none() {
            // A node may not have heard of it; the seeder of the ticket knows what there is.
            if self.discovery.is_bootstrap(&link.peer) && link.is_seeder() {
                let lookup = self.lookups.swap_remove(at);
                let _ = lookup.reply.send(Err(match answer.refused {
                    Some(why) => LookupError::Refused(why),
                    None => LookupError::Unknown(lookup.query),
                }));
            }
            return;
        }
        match (self.lookups[at].accept)(&answer) {
            Ok(()) => {
                let lookup = self.lookups.swap_remove(at);
                let _ = lookup.reply.send(Ok(answer));
            }
            Err(why) if self.discovery.is_bootstrap(&link.peer) => {
                let lookup = self.lookups.swap_remove(at);
                let _ = lookup.reply.send(Err(LookupError::NotBelieved(why)));
            }
            Err(why) => self.fault(key, &format!("it told a wrong image: {why}")),
        }
    }

    fn handle_join(&mut self, key: PeerKey, exchange: u32, list: shoal_proto::cid::Cid) {
        let now = self.now();
        let link = self.links.get_mut(&key).expect("checked by the caller");
        if !self.discovery.graph.is_welcome(link.peer) {
            return;
        }
        if let Err(why) = link.note_join(exchange, list) {
            return self.fault(key, why);
        }
        let peer = link.peer;
        let number = self.trades.find(&list).or_else(|| {
            let Offer { list, kind, private } = self.directory.offer(&list, &peer)?;
            let role = match self.role {
                // Of what nobody passes on, everybody has to be given everything.
                PeerRole::Seeder if !private => Role::Seeder,
                PeerRole::Seeder | PeerRole::Node => Role::Node,
            };
            let (done, _) = oneshot::channel();
            let (held, unwanted) = (Bitfield::full(list.len()), Bitfield::empty(list.len()));
            let listing = Listing { list, kind, held, unwanted, private };
            Some(self.start_trade(TradeRequest { listing, sink: Arc::new(StoreOnly), done }, role))
        });
        if let Some(number) = number {
            self.tell_join(key, number);
            self.connect_if_joined(now, key, number);
            self.drain(number);
        }
    }

    fn handle_piece(&mut self, received: ReceivedPiece) {
        let now = self.now();
        let ReceivedPiece { from, exchange, piece, delivery, permit } = received;
        let Some(number) = self.number_of(from, exchange) else { return };
        self.send(from, Frame::Arrived { exchange, piece: piece.get() });
        let (Some(link), Some(trade)) = (self.links.get_mut(&from), self.trades.get_mut(number)) else {
            return;
        };
        link.patience.note_piece();
        let bytes = delivery.payload().len() as u64;
        if link.is_seeder() {
            self.traffic.from_seeders_bytes += bytes;
        } else {
            self.traffic.from_peers_bytes += bytes;
        }
        self.traffic.pieces_received += 1;
        match trade.exchange.handle_received(now, from, piece) {
            Receipt::Wanted => {
                let (sink, raw_bytes) = (trade.sink.clone(), trade.list.piece(piece).raw_bytes);
                let job = Job { trade: number, from, piece, raw_bytes, delivery, sink, permit };
                self.verifiers.submit(job);
            }
            Receipt::Duplicate => self.traffic.duplicate_bytes += bytes,
            Receipt::Unrequested => {}
        }
        self.drain(number);
    }

    fn number_of(&self, key: PeerKey, theirs: u32) -> Option<u32> {
        let link = self.links.get(&key)?;
        let number = self.trades.find(&link.joined_list(theirs)?)?;
        // Whoever was not let into a private trade may have joined it all the same.
        let is_in = link.trades(number) || !self.trades.get(number)?.private;
        is_in.then_some(number)
    }

    pub(super) fn send(&mut self, key: PeerKey, frame: Frame) {
        if self.links.get(&key).is_some_and(|link| !link.send(frame)) {
            self.fault(key, "it does not read its control stream");
        }
    }

    /// The peer broke the protocol: shun it for a while, and say so.
    pub(super) fn fault(&mut self, key: PeerKey, why: &str) {
        let Some(link) = self.links.get(&key) else { return };
        let (peer, connection, address) = (link.peer, link.connection, link.remote_ip);
        self.ban(peer, address, why);
        self.swarm.close_connection(connection);
        self.forget_link(key);
    }

    /// What a peer did is found out after it hung up: it may be back under another key.
    pub(super) fn blame_departed(&mut self, key: PeerKey, why: &str) {
        if self.links.contains_key(&key) {
            return;
        }
        let Some((peer, address)) = self.departed.find(key.0) else { return };
        match self.by_peer.get(&peer).copied() {
            Some(back) => self.fault(back, why),
            None => self.ban(peer, address, why),
        }
    }

    fn ban(&mut self, peer: PeerId, address: Option<IpAddr>, why: &str) {
        let now = self.now();
        let from = address.map(tracing::field::display);
        tracing::warn!(%peer, from, why, "a peer broke the protocol and is shunned");
        self.discovery.graph.handle_fault(now, peer);
        if self.bans.note(now, peer, address, why)
            && let Some(address) = address
        {
            tracing::warn!(%address, "too many keys of one address broke the protocol: nobody new is let in from there");
            self.swarm.behaviour_mut().door.close(std::time::Instant::now(), address, neighbourhood::BAN);
        }
    }

    fn forget(&mut self, key: PeerKey, why: &str) {
        if let Some(link) = self.links.get(&key) {
            tracing::info!(peer = %link.peer, why, "lost a neighbour");
            self.forget_link(key);
        }
    }

    fn forget_link(&mut self, key: PeerKey) {
        let now = self.now();
        let Some(link) = self.links.remove(&key) else { return };
        self.by_peer.remove(&link.peer);
        self.departed.note(key.0, link.peer, link.remote_ip);
        self.discovery.graph.handle_disconnected(now, link.peer);
        for number in self.trades.numbers() {
            if link.trades(number) {
                let Some(trade) = self.trades.get_mut(number) else { continue };
                trade.exchange.handle_disconnected(now, key);
                self.drain(number);
            }
        }
        self.tell_replicated();
    }

    pub(super) fn find_and_dial(&mut self, peer: PeerId, addresses: Vec<SocketAddr>) {
        let Places { addresses, names } = self.discovery.places(&peer, addresses);
        if names.is_empty() {
            self.dial(peer, addresses);
        } else {
            tokio::spawn(resolve(peer, names, addresses, self.around.driver.clone()));
        }
    }

    fn dial(&mut self, peer: PeerId, addresses: Vec<SocketAddr>) {
        let addresses = addresses
            .into_iter()
            .map(|address| Multiaddr::from(address.ip()).with(Protocol::Tcp(address.port())));
        let options = DialOpts::peer_id(peer)
            .condition(PeerCondition::DisconnectedAndNotDialing)
            .addresses(addresses.collect())
            .build();
        if let Err(error) = self.swarm.dial(options) {
            self.handle_dial_error(peer, &error);
        }
    }

    fn handle_dial_error(&mut self, peer: PeerId, error: &DialError) {
        self.discovery.graph.handle_dial_failed(self.now(), peer);
        if !self.discovery.is_bootstrap(&peer) {
            tracing::debug!(%peer, %error, "cannot reach a peer");
            return;
        }
        if let DialError::DialPeerConditionFalse(_) = error {
            // Another dial is under way, and tells of itself.
            return;
        }
        let text = describe_dial_error(error);
        tracing::info!(%peer, error = text, "cannot reach the seeder, trying again");
        let refused = match error {
            DialError::WrongPeerId { .. } => true,
            // The prologue enters the transcript: with another secret, the first encrypted message cannot be read.
            DialError::Transport(failures) => {
                failures.iter().any(|(_, failure)| format!("{failure:?}").to_lowercase().contains("decrypt"))
            }
            _ => false,
        };
        if refused && self.links.is_empty() {
            for lookup in self.lookups.drain(..) {
                let _ = lookup.reply.send(Err(LookupError::OtherSwarm(text.clone())));
            }
        }
        self.trouble = Some(text);
    }
}

/// Looks names up for a dial.
async fn resolve(
    peer: PeerId,
    names: Vec<HostPort>,
    mut addresses: Vec<SocketAddr>,
    driver: mpsc::Sender<FromLink>,
) {
    let mut failures = Vec::new();
    for name in names {
        match tokio::net::lookup_host((name.host.as_str(), name.port)).await {
            Ok(found) => addresses.extend(found),
            Err(error) => failures.push(format!("{name}: {error}")),
        }
    }
    // The driver is gone only when the peer stops: nobody is left to tell.
    let _ = driver.send(FromLink::Resolved { peer, addresses, failures }).await;
}

fn describe_dial_error(error: &DialError) -> String {
    match error {
        DialError::WrongPeerId { obtained, address } => {
            format!("{obtained} answers at {address}, not the seeder that the ticket names")
        }
        DialError::Transport(failures) => {
            let each: Vec<String> = failures
                .iter()
                .map(|(address, failure)| format!("{address}: {}", innermost(failure)))
                .collect();
            each.join("; ")
        }
        other => other.to_string(),
    }
}
