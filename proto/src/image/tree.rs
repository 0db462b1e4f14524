//! The entries of an image in memory: 24 bytes each and their names, without an allocation of their own.

use std::collections::BTreeMap;
use std::sync::Arc;

use super::entry::{
    Attributes, Content, DEVICE_NUMBERS_MAX, EntryIndex, Kind, Mtime, SEGMENTS_MAX, SYMLINK_TARGET_BYTES_MAX,
    Segment,
};
use super::path::{Component, DEPTH_MAX, ImagePath, PathError};

/// Most entries of one image.
pub const ENTRIES_MAX: usize = 4 << 20;

/// Entries depth first, byte-sorted within each directory; the first is the root directory.
///
/// Comes only from a [`TreeBuilder`]: every name is a [`Component`], no directory has a name twice, every parent is a
/// directory, every hard link points to an earlier inode that is no directory.
#[derive(Clone, Debug, Default)]
pub struct Tree {
    /// Names and link targets, one after another.
    names: Vec<u8>,
    rows: Vec<Row>,
    pub(super) attributes: Vec<Arc<Attributes>>,
    pub(super) times: Vec<Mtime>,
    files: Vec<(u32, u32)>,
    segments: Vec<Segment>,
    targets: Vec<(u32, u16)>,
    devices: Vec<(u32, u32)>,
}

#[derive(Clone, Copy, Debug)]
struct Row {
    name_start: u32,
    parent: u32,
    attributes: u32,
    time: u32,
    /// By kind: the only chunk, or an index into `files`, `targets` or `devices`, or the linked entry.
    content: u32,
    name_bytes: u8,
    kind: RowKind,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum RowKind {
    Directory,
    OneChunk,
    File,
    Symlink,
    HardLink,
    CharDevice,
    BlockDevice,
    Fifo,
}

/// An entry that cannot stand where it was put.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum TreeError {
    #[error("entry {entry} has {source}")]
    Path { entry: usize, source: PathError },
    #[error("entry {0} does not come after the one before it")]
    Order(usize),
    #[error("entry {0} lies outside the root")]
    Depth(usize),
    #[error("entry {0}: the root is no directory, or is named")]
    Root(usize),
    #[error("entry {entry} is a hard link to entry {to}, which is no earlier file")]
    Link { entry: usize, to: u32 },
    #[error("entry {entry} is a symbolic link with a target of {bytes} bytes or with a NUL in it")]
    Target { entry: usize, bytes: usize },
    #[error("entry {entry} is device {major}:{minor}, beyond 4095:1048575")]
    Device { entry: usize, major: u32, minor: u32 },
    #[error("entry {0} has a mode, flags or a project, which its kind has not")]
    Attributes(usize),
    #[error("entry {0} has more than {SEGMENTS_MAX} segments")]
    Segments(usize),
    #[error("more than {ENTRIES_MAX} entries, or more than 4 GiB of names")]
    TooMany,
}

impl Tree {
    pub fn len(&self) -> usize {
        self.rows.len()
    }

    pub fn is_empty(&self) -> bool {
        self.rows.is_empty()
    }

    pub fn indexes(&self) -> impl DoubleEndedIterator<Item = EntryIndex> + ExactSizeIterator + use<> {
        (0..u32::try_from(self.rows.len()).expect("at most ENTRIES_MAX")).map(EntryIndex::new)
    }

    /// All entries, parents before children.
    pub fn entries(&self) -> impl DoubleEndedIterator<Item = Entry<'_>> + ExactSizeIterator {
        self.indexes().map(|index| Entry { tree: self, index })
    }

    /// The checked form of a number.
    pub fn index(&self, number: u32) -> Option<EntryIndex> {
        ((number as usize) < self.rows.len()).then(|| EntryIndex::new(number))
    }

    /// # Panics
    /// When `index` is of another tree, beyond the end of this one.
    pub fn entry(&self, index: EntryIndex) -> Entry<'_> {
        assert!(index.at() < self.rows.len(), "{index:?} of {}", self.rows.len());
        Entry { tree: self, index }
    }

    fn bytes(&self, start: u32, len: usize) -> &[u8] {
        &self.names[start as usize..start as usize + len]
    }

    /// Gives every chunk another number. `numbers` has one for each number in use.
    pub(super) fn renumber(&mut self, numbers: &[u32]) {
        let mut segments = Vec::with_capacity(self.segments.len());
        for (start, len) in &mut self.files {
            let old = &self.segments[*start as usize..][..*len as usize];
            let mut new = Vec::with_capacity(old.len());
            for segment in old {
                match *segment {
                    Segment::Chunks { first, count } => {
                        for chunk in &numbers[first as usize..][..count as usize] {
                            super::entry::push_segment(&mut new, Segment::Chunks { first: *chunk, count: 1 });
                        }
                    }
                    hole @ Segment::Hole { .. } => new.push(hole),
                }
            }
            *start = u32::try_from(segments.len()).expect("fewer segments than chunks and holes");
            *len = u32::try_from(new.len()).expect("fewer segments than chunks and holes");
            segments.append(&mut new);
        }
        self.segments = segments;
        for row in &mut self.rows {
            if row.kind == RowKind::OneChunk {
                row.content = numbers[row.content as usize];
            }
        }
    }
}

