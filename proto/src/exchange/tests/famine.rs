//! What a node says of pieces that nobody has.

use super::*;

fn unavailable(outputs: &[Output]) -> Vec<Vec<PieceIndex>> {
    let said = |output: &Output| match output {
        Output::Event(Event::Unavailable { pieces }) => Some(pieces.clone()),
        _ => None,
    };
    outputs.iter().filter_map(said).collect()
}

fn hungry() -> u64 {
    u64::try_from(Config::default().unavailable_after.as_millis()).unwrap()
}

#[test]
fn pieces_that_nobody_has_are_named_within_seconds_and_once() {
    let mut node = Solo::node(4, [0]);
    node.meet_node(at(0), 1, [0, 2]);
    assert_eq!(unavailable(&node.wait(at(hungry() - 1))), [] as [Vec<_>; 0]);
    assert_eq!(unavailable(&node.wait(at(hungry()))), [[piece(1), piece(3)]]);
    assert_eq!(unavailable(&node.wait(at(10 * hungry()))), [] as [Vec<_>; 0], "it did not change");
}

#[test]
fn a_change_of_what_is_unavailable_is_said_and_so_is_its_end() {
    let mut node = Solo::node(4, [0]);
    node.meet_node(at(0), 1, [0, 2]);
    node.wait(at(hungry()));
    node.say(at(hungry() + 1), 1, Message::Have(vec![piece(3)]));
    assert_eq!(unavailable(&node.wait(at(3 * hungry()))), [[piece(1)]]);
    node.meet_node(at(3 * hungry() + 1), 2, [1]);
    assert_eq!(unavailable(&node.wait(at(5 * hungry()))), [[]]);
}

#[test]
fn nothing_is_unavailable_while_a_seeder_is_there() {
    let mut node = Solo::node(4, [0]);
    node.meet(at(0), 1, Announcement::Seeder);
    node.meet_node(at(0), 2, [0]);
    assert_eq!(unavailable(&node.wait(at(3 * hungry()))), [] as [Vec<_>; 0]);
    node.exchange.handle_disconnected(at(3 * hungry()), PeerKey(1));
    assert_eq!(unavailable(&node.wait(at(5 * hungry()))), [[piece(1), piece(2), piece(3)]]);
}

#[test]
fn a_node_that_is_being_fed_complains_of_nothing() {
    let mut node = Solo::node(4, [0]);
    node.meet_node(at(0), 1, [0, 2]);
    node.say(at(0), 1, Message::Grant(None));
    let mut outputs = Vec::new();
    for second in 1..9 {
        outputs.extend(node.wait(at(1000 * second)));
        node.exchange.handle_progress(at(1000 * second), PeerKey(1), piece(2));
    }
    assert_eq!(unavailable(&outputs), [] as [Vec<_>; 0]);
    assert_eq!(unavailable(&node.wait(at(8000 + hungry()))), [[piece(1), piece(3)]]);
}
