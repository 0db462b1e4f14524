//! Chunks by number: a set numbered in the order in which they were first seen, and the way to find one in any list.

use crate::cid::ChunkId;

/// Numbers chunks: the first is 0. Takes 40 to 48 bytes a chunk.
#[derive(Clone, Debug, Default)]
pub struct ChunkTable {
    ids: Vec<ChunkId>,
    slots: ChunkSlots,
}

/// Finds chunks in a list of ids that somebody else keeps. Takes 8 to 16 bytes a chunk.
///
/// Open addressing by the first bytes of an id, which are evenly spread already: a number or [`EMPTY`]. A power of two
/// of slots, at most half of them taken.
#[derive(Clone, Debug, Default)]
pub struct ChunkSlots {
    slots: Vec<u32>,
    taken: usize,
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
        self.slots.find(&self.ids, id)
    }

    /// The number of `id`, and whether it is new.
    ///
    /// # Panics
    /// At 2³² − 1 chunks, which no image has.
    pub fn insert(&mut self, id: ChunkId) -> (u32, bool) {
        let number = u32::try_from(self.ids.len()).ok().filter(|&number| number != EMPTY);
        let number = number.expect("fewer than 2^32 chunks");
        self.ids.push(id);
        let found = self.slots.insert(&self.ids, number);
        if found != number {
            self.ids.pop();
        }
        (found, found == number)
    }
}

impl ChunkSlots {
    /// With room for so many chunks.
    pub fn with_capacity(chunks: usize) -> Self {
        Self { slots: vec![EMPTY; (chunks * 2 + 1).next_power_of_two().max(SLOTS_MIN)], taken: 0 }
    }

    /// The number of `id`, if it was inserted. `ids` is the list that all insertions were made with.
    pub fn find(&self, ids: &[ChunkId], id: &ChunkId) -> Option<u32> {
        if self.slots.is_empty() {
            return None;
        }
        let number = self.slots[self.slot_of(ids, id)];
        (number != EMPTY).then_some(number)
    }

    /// Makes chunk `number` of the list findable, unless an equal one is: the number of that one then.
    pub fn insert(&mut self, ids: &[ChunkId], number: u32) -> u32 {
        if self.slots.len() <= self.taken * 2 {
            self.grow(ids);
        }
        let slot = self.slot_of(ids, &ids[number as usize]);
        if self.slots[slot] == EMPTY {
            self.slots[slot] = number;
            self.taken += 1;
        }
        self.slots[slot]
    }

    /// The slot that holds `id`, or the empty one where it belongs.
    fn slot_of(&self, ids: &[ChunkId], id: &ChunkId) -> usize {
        let mask = self.slots.len() - 1;
        let mut slot = spread(id) & mask;
        while self.slots[slot] != EMPTY && ids[self.slots[slot] as usize] != *id {
            slot = (slot + 1) & mask;
        }
        slot
    }

    fn grow(&mut self, ids: &[ChunkId]) {
        let larger = vec![EMPTY; (self.slots.len() * 2).max(SLOTS_MIN)];
        for number in std::mem::replace(&mut self.slots, larger) {
            if number != EMPTY {
                let slot = self.slot_of(ids, &ids[number as usize]);
                self.slots[slot] = number;
            }
        }
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
