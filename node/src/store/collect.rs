//! Giving disk space back, and looking for damage.

use std::collections::BTreeMap;
use std::sync::Arc;

use shoal_proto::cid::Cid;

use super::pack::{Header, Pack, Place};
use super::{Committer, Error, Store, io_error};

/// What a collection did.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Reclaimed {
    /// Blocks dropped because nobody keeps them.
    pub dropped_blocks: u64,
    /// Blocks found damaged while they were moved, and dropped.
    pub damaged_blocks: u64,
    /// Blocks moved out of packs that were mostly dead.
    pub moved_blocks: u64,
    /// Bytes of the packs deleted, less those of the blocks moved out of them.
    pub freed_bytes: u64,
}

/// What a check found.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Fsck {
    pub blocks: u64,
    /// Blocks that were not what they should be; the store has forgotten them.
    pub damaged: Vec<Cid>,
    /// Bytes of pack files that no block needs.
    pub dead_bytes: u64,
}

impl Store {
    /// Drops the blocks that `keep` refuses and gives back the disk space of packs at least half dead.
    ///
    /// Asks about each block that the store holds when the call begins, once; a block put later stays. Safe at any
    /// crash: a pack is deleted once its remaining blocks are on disk elsewhere. Needs room for these blocks, at most
    /// half a pack at a time beyond what it has already freed.
    pub fn retain(&self, keep: &dyn Fn(&Cid) -> bool) -> Result<Reclaimed, Error> {
        let mut committer = self.committer();
        let mut reclaimed = Reclaimed { dropped_blocks: self.drop_unless(keep), ..Reclaimed::default() };
        // The last pack is collected like any other: what comes next begins a new one.
        let bytes = self.pack_bytes()?;
        let live = self.live_bytes();
        let of = |pack: &u32| live.get(pack).copied().unwrap_or(0);
        let mut low: Vec<(u32, u64)> =
            bytes.into_iter().filter(|(pack, bytes)| of(pack) * 2 <= *bytes).collect();
        // Packs that are dead altogether make room for the others.
        low.sort_unstable_by_key(|(pack, _)| of(pack));
        self.leave(&low);
        self.commit(&mut committer)?;
        for (number, bytes) in low {
            let moved_bytes = self.empty_pack(number, &mut reclaimed)?;
            self.delete_pack(number, &mut committer)?;
            reclaimed.freed_bytes += bytes.saturating_sub(moved_bytes);
        }
        Ok(reclaimed)
    }

    /// Reads every block and checks its crc, and its name too when `deep`. Forgets what is damaged.
    pub fn fsck(&self, deep: bool) -> Result<Fsck, Error> {
        let mut found = Fsck::default();
        let mut raw = Vec::new();
        for (cid, _) in self.in_order(|_| true) {
            let damaged = match self.get(&cid) {
                Ok(None) => continue,
                Ok(Some(block)) => deep && block.decode_into(&mut raw).is_err() && self.discard(&cid),
                Err(Error::Damaged { .. }) => true,
                Err(error) => return Err(error),
            };
            found.blocks += 1;
            if damaged {
                found.damaged.push(cid);
            }
        }
        let live_bytes: u64 = self.live_bytes().values().sum();
        found.dead_bytes = self.pack_bytes()?.values().sum::<u64>().saturating_sub(live_bytes);
        Ok(found)
    }

    fn drop_unless(&self, keep: &dyn Fn(&Cid) -> bool) -> u64 {
        let held: Vec<Cid> = self.blocks().places.keys().copied().collect();
        let unwanted: Vec<Cid> = held.into_iter().filter(|cid| !keep(cid)).collect();
        let mut blocks = self.blocks_mut();
        unwanted.iter().filter(|cid| blocks.remove(cid).is_some()).count() as u64
    }

    fn pack_bytes(&self) -> Result<BTreeMap<u32, u64>, Error> {
        let packs: Vec<Arc<Pack>> = self.blocks().packs.values().cloned().collect();
        let sized = packs.into_iter().map(|pack| match pack.bytes() {
            Ok(bytes) => Ok((pack.number, bytes)),
            Err(source) => Err(io_error("measure", pack.path(), source)),
        });
        sized.collect()
    }

    fn live_bytes(&self) -> BTreeMap<u32, u64> {
        let mut live = BTreeMap::new();
        for place in self.blocks().places.values() {
            *live.entry(place.pack).or_default() += place.record_bytes();
        }
        live
    }

    /// The blocks whose place `wanted` accepts, in the order in which they lie on disk.
    fn in_order(&self, wanted: impl Fn(&Place) -> bool) -> Vec<(Cid, Place)> {
        let mut entries: Vec<(Cid, Place)> = {
            let blocks = self.blocks();
            let entries = blocks.places.iter().filter(|(_, place)| wanted(place));
            entries.map(|(cid, place)| (*cid, *place)).collect()
        };
        entries.sort_unstable_by_key(|(_, place)| (place.pack, place.offset));
        entries
    }

    /// Sees to it that no more records go to these packs.
    fn leave(&self, packs: &[(u32, u64)]) {
        let mut writer = self.writer();
        if writer.active.as_ref().is_some_and(|active| packs.iter().any(|(pack, _)| *pack == active.number)) {
            writer.active = None;
        }
    }

    /// Appends the blocks of a pack again, elsewhere; returns the bytes of their records.
    fn empty_pack(&self, number: u32, reclaimed: &mut Reclaimed) -> Result<u64, Error> {
        let mut moved_bytes = 0;
        for (cid, from) in self.in_order(|place| place.pack == number) {
            let block = match self.get(&cid) {
                Ok(Some(block)) => block,
                Ok(None) => continue,
                Err(Error::Damaged { .. }) => {
                    reclaimed.damaged_blocks += 1;
                    continue;
                }
                Err(error) => return Err(error),
            };
            let header = Header::of(&block);
            let mut writer = self.writer();
            let to = self.append(&mut writer, &header, &block.payload)?;
            let mut blocks = self.blocks_mut();
            // Discarded while it was copied: the copy is dead.
            if blocks.places.get(&cid) == Some(&from) {
                blocks.insert(cid, to);
                reclaimed.moved_blocks += 1;
                moved_bytes += to.record_bytes();
            }
        }
        Ok(moved_bytes)
    }

    /// Deletes a pack without blocks once the disk knows where they went.
    fn delete_pack(&self, number: u32, committer: &mut Committer) -> Result<(), Error> {
        self.commit(committer)?;
        let pack = {
            let mut blocks = self.blocks_mut();
            assert!(
                blocks.places.values().all(|place| place.pack != number),
                "a pack with blocks is not deleted"
            );
            blocks.packs.remove(&number)
        };
        let Some(pack) = pack else { return Ok(()) };
        self.disk.remove(pack.path()).map_err(|source| io_error("delete", pack.path(), source))?;
        // Its name must not come back after a power failure without the entries that were moved.
        self.writer().folder_unsynced = true;
        Ok(())
    }
}
