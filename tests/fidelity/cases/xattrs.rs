//! Extended attributes: of users, of root, access control lists, capabilities.

use harness::Noise;
use rustix::fs::FileType;

use super::*;

/// `cap_net_raw+ep`.
pub(super) const CAPABILITY_2: &[u8] = &[1, 0, 0, 2, 0, 32, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0];
/// The same for the root of a user namespace, user 100000 here.
const CAPABILITY_3: &[u8] = &[1, 0, 0, 3, 0, 32, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0xa0, 0x86, 1, 0];

pub(super) const ACCESS: &[u8] = b"system.posix_acl_access";
pub(super) const DEFAULT: &[u8] = b"system.posix_acl_default";

/// An access control list: of the owner, user 1234, the group, group 5678, the mask, all others.
pub(super) fn acl(permissions: [u16; 6]) -> Vec<u8> {
    let mut bytes = 2_u32.to_le_bytes().to_vec();
    let who = [(1_u16, u32::MAX), (2, 1234), (4, u32::MAX), (8, 5678), (16, u32::MAX), (32, u32::MAX)];
    for ((tag, id), permissions) in who.into_iter().zip(permissions) {
        bytes.extend_from_slice(&tag.to_le_bytes());
        bytes.extend_from_slice(&permissions.to_le_bytes());
        bytes.extend_from_slice(&id.to_le_bytes());
    }
    bytes
}

