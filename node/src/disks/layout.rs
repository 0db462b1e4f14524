//! The text of a layout, checked as a whole.

use std::collections::BTreeSet;
use std::ops::Range;
use std::path::{Path, PathBuf};

use serde::Deserialize;
use toml::Spanned;

/// A gpt has room for so many as it is commonly made.
const GPT_PARTITIONS_MAX: usize = 128;
/// Logical partitions are not made.
const DOS_PARTITIONS_MAX: usize = 4;
/// A gpt keeps a partition's name in so many units of UTF-16.
const NAME_UNITS_MAX: usize = 36;

/// The disks that a machine is to have; every statement of the file was checked.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Layout {
    pub disks: Vec<Disk>,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Disk {
    /// Below `/dev`; may be a symbolic link.
    pub device: PathBuf,
    pub label: Label,
    /// The first has number 1.
    pub partitions: Vec<Partition>,
}

/// The kind of a partition table.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Label {
    Gpt,
    Dos,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Partition {
    pub extent: Extent,
    pub kind: PartitionType,
    pub name: Option<String>,
    pub filesystem: Option<FileSystem>,
    pub fs_label: Option<String>,
    /// Further arguments of `mkfs`.
    pub mkfs: Vec<String>,
    /// Absolute and plain.
    pub mount: Option<PathBuf>,
    pub options: Option<String>,
    /// The active one of a dos table.
    pub boot: bool,
}

