//! How much a peer may say: far more than an honest one does, and never without end.
//!
//! Every frame costs the driver a moment, and some an answer. What is said for the sake of pieces grows with the
//! pieces that move: each that arrives, on either side, allows for more.

use std::time::Duration;

use shoal_proto::time::Time;

/// Frames that a peer may say at once, and in each second from then on: a node of a large rack that fetches a
/// thousand pieces each second says about as many of them to each of its neighbours.
pub(super) const FRAMES_BURST: u64 = 32_768;
const FRAMES_PER_S: u32 = 4_096;
/// Frames for each piece that moves: a grant, a request, a confirmation, a have, and as many cancelled.
const FRAMES_PER_PIECE: u64 = 16;
/// Questions for an image or for peers, and lists of members, that may come at once, and in each second: an honest peer
/// asks one of each kind every other second.
pub(super) const QUESTIONS_BURST: u64 = 64;
const QUESTIONS_PER_S: u32 = 4;

/// What is left of a peer's allowances.
#[derive(Debug)]
pub(super) struct Patience {
    frames: Allowance,
    questions: Allowance,
}

#[derive(Debug)]
struct Allowance {
    left: u64,
    most: u64,
    every: Duration,
    refilled_at: Time,
}

impl Default for Patience {
    fn default() -> Self {
        Self {
            frames: Allowance::new(FRAMES_BURST, FRAMES_PER_S),
            questions: Allowance::new(QUESTIONS_BURST, QUESTIONS_PER_S),
        }
    }
}

impl Patience {
    /// A frame came; says what is too much of it. `is_dear`: a question, or what else costs more than a moment.
    pub(super) fn hear(&mut self, now: Time, is_dear: bool) -> Result<(), &'static str> {
        if !self.frames.take(now) {
            return Err("it floods its control stream");
        }
        if is_dear && !self.questions.take(now) {
            return Err("it asks without end");
        }
        Ok(())
    }

    /// A piece came, or was said to have arrived.
    pub(super) fn note_piece(&mut self) {
        self.frames.left = (self.frames.left + FRAMES_PER_PIECE).min(self.frames.most);
    }
}

impl Allowance {
    fn new(most: u64, per_s: u32) -> Self {
        Self { left: most, most, every: Duration::from_secs(1) / per_s, refilled_at: Time::ZERO }
    }

    fn take(&mut self, now: Time) -> bool {
        let earned = now.since(self.refilled_at).as_nanos() / self.every.as_nanos();
        if earned > 0 {
            let earned = u64::try_from(earned).unwrap_or(u64::MAX);
            self.left = self.left.saturating_add(earned).min(self.most);
            self.refilled_at = now;
        }
        self.left = match self.left.checked_sub(1) {
            Some(left) => left,
            None => return false,
        };
        true
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn at(millis: u64) -> Time {
        Time::ZERO + Duration::from_millis(millis)
    }

    #[test]
    fn a_flood_is_noticed_and_what_comes_with_pieces_is_none() {
        let mut patience = Patience::default();
        let heard = (0..1_000_000).take_while(|_| patience.hear(at(5), false).is_ok()).count();
        assert_eq!(heard as u64, FRAMES_BURST);
        let mut patience = Patience::default();
        for piece in 0..100_000 {
            // Ten thousand pieces each second, and all that is said of them.
            let now = at(piece / 10);
            (0..8).for_each(|_| patience.hear(now, false).unwrap());
            patience.note_piece();
        }
    }

    #[test]
    fn questions_have_an_end_that_a_pause_takes_back() {
        let mut patience = Patience::default();
        for _ in 0..QUESTIONS_BURST {
            patience.hear(at(5), true).unwrap();
        }
        assert_eq!(patience.hear(at(6), true), Err("it asks without end"));
        assert_eq!(patience.hear(at(6), false), Ok(()));
        assert_eq!(patience.hear(at(1006), true), Ok(()));
    }
}
