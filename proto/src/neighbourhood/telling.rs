//! Whom to tell of whom.

use std::fmt;

use super::book::Slot;
use super::{Contact, Neighbourhood};
use crate::time::Time;
use crate::zone::Zone;

/// Draws for each peer that is to be told of.
const DRAWS_PER_PEER: usize = 4;

impl<N: Copy + Ord + fmt::Debug, A: Clone + PartialEq> Neighbourhood<N, A> {
    /// Some peers worth telling `to` about: some of its own rack, where that is known, and some of all.
    ///
    /// Of two drawn at random the one told of less often is told: were it one at random, those who came first would be
    /// dialed by everybody after them; were it the one least told of all, each would know those who came with it.
    pub(super) fn contacts_for(&mut self, now: Time, to: Slot) -> Vec<Contact<N, A>> {
        let mut chosen = Vec::new();
        let zone = self.book.get(to).zone.clone();
        if !zone.is_unknown() {
            self.choose(now, to, Some(&zone), &mut chosen);
        }
        self.choose(now, to, None, &mut chosen);
        for slot in &chosen {
            self.book.note_told(*slot);
        }
        chosen.into_iter().map(|slot| self.book.get(slot).contact()).collect()
    }

    /// Adds up to `told_max`, of `zone` only when it is given.
    fn choose(&mut self, now: Time, to: Slot, zone: Option<&Zone>, chosen: &mut Vec<Slot>) {
        let full = chosen.len() + self.config.told_max;
        for _ in 0..self.config.told_max * DRAWS_PER_PEER {
            if chosen.len() >= full {
                return;
            }
            let Some(drawn) = self.draw_less_told(zone) else { return };
            let known = self.book.get(drawn);
            if known.tell_until.is_some_and(|until| until <= now) {
                self.book.change(drawn, |known| known.tell_until = None);
            } else if drawn != to && !chosen.contains(&drawn) {
                chosen.push(drawn);
            }
        }
    }

    fn draw_less_told(&mut self, zone: Option<&Zone>) -> Option<Slot> {
        let Self { book, rng, .. } = self;
        let bag = match zone {
            Some(zone) => book.tellable_in(zone)?,
            None => book.tellable(),
        };
        let (one, other) = (bag.draw(rng)?, bag.draw(rng)?);
        Some(if book.get(other).told < book.get(one).told { other } else { one })
    }
}
