//! Conversations beside trades: one stream with one peer, for both directions, encrypted and between members only.
//!
//! What is said in it is the caller's business ([`remote`](crate::tree::capture::remote) is one). The ends block: they
//! are for threads of their own.

use std::io::{self, Read, Write};

use futures::executor::block_on;
use futures::io::{AsyncReadExt, AsyncWriteExt, ReadHalf, WriteHalf};
use libp2p::{PeerId, Stream};
use tokio::sync::{mpsc, oneshot};

/// Accepted sessions that may wait for whoever takes them.
pub(super) const SESSIONS_WAITING_MAX: usize = 16;

/// A session that was opened from here, or that a peer opened.
#[derive(Debug)]
pub struct Session {
    pub peer: PeerId,
    stream: Stream,
}

#[derive(Debug, thiserror::Error)]
pub enum SessionError {
    #[error("{peer} takes no such conversations: {why}")]
    Refused { peer: PeerId, why: String },
    #[error("the peer has stopped")]
    Stopped,
}

/// What the other side says. Blocks.
#[derive(Debug)]
pub struct SessionReader(ReadHalf<Stream>);

/// What this side says. Blocks; the session ends for the other side when both ends are dropped.
#[derive(Debug)]
pub struct SessionWriter(WriteHalf<Stream>);

impl Session {
    /// Both ends, to be used in threads that may block.
    pub fn split(self) -> (SessionReader, SessionWriter) {
        let (reader, writer) = self.stream.split();
        (SessionReader(reader), SessionWriter(writer))
    }
}

impl Read for SessionReader {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        block_on(self.0.read(buffer))
    }
}

impl Write for SessionWriter {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        block_on(self.0.write(bytes))
    }

    fn flush(&mut self) -> io::Result<()> {
        block_on(self.0.flush())
    }
}

/// The driver's sessions that are yet to be handed over.
#[derive(Debug, Default)]
pub(super) struct Sessions {
    wanted: Vec<(PeerId, oneshot::Sender<Result<Session, SessionError>>)>,
    taker: Option<mpsc::Sender<Session>>,
}

impl Sessions {
    pub(super) fn take(&mut self, taker: mpsc::Sender<Session>) {
        self.taker = Some(taker);
    }

    pub(super) fn want(&mut self, peer: PeerId, reply: oneshot::Sender<Result<Session, SessionError>>) {
        self.wanted.retain(|(_, reply)| !reply.is_closed());
        self.wanted.push((peer, reply));
    }

    /// How many are wanted with a peer.
    pub(super) fn wanted_with(&self, peer: &PeerId) -> usize {
        self.wanted.iter().filter(|(wanted, _)| wanted == peer).count()
    }

    /// A peer opened one.
    pub(super) fn accept(&mut self, peer: PeerId, stream: Stream) {
        // Dropped when nobody takes it: the peer sees the end of its stream.
        if let Some(taker) = &self.taker
            && taker.try_send(Session { peer, stream }).is_err()
        {
            tracing::warn!(%peer, "a session was refused: too many wait already");
        }
    }

    pub(super) fn opened(&mut self, peer: PeerId, stream: Stream) {
        if let Some(reply) = self.next(&peer) {
            // Whoever wanted it may have gone.
            let _ = reply.send(Ok(Session { peer, stream }));
        }
    }

    pub(super) fn refused(&mut self, peer: PeerId, why: &str) {
        if let Some(reply) = self.next(&peer) {
            let _ = reply.send(Err(SessionError::Refused { peer, why: why.to_owned() }));
        }
    }

    fn next(&mut self, peer: &PeerId) -> Option<oneshot::Sender<Result<Session, SessionError>>> {
        let at = self.wanted.iter().position(|(wanted, _)| wanted == peer)?;
        Some(self.wanted.remove(at).1)
    }
}