/// Where a partition lies.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Extent {
    Bytes(u64),
    /// All that the others leave.
    Rest,
    /// Where it is already.
    Kept,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum PartitionType {
    Linux,
    Esp,
    Swap,
    BiosBoot,
    Lvm,
    Raid,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum FileSystem {
    Ext4,
    Xfs,
    Btrfs,
    Vfat,
    Swap,
}

#[derive(Debug, thiserror::Error)]
pub enum LayoutError {
    #[error("cannot read {}", .path.display())]
    Unreadable {
        path: PathBuf,
        #[source]
        source: std::io::Error,
    },
    /// The file is no TOML, or says something that a layout does not have.
    #[error("{}:{line}: {message}", .path.display())]
    Syntax { path: PathBuf, line: usize, message: String },
    #[error("{}:{line}: {found}: expected {expected}", .path.display())]
    Unexpected { path: PathBuf, line: usize, found: String, expected: String },
}

const SIZE: &str = "a size such as \"512MiB\" or \"20GB\", or \"rest\"";
const UNITS: [(&str, u64); 6] = [
    ("MiB", 1 << 20),
    ("GiB", 1 << 30),
    ("TiB", 1 << 40),
    ("MB", 1_000_000),
    ("GB", 1_000_000_000),
    ("TB", 1_000_000_000_000),
];

impl Label {
    const ALL: [(&'static str, Self); 2] = [("gpt", Self::Gpt), ("dos", Self::Dos)];

    /// As `sfdisk` and a layout call it.
    pub fn name(self) -> &'static str {
        name_in(&Self::ALL, self)
    }
}

impl PartitionType {
    const ALL: [(&'static str, Self); 6] = [
        ("linux", Self::Linux),
        ("esp", Self::Esp),
        ("swap", Self::Swap),
        ("bios-boot", Self::BiosBoot),
        ("lvm", Self::Lvm),
        ("raid", Self::Raid),
    ];
}

impl FileSystem {
    const ALL: [(&'static str, Self); 5] = [
        ("ext4", Self::Ext4),
        ("xfs", Self::Xfs),
        ("btrfs", Self::Btrfs),
        ("vfat", Self::Vfat),
        ("swap", Self::Swap),
    ];

    /// As `mount` and a layout call it.
    pub fn name(self) -> &'static str {
        name_in(&Self::ALL, self)
    }

    /// The bytes that its label may have.
    fn label_bytes_max(self) -> usize {
        match self {
            Self::Ext4 | Self::Swap => 16,
            Self::Xfs => 12,
            Self::Btrfs => 255,
            Self::Vfat => 11,
        }
    }
}

fn name_in<T: Copy + PartialEq>(names: &[(&'static str, T)], wanted: T) -> &'static str {
    names.iter().find(|(_, value)| *value == wanted).expect("every value has a name").0
}

impl Layout {
    /// Reads and checks the file at `path`.
    pub fn read(path: &Path) -> Result<Self, LayoutError> {
        let text = std::fs::read_to_string(path)
            .map_err(|source| LayoutError::Unreadable { path: path.to_owned(), source })?;
        Self::parse(path, &text)
    }

    /// Checks `text`, which errors call `path`.
    pub fn parse(path: &Path, text: &str) -> Result<Self, LayoutError> {
        let reader = Reader { path, text };
        let raw: RawLayout = toml::from_str(text).map_err(|error| reader.syntax(&error))?;
        reader.layout(raw)
    }

    /// Everything that is to be mounted, parents before what lies below them.
    pub fn mounts(&self) -> Vec<(&Path, &Partition)> {
        let partitions = self.disks.iter().flat_map(|disk| &disk.partitions);
        let mut mounts: Vec<(&Path, &Partition)> =
            partitions.filter_map(|partition| Some((partition.mount.as_deref()?, partition))).collect();
        mounts.sort_by_key(|(point, _)| *point);
        mounts
    }
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct RawLayout {
    #[serde(default)]
    disk: Vec<Spanned<RawDisk>>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct RawDisk {
    device: Spanned<String>,
    label: Spanned<String>,
    #[serde(default)]
    partition: Vec<Spanned<RawPartition>>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct RawPartition {
    size: Option<Spanned<String>>,
    #[serde(rename = "type")]
    kind: Option<Spanned<String>>,
    name: Option<Spanned<String>>,
    filesystem: Option<Spanned<String>>,
    #[serde(rename = "fs-label")]
    fs_label: Option<Spanned<String>>,
    mkfs: Option<Spanned<Vec<String>>>,
    mount: Option<Spanned<String>>,
    options: Option<Spanned<String>>,
    keep: Option<Spanned<bool>>,
    boot: Option<Spanned<bool>>,
}

/// The text under check, to say where in it something is wrong.
struct Reader<'a> {
    path: &'a Path,
    text: &'a str,
}

type Checked<T> = Result<T, LayoutError>;

impl Reader<'_> {
    fn line(&self, span: &Range<usize>) -> usize {
        self.text[..span.start.min(self.text.len())].matches('\n').count() + 1
    }

    fn syntax(&self, error: &toml::de::Error) -> LayoutError {
        let line = error.span().map_or(1, |span| self.line(&span));
        // The message may go over several lines.
        let message = error.message().split_whitespace().collect::<Vec<_>>().join(" ");
        LayoutError::Syntax { path: self.path.to_owned(), line, message }
    }

    fn unexpected<T>(&self, span: &Range<usize>, found: String, expected: &str) -> Checked<T> {
        let (path, line) = (self.path.to_owned(), self.line(span));
        Err(LayoutError::Unexpected { path, line, found, expected: expected.to_owned() })
    }

    fn layout(&self, raw: RawLayout) -> Checked<Layout> {
        if raw.disk.is_empty() {
            return self.unexpected(&(0..0), "there is no disk".to_owned(), "a table [[disk]]");
        }
        let (mut devices, mut points) = (BTreeSet::new(), BTreeSet::new());
        let mut disks = Vec::new();
        for disk in raw.disk {
            let span = disk.span();
            let disk = self.disk(&span, disk.into_inner(), &mut points)?;
            if !devices.insert(disk.device.clone()) {
                let found = format!("{} is here twice", disk.device.display());
                return self.unexpected(&span, found, "each device once");
            }
            disks.push(disk);
        }
        if !points.contains(Path::new("/")) {
            return self.unexpected(
                &(0..0),
                "no partition is mounted at /".to_owned(),
                "one with mount = \"/\"",
            );
        }
        Ok(Layout { disks })
    }

    fn disk(&self, span: &Range<usize>, raw: RawDisk, points: &mut BTreeSet<PathBuf>) -> Checked<Disk> {
        let device = PathBuf::from(raw.device.get_ref());
        if !device.starts_with("/dev/") || !is_plain(&device) || device == Path::new("/dev") {
            let found = format!("device {:?}", raw.device.get_ref());
            return self.unexpected(&raw.device.span(), found, "a path below /dev");
        }
        let label = self.choose("label", &raw.label, &Label::ALL)?;
        let most = if label == Label::Gpt { GPT_PARTITIONS_MAX } else { DOS_PARTITIONS_MAX };
        if raw.partition.is_empty() || raw.partition.len() > most {
            let found = format!("{} partitions on {}", raw.partition.len(), device.display());
            let expected = format!("1 to {most} tables [[disk.partition]] for label {:?}", label.name());
            return self.unexpected(span, found, &expected);
        }
        let mut partitions: Vec<Partition> = Vec::new();
        for raw in raw.partition {
            let span = raw.span();
            let partition = self.partition(&span, raw.into_inner(), label)?;
            if partition.extent == Extent::Rest && partitions.iter().any(|other| other.extent == Extent::Rest)
            {
                let found = "a second partition takes the rest".to_owned();
                return self.unexpected(&span, found, "size = \"rest\" once a disk");
            }
            if let Some(point) = &partition.mount
                && !points.insert(point.clone())
            {
                let found = format!("a second partition is mounted at {}", point.display());
                return self.unexpected(&span, found, "each mount point once");
            }
            partitions.push(partition);
        }
        Ok(Disk { device, label, partitions })
    }

    fn partition(&self, span: &Range<usize>, raw: RawPartition, label: Label) -> Checked<Partition> {
        let keep = raw.keep.as_ref().is_some_and(|keep| *keep.get_ref());
        let extent = match &raw.size {
            Some(size) if keep => {
                let found = "a kept partition has a size".to_owned();
                return self.unexpected(&size.span(), found, "size or keep, not both");
            }
            Some(size) => self.size(size)?,
            None if keep => Extent::Kept,
            None => return self.unexpected(span, "a partition has no size".to_owned(), SIZE),
        };
        let filesystem = raw.filesystem.as_ref();
        let filesystem =
            filesystem.map(|name| self.choose("filesystem", name, &FileSystem::ALL)).transpose()?;
        let mount = raw.mount.as_ref().map(|mount| self.mount(mount, filesystem, keep)).transpose()?;
        let is_esp = mount.as_deref().is_some_and(|point| point.ends_with("efi"));
        let kind = match &raw.kind {
            Some(kind) => self.choose("type", kind, &PartitionType::ALL)?,
            None if filesystem == Some(FileSystem::Swap) => PartitionType::Swap,
            None if filesystem == Some(FileSystem::Vfat) && is_esp => PartitionType::Esp,
            None => PartitionType::Linux,
        };
        if let Some(said) =
            raw.kind.as_ref().filter(|_| label == Label::Dos && kind == PartitionType::BiosBoot)
        {
            let found = "type \"bios-boot\" on label \"dos\"".to_owned();
            return self.unexpected(&said.span(), found, "label \"gpt\"");
        }
        self.check_texts(&raw, label, filesystem, keep)?;
        Ok(Partition {
            extent,
            kind,
            name: raw.name.map(Spanned::into_inner),
            filesystem,
            fs_label: raw.fs_label.map(Spanned::into_inner),
            mkfs: raw.mkfs.map(Spanned::into_inner).unwrap_or_default(),
            mount,
            options: raw.options.map(Spanned::into_inner),
            boot: raw.boot.is_some_and(Spanned::into_inner),
        })
    }

    /// What a partition says about itself in words, and whether there is a use for it.
    fn check_texts(
        &self,
        raw: &RawPartition,
        label: Label,
        filesystem: Option<FileSystem>,
        keep: bool,
    ) -> Checked<()> {
        let needless = |span: Range<usize>, what: &str, expected: &str| -> Checked<()> {
            self.unexpected(&span, what.to_owned(), expected)
        };
        if let Some(name) = &raw.name {
            if label == Label::Dos {
                return needless(name.span(), "a name on label \"dos\"", "label \"gpt\", or no name");
            }
            let units = name.get_ref().encode_utf16().count();
            if units == 0 || units > NAME_UNITS_MAX || !is_word(name.get_ref()) {
                let found = format!("name {:?}", name.get_ref());
                return self.unexpected(&name.span(), found, "1 to 36 letters, digits, blanks and ._:+@-");
            }
        }
        if let Some(boot) = raw.boot.as_ref().filter(|_| label == Label::Gpt) {
            return needless(
                boot.span(),
                "boot on label \"gpt\"",
                "label \"dos\", or type = \"bios-boot\" or \"esp\"",
            );
        }
        let made = filesystem.filter(|_| !keep);
        if let Some(mkfs) = raw.mkfs.as_ref().filter(|_| made.is_none()) {
            return needless(mkfs.span(), "mkfs where no file system is made", "a filesystem, and no keep");
        }
        if let Some(fs_label) = &raw.fs_label {
            let Some(made) = made else {
                let expected = "a filesystem, and no keep";
                return needless(fs_label.span(), "fs-label where no file system is made", expected);
            };
            let most = made.label_bytes_max();
            let text = fs_label.get_ref();
            if text.is_empty() || text.len() > most || !is_word(text) {
                let expected = format!("1 to {most} letters, digits, blanks and ._:+@- for {}", made.name());
                return self.unexpected(&fs_label.span(), format!("fs-label {text:?}"), &expected);
            }
        }
        if let Some(options) = &raw.options {
            if raw.mount.is_none() {
                return needless(options.span(), "options without a mount", "mount = \"/...\" beside it");
            }
            let text = options.get_ref();
            if text.is_empty() || text.contains(|c: char| c.is_whitespace() || c.is_control()) {
                let found = format!("options {text:?}");
                return self.unexpected(
                    &options.span(),
                    found,
                    "words with commas between, such as \"noatime,discard\"",
                );
            }
        }
        Ok(())
    }

    fn mount(&self, mount: &Spanned<String>, filesystem: Option<FileSystem>, keep: bool) -> Checked<PathBuf> {
        let point = PathBuf::from(mount.get_ref());
        let blanks = mount.get_ref().contains(|c: char| c.is_whitespace() || c.is_control());
        if !point.is_absolute() || !is_plain(&point) || blanks {
            let found = format!("mount {:?}", mount.get_ref());
            return self.unexpected(&mount.span(), found, "an absolute path without blanks and \"..\"");
        }
        match filesystem {
            None => {
                let found = format!("{} has no file system", point.display());
                self.unexpected(&mount.span(), found, "filesystem = \"ext4\" or another beside the mount")
            }
            Some(FileSystem::Swap) => self.unexpected(
                &mount.span(),
                "swap is mounted".to_owned(),
                "no mount for filesystem \"swap\"",
            ),
            Some(FileSystem::Vfat) if point == Path::new("/") => self.unexpected(
                &mount.span(),
                "/ is vfat".to_owned(),
                "a file system that keeps owners and modes",
            ),
            Some(_) if keep && point == Path::new("/") => self.unexpected(
                &mount.span(),
                "/ is kept".to_owned(),
                "a file system made anew for the image",
            ),
            Some(_) => Ok(point),
        }
    }

    fn size(&self, size: &Spanned<String>) -> Checked<Extent> {
        let text = size.get_ref();
        if text == "rest" {
            return Ok(Extent::Rest);
        }
        let bytes = UNITS.iter().find_map(|(unit, bytes)| {
            let count: u64 = text.strip_suffix(unit)?.trim_end().parse().ok()?;
            count.checked_mul(*bytes)
        });
        match bytes {
            Some(bytes) if bytes > 0 => Ok(Extent::Bytes(bytes)),
            _ => self.unexpected(&size.span(), format!("size {text:?}"), SIZE),
        }
    }

    fn choose<T: Copy>(&self, field: &str, said: &Spanned<String>, names: &[(&str, T)]) -> Checked<T> {
        if let Some((_, value)) = names.iter().find(|(name, _)| name == said.get_ref()) {
            return Ok(*value);
        }
        let known: Vec<String> = names.iter().map(|(name, _)| format!("{name:?}")).collect();
        let found = format!("{field} {:?}", said.get_ref());
        self.unexpected(&said.span(), found, &known.join(", "))
    }
}

/// Whether a path is as short as it can be: no `.`, `..` or `//`, no slash at its end.
fn is_plain(path: &Path) -> bool {
    let plain: PathBuf = path.components().collect();
    let up = path.components().any(|part| part == std::path::Component::ParentDir);
    plain.as_os_str() == path.as_os_str() && !up
}

/// Whether `sfdisk` and `mkfs` take it as it is.
fn is_word(text: &str) -> bool {
    text.chars().all(|c| c.is_ascii_alphanumeric() || " ._:+@-".contains(c)) && text.trim() == text
}

#[cfg(test)]
mod tests;
