//! A peer that knows the secret and the list, and lies: libp2p's connection and the wire format, with nothing of a
//! node's own between.

use std::collections::{BTreeMap, BTreeSet};
use std::future::poll_fn;
use std::io;
use std::net::SocketAddr;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::task::Poll;
use std::time::{Duration, Instant};

use futures::{AsyncReadExt, AsyncWriteExt};
use libp2p::core::Endpoint;
use libp2p::core::muxing::{StreamMuxerBox, StreamMuxerExt, SubstreamBox};
use libp2p::core::transport::{DialOpts, PortUse};
use libp2p::core::upgrade::Version;
use libp2p::identity::Keypair;
use libp2p::multiaddr::Protocol;
use libp2p::{Multiaddr, PeerId, Transport, noise, tcp, yamux};
use shoal_proto::exchange::{Announcement, Bitfield, Message};
use shoal_proto::image::{PieceIndex, PieceList};
use shoal_proto::ticket::SwarmSecret;
use shoal_proto::wire::{BULK_PROTOCOL, BulkHeader, CONTROL_PROTOCOL, Frame, Hello, PeerRole, TradeFrame};
use shoal_proto::zone::Zone;
use tokio::sync::mpsc;
use tokio::task::AbortHandle;

/// Between two tries to get in, and before the next grant after a decline.
const PAUSE: Duration = Duration::from_millis(200);
/// Between two questions for peers to lie to: as often as an honest peer may ask.
const ASK_INTERVAL: Duration = Duration::from_millis(500);
/// Questions for peers before a flood, which ends the conversation.
const QUESTIONS_BEFORE_FLOOD: u32 = 6;

/// How a liar harms whoever trades with it. All show every piece and grant without end.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Lie {
    /// Sends bytes of the right length that are not the piece.
    WrongBytes,
    /// Withdraws each piece when it is asked for it, and shows it again.
    Phantom,
    /// Never answers a request.
    Silence,
    /// Learns whom there is to harm, then says tiny frames as fast as it can, or, every other time, that a giant one
    /// follows.
    Flood,
}

/// A lying peer at work: it goes to everyone it hears of, and comes back whenever it is thrown out.
pub(crate) struct Liar {
    pub(crate) id: PeerId,
    pub(crate) lie: Lie,
}

struct Plot {
    key: Keypair,
    secret: SwarmSecret,
    lists: Vec<PieceList>,
    lie: Lie,
    met: Mutex<BTreeSet<PeerId>>,
    floods: AtomicU64,
}

impl Liar {
    /// Begins at `seeder`, in the runtime of the caller; ends with it.
    pub(crate) fn start(
        lie: Lie,
        secret: &SwarmSecret,
        seeder: (PeerId, SocketAddr),
        lists: Vec<PieceList>,
    ) -> Self {
        let key = Keypair::generate_ed25519();
        let id = key.public().to_peer_id();
        let met = Mutex::new([id, seeder.0].into());
        let plot = Plot { key, secret: secret.clone(), lists, lie, met, floods: AtomicU64::new(0) };
        haunt(Arc::new(plot), seeder.1);
        Self { id, lie }
    }
}

/// Lies to one peer for ever.
fn haunt(plot: Arc<Plot>, address: SocketAddr) {
    tokio::spawn(async move {
        loop {
            if let Ok(connection) = Connection::open(address, &plot.key, &plot.secret).await {
                // It ends when the peer hangs up.
                let _ = lie_to(connection, &plot).await;
            }
            tokio::time::sleep(PAUSE).await;
        }
    });
}

async fn lie_to(mut connection: Connection, plot: &Arc<Plot>) -> io::Result<()> {
    let hello = Hello { role: PeerRole::Node, ports: Vec::new(), rack: Zone::UNKNOWN, members: 0 };
    connection.say([Frame::Hello(hello)]).await?;
    let mut numbers = BTreeMap::new();
    for (number, list) in (0..).zip(&plot.lists) {
        connection.say([Frame::Join { exchange: number, list: list.name() }]).await?;
    }
    let mut questions = 0;
    let mut ask_at = Instant::now();
    loop {
        if plot.lie == Lie::Flood && questions >= QUESTIONS_BEFORE_FLOOD {
            return connection.flood(plot.floods.fetch_add(1, Ordering::Relaxed)).await;
        }
        // Whoever is granted what it does not lack declines: there is always another turn.
        if ask_at <= Instant::now() {
            questions += 1;
            ask_at = Instant::now() + ASK_INTERVAL;
            connection.say([Frame::PeersWanted]).await?;
        }
        match connection.hear().await? {
            Frame::Peers(peers) | Frame::Refused(peers) => meet(plot, peers),
            Frame::Join { exchange, list } => {
                if let Some(own) = plot.lists.iter().position(|known| known.name() == list) {
                    numbers.insert(exchange, own);
                    let all = Announcement::Held(Bitfield::full(plot.lists[own].len()));
                    let own = u32::try_from(own).unwrap();
                    let said = [Message::Announce(all), Message::Grant(None)];
                    connection.say(said.map(|message| trade(own, message))).await?;
                }
            }
            Frame::Trade(frame) => {
                let Some(&own) = numbers.get(&frame.exchange) else { continue };
                let list = &plot.lists[own];
                let (message, _) = frame.check(list).map_err(io::Error::other)?;
                answer(&mut connection, plot.lie, u32::try_from(own).unwrap(), list, message).await?;
            }
            _ => {}
        }
    }
}

