//! The graph that a thousand neighbourhoods make, in virtual time.
#![expect(clippy::unwrap_used, reason = "a test")]

#[path = "neighbourhood/world.rs"]
mod world;

use std::time::Duration;

use shoal_proto::neighbourhood::Config;
use shoal_proto::zone::Zone;
use world::{SEEDER, World};

const NODES: u32 = 1000;
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
    let pairs = || living.iter().zip(&lists).flat_map(|(host, list)| list.iter().map(move |peer| (*host, *peer)));
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

fn joined(seed: u64, zone: impl Fn(u32) -> Zone) -> World {
    let mut world = World::new(NODES, seed, zone);
    world.join_all(secs(1));
    world.run_for(secs(5));
    world
}

fn assert_whole(world: &World) {
    assert_eq!(world.reached(), world.living().count(), "the graph is in pieces");
}

#[test]
fn a_thousand_joins_in_a_second_make_a_random_graph_and_little_work_for_the_seeder() {
    for seed in [1, 2, 3] {
        let mut world = World::new(NODES, seed, anywhere);
        world.join_all(secs(1));
        world.run_for(secs(2));
        println!("2s {:?}", measure(&world));
        world.run_for(secs(3));
        let graph = measure(&world);
        let seeder = world.host(SEEDER).counts;
        println!("{graph:?} {seeder:?}");
        assert_whole(&world);
        world.run_for(secs(60));
        println!("60s {:?} {:?}", measure(&world), world.host(SEEDER).counts);
    }
}

#[test]
fn without_the_seeder_and_a_third_of_the_nodes_the_graph_holds_and_mends() {
    let mut world = joined(1, anywhere);
    world.kill(SEEDER);
    let dead: Vec<u32> = world.living().filter(|host| host % 10 < 3).collect();
    dead.into_iter().for_each(|host| world.kill(host));
    assert_whole(&world);
    println!("killed {:?}", measure(&world));
    world.run_for(secs(30));
    println!("mended {:?}", measure(&world));
    assert_whole(&world);
}

#[test]
fn nodes_that_cannot_be_dialed_find_neighbours_too() {
    let mut world = World::new(NODES, 1, anywhere);
    for host in world.nodes().filter(|host| host % 10 < 3) {
        world.host_mut(host).is_dialable = false;
    }
    world.join_all(secs(1));
    world.run_for(secs(5));
    println!("{:?}", measure(&world));
    assert_whole(&world);
}

#[test]
fn racks_keep_their_mix() {
    let mut world = World::new(NODES, 1, |host| match host {
        SEEDER => Zone::UNKNOWN,
        _ => format!("rack{}", host % 25).parse().unwrap(),
    });
    world.join_all(secs(1));
    world.run_for(secs(8));
    println!("{:?}", measure(&world));
    let near = |host: u32| world.neighbours(host).into_iter().filter(|peer| peer % 25 == host % 25).count();
    let near: Vec<usize> = world.living().map(near).collect();
    let all: Vec<usize> = world.living().map(|host| world.neighbours(host).len()).collect();
    let far: Vec<usize> = near.iter().zip(&all).map(|(near, all)| all - near).collect();
    println!("near {:?}..{:?} far {:?}..{:?} mean {}", near.iter().min(), near.iter().max(), far.iter().min(), far.iter().max(), far.iter().sum::<usize>() as f64 / 1000.0);
    assert_whole(&world);
}

#[test]
fn halves_that_were_apart_for_a_minute_grow_together() {
    let mut world = joined(1, anywhere);
    world.kill(SEEDER);
    world.divide(|host| u8::from(host % 2 == 0));
    world.run_for(secs(60));
    println!("apart {:?} {}", measure(&world), world.reached());
    world.divide(|_| 0);
    world.run_for(secs(30));
    println!("together {:?}", measure(&world));
    assert_whole(&world);
}
