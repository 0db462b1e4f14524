//! The swarm secret is replaced while nodes come and go.

use std::net::{SocketAddr, TcpStream};

use harness::{Node, Publisher, Sizes, TreeFixture};
use libp2p::identity::Keypair;
use serde_json::Value;
use shoal_proto::ticket::{SwarmSecret, Ticket};

use crate::assert_same;
use crate::liars::liar::Connection;

fn secret(publisher: &Publisher, step: &str) -> Value {
    let said = publisher.run(&["secret", step, "--json"]).expect_success().stdout.concat();
    serde_json::from_str(&said).unwrap()
}

fn ticket(publisher: &Publisher) -> Ticket {
    publisher.run(&["ticket"]).expect_success().stdout.concat().parse().unwrap()
}

fn addresses(ticket: &Ticket) -> Vec<SocketAddr> {
    ticket.addresses.iter().map(|address| address.to_string().parse().unwrap()).collect()
}

fn opens(address: SocketAddr, secret: &SwarmSecret) -> bool {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    let key = Keypair::generate_ed25519();
    runtime.block_on(Connection::open(address, &key, secret)).is_ok()
}

#[test]
fn a_rotation_that_was_not_finished_goes_on_when_the_seeder_starts() {
    let publisher = Publisher::new();
    let old = ticket_secret(&publisher.serve(&[]).ticket);
    secret(&publisher, "rotate");
    // Killed, and started again.
    let ticket: Ticket = publisher.serve(&[]).ticket.parse().unwrap();
    let server = publisher.serve(&[]);
    let again: Ticket = server.ticket.parse().unwrap();
    assert!(again.secret == ticket.secret && again.secret != old);
    let [next, current] = addresses(&again)[..] else { panic!("{again:?}") };
    assert!(opens(next, &again.secret) && opens(current, &old));
    assert!(!opens(next, &old) && !opens(current, &again.secret));
}

fn ticket_secret(ticket: &str) -> SwarmSecret {
    ticket.parse::<Ticket>().unwrap().secret
}

#[test]
fn old_and_new_tickets_work_while_the_secret_is_rotated_and_then_only_the_new() {
    let tree = TreeFixture::new(Sizes { noise_bytes: 1 << 20, small_files: 20 });
    let publisher = Publisher::new();
    publisher.capture(&tree.path(), "tree");
    let server = publisher.serve(&[]);
    let old: Ticket = server.ticket.parse().unwrap();
    let installs = |ticket: &Ticket| {
        let node = Node::new();
        let installing = node.install(&ticket.to_string(), "tree");
        installing.report();
        assert_same(&tree.path(), &node.target());
        (installing, node)
    };

    let _stays = installs(&old);
    assert_eq!(secret(&publisher, "rotate")["rotating"], true);
    let new = ticket(&publisher);
    assert_ne!(new.secret, old.secret);
    assert_eq!(addresses(&new)[1..], addresses(&old)[..], "the next swarm first, and then the current one");
    // Once more is not another secret.
    secret(&publisher, "rotate");
    assert_eq!(ticket(&publisher).secret, new.secret);
    let _both = [installs(&old), installs(&new)];
    let [next, current] = addresses(&new)[..] else { panic!("{new:?}") };
    assert_eq!(
        [
            opens(current, &old.secret),
            opens(next, &new.secret),
            opens(current, &new.secret),
            opens(next, &old.secret)
        ],
        { [true, true, false, false] }
    );

    assert_eq!(secret(&publisher, "finish")["rotating"], false);
    let ended = publisher.run(&["secret", "finish"]);
    assert!(!ended.status.success() && ended.stderr.concat().contains("not being rotated"), "{ended:?}");
    assert_eq!(ticket(&publisher).secret, new.secret);
    assert!(TcpStream::connect(current).is_err(), "the old swarm's listener is there");
    assert!(!opens(next, &old.secret) && opens(next, &new.secret));
    let _after = installs(&new);

    // The seeder starts again where it listened first, with the new secret: tickets of the rotation hold.
    server.process.terminate();
    server.process.finish().expect_success();
    let _server = publisher.serve(&["--listen", &current.to_string()]);
    assert!(!opens(current, &old.secret));
    let _again = installs(&new);
}
