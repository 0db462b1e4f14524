//! From a request to the bytes that answer it.
//!
//! Reading a block costs a disk's time, making it again a processor's: both run on blocking threads, of which at most
//! [`READS_MAX`] are at it at once, however many neighbours ask.

use std::fmt;
use std::sync::Arc;

use shoal_proto::cid::Cid;
use shoal_proto::wire::Part;
use tokio::sync::Semaphore;

use crate::block::{EncodedBlock, EncodedPart, Encoding};
use crate::peer::BlockSource;
use crate::store::Store;

/// Blocks that are read, or made again, at once. Each takes two or three times its bytes in memory meanwhile.
const READS_MAX: usize = 8;

/// What of a piece travels.
#[derive(Debug)]
pub(super) enum Delivery {
    Whole(EncodedBlock),
    Part(Part, EncodedPart),
}

impl Delivery {
    pub(super) fn encoding(&self) -> Encoding {
        match self {
            Self::Whole(block) => block.encoding,
            Self::Part(_, part) => part.encoding,
        }
    }

    pub(super) fn payload(&self) -> &[u8] {
        match self {
            Self::Whole(block) => &block.payload,
            Self::Part(_, part) => &part.payload,
        }
    }

    /// What a bulk header says of it.
    pub(super) fn part_number(&self) -> u8 {
        match self {
            Self::Whole(_) => 0,
            Self::Part(part, _) => part.number.get(),
        }
    }
}

/// Reads what is held, for all connections of a peer.
#[derive(Clone)]
pub(super) struct Shelves {
    source: Arc<dyn BlockSource>,
    store: Arc<Store>,
    reads: Arc<Semaphore>,
}

impl Shelves {
    pub(super) fn new(source: Arc<dyn BlockSource>, store: Arc<Store>) -> Self {
        Self { source, store, reads: Arc::new(Semaphore::new(READS_MAX)) }
    }

    /// What answers a request for the block or for a part of it; says why when it cannot be had any more.
    pub(super) async fn read(&self, cid: Cid, part: Option<Part>) -> Result<Delivery, String> {
        let slot = self.reads.clone().acquire_owned().await.expect("the semaphore is never closed");
        let source = self.source.clone();
        // The slot goes along: a thread goes on when its connection, and this task with it, are gone.
        let read = tokio::task::spawn_blocking(move || {
            let delivery = deliver(&*source, &cid, part);
            drop(slot);
            delivery
        });
        read.await.unwrap_or_else(|error| Err(error.to_string()))
    }

    /// Forgets a block that could not be read: else it could not be stored once it was fetched again.
    pub(super) fn discard(&self, cid: &Cid) {
        self.store.discard(cid);
    }
}

impl fmt::Debug for Shelves {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Shelves({} of {READS_MAX} reads free)", self.reads.available_permits())
    }
}