fn meet(plot: &Arc<Plot>, peers: Vec<shoal_proto::wire::PeerAddresses>) {
    for peer in peers {
        if plot.met.lock().unwrap().insert(peer.id) {
            haunt(plot.clone(), peer.addresses[0]);
        }
    }
}

async fn answer(
    connection: &mut Connection,
    lie: Lie,
    number: u32,
    list: &PieceList,
    message: Message,
) -> io::Result<()> {
    let grant = || trade(number, Message::Grant(None));
    match (message, lie) {
        (Message::Request(piece), Lie::WrongBytes) => {
            connection.send_noise(number, piece, list).await?;
            connection.say([grant()]).await
        }
        (Message::Request(piece), Lie::Phantom) => {
            let (withdraw, have) = (Message::Withdraw(piece), Message::Have(vec![piece]));
            connection.say([trade(number, withdraw), trade(number, have), grant()]).await
        }
        (Message::Cancel(_), Lie::Silence) => connection.say([grant()]).await,
        (Message::Decline(_), _) => {
            tokio::time::sleep(PAUSE).await;
            connection.say([grant()]).await
        }
        _ => Ok(()),
    }
}

fn trade(number: u32, message: Message) -> Frame {
    Frame::Trade(TradeFrame::new(number, message))
}

/// A connection as the wire format has it: a stream for control and one for pieces, in each direction.
pub(crate) struct Connection {
    says: SubstreamBox,
    sends: SubstreamBox,
    inbound: mpsc::Receiver<SubstreamBox>,
    hears: Option<SubstreamBox>,
    tasks: AbortHandle,
}

impl Drop for Connection {
    fn drop(&mut self) {
        self.tasks.abort();
    }
}

impl Connection {
    /// Dials, shakes hands with the secret and opens the streams; says nothing yet.
    pub(crate) async fn open(address: SocketAddr, key: &Keypair, secret: &SwarmSecret) -> io::Result<Self> {
        Self::open_with(address, key, secret.noise_prologue().to_vec()).await
    }

    /// As `open`, with a prologue of one's own.
    pub(crate) async fn open_with(address: SocketAddr, key: &Keypair, prologue: Vec<u8>) -> io::Result<Self> {
        let security = noise::Config::new(key).map_err(io::Error::other)?.with_prologue(prologue);
        let sockets = tcp::tokio::Transport::new(tcp::Config::default().nodelay(true));
        let layers = sockets.upgrade(Version::V1Lazy).authenticate(security);
        let mut transport = layers.multiplex(yamux::Config::default()).boxed();
        let place = Multiaddr::from(address.ip()).with(Protocol::Tcp(address.port()));
        let dial = DialOpts { role: Endpoint::Dialer, port_use: PortUse::New };
        let dialed = transport.dial(place, dial).map_err(io::Error::other)?;
        let (_, mut muxer) = dialed.await.map_err(io::Error::other)?;
        let mut says = poll_fn(|cx| muxer.poll_outbound_unpin(cx)).await.map_err(io::Error::other)?;
        let mut sends = poll_fn(|cx| muxer.poll_outbound_unpin(cx)).await.map_err(io::Error::other)?;
        let (to_hear, inbound) = mpsc::channel(4);
        let tasks = tokio::spawn(drive(muxer, to_hear)).abort_handle();
        // Made before anything that may fail: dropping it ends the task.
        propose(&mut says, CONTROL_PROTOCOL).await.inspect_err(|_| tasks.abort())?;
        propose(&mut sends, BULK_PROTOCOL).await.inspect_err(|_| tasks.abort())?;
        Ok(Self { says, sends, inbound, hears: None, tasks })
    }

    pub(crate) async fn say(&mut self, frames: impl IntoIterator<Item = Frame>) -> io::Result<()> {
        let mut bytes = Vec::new();
        for frame in frames {
            let frame = frame.encode();
            put_varint(&mut bytes, frame.len());
            bytes.extend_from_slice(&frame);
        }
        self.says.write_all(&bytes).await?;
        self.says.flush().await
    }