/// One entry, looked at in its tree.
#[derive(Clone, Copy, Debug)]
pub struct Entry<'a> {
    tree: &'a Tree,
    index: EntryIndex,
}

impl<'a> Entry<'a> {
    fn row(&self) -> &'a Row {
        &self.tree.rows[self.index.at()]
    }

    pub fn index(&self) -> EntryIndex {
        self.index
    }

    /// The last component of the path; `None` for the root.
    pub fn name(&self) -> Option<Component<'a>> {
        let row = self.row();
        Component::new(self.tree.bytes(row.name_start, usize::from(row.name_bytes))).ok()
    }

    /// The directory it is in; the root is its own.
    pub fn parent(&self) -> EntryIndex {
        EntryIndex::new(self.row().parent)
    }

    pub fn path(&self) -> ImagePath {
        let mut names = Vec::new();
        let mut at = *self;
        while let Some(name) = at.name() {
            names.push(name);
            at = self.tree.entry(at.parent());
        }
        let mut path = ImagePath::ROOT;
        for name in names.into_iter().rev() {
            path.push(name);
        }
        path
    }

    /// Of a hard link: those of the inode it names.
    pub fn attributes(&self) -> &'a Attributes {
        &self.tree.attributes[self.attributes_number() as usize]
    }

    /// Of a hard link: that of the inode it names.
    pub fn mtime(&self) -> Mtime {
        self.tree.times[self.time_number() as usize]
    }

    pub(super) fn attributes_number(&self) -> u32 {
        self.row().attributes
    }

    pub(super) fn time_number(&self) -> u32 {
        self.row().time
    }

    pub fn is_directory(&self) -> bool {
        self.row().kind == RowKind::Directory
    }

    pub fn kind(&self) -> Kind<'a> {
        let row = self.row();
        let at = row.content as usize;
        match row.kind {
            RowKind::Directory => Kind::Directory,
            RowKind::OneChunk => Kind::File(Content::One(Segment::Chunks { first: row.content, count: 1 })),
            RowKind::File => {
                let (start, len) = self.tree.files[at];
                Kind::File(Content::Segments(&self.tree.segments[start as usize..][..len as usize]))
            }
            RowKind::Symlink => {
                let (start, len) = self.tree.targets[at];
                Kind::Symlink { target: self.tree.bytes(start, usize::from(len)) }
            }
            RowKind::HardLink => Kind::HardLink { to: EntryIndex::new(row.content) },
            RowKind::CharDevice => {
                let (major, minor) = self.tree.devices[at];
                Kind::CharDevice { major, minor }
            }
            RowKind::BlockDevice => {
                let (major, minor) = self.tree.devices[at];
                Kind::BlockDevice { major, minor }
            }
            RowKind::Fifo => Kind::Fifo,
        }
    }
}

/// Takes entries in order and refuses what a [`Tree`] may not hold.
#[derive(Debug, Default)]
pub struct TreeBuilder {
    tree: Tree,
    attribute_numbers: BTreeMap<Arc<Attributes>, u32>,
    time_numbers: BTreeMap<Mtime, u32>,
    /// The directories around the next entry, outermost first, each with the last entry put into it.
    open: Vec<(u32, Option<u32>)>,
}

impl TreeBuilder {
    pub fn len(&self) -> usize {
        self.tree.len()
    }

    pub fn is_empty(&self) -> bool {
        self.tree.is_empty()
    }

    /// Whether an entry has these attributes.
    pub(super) fn knows(&self, attributes: &Attributes) -> bool {
        self.attribute_numbers.contains_key(attributes)
    }

