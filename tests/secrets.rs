//! No secret where it does not belong: logs at TRACE, `ps`, files that others may read, error messages.

use std::collections::BTreeMap;
use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::Command;

use data_encoding::{BASE32_NOPAD, BASE64_NOPAD, BASE64URL_NOPAD, HEXLOWER};
use harness::{Finished, Node, Process, Publisher, Sizes, TreeFixture};
use shoal_proto::ticket::SwarmSecret;

const TREE: Sizes = Sizes { noise_bytes: 3 << 20, small_files: 50 };
/// So much of a secret is looked for: its first bytes, as many as are whole letters in base 32 and 64.
const SHOWN_BYTES: usize = 15;

/// What must not be seen, by what it is and how it is written.
struct Secrets(BTreeMap<String, Vec<u8>>);

impl Secrets {
    fn of(publisher: &Publisher, nodes: &[Node]) -> Self {
        let mut secrets = Self(BTreeMap::new());
        let keys = publisher.data().join("keys");
        for name in ["publisher", "peer", "swarm"] {
            secrets.add(&format!("the key {name}"), &secret_in(&keys.join(name)));
        }
        let swarm = SwarmSecret::from_bytes(secret_in(&keys.join("swarm")));
        // Whoever has this is as good as a member.
        secrets.add("the prologue", &swarm.noise_prologue());
        for (at, node) in nodes.iter().enumerate() {
            secrets.add(&format!("the key of node {at}"), &secret_in(&data(node).join("key")));
        }
        secrets
    }

    fn add(&mut self, what: &str, secret: &[u8; 32]) {
        let start = &secret[..SHOWN_BYTES];
        let decimals: Vec<String> = start.iter().map(u8::to_string).collect();
        let spellings: [(&str, Vec<u8>); 9] = [
            ("raw", start.to_vec()),
            ("hex", HEXLOWER.encode(start).into()),
            ("HEX", HEXLOWER.encode(start).to_uppercase().into()),
            ("base32", BASE32_NOPAD.encode(start).to_lowercase().into()),
            ("BASE32", BASE32_NOPAD.encode(start).into()),
            ("base64", BASE64_NOPAD.encode(start).into()),
            ("base64 for URLs", BASE64URL_NOPAD.encode(start).into()),
            ("base58", base58(secret)),
            ("decimal", decimals.join(", ").into()),
        ];
        for (spelling, bytes) in spellings {
            self.0.insert(format!("{what} in {spelling}"), bytes);
        }
    }

    fn seen_in(&self, bytes: &[u8]) -> Vec<&str> {
        let seen = |secret: &[u8]| bytes.windows(secret.len()).any(|part| part == secret);
        self.0.iter().filter(|(_, secret)| seen(secret)).map(|(what, _)| &what[..]).collect()
    }

    fn assert_unseen(&self, bytes: &[u8], place: &str) {
        let seen = self.seen_in(bytes);
        assert!(seen.is_empty(), "{place} shows {seen:?}");
    }
}

/// The 32 bytes of a key file, which nobody else may read.
fn secret_in(path: &Path) -> [u8; 32] {
    assert_eq!(fs::metadata(path).unwrap().permissions().mode() & 0o777, 0o600, "{}", path.display());
    HEXLOWER.decode(fs::read(path).unwrap().trim_ascii_end()).unwrap().try_into().unwrap()
}

/// As Bitcoin writes numbers, and libp2p keys.
fn base58(bytes: &[u8]) -> Vec<u8> {
    const LETTERS: &[u8; 58] = b"123456789ABCDEFGHJKLMNPQRSTUVWXYZabcdefghijkmnopqrstuvwxyz";
    let mut number = bytes.to_vec();
    let mut letters = Vec::new();
    while number.iter().any(|byte| *byte != 0) {
        let mut rest = 0_u32;
        for byte in &mut number {
            let value = rest * 256 + u32::from(*byte);
            *byte = u8::try_from(value / 58).unwrap();
            rest = value % 58;
        }
        letters.push(LETTERS[rest as usize]);
    }
    letters.reverse();
    letters
}

fn data(node: &Node) -> PathBuf {
    node.store().with_file_name("data")
}

fn traced(mut command: Command) -> Process {
    command.env("SHOAL_LOG", "trace");
    Process::start(command)
}

/// What every process of this machine shows to all.
fn process_list() -> Vec<u8> {
    let processes = fs::read_dir("/proc").unwrap().flatten();
    processes.flat_map(|process| fs::read(process.path().join("cmdline")).unwrap_or_default()).collect()
}

/// Every file below, but for keys and sockets.
fn files_but_keys(folder: &Path) -> Vec<PathBuf> {
    let mut found = Vec::new();
    for entry in fs::read_dir(folder).unwrap() {
        let entry = entry.unwrap();
        let (path, kind) = (entry.path(), entry.file_type().unwrap());
        let is_key = path.ends_with("key") || path.parent().is_some_and(|parent| parent.ends_with("keys"));
        if kind.is_dir() {
            found.extend(files_but_keys(&path));
        } else if kind.is_file() && !is_key {
            found.push(path);
        }
    }
    found
}