    /// The next frame of the peer's.
    pub(crate) async fn hear(&mut self) -> io::Result<Frame> {
        if self.hears.is_none() {
            self.hears = self.inbound.recv().await;
        }
        let stream = self.hears.as_mut().ok_or(io::ErrorKind::UnexpectedEof)?;
        let length = read_varint(stream).await?;
        let mut bytes = vec![0; length];
        stream.read_exact(&mut bytes).await?;
        Frame::decode(&bytes).map_err(io::Error::other)
    }

    async fn send_noise(&mut self, exchange: u32, piece: PieceIndex, list: &PieceList) -> io::Result<()> {
        let payload_bytes = list.piece(piece).raw_bytes;
        // Encoding 0: bytes as they are.
        let header = BulkHeader { exchange, piece: piece.get(), encoding: 0, part: 0, payload_bytes };
        self.sends.write_all(&header.to_bytes()).await?;
        self.sends.write_all(&vec![0x5a; payload_bytes as usize]).await?;
        self.sends.flush().await
    }

    async fn flood(&mut self, turn: u64) -> io::Result<()> {
        if turn % 2 == 1 {
            self.says.write_all(&[0xff, 0xff, 0xff, 0x7f]).await?;
            self.says.flush().await?;
            // Until the peer hangs up.
            loop {
                self.hear().await?;
            }
        }
        let mut tiny = Vec::new();
        let frame = Frame::Arrived { exchange: 9, piece: 9 }.encode();
        while tiny.len() < 64 << 10 {
            put_varint(&mut tiny, frame.len());
            tiny.extend_from_slice(&frame);
        }
        loop {
            self.says.write_all(&tiny).await?;
        }
    }
}

/// Moves the connection's bytes and takes what the peer opens: its control stream is handed on, the others read.
async fn drive(mut muxer: StreamMuxerBox, to_hear: mpsc::Sender<SubstreamBox>) {
    loop {
        let next = poll_fn(|cx| {
            if let Poll::Ready(stream) = muxer.poll_inbound_unpin(cx) {
                return Poll::Ready(stream.ok());
            }
            match muxer.poll_unpin(cx) {
                Poll::Ready(Err(_)) => Poll::Ready(None),
                _ => Poll::Pending,
            }
        });
        let Some(stream) = next.await else { return };
        tokio::spawn(accept(stream, to_hear.clone()));
    }
}

async fn accept(mut stream: SubstreamBox, to_hear: mpsc::Sender<SubstreamBox>) -> io::Result<()> {
    let header = read_line(&mut stream).await?;
    write_line(&mut stream, &header).await?;
    let protocol = read_line(&mut stream).await?;
    write_line(&mut stream, &protocol).await?;
    if protocol.trim_end() == CONTROL_PROTOCOL {
        // The liar may have been thrown out meanwhile.
        let _ = to_hear.send(stream).await;
        return Ok(());
    }
    // A ping is answered as it came; of pieces there is only an end.
    let is_ping = protocol.starts_with("/ipfs/ping/");
    let mut bytes = [0; 32];
    loop {
        stream.read_exact(&mut bytes).await?;
        if is_ping {
            stream.write_all(&bytes).await?;
            stream.flush().await?;
        }
    }
}

/// Agrees on a protocol (multistream-select 1.0): lines, each with its length before it.
async fn propose(stream: &mut SubstreamBox, protocol: &str) -> io::Result<()> {
    write_line(stream, "/multistream/1.0.0\n").await?;
    write_line(stream, &format!("{protocol}\n")).await?;
    read_line(stream).await?;
    let answer = read_line(stream).await?;
    if answer.trim_end() == protocol { Ok(()) } else { Err(io::ErrorKind::Unsupported.into()) }
}

async fn write_line(stream: &mut SubstreamBox, line: &str) -> io::Result<()> {
    let mut bytes = Vec::new();
    put_varint(&mut bytes, line.len());
    bytes.extend_from_slice(line.as_bytes());
    stream.write_all(&bytes).await?;
    stream.flush().await
}

async fn read_line(stream: &mut SubstreamBox) -> io::Result<String> {
    let length = read_varint(stream).await?;
    let mut bytes = vec![0; length];
    stream.read_exact(&mut bytes).await?;
    String::from_utf8(bytes).map_err(io::Error::other)
}

/// A length of at most four bytes as a varint.
fn put_varint(bytes: &mut Vec<u8>, number: usize) {
    let mut left = u32::try_from(number).expect("lengths are short");
    loop {
        let [low, ..] = (left & 0x7f).to_le_bytes();
        left >>= 7;
        if left == 0 {
            return bytes.push(low);
        }
        bytes.push(0x80 | low);
    }
}

async fn read_varint(stream: &mut SubstreamBox) -> io::Result<usize> {
    let mut number = 0;
    for shift in [0, 7, 14, 21] {
        let mut byte = [0];
        stream.read_exact(&mut byte).await?;
        number |= usize::from(byte[0] & 0x7f) << shift;
        if byte[0] < 0x80 {
            return Ok(number);
        }
    }
    Err(io::ErrorKind::InvalidData.into())
}
