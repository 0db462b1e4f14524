//! The rules of the house that a machine can check: one door per dependency, arrows one way, files of one subject.

mod dependencies;

use std::collections::BTreeMap;
use std::fs;
use std::path::Path;

const LINES_MAX: usize = 800;
/// Names that say nothing about what is in a file.
const EMPTY_NAMES: &[&str] = &["util", "utils", "common", "helpers", "types", "manager", "misc"];
/// What may lie at the top, besides dot-files.
const TOP: &[&str] = &[
    "proto",
    "node",
    "seeder",
    "simulations",
    "tests",
    "target",
    "Cargo.toml",
    "Cargo.lock",
    "README.md",
    "LICENSE",
];

/// Which of our crates each may depend on. Tests may import all, for what they check from the inside.
const ARROWS: &[(&str, &[&str])] = &[
    ("proto", &[]),
    ("node", &["shoal-proto"]),
    ("seeder", &["shoal-proto", "shoal-node"]),
    ("simulations", &["shoal-proto"]),
    ("tests", &["shoal-proto", "shoal-node", "shoal-seeder"]),
];

/// What `proto` must not know: it is pure.
const IMPURE: &[&str] = &["tokio", "libp2p", "sled", "rustix", "tempfile", "tracing-subscriber", "futures"];

/// The only places that may name a dependency.
const DOORS: &[(&str, &[&str])] = &[
    (
        "clap",
        &["node/src/main.rs", "node/src/cli", "seeder/src/main.rs", "seeder/src/cli", "simulations/src"],
    ),
    ("axum", &["seeder/src/dashboard", "seeder/src/boot/binary.rs"]),
    ("fastcdc", &["proto/src/image"]),
    ("flate2", &["node/src/tree/archive/compression.rs"]),
    ("liblzma", &["node/src/tree/archive/compression.rs"]),
    ("dejavu", &["simulations/src/report/picture.rs"]),
    ("libp2p", &["node/src/peer.rs", "node/src/peer/"]),
    ("prometheus_client", &["seeder/src/dashboard"]),
    ("prost", &["proto/src", "proto/build.rs", "node/src/peer/codec.rs"]),
    ("resvg", &["simulations/src/report/picture.rs"]),
    ("sled", &["node/src/store/index.rs"]),
    ("tar", &["node/src/tree/archive"]),
    ("zstd", &["node/src/block.rs", "node/src/tree/archive/compression.rs"]),
];

/// The only places that may read the wall clock, which jumps: for dates that are shown, what a capture saw of files, and
/// releases and rollouts, which outlive a boot.
const WALL_CLOCKS: &[&str] = &["node/src/clock.rs", "node/src/tree/capture/seen.rs", "seeder/src/publish.rs"];

/// Text files of the repository, by path from its root.
type Files = BTreeMap<String, String>;

fn repository() -> Files {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).parent().expect("the package lies in the repository");
    let mut files = Files::new();
    let mut folders = vec![String::new()];
    while let Some(folder) = folders.pop() {
        for entry in fs::read_dir(root.join(&folder)).unwrap() {
            let entry = entry.unwrap();
            let name = entry.file_name().into_string().expect("plain names");
            let path = if folder.is_empty() { name.clone() } else { format!("{folder}/{name}") };
            match entry.file_type().unwrap() {
                kind if kind.is_dir() && name != ".git" && path != "target" => folders.push(path),
                kind if kind.is_file() => {
                    files.insert(path, fs::read_to_string(entry.path()).unwrap_or_default());
                }
                _ => {}
            }
        }
    }
    files
}

fn sources(files: &Files) -> impl Iterator<Item = (&String, &String)> {
    files.iter().filter(|(path, _)| path.ends_with(".rs"))
}

fn long_files(files: &Files) -> Vec<String> {
    let lengths = sources(files).map(|(path, text)| (path, text.lines().count()));
    lengths
        .filter(|(_, lines)| *lines > LINES_MAX)
        .map(|(path, lines)| format!("{path} has {lines} lines"))
        .collect()
}

