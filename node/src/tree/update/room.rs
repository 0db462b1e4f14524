//! Whether there is room for everything new beside everything old, asked before anything is written.

use std::collections::BTreeMap;

use shoal_proto::image::entry::EntryIndex;

use super::super::apply::ApplyError;
use super::sources::data_bytes;
use super::{Update, UpdateError};

impl Update {
    pub(super) fn check_room(&self) -> Result<(), UpdateError> {
        // What an interrupted update left may be what takes the room.
        self.compare_room().or_else(|_| self.remove_stages().and_then(|()| self.compare_room()))
    }

    fn compare_room(&self) -> Result<(), UpdateError> {
        // By file system: bytes and inodes.
        let mut needs: BTreeMap<EntryIndex, (u64, u64)> = BTreeMap::new();
        for entry in self.new_entries() {
            needs.entry(self.mount_of(entry)).or_default().1 += 1;
        }
        for (entry, mount) in self.written_files() {
            let block = 4096;
            let bytes = data_bytes(&self.goal, entry).div_ceil(block) * block;
            let need = &mut needs.entry(mount).or_default().0;
            *need = need.saturating_add(bytes);
        }
        for (mount, (need_bytes, need)) in needs {
            let Ok(top) = self.directories().open(self.goal.tree(), mount.get()) else { continue };
            let mut path = self.tree.path.clone();
            if mount != EntryIndex::ROOT {
                path.push(self.goal.entry(mount).path().to_string());
            }
            let stat = rustix::fs::fstatvfs(&*top)
                .map_err(|error| ApplyError::Target { path: path.clone(), source: error.into() })?;
            let blocks = if self.tree.privileged { stat.f_bfree } else { stat.f_bavail };
            let have_bytes = blocks.saturating_mul(stat.f_frsize);
            if need_bytes > have_bytes {
                return Err(ApplyError::NoRoom { path, need_bytes, have_bytes }.into());
            }
            // A file system that makes inodes as they are needed says that it has none.
            if stat.f_files > 0 && need > stat.f_favail {
                return Err(ApplyError::NoInodes { path, need, have: stat.f_favail }.into());
            }
        }
        Ok(())
    }
}
