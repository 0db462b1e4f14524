//! The door to sled, which is never the only copy of anything.
//!
//! sled 0.34 answers from damaged files as if nothing had happened, or panics, and its `flush` survives a killed
//! process but not a power failure. So whatever is kept here can be made again from plain files; every value carries
//! a checksum; an error and a panic are the same to the caller; and a table that cannot be opened is thrown away.

use std::fmt;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use shoal_proto::cid::{Cid, DIGEST_BYTES};

use super::pack::Place;

/// RAM that sled may keep pages in. Its own least is larger than an index of 16 000 blocks.
const CACHE_BYTES: u64 = 8 << 20;
/// How often a lock is tried, and what passes between two tries: a second in all.
const LOCK_TRIES: u32 = 100;
const LOCK_PAUSE: Duration = Duration::from_millis(10);
/// Bytes of the crc32c of key and value behind every value.
const CRC_BYTES: usize = 4;

/// A table that can no longer be relied on: its owner deletes it and makes it again.
#[derive(Debug, thiserror::Error)]
pub enum TableError {
    #[error("cannot use table {dir}: {reason}")]
    Engine { dir: PathBuf, reason: String },
    #[error("table {dir} holds a value that is not what was put there")]
    Checksum { dir: PathBuf },
    #[error("cannot delete table {dir}")]
    Delete { dir: PathBuf, source: std::io::Error },
}

/// Keys and values on disk, as a cache: what is put here is there after a killed process, may be gone after a power
/// failure, and is returned as it was put or not at all.
///
/// After the first error nothing more is to be expected of a table: drop it, and [`reset`](Self::reset) its folder.
pub struct Table {
    dir: PathBuf,
    /// Taken on drop only.
    db: Option<sled::Db>,
    broken: AtomicBool,
}

impl Table {
    /// Opens the table in the folder `dir`, making an empty one when there is none. One opener at a time.
    pub fn open(dir: &Path) -> Result<Self, TableError> {
        let config = sled::Config::new().path(dir).cache_capacity(CACHE_BYTES).flush_every_ms(None);
        let mut tries = 1;
        let db = loop {
            match guarded(dir, || config.open()) {
                // A table just dropped lets go of its files a moment later, on threads of sled's own.
                Err(TableError::Engine { reason, .. })
                    if reason.contains("could not acquire lock") && tries < LOCK_TRIES =>
                {
                    tries += 1;
                    std::thread::sleep(LOCK_PAUSE);
                }
                opened => break opened?,
            }
        };
        Ok(Self { dir: dir.to_owned(), db: Some(db), broken: AtomicBool::new(false) })
    }

    /// Deletes whatever is at `dir` and opens an empty table there.
    pub fn reset(dir: &Path) -> Result<Self, TableError> {
        match std::fs::remove_dir_all(dir) {
            Err(source) if source.kind() != std::io::ErrorKind::NotFound => {
                Err(TableError::Delete { dir: dir.to_owned(), source })
            }
            _ => Self::open(dir),
        }
    }

    pub fn get(&self, key: &[u8]) -> Result<Option<Vec<u8>>, TableError> {
        match self.guarded(|db| db.get(key))? {
            Some(stored) => self.unsealed(key, &stored).map(Some),
            None => Ok(None),
        }
    }

