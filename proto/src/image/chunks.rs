//! A set of chunks, numbered in the order in which they were first seen.

use crate::cid::ChunkId;

/// Numbers chunks: the first is 0. Takes 40 to 48 bytes a chunk.
#[derive(Clone, Debug, Default)]
pub struct ChunkTable {
    ids: Vec<ChunkId>,
    /// Open addressing by the first bytes of an id, which are evenly spread already: a number or [`EMPTY`]. A power of
    /// two of slots, at most half of them taken.
    slots: Vec<u32>,
}

const EMPTY: u32 = u32::MAX;
const SLOTS_MIN: usize = 64;

impl ChunkTable {
    pub fn len(&self) -> usize {
        self.ids.len()
    }

    pub fn is_empty(&self) -> bool {
        self.ids.is_empty()
    }

    pub fn ids(&self) -> &[ChunkId] {
        &self.ids
    }

    pub fn find(&self, id: &ChunkId) -> Option<u32> {
        if self.slots.is_empty() {
            return None;
        }
        let number = self.slots[self.slot_of(id)];
        (number != EMPTY).then_some(number)
    }

    /// The number of `id`, and whether it is new.
    ///
    /// # Panics
    /// At 2³² − 1 chunks, which no image has.
    pub fn insert(&mut self, id: ChunkId) -> (u32, bool) {
        if self.slots.len() <= self.ids.len() * 2 {
            self.grow();
        }
        let slot = self.slot_of(&id);
        if self.slots[slot] != EMPTY {
            return (self.slots[slot], false);
        }
        let number = u32::try_from(self.ids.len()).ok().filter(|&number| number != EMPTY);
        let number = number.expect("fewer than 2^32 chunks");
        self.ids.push(id);
        self.slots[slot] = number;
        (number, true)
    }

    /// The slot that holds `id`, or the empty one where it belongs.
    fn slot_of(&self, id: &ChunkId) -> usize {
        let mask = self.slots.len() - 1;
        let mut slot = spread(id) & mask;
        while self.slots[slot] != EMPTY && self.ids[self.slots[slot] as usize] != *id {
            slot = (slot + 1) & mask;
        }
        slot
    }

    fn grow(&mut self) {
        self.slots = vec![EMPTY; (self.slots.len() * 2).max(SLOTS_MIN)];
        for number in 0..self.ids.len() {
            let slot = self.slot_of(&self.ids[number]);
            self.slots[slot] = u32::try_from(number).expect("checked when it was inserted");
        }
    }
}

impl FromIterator<ChunkId> for ChunkTable {
    fn from_iter<I: IntoIterator<Item = ChunkId>>(ids: I) -> Self {
        let mut table = Self::default();
        for id in ids {
            table.insert(id);
        }
        table
    }
}

fn spread(id: &ChunkId) -> usize {
    let (first, _) = id.digest().split_first_chunk().expect("32 bytes");
    usize::from_le_bytes(*first)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ids_that_start_alike_stay_apart() {
        let twin = |last: u8| {
            let mut digest = [0xff; 32];
            digest[31] = last;
            ChunkId::from_digest(digest)
        };
        let mut table = ChunkTable::default();
        for last in 0..200 {
            assert_eq!(table.find(&twin(last)), None);
            assert_eq!(table.insert(twin(last)), (u32::from(last), true));
        }
        for last in 0..200 {
            assert_eq!(table.find(&twin(last)), Some(u32::from(last)));
            assert_eq!(table.insert(twin(last)), (u32::from(last), false));
        }
        assert_eq!(table.len(), 200);
    }
}
