//! Who knows whom: random links, about equally many per host.

use rand::Rng;
use rand::seq::SliceRandom;
use rand_chacha::ChaCha8Rng;

/// Random partners tried per link before a host makes do with fewer.
const TRIES_PER_LINK: usize = 50;

/// Links every host of `0..hosts` to at least `degree` others where there are so many, and few to more: a node with
/// few neighbours would be lonely in the tail, and real nodes keep asking for more until they have enough.
pub(crate) fn random_links(hosts: usize, degree: usize, rng: &mut ChaCha8Rng) -> Vec<(usize, usize)> {
    let mut links = Vec::new();
    let mut known: Vec<Vec<usize>> = vec![Vec::new(); hosts];
    let mut order: Vec<usize> = (0..hosts).collect();
    order.shuffle(rng);
    for &host in &order {
        for attempt in 0..TRIES_PER_LINK * degree {
            if known[host].len() >= degree.min(hosts - 1) {
                break;
            }
            let other = rng.random_range(0..hosts);
            // At first only with hosts that want more themselves.
            let full = known[other].len() >= degree && attempt < TRIES_PER_LINK * degree / 2;
            if other == host || full || known[host].contains(&other) {
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
        let links = random_links(500, 20, &mut ChaCha8Rng::seed_from_u64(3));
        let mut degree = vec![0; 500];
        for (one, other) in links {
            assert_ne!(one, other);
            degree[one] += 1;
            degree[other] += 1;
        }
        assert!(degree.iter().all(|degree| (20..=30).contains(degree)), "{degree:?}");
    }

    #[test]
    fn few_hosts_all_know_each_other() {
        assert_eq!(random_links(5, 20, &mut ChaCha8Rng::seed_from_u64(3)).len(), 10);
    }
}
