//! Scripts under virtual time: here, in `racks`, in `seeding` and in `unwanted` one exchange with the test as its
//! neighbours, in `swarm` many exchanges.

mod famine;
mod promises;
mod racks;
mod seeding;
mod share;
mod swarm;
mod unwanted;

use std::collections::BTreeSet;

use super::*;
use crate::cid::Cid;
use crate::image::pieces::Piece;

fn list(pieces: usize) -> Arc<PieceList> {
    let piece = |at: usize| Piece { cid: Cid::of(&at.to_le_bytes()), raw_bytes: 1 << 20 };
    Arc::new(PieceList::new((0..pieces).map(piece).collect()).unwrap())
}

fn piece(index: u32) -> PieceIndex {
    PieceIndex::new(index)
}

fn set(len: usize, pieces: impl IntoIterator<Item = u32>) -> Bitfield {
    let mut set = Bitfield::empty(len);
    for index in pieces {
        set.insert(piece(index));
    }
    set
}

fn at(millis: u64) -> Time {
    Time::from_nanos(millis * 1_000_000)
}

/// One exchange whose every output the test sees.
struct Solo {
    exchange: Exchange,
}

impl Solo {
    fn node(pieces: usize, held: impl IntoIterator<Item = u32>) -> Self {
        Self::new(Role::Node, pieces, set(pieces, held))
    }

    fn seeder(pieces: usize) -> Self {
        Self::new(Role::Seeder, pieces, Bitfield::full(pieces))
    }

    fn new(role: Role, pieces: usize, held: Bitfield) -> Self {
        Self { exchange: Exchange::new(Config::default(), role, list(pieces), held, 1) }
    }

    /// Connects a peer that announces `announcement`, and says what the exchange does about it.
    fn meet(&mut self, now: Time, peer: u32, announcement: Announcement) -> Vec<Output> {
        self.meet_at(Distance::NONE, now, peer, announcement)
    }

    fn meet_at(
        &mut self,
        distance: Distance,
        now: Time,
        peer: u32,
        announcement: Announcement,
    ) -> Vec<Output> {
        self.exchange.handle_connected(now, PeerKey(peer), distance);
        let mut outputs = self.drain();
        outputs.extend(self.say(now, peer, Message::Announce(announcement)));
        outputs
    }

    fn meet_node(&mut self, now: Time, peer: u32, held: impl IntoIterator<Item = u32>) -> Vec<Output> {
        let held = set(self.exchange.held().len(), held);
        self.meet(now, peer, Announcement::Held(held))
    }

    fn say(&mut self, now: Time, peer: u32, message: Message) -> Vec<Output> {
        self.exchange.handle_message(now, PeerKey(peer), message);
        self.drain()
    }

    fn drain(&mut self) -> Vec<Output> {
        self.exchange.assert_invariants();
        std::iter::from_fn(|| self.exchange.poll_output()).collect()
    }

    /// Lets time pass until `until`, following every timeout.
    fn wait(&mut self, until: Time) -> Vec<Output> {
        let mut outputs = Vec::new();
        while let Some(timeout) = self.exchange.poll_timeout().filter(|&timeout| timeout <= until) {
            self.exchange.handle_timeout(timeout);
            outputs.extend(self.drain());
            assert!(
                self.exchange.poll_timeout().is_none_or(|next| next > timeout),
                "a timeout that never passes"
            );
        }
        outputs
    }
}

fn send(peer: u32, message: Message) -> Output {
    Output::Send { peer: PeerKey(peer), message }
}

fn fault_of(outputs: &[Output]) -> Option<Fault> {
    outputs.iter().find_map(|output| match output {
        Output::Disconnect { reason, .. } => Some(*reason),
        _ => None,
    })
}

fn grants(outputs: &[Output]) -> Vec<(u32, Option<PieceIndex>)> {
    let grant = |output: &Output| match output {
        Output::Send { peer, message: Message::Grant(named) } => Some((peer.0, *named)),
        _ => None,
    };
    outputs.iter().filter_map(grant).collect()
}

#[test]
fn first_message_is_the_announcement() {
    let mut node = Solo::node(3, [1]);
    let outputs = node.meet_node(at(0), 7, []);
    assert_eq!(outputs[0], send(7, Message::Announce(Announcement::Held(set(3, [1])))));
}

