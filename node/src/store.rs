//! Blocks on disk: pack files that are only appended to, and an index that can be made again from them.
//!
//! ```text
//! DIR/                   0700
//!   LOCK                 locked while a process has the store open
//!   CHECKPOINT           up to where the packs are on disk, and what the index then holds   (checkpoint.rs)
//!   packs/00000001.pack  records of blocks, at most 1 GiB each                              (pack.rs)
//!   index/               sled: place -> CID; deleted and made again whenever in doubt       (index.rs)
//! ```
//! All but the index go through one door, where a test sees and stops each access (disk.rs).
//!
//! **Durability.** When [`Store::put`] returns, the record is written to the file: it survives a killed process, and
//! not yet a power failure. A node announces a piece at that moment and does not wait for the disk: a `have` held back
//! by a group commit would stretch the swarm's ramp, while a piece lost to a power failure costs one fetch. Whatever
//! claims durability (a catalog entry, the marker of a complete tree) calls [`Store::sync`] first.
//!
//! **Order of a commit:** packs synced, then the index written, then the checkpoint replaced. So the checkpoint never
//! runs ahead of the packs, and opening replays what lies behind it, checking each payload's crc.
//!
//! **Invariant:** the packs are the truth. The index is believed only when it holds exactly what the checkpoint sums
//! up; anything else (lost, damaged, older, newer, sled's error or panic) deletes it and walks the packs.
//!
//! **Damage** costs the blocks it touches and no others: a bad record is left out, with a warning, and is fetched
//! again. A block dropped by collection may return when the index is made anew and its pack was not rewritten: it is
//! a good block that nobody asks for, and the next collection drops it again.
//!
//! **Bounds.** Memory: a hash table of 44 bytes per block, so 50 to 100, and some 10 MB of sled's (measured: 14 MB in
//! all with 20 000 blocks, 35 MB with 100 000); no payload is kept. One open file per pack. Disk: 53 bytes per block
//! beside its payload, about 200 in the index, and after a collection at most as much dead as alive.

mod checkpoint;
mod collect;
mod disk;
mod index;
mod pack;
mod recover;

use std::collections::{BTreeMap, HashMap};
use std::io;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, RwLock, RwLockReadGuard, RwLockWriteGuard};

use shoal_proto::cid::Cid;

use crate::block::EncodedBlock;
use checkpoint::{Checkpoint, Summary};
use disk::Disk;
use index::Change;
use pack::{Header, Pack, RECORD_HEADER_BYTES, RECORDS_START};

pub use collect::{Fsck, Reclaimed};
pub use disk::{Access, Witness};
pub use index::{BlockIndex, Table, TableError};
pub use pack::{Place, read_pack};

/// A store that failed. The texts are what an operator sees.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    #[error("store {dir} is in use by another process")]
    InUse { dir: PathBuf },
    #[error("cannot {action} {path}")]
    Io { action: &'static str, path: PathBuf, source: io::Error },
    #[error("pack {path} was written by another version of shoal")]
    OtherVersion { path: PathBuf },
    #[error("cannot write block {cid} to {pack} at {offset}")]
    Write { cid: Cid, pack: PathBuf, offset: u64, source: io::Error },
    #[error("cannot read block {cid} from {pack} at {offset}")]
    Read { cid: Cid, pack: PathBuf, offset: u32, source: io::Error },
    /// Reported once: the block is absent from then on, and may be put again.
    #[error("block {cid} is damaged in {pack} at {offset}")]
    Damaged { cid: Cid, pack: PathBuf, offset: u32 },
    /// What the disk holds is unknown once a sync has failed; opening the store again finds out.
    #[error("store {dir} failed to reach the disk and has to be opened again")]
    SyncFailed { dir: PathBuf },
}

/// When a store begins a new pack and when it commits by itself.
#[derive(Clone, Copy, Debug)]
pub struct Options {
    /// A record that would end behind this begins a new pack. At most 3 GiB: offsets have 32 bits.
    pub pack_bytes_max: u64,
    /// The put that brings what is unsynced to this many bytes commits.
    pub commit_bytes: u64,
}

impl Default for Options {
    fn default() -> Self {
        Self { pack_bytes_max: 1 << 30, commit_bytes: 32 << 20 }
    }
}

/// Most changes of the index that wait for a commit; blocks can be small.
const CHANGES_PER_COMMIT_MAX: usize = 1 << 16;

