//! The records of a tar's extended headers: what a plain header has no room for.

use data_encoding::BASE64_NOPAD;
use shoal_proto::image::entry::{InodeFlags, Mtime, Xattr};

use super::{EntryFault, TarError};

/// Which project, as we write it: no other tool does.
pub(in super::super) const PROJECT: &str = "SHOAL.project";
pub(in super::super) const XATTR: &str = "SCHILY.xattr.";
pub(in super::super) const FLAGS: &str = "SCHILY.fflags";
pub(in super::super) const ACCESS_ACL: &str = "SCHILY.acl.access";
pub(in super::super) const DEFAULT_ACL_TEXT: &str = "SCHILY.acl.default";
/// The attributes that those are.
pub(in super::super) const ACL_XATTRS: [(&str, &str); 2] =
    [(ACCESS_ACL, "system.posix_acl_access"), (DEFAULT_ACL_TEXT, "system.posix_acl_default")];

/// Flags by the names that libarchive gives them.
pub(in super::super) const FLAG_NAMES: [(&str, InodeFlags); 8] = [
    ("sync", InodeFlags::SYNC),
    ("schg", InodeFlags::IMMUTABLE),
    ("sappnd", InodeFlags::APPEND),
    ("nodump", InodeFlags::NO_DUMP),
    ("noatime", InodeFlags::NO_ATIME),
    ("dirsync", InodeFlags::DIR_SYNC),
    ("nocow", InodeFlags::NO_COW),
    ("projinherit", InodeFlags::PROJECT_INHERIT),
];

/// What extended headers say of one entry.
#[derive(Clone, Debug, Default)]
pub(super) struct Extended {
    pub(super) path: Option<Vec<u8>>,
    pub(super) link: Option<Vec<u8>>,
    pub(super) uid: Option<u32>,
    pub(super) gid: Option<u32>,
    pub(super) bytes: Option<u64>,
    pub(super) mtime: Option<Mtime>,
    pub(super) flags: InodeFlags,
    pub(super) project: u32,
    xattrs: Vec<Xattr>,
    /// As text, by the attribute that it is.
    pub(super) acls: Vec<(&'static str, String)>,
    pub(super) sparse: Sparse,
}

/// How GNU tar describes holes in extended headers.
#[derive(Clone, Debug, Default)]
pub(super) struct Sparse {
    /// The whole file; says that there are holes.
    pub(super) real_bytes: Option<u64>,
    /// Offset and length, one after the other.
    pub(super) map: Vec<u64>,
    /// The map stands before the content.
    pub(super) map_in_content: bool,
}

impl Extended {
    /// Takes the records of one extended header; later ones count.
    pub(super) fn read(&mut self, mut bytes: &[u8]) -> Result<Result<(), EntryFault>, TarError> {
        let mut fault = Ok(());
        while !bytes.is_empty() {
            let (key, value, rest) = record(bytes).ok_or(TarError::Records)?;
            bytes = rest;
            if self.take(key, value).is_none() && fault.is_ok() {
                let text = |bytes: &[u8]| bytes.escape_ascii().to_string();
                fault = Err(EntryFault::Record { key: text(key), value: text(value) });
            }
        }
        Ok(fault)
    }

    /// `None` when the value makes no sense. Unknown keys say nothing.
    fn take(&mut self, key: &[u8], value: &[u8]) -> Option<()> {
        let text = || std::str::from_utf8(value).ok();
        if let Some(name) = key.strip_prefix(XATTR.as_bytes()) {
            self.xattr(gnu_decoded(name), value);
            return Some(());
        }
        let Ok(key) = std::str::from_utf8(key) else { return Some(()) };
        match key {
            // GNU tar stores the name of a file with holes here, and one of its own making in `path`.
            "GNU.sparse.name" => self.path = Some(value.to_vec()),
            "path" if self.path.is_none() || self.sparse.real_bytes.is_none() => {
                self.path = Some(value.to_vec())
            }
            "linkpath" => self.link = Some(value.to_vec()),
            "uid" => self.uid = Some(text()?.parse().ok()?),
            "gid" => self.gid = Some(text()?.parse().ok()?),
            "size" => self.bytes = Some(text()?.parse().ok()?),
            "mtime" => self.mtime = Some(time(text()?)?),
            FLAGS => self.flags = flags(text()?),
            PROJECT => self.project = text()?.parse().ok()?,
            "RHT.security.selinux" => self.xattr(b"security.selinux".to_vec(), value),
            ACCESS_ACL => self.acls.push((ACL_XATTRS[0].1, text()?.to_owned())),
            DEFAULT_ACL_TEXT => self.acls.push((ACL_XATTRS[1].1, text()?.to_owned())),
            "GNU.sparse.size" | "GNU.sparse.realsize" => {
                self.sparse.real_bytes = Some(text()?.parse().ok()?);
            }
            "GNU.sparse.major" => self.sparse.map_in_content = text()? == "1",
            "GNU.sparse.offset" | "GNU.sparse.numbytes" => self.sparse.map.push(text()?.parse().ok()?),
            "GNU.sparse.map" => {
                let numbers: Result<_, _> = text()?.split(',').map(str::parse).collect();
                self.sparse.map = numbers.ok()?;
            }
            _ => {
                if let Some(name) = key.strip_prefix("LIBARCHIVE.xattr.") {
                    let trimmed = value.iter().rposition(|byte| *byte != b'=').map_or(0, |last| last + 1);
                    let decoded = BASE64_NOPAD.decode(&value[..trimmed]).ok()?;
                    self.xattr(percent_decoded(name)?, &decoded);
                }
            }
        }
        Some(())
    }

