//! The graph that a thousand neighbourhoods make, in virtual time.
#![expect(clippy::unwrap_used, reason = "a test")]

#[path = "neighbourhood/world.rs"]
mod world;

use std::time::Duration;

use shoal_proto::neighbourhood::Config;
use shoal_proto::zone::Zone;
use world::{SEEDER, World};

const NODES: u32 = 1000;
/// Enough where the seeder's bounds do not matter.
const FEWER_NODES: u32 = 400;
/// Below this a node would be lonely in the tail of a transfer.
const ENOUGH: usize = 15;

fn anywhere(_: u32) -> Zone {
    Zone::UNKNOWN
}

fn secs(seconds: u64) -> Duration {
    Duration::from_secs(seconds)
}

/// What the graph of the living nodes is like.
#[derive(Debug)]
struct Graph {
    least: usize,
    mean: f64,
    most: usize,
    /// Links between neighbours of a node ÷ how many there could be.
    clustering: f64,
    /// How far apart in the order of joining two neighbours are on average, as a share of the nodes: 1/3 at random.
    reach: f64,
}

fn measure(world: &World) -> Graph {
    let living: Vec<u32> = world.living().collect();
    let lists: Vec<Vec<u32>> = living.iter().map(|host| world.neighbours(*host)).collect();
    let mut linked = vec![false; world.hosts.len() * world.hosts.len()];
    let at = |one: u32, other: u32| one as usize * world.hosts.len() + other as usize;
    let pairs =
        || living.iter().zip(&lists).flat_map(|(host, list)| list.iter().map(move |peer| (*host, *peer)));
    pairs().for_each(|(host, peer)| linked[at(host, peer)] = true);
    let (mut triangles, mut corners) = (0usize, 0usize);
    for list in &lists {
        for (place, one) in list.iter().enumerate() {
            corners += place;
            triangles += list[..place].iter().filter(|other| linked[at(*one, **other)]).count();
        }
    }
    let apart: f64 = pairs().map(|(host, peer)| f64::from(host.abs_diff(peer))).sum();
    let degrees = || lists.iter().map(Vec::len);
    Graph {
        least: degrees().min().unwrap(),
        mean: degrees().sum::<usize>() as f64 / living.len() as f64,
        most: degrees().max().unwrap(),
        clustering: triangles as f64 / corners as f64,
        reach: apart / pairs().count() as f64 / living.len() as f64,
    }
}

/// The graph five seconds after the first node came and four after the last.
fn joined(nodes: u32, zone: impl Fn(u32) -> Zone) -> World {
    let mut world = World::new(nodes, 1, zone);
    world.join_all(secs(1));
    world.run_for(secs(5));
    world
}

/// Everybody has neighbours enough, nobody too many, and there is one graph.
fn assert_good(world: &World) -> Graph {
    let graph = measure(world);
    println!("{graph:?}");
    assert!(graph.least >= ENOUGH && graph.most <= Config::node().neighbours_max, "{graph:?}");
    assert_whole(world);
    graph
}

fn assert_whole(world: &World) {
    assert_eq!(world.reached(), world.living().count(), "the graph is in pieces");
}

fn kill_three_of_ten(world: &mut World) {
    let dead: Vec<u32> = world.living().filter(|host| host % 10 < 3).collect();
    dead.into_iter().for_each(|host| world.kill(host));
}

#[test]
fn a_thousand_joins_in_a_second_make_a_random_graph_and_little_work_for_the_seeder() {
    let mut world = joined(NODES, anywhere);
    let graph = assert_good(&world);
    assert!(graph.mean <= 36.0, "an announcement goes to each of them: {graph:?}");
    assert!(graph.most <= 60, "nobody is full, so there is room for those who can only come: {graph:?}");
    let at_random = graph.mean / f64::from(NODES);
    assert!(graph.clustering <= 3.0 * at_random, "{at_random} at random: {graph:?}");
    assert!(graph.reach >= 0.18, "neighbours joined together: {graph:?}");
    let seeder = world.host(SEEDER).counts;
    println!("{seeder:?}");
    assert!(seeder.dials == 0 && seeder.accepted <= 1010, "{seeder:?}");
    assert!(seeder.frames <= 1010 && seeder.told <= 24 * seeder.frames, "{seeder:?}");
    assert!(seeder.connections_max <= 256 + 256, "{seeder:?}");
    // Those it had no room for come back now and then.
    world.run_for(secs(60));
    let later = world.host(SEEDER).counts;
    println!("a minute later: {later:?}");
    assert!(later.accepted - seeder.accepted <= 600, "{later:?}");
}