/// How much a store holds.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Stats {
    pub blocks: u64,
    /// Bytes of the payloads of these blocks.
    pub payload_bytes: u64,
    pub packs: u64,
    /// Bytes of all pack files, dead records included.
    pub pack_bytes: u64,
    /// Bytes that a power failure now could take.
    pub unsynced_bytes: u64,
}

/// The blocks of one machine. One process at a time, any number of threads: reads run in parallel, appends take
/// turns, nothing waits for a commit but what asked for it.
#[derive(Debug)]
pub struct Store {
    dir: PathBuf,
    options: Options,
    disk: Disk,
    // Locks are taken in this order: commit, writer, blocks.
    commit: Mutex<Committer>,
    writer: Mutex<Writer>,
    blocks: RwLock<Blocks>,
    /// Last, so that everything else is closed when another may begin.
    _lock: recover::Lock,
}

/// What the store holds, and what of it the index does not know yet.
#[derive(Debug, Default)]
struct Blocks {
    places: HashMap<Cid, Place>,
    packs: BTreeMap<u32, Arc<Pack>>,
    /// In the order in which they came about.
    changes: Vec<Change>,
}

/// Where the next record goes.
#[derive(Debug)]
struct Writer {
    /// `None` until the next append begins a pack.
    active: Option<Arc<Pack>>,
    offset: u64,
    /// Number of the pack that is begun next: higher than any before it, deleted ones too.
    next_pack: u32,
    /// Packs written to since the last commit, and how much.
    unsynced: Vec<Arc<Pack>>,
    unsynced_bytes: u64,
    /// Whether a pack was begun since the last commit: its name is to be synced too.
    folder_unsynced: bool,
}

/// What the last commit left.
#[derive(Debug)]
struct Committer {
    /// `None` after it failed: the next commit makes it anew.
    index: Option<Box<dyn BlockIndex>>,
    /// Sum of all changes committed.
    summary: Summary,
    /// The one on disk.
    checkpoint: Option<Checkpoint>,
    sync_failed: bool,
}

impl Store {
    /// Opens the store in `dir`, which is made (mode 0700) when there is none, and recovers what a crash left.
    pub fn open(dir: &Path) -> Result<Self, Error> {
        Self::open_with(dir, Options::default())
    }

    /// As [`open`](Self::open), with other sizes. They are not recorded: each opening may choose its own.
    pub fn open_with(dir: &Path, options: Options) -> Result<Self, Error> {
        Self::open_on(dir, options, Disk::default())
    }

    /// As [`open_with`](Self::open_with), with a witness of every access to the store's plain files.
    pub fn open_witnessed(dir: &Path, options: Options, witness: Arc<dyn Witness>) -> Result<Self, Error> {
        Self::open_on(dir, options, Disk::witnessed(witness))
    }

    fn open_on(dir: &Path, options: Options, disk: Disk) -> Result<Self, Error> {
        assert!(options.pack_bytes_max <= 3 << 30, "offsets in a pack have 32 bits");
        recover::open(dir, options, disk)
    }

    /// Appends a block that has been verified, unless the store has it: `false` then. See the module on what survives.
    ///
    /// # Panics
    /// When the block breaks the bounds that [`EncodedBlock`] states.
    pub fn put(&self, block: &EncodedBlock) -> Result<bool, Error> {
        if self.contains(&block.cid) {
            return Ok(false);
        }
        let header = Header::of(block);
        let mut writer = self.writer();
        // Another thread may have brought it meanwhile.
        if self.contains(&block.cid) {
            return Ok(false);
        }
        let place = self.append(&mut writer, &header, &block.payload)?;
        let changes_waiting = {
            let mut blocks = self.blocks_mut();
            blocks.insert(block.cid, place);
            blocks.changes.len()
        };
        let due =
            writer.unsynced_bytes >= self.options.commit_bytes || changes_waiting >= CHANGES_PER_COMMIT_MAX;
        drop(writer);
        if due {
            self.commit_unless_committing();
        }
        Ok(true)
    }

    /// The block as it was put, its crc checked. `None` when the store lacks it.
    ///
    /// A crc is no proof against a liar with access to the disk: whoever passes the block on decodes it.
    pub fn get(&self, cid: &Cid) -> Result<Option<EncodedBlock>, Error> {
        let (place, pack) = {
            let blocks = self.blocks();
            let Some(place) = blocks.places.get(cid).copied() else { return Ok(None) };
            (place, Arc::clone(&blocks.packs[&place.pack]))
        };
        let read = pack.read(cid, &place).map_err(|source| Error::Read {
            cid: *cid,
            pack: pack.path().to_owned(),
            offset: place.offset,
            source,
        })?;
        if read.is_some() {
            return Ok(read);
        }
        self.forget(cid, &place);
        tracing::warn!(%cid, pack = %pack.path().display(), offset = place.offset, "a stored block is damaged");
        Err(Error::Damaged { cid: *cid, pack: pack.path().to_owned(), offset: place.offset })
    }

