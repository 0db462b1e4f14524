//! What the binaries are made of: crates of the public registry, each under a licence that ours may stand beside.
//!
//! Known vulnerabilities are not looked for here: the advisory database is no package, and needs the network.

use std::process::Command;

use serde_json::Value;

/// Licences that ask for a notice at most.
const ALLOWED: &[&str] = &[
    "0BSD",
    "Apache-2.0",
    "Apache-2.0 WITH LLVM-exception",
    "BSD-2-Clause",
    "BSD-3-Clause",
    "CC0-1.0",
    "ISC",
    "MIT",
    "MIT-0",
    "NCSA",
    "Unicode-3.0",
    "Unlicense",
    "Zlib",
];
/// Crates under another licence, and why that is no harm.
const EXCEPTIONS: &[(&str, &str)] = &[
    // Locked and never built: it is behind a feature of libp2p that nothing here enables.
    ("attohttpc", "MPL-2.0"),
];
const REGISTRY: &str = "registry+https://github.com/rust-lang/crates.io-index";

/// Whether a licence expression (SPDX, or the older `A/B`) can be met with what is allowed.
fn is_met(expression: &str) -> bool {
    let spaced = expression.replace('/', " OR ").replace('(', " ( ").replace(')', " ) ");
    let mut words: Vec<&str> = spaced.split_whitespace().rev().collect();
    let met = any(&mut words);
    met && words.is_empty()
}

fn any(words: &mut Vec<&str>) -> bool {
    let mut met = all(words);
    while words.pop_if(|word| *word == "OR").is_some() {
        met |= all(words);
    }
    met
}

fn all(words: &mut Vec<&str>) -> bool {
    let mut met = one(words);
    while words.pop_if(|word| *word == "AND").is_some() {
        met &= one(words);
    }
    met
}

fn one(words: &mut Vec<&str>) -> bool {
    match words.pop() {
        Some("(") => {
            let met = any(words);
            words.pop() == Some(")") && met
        }
        Some(name) if words.pop_if(|word| *word == "WITH").is_some() => {
            let exception = words.pop().unwrap_or_default();
            ALLOWED.contains(&format!("{name} WITH {exception}").as_str())
        }
        Some(name) => ALLOWED.contains(&name),
        None => false,
    }
}

/// What is wrong with a package as `cargo metadata` describes it.
fn fault(package: &Value) -> Option<String> {
    let name = package["name"].as_str().expect("a package has a name");
    // Ours.
    let source = package["source"].as_str()?;
    if source != REGISTRY {
        return Some(format!("{name} comes from {source}"));
    }
    let licence = package["license"].as_str().unwrap_or("no licence");
    let allowed = is_met(licence) || EXCEPTIONS.contains(&(name, licence));
    (!allowed).then(|| format!("{name} is under {licence}"))
}

#[test]
fn dependencies_are_public_crates_under_licences_that_ask_for_a_notice_at_most() {
    let mut cargo = Command::new(env!("CARGO"));
    cargo.args(["metadata", "--format-version", "1", "--locked", "--offline"]);
    cargo.args(["--filter-platform", "x86_64-unknown-linux-gnu"]);
    let output = cargo.current_dir(concat!(env!("CARGO_MANIFEST_DIR"), "/..")).output().unwrap();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    let metadata: Value = serde_json::from_slice(&output.stdout).unwrap();
    let packages = metadata["packages"].as_array().unwrap();
    assert!(packages.len() > 100, "{} packages", packages.len());
    let faults: Vec<String> = packages.iter().filter_map(fault).collect();
    assert!(faults.is_empty(), "{faults:#?}");
}

#[test]
fn a_licence_expression_is_met_or_not() {
    for met in [
        "MIT",
        "MIT/Apache-2.0",
        "GPL-3.0 OR MIT",
        "(MIT OR GPL-3.0) AND Unicode-3.0",
        "Apache-2.0 WITH LLVM-exception OR GPL-2.0",
        "ISC AND (Apache-2.0 OR ISC)",
    ] {
        assert!(is_met(met), "{met}");
    }
    for unmet in
        ["GPL-3.0", "MIT AND GPL-3.0", "(MIT OR ISC) AND AGPL-3.0", "GPL-2.0 WITH X", "MIT MIT", "(MIT", ""]
    {
        assert!(!is_met(unmet), "{unmet}");
    }
    let package = |source: &str, licence: &str| {
        fault(&serde_json::json!({ "name": "x", "source": source, "license": licence })).is_some()
    };
    assert!(!package(REGISTRY, "MIT"));
    assert!(package(REGISTRY, "MPL-2.0"));
    assert!(package("git+https://example.org/x", "MIT"));
}
