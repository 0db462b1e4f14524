//! Frames and pieces on libp2p streams.

use std::io;
use std::time::Duration;

use futures::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};
use shoal_proto::wire::{BULK_HEADER_BYTES, BulkHeader, DecodeError, FRAME_BYTES_MAX, Frame};

use crate::buffer::Buffer;
use crate::peer::limits::Pace;
use crate::peer::serve::Delivery;
use crate::peer::socket::Meter;

/// Bytes of payload between two reports of progress.
const PROGRESS_BYTES: usize = 256 << 10;
/// How long that many bytes may take: a peer that dribbles holds a share of the inflow budget.
const SILENCE_MAX: Duration = Duration::from_secs(60);
/// What of a piece is in one frame of the connection while its path is slow: no message waits for more of it.
const SLOW_FRAME_BYTES: usize = 16 << 10;
/// Longest length prefix: enough for `FRAME_BYTES_MAX`.
const VARINT_BYTES_MAX: usize = 4;
/// Bytes that a frame's buffer may be allocated with before any of them arrived.
const FRAME_PREALLOCATED_BYTES: usize = 16 << 10;

#[derive(Debug, thiserror::Error)]
pub(super) enum StreamError {
    #[error("the stream broke: {0}")]
    Broken(#[from] io::Error),
    #[error("the peer closed the stream")]
    Closed,
    #[error("a control frame of {0} bytes where at most {FRAME_BYTES_MAX} are allowed")]
    FrameLength(usize),
    #[error("a frame's length is no varint of at most {VARINT_BYTES_MAX} bytes")]
    Varint,
    #[error(transparent)]
    Decode(#[from] DecodeError),
    #[error("{PROGRESS_BYTES} bytes of a piece took longer than {SILENCE_MAX:?}")]
    Stalled,
    #[error("a piece that cannot be: {0}")]
    Piece(String),
}

impl StreamError {
    /// Whether the peer broke the protocol, rather than going away.
    pub(super) fn is_fault(&self) -> bool {
        !matches!(self, Self::Broken(_) | Self::Closed | Self::Stalled)
    }
}

/// Reads frames; keeps what it read ahead, so that a row of small frames costs one call.
pub(super) struct FrameReader<R> {
    stream: futures::io::BufReader<R>,
}

impl<R: AsyncRead + Unpin> FrameReader<R> {
    pub(super) fn new(stream: R) -> Self {
        Self { stream: futures::io::BufReader::with_capacity(FRAME_PREALLOCATED_BYTES, stream) }
    }

    pub(super) async fn read(&mut self) -> Result<Frame, StreamError> {
        let length = self.read_length().await?;
        if length > FRAME_BYTES_MAX {
            return Err(StreamError::FrameLength(length));
        }
        // Grows with what arrives: a peer that only claims a megabyte costs no megabyte.
        let mut bytes = Vec::with_capacity(length.min(FRAME_PREALLOCATED_BYTES));
        let read = (&mut self.stream).take(length as u64).read_to_end(&mut bytes).await?;
        if read < length {
            return Err(StreamError::Closed);
        }
        Ok(Frame::decode(&bytes)?)
    }

    async fn read_length(&mut self) -> Result<usize, StreamError> {
        let mut length = 0usize;
        for at in 0..VARINT_BYTES_MAX {
            let mut byte = [0u8];
            if self.stream.read(&mut byte).await? == 0 {
                return Err(StreamError::Closed);
            }
            length |= usize::from(byte[0] & 0x7f) << (7 * at);
            if byte[0] & 0x80 == 0 {
                return Ok(length);
            }
        }
        Err(StreamError::Varint)
    }
}

/// Appends a frame as it stands on the stream.
pub(super) fn append_frame(buffer: &mut Vec<u8>, frame: Frame) {
    let bytes = frame.encode();
    prost::encode_length_delimiter(bytes.len(), buffer).expect("a vector grows");
    buffer.extend_from_slice(&bytes);
}

pub(super) async fn read_bulk_header<R: AsyncRead + Unpin>(
    stream: &mut R,
) -> Result<BulkHeader, StreamError> {
    let mut bytes = [0; BULK_HEADER_BYTES];
    match stream.read_exact(&mut bytes).await {
        Ok(()) => Ok(BulkHeader::from_bytes(&bytes)?),
        Err(error) if error.kind() == io::ErrorKind::UnexpectedEof => Err(StreamError::Closed),
        Err(error) => Err(error.into()),
    }
}

/// Reads a payload whose length was checked, calling `progress` every [`PROGRESS_BYTES`].
pub(super) async fn read_payload<R: AsyncRead + Unpin>(
    stream: &mut R,
    bytes: usize,
    pace: &Pace,
    mut progress: impl FnMut(),
) -> Result<Buffer, StreamError> {
    let mut payload = Buffer::of_any(bytes);
    for (at, part) in payload.chunks_mut(PROGRESS_BYTES).enumerate() {
        if at > 0 {
            progress();
        }
        let at_once = if pace.is_free() { PROGRESS_BYTES } else { pace.slice_bytes() };
        for slice in part.chunks_mut(at_once) {
            // What waits here waits in the window of its stream, and then at the other end.
            pace.pass(slice.len()).await;
            let read = tokio::time::timeout(SILENCE_MAX, stream.read_exact(slice)).await;
            read.map_err(|_| StreamError::Stalled)??;
        }
    }
    Ok(payload)
}

/// Returns when the socket has all of it but what the meter allows, so that what is said on other streams does not wait
/// behind the piece.
pub(super) async fn write_piece<W: AsyncWrite + Unpin>(
    stream: &mut W,
    exchange: u32,
    piece: u32,
    delivery: &Delivery,
    pace: &Pace,
    meter: &Meter,
) -> Result<(), StreamError> {
    let payload = delivery.payload();
    let payload_bytes = u32::try_from(payload.len()).expect("a payload fits its bound");
    let (encoding, part) = (delivery.encoding().code(), delivery.part_number());
    let header = BulkHeader { exchange, piece, encoding, part, payload_bytes };
    stream.write_all(&header.to_bytes()).await?;
    let mut written = meter.taken();
    for slice in payload.chunks(pace.slice_bytes()) {
        pace.pass(slice.len()).await;
        written = written.max(meter.taken()) + slice.len() as u64;
        let is_slow = meter.ahead() == 0;
        for part in slice.chunks(if is_slow { SLOW_FRAME_BYTES } else { slice.len() }) {
            stream.write_all(part).await?;
        }
        stream.flush().await?;
        meter.reaches(written.saturating_sub(meter.ahead())).await;
    }
    stream.flush().await?;
    meter.note_left(payload.len());
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use futures::executor::block_on;
    use futures::io::Cursor;
    use shoal_proto::cid::Cid;
    use shoal_proto::wire::{Hello, PeerRole};

    fn frames() -> Vec<Frame> {
        vec![
            Frame::Hello(Hello {
                role: PeerRole::Node,
                ports: vec![4433],
                rack: "row3/r1".parse().unwrap(),
                members: 3,
            }),
            Frame::PeersWanted,
            Frame::Join { exchange: 3, list: Cid::of(b"list") },
            Frame::Arrived { exchange: 300, piece: 70_000 },
        ]
    }

    #[test]
    fn a_row_of_frames_is_read_back() {
        let mut bytes = Vec::new();
        frames().into_iter().for_each(|frame| append_frame(&mut bytes, frame));
        let mut reader = FrameReader::new(Cursor::new(bytes));
        for frame in frames() {
            assert_eq!(block_on(reader.read()).unwrap(), frame);
        }
        assert!(matches!(block_on(reader.read()), Err(StreamError::Closed)));
    }

    #[test]
    fn a_giant_frame_is_refused_by_its_length() {
        let mut reader = FrameReader::new(Cursor::new(vec![0xff, 0xff, 0xff, 0x7f]));
        assert!(matches!(block_on(reader.read()), Err(StreamError::FrameLength(_))));
        let mut reader = FrameReader::new(Cursor::new(vec![0xff; 9]));
        assert!(matches!(block_on(reader.read()), Err(StreamError::Varint)));
    }

    #[test]
    fn a_frame_cut_short_is_a_closed_stream() {
        let mut bytes = Vec::new();
        append_frame(&mut bytes, frames().remove(0));
        bytes.pop();
        assert!(matches!(block_on(FrameReader::new(Cursor::new(bytes)).read()), Err(StreamError::Closed)));
    }
}
