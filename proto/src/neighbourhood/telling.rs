//! Whom to tell of whom.

use std::fmt;

use rand::Rng;

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
        let mut drawn = self.draw(zone);
        let full = chosen.len() + self.config.told_max;
        while chosen.len() < full && !drawn.is_empty() {
            let slot = self.take_less_told(&mut drawn);
            if self.book.get(slot).tell_until.is_none_or(|until| until <= now) {
                self.book.change(slot, |known| known.tell_until = None);
            } else if slot != to && !chosen.contains(&slot) {
                chosen.push(slot);
            }
        }
    }

    /// All there are to tell of, or so many at random that a few of them will do.
    fn draw(&mut self, zone: Option<&Zone>) -> Vec<Slot> {
        let bag = match zone {
            Some(zone) => self.book.tellable_in(zone),
            None => Some(self.book.tellable()),
        };
        let Some(bag) = bag else { return Vec::new() };
        let draws = self.config.told_max * DRAWS_PER_PEER;
        if bag.all().len() <= draws {
            return bag.all().to_vec();
        }
        (0..draws).filter_map(|_| bag.draw(&mut self.rng)).collect()
    }

    fn take_less_told(&mut self, among: &mut Vec<Slot>) -> Slot {
        let told = |at: usize| self.book.get(among[at]).told;
        let (one, other) = (self.rng.random_range(0..among.len()), self.rng.random_range(0..among.len()));
        let less = if told(other) < told(one) { other } else { one };
        among.swap_remove(less)
    }
}
