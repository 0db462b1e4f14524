//! Writes the headers of a tar's entries, in the pax format.

use std::io;

use shoal_proto::image::entry::{Attributes, InodeFlags, Mtime};
use tar::EntryType;

use super::acl;
use super::pax::{self, push_record};

/// What a plain header has room for.
const NAME_BYTES_MAX: usize = 100;
const ID_MAX: u32 = 0o777_7777;
const SIZE_MAX: u64 = 0o777_7777_7777;
const DEVICE_MAX: u32 = 0o777_7777;

/// One entry of a tar.
pub(in super::super) struct Header<'a> {
    /// Directories end with a slash.
    pub(in super::super) name: &'a [u8],
    /// Of a symbolic link its target, of a hard link the other name.
    pub(in super::super) link: &'a [u8],
    pub(in super::super) member: Member,
    pub(in super::super) attributes: &'a Attributes,
    pub(in super::super) mtime: Mtime,
    /// Of a file, holes included.
    pub(in super::super) bytes: u64,
    /// Offset and length of each run of data of a file with holes.
    pub(in super::super) map: Option<&'a [(u64, u64)]>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(in super::super) enum Member {
    Directory,
    File,
    Symlink,
    HardLink,
    CharDevice(u32, u32),
    BlockDevice(u32, u32),
    Fifo,
}

/// Headers, to be followed by the content's data and padding.
pub(in super::super) struct Written {
    pub(in super::super) headers: Vec<u8>,
    /// Bytes of content to come, before padding.
    pub(in super::super) packed: u64,
}

impl Written {
    pub(in super::super) const BLOCK_BYTES: usize = 512;
}

impl Header<'_> {
    /// All headers of the entry, the map of its holes included.
    ///
    /// # Errors
    /// When a number does not fit where tar has it.
    pub(in super::super) fn write(&self) -> io::Result<Written> {
        let Self { attributes, .. } = *self;
        let mut records = Vec::new();
        let packed: u64 = self.map.map_or(self.bytes, |map| map.iter().map(|(_, bytes)| bytes).sum());
        let map = self.map.map(map_text).unwrap_or_default();
        let stored = packed + map.len() as u64;
        let mut header = tar::Header::new_ustar();
        header.set_entry_type(match self.member {
            Member::Directory => EntryType::Directory,
            Member::File => EntryType::Regular,
            Member::Symlink => EntryType::Symlink,
            Member::HardLink => EntryType::Link,
            Member::CharDevice(..) => EntryType::Char,
            Member::BlockDevice(..) => EntryType::Block,
            Member::Fifo => EntryType::Fifo,
        });
        self.names(&mut header, &mut records);
        // A link has the mode that every system shows of it.
        let mode = if self.member == Member::Symlink { 0o777 } else { attributes.mode() };
        header.set_mode(mode);
        for (id, key, owner) in [(attributes.uid(), "uid", true), (attributes.gid(), "gid", false)] {
            if id > ID_MAX {
                push_record(&mut records, key.as_bytes(), id.to_string().as_bytes());
            }
            let id = if id > ID_MAX { 0 } else { u64::from(id) };
            if owner { header.set_uid(id) } else { header.set_gid(id) }
        }
        let seconds = u64::try_from(self.mtime.seconds()).ok().filter(|seconds| *seconds <= SIZE_MAX);
        if seconds.is_none() || self.mtime.nanoseconds() != 0 {
            push_record(&mut records, b"mtime", pax::time_text(self.mtime).as_bytes());
        }
        header.set_mtime(seconds.unwrap_or(0));
        if stored > SIZE_MAX {
            push_record(&mut records, b"size", stored.to_string().as_bytes());
        }
        header.set_size(if stored > SIZE_MAX { 0 } else { stored });
        if let Member::CharDevice(major, minor) | Member::BlockDevice(major, minor) = self.member {
            if major > DEVICE_MAX || minor > DEVICE_MAX {
                return Err(io::ErrorKind::InvalidInput.into());
            }
            header.set_device_major(major)?;
            header.set_device_minor(minor)?;
        }
        if self.map.is_some() {
            for (key, value) in
                [("major", "1".to_owned()), ("minor", "0".to_owned()), ("realsize", self.bytes.to_string())]
            {
                push_record(&mut records, format!("GNU.sparse.{key}").as_bytes(), value.as_bytes());
            }
            push_record(&mut records, b"GNU.sparse.name", self.name);
        }
        // Another name of an inode says nothing of it again.
        if self.member != Member::HardLink {
            push_attributes(&mut records, attributes);
        }
        header.set_cksum();
        let mut headers = Vec::new();
        if !records.is_empty() {
            headers.extend_from_slice(extended(records.len() as u64).as_bytes());
            headers.extend_from_slice(&records);
            headers.resize(headers.len().next_multiple_of(Written::BLOCK_BYTES), 0);
        }
        headers.extend_from_slice(header.as_bytes());
        headers.extend_from_slice(map.as_bytes());
        Ok(Written { headers, packed })
    }

    fn names(&self, header: &mut tar::Header, records: &mut Vec<u8>) {
        let old = header.as_old_mut();
        for (name, field, key) in
            [(self.name, &mut old.name, &b"path"[..]), (self.link, &mut old.linkname, b"linkpath")]
        {
            if name.len() > NAME_BYTES_MAX {
                push_record(records, key, name);
            }
            let fits = &name[..name.len().min(NAME_BYTES_MAX)];
            field[..fits.len()].copy_from_slice(fits);
        }
    }
}

fn extended(bytes: u64) -> tar::Header {
    let mut header = tar::Header::new_ustar();
    let name = b"pax";
    header.as_old_mut().name[..name.len()].copy_from_slice(name);
    header.set_entry_type(EntryType::XHeader);
    header.set_mode(0o644);
    header.set_uid(0);
    header.set_gid(0);
    header.set_mtime(0);
    header.set_size(bytes);
    header.set_cksum();
    header
}

fn push_attributes(records: &mut Vec<u8>, attributes: &Attributes) {
    for xattr in attributes.xattrs() {
        push_record(records, &[pax::XATTR.as_bytes(), &pax::gnu_encoded(&xattr.name)].concat(), &xattr.value);
        let acl = pax::ACL_XATTRS.iter().find(|(_, name)| name.as_bytes() == &*xattr.name);
        if let Some((key, text)) = acl.and_then(|(key, _)| Some((key, acl::to_text(&xattr.value)?))) {
            push_record(records, key.as_bytes(), text.as_bytes());
        }
    }
    if !attributes.flags().is_empty() {
        let set = |flag: &InodeFlags| attributes.flags().intersects(*flag);
        let names: Vec<&str> =
            pax::FLAG_NAMES.iter().filter(|(_, flag)| set(flag)).map(|(name, _)| *name).collect();
        push_record(records, pax::FLAGS.as_bytes(), names.join(",").as_bytes());
    }
    if attributes.project() != 0 {
        push_record(records, pax::PROJECT.as_bytes(), attributes.project().to_string().as_bytes());
    }
}

/// How GNU tar 1.0 says where data is: the number of runs, then offset and length of each, a line each, filled up with
/// NULs.
fn map_text(map: &[(u64, u64)]) -> String {
    let mut text = format!("{}\n", map.len());
    for (offset, bytes) in map {
        text += &format!("{offset}\n{bytes}\n");
    }
    let whole = text.len().next_multiple_of(Written::BLOCK_BYTES);
    text.extend(std::iter::repeat_n('\0', whole - text.len()));
    text
}
