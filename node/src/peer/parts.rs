//! The parts of pieces that a trade asked for, by the numbers that their answers come under.

use std::collections::BTreeMap;
use std::num::NonZeroU8;
use std::sync::{Arc, Mutex, PoisonError};

use shoal_proto::image::PieceIndex;
use shoal_proto::wire::{ByteRanges, Part};

/// Parts of one piece that may be asked for over a trade's life, each with other ranges; then it is asked for whole.
const PARTS_PER_PIECE_MAX: u8 = 8;

/// All parts of a trade: named by the driver, looked up by the readers of every connection.
///
/// None is ever forgotten, for the answer to a request that was cancelled may come at any time.
#[derive(Clone, Debug, Default)]
pub(super) struct Parts(Arc<Mutex<BTreeMap<PieceIndex, Vec<ByteRanges>>>>);

impl Parts {
    /// These ranges of the piece, numbered; `None` when too many others were.
    pub(super) fn name(&self, piece: PieceIndex, ranges: ByteRanges) -> Option<Part> {
        let mut parts = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let named = parts.entry(piece).or_default();
        let at = named.iter().position(|other| *other == ranges).unwrap_or(named.len());
        let number = u8::try_from(at + 1).ok().filter(|number| *number <= PARTS_PER_PIECE_MAX)?;
        if at == named.len() {
            named.push(ranges.clone());
        }
        Some(Part { number: NonZeroU8::new(number)?, ranges })
    }

    pub(super) fn find(&self, piece: PieceIndex, number: NonZeroU8) -> Option<Part> {
        let parts = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let ranges = parts.get(&piece)?.get(usize::from(number.get()) - 1)?.clone();
        Some(Part { number, ranges })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use shoal_proto::cid::Cid;
    use shoal_proto::image::{Piece, PieceList};

    #[test]
    fn a_number_means_the_same_ranges_for_ever() {
        let list = PieceList::new(vec![Piece { cid: Cid::of(b"x"), raw_bytes: 100 }; 2]).unwrap();
        let piece = list.index(1).unwrap();
        let ranges = |start: u32| ByteRanges::covering(std::iter::once(start..start + 1)).unwrap();
        let parts = Parts::default();
        for start in 0..u32::from(PARTS_PER_PIECE_MAX) {
            let part = parts.name(piece, ranges(start)).unwrap();
            assert_eq!(u32::from(part.number.get()), start + 1);
        }
        assert_eq!(parts.name(piece, ranges(50)), None, "one too many");
        assert_eq!(parts.name(piece, ranges(3)).unwrap().number.get(), 4, "known already");
        let number = |number| NonZeroU8::new(number).unwrap();
        assert_eq!(parts.find(piece, number(4)).unwrap().ranges, ranges(3));
        assert_eq!(parts.find(piece, number(9)), None);
        assert_eq!(parts.find(list.index(0).unwrap(), number(4)), None);
    }
}
