use std::collections::BTreeMap;

use super::*;
use crate::policies::{self, bittorrent};
use crate::scenarios::{self, Size};
use crate::sim::Options;
use shoal_proto::cid::Cid;
use shoal_proto::image::pieces::Piece;

const PEER: PeerKey = PeerKey(7);

fn list(pieces: usize) -> Arc<PieceList> {
    let piece = |at: usize| Piece { cid: Cid::of(&at.to_le_bytes()), raw_bytes: 1 };
    Arc::new(PieceList::new((0..pieces).map(piece).collect()).unwrap())
}

fn node(style: Style, pieces: usize) -> Pull {
    Pull::new(style, Role::Node, list(pieces), Bitfield::empty(pieces), 1)
}

fn seeder(style: Style, pieces: usize) -> Pull {
    Pull::new(style, Role::Seeder, list(pieces), Bitfield::full(pieces), 1)
}

/// It meets peers that hold these pieces.
fn meet(pull: &mut Pull, peers: &[(u32, &[u32])]) {
    for &(peer, held) in peers {
        let peer = PeerKey(peer);
        pull.handle_connected(Time::ZERO, peer, Distance::NONE);
        let mut shown = Bitfield::empty(pull.pieces.len());
        held.iter().for_each(|&piece| {
            shown.insert(pull.pieces.index(piece).unwrap());
        });
        pull.handle_message(Time::ZERO, peer, Message::Announce(Announcement::Held(shown)));
    }
}

fn outputs(pull: &mut Pull) -> Vec<Output> {
    pull.assert_invariants();
    std::iter::from_fn(|| pull.poll_output()).collect()
}

/// Piece by piece asked for, of how many.
fn requests(pull: &mut Pull) -> BTreeMap<u32, usize> {
    let mut requests = BTreeMap::new();
    for output in outputs(pull) {
        if let Output::Send { message: Message::Request(piece), .. } = output {
            *requests.entry(piece.get()).or_default() += 1;
        }
    }
    requests
}

fn granted(outputs: &[Output]) -> Vec<PeerKey> {
    let grants = outputs.iter().filter_map(|output| match output {
        Output::Send { peer, message: Message::Grant(None) } => Some(*peer),
        _ => None,
    });
    grants.collect()
}

#[test]
fn the_rarest_pieces_are_asked_for_first() {
    let mut pull = node(Style { total: 2, per_source: 2, ..PULL }, 6);
    pull.style.total = 0;
    meet(&mut pull, &[(1, &[0, 1, 2, 3]), (2, &[0, 1, 2, 3]), (3, &[0, 1, 4, 5])]);
    pull.style.total = 2;
    pull.request_of(PeerKey(3));
    assert_eq!(requests(&mut pull).into_keys().collect::<Vec<_>>(), [4, 5]);
}

#[test]
fn in_order_means_the_first_missing() {
    let mut pull = node(Style { order: Order::Sequential, per_source: 2, ..PULL }, 6);
    meet(&mut pull, &[(1, &[1, 3, 4])]);
    assert_eq!(requests(&mut pull).into_keys().collect::<Vec<_>>(), [1, 3]);
}

#[test]
fn what_is_left_is_asked_of_a_second_source_and_called_off_when_it_comes() {
    let mut pull = node(PULL, 1);
    meet(&mut pull, &[(1, &[0]), (2, &[0]), (3, &[0])]);
    assert_eq!(requests(&mut pull), [(0, SOURCES)].into());
    let piece = pull.pieces.index(0).unwrap();
    assert_eq!(pull.handle_received(Time::ZERO, PeerKey(1), piece), Receipt::Wanted);
    let cancel = Output::Send { peer: PeerKey(2), message: Message::Cancel(piece) };
    assert_eq!(outputs(&mut pull), [cancel]);
    assert_eq!(pull.handle_received(Time::ZERO, PeerKey(2), piece), Receipt::Duplicate);
}

const SOURCES: usize = 2;

#[test]
fn a_piece_that_nobody_asked_for_is_told() {
    let mut pull = node(PULL, 1);
    meet(&mut pull, &[(1, &[])]);
    let piece = pull.pieces.index(0).unwrap();
    assert_eq!(pull.handle_received(Time::ZERO, PeerKey(1), piece), Receipt::Unrequested);
}