    /// Whether the store has the block, from memory.
    pub fn contains(&self, cid: &Cid) -> bool {
        self.blocks().places.contains_key(cid)
    }

    /// Bytes of the payload of a block that the store has, from memory.
    pub fn payload_bytes(&self, cid: &Cid) -> Option<u64> {
        self.blocks().places.get(cid).map(|place| u64::from(place.payload_bytes))
    }

    /// Forgets a block that turned out not to be what its name says; `false` when the store lacks it. It may be put
    /// again.
    pub fn discard(&self, cid: &Cid) -> bool {
        let place = self.blocks().places.get(cid).copied();
        place.is_some_and(|place| self.forget(cid, &place))
    }

    /// Returns once everything put before survives a power failure.
    pub fn sync(&self) -> Result<(), Error> {
        self.commit(&mut self.committer())
    }

    pub fn stats(&self) -> Result<Stats, Error> {
        let unsynced_bytes = self.writer().unsynced_bytes;
        let blocks = self.blocks();
        let mut stats = Stats {
            blocks: blocks.places.len() as u64,
            payload_bytes: blocks.places.values().map(|place| u64::from(place.payload_bytes)).sum(),
            packs: blocks.packs.len() as u64,
            pack_bytes: 0,
            unsynced_bytes,
        };
        for pack in blocks.packs.values() {
            stats.pack_bytes += pack.bytes().map_err(|source| io_error("measure", pack.path(), source))?;
        }
        Ok(stats)
    }

    /// Drops the block if it is still at `place`.
    fn forget(&self, cid: &Cid, place: &Place) -> bool {
        let mut blocks = self.blocks_mut();
        let there = blocks.places.get(cid) == Some(place);
        if there {
            blocks.remove(cid);
        }
        there
    }

    fn append(&self, writer: &mut Writer, header: &Header, payload: &[u8]) -> Result<Place, Error> {
        let end = writer.offset + RECORD_HEADER_BYTES as u64 + payload.len() as u64;
        if writer.offset > RECORDS_START && end > self.options.pack_bytes_max {
            writer.active = None;
        }
        let pack = match &writer.active {
            Some(pack) => Arc::clone(pack),
            None => self.begin_pack(writer)?,
        };
        let offset = u32::try_from(writer.offset).expect("packs end before 4 GiB");
        let place = Place { pack: pack.number, offset, payload_bytes: header.payload_bytes() };
        pack.append(writer.offset, header, payload).map_err(|source| Error::Write {
            cid: header.cid,
            pack: pack.path().to_owned(),
            offset: writer.offset,
            source,
        })?;
        writer.offset = place.end();
        writer.unsynced_bytes += place.record_bytes();
        if writer.unsynced.last().is_none_or(|last| last.number != pack.number) {
            writer.unsynced.push(pack);
        }
        Ok(place)
    }

    fn begin_pack(&self, writer: &mut Writer) -> Result<Arc<Pack>, Error> {
        let folder = packs_folder(&self.dir);
        let pack = Pack::create(&self.disk, &folder, writer.next_pack)
            .map_err(|source| io_error("begin", &folder.join(pack::pack_name(writer.next_pack)), source))?;
        let pack = Arc::new(pack);
        self.blocks_mut().packs.insert(pack.number, Arc::clone(&pack));
        writer.next_pack += 1;
        writer.active = Some(Arc::clone(&pack));
        writer.offset = RECORDS_START;
        writer.folder_unsynced = true;
        Ok(pack)
    }

    /// The commit that a put found due. Its failure is no failure of the put: whoever needs the disk calls
    /// [`sync`](Self::sync), and learns of it there.
    fn commit_unless_committing(&self) {
        if let Ok(mut committer) = self.commit.try_lock()
            && let Err(error) = self.commit(&mut committer)
        {
            tracing::warn!(dir = %self.dir.display(), error = %chain(&error), "cannot commit the store");
        }
    }

