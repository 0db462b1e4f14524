//! In which ways a path of a tree may differ from an image.

use serde::{Deserialize, Serialize};

/// One way in which a path differs.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum DriftKind {
    Missing,
    /// In the tree and not in the image; what is in such a directory is not listed.
    Extra,
    Type,
    Size,
    Content,
    Mode,
    Owner,
    Mtime,
    /// ACLs and capabilities among them.
    Xattr,
    Flags,
    Project,
    LinkTarget,
    Device,
    /// It shares its inode with other names than the image says.
    HardLink,
}

impl DriftKind {
    pub const ALL: [Self; 14] = [
        Self::Missing,
        Self::Extra,
        Self::Type,
        Self::Size,
        Self::Content,
        Self::Mode,
        Self::Owner,
        Self::Mtime,
        Self::Xattr,
        Self::Flags,
        Self::Project,
        Self::LinkTarget,
        Self::Device,
        Self::HardLink,
    ];

    /// As `--json` spells it.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Missing => "missing",
            Self::Extra => "extra",
            Self::Type => "type",
            Self::Size => "size",
            Self::Content => "content",
            Self::Mode => "mode",
            Self::Owner => "owner",
            Self::Mtime => "mtime",
            Self::Xattr => "xattr",
            Self::Flags => "flags",
            Self::Project => "project",
            Self::LinkTarget => "link_target",
            Self::Device => "device",
            Self::HardLink => "hard_link",
        }
    }
}

/// A set of [`DriftKind`]s, in two bytes.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub struct Drifts(u16);

impl Drifts {
    pub const NONE: Self = Self(0);

    pub const fn of(kind: DriftKind) -> Self {
        Self(1 << kind as u16)
    }

    pub fn insert(&mut self, kind: DriftKind) {
        self.0 |= 1 << kind as u16;
    }

    #[must_use]
    pub fn with(mut self, kind: DriftKind) -> Self {
        self.insert(kind);
        self
    }

    #[must_use]
    pub const fn union(self, other: Self) -> Self {
        Self(self.0 | other.0)
    }

    #[must_use]
    pub fn without(self, other: Self) -> Self {
        Self(self.0 & !other.0)
    }

    pub fn contains(self, kind: DriftKind) -> bool {
        self.0 & (1 << kind as u16) != 0
    }

    pub fn intersects(self, other: Self) -> bool {
        self.0 & other.0 != 0
    }

    pub fn is_empty(self) -> bool {
        self.0 == 0
    }

    pub fn len(self) -> usize {
        self.0.count_ones() as usize
    }

    /// In the order of [`DriftKind`].
    pub fn kinds(self) -> impl Iterator<Item = DriftKind> {
        DriftKind::ALL.into_iter().filter(move |kind| self.contains(*kind))
    }
}

impl FromIterator<DriftKind> for Drifts {
    fn from_iter<T: IntoIterator<Item = DriftKind>>(kinds: T) -> Self {
        kinds.into_iter().fold(Self::NONE, Self::with)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_set_holds_what_was_put_in() {
        let set: Drifts = [DriftKind::HardLink, DriftKind::Missing, DriftKind::Missing].into_iter().collect();
        assert_eq!(set.kinds().collect::<Vec<_>>(), [DriftKind::Missing, DriftKind::HardLink]);
        assert_eq!(set.len(), 2);
        assert!(set.without(set).is_empty());
        assert!(DriftKind::ALL.is_sorted());
    }
}
