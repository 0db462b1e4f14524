//! One neighbourhood, driven by hand.

use super::dialing::FAILURES_MAX;
use super::*;

const SEEDER: u32 = 1000;
const OWN: u32 = 1001;

struct Side {
    side: Neighbourhood<u32, u16>,
    now: Time,
}

impl Side {
    fn new(config: Config, zone: &str, bootstrap: &[u32]) -> Self {
        let side = Neighbourhood::new(config, OWN, zone.parse().unwrap(), bootstrap.to_vec(), 1);
        Self { side, now: Time::ZERO }
    }

    fn node() -> Self {
        Self::new(Config::node(), "", &[])
    }

    fn outputs(&mut self) -> Vec<Output<u32, u16>> {
        self.side.assert_invariants();
        std::iter::from_fn(|| self.side.poll_output()).collect()
    }

    fn dials(&mut self) -> Vec<u32> {
        let dial = |output| if let Output::Dial { peer, .. } = output { Some(peer) } else { None };
        self.outputs().into_iter().filter_map(dial).collect()
    }

    fn wait(&mut self, time: Duration) {
        let end = self.now + time;
        while let Some(due) = self.side.poll_timeout().filter(|due| *due <= end) {
            self.now = self.now.max(due);
            self.side.handle_timeout(self.now);
        }
        self.now = end;
    }

    fn tell(&mut self, peers: impl IntoIterator<Item = u32>) {
        let contact = |id| Contact { id, addresses: vec![1], zone: Zone::UNKNOWN };
        self.side.handle_told(self.now, peers.into_iter().map(contact).collect());
    }

    fn meet(&mut self, peer: u32, zone: &str) {
        self.side.handle_connected(self.now, peer, false);
        let greeting = Greeting { addresses: vec![1], zone: zone.parse().unwrap(), seeder: peer == SEEDER };
        self.side.handle_hello(self.now, peer, greeting);
    }

    /// Waits for the next dial of the peer; returns how long that took.
    fn until_dialed(&mut self, peer: u32) -> Duration {
        let start = self.now;
        loop {
            if self.dials().contains(&peer) {
                return self.now - start;
            }
            let due = self.side.poll_timeout().expect("it will be dialed");
            self.wait(due - self.now);
        }
    }
}

#[test]
fn a_peer_that_fails_is_dialed_again_ever_later_and_then_forgotten() {
    let mut side = Side::node();
    side.tell([1]);
    let mut waits = Vec::new();
    for _ in 0..FAILURES_MAX {
        waits.push(side.until_dialed(1));
        side.side.handle_dial_failed(side.now, 1);
    }
    assert!(waits[1] < Duration::from_secs(1) && waits[7] > Duration::from_secs(12), "{waits:?}");
    side.wait(Duration::from_secs(60));
    assert_eq!((side.dials(), side.side.book.len()), (vec![], 0));
}

#[test]
fn a_full_house_still_dials_the_seeder_of_the_ticket_for_ever() {
    let mut side = Side::new(Config::node(), "", &[SEEDER, OWN]);
    (0..64).for_each(|peer| side.meet(peer, ""));
    for _ in 0..40 {
        assert!(side.until_dialed(SEEDER) <= Duration::from_secs(25));
        side.side.handle_dial_failed(side.now, SEEDER);
    }
    side.side.handle_connected(side.now, SEEDER, true);
    assert!(side.side.is_welcome(SEEDER));
}

#[test]
fn half_of_the_wanted_are_dialed_at_once_and_no_more_than_are_wanted() {
    let mut side = Side::node();
    side.tell(0..100);
    let first = side.dials();
    assert_eq!(first.len(), 12);
    for peer in first {
        side.side.handle_connected(side.now, peer, true);
        let greeting = Greeting { addresses: vec![], zone: Zone::UNKNOWN, seeder: false };
        side.side.handle_hello(side.now, peer, greeting);
    }
    // The other half comes by itself: nobody is left to dial.
    (200..212).for_each(|peer| side.meet(peer, ""));
    side.wait(Duration::from_secs(60));
    assert_eq!(side.dials(), [] as [u32; 0]);
    side.side.handle_disconnected(side.now, 200);
    side.wait(Duration::from_secs(60));
    assert!(!side.dials().is_empty());
}