    /// Sets aside room for so many entries at once: growing by doubling would take twice the room.
    pub(super) fn with_capacity(entries: u64) -> Self {
        let mut builder = Self::default();
        builder.tree.rows =
            Vec::with_capacity(usize::try_from(entries).unwrap_or(ENTRIES_MAX).min(ENTRIES_MAX));
        builder
    }

    /// What was built so far.
    pub fn tree(&self) -> &Tree {
        &self.tree
    }

    /// The first entry.
    pub fn push_root(&mut self, attributes: Attributes, mtime: Mtime) -> Result<(), TreeError> {
        self.push(0, b"", attributes, mtime, Kind::Directory).map(drop)
    }

    /// Adds an inode after closing the `up` innermost directories. A directory is open from then on.
    ///
    /// A hard link goes through [`push_hard_link`](Self::push_hard_link).
    pub fn push(
        &mut self,
        up: usize,
        name: &[u8],
        attributes: Attributes,
        mtime: Mtime,
        kind: Kind<'_>,
    ) -> Result<EntryIndex, TreeError> {
        let row = self.row(up, name, &attributes, mtime, kind)?;
        let attributes = self.attributes_number(attributes);
        Ok(self.commit(up, Row { attributes, ..row }))
    }

    /// As [`push`](Self::push), with the attributes of an earlier entry, by their number.
    pub(super) fn push_known(
        &mut self,
        up: usize,
        name: &[u8],
        attributes: u32,
        mtime: Mtime,
        kind: Kind<'_>,
    ) -> Result<EntryIndex, TreeError> {
        let meant = Arc::clone(&self.tree.attributes[attributes as usize]);
        let row = self.row(up, name, &meant, mtime, kind)?;
        Ok(self.commit(up, Row { attributes, ..row }))
    }

    /// All of a row but the number of its attributes.
    fn row(
        &mut self,
        up: usize,
        name: &[u8],
        attributes: &Attributes,
        mtime: Mtime,
        kind: Kind<'_>,
    ) -> Result<Row, TreeError> {
        check_attributes(self.tree.rows.len(), attributes, kind)?;
        let mut row = self.place(up, name, kind == Kind::Directory)?;
        (row.kind, row.content) = self.content(kind)?;
        row.time = self.time_number(mtime);
        Ok(row)
    }

    /// Adds another name of the inode at `to`.
    pub fn push_hard_link(&mut self, up: usize, name: &[u8], to: u32) -> Result<EntryIndex, TreeError> {
        let mut row = self.place(up, name, false)?;
        let entry = self.tree.rows.len();
        let target = self.tree.rows.get(to as usize).ok_or(TreeError::Link { entry, to })?;
        if matches!(target.kind, RowKind::Directory | RowKind::HardLink) {
            return Err(TreeError::Link { entry, to });
        }
        (row.attributes, row.time) = (target.attributes, target.time);
        (row.kind, row.content) = (RowKind::HardLink, to);
        Ok(self.commit(up, row))
    }

    pub fn finish(self) -> Tree {
        self.tree
    }

    /// Checks place and name; changes nothing but the arena of names.
    fn place(&mut self, up: usize, name: &[u8], directory: bool) -> Result<Row, TreeError> {
        let entry = self.tree.rows.len();
        let mut parent = 0;
        if entry == 0 {
            if up != 0 || !name.is_empty() || !directory {
                return Err(TreeError::Root(entry));
            }
        } else {
            let name = Component::new(name).map_err(|source| TreeError::Path { entry, source })?;
            let depth = self.open.len().checked_sub(up).filter(|&depth| depth > 0);
            let depth = depth.ok_or(TreeError::Depth(entry))?;
            if depth > DEPTH_MAX {
                return Err(TreeError::Path { entry, source: PathError::TooDeep });
            }
            let (directory, last) = self.open[depth - 1];
            if last.is_some_and(|last| self.tree.entry(EntryIndex::new(last)).name() >= Some(name)) {
                return Err(TreeError::Order(entry));
            }
            parent = directory;
        }
        if entry == ENTRIES_MAX {
            return Err(TreeError::TooMany);
        }
        let name_start = self.append(name)?;
        let name_bytes = u8::try_from(name.len()).expect("a component is at most 255 bytes");
        Ok(Row {
            name_start,
            parent,
            attributes: 0,
            time: 0,
            content: 0,
            name_bytes,
            kind: RowKind::Directory,
        })
    }

