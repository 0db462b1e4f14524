//! What a seeder gives, to whom, and what it gives again.

use super::*;

#[test]
fn a_seeder_gives_a_declined_piece_to_the_next_neighbour() {
    let mut seeder = Solo::seeder(1);
    assert_eq!(grants(&seeder.meet_node(at(0), 1, [])), [(1, Some(piece(0)))]);
    assert_eq!(grants(&seeder.meet_node(at(0), 2, [])), []);
    let outputs = seeder.say(at(1), 1, Message::Decline(Declined::Busy));
    assert_eq!(grants(&outputs), [(2, Some(piece(0)))]);
}

#[test]
fn a_seeder_gives_a_piece_again_that_was_cancelled_before_it_left() {
    let mut seeder = Solo::seeder(1);
    seeder.meet_node(at(0), 1, []);
    seeder.meet_node(at(0), 2, []);
    seeder.say(at(1), 1, Message::Request(piece(0)));
    seeder.say(at(2), 1, Message::Cancel(piece(0)));
    seeder.exchange.handle_unsent(at(3), PeerKey(1), piece(0));
    assert_eq!(grants(&seeder.drain()), [(2, Some(piece(0)))]);
}

#[test]
fn a_seeder_gives_only_what_no_neighbour_shows() {
    let mut seeder = Solo::seeder(8);
    seeder.meet_node(at(0), 1, 0..7);
    let named: Vec<_> = grants(&seeder.meet_node(at(0), 2, [])).into_iter().map(|(_, named)| named).collect();
    assert_eq!(named, [], "the one piece that nobody shows was granted to the first");
}

#[test]
fn a_seeder_repairs_a_piece_whose_only_holder_died() {
    let mut seeder = Solo::seeder(1);
    seeder.meet_node(at(0), 1, []);
    seeder.meet_node(at(0), 2, []);
    seeder.say(at(1), 1, Message::Request(piece(0)));
    seeder.exchange.handle_sent(at(41), PeerKey(1), piece(0));
    seeder.drain();
    let outputs = seeder.say(at(42), 1, Message::Have(vec![piece(0)]));
    assert_eq!(outputs, [Output::Event(Event::Replicated)]);
    assert_eq!(seeder.exchange.copies_elsewhere(), 1);
    seeder.exchange.handle_disconnected(at(50), PeerKey(1));
    assert_eq!(seeder.exchange.copies_elsewhere(), 0);
    assert_eq!(grants(&seeder.wait(at(2000))), [], "another neighbour may have it soon");
    assert_eq!(grants(&seeder.wait(at(2900))), [(2, Some(piece(0)))]);
    seeder.say(at(2901), 2, Message::Request(piece(0)));
    assert_eq!(
        seeder.say(at(2950), 2, Message::Have(vec![piece(0)])),
        [Output::Event(Event::Replicated)],
        "said again after the change"
    );
}

#[test]
fn what_one_neighbour_shows_and_does_not_spread_is_given_all_the_same() {
    let mut seeder = Solo::seeder(3);
    seeder.meet_node(at(0), 1, [0, 1, 2]);
    seeder.meet_node(at(0), 2, []);
    seeder.meet_node(at(0), 3, []);
    assert_eq!(grants(&seeder.drain()), [], "it may spread from there");
    // One piece does, within the time that is a given one's, too.
    seeder.say(at(2000), 2, Message::Have(vec![piece(0)]));
    assert_eq!(grants(&seeder.wait(at(2400))), []);
    let named: BTreeSet<_> =
        grants(&seeder.wait(at(2600))).into_iter().filter_map(|(_, piece)| piece).collect();
    assert_eq!(named, BTreeSet::from([piece(1), piece(2)]));
}

#[test]
fn a_silent_seeder_still_feeds_the_starved() {
    let mut seeder = Solo::seeder(2);
    seeder.meet_node(at(0), 1, []);
    seeder.meet_node(at(0), 2, []);
    for peer in 1..=2 {
        let named = match seeder.exchange.neighbours.all()[peer as usize - 1].upload {
            Upload::Granted { piece: Some(piece), .. } => piece,
            upload => panic!("{upload:?}"),
        };
        seeder.say(at(1), peer, Message::Request(named));
        seeder.exchange.handle_sent(at(41), PeerKey(peer), named);
        seeder.say(at(42), peer, Message::Have(vec![named]));
    }
    // The two know only the seeder, so nothing else ever comes to them.
    assert_eq!(grants(&seeder.wait(at(2900))), []);
    let fed: BTreeSet<_> = grants(&seeder.wait(at(3600))).into_iter().map(|(peer, _)| peer).collect();
    assert_eq!(fed, BTreeSet::from([1, 2]));
}

#[test]
fn a_seeder_passes_over_a_slow_neighbour() {
    let mut seeder = Solo::seeder(120);
    for peer in 0..6 {
        seeder.meet_node(at(0), peer, []);
    }
    let mut under_way: Vec<(u64, u32, PieceIndex)> = Vec::new();
    let mut given = [0; 6];
    let mut outputs: Vec<_> = (0..6)
        .filter_map(|slot| match seeder.exchange.neighbours.all()[slot].upload {
            Upload::Granted { piece: Some(piece), .. } => {
                Some((seeder.exchange.neighbours.all()[slot].key.0, piece))
            }
            _ => None,
        })
        .collect();
    for now in 0..2000 {
        for (peer, named) in std::mem::take(&mut outputs) {
            seeder.say(at(now), peer, Message::Request(named));
            given[peer as usize] += 1;
            under_way.push((now + if peer == 3 { 900 } else { 40 }, peer, named));
        }
        let (done, left) = under_way.iter().partition(|&&(end, ..)| end <= now);
        under_way = left;
        let done: Vec<(u64, u32, PieceIndex)> = done;
        for (_, peer, piece) in done {
            seeder.exchange.handle_sent(at(now), PeerKey(peer), piece);
            let mut said = seeder.drain();
            said.extend(seeder.say(at(now), peer, Message::Have(vec![piece])));
            outputs.extend(grants(&said).into_iter().map(|(peer, named)| (peer, named.unwrap())));
        }
        outputs.extend(grants(&seeder.wait(at(now))).into_iter().map(|(peer, named)| (peer, named.unwrap())));
    }
    assert_eq!(given.iter().sum::<i32>(), 120);
    assert_eq!(given[3], 1, "{given:?}");
}
