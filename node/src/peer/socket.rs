//! TCP sockets that tell how much the kernel took, let it take no more than the path needs, and are read in large
//! parts: Noise asks for 8 KiB at a time.
//!
//! What a host has handed out and not yet sent, its next words wait behind: a grant and its answer take as long as
//! those queues are deep, and late binding lives from short answers. There are three of them, and each is kept short
//! here. Between a stream and its socket, Yamux and Noise hold a quarter of a megabyte: whoever writes pieces waits for
//! the [`Meter`] after every slice. In the socket, its buffer is bounded by what leaves within [`RESIDENCE`]. And so
//! the device and the switch behind it, which all connections share, get no more than that either.

use std::collections::{HashMap, VecDeque};
use std::io::{self, IoSlice};
use std::net::SocketAddr;
use std::pin::Pin;
use std::sync::atomic::{AtomicU32, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError, Weak};
use std::task::{Context, Poll, ready};
use std::time::{Duration, Instant};

use bytes::{Buf, BytesMut};
use futures::task::AtomicWaker;
use futures::{AsyncRead, AsyncWrite};
use libp2p::core::ConnectedPoint;
use libp2p::tcp::tokio::TcpStream;
use socket2::SockRef;
use tokio_util::io::poll_read_buf;

use crate::peer::transport::socket_address;

/// How long a byte should stay in its socket's buffer: longer than an acknowledgement takes in a data centre.
const RESIDENCE: Duration = Duration::from_millis(4);
/// A path is long, and holds bytes of its own, when not even one of this many answers or more came sooner than this:
/// those that a queue or a start held up tell nothing.
const LONG_PATH: Duration = Duration::from_millis(20);
const ANSWERS_MIN: u32 = 3;
/// Bounds of a socket's buffer. The system's own bound (`net.core.wmem_max`) may be narrower than the upper.
const BUFFER_BYTES_MIN: u32 = 8 << 10;
const BUFFER_BYTES_MAX: u32 = 4 << 20;
/// What is read of a socket at once, when there is so much.
const AHEAD_BYTES: usize = 64 << 10;
/// With more than this a writer that waited for every slice would keep the path waiting.
const BUFFER_BYTES_SLOW: u32 = 64 << 10;

/// One connection's way out, shared by its socket and the task that writes its pieces.
#[derive(Debug)]
pub(super) struct Meter {
    /// Bytes that the kernel took: messages and the headers of the layers above are among them.
    taken: AtomicU64,
    /// The one task that waits.
    writer: AtomicWaker,
    /// What the socket's buffer should be.
    buffer_bytes: AtomicU32,
    origin: Instant,
    /// What left since that was decided, and when it was; only the writer's.
    left: Mutex<(usize, Duration)>,
    answers: AtomicU32,
    /// The shortest answer time so far, in microseconds.
    answer_us: AtomicU32,
}

impl Default for Meter {
    fn default() -> Self {
        Self {
            taken: AtomicU64::new(0),
            writer: AtomicWaker::new(),
            buffer_bytes: AtomicU32::new(BUFFER_BYTES_MIN),
            origin: Instant::now(),
            left: Mutex::default(),
            answers: AtomicU32::new(0),
            answer_us: AtomicU32::new(u32::MAX),
        }
    }
}

impl Meter {
    pub(super) fn taken(&self) -> u64 {
        self.taken.load(Ordering::Acquire)
    }

    /// Bytes that a writer may be ahead of the kernel: none but what it writes at once, until the path is fast.
    pub(super) fn ahead(&self) -> u64 {
        match self.buffer_bytes.load(Ordering::Relaxed) {
            slow if slow <= BUFFER_BYTES_SLOW => 0,
            fast => fast.into(),
        }
    }

    /// Waits until the kernel has taken so many bytes in all.
    pub(super) async fn reaches(&self, bytes: u64) {
        std::future::poll_fn(|cx| {
            self.writer.register(cx.waker());
            if self.taken() >= bytes { Poll::Ready(()) } else { Poll::Pending }
        })
        .await;
    }

    /// The far end answered within this time.
    pub(super) fn note_answer(&self, took: Duration) {
        let took = u32::try_from(took.as_micros()).unwrap_or(u32::MAX);
        self.answer_us.fetch_min(took, Ordering::Relaxed);
        self.answers.fetch_add(1, Ordering::Relaxed);
    }

    /// So many more bytes left: the buffer becomes what leaves at this rate while a
    /// byte may stay, as soon as enough of them left to tell. Pauses count: a buffer drains in them, and what it takes
    /// in at once afterwards is no rate.
    ///
    /// A buffer that is itself the bottleneck grows with every look until a link is; one that holds a queue shrinks.
    pub(super) fn note_left(&self, bytes: usize) {
        self.note_left_by(bytes, self.origin.elapsed());
    }

