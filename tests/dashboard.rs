//! The fleet over HTTP: what may be read from where, and that nothing is changed without the operator's token.

use std::fs;
use std::io::{Read, Write};
use std::net::{SocketAddr, TcpStream};

use harness::{DEADLINE, Publisher, Server, Sizes, TreeFixture, json};
use serde_json::Value;

const READS: [&str; 7] =
    ["/", "/page.css", "/page.js", "/metrics", "/api/status", "/api/releases", "/api/events"];
const ACTS: [&str; 4] = ["pause", "resume", "halt", "retry"];

/// A seeder with a release and a rollout, whose dashboard listens.
fn site() -> (Publisher, Server, SocketAddr) {
    let tree = TreeFixture::new(Sizes { noise_bytes: 1 << 16, small_files: 3 });
    let publisher = Publisher::new();
    publisher.capture(&tree.path(), "one");
    publisher.run(&["release", "stable", "one"]).expect_success();
    publisher.run(&["rollout", "start", "stable"]).expect_success();
    let server = publisher.serve(&["--http", "127.0.0.1:0"]);
    let listening = json(&server.process.stdout_line(|line| line.contains("\"listening\"")));
    let address = listening["http"].as_str().unwrap().parse().unwrap();
    (publisher, server, address)
}

/// The status code, and what of the answer has come when it ends or, of events, when the first is there.
fn ask(address: SocketAddr, method: &str, path: &str, host: &str, token: Option<&str>) -> (u16, String) {
    let mut stream = TcpStream::connect(address).unwrap();
    stream.set_read_timeout(Some(DEADLINE)).unwrap();
    let authorization = token.map(|token| format!("Authorization: Bearer {token}\r\n")).unwrap_or_default();
    let request = format!(
        "{method} {path} HTTP/1.1\r\nHost: {host}\r\n{authorization}Connection: close\r\nContent-Length: 0\r\n\r\n"
    );
    stream.write_all(request.as_bytes()).unwrap();
    let mut answer = Vec::new();
    let mut part = [0; 4096];
    loop {
        let count = stream.read(&mut part).unwrap();
        answer.extend_from_slice(&part[..count]);
        let text = String::from_utf8_lossy(&answer);
        if count == 0 || (text.contains("event-stream") && text.contains("\ndata: ")) {
            let code = text.split(' ').nth(1).unwrap().parse().unwrap();
            return (code, text.into_owned());
        }
    }
}

fn token(publisher: &Publisher) -> String {
    fs::read_to_string(publisher.data().join("keys/operator")).unwrap().trim().to_owned()
}

fn phase(publisher: &Publisher) -> Value {
    let status = publisher.run(&["rollout", "status", "stable", "--json"]).expect_success();
    json(&status.stdout.concat())["rollouts"][0]["phase"].clone()
}

#[test]
fn on_this_machine_everything_may_be_read_and_nothing_changed_without_the_token() {
    let (publisher, _server, address) = site();
    for path in READS {
        let (code, answer) = ask(address, "GET", path, "localhost", None);
        assert_eq!(code, 200, "{path}: {answer}");
        // A page of another site whose name was made to lead here.
        let (code, answer) = ask(address, "GET", path, "evil.example", None);
        assert_eq!(code, 401, "{path}: {answer}");
    }
    assert!(ask(address, "GET", "/metrics", "localhost", None).1.contains("shoal_rollout_phase{"));
    assert!(ask(address, "GET", "/api/status", "localhost", None).1.contains("\"phase\":\"running\""));
    for act in ACTS {
        let path = format!("/api/rollouts/stable/{act}");
        for wrong in [None, Some("0000"), Some("")] {
            assert_eq!(ask(address, "POST", &path, "localhost", wrong).0, 401, "{act} with {wrong:?}");
        }
        assert_eq!(ask(address, "GET", &path, "localhost", None).0, 405);
    }
    assert_eq!(phase(&publisher), "running");

    let token = token(&publisher);
    let act =
        |act: &str| ask(address, "POST", &format!("/api/rollouts/stable/{act}"), "localhost", Some(&token));
    for (word, after) in
        [("pause", "paused"), ("resume", "running"), ("halt", "halted"), ("resume", "running")]
    {
        let (code, answer) = act(word);
        assert_eq!((code, phase(&publisher)), (200, after.into()), "{word}: {answer}");
    }
    let (code, answer) = act("retry");
    assert!(code == 409 && answer.contains("there is nothing to retry"), "{answer}");
    assert_eq!(act("explode").0, 404);
    assert_eq!(ask(address, "POST", "/api/rollouts/a%20b/halt", "localhost", Some(&token)).0, 404);
    assert_eq!(ask(address, "POST", "/api/rollouts/other/halt", "localhost", Some(&token)).0, 409);
}
