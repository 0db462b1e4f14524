//! Opening a store: whatever a crash or a bad disk left becomes a store that holds what is intact.
//!
//! One of two ways. With a checkpoint and an index that agree, the index is read and the packs are walked from the
//! checkpoint on. In any doubt the index is deleted and all packs are walked. Either way, a payload that the checkpoint
//! does not cover is checked against its crc, and what follows the last good record of a walked pack is cut off.

use std::collections::BTreeMap;
use std::fs::{self, File, OpenOptions};
use std::os::unix::fs::OpenOptionsExt;
use std::path::Path;
use std::sync::{Arc, Mutex, RwLock};

use rustix::fs::{FlockOperation, flock};
use rustix::io::Errno;

use super::checkpoint::{Checkpoint, Summary};
use super::disk::Disk;
use super::index::{BlockIndex, Table, TableError};
use super::pack::{Damage, Pack, RECORDS_START, pack_number};
use super::{Blocks, Committer, Error, Options, Store, Writer, chain, index_folder, io_error, packs_folder};

pub(super) fn open(dir: &Path, options: Options, disk: Disk) -> Result<Store, Error> {
    for folder in [dir, &packs_folder(dir)] {
        disk.create_folders(folder).map_err(|source| io_error("create", folder, source))?;
    }
    let lock = Lock::take(dir)?;
    let packs = open_packs(&disk, dir)?;
    let checkpoint =
        Checkpoint::read(&disk, dir).map_err(|source| io_error("read the checkpoint of", dir, source))?;
    let (blocks, committer) =
        Recovery { dir, disk: &disk, checkpoint, blocks: Blocks { packs, ..Blocks::default() } }.run()?;
    let made_anew = committer.index.is_none();
    let store = Store {
        dir: dir.to_owned(),
        options,
        disk,
        writer: Mutex::new(writer(&blocks, checkpoint.as_ref())?),
        commit: Mutex::new(committer),
        blocks: RwLock::new(blocks),
        _lock: lock,
    };
    if made_anew && let Err(error) = store.sync() {
        let dir = dir.display();
        tracing::warn!(%dir, error = %chain(&error), "the store works, but its next opening will be as slow");
    }
    Ok(store)
}

/// The right to use a store. Ends with the value, or with the process however it ends.
#[derive(Debug)]
pub(super) struct Lock(File);

impl Lock {
    fn take(dir: &Path) -> Result<Self, Error> {
        let path = dir.join("LOCK");
        let opened = OpenOptions::new().create(true).append(true).mode(0o600).open(&path);
        let file = opened.map_err(|source| io_error("open", &path, source))?;
        match flock(&file, FlockOperation::NonBlockingLockExclusive) {
            Ok(()) => Ok(Self(file)),
            Err(Errno::WOULDBLOCK) => Err(Error::InUse { dir: dir.to_owned() }),
            Err(errno) => Err(io_error("lock", &path, errno.into())),
        }
    }
}

impl Drop for Lock {
    fn drop(&mut self) {
        // Closing alone is not enough: a child between fork and exec shares the open file.
        let _ = flock(&self.0, FlockOperation::Unlock);
    }
}

fn open_packs(disk: &Disk, dir: &Path) -> Result<BTreeMap<u32, Arc<Pack>>, Error> {
    let folder = packs_folder(dir);
    let mut packs = BTreeMap::new();
    for entry in fs::read_dir(&folder).map_err(|source| io_error("list", &folder, source))? {
        let entry = entry.map_err(|source| io_error("list", &folder, source))?;
        let Some(number) = entry.file_name().to_str().and_then(pack_number) else { continue };
        let pack =
            Pack::open(disk, &folder, number).map_err(|source| io_error("open", &entry.path(), source))?;
        if pack.is_of_other_version().map_err(|source| io_error("read", pack.path(), source))? {
            return Err(Error::OtherVersion { path: pack.path().to_owned() });
        }
        packs.insert(number, Arc::new(pack));
    }
    Ok(packs)
}

