use super::super::entry::{Attributes, Content, Mtime, Segment};
use super::super::layout::Layout;
use super::super::tree::TreeBuilder;
use super::*;
use crate::cid::{ChunkId, Cid};

const MISSING: Seen = Seen::Drifted(Drifts::of(DriftKind::Missing));

fn attributes(mode: u32, flags: InodeFlags) -> Attributes {
    Attributes::new(mode, 0, 0, flags, vec![]).unwrap()
}

/// `d/`, `d/a`, `d/b` (another name of `d/a`), `e/`, `e/f` (set-id), `e/g` (immutable), `z`.
fn goal() -> Manifest {
    let (mut layout, mut tree) = (Layout::new(1 << 20, None), TreeBuilder::default());
    let time = Mtime::new(1, 0).unwrap();
    let file = |first| Kind::File(Content::One(Segment::Chunks { first, count: 1 }));
    let plain = || attributes(0o644, InodeFlags::NONE);
    for chunk in 0..4_u8 {
        layout.place(ChunkId::of(&[chunk]), 100);
    }
    tree.push_root(attributes(0o755, InodeFlags::NONE), time).unwrap();
    tree.push(0, b"d", plain(), time, Kind::Directory).unwrap();
    tree.push(0, b"a", plain(), time, file(0)).unwrap();
    tree.push_hard_link(0, b"b", 2).unwrap();
    tree.push(1, b"e", plain(), time, Kind::Directory).unwrap();
    tree.push(0, b"f", attributes(0o4755, InodeFlags::NONE), time, file(1)).unwrap();
    tree.push(0, b"g", attributes(0o644, InodeFlags::IMMUTABLE), time, file(2)).unwrap();
    tree.push(1, b"z", plain(), time, file(3)).unwrap();
    let laid = layout.finish();
    let cids: Vec<Cid> = laid.blocks.iter().map(|_| Cid::of(b"block")).collect();
    Manifest::assemble(tree.finish(), &laid, &cids).unwrap()
}

fn path(text: &str) -> ImagePath {
    ImagePath::parse(text.as_bytes()).unwrap()
}

fn observed(drifts: &[(&str, Seen)]) -> Observed {
    let goal = goal();
    let seen = |at: EntryIndex| {
        let own = goal.entry(at).path();
        drifts.iter().find(|(path, _)| *path == own.to_string()).map_or(Seen::Same, |(_, seen)| *seen)
    };
    let group = goal.tree().indexes().filter(|at| (2..4).contains(&at.get())).map(|at| (at, (0, 0, 7)));
    Observed {
        seen: goal.tree().indexes().map(seen).collect(),
        inodes: group.collect(),
        ..Observed::default()
    }
}

fn steps(plan: &Plan) -> Vec<(String, Action)> {
    let goal = goal();
    plan.steps.iter().map(|step| (goal.entry(step.entry).path().to_string(), step.action)).collect()
}

fn plan(observed: &Observed) -> Plan {
    Plan::of(&goal(), observed, PlanOptions::default())
}

fn drifted(kinds: &[DriftKind]) -> Seen {
    Seen::Drifted(kinds.iter().copied().collect())
}

#[test]
fn a_tree_that_is_the_image_needs_nothing() {
    assert!(plan(&observed(&[])).is_empty());
}

#[test]
fn only_what_one_call_can_set_is_changed_in_place() {
    let action = |path: &str, kinds: &[DriftKind]| steps(&plan(&observed(&[(path, drifted(kinds))])))[0].1;
    assert_eq!(action("z", &[DriftKind::Mtime]), Action::Adjust);
    assert_eq!(action("z", &[DriftKind::Owner]), Action::Adjust);
    assert_eq!(action("z", &[DriftKind::Mtime, DriftKind::Mode]), Action::Replace);
    assert_eq!(action("z", &[DriftKind::Content]), Action::Replace);
    assert_eq!(action("z", &[DriftKind::Project]), Action::Replace);
    // Its set-id bit would be lost with the old owner.
    assert_eq!(action("e/f", &[DriftKind::Owner]), Action::Replace);
    assert_eq!(action("e/f", &[DriftKind::Mtime]), Action::Adjust);
    // It has to be unlocked and locked again.
    assert_eq!(action("e/g", &[DriftKind::Mtime]), Action::Replace);
    assert_eq!(action("e/g", &[DriftKind::Flags]), Action::Adjust);
    // What has other names is not changed under them.
    assert_eq!(action("d/a", &[DriftKind::Mtime]), Action::Replace);
    assert_eq!(action("e", &[DriftKind::Mtime, DriftKind::Mode, DriftKind::Xattr]), Action::Adjust);
}

