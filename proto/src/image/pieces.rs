//! Piece lists: the numbered blocks that one exchange trades.

use std::fmt;

use crate::cid::Cid;

/// Most pieces one list may have. Bounds a bitfield to 128 KiB and a list to 36 MiB of names.
pub const PIECES_MAX: usize = 1 << 20;
/// Most raw bytes of one piece: the largest block that a capture lays (8 MiB) and one chunk more.
pub const PIECE_BYTES_MAX: u32 = 9 << 20;

/// A block's place in one piece list: the unit of have, request and verify.
///
/// Comes only from [`PieceList::index`] or a loop over [`PieceList::indexes`], so it is in range for its list.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct PieceIndex(u32);

impl PieceIndex {
    pub const fn get(self) -> u32 {
        self.0
    }

    pub const fn at(self) -> usize {
        self.0 as usize
    }

    /// For the bitfield and the exchange, which know the length of their list.
    pub(crate) const fn new(index: u32) -> Self {
        Self(index)
    }
}

impl fmt::Debug for PieceIndex {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "#{}", self.0)
    }
}

impl fmt::Display for PieceIndex {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}", self.0)
    }
}

/// The blocks that one exchange trades, in order. Its name is the CID of the concatenated digests of the blocks, so
/// two peers that name the same list mean the same pieces by the same indexes.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PieceList {
    name: Cid,
    pieces: Vec<Piece>,
}

/// One block of a list.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Piece {
    pub cid: Cid,
    /// Uncompressed bytes, 1 ..= [`PIECE_BYTES_MAX`].
    pub raw_bytes: u32,
}

/// A list that no exchange could trade.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum PieceListError {
    #[error("{0} pieces where at most {PIECES_MAX} are allowed")]
    TooMany(usize),
    #[error("piece {index} of {raw_bytes} bytes where 1 to {PIECE_BYTES_MAX} are allowed")]
    Length { index: usize, raw_bytes: u32 },
}

impl PieceList {
    /// Checks the bounds and computes the name.
    pub fn new(pieces: Vec<Piece>) -> Result<Self, PieceListError> {
        if pieces.len() > PIECES_MAX {
            return Err(PieceListError::TooMany(pieces.len()));
        }
        let mut hasher = blake3::Hasher::new();
        for (index, piece) in pieces.iter().enumerate() {
            if piece.raw_bytes == 0 || piece.raw_bytes > PIECE_BYTES_MAX {
                return Err(PieceListError::Length { index, raw_bytes: piece.raw_bytes });
            }
            hasher.update(piece.cid.digest());
        }
        Ok(Self { name: Cid::from_digest(*hasher.finalize().as_bytes()), pieces })
    }

    pub fn name(&self) -> Cid {
        self.name
    }

    pub fn len(&self) -> usize {
        self.pieces.len()
    }

    pub fn is_empty(&self) -> bool {
        self.pieces.is_empty()
    }

    /// The checked form of a number that came from outside.
    pub fn index(&self, number: u32) -> Option<PieceIndex> {
        ((number as usize) < self.pieces.len()).then_some(PieceIndex(number))
    }

    pub fn indexes(&self) -> impl DoubleEndedIterator<Item = PieceIndex> + ExactSizeIterator + use<> {
        (0..u32::try_from(self.pieces.len()).expect("at most PIECES_MAX")).map(PieceIndex)
    }

    pub fn piece(&self, index: PieceIndex) -> &Piece {
        &self.pieces[index.at()]
    }

    pub fn raw_bytes(&self) -> u64 {
        self.pieces.iter().map(|piece| u64::from(piece.raw_bytes)).sum()
    }
}