/// Appends go on in the last pack, unless they would come to lie before the checkpoint.
fn writer(blocks: &Blocks, checkpoint: Option<&Checkpoint>) -> Result<Writer, Error> {
    let checkpoint_pack = checkpoint.map_or(0, |checkpoint| checkpoint.pack);
    let last = blocks.packs.last_key_value().map(|(_, pack)| Arc::clone(pack));
    let active = last.filter(|pack| pack.number >= checkpoint_pack);
    let offset = match &active {
        Some(pack) => pack.bytes().map_err(|source| io_error("measure", pack.path(), source))?,
        None => 0,
    };
    let after_packs = blocks.packs.last_key_value().map_or(1, |(number, _)| number + 1);
    let after_checkpoint =
        checkpoint.map_or(1, |checkpoint| checkpoint.pack + u32::from(checkpoint.offset > 0));
    // Replayed records were written by a process that may have died before it synced them.
    let replayed = blocks.packs.range(checkpoint_pack..);
    Ok(Writer {
        unsynced: replayed.map(|(_, pack)| Arc::clone(pack)).collect(),
        unsynced_bytes: 0,
        folder_unsynced: true,
        next_pack: after_packs.max(after_checkpoint),
        offset,
        active,
    })
}

struct Recovery<'a> {
    dir: &'a Path,
    disk: &'a Disk,
    checkpoint: Option<Checkpoint>,
    blocks: Blocks,
}

/// Why an index is not believed.
#[derive(Debug, thiserror::Error)]
enum Doubt {
    #[error("there is no checkpoint")]
    NoCheckpoint,
    #[error("the last pack ends before the checkpoint")]
    PackTooShort,
    #[error("the index does not hold what the checkpoint says")]
    OtherEntries,
    #[error(transparent)]
    Table(#[from] TableError),
}

impl Recovery<'_> {
    /// What the store holds, and what is committed of it. Without an index, the next commit makes one.
    fn run(mut self) -> Result<(Blocks, Committer), Error> {
        let committer = match self.load()? {
            Ok((table, checkpoint)) => {
                self.drop_unreachable()?;
                let start = (checkpoint.pack, checkpoint.offset);
                self.walk(start, start, |_| ())?;
                Committer {
                    index: Some(Box::new(table)),
                    summary: checkpoint.summary,
                    checkpoint: Some(checkpoint),
                    sync_failed: false,
                }
            }
            Err(doubt) => {
                let summary = self.rebuild(&doubt)?;
                Committer { index: None, summary, checkpoint: None, sync_failed: false }
            }
        };
        Ok((self.blocks, committer))
    }

    /// Takes in all packs, the index unread.
    fn rebuild(&mut self, doubt: &Doubt) -> Result<Summary, Error> {
        if !self.blocks.packs.is_empty() {
            let reason = chain(doubt);
            tracing::warn!(dir = %self.dir.display(), reason, "making the store's index anew from its packs");
        }
        // A pack that lost its end may have lost more.
        let believed = self.checkpoint.filter(|_| !matches!(doubt, Doubt::PackTooShort));
        let check_from = believed.map_or((0, 0), |checkpoint| (checkpoint.pack, checkpoint.offset));
        // From now on its position may lie behind what is appended next.
        Checkpoint::void(self.disk, self.dir);
        self.blocks.places.clear();
        self.walk((0, 0), check_from, |blocks| blocks.changes.clear())?;
        let mut summary = Summary::default();
        self.blocks.places.iter().for_each(|(cid, place)| summary.add(cid, place));
        Ok(summary)
    }

    /// Reads the index, as far as the checkpoint covers it.
    fn load(&mut self) -> Result<Result<(Table, Checkpoint), Doubt>, Error> {
        let Some(checkpoint) = self.checkpoint else { return Ok(Err(Doubt::NoCheckpoint)) };
        if let Some(pack) = self.blocks.packs.get(&checkpoint.pack) {
            let bytes = pack.bytes().map_err(|source| io_error("measure", pack.path(), source))?;
            if bytes < checkpoint.offset {
                return Ok(Err(Doubt::PackTooShort));
            }
        }
        Ok(self.load_table(&checkpoint).map(|table| (table, checkpoint)))
    }