    fn note_left_by(&self, bytes: usize, now: Duration) {
        let mut left = self.left.lock().unwrap_or_else(PoisonError::into_inner);
        left.0 = left.0.saturating_add(bytes);
        if left.0 / 4 < self.buffer_bytes.load(Ordering::Relaxed) as usize {
            return;
        }
        let (bytes, since) = std::mem::replace(&mut *left, (0, now));
        let took = now.saturating_sub(since);
        let answer = Duration::from_micros(self.answer_us.load(Ordering::Relaxed).into());
        let is_long = answer > LONG_PATH && self.answers.load(Ordering::Relaxed) >= ANSWERS_MIN;
        let stay = RESIDENCE + if is_long { 2 * answer } else { Duration::ZERO };
        let wanted = bytes as u128 * stay.as_nanos() / took.as_nanos().max(1);
        let wanted = u32::try_from(wanted).unwrap_or(u32::MAX).clamp(BUFFER_BYTES_MIN, BUFFER_BYTES_MAX);
        // In powers of two: the socket hears of it rarely.
        self.buffer_bytes.store(wanted.next_power_of_two(), Ordering::Relaxed);
    }

    fn add(&self, bytes: usize) {
        self.taken.fetch_add(bytes as u64, Ordering::Release);
        self.writer.wake();
    }
}

/// The meters of connections that are being made, until the swarm tells of them.
#[derive(Clone, Debug, Default)]
pub(super) struct Meters(Arc<Mutex<HashMap<Far, VecDeque<Weak<Meter>>>>>);

/// The far end of a connection, and whether this side dialed it.
type Far = (SocketAddr, bool);

fn far(endpoint: &ConnectedPoint) -> Option<Far> {
    Some((socket_address(endpoint.get_remote_address())?, endpoint.is_dialer()))
}

impl Meters {
    /// A socket whose meter can be had by its endpoint.
    pub(super) fn wrap(&self, stream: TcpStream, endpoint: &ConnectedPoint) -> Socket {
        let meter = Arc::new(Meter::default());
        let mut made = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        // Handshakes that failed leave theirs.
        made.retain(|_, meters| {
            meters.retain(|meter| meter.strong_count() > 0);
            !meters.is_empty()
        });
        if let Some(far) = far(endpoint) {
            made.entry(far).or_default().push_back(Arc::downgrade(&meter));
        }
        Socket { stream, meter, buffer_bytes: 0, ahead: BytesMut::new() }
    }

    /// The meter of the connection that the swarm tells of.
    pub(super) fn take(&self, endpoint: &ConnectedPoint) -> Option<Arc<Meter>> {
        let mut made = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let meters = made.get_mut(&far(endpoint)?)?;
        std::iter::from_fn(|| meters.pop_front()).find_map(|meter| meter.upgrade())
    }
}

#[derive(Debug)]
pub(super) struct Socket {
    stream: TcpStream,
    meter: Arc<Meter>,
    /// As it was set last.
    buffer_bytes: u32,
    /// What was read before it was asked for. No memory while the far end is silent: a seeder has thousands of
    /// sockets.
    ahead: BytesMut,
}

impl Socket {
    /// Brings the buffer to what the meter says, before a write.
    fn fit(&mut self) {
        let wanted = self.meter.buffer_bytes.load(Ordering::Relaxed);
        if wanted != self.buffer_bytes {
            self.buffer_bytes = wanted;
            if let Err(error) = SockRef::from(&self.stream.0).set_send_buffer_size(wanted as usize) {
                tracing::debug!(%error, wanted, "a socket keeps its buffer");
            }
        }
    }

    /// Reads what the kernel has, up to [`AHEAD_BYTES`]; nothing at the end of the stream.
    fn poll_ahead(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        let Self { stream, ahead, .. } = self;
        ahead.reserve(AHEAD_BYTES);
        let read = poll_read_buf(Pin::new(&mut stream.0), cx, ahead);
        if read.is_pending() {
            *ahead = BytesMut::new();
        }
        read.map_ok(drop)
    }

    fn count(&self, written: Poll<io::Result<usize>>) -> Poll<io::Result<usize>> {
        if let Poll::Ready(Ok(bytes)) = written {
            self.meter.add(bytes);
        }
        written
    }
}

impl AsyncRead for Socket {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bytes: &mut [u8],
    ) -> Poll<io::Result<usize>> {
        if self.ahead.is_empty() {
            ready!(self.poll_ahead(cx))?;
        }
        let given = bytes.len().min(self.ahead.len());
        bytes[..given].copy_from_slice(&self.ahead[..given]);
        self.ahead.advance(given);
        Poll::Ready(Ok(given))
    }
}

impl AsyncWrite for Socket {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        self.fit();
        let written = Pin::new(&mut self.stream).poll_write(cx, bytes);
        self.count(written)
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        slices: &[IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        self.fit();
        let written = Pin::new(&mut self.stream).poll_write_vectored(cx, slices);
        self.count(written)
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_flush(cx)
    }

