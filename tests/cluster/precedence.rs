//! One precedence, whichever way a tree comes about: image < global < groups by priority < host < command line.

use std::collections::BTreeMap;
use std::fs;
use std::path::Path;

use harness::{Node, Process, text};
use shoal_proto::host::HostName;
use shoal_seeder::cluster::import::{Sources, import};
use shoal_seeder::cluster::resolve::CommandLine;
use shoal_seeder::cluster::{self, Cluster};

use super::{Site, command, link, refusal, run, set_mode, tree};

const HOSTS: usize = 40;
/// Nodes at work at once.
const TOGETHER: usize = 8;

/// Five groups that overlap, four of them with a priority; one host in ten has an override of its own.
const CLUSTER: &str = r#"
[global]
image = "image"
overrides = ["site", "base"]
host_name = false

[group.even]
hosts = "node[02,04,06,08,10,12,14,16,18,20,22,24,26,28,30,32,34,36,38,40]"
priority = 20
overrides = ["even"]

[group.third]
hosts = "node[03,06,09,12,15,18,21,24,27,30,33,36,39]"
priority = 10
overrides = ["third", "shared"]

[group.low]
hosts = ["node[01-20]"]
priority = 5
overrides = ["low"]

[group.last]
hosts = ["node[01-40]"]
overrides = ["shared", "last"]

[group.spare]
hosts = ["node[31-40]"]
priority = 20
overrides = ["spare"]

[host.node10]
overrides = ["node10"]
[host.node20]
overrides = ["node20"]
[host.node30]
overrides = ["node30"]
[host.node40]
overrides = ["node40"]
"#;

/// The same, as SystemImager has it. Overrides of hosts are found by their names.
const CLUSTER_XML: &str = r"<?xml version='1.0' standalone='yes'?>
<master>
  <name>everybody</name>
  <override>site</override>
  <override>base</override>
  <group>
    <name>even</name>
    <priority>20</priority>
    <image>image</image>
    <override>even</override>
    <node>node02, node04 node06,node08 node10 node12 node14 node16 node18 node20</node>
    <node>node22 node24 node26 node28 node30 node32 node34 node36 node38 node40</node>
  </group>
  <group>
    <name>third</name>
    <priority>10</priority>
    <image>image</image>
    <override>third</override>
    <override>shared</override>
    <node>node03 node06 node09 node12 node15 node18 node21 node24 node27 node30 node33 node36 node39</node>
  </group>
  <group>
    <name>low</name>
    <priority>5</priority>
    <image>image</image>
    <override>low</override>
    <node>node01.example.org-node20.example.org</node>
  </group>
  <group>
    <name>last</name>
    <image>image</image>
    <override>shared</override>
    <override>last</override>
    <node>node01-node30 spare</node>
  </group>
  <group>
    <name>spare</name>
    <priority>20</priority>
    <image>image</image>
    <override>spare</override>
    <node>node31-node40</node>
  </group>
</master>
";

/// The layers of a host, the lowest first, worked out by hand: not by the resolver.
fn layers(number: usize) -> Vec<String> {
    let mut layers = vec!["base", "site"];
    let third = number.is_multiple_of(3);
    layers.push("last");
    // Two groups name it: where it counts more, it counts.
    if !third {
        layers.push("shared");
    }
    // Of the same priority, the name that comes first in the alphabet is more important.
    if number > 30 {
        layers.push("spare");
    }
    if number.is_multiple_of(2) {
        layers.push("even");
    }
    if third {
        layers.extend(["shared", "third"]);
    }
    if number <= 20 {
        layers.push("low");
    }
    let mut layers: Vec<String> = layers.into_iter().map(str::to_owned).collect();
    if number.is_multiple_of(10) {
        layers.push(host(number));
    }
    layers
}

fn host(number: usize) -> String {
    format!("node{number:02}")
}

const NAMES: [&str; 9] = ["base", "site", "last", "shared", "spare", "even", "third", "low", "nobody"];

