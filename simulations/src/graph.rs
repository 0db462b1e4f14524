//! Who knows whom: random links, about equally many per host.

use std::collections::BTreeMap;
use std::time::Duration;

use rand::Rng;
use rand::seq::SliceRandom;
use rand_chacha::ChaCha8Rng;

use crate::network::distance;
use crate::scenarios::Plan;

/// Random partners tried per link before a host makes do with fewer.
const TRIES_PER_LINK: usize = 50;

/// Neighbours of a host within its rack, at most.
const NEIGHBOURS_INSIDE_MAX: usize = 48;
/// Hosts of each rack that a host without one knows.
const NEIGHBOURS_OF_CORE: usize = 2;

/// The links of a plan, in an order that only the seed decides. Racks know themselves and, at each level, a few outside.
pub(crate) fn links(plan: &Plan, degree: usize, rng: &mut ChaCha8Rng) -> Vec<(usize, usize)> {
    let members = &plan.members;
    let may = |one: usize, other: usize| members[one].dialable || members[other].dialable;
    let joins: Vec<Duration> = members.iter().map(|member| member.joins).collect();
    if plan.trunks.is_empty() {
        return random_links(&joins, degree, may, rng);
    }
    let mut racks: BTreeMap<Option<u32>, Vec<usize>> = BTreeMap::new();
    for (host, member) in members.iter().enumerate() {
        racks.entry(member.zones.first().copied()).or_default().push(host);
    }
    let mut links = Vec::new();
    for hosts in racks.iter().filter(|(rack, _)| rack.is_some()).map(|(_, hosts)| hosts) {
        let joins: Vec<Duration> = hosts.iter().map(|&host| joins[host]).collect();
        let inside =
            random_links(&joins, NEIGHBOURS_INSIDE_MAX, |one, other| may(hosts[one], hosts[other]), rng);
        links.extend(inside.into_iter().map(|(one, other)| (hosts[one], hosts[other])));
    }
    let levels = members.iter().map(|member| member.zones.len()).max().unwrap_or(0);
    for level in 1..=levels {
        let racked = |host: usize| !members[host].zones.is_empty();
        let between = |one: usize, other: usize| {
            let (zones, others) = (&members[one].zones, &members[other].zones);
            may(one, other) && racked(one) && racked(other) && distance(zones, others) == level
        };
        links.extend(random_links(&joins, plan.neighbours_outside, between, rng));
    }
    // Every rack knows a host that hangs on the core, as it knows the seeder of its ticket.
    for &core in racks.get(&None).into_iter().flatten() {
        for hosts in racks.iter().filter(|(rack, _)| rack.is_some()).map(|(_, hosts)| hosts) {
            let mut hosts = hosts.clone();
            hosts.shuffle(rng);
            let known = hosts.into_iter().filter(|&host| may(core, host)).take(NEIGHBOURS_OF_CORE);
            links.extend(known.map(|host| (core, host)));
        }
    }
    links
}

/// Links every host of `0..hosts` to at least `degree` others where there are so many, and few to more: a node with
/// few neighbours would be lonely in the tail, and real nodes keep asking for more until they have enough. A host meets
/// those who are there when it joins.
fn random_links(
    joins: &[Duration],
    degree: usize,
    may: impl Fn(usize, usize) -> bool,
    rng: &mut ChaCha8Rng,
) -> Vec<(usize, usize)> {
    let mut links = Vec::new();
    let mut known: Vec<Vec<usize>> = vec![Vec::new(); joins.len()];
    let mut order: Vec<usize> = (0..joins.len()).collect();
    order.shuffle(rng);
    order.sort_by_key(|&host| joins[host]);
    for &host in &order {
        let there = order.partition_point(|&other| joins[other] <= joins[host]);
        for attempt in 0..TRIES_PER_LINK * degree {
            if known[host].len() >= degree.min(there - 1) {
                break;
            }
            let other = order[rng.random_range(0..there)];
            // At first only with hosts that want more themselves.
            let full = known[other].len() >= degree && attempt < TRIES_PER_LINK * degree / 2;
            if other == host || full || !may(host, other) || known[host].contains(&other) {
                continue;
            }
            known[host].push(other);
            known[other].push(host);
            links.push((host, other));
        }
    }
    links
}

#[cfg(test)]
mod tests {
    use rand::SeedableRng;

    use super::*;

    #[test]
    fn every_host_has_its_links_and_few_have_more() {
        let links = random_links(&[Duration::ZERO; 500], 20, |_, _| true, &mut ChaCha8Rng::seed_from_u64(3));
        let mut degree = vec![0; 500];
        for (one, other) in links {
            assert_ne!(one, other);
            degree[one] += 1;
            degree[other] += 1;
        }
        assert!(degree.iter().all(|degree| (20..=30).contains(degree)), "{degree:?}");
    }

    #[test]
    fn who_joins_first_is_met_by_who_joins_later() {
        let joins: Vec<Duration> = (0..200).map(Duration::from_secs).collect();
        let links = random_links(&joins, 20, |_, _| true, &mut ChaCha8Rng::seed_from_u64(3));
        for host in 1..200 {
            let earlier = links.iter().filter(|&&(one, other)| one.max(other) == host).count();
            assert!(earlier >= host.min(15), "host {host} meets {earlier}");
        }
    }

    #[test]
    fn few_hosts_all_know_each_other() {
        assert_eq!(
            random_links(&[Duration::ZERO; 5], 20, |_, _| true, &mut ChaCha8Rng::seed_from_u64(3)).len(),
            10
        );
    }
}
