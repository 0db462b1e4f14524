//! Which bytes of a piece travel when its receiver has the others.

use std::num::NonZeroU8;
use std::ops::Range;

/// Most ranges that one request may name.
pub const RANGES_PER_PART_MAX: usize = 64;

/// Some ranges of one piece's raw bytes.
///
/// **Invariant:** 1 to [`RANGES_PER_PART_MAX`] ranges, in order, none of them empty, with a gap between every two.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ByteRanges(Vec<Range<u32>>);

/// Ranges of a piece as a request names them.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Part {
    /// What the requester calls these ranges of this piece: the answer says it again.
    pub number: NonZeroU8,
    pub ranges: ByteRanges,
}

/// Ranges that no honest peer asks for.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum RangesError {
    #[error("{0} ranges where 1 to {RANGES_PER_PART_MAX} are allowed")]
    Count(usize),
    #[error("an empty range at {0}")]
    Empty(u32),
    #[error("a range at {start} that overlaps, touches or comes before the one that ends at {end}")]
    Order { start: u32, end: u32 },
    #[error("a range that ends at {end} in a piece of {raw_bytes} bytes")]
    End { end: u64, raw_bytes: u32 },
}

impl ByteRanges {
    /// The ranges that cover all of `ranges`, which may come in any order, overlap and be empty: exactly their bytes,
    /// or, where that would be too many ranges, the smallest gaps too. `None` when there is no byte to cover.
    pub fn covering(ranges: impl IntoIterator<Item = Range<u32>>) -> Option<Self> {
        let mut ranges: Vec<Range<u32>> = ranges.into_iter().filter(|range| !range.is_empty()).collect();
        ranges.sort_unstable_by_key(|range| range.start);
        let mut apart: Vec<Range<u32>> = Vec::new();
        for range in ranges {
            match apart.last_mut() {
                Some(last) if range.start <= last.end => last.end = last.end.max(range.end),
                _ => apart.push(range),
            }
        }
        if apart.is_empty() {
            return None;
        }
        let mut gaps: Vec<usize> = (1..apart.len()).collect();
        gaps.sort_by_key(|&at| apart[at].start - apart[at - 1].end);
        gaps.truncate(apart.len().saturating_sub(RANGES_PER_PART_MAX));
        gaps.sort_unstable();
        // From the end, so that the places of those before stay right.
        for at in gaps.into_iter().rev() {
            let range = apart.remove(at);
            apart[at - 1].end = range.end;
        }
        Some(Self(apart))
    }

    /// Checks starts and lengths that came from outside against a piece of `raw_bytes`.
    pub fn check(ranges: &[[u32; 2]], raw_bytes: u32) -> Result<Self, RangesError> {
        if ranges.is_empty() || ranges.len() > RANGES_PER_PART_MAX {
            return Err(RangesError::Count(ranges.len()));
        }
        let mut checked: Vec<Range<u32>> = Vec::with_capacity(ranges.len());
        for &[start, bytes] in ranges {
            if bytes == 0 {
                return Err(RangesError::Empty(start));
            }
            let end = u64::from(start) + u64::from(bytes);
            let end = u32::try_from(end)
                .ok()
                .filter(|end| *end <= raw_bytes)
                .ok_or(RangesError::End { end, raw_bytes })?;
            if let Some(last) = checked.last().filter(|last| start <= last.end) {
                return Err(RangesError::Order { start, end: last.end });
            }
            checked.push(start..end);
        }
        Ok(Self(checked))
    }