/// Overrides that hide, replace and merge each other's files.
fn fill(site: &Site) {
    for name in NAMES {
        site.write(&format!("image/opt/{name}/image"), "image");
        site.write(&format!("image/opt/gone-by/{name}"), "image");
    }
    site.write("image/opt/same", "image");
    site.write("image/opt/dir/a", "image a");
    site.write("image/opt/dir/deep/b", "image b");
    link("opt/dir", &site.path("image/link"));
    let own = (1..=4).map(|ten| host(10 * ten));
    for (at, name) in NAMES.iter().map(|name| (*name).to_owned()).chain(own).enumerate() {
        let put = |path: &str, content: &str| site.write(&format!("overrides/{name}/{path}"), content);
        // Whoever comes last has these.
        put("opt/same", &name);
        put(&format!("opt/{name}/own"), &name);
        put(&format!("opt/gone-by/.wh.{name}"), "");
        match at % 4 {
            0 => put("opt/dir/.wh.a", ""),
            1 => put("opt/dir/a", &name),
            2 => put("opt/dir/deep/.wh..wh..opq", ""),
            _ => put("opt/dir/deep/b", &name),
        }
        set_mode(&site.path(&format!("overrides/{name}/opt/{name}")), 0o700 + u32::try_from(at).unwrap());
    }
    // A file takes the place of a folder, and a folder that of a file.
    site.write("overrides/third/opt/nobody", "a file");
    site.write("overrides/low/opt/nobody/x", "a folder again");
    // Of the same size and time as the image's.
    site.write("image/opt/quick", "image");
    site.write("overrides/base/opt/quick", "IMAGE");
    let time = fs::metadata(site.path("image/opt/quick")).unwrap().modified().unwrap();
    let file = fs::File::options().write(true).open(site.path("overrides/base/opt/quick")).unwrap();
    file.set_modified(time).unwrap();
}

/// A naive resolver: layer after layer, copied into a map.
fn expected(site: &Site, number: usize) -> BTreeMap<String, String> {
    let mut found = tree(&site.path("image"));
    for name in layers(number) {
        let layer = tree(&site.path(&format!("overrides/{name}")));
        let is_below = |path: &str, around: &str| path.starts_with(&format!("{around}/"));
        for path in layer.keys() {
            let (around, name) = path.rsplit_once('/').unwrap_or(("", path));
            if name == ".wh..wh..opq" {
                found.retain(|known, _| !is_below(known, around));
            } else if let Some(taken) = name.strip_prefix(".wh.") {
                let taken = format!("{around}/{taken}");
                found.retain(|known, _| *known != taken && !is_below(known, &taken));
            }
        }
        for (path, what) in layer.iter().filter(|(path, _)| !path.contains(".wh.")) {
            if !what.starts_with("directory") {
                found.retain(|known, _| !is_below(known, path));
            }
            found.insert(path.clone(), what.clone());
        }
    }
    found
}

#[test]
fn forty_hosts_get_the_same_tree_by_install_and_by_update_from_another_host() {
    let site = Site::new();
    fill(&site);
    let server = site.publish(CLUSTER);
    let nodes: Vec<Node> = (0..HOSTS).map(|_| Node::new()).collect();
    let is = |node: &Node, number: usize, verb: &str| {
        let (found, expected) = (tree(&node.target()), expected(&site, number));
        assert_eq!(found, expected, "{} by {verb} (layers {:?})", host(number), layers(number));
    };
    // The first goes on serving what all have.
    let _first = nodes[0].install(&server.ticket, "image");
    for verb in ["install", "update"] {
        let step = usize::from(verb == "update");
        // An update makes each node the host seven further on.
        let number = |at: usize| (at + 7 * step) % HOSTS + 1;
        let others: Vec<usize> = (1..HOSTS).collect();
        for batch in others.chunks(TOGETHER) {
            let start = |at: &usize| {
                (*at, Process::start(command(&nodes[*at], verb, &server.ticket, &host(number(*at)), &[])))
            };
            let running: Vec<(usize, Process)> = batch.iter().map(start).collect();
            for (at, process) in running {
                process.finish().expect_success();
                is(&nodes[at], number(at), verb);
            }
        }
    }
    // What is recorded is what is there: it verifies, and a rollback is the tree before.
    for at in [1, 9, 19] {
        let rules = ["verify", "--all", "--json"];
        nodes[at].on_target(&rules).expect_success();
        nodes[at].on_target(&["rollback", "--json"]).expect_success();
        is(&nodes[at], at + 1, "rollback");
        nodes[at].on_target(&rules).expect_success();
    }
}

fn named(cluster: &Cluster, host: &str, command: &CommandLine) -> Vec<String> {
    cluster.resolve(&host.parse::<HostName>().unwrap(), command).unwrap().names()
}

