//! The bare transport: bytes from memory over libp2p's TCP, Noise and Yamux into a buffer, with no hash and no store.
//!
//! The same layers with the same settings as a peer's connection, less what Shoal does to its sockets, and stock
//! where a peer may do better: what others build on, and the measure of what a transfer adds to it.

use std::future::{pending, poll_fn};
use std::io::Write;
use std::time::Instant;

use anyhow::{Context, bail};
use futures::{AsyncReadExt, AsyncWriteExt, StreamExt};
use libp2p::core::Endpoint;
use libp2p::core::muxing::{StreamMuxerBox, StreamMuxerExt, SubstreamBox};
use libp2p::core::transport::{Boxed, DialOpts, ListenerId, PortUse, TransportEvent};
use libp2p::core::upgrade::Version;
use libp2p::identity::Keypair;
use libp2p::{Multiaddr, PeerId, Transport, noise, tcp, yamux};
use serde_json::json;

/// Begins the arguments of a process that sends or receives.
pub(crate) const FLAG: &str = "--part";

/// As many bytes in one write as a peer writes of a piece, and as many between two flushes as a block has.
const WRITE_BYTES: usize = 64 << 10;
const BLOCK_BYTES: usize = 1 << 20;
/// Bytes of memory that the sender sends over and over: more than a core's own caches hold.
const MEMORY_BYTES: usize = 64 << 20;

/// `send BYTES` says where it listens; `receive ADDRESS BYTES` says how long it took. Both then stay, to be looked at.
pub(crate) fn run(arguments: &[String]) -> anyhow::Result<()> {
    let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build()?;
    match arguments {
        [what, bytes] if what == "send" => runtime.block_on(send(bytes.parse()?)),
        [what, address, bytes] if what == "receive" => {
            runtime.block_on(receive(address.parse()?, bytes.parse()?))
        }
        _ => bail!("{FLAG} {}", arguments.join(" ")),
    }
}

async fn send(bytes: u64) -> anyhow::Result<()> {
    let mut memory = vec![0; MEMORY_BYTES];
    crate::read_noise(&mut memory)?;
    let mut transport = transport()?;
    transport.listen_on(ListenerId::next(), "/ip4/127.0.0.1/tcp/0".parse()?)?;
    let (_, mut connection) = loop {
        match transport.next().await.context("the transport ended")? {
            TransportEvent::NewAddress { listen_addr, .. } => {
                say(&json!({ "listening": listen_addr.to_string() }))?;
            }
            TransportEvent::Incoming { upgrade, .. } => break upgrade.await?,
            TransportEvent::ListenerError { error, .. } => return Err(error.into()),
            _ => {}
        }
    };
    let mut stream = poll_fn(|cx| connection.poll_inbound_unpin(cx)).await?;
    drive(connection);
    stream.read_exact(&mut [0]).await?;
    let mut left = usize::try_from(bytes)?;
    for block in memory.chunks(BLOCK_BYTES).cycle() {
        let block = &block[..block.len().min(left)];
        for slice in block.chunks(WRITE_BYTES) {
            stream.write_all(slice).await?;
        }
        stream.flush().await?;
        left -= block.len();
        if left == 0 {
            break;
        }
    }
    pending().await
}

async fn receive(address: Multiaddr, bytes: u64) -> anyhow::Result<()> {
    let began = Instant::now();
    let dial = DialOpts { role: Endpoint::Dialer, port_use: PortUse::New };
    let (_, mut connection) = transport()?.dial(address, dial)?.await?;
    let mut stream: SubstreamBox = poll_fn(|cx| connection.poll_outbound_unpin(cx)).await?;
    drive(connection);
    // A Yamux stream is known to the other side only when something is said on it.
    stream.write_all(&[0]).await?;
    stream.flush().await?;
    let mut block = vec![0; BLOCK_BYTES];
    let mut left = usize::try_from(bytes)?;
    while left > 0 {
        let block_bytes = left.min(BLOCK_BYTES);
        stream.read_exact(&mut block[..block_bytes]).await?;
        left -= block_bytes;
    }
    say(&json!({ "elapsed_s": began.elapsed().as_secs_f64() }))?;
    pending().await
}

fn transport() -> anyhow::Result<Boxed<(PeerId, StreamMuxerBox)>> {
    let security = noise::Config::new(&Keypair::generate_ed25519())?.with_prologue(vec![7; 32]);
    let sockets = tcp::tokio::Transport::new(tcp::Config::default().nodelay(true));
    let layers = sockets.upgrade(Version::V1Lazy).authenticate(security).multiplex(yamux::Config::default());
    Ok(layers.boxed())
}

/// Moves the connection's bytes on a task of its own, as a swarm does, until it ends.
fn drive(mut connection: StreamMuxerBox) {
    tokio::spawn(async move { while poll_fn(|cx| connection.poll_unpin(cx)).await.is_ok() {} });
}

fn say(what: &serde_json::Value) -> std::io::Result<()> {
    writeln!(std::io::stdout(), "{what}")
}