#[test]
fn a_seeder_hides_its_bitfield() {
    let outputs = Solo::seeder(3).meet_node(at(0), 7, []);
    assert_eq!(outputs[0], send(7, Message::Announce(Announcement::Seeder)));
}

#[test]
fn a_grant_is_answered_with_the_rarest_missing_piece() {
    let mut node = Solo::node(3, [0]);
    node.meet_node(at(0), 1, [0, 1, 2]);
    node.meet_node(at(0), 2, [0, 2]);
    assert_eq!(node.say(at(1), 1, Message::Grant(None)), [send(1, Message::Request(piece(1)))]);
}

#[test]
fn a_grant_with_nothing_missing_behind_it_is_declined() {
    let mut node = Solo::node(3, [0]);
    node.meet_node(at(0), 1, [0]);
    let outputs = node.say(at(1), 1, Message::Grant(None));
    assert_eq!(outputs, [send(1, Message::Decline(Declined::Nothing))]);
}

#[test]
fn a_sixth_coming_piece_is_declined_as_busy() {
    let mut node = Solo::node(20, []);
    for peer in 0..6 {
        node.meet_node(at(0), peer, 0..20);
    }
    for peer in 0..5 {
        let outputs = node.say(at(1), peer, Message::Grant(None));
        assert!(matches!(outputs[..], [Output::Send { message: Message::Request(_), .. }]), "{outputs:?}");
    }
    assert_eq!(node.say(at(1), 5, Message::Grant(None)), [send(5, Message::Decline(Declined::Busy))]);
}

#[test]
fn slow_sources_do_not_make_a_node_busy() {
    let mut node = Solo::node(20, []);
    for peer in 0..6 {
        node.meet_node(at(0), peer, 0..20);
    }
    node.exchange.down.sample(Duration::from_millis(40));
    for peer in 0..5 {
        node.say(at(1), peer, Message::Grant(None));
    }
    node.wait(at(300));
    let outputs = node.say(at(300), 5, Message::Grant(None));
    assert!(matches!(outputs[..], [Output::Send { message: Message::Request(_), .. }]), "{outputs:?}");
}

#[test]
fn a_slow_disk_makes_a_node_decline() {
    let mut node = Solo::node(40, []);
    node.meet_node(at(0), 1, 0..40);
    for round in 0..Config::default().writing_max {
        let now = at(round as u64);
        let outputs = node.say(now, 1, Message::Grant(None));
        let [Output::Send { message: Message::Request(piece), .. }] = outputs[..] else {
            panic!("{outputs:?}")
        };
        assert_eq!(node.exchange.handle_received(now, PeerKey(1), piece), Receipt::Wanted);
    }
    assert_eq!(node.say(at(99), 1, Message::Grant(None)), [send(1, Message::Decline(Declined::Busy))]);
}

#[test]
fn an_uploader_has_at_most_four_in_hand_and_one_per_neighbour() {
    let mut node = Solo::node(9, 0..9);
    let mut granted = BTreeSet::new();
    for peer in 0..10 {
        let outputs = node.meet_node(at(0), peer, []);
        granted.extend(grants(&outputs).into_iter().map(|(peer, _)| peer));
    }
    assert_eq!(granted.len(), 4);
}

#[test]
fn the_less_complete_of_two_neighbours_is_granted() {
    for seed in 0..8 {
        let mut node = Solo::node(9, 0..9);
        node.exchange.rng = ChaCha8Rng::seed_from_u64(seed);
        node.exchange.config.uploads_in_hand = 0;
        node.meet_node(at(0), 1, 1..9);
        node.meet_node(at(0), 2, [1]);
        node.exchange.config.uploads_in_hand = 1;
        node.exchange.handle_timeout(at(1));
        assert_eq!(grants(&node.drain()), [(2, None)]);
    }
}