    fn poll_close(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_close(cx)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use futures::{AsyncReadExt, AsyncWriteExt};
    use libp2p::core::Endpoint;
    use libp2p::core::transport::PortUse;
    use libp2p::{Multiaddr, multiaddr::Protocol};
    use std::net::IpAddr;
    use tokio::net::{TcpListener, TcpStream as TokioStream};

    fn dialed(port: u16) -> ConnectedPoint {
        let address = Multiaddr::from(IpAddr::from([127, 0, 0, 1])).with(Protocol::Tcp(port));
        ConnectedPoint::Dialer { address, role_override: Endpoint::Dialer, port_use: PortUse::New }
    }

    async fn pair() -> (TcpStream, TokioStream) {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let dial = TokioStream::connect(listener.local_addr().unwrap());
        let (near, far) = tokio::join!(dial, listener.accept());
        (TcpStream(near.unwrap()), far.unwrap().0)
    }

    #[tokio::test]
    async fn the_meter_reaches_what_the_kernel_took_and_no_more() {
        let (near, mut far) = pair().await;
        let meters = Meters::default();
        let mut socket = meters.wrap(near, &dialed(7));
        let meter = meters.take(&dialed(7)).unwrap();
        const BYTES: usize = 1 << 20;
        let writing = tokio::spawn(async move {
            socket.write_all(&vec![7; BYTES]).await.unwrap();
            socket
        });
        // Nobody reads: the kernels of both ends hold some of it, and the rest is not taken.
        let wait = tokio::time::timeout(Duration::from_millis(100), meter.reaches(BYTES as u64));
        assert!(wait.await.is_err() && meter.taken() > 0, "{meter:?}");
        let reading = tokio::spawn(async move {
            tokio::io::AsyncReadExt::read_exact(&mut far, &mut vec![0; BYTES]).await.unwrap();
            far
        });
        meter.reaches(BYTES as u64).await;
        drop((writing.await.unwrap(), reading.await.unwrap()));
        assert_eq!(meter.taken(), BYTES as u64);
    }

    #[tokio::test]
    async fn a_socket_is_read_as_it_was_and_keeps_no_memory_while_nothing_comes() {
        let (near, mut far) = pair().await;
        let mut socket = Meters::default().wrap(near, &dialed(7));
        tokio::io::AsyncWriteExt::write_all(&mut far, b"piece").await.unwrap();
        let mut bytes = [0; 2];
        socket.read_exact(&mut bytes).await.unwrap();
        assert_eq!((&bytes, socket.ahead.len()), (b"pi", 3));
        let mut bytes = [0; 9];
        assert_eq!(socket.read(&mut bytes).await.unwrap(), 3);
        assert_eq!(&bytes[..3], b"ece");
        assert!(futures::poll!(socket.read(&mut bytes)).is_pending());
        assert_eq!(socket.ahead.capacity(), 0);
        drop(far);
        assert_eq!(socket.read(&mut bytes).await.unwrap(), 0);
    }

    #[tokio::test]
    async fn a_meter_is_found_by_its_endpoint_once_and_not_after_its_socket_went() {
        let meters = Meters::default();
        let gone = meters.wrap(pair().await.0, &dialed(7));
        drop(gone);
        let socket = meters.wrap(pair().await.0, &dialed(7));
        let other = meters.wrap(pair().await.0, &dialed(8));
        assert!(Arc::ptr_eq(&meters.take(&dialed(7)).unwrap(), &socket.meter));
        assert!(meters.take(&dialed(7)).is_none());
        let inbound = ConnectedPoint::Listener {
            local_addr: Multiaddr::from(IpAddr::from([127, 0, 0, 1])).with(Protocol::Tcp(1)),
            send_back_addr: Multiaddr::from(IpAddr::from([127, 0, 0, 1])).with(Protocol::Tcp(8)),
        };
        assert!(meters.take(&inbound).is_none(), "the same address, but not dialed");
        assert!(Arc::ptr_eq(&meters.take(&dialed(8)).unwrap(), &other.meter));
    }

    #[tokio::test]
    async fn the_buffer_follows_the_rate_and_the_length_of_the_path() {
        let (near, _far) = pair().await;
        let mut socket = Meters::default().wrap(near, &dialed(7));
        let meter = socket.meter.clone();
        let size = |socket: &Socket| SockRef::from(&socket.stream.0).send_buffer_size().unwrap();
        socket.write_all(b"x").await.unwrap();
        let narrow = size(&socket);
        // 12.5 MB/s: 50 kB leave while a byte may stay.
        let mut now = Duration::ZERO;
        let mut leave = |bytes: usize, took: u64| {
            now += Duration::from_millis(took);
            meter.note_left_by(bytes, now);
            meter.buffer_bytes.load(Ordering::Relaxed)
        };
        assert_eq!(leave(1_250_000, 100), 64 << 10);
        socket.write_all(b"x").await.unwrap();
        assert!(size(&socket) > 4 * narrow, "{} and {narrow}", size(&socket));
        // The same over a path of 30 ms, once the shortest of enough answers tells.
        for took in [90, 30, 50] {
            assert_eq!(leave(1_250_000, 100), 64 << 10, "too few answers");
            meter.note_answer(Duration::from_millis(took));
        }
        assert_eq!(leave(1_250_000, 100), 1 << 20);
        assert_eq!(leave(1000, 1000), 1 << 20, "too few bytes");
        assert_eq!(leave(4 << 20, 5_000_000), BUFFER_BYTES_MIN);
        assert_eq!(leave(usize::MAX, 0), BUFFER_BYTES_MAX);
    }
}
