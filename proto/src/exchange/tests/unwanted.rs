//! A node that can do without some pieces, and its neighbours.

use super::*;

fn selective(pieces: usize, held: impl IntoIterator<Item = u32>, unwanted: &[u32]) -> Solo {
    let mut node = Solo::node(pieces, held);
    node.exchange = node.exchange.without(set(pieces, unwanted.iter().copied()));
    node
}

fn announced(
    pieces: usize,
    held: impl IntoIterator<Item = u32>,
    unwanted: impl IntoIterator<Item = u32>,
) -> Announcement {
    Announcement::Selective { held: set(pieces, held), unwanted: set(pieces, unwanted) }
}

#[test]
fn an_unwanted_piece_is_neither_asked_for_nor_announced_nor_missed() {
    let mut node = selective(3, [], &[1]);
    let outputs = node.meet_node(at(0), 1, 0..3);
    assert_eq!(outputs[0], send(1, Message::Announce(announced(3, [], [1]))));
    assert_eq!(node.exchange.waiting_for(9).len(), 2);
    let nothing = [send(1, Message::Decline(Declined::Nothing))];
    assert_eq!(node.say(at(1), 1, Message::Grant(Some(piece(1)))), nothing);
    let mut got = BTreeSet::new();
    for now in [2, 3] {
        let outputs = node.say(at(now), 1, Message::Grant(None));
        let [Output::Send { message: Message::Request(piece), .. }] = outputs[..] else {
            panic!("{outputs:?}")
        };
        got.insert(piece);
    }
    assert_eq!(got, BTreeSet::from([piece(0), piece(2)]));
    assert_eq!(node.say(at(4), 1, Message::Grant(None)), nothing);
    for (last, piece) in got.into_iter().enumerate() {
        assert!(!node.exchange.is_complete());
        assert_eq!(node.exchange.handle_received(at(5), PeerKey(1), piece), Receipt::Wanted);
        node.exchange.handle_stored(at(5), piece);
        assert_eq!(node.drain().contains(&Output::Event(Event::Complete)), last == 1);
    }
    assert!(node.exchange.is_complete() && !node.exchange.held().is_full());
    assert_eq!((node.exchange.unwanted(), node.exchange.waiting_for(9)), (1, vec![]));
    assert_eq!(node.say(at(6), 1, Message::Grant(None)), nothing);
}

#[test]
fn a_node_that_holds_all_that_it_wants_is_complete_from_the_start() {
    let node = selective(3, [0, 2], &[1, 2]);
    assert!(node.exchange.is_complete());
    assert_eq!(node.exchange.unwanted(), 1);
}

#[test]
fn an_unwanted_piece_that_is_held_is_served_and_not_missed_once_it_is_lost() {
    let mut node = selective(2, [0, 1], &[1]);
    let outputs = node.meet_node(at(0), 1, [0]);
    assert_eq!(outputs[0], send(1, Message::Announce(announced(2, [0, 1], [1]))));
    assert_eq!(grants(&outputs), [(1, None)]);
    node.exchange.handle_lost(at(1), piece(1));
    assert_eq!(node.drain(), [send(1, Message::Withdraw(piece(1)))]);
    assert!(node.exchange.is_complete());
    node.exchange.handle_lost(at(2), piece(0));
    node.drain();
    assert!(!node.exchange.is_complete());
    node.say(at(3), 1, Message::Have(vec![piece(1)]));
    assert_eq!(node.say(at(4), 1, Message::Grant(None)), [send(1, Message::Request(piece(0)))]);
}

#[test]
fn a_neighbour_is_not_granted_for_the_sake_of_what_it_does_not_want() {
    let mut node = Solo::node(4, 0..3);
    assert_eq!(grants(&node.meet(at(0), 1, announced(4, [0], [1, 2]))), []);
    // Its own want of a piece is all that it wakes for.
    let famine = at(0) + Config::default().unavailable_after;
    assert_eq!(node.exchange.poll_timeout(), Some(famine), "nor asked again and again");
    assert_eq!(grants(&node.meet(at(0), 2, announced(4, [0], [1]))), [(2, None)]);
    // What it shows of the unwanted, it serves; it comes and goes without a grant.
    for message in [Message::Have(vec![piece(1)]), Message::Withdraw(piece(1))] {
        assert_eq!(grants(&node.say(at(1), 1, message)), []);
    }
    assert_eq!(grants(&node.say(at(2), 1, Message::Withdraw(piece(0)))), [(1, None)]);
}

#[test]
fn a_seeder_gives_a_piece_to_the_first_who_wants_it_and_keeps_what_nobody_does() {
    let first = grants(&Solo::seeder(2).meet_node(at(0), 1, []));
    let [(1, Some(first))] = first[..] else { panic!("{first:?}") };
    let other = piece(1 - first.get());
    // The same seed begins with the same piece, which the first neighbour does not want.
    let mut seeder = Solo::seeder(2);
    assert_eq!(grants(&seeder.meet(at(0), 1, announced(2, [], [first.get()]))), [(1, Some(other))]);
    seeder.say(at(1), 1, Message::Request(other));
    seeder.exchange.handle_sent(at(10), PeerKey(1), other);
    seeder.say(at(11), 1, Message::Have(vec![other]));
    assert_eq!(grants(&seeder.wait(at(5000))), [], "nobody is there for it");
    assert_eq!(seeder.exchange.poll_timeout(), None);
    assert_eq!(grants(&seeder.meet(at(6000), 2, announced(2, [], [other.get()]))), [(2, Some(first))]);
}
