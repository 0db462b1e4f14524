//! The digest of all that happened: equal seeds must give equal digests.

use shoal_proto::time::Time;

/// Records gathered before they are hashed: BLAKE3 is fast on long runs of bytes only.
const BUFFER_BYTES: usize = 64 << 10;

/// What a record is about.
#[derive(Clone, Copy, Debug)]
#[repr(u8)]
pub(crate) enum Kind {
    Mail = 1,
    Received = 2,
    Sent = 3,
    Timer = 4,
    Joined = 5,
    Died = 6,
    Lost = 7,
    Held = 8,
}

/// Hashes a record of 21 bytes per event: time in nanoseconds (8), host (4), kind (1), peer or zero (4), piece or the
/// message's tag (4), little-endian.
#[derive(Debug)]
pub(crate) struct History {
    hasher: Box<blake3::Hasher>,
    buffer: Vec<u8>,
    events: u64,
}

impl History {
    pub(crate) fn new() -> Self {
        Self { hasher: Box::default(), buffer: Vec::with_capacity(BUFFER_BYTES + 32), events: 0 }
    }

    pub(crate) fn record(&mut self, now: Time, host: u32, kind: Kind, peer: u32, subject: u32) {
        self.events += 1;
        self.buffer.extend_from_slice(&now.nanos().to_le_bytes());
        self.buffer.extend_from_slice(&host.to_le_bytes());
        self.buffer.push(kind as u8);
        self.buffer.extend_from_slice(&peer.to_le_bytes());
        self.buffer.extend_from_slice(&subject.to_le_bytes());
        if self.buffer.len() >= BUFFER_BYTES {
            self.hasher.update(&self.buffer);
            self.buffer.clear();
        }
    }

    pub(crate) fn events(&self) -> u64 {
        self.events
    }

    pub(crate) fn digest(mut self) -> String {
        self.hasher.update(&self.buffer);
        self.hasher.finalize().to_hex().to_string()
    }
}