/// A part is cut from bytes that were checked just now; it goes whole when that is no longer.
fn deliver(source: &dyn BlockSource, cid: &Cid, part: Option<Part>) -> Result<Delivery, String> {
    let block = source.block(cid).map_err(|error| error.to_string())?;
    let block = block.ok_or("nothing here supplies it")?;
    if block.cid != *cid {
        return Err(format!("the source supplies block {}", block.cid));
    }
    let Some(part) = part else { return Ok(Delivery::Whole(block)) };
    let raw = block.decode().map_err(|error| error.to_string())?;
    if raw.len() < part.ranges.end() as usize {
        return Err(format!("it has {} bytes, fewer than its list says", raw.len()));
    }
    let encoded = EncodedPart::encode(*cid, &part.ranges.gather(&raw));
    let is_shorter = encoded.payload.len() < block.payload.len();
    Ok(if is_shorter { Delivery::Part(part, encoded) } else { Delivery::Whole(block) })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::peer::BoxError;
    use shoal_proto::wire::ByteRanges;
    use std::num::NonZeroU8;
    use std::sync::{Condvar, Mutex};
    use std::time::Duration;

    struct One(Option<EncodedBlock>);

    impl BlockSource for One {
        fn block(&self, _: &Cid) -> Result<Option<EncodedBlock>, BoxError> {
            Ok(self.0.clone())
        }
    }

    fn noise(bytes: usize) -> Vec<u8> {
        let mut out = vec![0; bytes];
        blake3::Hasher::new().finalize_xof().fill(&mut out);
        out
    }

    fn part(ranges: &[[u32; 2]]) -> Option<Part> {
        let ranges = ByteRanges::covering(ranges.iter().map(|[start, end]| *start..*end)).unwrap();
        Some(Part { number: NonZeroU8::new(3).unwrap(), ranges })
    }

    #[test]
    fn a_part_is_the_bytes_of_its_ranges_and_the_whole_where_that_is_no_longer() {
        let raw = noise(10_000);
        let block = EncodedBlock::encode(&raw, 3);
        let source = One(Some(block.clone()));
        let delivery = deliver(&source, &block.cid, part(&[[10, 20], [5000, 6000]])).unwrap();
        assert_eq!((delivery.part_number(), delivery.payload().len()), (3, 1010));
        let Delivery::Part(_, encoded) = &delivery else { panic!("{delivery:?}") };
        let mut bytes = Vec::new();
        encoded.decode_into(&mut bytes).unwrap();
        assert_eq!(bytes, [&raw[10..20], &raw[5000..6000]].concat());
        for part in [None, part(&[[0, 10_000]])] {
            let delivery = deliver(&source, &block.cid, part).unwrap();
            assert_eq!((delivery.part_number(), delivery.payload()), (0, &block.payload[..]));
        }
    }

    /// Counts who is reading, and lets them go on once as many read as may.
    #[derive(Default)]
    struct Crowded {
        /// Readers now, and the most there were.
        reading: Mutex<(usize, usize)>,
        full: Condvar,
    }

    impl BlockSource for Crowded {
        fn block(&self, _: &Cid) -> Result<Option<EncodedBlock>, BoxError> {
            let mut reading = self.reading.lock().unwrap();
            reading.0 += 1;
            reading.1 = reading.1.max(reading.0);
            self.full.notify_all();
            let mut reading = self.full.wait_while(reading, |(_, most)| *most < READS_MAX).unwrap();
            // Time for more to come, if more could.
            reading = self.full.wait_timeout(reading, Duration::from_millis(20)).unwrap().0;
            reading.0 -= 1;
            Ok(None)
        }
    }

    #[tokio::test]
    async fn only_so_many_blocks_are_read_at_once() {
        let dir = tempfile::tempdir().unwrap();
        let crowded = Arc::new(Crowded::default());
        let shelves = Shelves::new(crowded.clone(), Arc::new(Store::open(dir.path()).unwrap()));
        let reads = (0..READS_MAX * 3).map(|_| shelves.read(Cid::of(b"x"), None));
        let outcomes = futures::future::join_all(reads).await;
        assert!(outcomes.iter().all(Result::is_err));
        assert_eq!(crowded.reading.lock().unwrap().1, READS_MAX);
    }

    #[test]
    fn no_part_is_cut_from_bytes_that_do_not_match_their_name() {
        let good = EncodedBlock::encode(&noise(10_000), 3);
        let mut flipped = good.clone();
        flipped.payload[5] ^= 1;
        let other = EncodedBlock::encode(&noise(9_000), 3);
        let refused = [
            (Some(flipped), "holds the bytes of"),
            (Some(other), "the source supplies block"),
            (None, "nothing here supplies it"),
        ];
        for (block, why) in refused {
            let error = deliver(&One(block), &good.cid, part(&[[0, 5]])).unwrap_err();
            assert!(error.contains(why), "{error}");
        }
        let error = deliver(&One(Some(good.clone())), &good.cid, part(&[[0, 10_001]])).unwrap_err();
        assert!(error.contains("fewer than its list says"), "{error}");
    }
}
