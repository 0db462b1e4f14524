//! A set of pieces of one list.

use crate::image::PieceIndex;

/// Which pieces of a list of `len` pieces are in the set.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Bitfield {
    words: Vec<u64>,
    len: u32,
    count: u32,
}

/// Bytes that are no bitfield of the list at hand.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum BitfieldError {
    #[error("a bitfield of {actual} bytes where the list needs {expected}")]
    Length { expected: usize, actual: usize },
    #[error("a bitfield with bits set past its end")]
    StrayBits,
}

impl Bitfield {
    pub fn empty(len: usize) -> Self {
        let len = u32::try_from(len).expect("at most PIECES_MAX pieces");
        Self { words: vec![0; (len as usize).div_ceil(64)], len, count: 0 }
    }

    pub fn full(len: usize) -> Self {
        let mut all = Self::empty(len);
        for index in 0..all.len {
            all.insert(PieceIndex::new(index));
        }
        all
    }

    /// Reads BEP 3's form: the high bit of the first byte is piece 0, spare bits at the end are zero.
    pub fn from_bytes(bytes: &[u8], len: usize) -> Result<Self, BitfieldError> {
        let expected = len.div_ceil(8);
        if bytes.len() != expected {
            return Err(BitfieldError::Length { expected, actual: bytes.len() });
        }
        let mut set = Self::empty(len);
        for (at, &byte) in bytes.iter().enumerate() {
            for bit in (0..8).filter(|bit| byte & (0x80 >> bit) != 0) {
                let index = at * 8 + bit;
                if index >= len {
                    return Err(BitfieldError::StrayBits);
                }
                set.insert(piece_at(index));
            }
        }
        Ok(set)
    }

    pub fn to_bytes(&self) -> Vec<u8> {
        let mut bytes = vec![0u8; self.len().div_ceil(8)];
        for piece in self.iter() {
            bytes[piece.at() / 8] |= 0x80 >> (piece.at() % 8);
        }
        bytes
    }

    /// Pieces in the list, held or not.
    pub fn len(&self) -> usize {
        self.len as usize
    }

    pub fn is_empty(&self) -> bool {
        self.count == 0
    }

    pub fn is_full(&self) -> bool {
        self.count == self.len
    }

    /// Pieces in the set.
    pub fn count(&self) -> usize {
        self.count as usize
    }

    pub fn contains(&self, piece: PieceIndex) -> bool {
        self.words[piece.at() / 64] >> (piece.at() % 64) & 1 == 1
    }

    /// Returns whether the piece was new.
    pub fn insert(&mut self, piece: PieceIndex) -> bool {
        assert!(piece.get() < self.len, "a piece of another list");
        if self.contains(piece) {
            return false;
        }
        self.words[piece.at() / 64] |= 1 << (piece.at() % 64);
        self.count += 1;
        true
    }

    /// Adds the pieces of a set of the same list.
    pub fn insert_all(&mut self, other: &Self) {
        self.words.iter_mut().zip(&other.words).for_each(|(mine, theirs)| *mine |= theirs);
        self.recount();
    }

    /// Takes out the pieces of a set of the same list.
    pub fn remove_all(&mut self, other: &Self) {
        self.words.iter_mut().zip(&other.words).for_each(|(mine, theirs)| *mine &= !theirs);
        self.recount();
    }

    fn recount(&mut self) {
        self.count = self.words.iter().map(|word| word.count_ones()).sum();
    }

    /// Returns whether the piece was there.
    pub fn remove(&mut self, piece: PieceIndex) -> bool {
        // Not `count -= u32::from(there)`: inlined before `if !set.remove(…)`, rustc 1.95 optimises the comparison
        // away and subtracts nothing.
        if !self.contains(piece) {
            return false;
        }
        self.words[piece.at() / 64] &= !(1 << (piece.at() % 64));
        self.count -= 1;
        true
    }

    pub fn iter(&self) -> impl Iterator<Item = PieceIndex> + '_ {
        self.words.iter().enumerate().flat_map(|(at, &word)| {
            let mut left = word;
            std::iter::from_fn(move || {
                (left != 0).then(|| {
                    let bit = left.trailing_zeros();
                    left &= left - 1;
                    piece_at(at * 64 + bit as usize)
                })
            })
        })
    }

    /// The first piece of the set at or after place `at` of the list.
    pub fn first_from(&self, at: usize) -> Option<PieceIndex> {
        let mut word_at = at / 64;
        let mut word = self.words.get(word_at)? & (u64::MAX << (at % 64));
        while word == 0 {
            word_at += 1;
            word = *self.words.get(word_at)?;
        }
        Some(piece_at(word_at * 64 + word.trailing_zeros() as usize))
    }

    /// Whether this set has a piece that `other` lacks.
    pub fn has_any_not_in(&self, other: &Self) -> bool {
        self.words.iter().zip(&other.words).any(|(mine, theirs)| mine & !theirs != 0)
    }

    pub fn words(&self) -> &[u64] {
        &self.words
    }
}

fn piece_at(at: usize) -> PieceIndex {
    PieceIndex::new(u32::try_from(at).expect("at most PIECES_MAX pieces"))
}
