//! Whether a target has room, asked before anything is written.

use shoal_proto::image::entry::{Kind, Segment};
use shoal_proto::image::manifest::Manifest;

use super::super::capture::room_of;
use super::super::root::{self};
use super::{ApplyError, Target};

/// Counts what an earlier run left as room: it is replaced.
pub(super) fn check(manifest: &Manifest, target: &Target) -> Result<(), ApplyError> {
    let stat = rustix::fs::fstatvfs(target.directories.top())
        .map_err(|error| ApplyError::Target { path: target.path.clone(), source: error.into() })?;
    let empty = root::list(target.directories.top()).is_ok_and(|names| names.is_empty());
    let (used, used_bytes) = if empty { (0, 0) } else { room_of(&target.directories) };
    let blocks = if target.privileged { stat.f_bfree } else { stat.f_bavail };
    let have_bytes = blocks.saturating_mul(stat.f_frsize).saturating_add(used_bytes);
    let need_bytes = need_bytes(manifest, stat.f_frsize.max(512));
    if need_bytes > have_bytes {
        return Err(ApplyError::NoRoom { path: target.path.clone(), need_bytes, have_bytes });
    }
    let have = stat.f_favail.saturating_add(used);
    let need =
        manifest.entries().filter(|entry| !matches!(entry.kind(), Kind::HardLink { .. })).count() as u64;
    // A file system that makes inodes as they are needed says that it has none.
    if stat.f_files > 0 && need > have {
        return Err(ApplyError::NoInodes { path: target.path.clone(), need, have });
    }
    Ok(())
}

/// Data in whole blocks. Directories and the file system's own records come on top.
fn need_bytes(manifest: &Manifest, block_bytes: u64) -> u64 {
    let mut total = 0_u64;
    for entry in manifest.entries() {
        let Kind::File(content) = entry.kind() else { continue };
        for &segment in content.segments() {
            if matches!(segment, Segment::Chunks { .. }) {
                let bytes = manifest.segment_bytes(segment);
                total = total.saturating_add(bytes.div_ceil(block_bytes).saturating_mul(block_bytes));
            }
        }
    }
    total
}
