//! Which piece to ask for: a pure choice over sets and counts.

use rand::Rng;

use super::Bitfield;
use crate::image::PieceIndex;

/// The piece of `offered` that is neither `settled` nor `coming` and that fewest neighbours hold; ties at random.
///
/// Random ties are the point: every neighbour sees nearly the same counts, and a fixed order would send them all
/// after the same piece (measured at 19 times the bound).
pub(super) fn rarest(
    offered: &Bitfield,
    settled: &Bitfield,
    coming: &Bitfield,
    copies: &[u16],
    rng: &mut impl Rng,
) -> Option<PieceIndex> {
    let mut fewest = u16::MAX;
    let mut ties = 0u32;
    for_each_wanted(offered, settled, coming, |piece| {
        let copies = copies[piece.at()];
        if copies < fewest {
            fewest = copies;
            ties = 1;
        } else if copies == fewest {
            ties += 1;
        }
        true
    });
    if ties == 0 {
        return None;
    }
    let mut skip = if ties == 1 { 0 } else { rng.random_range(0..ties) };
    let mut chosen = None;
    for_each_wanted(offered, settled, coming, |piece| {
        if copies[piece.at()] != fewest {
            return true;
        }
        if skip == 0 {
            chosen = Some(piece);
            return false;
        }
        skip -= 1;
        true
    });
    chosen
}

/// Calls `visit` for each piece of `offered` that is neither `settled` nor `coming`, until it returns false.
fn for_each_wanted(
    offered: &Bitfield,
    settled: &Bitfield,
    coming: &Bitfield,
    mut visit: impl FnMut(PieceIndex) -> bool,
) {
    let words = offered.words().iter().zip(settled.words()).zip(coming.words());
    let mut base = 0;
    for ((offered, settled), coming) in words {
        let mut wanted = offered & !settled & !coming;
        while wanted != 0 {
            if !visit(PieceIndex::new(base + wanted.trailing_zeros())) {
                return;
            }
            wanted &= wanted - 1;
        }
        base += u64::BITS;
    }
}

#[cfg(test)]
mod tests {
    use rand::SeedableRng;
    use rand_chacha::ChaCha8Rng;

    use super::*;

    fn set(len: usize, pieces: &[u32]) -> Bitfield {
        let mut set = Bitfield::empty(len);
        for &piece in pieces {
            set.insert(PieceIndex::new(piece));
        }
        set
    }

    #[test]
    fn rarest_wanted_piece_is_picked_across_word_boundaries() {
        let mut copies = vec![3; 200];
        copies[130] = 1;
        copies[131] = 0;
        copies[5] = 0;
        let picked = rarest(
            &set(200, &[1, 5, 64, 130, 131, 199]),
            &set(200, &[131]),
            &set(200, &[5]),
            &copies,
            &mut ChaCha8Rng::seed_from_u64(1),
        );
        assert_eq!(picked, Some(PieceIndex::new(130)));
    }

    #[test]
    fn ties_are_broken_evenly() {
        let mut rng = ChaCha8Rng::seed_from_u64(7);
        let mut seen = [0u32; 130];
        let (none, all) = (Bitfield::empty(130), Bitfield::full(130));
        for _ in 0..13_000 {
            seen[rarest(&all, &none, &none, &[1; 130], &mut rng).unwrap().at()] += 1;
        }
        assert!(seen.iter().all(|&count| (50..200).contains(&count)), "{seen:?}");
    }

    #[test]
    fn nothing_wanted_is_nothing_picked() {
        let mut rng = ChaCha8Rng::seed_from_u64(7);
        let (none, all) = (Bitfield::empty(70), Bitfield::full(70));
        assert_eq!(rarest(&all, &all, &none, &[0; 70], &mut rng), None);
        assert_eq!(rarest(&all, &none, &all, &[0; 70], &mut rng), None);
        assert_eq!(rarest(&none, &none, &none, &[0; 70], &mut rng), None);
    }
}
