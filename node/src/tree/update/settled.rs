//! What this user or this file system could not set is no work that is left to do.

use shoal_proto::image::drift::{DriftKind, Drifts};
use shoal_proto::image::manifest::Manifest;
use shoal_proto::image::plan::{Observed, Seen};
use shoal_proto::image::tree::Entry;

use super::super::survey::Owner;

/// Takes differences of the `lost` kinds from what was seen, where the image asks for what the present one did already: it
/// was tried, and would be again with every run. What the image changes is tried once.
pub(super) fn settle(observed: &mut Observed, goal: &Manifest, present: &Owner, lost: Drifts) {
    for entry in goal.entries() {
        let seen = &mut observed.seen[entry.index().at()];
        let Seen::Drifted(drifts) = *seen else { continue };
        let Some(before) = present.resolve(&entry.path()).filter(|_| drifts.intersects(lost)) else {
            continue;
        };
        let before = present.manifest.entry(before);
        let tried = drifts.kinds().filter(|kind| lost.contains(*kind) && same(*kind, entry, before));
        let left = tried.fold(drifts, |left, kind| left.without(Drifts::of(kind)));
        *seen = if left.is_empty() { Seen::Same } else { Seen::Drifted(left) };
    }
}

fn same(kind: DriftKind, one: Entry<'_>, other: Entry<'_>) -> bool {
    let (a, b) = (one.attributes(), other.attributes());
    match kind {
        DriftKind::Owner => (a.uid(), a.gid()) == (b.uid(), b.gid()),
        DriftKind::Mode => a.mode() == b.mode(),
        DriftKind::Xattr => a.xattrs() == b.xattrs(),
        DriftKind::Mtime => one.mtime() == other.mtime(),
        DriftKind::Flags => a.flags() == b.flags(),
        DriftKind::Project => a.project() == b.project(),
        _ => false,
    }
}