    /// Puts (`Some`) and removes (`None`) all of `changes`, or none of them; the last one of a key counts. They
    /// survive a killed process once this returns. Takes about 4 KB of RAM per change, for sled's copies of pages.
    pub fn write<'a>(
        &self,
        changes: impl IntoIterator<Item = (&'a [u8], Option<&'a [u8]>)>,
    ) -> Result<(), TableError> {
        self.apply(changes)?;
        self.flush()
    }

    fn apply<'a>(
        &self,
        changes: impl IntoIterator<Item = (&'a [u8], Option<&'a [u8]>)>,
    ) -> Result<(), TableError> {
        let mut batch = sled::Batch::default();
        for (key, value) in changes {
            match value {
                Some(value) => batch.insert(key, sealed(key, value)),
                None => batch.remove(key),
            }
        }
        self.guarded(|db| db.apply_batch(batch))
    }

    fn flush(&self) -> Result<(), TableError> {
        self.guarded(|db| db.flush().map(|_| ()))
    }

    /// All keys and values, in the order of the keys. Stop at the first error.
    pub fn iter(&self) -> impl Iterator<Item = Result<(Vec<u8>, Vec<u8>), TableError>> {
        let mut pairs = None;
        let mut ended = false;
        std::iter::from_fn(move || {
            if ended {
                return None;
            }
            let next = self.guarded(|db| pairs.get_or_insert_with(|| db.iter()).next().transpose());
            let item = next.and_then(|pair| match pair {
                Some((key, stored)) => self.unsealed(&key, &stored).map(|value| Some((key.to_vec(), value))),
                None => Ok(None),
            });
            ended = !matches!(item, Ok(Some(_)));
            item.transpose()
        })
    }

    fn guarded<T>(&self, work: impl FnOnce(&sled::Db) -> sled::Result<T>) -> Result<T, TableError> {
        let db = self.db.as_ref().expect("taken on drop only");
        let done = guarded(&self.dir, || work(db));
        if done.is_err() {
            self.broken.store(true, Ordering::Relaxed);
        }
        done
    }

    fn unsealed(&self, key: &[u8], stored: &[u8]) -> Result<Vec<u8>, TableError> {
        let value = stored.len().checked_sub(CRC_BYTES).map(|length| &stored[..length]);
        match value {
            Some(value) if sealed(key, value) == stored => Ok(value.to_vec()),
            _ => {
                self.broken.store(true, Ordering::Relaxed);
                Err(TableError::Checksum { dir: self.dir.clone() })
            }
        }
    }
}

impl Drop for Table {
    fn drop(&mut self) {
        let db = self.db.take();
        if self.broken.load(Ordering::Relaxed) {
            // Closing writes, and writing through what has failed may panic again. A few handles are lost instead.
            std::mem::forget(db);
        } else {
            let _ = catch_unwind(AssertUnwindSafe(|| drop(db)));
        }
    }
}

impl fmt::Debug for Table {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Table").field("dir", &self.dir).finish_non_exhaustive()
    }
}

/// Turns a panic of sled into an error.
fn guarded<T>(dir: &Path, work: impl FnOnce() -> sled::Result<T>) -> Result<T, TableError> {
    let reason = match catch_unwind(AssertUnwindSafe(work)) {
        Ok(Ok(done)) => return Ok(done),
        Ok(Err(error)) => error.to_string(),
        Err(panic) => {
            let text = panic.downcast_ref::<String>().map(String::as_str);
            let text = text.or_else(|| panic.downcast_ref::<&str>().copied());
            format!("sled panicked: {}", text.unwrap_or("without a word"))
        }
    };
    Err(TableError::Engine { dir: dir.to_owned(), reason })
}

/// `value` with the checksum that ties it to `key`.
fn sealed(key: &[u8], value: &[u8]) -> Vec<u8> {
    let crc = crc32c::crc32c_append(crc32c::crc32c(key), value);
    [value, &crc.to_le_bytes()].concat()
}

/// A block that got a place, lost it, or moved.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Change {
    pub cid: Cid,
    pub before: Option<Place>,
    pub after: Option<Place>,
}

/// Where the places of blocks are kept between two runs. While it runs, a store answers from memory alone: an index
/// is read once, at opening, and then only written.
pub trait BlockIndex: fmt::Debug + Send {
    /// Puts and removes, in this order.
    fn write(&self, changes: &[Change]) -> Result<(), TableError>;

    /// All blocks with their places. Stops at the first error.
    fn iter(&self) -> Box<dyn Iterator<Item = Result<(Cid, Place), TableError>> + '_>;
}

/// The key is the place and the value the name, not the other way round: nobody looks a name up here, and places come
/// in order, so that a commit touches few leaves of sled's tree.
impl BlockIndex for Table {
    fn write(&self, changes: &[Change]) -> Result<(), TableError> {
        let pairs = changes.iter().flat_map(|Change { cid, before, after }| {
            let removed = before.as_ref().map(|place| (key(place), None));
            let put = after.as_ref().map(|place| (key(place), Some(value(cid, place))));
            removed.into_iter().chain(put)
        });
        let pairs: Vec<([u8; KEY_BYTES], Option<[u8; VALUE_BYTES]>)> = pairs.collect();
        for part in pairs.chunks(BATCH_CHANGES) {
            self.apply(part.iter().map(|(key, value)| (&key[..], value.as_ref().map(|value| &value[..]))))?;
        }
        self.flush()
    }