#[test]
fn a_thousand_joins_at_one_instant_are_no_worse() {
    let mut world = World::new(NODES, 1, anywhere);
    world.join_all(Duration::ZERO);
    world.run_for(secs(5));
    assert_good(&world);
    let seeder = world.host(SEEDER).counts;
    println!("{seeder:?}");
    // One more, until it is hung up on.
    assert!(seeder.accepted <= 2000 && seeder.connections_max <= 256 + 256 + 1, "{seeder:?}");
}

#[test]
fn one_seed_makes_one_graph() {
    let graph = |seed| {
        let mut world = World::new(100, seed, anywhere);
        world.join_all(secs(1));
        world.run_for(secs(5));
        world.living().map(|host| world.neighbours(host)).collect::<Vec<_>>()
    };
    assert_eq!(graph(1), graph(1));
    assert_ne!(graph(1), graph(2));
}

#[test]
fn few_nodes_all_know_each_other() {
    let mut world = World::new(16, 1, anywhere);
    world.join_all(secs(1));
    world.run_for(secs(4));
    assert_eq!(measure(&world).least, 15);
}

#[test]
fn without_the_seeder_and_a_third_of_the_nodes_the_graph_holds_and_mends() {
    let mut world = joined(NODES, anywhere);
    world.kill(SEEDER);
    kill_three_of_ten(&mut world);
    assert_whole(&world);
    // It takes twenty seconds to notice the last of them, and ten to give up a dial.
    world.run_for(secs(30));
    let graph = assert_good(&world);
    assert!(graph.least >= 20, "{graph:?}");
}

#[test]
fn nodes_that_cannot_be_dialed_find_neighbours_too() {
    let mut world = World::new(FEWER_NODES, 1, anywhere);
    for host in world.nodes().filter(|host| host % 10 < 3) {
        world.host_mut(host).is_dialable = false;
    }
    world.join_all(secs(1));
    world.run_for(secs(5));
    assert_good(&world);
    world.kill(SEEDER);
    let dead: Vec<u32> = world.living().filter(|host| host % 10 == 9).collect();
    dead.into_iter().for_each(|host| world.kill(host));
    world.run_for(secs(40));
    assert_good(&world);
}

#[test]
fn most_neighbours_are_of_the_rack_and_some_are_not() {
    let rack = |host: u32| host % 25;
    let mut world = joined(NODES, |host| match host {
        SEEDER => Zone::UNKNOWN,
        _ => format!("rack{}", rack(host)).parse().unwrap(),
    });
    world.run_for(secs(5));
    assert_good(&world);
    let split = |world: &World| -> Vec<(usize, usize)> {
        let split = |host: u32| {
            let all = world.neighbours(host);
            let near = all.iter().filter(|peer| rack(**peer) == rack(host)).count();
            (near, all.len() - near)
        };
        world.living().map(split).collect()
    };
    for (near, far) in split(&world) {
        assert!(near >= 32 && (8..=32).contains(&far), "{near} in the rack, {far} outside");
    }
    kill_three_of_ten(&mut world);
    world.run_for(secs(30));
    assert_good(&world);
    for (near, far) in split(&world) {
        assert!(near >= 15 && (8..=32).contains(&far), "{near} in the rack, {far} outside");
    }
}

#[test]
fn small_racks_look_outside() {
    let mut world = joined(FEWER_NODES, |host| format!("rack{}", host / 5).parse().unwrap());
    world.run_for(secs(5));
    assert_good(&world);
}

#[test]
fn halves_that_were_apart_for_a_minute_grow_together_without_the_seeder() {
    let mut world = joined(FEWER_NODES, anywhere);
    world.kill(SEEDER);
    world.divide(|host| u8::from(host % 2 == 0));
    world.run_for(secs(60));
    assert_eq!(world.reached(), FEWER_NODES as usize / 2, "apart");
    assert!(measure(&world).least >= ENOUGH);
    world.divide(|_| 0);
    world.run_for(secs(30));
    assert_good(&world);
}
