//! The whole, as processes over loopback. Each file is a promise to whoever installs machines with Shoal.

#![cfg(test)]

mod archives;
mod bad_input;
mod cluster;
mod cluster_file;
mod dashboard;
mod debian;
mod debian_update;
mod disks;
mod drift;
mod fidelity;
mod fleet;
mod golden;
mod install;
mod kill_points;
mod lab;
mod liars;
mod members;
mod memory;
mod mounts;
mod outsiders;
mod packaging;
mod resume;
mod rollout;
mod rotation;
mod secrets;
mod slow_disk;
mod static_binaries;
mod tamper;
mod tidy;
mod update;

/// # Panics
/// With the first differences, unless the trees are equal in everything that an image keeps.
fn assert_same(source: &std::path::Path, target: &std::path::Path) {
    let found = harness::differences(source, target).unwrap();
    let shown: Vec<_> = found.iter().take(20).collect();
    assert!(
        found.is_empty(),
        "{} differs from its source in {} points: {shown:#?}",
        target.display(),
        found.len()
    );
}