#[test]
fn no_secret_is_in_a_log_a_process_list_or_a_file_that_is_no_key() {
    let tree = TreeFixture::new(TREE);
    let publisher = Publisher::new();
    let capture = traced(publisher.command(&["capture", tree.path().to_str().unwrap(), "tree"])).finish();
    let server = traced(publisher.command(&["serve", "--listen", "127.0.0.1:0", "--json"]));
    let listening = harness::json(&server.stdout_line(|line| line.contains("\"listening\"")));
    let ticket = harness::text(&listening, "ticket");
    let nodes = [Node::new(), Node::new()];
    let install =
        |node: &Node| traced(node.install_command(&ticket, &["--image", "tree", "--seed-for", "1h"]));
    let mut running = vec![install(&nodes[0])];
    running[0].stdout_line(|line| line.starts_with('{'));
    running.push(install(&nodes[1]));
    running[1].stdout_line(|line| line.starts_with('{'));

    let secrets = Secrets::of(&publisher, &nodes);
    secrets.assert_unseen(&process_list(), "the process list");
    assert!(!secrets.seen_in(ticket.as_bytes()).is_empty(), "a ticket is a secret");

    // An outsider, whose handshake fails here and there.
    let stranger = Publisher::new();
    stranger.capture(&tree.path(), "tree");
    let other = stranger.serve(&[]);
    let secret_of = |ticket: &str| ticket.split_once("&secret=").unwrap().1[..52].to_owned();
    let forged = ticket.replace(&secret_of(&ticket), &secret_of(&other.ticket));
    let forged = checked(forged.split("&check=").next().unwrap());
    let outsider = Node::new();
    let command = outsider.install_command(&forged, &["--image", "tree"]);
    let refused = traced(command).finish();
    assert!(!refused.status.success());

    let ended: Vec<Finished> = running.into_iter().chain([server]).map(Process::killed).collect();
    for (finished, is_server) in ended.iter().zip([false, false, true]) {
        let log = finished.stderr.join("\n");
        assert!(log.contains("TRACE"), "it logs everything");
        secrets.assert_unseen(log.as_bytes(), "a log");
        // The server's result is the ticket itself, for whoever started it.
        if !is_server {
            secrets.assert_unseen(finished.stdout.join("\n").as_bytes(), "a result");
        }
    }
    for finished in [&capture, &refused] {
        secrets
            .assert_unseen([&finished.stdout[..], &finished.stderr].concat().join("\n").as_bytes(), "a log");
    }
    let folders = [publisher.data().to_owned(), data(&nodes[0]), data(&nodes[1])];
    for folder in folders.iter().chain([&nodes[0].store(), &nodes[1].store()]) {
        for path in files_but_keys(folder) {
            secrets.assert_unseen(&fs::read(&path).unwrap(), &path.display().to_string());
        }
    }
}

#[test]
fn no_error_message_repeats_a_ticket() {
    let publisher = Publisher::new();
    let server = publisher.serve(&[]);
    let node = Node::new();
    drop(node.on_target(&["verify"]));
    let (ticket, sum) = server.ticket.split_once("&check=").unwrap();
    let secrets = Secrets::of(&publisher, &[]);
    let damaged = [
        ticket.to_owned(),
        format!("{ticket}&check={}", sum.to_uppercase()),
        format!("{ticket}x&check={sum}"),
        checked(&ticket.replace("secret=", "secret=a")),
        checked(&ticket.replace("publisher=", "publisher=a")),
        checked(&ticket.replace("publisher=", "pub=")),
        checked(&ticket.replace("?", "#")),
        checked(&ticket.replace("127.0.0.1", "not an address")),
        checked(&ticket.replace("shoal://", "shoal://!")),
        server.ticket.replace("shoal://", "shoal:/"),
    ];
    for ticket in damaged {
        let refused = Process::start(node.install_command(&ticket, &["--image", "tree"])).finish();
        assert_eq!(refused.status.code(), Some(2), "{ticket}");
        secrets.assert_unseen(refused.stderr.join("\n").as_bytes(), "an error message");
    }
    // Where no ticket belongs.
    for arguments in [["--rack", &server.ticket], ["extra", &server.ticket], ["--nonsense", &server.ticket]] {
        let refused = Process::start(node.install_command(&server.ticket, &arguments)).finish();
        assert!(!refused.status.success());
        secrets.assert_unseen(refused.stderr.join("\n").as_bytes(), "an error message");
    }
}

/// The text with a check sum that fits it.
fn checked(body: &str) -> String {
    let sum = BASE32_NOPAD.encode(&blake3::hash(body.as_bytes()).as_bytes()[..5]).to_lowercase();
    format!("{body}&check={sum}")
}