    fn commit(&self, committer: &mut Committer) -> Result<(), Error> {
        if committer.sync_failed {
            return Err(Error::SyncFailed { dir: self.dir.clone() });
        }
        let (unsynced, folder_unsynced, changes, end) = {
            let mut writer = self.writer();
            let unsynced = std::mem::take(&mut writer.unsynced);
            writer.unsynced_bytes = 0;
            // Taken with the writer's lock held: every change is of a record before the end.
            let changes = std::mem::take(&mut self.blocks_mut().changes);
            (unsynced, std::mem::take(&mut writer.folder_unsynced), changes, writer.end())
        };
        if let Err(error) = self.sync_files(&unsynced, folder_unsynced) {
            committer.sync_failed = true;
            Checkpoint::void(&self.disk, &self.dir);
            return Err(error);
        }
        changes.iter().for_each(|change| committer.summary.change(change));
        self.write_index(committer, &changes);
        let (pack, offset) = end;
        let checkpoint = Checkpoint { pack, offset, summary: committer.summary };
        if committer.checkpoint != Some(checkpoint) {
            checkpoint
                .write(&self.disk, &self.dir)
                .map_err(|source| io_error("write the checkpoint of", &self.dir, source))?;
            committer.checkpoint = Some(checkpoint);
        }
        Ok(())
    }

    fn sync_files(&self, packs: &[Arc<Pack>], folder_too: bool) -> Result<(), Error> {
        for pack in packs {
            pack.sync().map_err(|source| io_error("sync", pack.path(), source))?;
        }
        if folder_too {
            let folder = packs_folder(&self.dir);
            self.disk.sync_folder(&folder).map_err(|source| io_error("sync", &folder, source))?;
        }
        Ok(())
    }

    /// Tells the index, or makes it anew. A store without an index loses nothing but time at its next opening.
    fn write_index(&self, committer: &mut Committer, changes: &[Change]) {
        if changes.is_empty() && committer.index.is_some() {
            return;
        }
        let written = match &committer.index {
            Some(index) => changes.chunks(CHANGES_PER_COMMIT_MAX).try_for_each(|part| index.write(part)),
            None => self.make_index().map(|index| committer.index = Some(index)),
        };
        if let Err(error) = written {
            committer.index = None;
            tracing::warn!(error = %chain(&error), "the store's index failed and will be made again");
        }
    }

    fn make_index(&self) -> Result<Box<dyn BlockIndex>, TableError> {
        let index: Box<dyn BlockIndex> = Box::new(Table::reset(&index_folder(&self.dir))?);
        let blocks = self.blocks();
        let mut entries = blocks.places.iter();
        loop {
            let part = entries.by_ref().take(CHANGES_PER_COMMIT_MAX);
            let part: Vec<Change> =
                part.map(|(&cid, &place)| Change { cid, before: None, after: Some(place) }).collect();
            if part.is_empty() {
                break;
            }
            index.write(&part)?;
        }
        drop(blocks);
        Ok(index)
    }

    // A thread that panicked while it held one of these left no half-made change behind: each is one assignment.

    fn committer(&self) -> MutexGuard<'_, Committer> {
        self.commit.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn writer(&self) -> MutexGuard<'_, Writer> {
        self.writer.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn blocks(&self) -> RwLockReadGuard<'_, Blocks> {
        self.blocks.read().unwrap_or_else(PoisonError::into_inner)
    }

    fn blocks_mut(&self) -> RwLockWriteGuard<'_, Blocks> {
        self.blocks.write().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Blocks {
    fn insert(&mut self, cid: Cid, place: Place) {
        let before = self.places.insert(cid, place);
        self.changes.push(Change { cid, before, after: Some(place) });
    }

    fn remove(&mut self, cid: &Cid) -> Option<Place> {
        let before = self.places.remove(cid)?;
        self.changes.push(Change { cid: *cid, before: Some(before), after: None });
        Some(before)
    }
}

impl Writer {
    /// Behind the last record: pack and offset. Offset 0 stands for a pack that is not begun.
    fn end(&self) -> (u32, u64) {
        match &self.active {
            Some(pack) => (pack.number, self.offset),
            None => (self.next_pack, 0),
        }
    }
}

fn packs_folder(dir: &Path) -> PathBuf {
    dir.join("packs")
}

fn index_folder(dir: &Path) -> PathBuf {
    dir.join("index")
}

fn io_error(action: &'static str, path: &Path, source: io::Error) -> Error {
    Error::Io { action, path: path.to_owned(), source }
}

/// An error with what caused it, for the log.
fn chain(error: &dyn std::error::Error) -> String {
    let causes = std::iter::successors(error.source(), |cause| cause.source());
    causes.fold(error.to_string(), |text, cause| format!("{text}: {cause}"))
}

#[cfg(test)]
mod tests;
