//! The work of one step, by all cores.

use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};

use shoal_proto::image::entry::EntryIndex;
use shoal_proto::image::tree::Tree;

use super::ApplyError;

/// A thread takes so many neighbours at a time: they are mostly in one directory.
const RUN: usize = 256;

/// Does `work` with every number below `count`, in any order, and returns when all are done. After an error it only
/// ends what was begun, and returns the first error of some thread.
pub(super) fn each(
    count: usize,
    work: impl Fn(usize) -> Result<(), ApplyError> + Sync,
) -> Result<(), ApplyError> {
    let cores = std::thread::available_parallelism().map_or(2, usize::from);
    let threads = cores.min(count / RUN);
    if threads <= 1 {
        return (0..count).try_for_each(work);
    }
    let next = AtomicUsize::new(0);
    let failed = AtomicBool::new(false);
    let run = || {
        loop {
            let from = next.fetch_add(RUN, Ordering::Relaxed);
            if from >= count || failed.load(Ordering::Relaxed) {
                return Ok(());
            }
            let done = (from..count.min(from + RUN)).try_for_each(&work);
            if done.is_err() {
                failed.store(true, Ordering::Relaxed);
                return done;
            }
        }
    };
    std::thread::scope(|scope| {
        let running: Vec<_> = (0..threads).map(|_| scope.spawn(run)).collect();
        let done: Vec<_> =
            running.into_iter().map(|thread| thread.join().expect("the work does not panic")).collect();
        done.into_iter().collect()
    })
}

/// The directories of an image by how deep they lie; the root alone is the first level. Of one level none is in
/// another, so that they can be done in any order.
#[derive(Debug)]
pub(super) struct Levels(Vec<Vec<EntryIndex>>);

impl Levels {
    pub(super) fn of(tree: &Tree) -> Self {
        let mut levels: Vec<Vec<EntryIndex>> = Vec::new();
        // The directories that the entry at hand is in: entries go depth first.
        let mut above: Vec<EntryIndex> = Vec::new();
        for entry in tree.entries().filter(|entry| entry.is_directory()) {
            if entry.name().is_some() {
                while above.last().is_some_and(|directory| *directory != entry.parent()) {
                    above.pop();
                }
            }
            if levels.len() == above.len() {
                levels.push(Vec::new());
            }
            levels[above.len()].push(entry.index());
            above.push(entry.index());
        }
        Self(levels)
    }

    /// Every directory after the one that it is in.
    pub(super) fn top_down(
        &self,
        work: impl Fn(EntryIndex) -> Result<(), ApplyError> + Sync,
    ) -> Result<(), ApplyError> {
        self.0.iter().try_for_each(|level| each(level.len(), |at| work(level[at])))
    }

    /// Every directory after all that are in it.
    pub(super) fn bottom_up(
        &self,
        work: impl Fn(EntryIndex) -> Result<(), ApplyError> + Sync,
    ) -> Result<(), ApplyError> {
        self.0.iter().rev().try_for_each(|level| each(level.len(), |at| work(level[at])))
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Mutex;

    use shoal_proto::image::ImagePath;
    use shoal_proto::image::entry::{Attributes, InodeFlags, Kind, Mtime};
    use shoal_proto::image::tree::TreeBuilder;

    use super::*;

    #[test]
    fn everything_is_done_once() {
        for count in [0, 1, RUN, 40 * RUN + 1] {
            let done: Vec<AtomicUsize> = (0..count).map(|_| AtomicUsize::new(0)).collect();
            let work = |at: usize| {
                done[at].fetch_add(1, Ordering::Relaxed);
                Ok(())
            };
            each(count, work).unwrap();
            assert!(done.iter().all(|times| times.load(Ordering::Relaxed) == 1), "of {count}");
        }
    }

    #[test]
    fn an_error_is_told() {
        let count = 4 * RUN;
        let work = |at| if at == count - 1 { Err(ApplyError::Incomplete { missing: 1 }) } else { Ok(()) };
        assert!(matches!(each(count, work), Err(ApplyError::Incomplete { missing: 1 })));
    }

    #[test]
    fn directories_come_after_or_before_those_they_are_in() {
        let attributes = || Attributes::new(0o755, 0, 0, InodeFlags::NONE, Vec::new()).unwrap();
        let mtime = Mtime::new(0, 0).unwrap();
        let mut builder = TreeBuilder::default();
        builder.push_root(attributes(), mtime).unwrap();
        // a, a/b, a/b/c, d, d/e
        for (up, name) in [(0, b"a"), (0, b"b"), (0, b"c"), (3, b"d"), (0, b"e")] {
            builder.push(up, name, attributes(), mtime, Kind::Directory).unwrap();
        }
        let tree = builder.finish();
        let levels = Levels::of(&tree);
        let seen = Mutex::new(Vec::new());
        let see = |directory| {
            seen.lock().unwrap().push(tree.entry(directory).path());
            Ok(())
        };
        let paths = |names: &[&str]| {
            names.iter().map(|name| ImagePath::parse(name.as_bytes()).unwrap()).collect::<Vec<ImagePath>>()
        };
        levels.top_down(see).unwrap();
        assert_eq!(
            std::mem::take(&mut *seen.lock().unwrap())[1..],
            paths(&["a", "d", "a/b", "d/e", "a/b/c"])
        );
        levels.bottom_up(see).unwrap();
        assert_eq!(seen.lock().unwrap()[..5], paths(&["a/b/c", "a/b", "d/e", "a", "d"]));
    }
}