fn empty_names(files: &Files) -> Vec<String> {
    let says_nothing = |path: &&String| {
        let parts = path.trim_end_matches(".rs").split('/');
        parts.into_iter().any(|part| EMPTY_NAMES.contains(&part))
    };
    files.keys().filter(says_nothing).map(|path| format!("{path}: the name says nothing")).collect()
}

fn top_level(files: &Files) -> Vec<String> {
    let mut names: Vec<&str> = files.keys().filter_map(|path| path.split('/').next()).collect();
    names.dedup();
    names.retain(|name| !name.starts_with('.') && !TOP.contains(name));
    names.into_iter().map(|name| format!("{name} does not belong at the top")).collect()
}

/// The dependencies of a manifest, of every kind.
fn dependencies(manifest: &str) -> Vec<&str> {
    let mut within = false;
    let mut found = Vec::new();
    for line in manifest.lines().map(str::trim) {
        if line.starts_with('[') {
            within = line.ends_with("dependencies]");
        } else if within && let Some((name, _)) = line.split_once(['.', ' ', '=']) {
            found.push(name);
        }
    }
    found
}

fn arrows(files: &Files) -> Vec<String> {
    let mut found = Vec::new();
    for (folder, allowed) in ARROWS {
        let Some(manifest) = files.get(&format!("{folder}/Cargo.toml")) else {
            found.push(format!("{folder} has no Cargo.toml"));
            continue;
        };
        for name in dependencies(manifest) {
            let is_wrong_way = name.starts_with("shoal-") && !allowed.contains(&name);
            let is_impure = *folder == "proto" && IMPURE.contains(&name);
            if is_wrong_way || is_impure {
                found.push(format!("{folder} depends on {name}"));
            }
        }
    }
    found
}

/// Whether the code of `text`, comments aside, names the crate `name`.
fn names_crate(text: &str, name: &str) -> bool {
    let code = text.lines().map(|line| line.split("//").next().unwrap_or_default());
    code.into_iter().any(|line| {
        line.match_indices(name).any(|(at, _)| {
            let starts = !line[..at].ends_with(|c: char| c.is_alphanumeric() || c == '_' || c == ':');
            let rest = &line[at + name.len()..];
            let is_use = line.trim_start().starts_with("use ") && rest.starts_with([';', ' ']);
            starts && (rest.starts_with("::") || is_use)
        })
    })
}

fn doors(files: &Files) -> Vec<String> {
    let mut found = Vec::new();
    for (path, text) in sources(files).filter(|(path, _)| !path.starts_with("tests/")) {
        for (name, allowed) in DOORS {
            if names_crate(text, name) && !allowed.iter().any(|door| path.starts_with(door)) {
                found.push(format!("{path} names {name}, which only {} may", allowed.join(", ")));
            }
        }
    }
    found
}

/// What ships and reads the wall clock elsewhere.
fn wall_clocks(files: &Files) -> Vec<String> {
    let ships =
        |path: &str| ["proto/src/", "node/src/", "seeder/src/"].iter().any(|part| path.starts_with(part));
    let readers = sources(files).filter(|(path, text)| {
        ships(path) && text.contains("SystemTime::now") && !WALL_CLOCKS.contains(&path.as_str())
    });
    readers.map(|(path, _)| format!("{path} reads the wall clock")).collect()
}

/// Tests that the README names in the last cell of a row and nobody finds.
fn readme_tests(files: &Files) -> Vec<String> {
    let readme = files.get("README.md").map_or("", String::as_str);
    let is_function = |name: &str| {
        let head = format!("fn {name}(");
        sources(files).any(|(_, text)| text.contains(&head))
    };
    let cells = readme.lines().filter_map(|line| line.strip_suffix("` |")?.rsplit_once("| `"));
    let tests = cells.map(|(_, name)| name).filter(|name| name.contains('_') && !name.contains([' ', '-']));
    let missing = tests.filter(|name| !is_function(name.rsplit("::").next().unwrap_or(name)));
    missing.map(|name| format!("README.md names {name}")).collect()
}