#[test]
fn the_banned_are_neither_dialed_nor_let_in_nor_told_of() {
    let mut side = Side::node();
    side.meet(1, "");
    side.meet(2, "");
    side.side.handle_fault(side.now, 1);
    side.side.handle_fault(side.now, 3);
    side.outputs();
    side.tell([1, 3]);
    side.meet(4, "");
    assert_eq!(told(&side.outputs(), 4), [2]);
    for banned in [1, 3] {
        side.meet(banned, "");
        assert_eq!(side.outputs(), [Output::Disconnect { peer: banned, reason: Reason::Banned }]);
        assert!(!side.side.is_welcome(banned));
    }
    side.wait(BAN - Duration::from_secs(1));
    assert!(side.dials().iter().all(|peer| *peer > 1 && *peer != 3));
    side.wait(Duration::from_secs(2));
    assert!(side.dials().contains(&1), "after a while it may try again");
}

fn told(outputs: &[Output<u32, u16>], to: u32) -> Vec<u32> {
    let named = |output: &Output<u32, u16>| match output {
        Output::Tell { to: hearer, peers } | Output::Refuse { peer: hearer, peers } if *hearer == to => {
            Some(peers.iter().map(|contact| contact.id).collect::<Vec<_>>())
        }
        _ => None,
    };
    let mut told: Vec<u32> = outputs.iter().filter_map(named).flatten().collect();
    told.sort_unstable();
    told
}

#[test]
fn a_peer_without_room_is_refused_with_others_to_ask_and_others_are_told_of_it() {
    let mut side = Side::new(Config { known_max: 4096, ..Config::seeder() }, "", &[]);
    (0..256).for_each(|peer| side.meet(peer, ""));
    side.outputs();
    side.meet(300, "");
    let outputs = side.outputs();
    assert!(matches!(outputs[..], [Output::Refuse { peer: 300, .. }]), "{outputs:?}");
    assert_eq!(told(&outputs, 300).len(), 24);
    assert!(!side.side.is_welcome(300));
    side.side.handle_peers_wanted(side.now, 300);
    assert_eq!(side.outputs(), [], "once is enough");
    side.wait(FAREWELL_MAX);
    assert_eq!(side.outputs(), [Output::Disconnect { peer: 300, reason: Reason::NoRoom }]);
    // It has been told of nobody yet who was told of less: sooner or later it is drawn.
    let mut hearers = 0;
    for peer in 301..600 {
        side.meet(peer, "");
        hearers += usize::from(told(&side.outputs(), peer).contains(&300));
        side.side.handle_disconnected(side.now, peer);
    }
    assert!(hearers > 5, "{hearers}");
    side.wait(TELL_REFUSED_FOR);
    side.meet(700, "");
    assert_eq!(side.side.book.tally().leaving, 1);
    let told = told(&side.outputs(), 700);
    assert!(told.iter().all(|peer| *peer < 256), "{told:?}");
}

#[test]
fn more_than_can_be_told_so_are_hung_up_on() {
    let mut side = Side::new(Config::seeder(), "", &[]);
    for peer in 0..600 {
        side.side.handle_connected(side.now, peer, false);
    }
    let crowded = Output::Disconnect { peer: 599, reason: Reason::Crowded };
    let outputs = side.outputs();
    assert_eq!((outputs.len(), outputs.last()), (600 - 512, Some(&crowded)));
    side.wait(HELLO_MAX);
    let outputs = side.outputs();
    assert_eq!(outputs.len(), 512);
    assert_eq!(outputs[511], Output::Disconnect { peer: 255, reason: Reason::NoHello });
}