#[test]
fn a_declined_uploader_waits_longer_each_time_and_never_all_alike() {
    let mut node = Solo::node(9, 0..9);
    assert_eq!(grants(&node.meet_node(at(0), 1, [])), [(1, None)]);
    let mut waits = Vec::new();
    let mut now = at(0);
    for _ in 0..5 {
        assert_eq!(node.say(now, 1, Message::Decline(Declined::Busy)), []);
        let again = node.exchange.neighbours.all()[0].not_before;
        waits.push(again - now);
        now = again;
        let outputs = node.wait(now);
        assert_eq!(grants(&outputs), [(1, None)]);
    }
    let retry = percent(Config::default().block_time_start, Config::default().retry_percent);
    for (wait, doublings) in waits.iter().zip([0, 1, 2, 3, 3]) {
        let usual = retry * (1 << doublings);
        assert!(*wait >= usual / 2 && *wait <= usual * 3 / 2, "{waits:?}");
    }
    assert_ne!(waits[3], waits[4]);
}

#[test]
fn a_sated_neighbour_is_granted_to_again_with_the_next_piece_it_lacks() {
    let mut node = Solo::node(3, [0]);
    assert_eq!(grants(&node.meet_node(at(0), 1, [])), [(1, None)]);
    node.meet_node(at(0), 2, [0, 1, 2]);
    node.say(at(0), 1, Message::Decline(Declined::Nothing));
    node.say(at(1), 2, Message::Grant(None));
    let asked = node.exchange.fetches.asked()[0].piece;
    assert_eq!(node.exchange.handle_received(at(2), PeerKey(2), asked), Receipt::Wanted);
    node.exchange.handle_stored(at(2), asked);
    assert_eq!(grants(&node.drain()), [(1, None)]);
}

#[test]
fn a_sated_neighbour_is_left_alone_until_a_request_may_be_overdue() {
    let mut node = Solo::node(3, [0]);
    node.meet_node(at(0), 1, []);
    node.say(at(0), 1, Message::Decline(Declined::Nothing));
    let wait = percent(Config::default().block_time_start, Config::default().sated_percent);
    let wait_ms = u64::try_from(wait.as_millis()).unwrap();
    assert_eq!(grants(&node.wait(at(wait_ms / 2 - 1))), []);
    assert_eq!(grants(&node.wait(at(wait_ms * 3 / 2 + 1))), [(1, None)]);
}

#[test]
fn an_unanswered_grant_frees_its_slot_and_is_not_repeated() {
    let mut node = Solo::node(9, 0..9);
    for peer in 0..5 {
        node.meet_node(at(0), peer, []);
    }
    let silent: Vec<_> = node
        .exchange
        .neighbours
        .all()
        .iter()
        .filter(|peer| peer.upload != Upload::Idle)
        .map(|peer| peer.key)
        .collect();
    assert_eq!(silent.len(), 4);
    let later = grants(&node.wait(at(3000)));
    assert_eq!(later.len(), 1, "{later:?}");
    assert!(!silent.contains(&PeerKey(later[0].0)));
    // A late answer is still good.
    let outputs = node.say(at(3001), silent[0].0, Message::Request(piece(2)));
    assert!(outputs.contains(&Output::SendPiece { peer: silent[0], piece: piece(2) }));
}

#[test]
fn haves_of_a_burst_leave_together() {
    let mut node = Solo::node(9, []);
    node.meet_node(at(0), 1, 0..9);
    let mut haves = Vec::new();
    let mut collect = |outputs: Vec<Output>| {
        haves.extend(outputs.into_iter().filter_map(|output| match output {
            Output::Send { message: Message::Have(pieces), .. } => Some(pieces.len()),
            _ => None,
        }));
    };
    for _ in 0..4 {
        collect(node.say(at(50), 1, Message::Grant(None)));
    }
    let asked: Vec<_> = node.exchange.fetches.asked().iter().map(|fetch| fetch.piece).collect();
    for piece in asked {
        assert_eq!(node.exchange.handle_received(at(90), PeerKey(1), piece), Receipt::Wanted);
        node.exchange.handle_stored(at(90), piece);
        collect(node.drain());
    }
    collect(node.wait(at(200)));
    assert_eq!(haves, [1, 3]);
}

#[test]
fn a_piece_lost_before_it_was_announced_never_is() {
    let mut node = Solo::node(9, []);
    node.meet_node(at(0), 1, 0..9);
    for _ in 0..2 {
        node.say(at(50), 1, Message::Grant(None));
    }
    let asked: Vec<_> = node.exchange.fetches.asked().iter().map(|fetch| fetch.piece).collect();
    for &piece in &asked {
        assert_eq!(node.exchange.handle_received(at(90), PeerKey(1), piece), Receipt::Wanted);
        node.exchange.handle_stored(at(90), piece);
    }
    node.drain();
    node.exchange.handle_lost(at(91), asked[1]);
    node.drain();
    let later = node.wait(at(500));
    assert!(!later.contains(&send(1, Message::Have(vec![asked[1]]))), "{later:?}");
}