/// Paths that the README names and nobody finds.
fn readme_paths(files: &Files) -> Vec<String> {
    let Some(readme) = files.get("README.md") else { return vec!["there is no README.md".to_owned()] };
    let words = readme.split(|c: char| c.is_whitespace() || "`()<>|\"'".contains(c));
    let words = words.map(|word| word.trim_end_matches(['.', ',', ':', ';', '/']));
    let is_path = |word: &&str| {
        ARROWS.iter().any(|(folder, _)| word.strip_prefix(folder).is_some_and(|rest| rest.starts_with('/')))
    };
    let exists = |word: &str| files.keys().any(|path| path == word || path.starts_with(&format!("{word}/")));
    words.filter(is_path).filter(|word| !exists(word)).map(|word| format!("README.md names {word}")).collect()
}

/// Results of simulations and benchmarks that the README quotes otherwise than they are.
fn readme_figures(files: &Files) -> Vec<String> {
    let readme = files.get("README.md").map_or("", String::as_str);
    let figure = |value: &serde_json::Value| value.as_f64().expect("a result has this figure");
    let mut broken = Vec::new();
    let mut last_of_run = BTreeMap::new();
    for (path, text) in files.iter().filter(|(path, _)| path.contains("/results/")) {
        let result: serde_json::Value = serde_json::from_str(text).expect("a result is JSON");
        let quoted: Vec<String> = match path.as_str() {
            "tests/results/tree.json" => {
                let ratios = result["ratios"].as_array().expect("a benchmark has ratios").iter();
                ratios.map(|ratio| format!("| {:.2} |", figure(&ratio["wall_minima"]))).collect()
            }
            "tests/results/tree-million.json" => {
                let parts = ["capture", "apply", "verify"];
                parts.map(|part| format!("{:.0} MB", figure(&result[part]["peak_rss_bytes"]) / 1e6)).to_vec()
            }
            lab if lab.starts_with("tests/results/lab-") => {
                let tools = result["tools"].as_array().expect("a lab says who else ran").iter();
                let rows = std::iter::once(&result).chain(tools);
                rows.map(|row| format!("| {:.1} s |", figure(&row["last_s"]))).collect()
            }
            _ => {
                let command = result["command"].as_str().expect("a run has its command").to_owned();
                last_of_run.insert(command, format!("| {:.3} |", figure(&result["last_over_bound"])));
                continue;
            }
        };
        if quoted.iter().any(|figure| !readme.contains(figure)) {
            broken.push(format!("README.md and {path}"));
        }
    }
    for (command, line) in readme_runs(readme) {
        match last_of_run.get(command) {
            Some(figure) if line.contains(figure) => {}
            Some(figure) => broken.push(format!("README.md: {command} gives {figure}")),
            None => broken.push(format!("README.md: no result is of {command}")),
        }
    }
    broken
}

/// The simulations that the README quotes, each with its line: a command that names its seed.
fn readme_runs(readme: &str) -> Vec<(&str, &str)> {
    let commands = |line| str::split(line, '`').filter(|part| part.starts_with("shoal-sim run "));
    let lines = readme.lines().flat_map(|line| commands(line).map(move |command| (command, line)));
    lines.filter(|(command, _)| command.contains("--seed ") && !command.contains('[')).collect()
}

/// A rule, and files that break it once each.
type Rule = (&'static str, fn(&Files) -> Vec<String>, &'static [(&'static str, &'static str)]);

