//! Who does not belong to the swarm learns nothing of it, down to the bytes that the seeder sends.

mod relay;

use std::io::ErrorKind;
use std::net::SocketAddr;

use harness::{DEADLINE, Installing, Node, Process, Publisher, Server, Sizes, TreeFixture};
use libp2p::identity::Keypair;
use relay::Relay;
use shoal_proto::ticket::{HostPort, SwarmSecret, Ticket};
use shoal_proto::wire::Frame;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpSocket, TcpStream};

use crate::liars::liar::Connection;
use crate::liars::{lists_of, status};
use crate::members::ask_for_all;

const TREE: Sizes = Sizes { noise_bytes: 1 << 20, small_files: 20 };
/// More than a listener says while hands are shaken: two lines of multistream-select, and its half of the key
/// agreement with its sealed identity.
const HANDSHAKE_BYTES_MAX: usize = 512;
/// More than a peer says to who is no member: the handshake, two streams, and one frame of a few bytes.
const BARRED_BYTES_MAX: usize = 2048;

fn runtime() -> tokio::runtime::Runtime {
    tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build().unwrap()
}

fn swarm() -> (TreeFixture, Publisher, Server, Ticket) {
    let tree = TreeFixture::new(TREE);
    let publisher = Publisher::new();
    publisher.capture(&tree.path(), "tree");
    let server = publisher.serve(&[]);
    let ticket = server.ticket.parse().unwrap();
    (tree, publisher, server, ticket)
}

fn address(ticket: &Ticket) -> SocketAddr {
    ticket.addresses[0].to_string().parse().unwrap()
}

/// The ticket, by way of a relay.
fn through(relay: &Relay, ticket: &Ticket) -> Ticket {
    let place = HostPort { host: relay.address.ip().to_string(), port: relay.address.port() };
    Ticket { addresses: vec![place], ..ticket.clone() }
}

/// Says `bytes`, and returns all that is answered before the other side hangs up.
async fn say_all(address: SocketAddr, bytes: &[u8]) -> Vec<u8> {
    let (mut answers, mut says) = TcpStream::connect(address).await.unwrap().into_split();
    // The other side may hang up before it has read everything.
    let saying = async { drop(says.write_all(bytes).await) };
    let mut answer = Vec::new();
    let hearing = async {
        let end = answers.read_to_end(&mut answer).await;
        assert!(end.is_ok() || end.is_err_and(|error| error.kind() == ErrorKind::ConnectionReset));
    };
    let both = async { tokio::join!(saying, hearing) };
    tokio::time::timeout(DEADLINE, both).await.expect("the other side hangs up");
    answer
}

#[test]
fn a_replayed_conversation_gets_no_further_than_the_handshake() {
    let (tree, _publisher, _server, ticket) = swarm();
    let runtime = runtime();
    let relay = runtime.block_on(Relay::start(address(&ticket)));
    let node = Node::new();
    let installing = node.install(&through(&relay, &ticket).to_string(), "tree");
    installing.report();
    crate::assert_same(&tree.path(), &node.target());
    let recorded = relay.conversations();
    let whole = recorded.iter().max_by_key(|conversation| conversation.answered.len()).unwrap();
    assert!(whole.answered.len() as u64 > TREE.noise_bytes, "the relay heard nothing");

    let places = [address(&ticket), status(&node)["addresses"][0].as_str().unwrap().parse().unwrap()];
    for place in places {
        let answer = runtime.block_on(say_all(place, &whole.said));
        assert!(!answer.is_empty(), "{place} took no part in the handshake");
        assert!(answer.len() <= HANDSHAKE_BYTES_MAX, "{place} answered {} bytes", answer.len());
    }
    // Nor does who only repeats the beginning hear more, and then goes on as it pleases.
    let beginning = [&whole.said[..whole.said.len().min(400)], &[0; 4096]].concat();
    let answer = runtime.block_on(say_all(address(&ticket), &beginning));
    assert!(answer.len() <= HANDSHAKE_BYTES_MAX, "{} bytes", answer.len());
}