#[test]
fn a_stalled_request_is_cancelled_and_asked_elsewhere() {
    let mut node = Solo::node(1, []);
    node.meet_node(at(0), 1, [0]);
    node.meet_node(at(0), 2, [0]);
    node.say(at(0), 1, Message::Grant(None));
    node.exchange.handle_progress(at(2000), PeerKey(1), piece(0));
    assert!(!node.wait(at(4900)).contains(&send(1, Message::Cancel(piece(0)))), "it was alive at 2 s");
    assert!(node.wait(at(5300)).contains(&send(1, Message::Cancel(piece(0)))));
    assert_eq!(node.say(at(5400), 2, Message::Grant(None)), [send(2, Message::Request(piece(0)))]);
    // The first one wakes up after all: its bytes are as good.
    assert_eq!(node.exchange.handle_received(at(5500), PeerKey(1), piece(0)), Receipt::Wanted);
    node.exchange.handle_stored(at(5501), piece(0));
    assert!(node.drain().contains(&send(2, Message::Cancel(piece(0)))));
    assert_eq!(node.exchange.handle_received(at(5600), PeerKey(2), piece(0)), Receipt::Duplicate);
    assert_eq!(fault_of(&node.drain()), None);
}

#[test]
fn endgame_asks_for_one_duplicate_and_only_of_an_old_request() {
    let mut node = Solo::node(1, []);
    for peer in 1..=3 {
        node.meet_node(at(0), peer, [0]);
    }
    node.exchange.down.sample(Duration::from_millis(40));
    node.say(at(0), 1, Message::Grant(None));
    let nothing = |peer| [send(peer, Message::Decline(Declined::Nothing))];
    assert_eq!(node.say(at(50), 2, Message::Grant(None)), nothing(2));
    assert_eq!(node.say(at(500), 2, Message::Grant(None)), [send(2, Message::Request(piece(0)))]);
    assert_eq!(node.say(at(999), 3, Message::Grant(None)), nothing(3));
    assert_eq!(node.exchange.handle_received(at(1000), PeerKey(2), piece(0)), Receipt::Wanted);
    // Arrives while the first is being verified.
    assert_eq!(node.exchange.handle_received(at(1001), PeerKey(1), piece(0)), Receipt::Duplicate);
    node.exchange.handle_stored(at(1002), piece(0));
    assert!(node.drain().contains(&Output::Event(Event::Complete)));
}

#[test]
fn endgame_waits_for_its_least_age_however_fast_the_transfers() {
    let mut node = Solo::node(1, []);
    node.exchange.config.endgame_min = Duration::from_secs(1);
    node.meet_node(at(0), 1, [0]);
    node.meet_node(at(0), 2, [0]);
    node.exchange.down.sample(Duration::from_millis(4));
    node.say(at(0), 1, Message::Grant(None));
    assert_eq!(node.say(at(999), 2, Message::Grant(None)), [send(2, Message::Decline(Declined::Nothing))]);
    assert_eq!(node.say(at(1001), 2, Message::Grant(None)), [send(2, Message::Request(piece(0)))]);
}

#[test]
fn a_dead_source_gives_its_request_back() {
    let mut node = Solo::node(1, []);
    node.meet_node(at(0), 1, [0]);
    node.meet_node(at(0), 2, [0]);
    node.say(at(0), 1, Message::Grant(None));
    node.exchange.handle_disconnected(at(1), PeerKey(1));
    assert_eq!(node.say(at(2), 2, Message::Grant(None)), [send(2, Message::Request(piece(0)))]);
    // Bytes that were in the driver's hands already are no fault of anyone's.
    assert_eq!(node.exchange.handle_received(at(3), PeerKey(1), piece(0)), Receipt::Duplicate);
}

