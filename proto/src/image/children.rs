//! For each directory of a tree, the entries in it.

use super::entry::EntryIndex;
use super::tree::Tree;

/// The entries of each directory of one tree, sorted by name. Takes 8 bytes an entry.
#[derive(Clone, Debug)]
pub struct Children {
    /// By entry: where its children start, and after the last the number of all.
    starts: Vec<u32>,
    children: Vec<EntryIndex>,
}

impl Children {
    pub fn of(tree: &Tree) -> Self {
        let mut starts = vec![0_u32; tree.len() + 1];
        for entry in tree.entries().skip(1) {
            starts[entry.parent().at() + 1] += 1;
        }
        for at in 1..starts.len() {
            starts[at] += starts[at - 1];
        }
        let mut next = starts.clone();
        let mut children = vec![EntryIndex::ROOT; starts[tree.len()] as usize];
        for entry in tree.entries().skip(1) {
            let slot = &mut next[entry.parent().at()];
            children[*slot as usize] = entry.index();
            *slot += 1;
        }
        Self { starts, children }
    }

    pub fn of_directory(&self, directory: EntryIndex) -> &[EntryIndex] {
        &self.children[self.starts[directory.at()] as usize..self.starts[directory.at() + 1] as usize]
    }

    /// The entry called `name` in `directory` of `tree`, the one that this was made of.
    pub fn find(&self, tree: &Tree, directory: EntryIndex, name: &[u8]) -> Option<EntryIndex> {
        let children = self.of_directory(directory);
        let own_name = |index: EntryIndex| tree.entry(index).name().map_or(&b""[..], |name| name.bytes());
        children.binary_search_by(|child| own_name(*child).cmp(name)).ok().map(|at| children[at])
    }
}
