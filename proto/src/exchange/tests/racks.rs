//! What one exchange says and takes across the border of its rack.

use super::*;

const FAR: u32 = 50;

fn far() -> Distance {
    Distance::new(1)
}

fn held(pieces: usize, held: impl IntoIterator<Item = u32>) -> Announcement {
    Announcement::Held(set(pieces, held))
}

fn intent(of: u32, live: bool) -> Message {
    Message::Intent { piece: piece(of), live }
}

/// A node with two neighbours in its rack and one outside that holds everything.
fn racked(pieces: u32) -> Solo {
    let mut node = Solo::node(pieces as usize, []);
    node.meet_node(at(0), 1, []);
    node.meet_node(at(0), 2, []);
    node.meet_at(far(), at(0), FAR, held(pieces as usize, 0..pieces));
    node
}

/// What a grant from outside the rack is answered with.
fn grant_far(node: &mut Solo, now: Time) -> Message {
    let outputs = node.say(now, FAR, Message::Grant(None));
    let Output::Send { peer: PeerKey(FAR), message } = &outputs[0] else { panic!("{outputs:?}") };
    message.clone()
}

fn said(outputs: &[Output], wanted: impl Fn(&Message) -> bool) -> Vec<(u32, Message)> {
    let sent = outputs.iter().filter_map(|output| match output {
        Output::Send { peer, message } if wanted(message) => Some((peer.0, message.clone())),
        _ => None,
    });
    sent.collect()
}

fn intents(outputs: &[Output]) -> Vec<(u32, Message)> {
    said(outputs, |message| matches!(message, Message::Intent { .. }))
}

fn covered(outputs: &[Output]) -> Vec<(u32, Message)> {
    said(outputs, |message| matches!(message, Message::Covered(_) | Message::Uncovered(_)))
}

#[test]
fn a_fetch_from_afar_is_told_to_the_rack_and_taken_back_when_it_fails() {
    let mut node = racked(1);
    let outputs = node.say(at(1), FAR, Message::Grant(None));
    assert_eq!(outputs[0], send(FAR, Message::Request(piece(0))));
    assert_eq!(intents(&outputs), [(1, intent(0, true)), (2, intent(0, true))]);
    node.exchange.handle_disconnected(at(2), PeerKey(FAR));
    assert_eq!(intents(&node.drain()), [(1, intent(0, false)), (2, intent(0, false))]);
}

#[test]
fn a_fetch_within_the_rack_is_no_intent() {
    let mut node = racked(1);
    node.say(at(1), 1, Message::Have(vec![piece(0)]));
    let outputs = node.say(at(2), 1, Message::Grant(None));
    assert_eq!(outputs[0], send(1, Message::Request(piece(0))));
    assert_eq!(intents(&outputs), []);
}

#[test]
fn an_intent_is_repeated_while_bytes_arrive_and_no_longer() {
    let mut node = racked(1);
    node.exchange.down.sample(Duration::from_millis(100));
    node.say(at(0), FAR, Message::Grant(None));
    node.exchange.handle_progress(at(250), PeerKey(FAR), piece(0));
    let repeated = intents(&node.wait(at(500)));
    assert!(repeated.len() >= 2 && repeated.iter().all(|(_, said)| *said == intent(0, true)), "{repeated:?}");
    let over = intents(&node.wait(at(900)));
    assert_eq!(over, [(1, intent(0, false)), (2, intent(0, false))]);
}

#[test]
fn what_the_rack_holds_or_intends_is_not_taken_from_afar() {
    let mut node = racked(3);
    node.say(at(1), 1, Message::Have(vec![piece(0)]));
    node.say(at(1), 2, intent(1, true));
    assert_eq!(grant_far(&mut node, at(2)), Message::Request(piece(2)));
    assert_eq!(grant_far(&mut node, at(3)), Message::Decline(Declined::Nothing));
    node.say(at(4), 2, intent(1, false));
    assert_eq!(grant_far(&mut node, at(5)), Message::Request(piece(1)));
}

#[test]
fn a_seeder_is_declined_what_the_rack_has() {
    let mut node = Solo::node(2, []);
    node.meet_node(at(0), 1, [0]);
    node.meet_at(far(), at(0), FAR, Announcement::Seeder);
    let named = |of| Message::Grant(Some(piece(of)));
    assert_eq!(node.say(at(1), FAR, named(0)), [send(FAR, Message::Decline(Declined::Nothing))]);
    assert_eq!(node.say(at(1), FAR, named(1))[0], send(FAR, Message::Request(piece(1))));
}

#[test]
fn an_intent_ends_with_its_lease_and_with_its_teller() {
    let mut node = racked(2);
    node.say(at(1), 1, intent(0, true));
    node.say(at(1), 2, intent(1, true));
    assert_eq!(grant_far(&mut node, at(400)), Message::Decline(Declined::Nothing));
    node.exchange.handle_disconnected(at(401), PeerKey(2));
    node.drain();
    assert_eq!(grant_far(&mut node, at(402)), Message::Request(piece(1)));
    assert_eq!(grant_far(&mut node, at(403)), Message::Decline(Declined::Nothing));
    assert_eq!(grant_far(&mut node, at(502)), Message::Request(piece(0)));
}

#[test]
fn an_intent_that_is_repeated_for_ever_is_not_believed_for_ever() {
    let mut node = racked(1);
    let lease = Config::default().lease_min;
    let mut now = at(0);
    for _ in 0..12 {
        node.wait(now);
        node.say(now, 1, intent(0, true));
        now = now + lease / 2;
    }
    assert_eq!(grant_far(&mut node, now), Message::Request(piece(0)));
}

