//! A plan, and a drift, as a line of text for each path.
//!
//! ```text
//! YXcstpoxfh path       as rsync's --itemize-changes, where it has the letter
//! ||||||||||
//! |||||||||+ h  names share another inode than the image says
//! ||||||||+ f   flags (chattr) or project
//! |||||||+ x    extended attributes: ACLs, capabilities and labels among them
//! ||||||+ o     owner or group
//! |||||+ p      mode
//! ||||+ t       time
//! |||+ s        size
//! ||+ c         content; of a link where it points, of a device its number
//! |+            f file, d directory, L symbolic link, D device, S fifo
//! +             > comes, c is made or changes its type, . only its metadata
//! ```
//! New paths have `+` in all places after the second. A path that the image has not is `*deleting`, `*keeping` or, in a
//! comparison, `*extra`.

use serde::Serialize;
use shoal_proto::image::ImagePath;
use shoal_proto::image::drift::{DriftKind, Drifts};
use shoal_proto::image::entry::Kind;
use shoal_proto::image::manifest::Manifest;
use shoal_proto::image::plan::{Action, Plan};
use shoal_proto::image::tree::Entry;

/// The column of a path that the image has not, in a comparison.
pub(super) const EXTRA: &str = "*extra    ";

/// What happens to one path.
#[derive(Clone, Debug, Serialize)]
pub struct Item {
    #[serde(serialize_with = "as_text")]
    pub path: ImagePath,
    /// `create`, `replace`, `adjust`, `delete`, `keep` or `conflict`.
    pub action: &'static str,
    /// In which ways it differs; empty for what is not in the image.
    pub kinds: Vec<DriftKind>,
    /// The first column of a listing.
    #[serde(skip)]
    pub code: String,
}

fn as_text<S: serde::Serializer>(path: &ImagePath, serializer: S) -> Result<S::Ok, S::Error> {
    serializer.collect_str(path)
}

/// A plan in path order.
pub(super) fn items(goal: &Manifest, plan: &Plan) -> Vec<Item> {
    let mut items = Vec::new();
    for step in &plan.steps {
        let entry = goal.entry(step.entry);
        let action = match step.action {
            Action::Create => "create",
            Action::Replace => "replace",
            Action::Adjust => "adjust",
        };
        let code = code(goal, entry, step.drifts);
        items.push(Item { path: entry.path(), action, kinds: step.drifts.kinds().collect(), code });
    }
    let other = |path: &ImagePath, action, code: &str| Item {
        path: path.clone(),
        action,
        kinds: Vec::new(),
        code: code.to_owned(),
    };
    items.extend(plan.removals.iter().map(|removal| other(&removal.path, "delete", "*deleting ")));
    items.extend(plan.kept.iter().map(|path| other(path, "keep", "*keeping  ")));
    items.extend(plan.conflicts.iter().map(|conflict| other(&conflict.path, "conflict", "*conflict ")));
    items.sort_by(|one, next| one.path.cmp(&next.path));
    items
}

/// The ten letters of an entry that differs so.
pub(super) fn code(goal: &Manifest, entry: Entry<'_>, drifts: Drifts) -> String {
    let kind = match entry.kind() {
        Kind::HardLink { to } => goal.entry(to).kind(),
        own => own,
    };
    let letter = match kind {
        Kind::Directory => 'd',
        Kind::Symlink { .. } => 'L',
        Kind::CharDevice { .. } | Kind::BlockDevice { .. } => 'D',
        Kind::Fifo => 'S',
        Kind::File(_) | Kind::HardLink { .. } => 'f',
    };
    let content = [DriftKind::Content, DriftKind::Size, DriftKind::LinkTarget, DriftKind::Device];
    let comes = content.iter().any(|kind| drifts.contains(*kind));
    let new = drifts.contains(DriftKind::Missing) || drifts.contains(DriftKind::Type);
    let first = match (new || comes, letter) {
        (true, 'f') => '>',
        (true, _) => 'c',
        _ => '.',
    };
    let mut code = String::from_iter([first, letter]);
    if new {
        code.push_str("++++++++");
        return code;
    }
    let changed = [DriftKind::Content, DriftKind::LinkTarget, DriftKind::Device];
    let columns: [(char, &[DriftKind]); 8] = [
        ('c', &changed),
        ('s', &[DriftKind::Size]),
        ('t', &[DriftKind::Mtime]),
        ('p', &[DriftKind::Mode]),
        ('o', &[DriftKind::Owner]),
        ('x', &[DriftKind::Xattr]),
        ('f', &[DriftKind::Flags, DriftKind::Project]),
        ('h', &[DriftKind::HardLink]),
    ];
    for (column, kinds) in columns {
        code.push(if kinds.iter().any(|kind| drifts.contains(*kind)) { column } else { '.' });
    }
    code
}
