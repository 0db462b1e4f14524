//! Neighbours that grant what they do not give.

use super::*;

/// Grants and waits until the request is given up; returns what was said meanwhile.
fn stall(node: &mut Solo, now: &mut u64) -> Vec<Output> {
    let mut outputs = node.say(at(*now), 1, Message::Grant(None));
    assert!(matches!(outputs[..], [Output::Send { message: Message::Request(_), .. }]), "{outputs:?}");
    *now += 4000;
    outputs.extend(node.wait(at(*now)));
    outputs
}

#[test]
fn who_grants_again_and_again_and_sends_nothing_is_thrown_out() {
    let mut node = Solo::node(3, []);
    node.meet_node(at(0), 1, [0, 1, 2]);
    let mut now = 1;
    for _ in 0..3 {
        assert_eq!(fault_of(&stall(&mut node, &mut now)), None);
    }
    assert_eq!(fault_of(&stall(&mut node, &mut now)), Some(Fault::Promises));
}

#[test]
fn a_piece_that_comes_at_last_makes_up_for_those_that_did_not() {
    let mut node = Solo::node(3, []);
    node.meet_node(at(0), 1, [0, 1, 2]);
    let mut now = 1;
    for _ in 0..2 {
        let mut late = None;
        for _ in 0..3 {
            let outputs = stall(&mut node, &mut now);
            assert_eq!(fault_of(&outputs), None);
            let requested = |output: &Output| match output {
                Output::Send { message: Message::Request(piece), .. } => Some(*piece),
                _ => None,
            };
            late = outputs.iter().find_map(requested).or(late);
        }
        assert_eq!(node.exchange.handle_received(at(now), PeerKey(1), late.unwrap()), Receipt::Wanted);
        node.exchange.handle_dropped(at(now), late.unwrap());
    }
}

#[test]
fn bytes_that_dribble_are_no_broken_promise() {
    let mut node = Solo::node(3, []);
    node.meet_node(at(0), 1, [0, 1, 2]);
    for turn in 0..20u64 {
        let now = 1 + turn * 5000;
        let outputs = node.say(at(now), 1, Message::Grant(None));
        let [Output::Send { message: Message::Request(asked), .. }] = outputs[..] else { panic!() };
        node.exchange.handle_progress(at(now + 500), PeerKey(1), asked);
        assert_eq!(fault_of(&node.wait(at(now + 4900))), None);
    }
}

#[test]
fn who_shows_what_it_withdraws_when_asked_is_thrown_out() {
    let mut node = Solo::node(3, []);
    node.meet_node(at(0), 1, [0]);
    for turn in 1..=32 {
        assert_eq!(
            node.say(at(turn), 1, Message::Grant(None)),
            [send(1, Message::Request(piece(0)))],
            "at {turn}"
        );
        let fault = fault_of(&node.say(at(turn), 1, Message::Withdraw(piece(0))));
        assert_eq!(fault, (turn == 32).then_some(Fault::Promises), "at {turn}");
        node.say(at(turn), 1, Message::Have(vec![piece(0)]));
    }
}

#[test]
fn what_is_withdrawn_unasked_is_no_broken_promise() {
    let mut node = Solo::node(3, []);
    node.meet_node(at(0), 1, [0]);
    for turn in 1..=100 {
        assert_eq!(fault_of(&node.say(at(turn), 1, Message::Withdraw(piece(0)))), None);
        node.say(at(turn), 1, Message::Have(vec![piece(0)]));
    }
}