#[test]
fn a_wrong_secret_and_none_at_all_get_no_further_than_the_handshake() {
    let (_tree, _publisher, _server, ticket) = swarm();
    let runtime = runtime();
    let relay = runtime.block_on(Relay::start(address(&ticket)));
    let node = Node::new();
    let wrong = Ticket { secret: SwarmSecret::from_bytes([7; 32]), ..through(&relay, &ticket) }.to_string();
    let finished = Process::start(node.install_command(&wrong, &["--image", "tree"])).finish();
    let said = finished.stderr.join("\n");
    assert!(!finished.status.success() && said.contains("the ticket is of another swarm"), "{said}");
    assert!(std::fs::read_dir(node.target()).unwrap().next().is_none());

    // Libp2p as everybody has it, without a prologue, and without any encryption.
    let key = Keypair::generate_ed25519();
    let joined = runtime.block_on(Connection::open_with(relay.address, &key, Vec::new()));
    assert!(joined.is_err());
    let plain: Vec<u8> = ["/multistream/1.0.0", "/plaintext/2.0.0", "/yamux/1.0.0", "/shoal/ctl/4"]
        .iter()
        .flat_map(|line| [&[u8::try_from(line.len() + 1).unwrap()], line.as_bytes(), b"\n"].concat())
        .collect();
    runtime.block_on(async {
        let mut stream = TcpStream::connect(relay.address).await.unwrap();
        stream.write_all(&plain).await.unwrap();
        stream.shutdown().await.unwrap();
        let _ = stream.read_to_end(&mut Vec::new()).await;
    });

    let conversations = relay.conversations();
    assert!(conversations.len() >= 3, "{} conversations", conversations.len());
    for conversation in conversations {
        let answered = conversation.answered.len();
        assert!(answered <= HANDSHAKE_BYTES_MAX, "{answered} bytes were answered");
    }
}

#[test]
fn a_revoked_key_is_sent_less_than_a_screen_of_bytes() {
    let tree = TreeFixture::new(TREE);
    let publisher = Publisher::new();
    publisher.capture(&tree.path(), "tree");
    let lists = lists_of(&publisher, "tree");
    let server = publisher.serve(&[]);
    let ticket: Ticket = server.ticket.parse().unwrap();
    let runtime = runtime();
    let relay = runtime.block_on(Relay::start(address(&ticket)));
    let key = Keypair::generate_ed25519();
    let revoked = key.public().to_peer_id().to_string();
    publisher.run(&["nodes", "revoke", &revoked]).expect_success();
    let heard = runtime.block_on(ask_for_all(relay.address, &key, &ticket.secret, &lists));
    assert_eq!(heard, [Frame::Barred { revoked: true }]);
    let conversation = relay.conversations().pop().unwrap();
    let answered = conversation.answered.len();
    assert!((1..=BARRED_BYTES_MAX).contains(&answered), "{answered} bytes were answered");
}

#[test]
fn a_crowd_that_shakes_no_hands_keeps_nobody_out() {
    let (tree, _publisher, _server, ticket) = swarm();
    let crowd = runtime().block_on(async {
        let mut crowd = Vec::new();
        for _ in 0..600 {
            let socket = TcpSocket::new_v4().unwrap();
            socket.bind("127.0.0.2:0".parse().unwrap()).unwrap();
            crowd.push(socket.connect(address(&ticket)).await.unwrap().into_std().unwrap());
        }
        crowd
    });
    let node = Node::new();
    let installing: Installing = node.install(&ticket.to_string(), "tree");
    installing.report();
    crate::assert_same(&tree.path(), &node.target());
    // Those beyond the share of one address were hung up on before anyone shook hands.
    let closed = |mut stream: &std::net::TcpStream| {
        let end = std::io::Read::read(&mut stream, &mut [0]);
        !end.is_err_and(|error| error.kind() == ErrorKind::WouldBlock)
    };
    let open = crowd.iter().filter(|stream| !closed(stream)).count();
    assert!(open <= 128, "{open} of the crowd are still in");
}
