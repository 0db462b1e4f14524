//! Yamux on a connection, with frames as long as the layer below encrypts at once.
//!
//! libp2p's own adapter leaves frames at 16 KiB, each with an allocation, a hand-over between tasks, and a call of the
//! kernel: Yamux flushes what is below after every frame. The wire format is the same, `/yamux/1.0.0`.

use std::collections::VecDeque;
use std::future::{Ready, ready};
use std::io;
use std::iter::{Once, once};
use std::pin::Pin;
use std::task::{Context, Poll, Waker};

use futures::{AsyncRead, AsyncWrite};
use libp2p::core::muxing::{StreamMuxer, StreamMuxerEvent};
use libp2p::core::upgrade::{InboundConnectionUpgrade, OutboundConnectionUpgrade, UpgradeInfo};
use yamux::{Connection, ConnectionError, Mode, Stream};

const PROTOCOL: &str = "/yamux/1.0.0";
/// Payload of a frame at most. With its header it is still one message of libp2p's Noise, which encrypts 64 511 bytes
/// at once.
pub(super) const FRAME_PAYLOAD_BYTES: usize = 62 << 10;
/// Streams that the far end opened and nobody took yet; a further one is dropped, which resets it.
const UNTAKEN_MAX: usize = 16;

/// Makes a [`Muxer`] of every connection.
#[derive(Clone, Debug)]
pub(super) struct Multiplexing(yamux::Config);

impl Multiplexing {
    /// Of connections with so many streams at most; one with more ends.
    pub(super) fn new(streams_max: usize) -> Self {
        let mut config = yamux::Config::default();
        config.set_max_num_streams(streams_max).set_split_send_size(FRAME_PAYLOAD_BYTES);
        Self(config)
    }

    fn over<C: AsyncRead + AsyncWrite + Unpin>(self, connection: C, mode: Mode) -> Muxer<C> {
        let connection = Connection::new(connection, self.0, mode);
        Muxer { connection, untaken: VecDeque::new(), taker: None }
    }
}

impl UpgradeInfo for Multiplexing {
    type Info = &'static str;
    type InfoIter = Once<&'static str>;

    fn protocol_info(&self) -> Once<&'static str> {
        once(PROTOCOL)
    }
}

impl<C: AsyncRead + AsyncWrite + Unpin> InboundConnectionUpgrade<C> for Multiplexing {
    type Output = Muxer<C>;
    type Error = io::Error;
    type Future = Ready<io::Result<Muxer<C>>>;

    fn upgrade_inbound(self, connection: C, _: &'static str) -> Self::Future {
        ready(Ok(self.over(connection, Mode::Server)))
    }
}

impl<C: AsyncRead + AsyncWrite + Unpin> OutboundConnectionUpgrade<C> for Multiplexing {
    type Output = Muxer<C>;
    type Error = io::Error;
    type Future = Ready<io::Result<Muxer<C>>>;

    fn upgrade_outbound(self, connection: C, _: &'static str) -> Self::Future {
        ready(Ok(self.over(connection, Mode::Client)))
    }
}

/// The streams of one connection.
///
/// Yamux moves on only while it is asked for the far end's next stream: whatever a caller polls for, a stream may come,
/// and is kept until it is asked for.
#[derive(Debug)]
pub(super) struct Muxer<C> {
    connection: Connection<C>,
    untaken: VecDeque<Stream>,
    /// Who asked for a stream when there was none.
    taker: Option<Waker>,
}

impl<C: AsyncRead + AsyncWrite + Unpin> Muxer<C> {
    fn poll_next(&mut self, cx: &mut Context<'_>) -> Poll<Result<Stream, ConnectionError>> {
        let next = std::task::ready!(self.connection.poll_next_inbound(cx));
        Poll::Ready(next.unwrap_or(Err(ConnectionError::Closed)))
    }
}

impl<C: AsyncRead + AsyncWrite + Unpin> StreamMuxer for Muxer<C> {
    type Substream = Stream;
    type Error = ConnectionError;

