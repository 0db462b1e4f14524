//! Who is served, who may ask, and what a super-seeder shows.

use rand::Rng;
use shoal_proto::exchange::{Declined, Message, Output, PeerKey};
use shoal_proto::image::PieceIndex;

use super::Pull;

impl Pull {
    pub(super) fn take_request(&mut self, peer: PeerKey, piece: PieceIndex) {
        let may_ask = self.style.choking.is_none() || self.unchoked.contains(&peer);
        let hidden = self.offered.is_some();
        let held = self.held.contains(piece);
        let Some(neighbour) = self.neighbours.get_mut(&peer) else { return };
        if !may_ask || !held || (hidden && !neighbour.revealed.contains(piece)) {
            return self.send(peer, Message::Withdraw(piece));
        }
        neighbour.requests.push_back(piece);
        if neighbour.sending.is_none() && neighbour.requests.len() == 1 {
            self.ready.push_back(peer);
        }
        self.serve();
    }

    pub(super) fn cancel(&mut self, peer: PeerKey, piece: PieceIndex) {
        let Some(neighbour) = self.neighbours.get_mut(&peer) else { return };
        neighbour.requests.retain(|&requested| requested != piece);
        neighbour.cancelled |= neighbour.sending == Some(piece);
        if neighbour.requests.is_empty() {
            self.ready.retain(|&ready| ready != peer);
        }
    }

    pub(super) fn finish_sending(&mut self, peer: PeerKey) {
        let Some(neighbour) = self.neighbours.get_mut(&peer) else { return };
        neighbour.sending = None;
        neighbour.cancelled = false;
        self.sending -= 1;
        if !neighbour.requests.is_empty() {
            self.ready.push_back(peer);
        }
        self.serve();
    }

    /// Starts to send what was asked for, by turns of the peers, in the slots that are free.
    pub(super) fn serve(&mut self) {
        while self.sending < self.style.slots {
            let Some(peer) = self.ready.pop_front() else { return };
            let Some(neighbour) = self.neighbours.get_mut(&peer) else { continue };
            let Some(piece) = neighbour.requests.pop_front() else { continue };
            neighbour.sending = Some(piece);
            self.sending += 1;
            self.outputs.push_back(Output::SendPiece { peer, piece });
        }
    }

    /// Whether the peer lacks something that it knows to be here.
    fn interests(&self, peer: PeerKey) -> bool {
        let Some(neighbour) = self.neighbours.get(&peer) else { return false };
        let offers = if self.offered.is_some() { &neighbour.revealed } else { &self.held };
        offers.has_any_not_in(&neighbour.shown)
    }

    /// Gives free slots to peers that want something, at random.
    pub(super) fn unchoke_more(&mut self) {
        while self.style.choking.is_some() && self.unchoked.len() < self.style.slots {
            let waiting = self.waiting();
            if waiting.is_empty() {
                return;
            }
            let peer = waiting[self.rng.random_range(0..waiting.len())];
            self.unchoked.push_back(peer);
            self.send(peer, Message::Grant(None));
        }
    }

    fn waiting(&self) -> Vec<PeerKey> {
        let choked = self.neighbours.keys().copied().filter(|peer| !self.unchoked.contains(peer));
        choked.filter(|&peer| self.interests(peer)).collect()
    }

    /// The optimistic turn: the peer served longest makes room for one that waits.
    pub(super) fn rotate(&mut self) {
        if self.unchoked.len() == self.style.slots
            && !self.waiting().is_empty()
            && let Some(&longest) = self.unchoked.front()
        {
            self.unchoke_more_without(longest);
        }
    }

    pub(super) fn release_uninterested(&mut self, peer: PeerKey) {
        if self.unchoked.contains(&peer) && !self.interests(peer) {
            self.unchoke_more_without(peer);
        }
    }

    /// What the peer is being sent is finished, what it has waiting is rejected.
    fn unchoke_more_without(&mut self, peer: PeerKey) {
        let was = self.unchoked.iter().position(|&unchoked| unchoked == peer);
        self.ready.retain(|&ready| ready != peer);
        self.send(peer, Message::Decline(Declined::Busy));
        let requests =
            self.neighbours.get_mut(&peer).map(|neighbour| std::mem::take(&mut neighbour.requests));
        requests.into_iter().flatten().for_each(|piece| self.send(peer, Message::Withdraw(piece)));
        // Another comes first: the choked one is not to be drawn again at once.
        let waiting = self.waiting();
        if let Some(at) = was {
            self.unchoked.remove(at);
        }
        if !waiting.is_empty() {
            let next = waiting[self.rng.random_range(0..waiting.len())];
            self.unchoked.push_back(next);
            self.send(next, Message::Grant(None));
        }
    }

    /// A super-seeder shows each neighbour a piece that nobody has, and the next when another neighbour has that one.
    pub(super) fn reveal_more(&mut self) {
        if self.offered.is_none() {
            return;
        }
        let peers: Vec<PeerKey> = self.neighbours.keys().copied().collect();
        for peer in peers {
            if self.may_see_another(peer)
                && let Some(piece) = self.scarcest_for(peer)
            {
                self.reveal(peer, piece);
            }
        }
    }

    fn may_see_another(&self, peer: PeerKey) -> bool {
        let neighbour = &self.neighbours[&peer];
        neighbour.revealed.iter().all(|piece| {
            let has = neighbour.shown.contains(piece);
            let elsewhere = self.copies[piece.at()] > u16::from(has);
            elsewhere || (has && self.neighbours.len() == 1)
        })
    }

    /// Fewest neighbours have it or were shown it; ties at random.
    fn scarcest_for(&mut self, peer: PeerKey) -> Option<PieceIndex> {
        let offered = self.offered.as_ref()?;
        let neighbour = self.neighbours.get(&peer)?;
        let open = self.pieces.indexes().filter(|&piece| {
            self.held.contains(piece)
                && !neighbour.shown.contains(piece)
                && !neighbour.revealed.contains(piece)
        });
        let spread = |piece: PieceIndex| self.copies[piece.at()] + offered[piece.at()];
        let rng = &mut self.rng;
        open.min_by_key(|&piece| (spread(piece), rng.random::<u32>()))
    }

    fn reveal(&mut self, peer: PeerKey, piece: PieceIndex) {
        if let (Some(offered), Some(neighbour)) = (&mut self.offered, self.neighbours.get_mut(&peer)) {
            offered[piece.at()] += 1;
            neighbour.revealed.insert(piece);
            self.send(peer, Message::Have(vec![piece]));
            self.unchoke_more();
        }
    }
}