    fn commit(&mut self, up: usize, row: Row) -> EntryIndex {
        let index = u32::try_from(self.tree.rows.len()).expect("at most ENTRIES_MAX");
        self.open.truncate(self.open.len() - up);
        if let Some((_, last)) = self.open.last_mut() {
            *last = Some(index);
        }
        if row.kind == RowKind::Directory {
            self.open.push((index, None));
        }
        self.tree.rows.push(row);
        EntryIndex::new(index)
    }

    fn append(&mut self, bytes: &[u8]) -> Result<u32, TreeError> {
        let start = u32::try_from(self.tree.names.len()).map_err(|_| TreeError::TooMany)?;
        self.tree.names.extend_from_slice(bytes);
        Ok(start)
    }

    fn content(&mut self, kind: Kind<'_>) -> Result<(RowKind, u32), TreeError> {
        let entry = self.tree.rows.len();
        Ok(match kind {
            Kind::Directory => (RowKind::Directory, 0),
            Kind::Fifo => (RowKind::Fifo, 0),
            Kind::File(content) => match *content.segments() {
                [Segment::Chunks { first, count: 1 }] => (RowKind::OneChunk, first),
                ref segments => {
                    if segments.len() > SEGMENTS_MAX {
                        return Err(TreeError::Segments(entry));
                    }
                    let start = to_u32(self.tree.segments.len())?;
                    self.tree.segments.extend_from_slice(segments);
                    self.tree.files.push((start, to_u32(segments.len())?));
                    (RowKind::File, to_u32(self.tree.files.len() - 1)?)
                }
            },
            Kind::Symlink { target } => {
                let bytes = target.len();
                if bytes == 0 || bytes > SYMLINK_TARGET_BYTES_MAX || target.contains(&0) {
                    return Err(TreeError::Target { entry, bytes });
                }
                let start = self.append(target)?;
                self.tree.targets.push((start, u16::try_from(bytes).expect("at most 4095")));
                (RowKind::Symlink, to_u32(self.tree.targets.len() - 1)?)
            }
            Kind::CharDevice { major, minor } => (RowKind::CharDevice, self.device(major, minor)?),
            Kind::BlockDevice { major, minor } => (RowKind::BlockDevice, self.device(major, minor)?),
            Kind::HardLink { to } => return Err(TreeError::Link { entry, to: to.get() }),
        })
    }

    fn device(&mut self, major: u32, minor: u32) -> Result<u32, TreeError> {
        if major > DEVICE_NUMBERS_MAX.0 || minor > DEVICE_NUMBERS_MAX.1 {
            return Err(TreeError::Device { entry: self.tree.rows.len(), major, minor });
        }
        self.tree.devices.push((major, minor));
        to_u32(self.tree.devices.len() - 1)
    }

    fn attributes_number(&mut self, attributes: Attributes) -> u32 {
        if let Some(&number) = self.attribute_numbers.get(&attributes) {
            return number;
        }
        let number = u32::try_from(self.tree.attributes.len()).expect("at most one for each entry");
        let attributes = Arc::new(attributes);
        self.tree.attributes.push(Arc::clone(&attributes));
        self.attribute_numbers.insert(attributes, number);
        number
    }

    fn time_number(&mut self, mtime: Mtime) -> u32 {
        let next = u32::try_from(self.tree.times.len()).expect("at most one for each entry");
        let number = *self.time_numbers.entry(mtime).or_insert(next);
        if number == next {
            self.tree.times.push(mtime);
        }
        number
    }
}

/// One spelling for each tree: what a kind cannot have is not said of it.
fn check_attributes(entry: usize, attributes: &Attributes, kind: Kind<'_>) -> Result<(), TreeError> {
    let plain = attributes.flags().is_empty() && attributes.project() == 0;
    let fits = match kind {
        Kind::Directory | Kind::File(_) => true,
        Kind::Symlink { .. } => plain && attributes.mode() == 0,
        Kind::CharDevice { .. } | Kind::BlockDevice { .. } | Kind::Fifo => plain,
        Kind::HardLink { to } => return Err(TreeError::Link { entry, to: to.get() }),
    };
    if fits { Ok(()) } else { Err(TreeError::Attributes(entry)) }
}

fn to_u32(count: usize) -> Result<u32, TreeError> {
    u32::try_from(count).map_err(|_| TreeError::TooMany)
}