#[test]
fn a_seeder_without_room_is_left_alone_but_by_the_lonely() {
    let mut lonely = Side::new(Config::node(), "", &[SEEDER]);
    let refuse = |side: &mut Side| {
        side.side.handle_connected(side.now, SEEDER, true);
        let contact = Contact { id: 1, addresses: vec![1], zone: Zone::UNKNOWN };
        side.side.handle_refused(side.now, SEEDER, vec![contact]);
    };
    lonely.until_dialed(SEEDER);
    refuse(&mut lonely);
    let outputs = lonely.outputs();
    assert!(outputs.contains(&Output::Disconnect { peer: SEEDER, reason: Reason::Refused }), "{outputs:?}");
    assert!(outputs.iter().any(|output| matches!(output, Output::Dial { peer: 1, .. })), "{outputs:?}");
    assert!(lonely.until_dialed(SEEDER) < Duration::from_secs(7));
    (2..10).for_each(|peer| lonely.meet(peer, ""));
    refuse(&mut lonely);
    assert!(lonely.until_dialed(SEEDER) > Duration::from_secs(60), "it has others to ask");
}

#[test]
fn lost_neighbours_are_looked_for_even_with_neighbours_enough() {
    let mut side = Side::node();
    (0..25).for_each(|peer| side.meet(peer, ""));
    side.wait(STEADY);
    side.outputs();
    side.side.handle_disconnected(side.now, 7);
    assert!(side.until_dialed(7) < Duration::from_secs(1));
    side.side.handle_dial_failed(side.now, 7);
    for _ in 0..20 {
        assert!(side.until_dialed(7) <= Duration::from_secs(25));
        side.side.handle_dial_failed(side.now, 7);
    }
    side.wait(LOST_FOR);
    side.dials();
    side.wait(Duration::from_secs(60));
    assert_eq!(side.dials(), [] as [u32; 0], "not for ever");
}

#[test]
fn who_knows_nobody_to_dial_asks_ever_more_seldom_until_there_is_news() {
    let mut side = Side::node();
    side.meet(1, "");
    let asked = |outputs: Vec<Output<u32, u16>>| {
        outputs.into_iter().filter(|output| matches!(output, Output::Ask { peer: 1 })).count()
    };
    side.wait(Duration::from_secs(10));
    let at_first = asked(side.outputs());
    assert!((2..=5).contains(&at_first), "{at_first}");
    side.wait(Duration::from_secs(600));
    side.outputs();
    side.wait(Duration::from_secs(600));
    let later = asked(side.outputs());
    assert!((8..=13).contains(&later), "{later}");
    side.tell([2]);
    side.wait(Duration::from_secs(10));
    assert!(asked(side.outputs()) >= 2);
}

#[test]
fn room_is_kept_for_ones_own_rack() {
    let mut side = Side::new(Config::node(), "row1/rack1", &[]);
    (0..40).for_each(|peer| side.meet(peer, "row1/rack2"));
    assert_eq!(side.side.neighbours().count(), 32);
    side.outputs();
    (100..132).for_each(|peer| side.meet(peer, "row1/rack1"));
    assert_eq!(side.side.neighbours().count(), 64);
    side.meet(200, "row1/rack1");
    assert!(!side.side.is_welcome(200));
}

#[test]
fn the_book_is_bounded_and_forgets_nobody_who_is_here() {
    let mut side = Side::new(Config::node(), "", &[SEEDER]);
    (0..30).for_each(|peer| side.meet(peer, ""));
    side.tell(2000..5000);
    assert_eq!(side.side.book.len(), Config::node().known_max);
    assert_eq!(side.side.neighbours().count(), 30);
    assert!(side.side.book.find(SEEDER).is_some());
}

#[test]
fn hearsay_does_not_change_what_a_neighbour_said_of_itself() {
    let mut side = Side::new(Config::node(), "rack1", &[]);
    side.meet(1, "rack1");
    side.side.handle_told(side.now, vec![Contact { id: 1, addresses: vec![9], zone: Zone::UNKNOWN }]);
    side.outputs();
    side.meet(2, "rack1");
    let outputs = side.outputs();
    let own = Contact { id: 1, addresses: vec![1], zone: "rack1".parse().unwrap() };
    assert_eq!(outputs[0], Output::Tell { to: 2, peers: vec![own] });
}
