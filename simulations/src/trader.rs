//! What the loop drives: the shipping exchange, or a policy that it is compared with.

use shoal_proto::exchange::{Bitfield, Exchange, Message, Output, PeerKey, Receipt};
use shoal_proto::image::PieceIndex;
use shoal_proto::time::Time;
use shoal_proto::zone::Distance;

/// One machine's side of trading one piece list. The methods are those of [`Exchange`], with its contracts: one input,
/// then drain [`Trader::poll_output`], then sleep until [`Trader::poll_timeout`].
///
/// Each must be a function of its inputs alone: a simulation is replayed from its seed, on any number of threads.
pub(crate) trait Trader: Send {
    fn handle_connected(&mut self, now: Time, peer: PeerKey, distance: Distance);
    fn handle_disconnected(&mut self, now: Time, peer: PeerKey);
    fn handle_message(&mut self, now: Time, peer: PeerKey, message: Message);
    fn handle_progress(&mut self, now: Time, peer: PeerKey, piece: PieceIndex);
    fn handle_received(&mut self, now: Time, peer: PeerKey, piece: PieceIndex) -> Receipt;
    fn handle_stored(&mut self, now: Time, piece: PieceIndex);
    fn handle_corrupt(&mut self, now: Time, piece: PieceIndex);
    fn is_send_wanted(&self, peer: PeerKey, piece: PieceIndex) -> bool;
    fn handle_unsent(&mut self, now: Time, peer: PeerKey, piece: PieceIndex);
    fn handle_sent(&mut self, now: Time, peer: PeerKey, piece: PieceIndex);
    fn handle_timeout(&mut self, now: Time);
    fn poll_output(&mut self) -> Option<Output>;
    fn poll_timeout(&self) -> Option<Time>;
    fn held(&self) -> &Bitfield;
    fn is_complete(&self) -> bool;
    fn waiting_for(&self, pieces_max: usize) -> Vec<(PieceIndex, Vec<PeerKey>)>;
    /// Panics when an invariant is broken. Walks everything.
    fn assert_invariants(&self);
}

impl Trader for Exchange {
    fn handle_connected(&mut self, now: Time, peer: PeerKey, distance: Distance) {
        Self::handle_connected(self, now, peer, distance);
    }

    fn handle_disconnected(&mut self, now: Time, peer: PeerKey) {
        Self::handle_disconnected(self, now, peer);
    }

    fn handle_message(&mut self, now: Time, peer: PeerKey, message: Message) {
        Self::handle_message(self, now, peer, message);
    }

    fn handle_progress(&mut self, now: Time, peer: PeerKey, piece: PieceIndex) {
        Self::handle_progress(self, now, peer, piece);
    }

    fn handle_received(&mut self, now: Time, peer: PeerKey, piece: PieceIndex) -> Receipt {
        Self::handle_received(self, now, peer, piece)
    }

    fn handle_stored(&mut self, now: Time, piece: PieceIndex) {
        Self::handle_stored(self, now, piece);
    }

    fn handle_corrupt(&mut self, now: Time, piece: PieceIndex) {
        Self::handle_corrupt(self, now, piece);
    }

    fn is_send_wanted(&self, peer: PeerKey, piece: PieceIndex) -> bool {
        Self::is_send_wanted(self, peer, piece)
    }

    fn handle_unsent(&mut self, now: Time, peer: PeerKey, piece: PieceIndex) {
        Self::handle_unsent(self, now, peer, piece);
    }

    fn handle_sent(&mut self, now: Time, peer: PeerKey, piece: PieceIndex) {
        Self::handle_sent(self, now, peer, piece);
    }

    fn handle_timeout(&mut self, now: Time) {
        Self::handle_timeout(self, now);
    }

    fn poll_output(&mut self) -> Option<Output> {
        Self::poll_output(self)
    }

    fn poll_timeout(&self) -> Option<Time> {
        Self::poll_timeout(self)
    }

    fn held(&self) -> &Bitfield {
        Self::held(self)
    }

    fn is_complete(&self) -> bool {
        Self::is_complete(self)
    }

    fn waiting_for(&self, pieces_max: usize) -> Vec<(PieceIndex, Vec<PeerKey>)> {
        Self::waiting_for(self, pieces_max)
    }

    fn assert_invariants(&self) {
        Self::assert_invariants(self);
    }
}
