//! Racks, and rows of racks, of many exchanges.

use super::*;

/// A seeder outside, and `racks` of `size` nodes each of which knows its rack and `outside` others.
struct Room {
    net: Net,
    seeder: usize,
    racks: Vec<Vec<usize>>,
}

impl Room {
    fn new(pieces: usize, labels: &[&str], size: usize, outside: usize) -> Self {
        let mut net = Net::new(pieces);
        let seeder = net.seeder();
        let mut racks = Vec::new();
        for label in labels {
            let nodes = net.nodes(size);
            for &node in &nodes {
                net.zones.insert(node, label.parse().unwrap());
            }
            net.connect_all(&nodes);
            racks.push(nodes);
        }
        let mut room = Self { net, seeder, racks };
        for (at, rack) in room.racks.clone().iter().enumerate() {
            room.net.connect(seeder, rack[0]);
            room.net.connect(seeder, rack[1]);
            for (turn, &node) in rack.iter().enumerate() {
                for step in 0..outside {
                    let other = (at + 1 + step) % room.racks.len();
                    let there = room.racks[other][(turn * 7 + step) % size];
                    if other != at {
                        room.net.connect(node, there);
                    }
                }
            }
        }
        room
    }

    /// Pieces that came to these hosts from that far or farther.
    fn taken(&self, hosts: &[usize], distance: usize) -> u32 {
        let far =
            self.net.arrived.iter().filter(|((host, from), _)| hosts.contains(host) && *from >= distance);
        far.map(|(_, count)| count).sum()
    }
}

#[test]
fn each_rack_takes_each_piece_about_once() {
    let mut room = Room::new(60, &["a", "b", "c", "d"], 6, 3);
    room.net.finish();
    for rack in &room.racks {
        let taken = room.taken(rack, 1);
        assert!((60..=75).contains(&taken), "{taken} pieces into a rack of six");
    }
    assert_eq!(room.net.pieces_sent[room.seeder], 60);
    assert_eq!(room.net.duplicates, 0);
}

#[test]
fn each_row_takes_each_piece_about_once_and_so_does_each_of_its_racks() {
    let mut room = Room::new(40, &["x/a", "x/b", "y/a", "y/b"], 6, 3);
    room.net.finish();
    for rows in room.racks.chunks(2) {
        let taken = room.taken(&rows.concat(), 2);
        assert!((40..=50).contains(&taken), "{taken} pieces into a row");
    }
    for rack in &room.racks {
        let taken = room.taken(rack, 1);
        assert!((40..=50).contains(&taken), "{taken} pieces into a rack");
    }
}

#[test]
fn a_rack_whose_fetchers_die_fetches_again() {
    let mut room = Room::new(40, &["a", "b", "c"], 6, 2);
    for sent in [10, 20, 30] {
        let seeder = room.seeder;
        room.net.run_until(|net| net.pieces_sent[seeder] >= sent);
        let victim = room.racks[1].remove(1);
        room.net.kill(victim);
    }
    room.net.finish();
}

#[test]
fn a_rack_whose_holders_are_stuck_is_not_starved() {
    let mut room = Room::new(30, &["a", "b", "c"], 6, 3);
    // They take what they are given, and it never leaves them.
    let stuck: Vec<usize> = room.racks[1].drain(..3).collect();
    room.net.frozen.extend(&stuck);
    room.net.finish();
    assert!(room.net.now < at(120_000), "it took until {:?}", room.net.now);
}

#[test]
fn a_rack_in_which_only_the_stuck_hold_a_piece_takes_it_again_and_not_often() {
    let mut room = Room::new(20, &["a", "b"], 6, 3);
    let stuck = room.net.add(Role::Node, Bitfield::full(20));
    room.net.zones.insert(stuck, "b".parse().unwrap());
    room.net.frozen.insert(stuck);
    for node in room.racks[1].clone() {
        room.net.connect(stuck, node);
    }
    room.net.finish();
    let taken = room.taken(&room.racks[1], 1);
    assert!((20..=40).contains(&taken), "{taken} pieces into the rack");
}

#[test]
fn a_rack_with_one_link_to_the_outside_completes() {
    let mut room = Room::new(30, &["a", "b"], 6, 2);
    for &node in &room.racks[1][1..] {
        let outside: Vec<PeerKey> = room
            .net
            .links
            .iter()
            .filter(|((host, _), (other, _))| *host == node && !room.racks[1].contains(other))
            .map(|((_, key), _)| *key)
            .collect();
        outside.into_iter().for_each(|key| room.net.disconnect(node, key));
    }
    room.net.finish();
}