#[test]
fn a_missing_directory_comes_whole() {
    let gone = [("e", MISSING), ("e/f", MISSING), ("e/g", MISSING)];
    assert_eq!(steps(&plan(&observed(&gone))), [("e".to_owned(), Action::Create)]);
}

#[test]
fn names_are_linked_to_the_inode_that_is_right() {
    let mut split = observed(&[]);
    split.inodes[1].1 = (0, 0, 8);
    let planned = plan(&split);
    assert_eq!(steps(&planned), [("d/b".to_owned(), Action::Replace)]);
    assert_eq!(planned.keepers[&(split.inodes[0].0, EntryIndex::ROOT)], split.inodes[0].0);
    // The first name is not right: the other one is kept.
    split.seen[2] = drifted(&[DriftKind::Content]);
    let planned = plan(&split);
    assert_eq!(steps(&planned), [("d/a".to_owned(), Action::Replace)]);
    assert_eq!(planned.keepers[&(split.inodes[0].0, EntryIndex::ROOT)], split.inodes[1].0);
}

#[test]
fn an_inode_that_two_files_share_stays_with_the_first_group() {
    let mut joined = observed(&[]);
    let z = goal().tree().index(7).unwrap();
    joined.inodes.push((z, (0, 0, 7)));
    assert_eq!(steps(&plan(&joined)), [("z".to_owned(), Action::Replace)]);
}

fn extra(text: &str, directory: bool, owned: bool) -> Extra {
    Extra { path: path(text), directory, owned, left: false, within: None }
}

#[test]
fn what_no_image_brought_stays_and_keeps_the_directories_around_it() {
    let mut found = observed(&[]);
    found.extras =
        vec![extra("old", true, true), extra("old/mine", false, false), extra("old/theirs", false, true)];
    let planned = plan(&found);
    let gone: Vec<&ImagePath> = planned.removals.iter().map(|removal| &removal.path).collect();
    assert_eq!(gone, [&path("old/theirs")]);
    assert_eq!(planned.kept, [path("old/mine")]);
    let all = Plan::of(&goal(), &found, PlanOptions { remove_unowned: true, switch: false });
    assert_eq!((all.removals.len(), all.kept.len()), (3, 0));
}

#[test]
fn a_directory_that_holds_what_stays_does_not_give_way() {
    let z = goal().tree().index(7);
    let mut found = observed(&[("z", drifted(&[DriftKind::Type]))]);
    found.extras = vec![extra("z/mine", false, false), extra("z/theirs", false, true)];
    found.extras.iter_mut().for_each(|extra| extra.within = z);
    let planned = plan(&found);
    assert_eq!(planned.conflicts, [Conflict { path: path("z"), holds: path("z/mine"), in_the_way: false }]);
    found.extras.remove(0);
    let planned = plan(&found);
    assert!(planned.conflicts.is_empty() && planned.removals.is_empty());
}

#[test]
fn a_switch_takes_a_whole_directory_unless_the_machine_has_a_part_of_it() {
    let switch = |observed: &Observed| {
        steps(&Plan::of(&goal(), observed, PlanOptions { remove_unowned: false, switch: true }))
    };
    let changed = [("e/f", drifted(&[DriftKind::Content])), ("d/a", drifted(&[DriftKind::Content]))];
    let mut found = observed(&changed);
    assert_eq!(switch(&found), [("d".to_owned(), Action::Replace), ("e".to_owned(), Action::Replace)]);
    found.seen[6] = Seen::Left;
    assert_eq!(switch(&found), [("d".to_owned(), Action::Replace), ("e/f".to_owned(), Action::Replace)]);
    found.extras = vec![extra("d/mine", false, false)];
    assert_eq!(switch(&found)[0], ("d/a".to_owned(), Action::Replace));
    assert!(switch(&observed(&[])).is_empty());
}
