//! A machine as the image of a cluster: a Debian offered from a network namespace of its own, captured, changed by
//! its package manager, captured again, and installed on four nodes of two groups.

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use harness::{Installing, Node, Process, Server, is_root, json, number, skipped, text};
use serde_json::Value;

use super::{Site, tree};

/// Names a debootstrapped tree, and the same tree after packages were installed in it. `.ci/run` makes them.
const TREE: &str = "SHOAL_TEST_DEBIAN";
const MORE: &str = "SHOAL_TEST_DEBIAN_MORE";

const CLUSTER: &str = r#"
[global]
image = "image"
host_name = false

[group.compute]
hosts = "node[01-02]"
overrides = ["compute"]

[group.login]
hosts = "node[03-04]"
overrides = ["login"]

[host.node02]
overrides = ["node02"]
[host.node04]
overrides = ["node04"]
"#;

/// Two network namespaces with a cable between them: the image server's, and the golden client's.
struct Cable {
    server: String,
    golden: String,
}

const SERVER: &str = "10.91.0.1";

fn ip(arguments: &[&str]) {
    let done = Command::new("ip").args(arguments).output().unwrap();
    assert!(done.status.success(), "ip {arguments:?}: {}", String::from_utf8_lossy(&done.stderr));
}

impl Cable {
    fn new() -> Self {
        let name = |end| format!("shoal-{end}-{}", std::process::id());
        let cable = Self { server: name("server"), golden: name("golden") };
        let (server, golden) = (&*cable.server, &*cable.golden);
        ip(&["netns", "add", server]);
        ip(&["netns", "add", golden]);
        ip(&["-n", server, "link", "add", "eth0", "type", "veth", "peer", "name", "eth0", "netns", golden]);
        for (end, address) in [(server, SERVER), (golden, "10.91.0.2")] {
            ip(&["-n", end, "address", "add", &format!("{address}/24"), "dev", "eth0"]);
            ip(&["-n", end, "link", "set", "eth0", "up"]);
            ip(&["-n", end, "link", "set", "lo", "up"]);
        }
        cable
    }

    /// The command in one of the namespaces.
    fn at(namespace: &str, command: &Command) -> Command {
        let mut inside = Command::new("ip");
        inside.args(["netns", "exec", namespace]).arg(command.get_program()).args(command.get_args());
        inside
    }
}

impl Drop for Cable {
    fn drop(&mut self) {
        for namespace in [&self.server, &self.golden] {
            let _ = Command::new("ip").args(["netns", "delete", namespace]).status();
        }
    }
}

/// Makes `to` the same tree as `from`, as a package manager would have left it.
fn become_as(from: &Path, to: &Path) {
    let mut rsync = Command::new("rsync");
    rsync.args(["-aHAX", "--delete"]).arg(from.join("")).arg(to.join(""));
    Process::start(rsync).finish().expect_success();
}

fn debian(name: &str) -> Option<PathBuf> {
    let path = std::env::var_os(name).map(PathBuf::from)?;
    assert!(path.join("etc/debian_version").exists(), "{} is no Debian", path.display());
    Some(path)
}

fn capture(site: &Site) -> Value {
    json(&site.publisher.run(&["capture", "golden:gold", "image", "--json"]).expect_success().stdout.concat())
}

#[test]
fn a_debian_is_offered_captured_twice_and_laid_under_overrides_on_four_nodes() {
    let (Some(before), Some(after), true) = (debian(TREE), debian(MORE), is_root()) else {
        skipped(&format!("needs root, and the trees that {TREE} and {MORE} name"));
        return;
    };
    let site = Site::new();
    site.write("overrides/compute/etc/motd", "compute\n");
    site.write("overrides/compute/srv/scratch/README", "gone tomorrow\n");
    site.write("overrides/login/etc/motd", "login\n");
    site.write("overrides/login/usr/share/.wh.doc", "");
    site.write("overrides/node02/etc/motd", "node02\n");
    site.write("overrides/node04/srv/only-here", "x");
    let golden_tree = site.path("golden");
    become_as(&before, &golden_tree);

    let cable = Cable::new();
    let server = site.publisher.serve_command(&format!("{SERVER}:0"), &[]);
    let server = Server::start(Cable::at(&cable.server, &server));
    let golden = Node::new();
    let mut offer = golden.command(&["offer", "--to", &server.ticket, "--name", "gold", "--json"]);
    offer.arg(&golden_tree);
    let offering = Process::start(Cable::at(&cable.golden, &offer));
    offering.stdout_line(|line| line.contains("offered"));

    let first = capture(&site);
    let idle = capture(&site);
    assert_eq!((&idle["image"], number(&idle, "new_blocks")), (&first["image"], 0));
    become_as(&after, &golden_tree);
    let second = capture(&site);
    let (names, moved) = (number(&idle, "received_bytes"), number(&second, "received_bytes"));
    let new = number(&second, "new_compressed_bytes");
    println!(
        "a Debian of {} bytes: first capture {} bytes, one without a change {names}, one after packages were \
         installed {moved}, of which {new} are {} new blocks, compressed; {} blocks in all",
        number(&second, "raw_bytes"),
        number(&first, "received_bytes"),
        number(&second, "new_blocks"),
        number(&second, "blocks"),
    );

    // What travelled beyond what every capture says of entries is what is new, and how its chunks were cut together.
    assert!((moved - names) as f64 <= 1.1 * new as f64, "{moved} bytes for {new} new ones");

    site.write("cluster.toml", CLUSTER);
    site.publish_again();
    let nodes: BTreeMap<&str, Node> =
        ["node01", "node02", "node03", "node04"].into_iter().map(|name| (name, Node::new())).collect();
    let installing: Vec<Installing> = nodes
        .iter()
        .map(|(name, node)| {
            let command = node.install_command(&server.ticket, &["--host", name, "--seed-for", "1h"]);
            Installing { process: Process::start(Cable::at(&cable.server, &command)) }
        })
        .collect();
    for installing in &installing {
        installing.report();
    }
    let sources: BTreeMap<&str, BTreeMap<String, String>> = ["compute", "login", "node02", "node04"]
        .into_iter()
        .map(|layer| (layer, tree(&site.path(&format!("overrides/{layer}")))))
        .chain([("image", tree(&golden_tree))])
        .collect();
    for (name, node) in &nodes {
        let said = site.explain(&[".", name, "--below"]);
        let paths = said["paths"].as_array().unwrap();
        let found = tree(&node.target());
        // The top is among them.
        assert_eq!(paths.len(), found.len() + 1, "{name}");
        for path in paths.iter().filter(|path| path["path"] != ".") {
            let (place, layer) = (text(path, "path"), text(path, "layer"));
            assert_eq!(found.get(&place), sources[&*layer].get(&place), "{name}: {place} of {layer}");
        }
    }
    let has = |name: &str, path: &str| nodes[name].target().join(path).exists();
    assert!(
        has("node01", "usr/share/doc") && !has("node03", "usr/share/doc") && has("node04", "srv/only-here")
    );
    assert_eq!(fs::read_to_string(nodes["node02"].target().join("etc/motd")).unwrap(), "node02\n");
}