#[test]
fn a_withdrawn_piece_is_asked_elsewhere_and_may_still_arrive() {
    let mut node = Solo::node(2, []);
    node.meet_node(at(0), 1, [0]);
    node.meet_node(at(0), 2, [0]);
    node.say(at(0), 1, Message::Grant(None));
    node.say(at(1), 1, Message::Withdraw(piece(0)));
    assert_eq!(node.exchange.waiting_for(9), [(piece(1), vec![]), (piece(0), vec![PeerKey(2)])]);
    assert_eq!(node.say(at(2), 2, Message::Grant(None)), [send(2, Message::Request(piece(0)))]);
    assert_eq!(node.exchange.handle_received(at(3), PeerKey(1), piece(0)), Receipt::Wanted);
}

#[test]
fn a_lost_piece_is_withdrawn_and_a_request_that_crosses_it_is_no_fault() {
    let mut node = Solo::node(2, [0, 1]);
    node.meet_node(at(0), 1, []);
    node.exchange.handle_lost(at(1), piece(0));
    assert_eq!(node.drain(), [send(1, Message::Withdraw(piece(0)))]);
    let outputs = node.say(at(2), 1, Message::Request(piece(0)));
    assert_eq!(fault_of(&outputs), None);
    assert_eq!(grants(&outputs), [(1, None)], "the slot is free again");
    let outputs = node.say(at(3), 1, Message::Request(piece(1)));
    assert_eq!(outputs, [Output::SendPiece { peer: PeerKey(1), piece: piece(1) }]);
    // Lost while it is being read for that send: the upload is over, and a late word of it is ignored.
    node.exchange.handle_lost(at(4), piece(1));
    node.exchange.handle_sent(at(5), PeerKey(1), piece(1));
    assert_eq!(node.drain(), [send(1, Message::Withdraw(piece(1)))]);
}

#[test]
fn a_cancelled_send_need_not_begin() {
    let mut node = Solo::node(1, [0]);
    node.meet_node(at(0), 1, []);
    node.say(at(1), 1, Message::Request(piece(0)));
    assert!(node.exchange.is_send_wanted(PeerKey(1), piece(0)));
    node.say(at(2), 1, Message::Cancel(piece(0)));
    assert!(!node.exchange.is_send_wanted(PeerKey(1), piece(0)));
    node.exchange.handle_unsent(at(3), PeerKey(1), piece(0));
    assert_eq!(grants(&node.drain()), [(1, None)]);
    // A cancel that comes too late for anything is no fault.
    assert_eq!(fault_of(&node.say(at(4), 1, Message::Cancel(piece(0)))), None);
}

#[test]
fn a_corrupt_piece_is_missing_again_and_its_sender_gone() {
    let mut node = Solo::node(1, []);
    node.meet_node(at(0), 1, [0]);
    node.meet_node(at(0), 2, [0]);
    node.say(at(0), 1, Message::Grant(None));
    assert_eq!(node.exchange.handle_received(at(1), PeerKey(1), piece(0)), Receipt::Wanted);
    node.exchange.handle_corrupt(at(2), piece(0));
    let outputs = node.drain();
    assert_eq!(fault_of(&outputs), Some(Fault::Corrupt));
    assert!(outputs.contains(&Output::Event(Event::Corrupt { piece: piece(0), from: PeerKey(1) })));
    assert_eq!(node.say(at(3), 2, Message::Grant(None)), [send(2, Message::Request(piece(0)))]);
}

#[test]
fn a_dropped_piece_is_missing_again_and_nobody_is_blamed() {
    let mut node = Solo::node(1, []);
    node.meet_node(at(0), 1, [0]);
    node.say(at(0), 1, Message::Grant(None));
    assert_eq!(node.exchange.handle_received(at(1), PeerKey(1), piece(0)), Receipt::Wanted);
    assert_eq!(node.say(at(2), 1, Message::Grant(None)), [send(1, Message::Decline(Declined::Nothing))]);
    node.exchange.handle_dropped(at(3), piece(0));
    assert_eq!(node.drain(), []);
    assert_eq!(node.say(at(4), 1, Message::Grant(None)), [send(1, Message::Request(piece(0)))]);
    // What is not being written cannot be dropped.
    node.exchange.handle_dropped(at(5), piece(0));
    assert_eq!(node.exchange.handle_received(at(6), PeerKey(1), piece(0)), Receipt::Wanted);
}