    /// In order.
    pub fn iter(&self) -> impl ExactSizeIterator<Item = Range<u32>> + '_ {
        self.0.iter().cloned()
    }

    /// The ranges of a piece of `raw_bytes` that are not in here, in order.
    pub fn gaps(&self, raw_bytes: u32) -> impl Iterator<Item = Range<u32>> + '_ {
        let starts = std::iter::once(0).chain(self.0.iter().map(|range| range.end));
        let ends = self.0.iter().map(|range| range.start).chain(std::iter::once(raw_bytes));
        starts.zip(ends).map(|(start, end)| start..end).filter(|gap| !gap.is_empty())
    }

    /// Bytes in all ranges together.
    pub fn bytes(&self) -> u32 {
        self.0.iter().map(|range| range.end - range.start).sum()
    }

    /// Where the last range ends.
    pub fn end(&self) -> u32 {
        self.0.last().map_or(0, |last| last.end)
    }

    /// The bytes of the ranges in one row.
    ///
    /// # Panics
    /// When `raw` ends before the last range.
    pub fn gather(&self, raw: &[u8]) -> Vec<u8> {
        self.places().flat_map(|place| &raw[place]).copied().collect()
    }

    /// Puts what [`gather`](Self::gather) made to its places; touches no other byte.
    ///
    /// # Panics
    /// When `part` is not as long as the ranges, or `raw` ends before the last one.
    pub fn scatter(&self, part: &[u8], raw: &mut [u8]) {
        assert_eq!(part.len(), self.bytes() as usize, "a part of other ranges");
        let mut part = part;
        for place in self.places() {
            let (here, rest) = part.split_at(place.len());
            raw[place].copy_from_slice(here);
            part = rest;
        }
    }

    fn places(&self) -> impl Iterator<Item = Range<usize>> + '_ {
        self.0.iter().map(|range| range.start as usize..range.end as usize)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn covering(ranges: &[Range<u32>]) -> Vec<Range<u32>> {
        ByteRanges::covering(ranges.iter().cloned()).map_or_else(Vec::new, |ranges| ranges.0)
    }

    #[test]
    fn ranges_are_sorted_joined_and_without_empty_ones() {
        assert_eq!(covering(&[30..40, 5..5, 0..10, 8..12, 12..20, 35..36]), [0..20, 30..40]);
        assert_eq!(covering(&[7..7, 9..9]), []);
        assert_eq!(covering(&[]), []);
    }

    #[test]
    fn too_many_ranges_lose_their_smallest_gaps() {
        // Gaps of 1, 2, 3, … bytes after each single byte.
        let mut start = 0;
        let many: Vec<Range<u32>> = (0..70)
            .map(|gap| {
                let range = start..start + 1;
                start += 2 + gap;
                range
            })
            .collect();
        let covered = covering(&many);
        assert_eq!(covered.len(), RANGES_PER_PART_MAX);
        assert_eq!(covered[0], 0..many[6].end, "the six smallest gaps are filled");
        assert_eq!(covered[1..], many[7..]);
    }

    #[test]
    fn what_a_stranger_asks_for_is_checked() {
        let check = |ranges: &[[u32; 2]]| ByteRanges::check(ranges, 100);
        assert_eq!(check(&[[0, 10], [11, 89]]).unwrap().0, [0..10, 11..100]);
        let order = |start, end| Err(RangesError::Order { start, end });
        let refused = [
            (check(&[]), Err(RangesError::Count(0))),
            (check(&[[0, 1]; 65]), Err(RangesError::Count(65))),
            (check(&[[0, 5], [7, 0]]), Err(RangesError::Empty(7))),
            (check(&[[0, 5], [4, 2]]), order(4, 5)),
            (check(&[[0, 5], [5, 2]]), order(5, 5)),
            (check(&[[9, 5], [2, 2]]), order(2, 14)),
            (check(&[[99, 2]]), Err(RangesError::End { end: 101, raw_bytes: 100 })),
            (check(&[[1, u32::MAX]]), Err(RangesError::End { end: 1 << 32, raw_bytes: 100 })),
        ];
        for (found, expected) in refused {
            assert_eq!(found, expected);
        }
        let most: Vec<_> = (0..64).map(|at| [at * 2, 1]).collect();
        assert_eq!(ByteRanges::check(&most, 200).unwrap().bytes(), 64);
    }

    proptest::proptest! {
        #[test]
        fn ranges_and_gaps_are_the_piece_and_a_part_comes_back(
            ranges in proptest::collection::vec((0_u32..500, 0_u32..9), 1..150),
        ) {
            let ranges: Vec<Range<u32>> = ranges.into_iter().map(|(start, bytes)| start..start + bytes).collect();
            let Some(covered) = ByteRanges::covering(ranges.iter().cloned()) else { return Ok(()) };
            let named: Vec<_> = covered.iter().map(|range| [range.start, range.end - range.start]).collect();
            proptest::prop_assert_eq!(&ByteRanges::check(&named, 510).unwrap(), &covered);
            let raw: Vec<u8> = (0..510_u32).map(|at| (at % 251) as u8 + 1).collect();
            let mut back = vec![0; raw.len()];
            covered.scatter(&covered.gather(&raw), &mut back);
            for at in ranges.into_iter().flatten() {
                proptest::prop_assert_eq!(back[at as usize], raw[at as usize]);
            }
            for gap in covered.gaps(510) {
                let gap = gap.start as usize..gap.end as usize;
                proptest::prop_assert!(back[gap.clone()].iter().all(|byte| *byte == 0));
                back[gap.clone()].copy_from_slice(&raw[gap]);
            }
            proptest::prop_assert_eq!(back, raw);
        }
    }
}
