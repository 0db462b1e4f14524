//! Scripts run in the order of their names, know what they are for, and are gone on with where one failed.

use std::fs;
use std::process::Command;
use std::time::{Duration, Instant};

use harness::{Node, is_root, skipped};

use super::{Site, command, refusal, run};

const CLUSTER: &str = r#"
[global]
image = "image"
variables = { NTP = "10.0.0.1", WHO = "global" }
host_name = false

[group.web]
hosts = "node[01-09]"
priority = 5
variables = { WHO = "web" }

[group.rack]
hosts = "node[01-09]"
priority = 1

[host.node07]
variables = { OWN = "yes" }
"#;

/// Says its name, in the tree.
const NOTE: &str = "echo \"$SHOAL_SCRIPT\" >> var/log/ran\n";

fn site() -> Site {
    let site = Site::new();
    site.write("image/opt/app", "one");
    // The machine's own by the default rules.
    site.write("image/var/log/first", "");
    site
}

fn ran(node: &Node) -> Vec<String> {
    let text = fs::read_to_string(node.target().join("var/log/ran")).unwrap_or_default();
    text.lines().map(str::to_owned).collect()
}

/// As an ordinary user also without a chroot.
fn in_tree(site: &Site, name: &str, content: &str) {
    site.script(name, &format!("cd \"$SHOAL_TARGET\"\n{content}"));
}

/// What scripts in a chroot need: a shell, in the image.
fn with_shell(site: &Site) -> bool {
    if !is_root() {
        return true;
    }
    let busybox = ["/bin/busybox", "/usr/bin/busybox"].into_iter().find(|path| fs::metadata(path).is_ok());
    match busybox {
        Some(busybox) if is_static(busybox) => {
            fs::create_dir_all(site.path("image/bin")).unwrap();
            for applet in ["sh", "cat", "mkdir", "sleep"] {
                fs::copy(busybox, site.path(&format!("image/bin/{applet}"))).unwrap();
            }
            true
        }
        // The shell with all that it loads.
        _ => copy_shell(site),
    }
}

fn is_static(program: &str) -> bool {
    let said = Command::new("ldd").arg(program).output();
    said.is_ok_and(|said| {
        String::from_utf8_lossy(&[said.stdout, said.stderr].concat()).contains("not a dynamic")
    })
}

fn copy_shell(site: &Site) -> bool {
    let Ok(said) = Command::new("ldd").args(["/bin/sh", "/bin/sleep"]).output() else { return false };
    let text = String::from_utf8_lossy(&said.stdout).into_owned();
    let mut files: Vec<&str> = text.split_whitespace().filter(|word| word.starts_with('/')).collect();
    files.retain(|file| !file.ends_with(':'));
    files.extend(["/bin/sh", "/bin/sleep"]);
    for file in files {
        let to = site.path(&format!("image{file}"));
        fs::create_dir_all(to.parent().unwrap()).unwrap();
        fs::copy(file, to).unwrap();
    }
    true
}

#[test]
fn scripts_run_by_number_then_from_all_to_host_with_their_variables() {
    let site = site();
    if !with_shell(&site) {
        return skipped("needs a shell to put into the image");
    }
    for name in
        ["20all.x", "10node07.x", "10web.x", "10rack.x", "10node.x", "10image.x", "10all.b", "10all.a"]
    {
        in_tree(&site, &format!("post-install/{name}"), NOTE);
    }
    in_tree(&site, "post-install/05node08.x", NOTE);
    let say = "set > var/log/said\necho \"$PWD\" > var/log/where\n";
    in_tree(&site, "post-install/99all.say", say);
    site.script(
        "pre-install/00all.x",
        "ls -A \"$SHOAL_TARGET\" > /tmp/shoal-test-$NTP-$$ && rm /tmp/shoal-test-$NTP-$$\n",
    );
    in_tree(&site, "post-update/00all.x", NOTE);
    site.write("scripts/post-install/README", "not a script");
    site.write("scripts/post-install/10all.b~", "not a script");
    let server = site.publish(CLUSTER);
    let node = Node::new();
    run(&node, "install", &server.ticket, "node07", &[]);
    let order =
        ["10all.a", "10all.b", "10image.x", "10node.x", "10rack.x", "10web.x", "10node07.x", "20all.x"];
    assert_eq!(ran(&node), order);
    let said = fs::read_to_string(node.target().join("var/log/said")).unwrap();
    for line in [
        "SHOAL_HOST='node07'",
        "HOSTNAME='node07'",
        "SHOAL_IMAGE='image'",
        "SHOAL_GROUPS='rack web'",
        "SHOAL_STAGE='post-install'",
        "NTP='10.0.0.1'",
        "WHO='web'",
        "OWN='yes'",
    ] {
        assert!(said.contains(line), "{line} is not in {said}");
    }
    assert!(!said.contains("CARGO"), "the system's environment got in: {said}");
    let inside = fs::read_to_string(node.target().join("var/log/where")).unwrap();
    assert_eq!(inside.trim() == "/", is_root(), "{inside}");
    // Nothing is left in the tree.
    assert!(!node.target().join(".shoal-script").exists());

    // Where nothing changes nothing runs; then its own scripts do.
    run(&node, "update", &server.ticket, "node07", &[]);
    assert_eq!(ran(&node).len(), order.len());
    site.write("image/opt/app", "two");
    site.publisher.capture(&site.path("image"), "image");
    run(&node, "update", &server.ticket, "node07", &[]);
    assert_eq!(ran(&node)[order.len()..], ["00all.x"]);
}