fn read(path: &Path) -> Cluster {
    cluster::read(path).unwrap_or_else(|problems| panic!("{problems:#?}"))
}

#[test]
fn an_imported_cluster_xml_gives_every_host_what_the_cluster_file_gives_it() {
    let site = Site::new();
    fill(&site);
    site.write("cluster.toml", CLUSTER);
    site.write("cluster.xml", CLUSTER_XML);
    site.write("local.exclude", "# what a machine owns\n/var/log/*\n- *.journal\n\n/var/log/*\n");
    let (overrides, excludes) = (site.path("overrides"), site.path("local.exclude"));
    let sources = Sources { overrides: Some(&overrides), excludes: &[&excludes], ..Sources::default() };
    let imported = import(&site.path("cluster.xml"), sources).unwrap();
    assert!(imported.notes.is_empty(), "{:?}", imported.notes);
    site.write("imported.toml", &imported.toml);
    let (ours, theirs) = (read(&site.path("cluster.toml")), read(&site.path("imported.toml")));
    assert_eq!(ours.host_names(), theirs.host_names());
    let extra = CommandLine { image: None, overrides: vec!["nobody".parse().unwrap()] };
    for number in 1..=HOSTS {
        let name = host(number);
        let layers = [vec!["image".to_owned()], layers(number)].concat();
        assert_eq!(named(&ours, &name, &CommandLine::default()), layers);
        assert_eq!(named(&theirs, &name, &CommandLine::default()), layers, "{}", imported.toml);
        let with_extra = [layers, vec!["nobody".to_owned()]].concat();
        assert_eq!(named(&theirs, &name, &extra), with_extra);
    }
    let lists = theirs.resolve(&"node01".parse().unwrap(), &CommandLine::default()).unwrap().lists;
    assert_eq!(lists.exclude_update, ["/var/log/*", "*.journal"]);
    assert_eq!(lists.exclude_sync, lists.exclude_update);
}

#[test]
fn what_cannot_be_imported_is_named_by_its_line() {
    let site = Site::new();
    let cases = [
        ("<master><group><name>g</name><node>n3-n1</node></group></master>", 1, "ends before it begins"),
        ("<master>\n<group>\n<name>g</name>\n<node>n/1</node></group></master>", 4, "not a host name"),
        ("<master>\n<group><node>n1</node></group></master>", 2, "a <group> without a name, expected <name>"),
        (
            "<master>\n<group><name>g</name>\n<priority>x</priority></group></master>",
            3,
            "expected a whole number",
        ),
        ("<master>\n<overide>x</overide></master>", 2, "has <overide> in <master>, expected"),
        ("<cluster/>", 1, "begins with <cluster>, expected <master>"),
        ("<master>\n<group></master>", 2, "is no XML"),
    ];
    for (xml, line, said) in cases {
        site.write("cluster.xml", xml);
        let problems = import(&site.path("cluster.xml"), Sources::default()).unwrap_err();
        let found = problems.iter().any(|problem| problem.line == line && problem.what.contains(said));
        assert!(found, "{xml}: expected line {line}, {said:?} in {problems:#?}");
    }
    site.write(
        "cluster.xml",
        "<master>\n<group><name>g</name>\n<dynamic_node>hosts.sh</dynamic_node></group></master>",
    );
    let notes = import(&site.path("cluster.xml"), Sources::default()).unwrap().notes;
    assert!(notes[0].line == 3 && notes[0].what.contains("hosts.sh"), "{notes:?}");
}