const RULES: &[Rule] = &[
    ("a file has one subject", long_files, &[("node/src/long.rs", "\n\n\n\n\n\n\n\n")]),
    (
        "a name says what is in the file",
        empty_names,
        &[("node/src/util.rs", ""), ("seeder/src/common/clock.rs", ""), ("proto/src/image/helpers.rs", "")],
    ),
    ("the top level is fixed", top_level, &[("docs/plan.md", ""), ("build.sh", "")]),
    (
        "arrows between crates point one way",
        arrows,
        &[
            ("proto/Cargo.toml", "[dependencies]\nshoal-node.workspace = true"),
            ("proto/Cargo.toml", "[dev-dependencies]\ntokio = { workspace = true }"),
            ("node/Cargo.toml", "[dependencies]\nshoal-seeder.workspace = true"),
            ("simulations/Cargo.toml", "[dependencies]\nshoal-node = { path = \"../node\" }"),
        ],
    ),
    (
        "a dependency has one door",
        doors,
        &[
            ("node/src/install.rs", "use sled::Db;"),
            ("seeder/src/catalog.rs", "    let db = sled::open(path)?;"),
            ("node/src/install.rs", "use libp2p::Swarm;"),
            ("proto/src/exchange.rs", "fn listen(address: libp2p::Multiaddr) {}"),
            ("node/src/tree/capture.rs", "use zstd;"),
        ],
    ),
    (
        "the README names what exists",
        readme_paths,
        &[("README.md", "see `proto/src/gone.rs`, which is the main path")],
    ),
    ("the wall clock jumps", wall_clocks, &[("node/src/install.rs", "let now = SystemTime::now();")]),
    (
        "the README names tests that are there",
        readme_tests,
        &[("README.md", "| kill -9 | resumed | `kill_points::it_is_gone` |")],
    ),
    (
        "the README quotes what was measured",
        readme_figures,
        &[
            (
                "simulations/results/flash-crowd.json",
                "{\"last_over_bound\":1.09,\"command\":\"shoal-sim run flash-crowd --seed 1\"}",
            ),
            ("simulations/results/flash-crowd.json", "{\"last_over_bound\":1.0372,\"command\":\"another\"}"),
            ("tests/results/tree.json", "{\"ratios\":[{\"wall_minima\":0.5}]}"),
            ("tests/results/lab-8.json", "{\"last_s\":8.24,\"tools\":[{\"last_s\":9.5}]}"),
        ],
    ),
];

#[test]
fn the_house_is_tidy() {
    let files = repository();
    assert!(files.len() > 20, "the repository was not found");
    let broken: Vec<String> = RULES
        .iter()
        .flat_map(|(name, rule, _)| rule(&files).into_iter().map(move |what| format!("{name}: {what}")))
        .collect();
    assert!(broken.is_empty(), "{broken:#?}");
}

#[test]
fn each_rule_sees_what_breaks_it() {
    for (name, rule, breaches) in RULES {
        for (path, text) in *breaches {
            let mut files = tidy_files();
            assert_eq!(rule(&files), [""; 0], "{name}");
            files.insert((*path).to_owned(), text.repeat(if path.ends_with("long.rs") { 101 } else { 1 }));
            assert_eq!(rule(&files).len(), 1, "{name}: {path}: {text}");
        }
    }
}

/// A small repository that breaks no rule, though it comes near.
fn tidy_files() -> Files {
    let pairs = [
        (
            "README.md",
            "Read `proto/src/exchange.rs`, then node/src. Packs: seeder/.\n| bits | `store::a_bit_flips` |\n| 1.037 | `shoal-sim run flash-crowd --seed 1` |",
        ),
        (
            "simulations/results/flash-crowd.json",
            "{\"last_over_bound\":1.0372,\"command\":\"shoal-sim run flash-crowd --seed 1\"}",
        ),
        ("Cargo.toml", "[workspace.dependencies]\nsled = \"0.34\""),
        (".ci/run", "cargo test"),
        ("proto/Cargo.toml", "[dependencies]\nlibp2p-identity.workspace = true"),
        ("proto/src/exchange.rs", "use libp2p_identity::PeerId; // not libp2p::PeerId"),
        ("node/Cargo.toml", "[dependencies]\nshoal-proto.workspace = true\nsled.workspace = true"),
        ("node/src/store/index.rs", "use sled::Db;"),
        (
            "node/src/store.rs",
            "//! sled::Db is behind its door.\nlet unassembled = unsled::open();\nfn a_bit_flips() {}",
        ),
        ("node/src/peer/driver.rs", "use libp2p::Swarm;"),
        ("seeder/Cargo.toml", "[dependencies]\nshoal-node.workspace = true"),
        (
            "simulations/Cargo.toml",
            "[package]\nname = \"shoal-sim\"\n[dependencies]\nshoal-proto.workspace = true",
        ),
        ("tests/Cargo.toml", "[dev-dependencies]\nshoal-seeder.workspace = true"),
    ];
    pairs.map(|(path, text)| (path.to_owned(), text.to_owned())).into()
}
