//! Right manifests with something wrong done to their bytes, the same on every run.

use rand::{Rng, SeedableRng};
use rand_chacha::ChaCha8Rng;

use crate::memory;
use crate::mutate::{mutate, valid};
use crate::stream::decode;

const ROUNDS: u64 = 20_000;

#[test]
fn no_mutation_panics_or_takes_more_room_than_it_may() {
    let mut read = 0;
    for seed in 0..ROUNDS {
        let mut rng = ChaCha8Rng::seed_from_u64(seed);
        let mut stream = valid(&mut rng);
        assert!(seed % 100 > 0 || decode(&stream, 64).is_ok(), "seed {seed}: {:?}", decode(&stream, 64));
        for _ in 0..rng.random_range(1..4) {
            mutate(&mut stream.bytes, &mut rng);
        }
        let run = rng.random_range(1..2000);
        let (decoded, peak_bytes) = memory::peak_of(|| decode(&stream, run));
        let bound = 16 * stream.bytes.len() + (64 << 10);
        assert!(peak_bytes <= bound, "seed {seed}: {peak_bytes} bytes for {}", stream.bytes.len());
        match decoded {
            Err(error) => assert!(!error.to_string().is_empty(), "seed {seed}"),
            Ok(manifest) => {
                read += 1;
                // What can be read has one spelling: a writer says the same bytes.
                let mut again = Vec::new();
                manifest.encode(|bytes| again.extend_from_slice(bytes));
                assert!(again == stream.bytes, "seed {seed}");
                for entry in manifest.entries() {
                    assert!(!entry.path().components().any(|name| name.bytes() == b".."), "seed {seed}");
                    let _ = manifest.size(entry);
                }
                let _ = manifest.places();
            }
        }
    }
    assert!(read > ROUNDS / 100, "hardly any could be read: {read}");
}
