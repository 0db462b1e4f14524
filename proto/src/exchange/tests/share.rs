//! An exchange among others on one uplink.

use super::*;

#[test]
fn uploads_keep_to_a_share_and_grow_with_it() {
    let mut node = Solo::node(8, 0..8);
    node.exchange.handle_upload_share(at(0), 1);
    for peer in 0..12 {
        node.meet_node(at(0), peer, []);
    }
    let granted =
        |node: &Solo| node.exchange.neighbours.all().iter().filter(|peer| peer.upload.holds_slot()).count();
    assert_eq!(granted(&node), 1);
    node.exchange.handle_upload_share(at(1), 3);
    assert_eq!(grants(&node.drain()).len(), 2);
    // What is in hand is finished, and nothing is begun in its place.
    node.exchange.handle_upload_share(at(2), 1);
    let busy = |node: &Solo| {
        let mut peers = node.exchange.neighbours.all().iter();
        peers.find(|peer| peer.upload.holds_slot()).map(|peer| peer.key.0).unwrap()
    };
    for left in [2, 1, 1] {
        let peer = busy(&node);
        node.say(at(3), peer, Message::Decline(Declined::Busy));
        assert_eq!(granted(&node), left);
    }
    node.exchange.handle_upload_share(at(4), 100);
    assert_eq!(granted(&node), Config::default().uploads_in_hand, "never more than is configured");
}

#[test]
fn who_has_nothing_to_give_wants_no_share() {
    let mut node = Solo::node(2, [0]);
    assert!(!node.exchange.wants_uploads());
    node.meet_node(at(0), 1, [0]);
    assert!(!node.exchange.wants_uploads());
    node.meet_node(at(0), 2, []);
    assert!(node.exchange.wants_uploads());
}

#[test]
fn a_seeder_keeps_to_its_share_too() {
    let mut seeder = Solo::seeder(8);
    seeder.exchange.handle_upload_share(at(0), 2);
    let given: usize = (0..6).map(|peer| grants(&seeder.meet_node(at(0), peer, [])).len()).sum();
    assert_eq!(given, 2);
}