#[test]
fn a_script_that_fails_stops_there_and_the_same_command_goes_on_with_it() {
    let site = site();
    if !with_shell(&site) {
        return skipped("needs a shell to put into the image");
    }
    in_tree(&site, "post-install/10all.first", NOTE);
    in_tree(&site, "post-install/20all.second", "echo 'no such disk' >&2\nexit 7\n");
    in_tree(&site, "post-install/30all.third", NOTE);
    let server = site.publish(CLUSTER);
    let node = Node::new();
    let said = refusal(command(&node, "install", &server.ticket, "node01", &[]));
    assert!(said.contains("post-install script 20all.second failed with exit status: 7"), "{said}");
    assert!(said.contains("no such disk") && said.contains("goes on with it"), "{said}");
    assert_eq!(ran(&node), ["10all.first"]);
    let log = fs::read_dir(node.data().join("targets")).unwrap().next().unwrap().unwrap().path();
    let log = fs::read_to_string(log.join("scripts/post-install.20all.second.log")).unwrap();
    assert_eq!(log, "no such disk\n");
    // The tree itself is complete.
    node.on_target(&["verify", "--json"]).expect_success();

    refusal(command(&node, "install", &server.ticket, "node01", &[]));
    assert_eq!(ran(&node), ["10all.first"], "what ran does not run again");
    in_tree(&site, "post-install/20all.second", NOTE);
    site.publish_again();
    let report = run(&node, "install", &server.ticket, "node01", &[]);
    assert_eq!(report["pieces_fetched"], 0, "{report}");
    assert_eq!(ran(&node), ["10all.first", "20all.second", "30all.third"]);
    let done = run(&node, "install", &server.ticket, "node01", &[]);
    assert_eq!(done["already_installed"], true);
}

#[test]
fn an_update_whose_first_script_fails_changes_nothing_and_whose_last_fails_is_gone_on_with() {
    let site = site();
    if !with_shell(&site) {
        return skipped("needs a shell to put into the image");
    }
    let server = site.publish(CLUSTER);
    let node = Node::new();
    run(&node, "install", &server.ticket, "node01", &[]);
    let app = || fs::read_to_string(node.target().join("opt/app")).unwrap();
    site.write("image/opt/app", "two");
    site.publisher.capture(&site.path("image"), "image");
    in_tree(&site, "pre-update/10all.before", "echo \"$SHOAL_SCRIPT\" >> var/log/ran\nexit 1\n");
    in_tree(&site, "post-update/10all.after", "echo \"$SHOAL_SCRIPT\" >> var/log/ran\nexit 1\n");
    site.publish_again();
    let said = refusal(command(&node, "update", &server.ticket, "node01", &[]));
    assert!(said.contains("pre-update script 10all.before failed"), "{said}");
    assert_eq!((app(), ran(&node)), ("one".to_owned(), vec!["10all.before".to_owned()]));

    in_tree(&site, "pre-update/10all.before", NOTE);
    site.publish_again();
    let said = refusal(command(&node, "update", &server.ticket, "node01", &[]));
    assert!(said.contains("post-update script 10all.after failed"), "{said}");
    assert_eq!(app(), "two");
    in_tree(&site, "post-update/10all.after", NOTE);
    site.publish_again();
    run(&node, "update", &server.ticket, "node01", &[]);
    let all = ["10all.before", "10all.before", "10all.after", "10all.after"];
    assert_eq!(ran(&node), all, "what came before the change does not run again after it");
}

#[test]
fn a_script_that_does_not_end_is_ended_with_all_that_it_started() {
    let site = site();
    if !with_shell(&site) {
        return skipped("needs a shell to put into the image");
    }
    in_tree(&site, "post-install/10all.hangs", "sleep 3600 &\nsleep 3600\n");
    let server = site.publish(&format!("script_timeout = \"1s\"\n{CLUSTER}"));
    let node = Node::new();
    let started = Instant::now();
    let said = refusal(command(&node, "install", &server.ticket, "node01", &[]));
    assert!(said.contains("took longer than 1 s"), "{said}");
    assert!(started.elapsed() < Duration::from_secs(600), "somebody waits for what it started");
}