    fn poll_inbound(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Result<Stream, ConnectionError>> {
        if let Some(stream) = self.untaken.pop_front() {
            return Poll::Ready(Ok(stream));
        }
        let next = self.poll_next(cx);
        if next.is_pending() {
            self.taker = Some(cx.waker().clone());
        }
        next
    }

    fn poll_outbound(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Result<Stream, ConnectionError>> {
        self.connection.poll_new_outbound(cx)
    }

    fn poll_close(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Result<(), ConnectionError>> {
        self.connection.poll_close(cx)
    }

    fn poll(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Result<StreamMuxerEvent, ConnectionError>> {
        let stream = std::task::ready!(self.poll_next(cx))?;
        if self.untaken.len() < UNTAKEN_MAX {
            self.untaken.push_back(stream);
            if let Some(taker) = self.taker.take() {
                taker.wake();
            }
        }
        // Yamux may have more to do, and others should have their turn before.
        cx.waker().wake_by_ref();
        Poll::Pending
    }
}

#[cfg(test)]
mod tests {
    use std::future::poll_fn;
    use std::sync::Arc;
    use std::sync::atomic::{AtomicUsize, Ordering};

    use futures::{AsyncReadExt, AsyncWriteExt, StreamExt};
    use libp2p::core::muxing::StreamMuxerExt;
    use libp2p::core::transport::{DialOpts, ListenerId, MemoryTransport, PortUse, TransportEvent};
    use libp2p::core::{Endpoint, Transport};

    use super::*;

    const STREAMS_MAX: usize = 4;

    /// Remembers the longest write.
    struct Watched<C> {
        connection: C,
        longest: Arc<AtomicUsize>,
    }

    impl<C: AsyncRead + Unpin> AsyncRead for Watched<C> {
        fn poll_read(
            mut self: Pin<&mut Self>,
            cx: &mut Context<'_>,
            bytes: &mut [u8],
        ) -> Poll<io::Result<usize>> {
            Pin::new(&mut self.connection).poll_read(cx, bytes)
        }
    }

    impl<C: AsyncWrite + Unpin> AsyncWrite for Watched<C> {
        fn poll_write(
            mut self: Pin<&mut Self>,
            cx: &mut Context<'_>,
            bytes: &[u8],
        ) -> Poll<io::Result<usize>> {
            self.longest.fetch_max(bytes.len(), Ordering::Relaxed);
            Pin::new(&mut self.connection).poll_write(cx, bytes)
        }

        fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
            Pin::new(&mut self.connection).poll_flush(cx)
        }

        fn poll_close(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
            Pin::new(&mut self.connection).poll_close(cx)
        }
    }

    type Ends<M> = (M, M, Arc<AtomicUsize>);

    /// The end that dialed, with twice the streams; the one that accepted; and the longest write of the first.
    async fn pair() -> Ends<impl StreamMuxer<Substream = Stream, Error = ConnectionError> + Unpin + Send> {
        let mut transport = MemoryTransport::default().boxed();
        transport.listen_on(ListenerId::next(), "/memory/0".parse().unwrap()).unwrap();
        let Some(TransportEvent::NewAddress { listen_addr, .. }) = transport.next().await else {
            panic!("it listens")
        };
        let dial = DialOpts { role: Endpoint::Dialer, port_use: PortUse::Reuse };
        let dialed = transport.dial(listen_addr, dial).unwrap();
        let accepted = async {
            match transport.next().await {
                Some(TransportEvent::Incoming { upgrade, .. }) => upgrade.await.unwrap(),
                event => panic!("{event:?}"),
            }
        };
        let (dialed, accepted) = futures::join!(dialed, accepted);
        let longest = Arc::new(AtomicUsize::new(0));
        let watch = |connection, longest: &Arc<AtomicUsize>| Watched { connection, longest: longest.clone() };
        let dialed = watch(dialed.unwrap(), &longest);
        let accepted = watch(accepted, &Arc::default());
        let dialed = Multiplexing::new(2 * STREAMS_MAX).upgrade_outbound(dialed, PROTOCOL).await.unwrap();
        let accepted = Multiplexing::new(STREAMS_MAX).upgrade_inbound(accepted, PROTOCOL).await.unwrap();
        (dialed, accepted, longest)
    }

    /// Drives a connection until it ends.
    async fn drive(mut muxer: impl StreamMuxer + Unpin) {
        while poll_fn(|cx| muxer.poll_unpin(cx)).await.is_ok() {}
    }

    #[tokio::test]
    async fn a_connection_with_too_many_streams_ends() {
        let (mut greedy, mut bounded, _) = pair().await;
        let counted = tokio::spawn(async move {
            let mut streams = Vec::new();
            while let Ok(stream) = poll_fn(|cx| bounded.poll_inbound_unpin(cx)).await {
                streams.push(stream);
            }
            streams.len()
        });
        let mut streams = Vec::new();
        for _ in 0..=STREAMS_MAX {
            let mut stream = poll_fn(|cx| greedy.poll_outbound_unpin(cx)).await.unwrap();
            stream.write_all(b"x").await.unwrap();
            streams.push(stream);
        }
        // The other side has had enough.
        let driven = tokio::time::timeout(std::time::Duration::from_secs(60), drive(greedy));
        driven.await.expect("it ends");
        assert_eq!(counted.await.unwrap(), STREAMS_MAX);
    }

    #[tokio::test]
    async fn a_stream_that_comes_while_nobody_asks_is_kept_and_its_frames_are_long() {
        let (mut near, mut far, longest) = pair().await;
        let mut sends = poll_fn(|cx| near.poll_outbound_unpin(cx)).await.unwrap();
        let near = tokio::spawn(drive(near));
        let payload: Vec<u8> = (0..1_000_000_u32).map(|at| at.to_le_bytes()[1]).collect();
        let sent = payload.clone();
        let sending = tokio::spawn(async move {
            sends.write_all(&sent).await.unwrap();
            sends.flush().await.unwrap();
            sends
        });
        // Polled as for a connection whose handler accepts no stream now.
        let mut polled = 0;
        poll_fn(|cx| {
            polled += 1;
            cx.waker().wake_by_ref();
            assert!(far.poll_unpin(cx).is_pending());
            if polled < 1000 { Poll::Pending } else { Poll::Ready(()) }
        })
        .await;
        let mut gets = poll_fn(|cx| far.poll_inbound_unpin(cx)).await.unwrap();
        let far = tokio::spawn(drive(far));
        let mut got = vec![0; payload.len()];
        gets.read_exact(&mut got).await.unwrap();
        assert!(got == payload);
        assert_eq!(longest.load(Ordering::Relaxed), FRAME_PAYLOAD_BYTES);
        drop(sending.await.unwrap());
        near.abort();
        far.abort();
    }
}
