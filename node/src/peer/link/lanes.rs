//! The four tasks of a connection: what is said and what is sent, in each direction.

use super::*;

/// Bytes of control frames written in one go.
const CONTROL_BATCH_BYTES: usize = 64 << 10;

pub(super) async fn write_control(
    mut stream: Stream,
    mut frames: mpsc::Receiver<Frame>,
) -> Result<(), StreamError> {
    let mut buffer = Vec::new();
    while let Some(frame) = frames.recv().await {
        codec::append_frame(&mut buffer, frame);
        while buffer.len() < CONTROL_BATCH_BYTES {
            let Ok(frame) = frames.try_recv() else { break };
            codec::append_frame(&mut buffer, frame);
        }
        stream.write_all(&buffer).await?;
        stream.flush().await?;
        buffer.clear();
    }
    stream.close().await?;
    Ok(())
}

pub(super) async fn read_control(
    key: PeerKey,
    stream: Stream,
    around: Surroundings,
) -> Result<(), StreamError> {
    let mut reader = FrameReader::new(stream);
    loop {
        let frame = reader.read().await?;
        if around.driver.send(FromLink::Frame(key, frame)).await.is_err() {
            return Ok(());
        }
    }
}

pub(super) async fn write_bulk(
    key: PeerKey,
    mut stream: Stream,
    mut uploads: mpsc::Receiver<Upload>,
    meter: Arc<Meter>,
    around: Surroundings,
) -> Result<(), StreamError> {
    let pace = around.up.clone().and(around.limits.up_per_peer);
    while let Some(upload) = uploads.recv().await {
        let Upload { exchange, piece, ref list, .. } = upload;
        let cid = list.piece(piece).cid;
        let outcome = match read(&upload, cid, &around).await {
            Some(Ok(delivery)) => {
                codec::write_piece(&mut stream, exchange, piece.get(), &delivery, &pace, &meter).await?;
                around.sent_bytes.fetch_add(delivery.payload().len() as u64, Ordering::Relaxed);
                FromLink::Written { to: key, exchange, piece }
            }
            Some(Err(why)) => {
                tracing::warn!(%cid, %piece, why, "a held piece cannot be read and is withdrawn");
                FromLink::Unreadable { to: key, exchange, piece }
            }
            None => FromLink::Unsent { to: key, exchange, piece },
        };
        if around.driver.send(outcome).await.is_err() {
            return Ok(());
        }
    }
    stream.close().await?;
    Ok(())
}

/// `None` when the upload was called off meanwhile: then it does not matter either that it could not be read.
async fn read(upload: &Upload, cid: Cid, around: &Surroundings) -> Option<Result<Delivery, String>> {
    let is_off = || upload.is_off.load(Ordering::Relaxed);
    if is_off() {
        return None;
    }
    let delivery = around.shelves.read(cid, upload.part.clone()).await;
    (!is_off()).then_some(delivery)
}

pub(super) async fn read_bulk(
    key: PeerKey,
    mut stream: Stream,
    lists: TheirLists,
    around: Surroundings,
) -> Result<(), StreamError> {
    loop {
        let header = codec::read_bulk_header(&mut stream).await?;
        let wrong = |why: &str| {
            StreamError::Piece(format!("{why} (exchange {}, piece {})", header.exchange, header.piece))
        };
        let TheirList { list, parts } =
            lists.find(header.exchange).ok_or_else(|| wrong("no such exchange"))?;
        let piece = list.index(header.piece).ok_or_else(|| wrong("no such piece"))?;
        let encoding = Encoding::from_code(header.encoding).ok_or_else(|| wrong("unknown encoding"))?;
        let block = list.piece(piece);
        let part = match NonZeroU8::new(header.part) {
            Some(number) => {
                let part = parts.find(piece, number);
                Some(part.ok_or_else(|| wrong("a part that was never asked for"))?)
            }
            None => None,
        };
        let raw_bytes = part.as_ref().map_or(block.raw_bytes, |part| part.ranges.bytes());
        let bytes = header.payload_bytes as usize;
        if bytes > payload_bytes_max(raw_bytes) {
            return Err(wrong("longer than its raw length allows"));
        }
        let permit = around.inflow.reserve(bytes).await;
        let payload = codec::read_payload(&mut stream, bytes, &around.down, || {
            let progress = FromLink::Progress { from: key, exchange: header.exchange, piece: header.piece };
            // Only a hint: a full queue means that the driver hears from this link soon anyway.
            let _ = around.driver.try_send(progress);
        })
        .await?;
        let cid = block.cid;
        let delivery = match part {
            Some(part) => Delivery::Part(part, EncodedPart { cid, encoding, raw_bytes, payload }),
            None => Delivery::Whole(EncodedBlock { cid, encoding, raw_bytes, payload }),
        };
        let received = ReceivedPiece { from: key, exchange: header.exchange, piece, delivery, permit };
        if around.driver.send(FromLink::Piece(received)).await.is_err() {
            return Ok(());
        }
    }
}