#[test]
fn requests_wait_for_a_slot_and_a_rejected_one_is_made_elsewhere() {
    let mut pull = seeder(Style { slots: 1, ..PULL }, 3);
    meet(&mut pull, &[(1, &[]), (2, &[])]);
    let [first, second, _] = [0, 1, 2].map(|piece| pull.pieces.index(piece).unwrap());
    outputs(&mut pull);
    pull.handle_message(Time::ZERO, PeerKey(1), Message::Request(first));
    pull.handle_message(Time::ZERO, PeerKey(2), Message::Request(second));
    assert_eq!(outputs(&mut pull), [Output::SendPiece { peer: PeerKey(1), piece: first }]);
    pull.handle_sent(Time::ZERO, PeerKey(1), first);
    assert_eq!(outputs(&mut pull), [Output::SendPiece { peer: PeerKey(2), piece: second }]);

    let mut pull = node(Style { total: 1, ..PULL }, 1);
    meet(&mut pull, &[(1, &[0])]);
    assert_eq!(requests(&mut pull), [(0, 1)].into());
    pull.handle_message(Time::ZERO, PeerKey(1), Message::Withdraw(first));
    assert_eq!(requests(&mut pull), [(0, 1)].into());
}

#[test]
fn four_may_ask_and_the_longest_served_makes_room() {
    let mut pull = bittorrent::plain(Role::Seeder, list(2), Bitfield::full(2), 1);
    meet(&mut pull, &[(1, &[]), (2, &[]), (3, &[]), (4, &[]), (5, &[])]);
    let first = granted(&outputs(&mut pull));
    assert_eq!(first.len(), 4);
    let left = (1..=5).map(PeerKey).find(|peer| !first.contains(peer)).unwrap();
    let piece = pull.pieces.index(0).unwrap();
    pull.handle_message(Time::ZERO, left, Message::Request(piece));
    let rejected = Output::Send { peer: left, message: Message::Withdraw(piece) };
    assert_eq!(outputs(&mut pull), [rejected]);

    pull.handle_timeout(pull.poll_timeout().unwrap());
    let after = outputs(&mut pull);
    assert_eq!(granted(&after), [left]);
    assert!(after.contains(&Output::Send {
        peer: first[0],
        message: Message::Decline(shoal_proto::exchange::Declined::Busy)
    }));
}

#[test]
fn who_lacks_nothing_keeps_no_slot() {
    let mut pull = bittorrent::plain(Role::Seeder, list(1), Bitfield::full(1), 1);
    meet(&mut pull, &[(1, &[]), (2, &[]), (3, &[]), (4, &[]), (5, &[])]);
    let first = granted(&outputs(&mut pull));
    let piece = pull.pieces.index(0).unwrap();
    pull.handle_message(Time::ZERO, first[2], Message::Have(vec![piece]));
    let after = outputs(&mut pull);
    assert_eq!(granted(&after).len(), 1);
    assert!(!first.contains(&granted(&after)[0]));
}

#[test]
fn a_super_seeder_shows_each_another_piece_and_the_next_when_it_is_elsewhere() {
    let mut pull = bittorrent::super_seeding(Role::Seeder, list(9), Bitfield::full(9), 1);
    meet(&mut pull, &[(1, &[]), (2, &[])]);
    let shown = |outputs: &[Output]| {
        let haves = outputs.iter().filter_map(|output| match output {
            Output::Send { peer, message: Message::Have(pieces) } => Some((*peer, pieces[0])),
            _ => None,
        });
        haves.collect::<Vec<_>>()
    };
    let first = shown(&outputs(&mut pull));
    assert_eq!(first.len(), 2);
    assert_ne!(first[0].1, first[1].1);
    pull.handle_message(Time::ZERO, first[0].0, Message::Have(vec![first[0].1]));
    assert_eq!(shown(&outputs(&mut pull)), [], "nobody else has it yet");
    pull.handle_message(Time::ZERO, first[1].0, Message::Have(vec![first[0].1]));
    let next = shown(&outputs(&mut pull));
    assert_eq!(next.len(), 1);
    assert_eq!(next[0].0, first[0].0);
}

#[test]
fn every_policy_completes_every_node_with_every_check_on() {
    let scenario = scenarios::named("flash-crowd").unwrap();
    let size = Size { nodes: 12, pieces: 20 };
    for policy in policies::ALL {
        let outcome = (policy.run)(scenario, size, &Options { neighbours: 6, ..Options::default() });
        let outcome = outcome.expect(policy.name);
        assert_eq!(outcome.complete, 12, "{}", policy.name);
    }
}

#[test]
fn a_source_that_is_gone_is_replaced() {
    let mut pull = node(Style { total: 1, ..PULL }, 1);
    meet(&mut pull, &[(1, &[0]), (PEER.0, &[0])]);
    assert_eq!(requests(&mut pull), [(0, 1)].into());
    pull.handle_disconnected(Time::ZERO, PeerKey(1));
    assert_eq!(requests(&mut pull), [(0, 1)].into(), "the other has it");
}
