//! The whole, as processes over loopback. Each file is a promise to whoever installs machines with Shoal.

#![cfg(test)]

mod bad_input;
mod debian;
mod debian_update;
mod drift;
mod fidelity;
mod fleet;
mod install;
mod lab;
mod memory;
mod mounts;
mod resume;
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
