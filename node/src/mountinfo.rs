//! What is mounted where: `/proc/self/mountinfo` (proc(5)).

use std::ffi::OsString;
use std::os::unix::ffi::OsStringExt;
use std::path::PathBuf;

/// One mount.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Mount {
    /// Where it is seen.
    pub(crate) point: PathBuf,
    /// Which directory of the file system is seen there.
    pub(crate) root: PathBuf,
    /// The file system's type.
    pub(crate) kind: String,
}

/// All mounts, later ones over earlier ones. Empty where the kernel does not say.
pub(crate) fn read() -> Vec<Mount> {
    parse(&std::fs::read("/proc/self/mountinfo").unwrap_or_default())
}

fn parse(text: &[u8]) -> Vec<Mount> {
    let mount = |line: &[u8]| {
        let mut fields = line.split(|byte| *byte == b' ');
        let (root, point) = (path(fields.nth(3)?), path(fields.next()?));
        let kind = fields.skip_while(|field| *field != b"-").nth(1)?;
        Some(Mount { point, root, kind: String::from_utf8_lossy(kind).into_owned() })
    };
    text.split(|byte| *byte == b'\n').filter_map(mount).collect()
}

/// Undoes the kernel's `\ooo` for blanks and backslashes.
fn path(field: &[u8]) -> PathBuf {
    let mut bytes = Vec::with_capacity(field.len());
    let mut left = field;
    while let Some((&byte, rest)) = left.split_first() {
        let octal = rest.get(..3).filter(|_| byte == b'\\').and_then(|digits| {
            let digits = std::str::from_utf8(digits).ok()?;
            u8::from_str_radix(digits, 8).ok()
        });
        bytes.push(octal.unwrap_or(byte));
        left = if octal.is_some() { &rest[3..] } else { rest };
    }
    PathBuf::from(OsString::from_vec(bytes))
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::path::Path;

    #[test]
    fn mounts_are_read_with_their_blanks() {
        let text = b"36 35 98:0 /x /mnt/a\\040b rw,noatime master:1 - ext4 /dev/root rw\n\
            22 1 0:5 / /dev rw - devtmpfs x rw\nnonsense\n";
        let mounts = parse(text);
        assert_eq!(mounts.len(), 2);
        assert_eq!(
            (mounts[0].point.as_path(), mounts[0].root.as_path()),
            (Path::new("/mnt/a b"), Path::new("/x"))
        );
        assert_eq!((mounts[0].kind.as_str(), mounts[1].kind.as_str()), ("ext4", "devtmpfs"));
    }
}