    fn load_table(&mut self, checkpoint: &Checkpoint) -> Result<Table, Doubt> {
        let table = Table::open(&index_folder(self.dir))?;
        let mut summary = Summary::default();
        for entry in BlockIndex::iter(&table) {
            let (cid, place) = entry?;
            // What lies behind the checkpoint was written by a commit that did not finish; the walk finds it.
            if checkpoint.covers(&place) {
                summary.add(&cid, &place);
                self.blocks.places.insert(cid, place);
            }
        }
        if summary == checkpoint.summary { Ok(table) } else { Err(Doubt::OtherEntries) }
    }

    /// Drops the entries whose pack is gone or ends before them.
    fn drop_unreachable(&mut self) -> Result<(), Error> {
        let mut ends = BTreeMap::new();
        for pack in self.blocks.packs.values() {
            let bytes = pack.bytes().map_err(|source| io_error("measure", pack.path(), source))?;
            ends.insert(pack.number, bytes);
        }
        let reachable = |pack, end| ends.get(&pack).is_some_and(|&bytes| end <= bytes);
        let entries = self.blocks.places.iter().filter(|(_, place)| !reachable(place.pack, place.end()));
        let lost: Vec<_> = entries.map(|(cid, place)| (*cid, place.pack)).collect();
        let mut lost_by_pack = BTreeMap::<u32, u64>::new();
        for (cid, pack) in lost {
            self.blocks.remove(&cid);
            *lost_by_pack.entry(pack).or_default() += 1;
        }
        for (pack, blocks) in lost_by_pack {
            let dir = self.dir.display();
            tracing::warn!(%dir, pack, blocks, "a pack is missing or cut short: its blocks are absent");
        }
        Ok(())
    }

    /// Takes in the records from `start` (pack, offset) on, and checks payloads from `check_from` on.
    fn walk(
        &mut self,
        start: (u32, u64),
        check_from: (u32, u64),
        after_each_pack: fn(&mut Blocks),
    ) -> Result<(), Error> {
        let within = |pack: &Pack, position: (u32, u64)| match pack.number.cmp(&position.0) {
            std::cmp::Ordering::Less => u64::MAX,
            std::cmp::Ordering::Equal => position.1,
            std::cmp::Ordering::Greater => 0,
        };
        let packs: Vec<Arc<Pack>> =
            self.blocks.packs.range(start.0..).map(|(_, pack)| Arc::clone(pack)).collect();
        for pack in packs {
            let mut damage = Damage::default();
            let blocks = &mut self.blocks;
            let walked =
                pack.walk(within(&pack, start), within(&pack, check_from), &mut damage, |header, place| {
                    blocks.insert(header.cid, place);
                });
            let good_end = walked.map_err(|source| io_error("read", pack.path(), source))?;
            let bytes = pack.bytes().map_err(|source| io_error("measure", pack.path(), source))?;
            if damage.runs > 0 {
                let cut_bytes = bytes.saturating_sub(good_end);
                let (pack, damage) = (pack.path().display(), damage.runs);
                tracing::warn!(%pack, damage, cut_bytes, "left out damaged records of a pack");
            }
            // The next checkpoint vouches for what lies before it, and a torn copy there would hide a good one.
            damage.credible.retain(|offset| *offset < good_end);
            if !damage.credible.is_empty() {
                pack.disown(&damage.credible).map_err(|source| io_error("mend", pack.path(), source))?;
            }
            if bytes > good_end || bytes < RECORDS_START {
                pack.cut(good_end).map_err(|source| io_error("cut", pack.path(), source))?;
            }
            after_each_pack(&mut self.blocks);
        }
        Ok(())
    }
}
