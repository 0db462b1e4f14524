//! Modes and lists: how a host comes to its tree, and what of it stays the machine's.

use std::fs;
use std::path::Path;

use harness::{Node, Process, json};

use super::{Site, command, refusal, run, set_mode, tree};

/// A cluster of one host, with these lines in its table.
fn cluster(lines: &str) -> String {
    format!("[global]\nimage = \"image\"\nhost_name = false\n[group.g]\nhosts = \"n1\"\n{lines}\n")
}

fn site() -> Site {
    let site = Site::new();
    for path in ["opt/app/file", "opt/cache/kept", "srv/data/seed", "opt/big/blob"] {
        site.write(&format!("image/{path}"), format!("image {path}"));
    }
    site
}

fn put(node: &Node, path: &str, content: &str) {
    let path = node.target().join(path);
    fs::create_dir_all(path.parent().unwrap()).unwrap();
    fs::write(path, content).unwrap();
}

fn content(node: &Node, path: &str) -> Option<String> {
    fs::read_to_string(node.target().join(path)).ok()
}

fn republish(site: &Site, lines: &str) {
    site.write("cluster.toml", cluster(lines));
    site.publish_again();
}

#[test]
fn each_mode_comes_to_the_tree_in_its_own_way() {
    let site = site();
    let server = site.publish(&cluster("mode = \"none\""));
    let node = Node::new();
    let report = run(&node, "install", &server.ticket, "n1", &[]);
    assert!(report["untouched"] == true && tree(&node.target()).is_empty(), "{report}");

    // Nothing says that what is there may go.
    republish(&site, "mode = \"auto\"");
    put(&node, "mine", "mine");
    let said = refusal(command(&node, "install", &server.ticket, "n1", &[]));
    assert!(said.contains("is not empty"), "{said}");
    fs::remove_file(node.target().join("mine")).unwrap();
    run(&node, "install", &server.ticket, "n1", &[]);
    let installed = tree(&node.target());
    assert_eq!(installed, tree(&site.path("image")));

    // In place: what nobody brought stays.
    put(&node, "mine", "mine");
    put(&node, "opt/app/file", "changed");
    let report = run(&node, "install", &server.ticket, "n1", &[]);
    assert_eq!(
        (&report["replaced"], content(&node, "mine").unwrap()),
        (&1.into(), "mine".to_owned()),
        "{report}"
    );
    assert_eq!(content(&node, "opt/app/file").unwrap(), "image opt/app/file");

    // Anew: it does not.
    republish(&site, "mode = \"full\"");
    run(&node, "install", &server.ticket, "n1", &[]);
    assert_eq!(tree(&node.target()), installed);

    // A tree that nobody installed, in place; the command line's word counts more.
    let other = Node::new();
    put(&other, "mine", "mine");
    run(&other, "install", &server.ticket, "n1", &["--mode", "sync"]);
    assert_eq!(content(&other, "opt/app/file").unwrap(), "image opt/app/file");
    assert_eq!(content(&other, "mine").unwrap(), "mine");
}

#[test]
fn a_target_that_is_to_be_emptied_waits_for_a_person_where_one_is_asked() {
    let site = site();
    let server = site.publish(&cluster("mode = \"full\"\nconfirm = true"));
    let node = Node::new();
    // Nothing goes.
    run(&node, "install", &server.ticket, "n1", &[]);
    put(&node, "mine", "mine");
    let said = refusal(command(&node, "install", &server.ticket, "n1", &[]));
    assert!(said.contains("goes, on host n1: --yes confirms it"), "{said}");
    assert!(content(&node, "mine").is_some());
    run(&node, "install", &server.ticket, "n1", &["--yes"]);
    assert!(content(&node, "mine").is_none());

    republish(&site, "mode = \"full\"");
    put(&node, "mine", "mine");
    let said = refusal(command(&node, "install", &server.ticket, "n1", &["--confirm"]));
    assert!(said.contains("--yes confirms it"), "{said}");
    run(&node, "install", &server.ticket, "n1", &[]);
    assert!(content(&node, "mine").is_none());
}

#[test]
fn what_is_preserved_outlives_even_a_full_install_and_verify_knows_it() {
    let site = site();
    let server = site.publish(&cluster("mode = \"full\"\npreserve = [\"/opt/cache/\"]"));
    let node = Node::new();
    run(&node, "install", &server.ticket, "n1", &[]);
    put(&node, "opt/cache/mine", "mine");
    put(&node, "opt/cache/kept", "changed");
    put(&node, "opt/app/file", "changed");
    put(&node, "other", "goes");
    fs::remove_file(node.target().join("srv/data/seed")).unwrap();
    for _ in 0..2 {
        run(&node, "install", &server.ticket, "n1", &[]);
        assert_eq!(content(&node, "opt/cache/mine").unwrap(), "mine");
        assert_eq!(content(&node, "opt/cache/kept").unwrap(), "changed");
        assert_eq!(content(&node, "opt/app/file").unwrap(), "image opt/app/file");
        // By the default rules a machine's own, which a full install does not leave to it.
        assert_eq!(content(&node, "srv/data/seed").unwrap(), "image srv/data/seed");
        assert!(content(&node, "other").is_none());
        node.on_target(&["verify"]).expect_success();
    }
    run(&node, "update", &server.ticket, "n1", &[]);
    assert_eq!(content(&node, "opt/cache/mine").unwrap(), "mine");
}