#[test]
fn trees_of_two_groups_are_what_explain_says_path_by_path() {
    let site = Site::new();
    fill(&site);
    let server = site.publish(CLUSTER);
    for number in [6, 20, 31, 40] {
        let node = Node::new();
        let name = host(number);
        run(&node, "install", &server.ticket, &name, &[]);
        let said = site.explain(&[".", &name, "--below"]);
        let found = tree(&node.target());
        let paths = said["paths"].as_array().unwrap();
        // The top is among them.
        assert_eq!(paths.len(), found.len() + 1);
        for path in paths.iter().filter(|path| path["path"] != ".") {
            let (place, layer) = (text(path, "path"), text(path, "layer"));
            let folder = if layer == "image" { "image".to_owned() } else { format!("overrides/{layer}") };
            let source = tree(&site.path(&folder));
            assert_eq!(found.get(&place), source.get(&place), "{name}: {place} of {layer}");
        }
    }
    let gone = site.explain(&["/opt/gone-by/low", "node01"]);
    let said = &gone["paths"][0]["said"];
    assert!(gone["paths"][0]["layer"].is_null() && said[0]["says"] == "has", "{gone}");
    assert!(said[1]["layer"] == "low" && said[1]["says"] == "takes away", "{gone}");

    let diff = site.publisher.run(&["diff", "node01", "image", "--json"]).expect_success().stdout.concat();
    let diff = harness::json(&diff);
    let differing: BTreeMap<String, String> = diff["paths"]
        .as_array()
        .unwrap()
        .iter()
        .map(|path| (text(path, "path"), text(path, "what")))
        .collect();
    let (image, here) = (tree(&site.path("image")), expected(&site, 1));
    let removed = image.keys().filter(|path| !here.contains_key(*path)).count();
    let added = here.keys().filter(|path| !image.contains_key(*path)).count();
    let count = |what: &str| differing.values().filter(|found| *found == what).count();
    assert_eq!((count("removed"), count("added")), (removed, added), "{differing:#?}");
    assert_eq!(differing.get("opt/same").unwrap(), "changed");
}

#[test]
fn what_leaves_an_override_comes_back_and_what_the_command_line_says_wins() {
    let site = Site::new();
    site.write("image/opt/a", "image");
    site.write("image/opt/b", "image b");
    site.write("overrides/one/opt/.wh.a", "");
    site.write("overrides/one/opt/b", "one");
    site.write("overrides/two/opt/b", "two");
    let cluster = "[global]\nimage = \"image\"\noverrides = [\"one\"]\n[group.g]\nhosts = \"n[1-2]\"\n\
                   [host.unused]\noverrides = [\"two\"]\n";
    let server = site.publish(cluster);
    let node = Node::new();
    let report = run(&node, "install", &server.ticket, "n1", &[]);
    assert_eq!(report["layered"]["layers"], serde_json::json!(["one"]));
    let content = |path: &str| fs::read_to_string(node.target().join(path)).ok();
    assert_eq!((content("opt/a"), content("opt/b").unwrap()), (None, "one".to_owned()));
    site.remove("overrides/one/opt/.wh.a");
    site.remove("overrides/one/opt/b");
    site.publish_again();
    run(&node, "update", &server.ticket, "n1", &[]);
    assert_eq!(
        (content("opt/a").unwrap(), content("opt/b").unwrap()),
        ("image".to_owned(), "image b".to_owned())
    );
    run(&node, "update", &server.ticket, "n1", &["--override", "two"]);
    assert_eq!(content("opt/b").unwrap(), "two");
    // The image's own is in a piece that came for other files' sake, and in no file: it was kept for this.
    node.on_target(&["rollback", "--json"]).expect_success();
    assert_eq!(content("opt/b").unwrap(), "image b");
    run(&node, "update", &server.ticket, "n1", &["--override", "two"]);
    run(&node, "update", &server.ticket, "n1", &[]);
    assert_eq!(content("opt/b").unwrap(), "image b");

    let said = refusal(command(&node, "update", &server.ticket, "n9", &[]));
    assert!(said.contains("does not name host n9") && said.contains("--alone"), "{said}");
    let said = refusal(command(&node, "update", &server.ticket, "n1", &["--override", "three"]));
    assert!(said.contains("there is no override three"), "{said}");
    assert_eq!(content("opt/b").unwrap(), "image b");
}

#[test]
fn a_folder_over_a_link_is_refused_before_anything_is_published() {
    let site = Site::new();
    site.write("image/usr/lib/libc", "image");
    link("usr/lib", &site.path("image/lib"));
    site.write("overrides/one/lib/firmware", "one");
    site.publisher.capture(&site.path("image"), "image");
    site.write(
        "cluster.toml",
        "[global]\nimage = \"image\"\noverrides = [\"one\"]\n[group.g]\nhosts = \"n1\"\n",
    );
    let file = site.path("cluster.toml");
    let finished = site.publisher.run(&["cluster", "publish", file.to_str().unwrap()]);
    let said = finished.stderr.join("\n");
    assert_eq!(finished.status.code(), Some(1));
    assert!(said.contains("image < one") && said.contains("symbolic link to usr/lib"), "{said}");
}