    fn iter(&self) -> Box<dyn Iterator<Item = Result<(Cid, Place), TableError>> + '_> {
        Box::new(Self::iter(self).map(|pair| {
            let (key, value) = pair?;
            entry(&key, &value).ok_or_else(|| TableError::Checksum { dir: self.dir.clone() })
        }))
    }
}

/// Changes of the block index that sled applies at once: it keeps a copy of a page per change until it is done (a
/// batch of 100 000 took 430 MB), and no other order than that of the whole commit matters.
const BATCH_CHANGES: usize = 100;
/// Pack and offset, big endian: sorted as they lie on disk.
const KEY_BYTES: usize = 8;
/// Digest and payload bytes.
const VALUE_BYTES: usize = DIGEST_BYTES + 4;

fn key(place: &Place) -> [u8; KEY_BYTES] {
    (u64::from(place.pack) << 32 | u64::from(place.offset)).to_be_bytes()
}

fn value(cid: &Cid, place: &Place) -> [u8; VALUE_BYTES] {
    let mut bytes = [0; VALUE_BYTES];
    bytes[..DIGEST_BYTES].copy_from_slice(cid.digest());
    bytes[DIGEST_BYTES..].copy_from_slice(&place.payload_bytes.to_be_bytes());
    bytes
}

fn entry(key: &[u8], value: &[u8]) -> Option<(Cid, Place)> {
    let (pack, offset) = key.split_first_chunk()?;
    let (digest, payload_bytes) = value.split_first_chunk()?;
    let place = Place {
        pack: u32::from_be_bytes(*pack),
        offset: u32::from_be_bytes(offset.try_into().ok()?),
        payload_bytes: u32::from_be_bytes(payload_bytes.try_into().ok()?),
    };
    Some((Cid::from_digest(*digest), place))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn pairs(table: &Table) -> Vec<(Vec<u8>, Vec<u8>)> {
        table.iter().collect::<Result<_, _>>().unwrap()
    }

    #[test]
    fn a_table_keeps_what_was_put_and_forgets_what_was_removed() {
        let folder = tempfile::tempdir().unwrap();
        let dir = folder.path().join("table");
        let table = Table::open(&dir).unwrap();
        table
            .write([(&b"b"[..], Some(&b"2"[..])), (b"a", Some(b"1")), (b"b", Some(b"3")), (b"c", None)])
            .unwrap();
        assert_eq!(table.get(b"b").unwrap().unwrap(), b"3");
        drop(table);
        let table = Table::open(&dir).unwrap();
        assert_eq!(pairs(&table), [(b"a".to_vec(), b"1".to_vec()), (b"b".to_vec(), b"3".to_vec())]);
        table.write([(&b"a"[..], None)]).unwrap();
        assert_eq!(table.get(b"a").unwrap(), None);
        drop(table);
        assert!(pairs(&Table::reset(&dir).unwrap()).is_empty());
    }

    #[test]
    fn a_value_that_changed_underneath_is_an_error() {
        let folder = tempfile::tempdir().unwrap();
        let table = Table::open(folder.path()).unwrap();
        for stored in [&b""[..], b"abc", b"value with no crc"] {
            table.db.as_ref().unwrap().insert(b"key", stored).unwrap();
            assert!(matches!(table.get(b"key"), Err(TableError::Checksum { .. })));
            let read: Vec<_> = table.iter().collect();
            assert!(matches!(read[..], [Err(TableError::Checksum { .. })]));
        }
    }

    #[test]
    fn a_panic_is_an_error_that_says_where() {
        let folder = tempfile::tempdir().unwrap();
        let table = Table::open(folder.path()).unwrap();
        let error = table.guarded(|_| -> sled::Result<()> { panic!("no page {}", 7) }).unwrap_err();
        assert!(error.to_string().ends_with("sled panicked: no page 7"), "{error}");
    }
}