#[test]
fn lists_leave_out_at_a_full_install_and_leave_alone_in_place() {
    let site = site();
    let lines = "exclude = { full = [\"/opt/big/\"], sync = [\"/opt/app/\"], update = [\"/opt/cache/kept\"] }\n\
                 no_new_files = [\"/opt/big/*\"]";
    let server = site.publish(&cluster(lines));
    let node = Node::new();
    run(&node, "install", &server.ticket, "n1", &[]);
    assert!(!node.target().join("opt/big").exists() && content(&node, "opt/app/file").is_some());
    node.on_target(&["verify"]).expect_success();

    put(&node, "opt/cache/kept", "mine");
    put(&node, "opt/app/file", "mine");
    run(&node, "update", &server.ticket, "n1", &[]);
    assert_eq!(content(&node, "opt/cache/kept").unwrap(), "mine");
    assert_eq!(content(&node, "opt/app/file").unwrap(), "image opt/app/file");
    assert!(
        node.target().join("opt/big").exists() && content(&node, "opt/big/blob").is_none(),
        "not created"
    );
    put(&node, "opt/big/blob", "there by now");
    put(&node, "opt/app/file", "mine");
    run(&node, "install", &server.ticket, "n1", &["--mode", "sync"]);
    assert_eq!(content(&node, "opt/big/blob").unwrap(), "image opt/big/blob", "kept as the image has it");
    assert_eq!(content(&node, "opt/app/file").unwrap(), "mine");
    assert_eq!(content(&node, "opt/cache/kept").unwrap(), "image opt/cache/kept");
}

#[test]
fn a_reinstalled_machine_is_who_it_was_and_its_host_name_is_the_clusters() {
    const OLD: &str = "0123456789abcdef0123456789abcdef\n";
    const GOLDEN: &str = "ffffffffffffffffffffffffffffffff\n";
    let site = site();
    site.write("image/etc/machine-id", GOLDEN);
    site.write("image/etc/hostname", "golden\n");
    site.write("image/etc/ssh/ssh_host_rsa_key", "golden key");
    set_mode(&site.path("image/etc/ssh/ssh_host_rsa_key"), 0o600);
    let plain = "[global]\nimage = \"image\"\nmode = \"full\"\n[group.g]\nhosts = \"n1\"\n";
    let server = site.publish(plain);
    let node = Node::new();
    run(&node, "install", &server.ticket, "n1", &[]);
    let id = content(&node, "etc/machine-id").unwrap();
    assert!(id != GOLDEN && id.len() == GOLDEN.len(), "{id}");
    assert_eq!(content(&node, "etc/hostname").unwrap(), "n1\n");
    assert_eq!(content(&node, "etc/ssh/ssh_host_rsa_key").unwrap(), "golden key", "there is no other");
    fs::remove_file(node.target().join("etc/machine-id")).unwrap();
    put(&node, "etc/machine-id", OLD);
    put(&node, "etc/ssh/ssh_host_rsa_key", "own key");
    let again = |node: &Node| {
        let finished = Process::start(command(node, "install", &server.ticket, "n1", &[])).finish();
        json(&finished.expect_success().stdout.concat())
    };
    again(&node);
    assert_eq!(content(&node, "etc/machine-id").unwrap(), OLD);
    assert_eq!(content(&node, "etc/ssh/ssh_host_rsa_key").unwrap(), "own key");
    assert!(is_private(&node.target().join("etc/ssh/ssh_host_rsa_key")));
    node.on_target(&["verify"]).expect_success();

    let off = "machine_id = false\nhost_name = false\nssh_host_keys = false\n";
    site.write("cluster.toml", plain.replace("[group.g]", &format!("{off}[group.g]")));
    site.publish_again();
    again(&node);
    assert_eq!(content(&node, "etc/machine-id").unwrap(), GOLDEN);
    assert_eq!(content(&node, "etc/hostname").unwrap(), "golden\n");
    assert_eq!(content(&node, "etc/ssh/ssh_host_rsa_key").unwrap(), "golden key");
}

fn is_private(path: &Path) -> bool {
    use std::os::unix::fs::PermissionsExt;
    fs::metadata(path).unwrap().permissions().mode() & 0o7777 == 0o600
}