    /// Keeps one attribute; bsdtar says each twice, in two ways.
    pub(super) fn xattr(&mut self, name: Vec<u8>, value: &[u8]) {
        self.xattrs.retain(|known| *known.name != *name);
        self.xattrs.push(Xattr { name: name.into(), value: value.into() });
    }

    pub(super) fn has_xattr(&self, name: &str) -> bool {
        self.xattrs.iter().any(|known| *known.name == *name.as_bytes())
    }

    /// Sorted by name.
    pub(super) fn into_xattrs(self) -> Vec<Xattr> {
        let mut xattrs = self.xattrs;
        xattrs.sort_unstable();
        xattrs
    }
}

/// The first record: `LENGTH KEY=VALUE\n`, the length that of the whole.
fn record(bytes: &[u8]) -> Option<(&[u8], &[u8], &[u8])> {
    let space = bytes.iter().take(20).position(|byte| *byte == b' ')?;
    let len: usize = std::str::from_utf8(&bytes[..space]).ok()?.parse().ok()?;
    let body = bytes.get(space + 1..len)?.strip_suffix(b"\n")?;
    let equals = body.iter().position(|byte| *byte == b'=')?;
    Some((&body[..equals], &body[equals + 1..], &bytes[len..]))
}

/// Writes one record.
pub(in super::super) fn push_record(to: &mut Vec<u8>, key: &[u8], value: &[u8]) {
    let body = key.len() + value.len() + 3;
    // The length counts its own digits.
    let mut len = body + 1;
    while len != body + len.to_string().len() {
        len = body + len.to_string().len();
    }
    to.extend(format!("{len} ").bytes());
    for part in [key, b"=", value, b"\n"] {
        to.extend_from_slice(part);
    }
}

/// Seconds with a fraction, before 1970 with a sign: the fraction counts down then.
fn time(text: &str) -> Option<Mtime> {
    let (whole, fraction) = text.split_once('.').unwrap_or((text, ""));
    let seconds: i64 = whole.parse().ok()?;
    let mut nanoseconds: u32 = 0;
    for place in 0..9 {
        let digit = fraction.as_bytes().get(place).map_or(Some(0), |byte| char::from(*byte).to_digit(10))?;
        nanoseconds = nanoseconds * 10 + digit;
    }
    if whole.starts_with('-') && nanoseconds > 0 {
        return Mtime::new(seconds.checked_sub(1)?, 1_000_000_000 - nanoseconds).ok();
    }
    Mtime::new(seconds, nanoseconds).ok()
}

/// As [`time`] reads it.
pub(in super::super) fn time_text(time: Mtime) -> String {
    match (time.seconds(), time.nanoseconds()) {
        (seconds, 0) => seconds.to_string(),
        (seconds @ 0.., nanoseconds) => format!("{seconds}.{nanoseconds:09}"),
        (-1, nanoseconds) => format!("-0.{:09}", 1_000_000_000 - nanoseconds),
        (seconds, nanoseconds) => format!("{}.{:09}", seconds + 1, 1_000_000_000 - nanoseconds),
    }
}

/// Names that are not among ours describe how one file system stores a file.
fn flags(text: &str) -> InodeFlags {
    let named = text.split(',').filter_map(|name| {
        let name = match name.trim() {
            "simmutable" | "schange" | "uchg" | "immutable" => "schg",
            "sappend" | "uappnd" | "append" => "sappnd",
            name => name,
        };
        FLAG_NAMES.iter().find(|(known, _)| *known == name)
    });
    InodeFlags::kept_of(named.fold(0, |bits, (_, flag)| bits | flag.bits()))
}

/// GNU tar spells the two bytes that it cannot write in a name.
fn gnu_decoded(name: &[u8]) -> Vec<u8> {
    let mut bytes = Vec::with_capacity(name.len());
    let mut rest = name;
    while let Some((&first, behind)) = rest.split_first() {
        let (byte, behind) = match rest {
            [b'%', b'3', b'D', behind @ ..] => (b'=', behind),
            [b'%', b'2', b'5', behind @ ..] => (b'%', behind),
            _ => (first, behind),
        };
        bytes.push(byte);
        rest = behind;
    }
    bytes
}

/// As [`gnu_decoded`] reads it.
pub(in super::super) fn gnu_encoded(name: &[u8]) -> Vec<u8> {
    let mut bytes = Vec::with_capacity(name.len());
    for &byte in name {
        match byte {
            b'=' => bytes.extend(b"%3D"),
            b'%' => bytes.extend(b"%25"),
            byte => bytes.push(byte),
        }
    }
    bytes
}

fn percent_decoded(name: &str) -> Option<Vec<u8>> {
    let mut parts = name.split('%');
    let mut bytes = parts.next()?.as_bytes().to_vec();
    for part in parts {
        bytes.push(u8::from_str_radix(part.get(..2)?, 16).ok()?);
        bytes.extend(&part.as_bytes()[2..]);
    }
    Some(bytes)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn times_are_exact_on_both_sides_of_1970() {
        for (seconds, nanoseconds, text) in [
            (0, 0, "0"),
            (1, 5, "1.000000005"),
            (-1, 999_999_999, "-0.000000001"),
            (-1, 250_000_000, "-0.750000000"),
            (-2, 500_000_000, "-1.500000000"),
            (-2, 0, "-2"),
            (13_569_465_600, 999_999_999, "13569465600.999999999"),
        ] {
            let mtime = Mtime::new(seconds, nanoseconds).unwrap();
            assert_eq!(time_text(mtime), text);
            assert_eq!(time(text), Some(mtime), "{text}");
        }
        assert_eq!(time("1.5"), Mtime::new(1, 500_000_000).ok());
        assert_eq!(time("1.0000000019"), Mtime::new(1, 1).ok());
        for nonsense in ["", "x", "1.x", "1e3", "99999999999999999999"] {
            assert_eq!(time(nonsense), None, "{nonsense}");
        }
    }

    #[test]
    fn a_record_may_hold_any_bytes() {
        let mut bytes = Vec::new();
        for len in [0, 1, 90, 91, 92, 990, 9_990] {
            push_record(&mut bytes, b"SCHILY.xattr.user.x", &vec![b'\n'; len]);
        }
        let mut rest = &bytes[..];
        for len in [0, 1, 90, 91, 92, 990, 9_990] {
            let (key, value, behind) = record(rest).unwrap();
            assert_eq!((key, value.len()), (&b"SCHILY.xattr.user.x"[..], len));
            rest = behind;
        }
        assert!(rest.is_empty());
    }

    #[test]
    fn attributes_come_in_the_spelling_of_either_tool() {
        let mut bytes = Vec::new();
        push_record(&mut bytes, b"LIBARCHIVE.xattr.user.a%3Db", b"AAECCg");
        push_record(&mut bytes, b"SCHILY.xattr.user.a%3Db", &[0, 1, 2, 10]);
        push_record(&mut bytes, b"LIBARCHIVE.xattr.user.%FF", b"AA==");
        push_record(&mut bytes, b"SCHILY.fflags", b"nodump,schg,extents");
        let mut extended = Extended::default();
        extended.read(&bytes).unwrap().unwrap();
        assert_eq!(extended.flags.bits(), InodeFlags::NO_DUMP.bits() | InodeFlags::IMMUTABLE.bits());
        let xattrs: Vec<_> =
            extended.into_xattrs().into_iter().map(|xattr| (xattr.name, xattr.value)).collect();
        let expected = [(&b"user.a=b"[..], &[0, 1, 2, 10][..]), (b"user.\xff", &[0])];
        assert_eq!(xattrs, expected.map(|(name, value)| (name.into(), value.into())));
    }

    #[test]
    fn nonsense_is_named() {
        let mut extended = Extended::default();
        for broken in [&b"5 a=b\n"[..], b"x", b"9999 a=b\n", b"6 a=b ", b"5 ab\n"] {
            assert!(extended.read(broken).is_err(), "{broken:?}");
        }
        let fault = extended.read(b"12 uid=lisa\n").unwrap().unwrap_err();
        assert_eq!(fault.to_string(), "uid is \"lisa\", which cannot be understood");
    }
}
