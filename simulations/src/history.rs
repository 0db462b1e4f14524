//! The digest of all that happened: equal seeds must give equal digests.

use shoal_proto::time::Time;

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
    Opened = 9,
}

/// One host's history, folded record by record into 128 bits. Not made to withstand an attacker, only to differ when
/// anything differs: each record is mixed in by multiplications that lose nothing of what came before.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct History {
    lanes: [u64; 2],
    pub(crate) events: u64,
}

impl History {
    /// Time in nanoseconds, kind, peer or zero, piece or the message's subject.
    pub(crate) fn record(&mut self, now: Time, kind: Kind, peer: u32, subject: u32) {
        self.events += 1;
        self.mix(now.nanos() ^ u64::from(kind as u8) << 56);
        self.mix(u64::from(peer) << 32 | u64::from(subject));
    }

    fn mix(&mut self, word: u64) {
        // Odd constants with many bits, as in Knuth's multiplicative hashing: the golden ratio and √3 − 1.
        self.lanes[0] = (self.lanes[0].rotate_left(29) ^ word).wrapping_mul(0x9E37_79B9_7F4A_7C15);
        self.lanes[1] = (self.lanes[1].rotate_left(31) ^ word).wrapping_mul(0xBB67_AE85_84CA_A73B);
    }
}

/// BLAKE3 over the histories of all hosts, in their order.
pub(crate) fn digest<'a>(histories: impl Iterator<Item = &'a History>) -> String {
    let mut hasher = blake3::Hasher::new();
    for history in histories {
        hasher.update(&history.lanes[0].to_le_bytes());
        hasher.update(&history.lanes[1].to_le_bytes());
        hasher.update(&history.events.to_le_bytes());
    }
    hasher.finalize().to_hex().to_string()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn order_time_and_subject_all_count() {
        let told = |records: &[(u64, u32)]| {
            let mut history = History::default();
            for &(at, piece) in records {
                history.record(Time::from_nanos(at), Kind::Held, 3, piece);
            }
            digest([history].iter())
        };
        let one = told(&[(1, 1), (2, 2)]);
        assert_eq!(one, told(&[(1, 1), (2, 2)]));
        for other in
            [told(&[(2, 2), (1, 1)]), told(&[(1, 1), (3, 2)]), told(&[(1, 1), (2, 3)]), told(&[(1, 1)])]
        {
            assert_ne!(one, other);
        }
    }
}