pub(super) const CASES: &[Case] = &[
    case("a user's attribute of a file", |at| xattr(&at.file("f", b"x")?, b"user.a", b"\0value\xff")),
    case("a user's attribute of a folder", |at| xattr(&at.folder("d")?, b"user.a", b"value")),
    case("a user's attribute of an empty file", |at| xattr(&at.file("f", b"")?, b"user.a", b"value")),
    case("a user's attribute of a read-only file", |at| {
        let path = at.file("f", b"x")?;
        xattr(&path, b"user.a", b"value")?;
        chmod(&path, 0o444)
    }),
    case("a trusted attribute of a file", |at| xattr(&at.file("f", b"x")?, b"trusted.a", b"value")),
    case("a trusted attribute of a symlink", |at| {
        std::os::unix::fs::symlink("x", at.path("link"))?;
        xattr(&at.path("link"), b"trusted.a", b"value")
    }),
    case("trusted attributes of a fifo and a device", |at| {
        node(&at.path("fifo"), FileType::Fifo, 0)?;
        node(&at.path("null"), FileType::CharacterDevice, rustix::fs::makedev(1, 3))?;
        xattr(&at.path("fifo"), b"trusted.a", b"value")?;
        xattr(&at.path("null"), b"trusted.a", b"value")
    }),
    case("security attributes of a file, a folder and a symlink", |at| {
        std::os::unix::fs::symlink("x", at.path("link"))?;
        xattr(&at.path("link"), b"security.a", b"value")?;
        xattr(&at.file("f", b"x")?, b"security.selinux", b"system_u:object_r:bin_t:s0\0")?;
        xattr(&at.folder("d")?, b"security.a", b"value")
    }),
    case("an attribute name of odd bytes", |at| xattr(&at.file("f", b"x")?, b"user.\xff\n =\"", b"value")),
    case("an attribute name of 255 bytes", |at| {
        xattr(&at.file("f", b"x")?, &[&b"user."[..], &[b'n'; 250]].concat(), b"value")
    }),
    case("an attribute without a value", |at| xattr(&at.file("f", b"x")?, b"user.empty", b"")),
    case("attributes in the other order", |at| {
        let path = at.file("f", b"x")?;
        ["user.z", "user.m", "user.a", "trusted.b"]
            .iter()
            .try_for_each(|name| xattr(&path, name.as_bytes(), name.as_bytes()))
    }),
    case("an attribute of 3900 bytes", |at| {
        xattr(&at.file("f", b"x")?, b"user.long", &Noise::new(3).bytes(3900))
    }),
    Case {
        name: "an attribute of 65536 bytes",
        holds: &[Xfs, Tmpfs],
        build: |at| xattr(&at.file("f", b"x")?, b"user.long", &Noise::new(3).bytes(65_536)),
        lost: &[("f", "extended attributes")],
    },
    Case {
        // Of an overlay above this file system; a mark of its own to whoever has that mounted.
        name: "attributes of an overlay",
        holds: &[],
        build: |at| xattr(&at.folder("d")?, b"trusted.overlay.opaque", b"y"),
        lost: &[("d", "extended attributes")],
    },
    Case {
        name: "200 attributes of 100 bytes",
        holds: &[Xfs, Btrfs, Tmpfs],
        build: |at| {
            let path = at.file("f", b"x")?;
            (0..200_u64).try_for_each(|number| {
                xattr(&path, format!("user.{number}").as_bytes(), &Noise::new(number).bytes(100))
            })
        },
        lost: &[("f", "extended attributes")],
    },
    case("an access control list", |at| {
        let path = at.file("f", b"x")?;
        xattr(&path, ACCESS, &acl([6, 4, 4, 6, 6, 0]))?;
        lchown(&path, Some(12), Some(34))
    }),
    case("a mask that is not the group's permissions", |at| {
        let path = at.file("f", b"x")?;
        chmod(&path, 0o600)?;
        xattr(&path, ACCESS, &acl([6, 7, 0, 4, 3, 1]))
    }),
    case("access control lists of a set-id file and of a fifo", |at| {
        node(&at.path("fifo"), FileType::Fifo, 0)?;
        for path in [at.owned("f", 0o6755, 12, 34)?, at.path("fifo")] {
            xattr(&path, ACCESS, &acl([7, 5, 5, 5, 5, 5]))?;
        }
        Ok(())
    }),
    case("an access control list of a folder", |at| {
        xattr(&at.folder("d")?, ACCESS, &acl([7, 5, 5, 7, 7, 0]))
    }),
    case("a default list, with heirs", |at| {
        let inner = at.folder("d")?;
        xattr(&inner, DEFAULT, &acl([7, 5, 4, 6, 7, 1]))?;
        fs::write(inner.join("f"), b"x")?;
        fs::create_dir(inner.join("e"))?;
        fs::create_dir(inner.join("e/e"))?;
        fs::write(inner.join("e/e/f"), b"x")?;
        std::os::unix::fs::symlink("x", inner.join("link"))?;
        node(&inner.join("fifo"), FileType::Fifo, 0)
    }),
    case("a default list, with children that have none", |at| {
        let inner = at.folder("d")?;
        fs::write(inner.join("f"), b"x")?;
        fs::write(inner.join("empty"), b"")?;
        fs::create_dir(inner.join("e"))?;
        node(&inner.join("fifo"), FileType::Fifo, 0)?;
        xattr(&inner, DEFAULT, &acl([7, 5, 4, 6, 7, 1]))
    }),
    case("a default list of the root", |at| xattr(&at.root, DEFAULT, &acl([7, 5, 5, 5, 5, 5]))),
    case("a capability", |at| xattr(&at.file("f", b"x")?, b"security.capability", CAPABILITY_2)),
    case("a capability of a namespace's root", |at| {
        xattr(&at.file("f", b"x")?, b"security.capability", CAPABILITY_3)
    }),
    case("a capability of a file of another with set-id bits and a list", |at| {
        let path = at.owned("f", 0o6755, 1, 1)?;
        xattr(&path, ACCESS, &acl([7, 5, 5, 5, 5, 5]))?;
        xattr(&path, b"security.capability", CAPABILITY_2)
    }),
    case("a capability of a large file", |at| {
        let path = at.file("f", &Noise::new(4).bytes(3_000_000))?;
        xattr(&path, b"security.capability", CAPABILITY_2)
    }),
];