#[test]
fn what_the_protocol_forbids_disconnects() {
    let selective = Announcement::Selective { held: Bitfield::empty(2), unwanted: Bitfield::empty(9) };
    let forbidden: [(&str, &[Message]); 9] = [
        ("unwanted pieces of another list", &[Message::Announce(selective)]),
        ("a have before the announcement", &[Message::Have(vec![PieceIndex::new(0)])]),
        (
            "a second announcement",
            &[Message::Announce(Announcement::Seeder), Message::Announce(Announcement::Seeder)],
        ),
        ("a bitfield of another list", &[Message::Announce(Announcement::Held(Bitfield::empty(9)))]),
        (
            "a request without a grant",
            &[Message::Announce(Announcement::Held(Bitfield::full(2))), Message::Request(PieceIndex::new(0))],
        ),
        (
            "a decline without a grant",
            &[Message::Announce(Announcement::Held(Bitfield::full(2))), Message::Decline(Declined::Busy)],
        ),
        (
            "a grant of a piece it does not hold",
            &[
                Message::Announce(Announcement::Held(Bitfield::empty(2))),
                Message::Grant(Some(PieceIndex::new(1))),
            ],
        ),
        (
            "a second answer to one grant",
            &[
                Message::Announce(Announcement::Held(Bitfield::empty(2))),
                Message::Request(PieceIndex::new(0)),
                Message::Request(PieceIndex::new(0)),
            ],
        ),
        (
            "a request and a decline of one grant",
            &[
                Message::Announce(Announcement::Held(Bitfield::empty(2))),
                Message::Request(PieceIndex::new(0)),
                Message::Decline(Declined::Busy),
            ],
        ),
    ];
    for (what, messages) in forbidden {
        let mut node = Solo::node(2, [0]);
        node.exchange.handle_connected(at(0), PeerKey(1), Distance::NONE);
        let (last, before) = messages.split_last().unwrap();
        for message in before {
            assert_eq!(fault_of(&node.say(at(1), 1, message.clone())), None, "{what}, too early");
        }
        let fault = fault_of(&node.say(at(2), 1, last.clone()));
        assert!(matches!(fault, Some(Fault::Protocol(_))), "{what}: {fault:?}");
        assert_eq!(node.say(at(3), 1, Message::Grant(None)), [], "a peer that is gone is not answered");
        node.exchange.handle_disconnected(at(4), PeerKey(1));
        assert_eq!(node.drain(), []);
    }
}

#[test]
fn an_unrequested_piece_disconnects() {
    let mut node = Solo::node(2, []);
    node.meet_node(at(0), 1, [0, 1]);
    assert_eq!(node.exchange.handle_received(at(1), PeerKey(1), piece(0)), Receipt::Unrequested);
    assert_eq!(fault_of(&node.drain()), Some(Fault::Unrequested));
}

#[test]
fn a_named_grant_must_be_taken_as_named() {
    let mut seeder = Solo::seeder(4);
    let outputs = seeder.meet_node(at(0), 1, []);
    let [(1, Some(named))] = grants(&outputs)[..] else { panic!("{outputs:?}") };
    let other = piece((named.get() + 1) % 4);
    assert!(fault_of(&seeder.say(at(1), 1, Message::Request(other))).is_some());
}

#[test]
fn nothing_to_do_is_nothing_to_wait_for() {
    let mut node = Solo::node(4, 0..4);
    node.meet_node(at(0), 1, 0..4);
    assert_eq!(node.exchange.poll_timeout(), None);
}

#[test]
fn frozen_receivers_do_not_keep_an_uploader_from_the_others() {
    // Receivers that take a grant and then let the transfer hang, as many as an uploader has slots.
    let mut holder = Solo::node(40, 0..40);
    for peer in 0..5 {
        holder.meet_node(at(0), peer, []);
    }
    holder.exchange.up.sample(Duration::from_millis(40));
    let mut idle = None;
    for peer in 0..5 {
        match holder.exchange.neighbours.peer(PeerKey(peer)).unwrap().upload {
            Upload::Granted { .. } => drop(holder.say(at(1), peer, Message::Request(piece(0)))),
            _ => idle = Some(peer),
        }
    }
    let idle = idle.unwrap();
    assert_eq!(grants(&holder.wait(at(500))), [(idle, None)]);
}