#[test]
fn a_piece_that_stays_covered_without_coming_is_taken_from_afar_after_all() {
    let mut node = racked(2);
    let outputs = node.say(at(1), 1, Message::Have(vec![piece(0)]));
    assert_eq!(covered(&outputs), []);
    assert_eq!(covered(&node.wait(at(900))), [(FAR, Message::Covered(vec![piece(0)]))]);
    assert_eq!(grant_far(&mut node, at(900)), Message::Request(piece(1)));
    assert_eq!(grant_far(&mut node, at(901)), Message::Decline(Declined::Nothing));
    // It waits for one to two seconds.
    let outputs = node.wait(at(2100));
    assert!(covered(&outputs).contains(&(FAR, Message::Uncovered(vec![piece(0)]))), "{outputs:?}");
    assert_eq!(grant_far(&mut node, at(2101)), Message::Request(piece(0)));
}

#[test]
fn a_rack_that_gives_other_pieces_is_not_stuck() {
    let mut node = racked(9);
    node.say(at(1), 1, Message::Have((0..8).map(piece).collect()));
    for turn in 1..=7 {
        let now = at(turn * 900);
        node.wait(now);
        node.say(now, 1, Message::Grant(None));
        let asked = node.exchange.fetches.asked()[0].piece;
        assert_eq!(node.exchange.handle_received(now, PeerKey(1), asked), Receipt::Wanted);
        node.exchange.handle_stored(now, asked);
        node.drain();
    }
    assert_eq!(grant_far(&mut node, at(7000)), Message::Request(piece(8)));
    assert_eq!(grant_far(&mut node, at(7001)), Message::Decline(Declined::Nothing));
}

#[test]
fn a_newcomer_from_outside_is_told_what_is_covered_and_not_held() {
    let mut node = Solo::node(3, [0]);
    node.meet_node(at(0), 1, [0, 1]);
    for newcomer in [FAR, FAR + 1] {
        let outputs = node.meet_at(far(), at(1), newcomer, held(3, []));
        assert_eq!(covered(&outputs), [(newcomer, Message::Covered(vec![piece(1)]))]);
    }
}

#[test]
fn an_uploader_does_not_grant_for_the_sake_of_what_is_covered() {
    let mut node = Solo::node(2, [0, 1]);
    node.exchange.handle_connected(at(0), PeerKey(FAR), far());
    node.drain();
    node.exchange.config.uploads_in_hand = 0;
    node.say(at(0), FAR, Message::Announce(held(2, [])));
    node.say(at(1), FAR, Message::Covered(vec![piece(0), piece(1)]));
    node.exchange.config.uploads_in_hand = 4;
    node.exchange.handle_timeout(at(2));
    assert_eq!(grants(&node.drain()), []);
    assert_eq!(grants(&node.say(at(3), FAR, Message::Uncovered(vec![piece(1)]))), [(FAR, None)]);
}

#[test]
fn one_upload_leaves_the_rack_at_a_time_and_goes_before_the_others() {
    let mut node = Solo::node(9, 0..9);
    node.exchange.config.uploads_in_hand = 0;
    for peer in 0..9 {
        node.meet_node(at(0), peer, []);
    }
    for peer in FAR..FAR + 9 {
        node.meet_at(far(), at(0), peer, held(9, []));
    }
    node.exchange.config.uploads_in_hand = 4;
    node.exchange.handle_timeout(at(1));
    let granted = grants(&node.drain());
    assert!(granted[0].0 >= FAR, "{granted:?}");
    assert!(granted.len() == 4 && granted[1..].iter().all(|&(peer, _)| peer < FAR), "{granted:?}");
}

#[test]
fn a_node_alone_in_its_rack_gives_all_its_uploads_to_others() {
    let mut node = Solo::node(9, 0..9);
    for peer in FAR..FAR + 9 {
        node.meet_at(far(), at(0), peer, held(9, []));
    }
    let sending = node.exchange.neighbours.all().iter().filter(|peer| peer.upload != Upload::Idle);
    assert_eq!(sending.count(), 4);
}

#[test]
fn a_rack_with_enough_on_its_way_takes_no_more() {
    let mut node = racked(40);
    for of in 0..11 {
        node.say(at(1), 1 + of % 2, intent(of, true));
    }
    assert!(matches!(grant_far(&mut node, at(2)), Message::Request(_)));
    assert_eq!(grant_far(&mut node, at(3)), Message::Decline(Declined::Busy));
}

#[test]
fn a_word_of_what_is_nearer_within_the_rack_disconnects() {
    for message in [Message::Covered(vec![piece(0)]), Message::Uncovered(vec![piece(0)])] {
        let mut node = racked(2);
        assert!(matches!(fault_of(&node.say(at(1), 1, message)), Some(Fault::Protocol(_))));
    }
}

#[test]
fn intents_of_one_neighbour_are_bounded() {
    let mut node = racked(500);
    for of in 0..500 {
        node.say(at(1), 1, intent(of, true));
    }
    let outputs = node.wait(at(300));
    let told: usize = covered(&outputs)
        .iter()
        .map(|(_, message)| match message {
            Message::Covered(pieces) => pieces.len(),
            _ => 0,
        })
        .sum();
    assert!((1..100).contains(&told), "{told}");
}
