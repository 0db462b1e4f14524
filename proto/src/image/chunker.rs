//! Cut points: where one file's bytes fall apart into chunks.
//!
//! FastCDC (2020 edition, normalisation level 1) within one file. A cut depends on at most [`CHUNK_BYTES_MAX`] bytes
//! after the cut before it and on nothing else, so any machine can index any file alone, and a large file is cut
//! through a window. A file, or a run of data between two holes, of at most [`CHUNK_BYTES_MIN`] bytes is one chunk.
//!
//! Changing a parameter keeps every image readable but shares no chunk with images made before, so the root record
//! names the parameters and a node refuses others.

use fastcdc::v2020;

/// No chunk is shorter, but the last of a run.
pub const CHUNK_BYTES_MIN: usize = 16 << 10;
/// What chunks of ordinary data come near.
pub const CHUNK_BYTES_AVERAGE: usize = 64 << 10;
/// No chunk is longer.
pub const CHUNK_BYTES_MAX: usize = 256 << 10;

/// Cuts one run of bytes after another.
#[derive(Clone, Copy, Debug)]
pub struct Chunker {
    mask_short: u64,
    mask_long: u64,
}

impl Default for Chunker {
    fn default() -> Self {
        let (mask_short, mask_long) = v2020::select_masks(CHUNK_BYTES_AVERAGE, v2020::Normalization::Level1);
        Self { mask_short, mask_long }
    }
}

impl Chunker {
    /// The length of the first chunk of `window`, which starts at a cut point.
    ///
    /// The window must hold [`CHUNK_BYTES_MAX`] bytes, or all that are left of the run. Zero for an empty one.
    pub fn first_chunk_bytes(&self, window: &[u8]) -> usize {
        let window = &window[..window.len().min(CHUNK_BYTES_MAX)];
        if window.len() <= CHUNK_BYTES_MIN {
            return window.len();
        }
        let (_, bytes) = v2020::cut(
            window,
            CHUNK_BYTES_MIN,
            CHUNK_BYTES_AVERAGE,
            CHUNK_BYTES_MAX,
            self.mask_short,
            self.mask_long,
            self.mask_short << 1,
            self.mask_long << 1,
        );
        bytes
    }

    /// All chunks of a run that is wholly in memory.
    pub fn chunks<'a>(&self, mut run: &'a [u8]) -> impl Iterator<Item = &'a [u8]> + use<'a> {
        let chunker = *self;
        std::iter::from_fn(move || {
            let (chunk, rest) = run.split_at(chunker.first_chunk_bytes(run));
            run = rest;
            (!chunk.is_empty()).then_some(chunk)
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn noise(bytes: usize) -> Vec<u8> {
        let mut out = vec![0; bytes];
        blake3::Hasher::new().update(b"chunker").finalize_xof().fill(&mut out);
        out
    }

    fn lengths(run: &[u8]) -> Vec<usize> {
        Chunker::default().chunks(run).map(<[u8]>::len).collect()
    }

    /// Other cut points share nothing with any image made before.
    #[test]
    fn cut_points_are_those_of_every_release() {
        assert_eq!(lengths(&noise(600_000)), GOLDEN);
        assert_eq!(lengths(&vec![0; 600_000]), [262_144, 262_144, 75_712]);
    }
    const GOLDEN: [usize; 9] = [55_221, 73_339, 161_575, 67_951, 51_056, 22_966, 96_531, 28_800, 42_561];

    #[test]
    fn a_short_run_is_one_chunk() {
        assert_eq!(lengths(b""), [0; 0]);
        assert_eq!(lengths(b"x"), [1]);
        assert_eq!(lengths(&noise(CHUNK_BYTES_MIN)), [CHUNK_BYTES_MIN]);
    }

    #[test]
    fn a_window_cuts_as_the_whole_does() {
        let run = noise(2_000_000);
        let whole = lengths(&run);
        let chunker = Chunker::default();
        let (mut at, mut windowed) = (0, Vec::new());
        while at < run.len() {
            let bytes = chunker.first_chunk_bytes(&run[at..run.len().min(at + CHUNK_BYTES_MAX)]);
            windowed.push(bytes);
            at += bytes;
        }
        assert_eq!(windowed, whole);
    }

    #[test]
    fn an_insertion_moves_few_cuts() {
        let run = noise(3_000_000);
        let chunker = Chunker::default();
        let old: std::collections::BTreeSet<&[u8]> = chunker.chunks(&run).collect();
        let mut edited = run.clone();
        edited.splice(1_000_000..1_000_000, *b"inserted");
        let new = chunker.chunks(&edited).filter(|chunk| !old.contains(chunk)).count();
        assert!((1..=3).contains(&new), "{new} chunks are new");
    }
}
