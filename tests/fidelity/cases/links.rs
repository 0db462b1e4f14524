//! Links, devices, fifos, sockets.

use std::os::unix::fs::symlink;
use std::os::unix::net::UnixListener;

use rustix::fs::{FileType, makedev};

use super::*;

/// A hard link of `name` in another folder of the case, which sorts before it, and one after.
fn twice(at: &At, name: &str) -> io::Result<()> {
    for folder in ["a", "z"] {
        let folder = at.folder(folder)?;
        fs::hard_link(at.path(name), folder.join(name))?;
    }
    Ok(())
}

pub(super) const CASES: &[Case] = &[
    case("a hard link of a file", |at| {
        at.file("f", b"three names")?;
        twice(at, "f")
    }),
    case("a hard link of an empty file", |at| {
        at.file("f", b"")?;
        twice(at, "f")
    }),
    case("a hard link of a large file", |at| {
        at.file("f", &harness::Noise::new(9).bytes(3 << 20))?;
        twice(at, "f")
    }),
    case("a hard link of a symlink", |at| {
        symlink("/outside/of/all", at.path("link"))?;
        twice(at, "link")
    }),
    case("a hard link of a fifo", |at| {
        node(&at.path("fifo"), FileType::Fifo, 0)?;
        twice(at, "fifo")
    }),
    case("a hard link of a device", |at| {
        node(&at.path("null"), FileType::CharacterDevice, makedev(1, 3))?;
        twice(at, "null")
    }),
    case("a hard link with attributes and a capability", |at| {
        let path = at.file("f", b"x")?;
        twice(at, "f")?;
        chmod(&path, 0o4751)?;
        xattr(&path, b"security.capability", xattrs::CAPABILITY_2)
    }),
    case("a hard link in the root and one below", |at| {
        let path = at.file("f", b"names at every depth")?;
        fs::hard_link(&path, at.root.join("a first name of a chain"))?;
        fs::hard_link(&path, at.root.join("zz a last name of a chain"))
    }),
    case("a hard link whose other name is outside", |at| {
        fs::hard_link(at.file("f", b"x")?, at.outside.join("another name"))
    }),
    case("the same bytes, not linked", |at| {
        let bytes = harness::Noise::new(11).bytes(100_000);
        ["one", "two", "three"].iter().try_for_each(|name| at.file(name, &bytes).map(drop))
    }),
    case("a symlink to nothing", |at| symlink("no/such/file", at.path("link"))),
    case("a symlink to an absolute path", |at| symlink("/etc/passwd", at.path("link"))),
    case("a symlink upwards", |at| symlink("../../../../..", at.path("link"))),
    case("a symlink to itself", |at| symlink("link", at.path("link"))),
    case("a symlink to a folder", |at| {
        at.folder("d")?;
        symlink("d", at.path("link"))?;
        symlink("d/", at.path("with a slash"))
    }),
    case("a symlink that is no UTF-8", |at| symlink(bytes(b"\xff\xfe\n"), at.path(bytes(b"l\xff")))),
    case("a symlink of 1023 bytes", |at| symlink("t".repeat(1023), at.path("link"))),
    Case {
        name: "symlinks of 4095 bytes",
        holds: &[Ext4, Btrfs, Tmpfs],
        build: |at| {
            symlink("t".repeat(4095), at.path("link"))?;
            fs::hard_link(at.path("link"), at.path("twice"))
        },
        lost: &[("link", MISSING), ("twice", MISSING)],
    },
    case("a symlink of another", |at| {
        symlink("x", at.path("link"))?;
        lchown(at.path("link"), Some(4_000_000_000), Some(70_000))
    }),
    case("devices", |at| {
        node(&at.path("null"), FileType::CharacterDevice, makedev(1, 3))?;
        node(&at.path("disk"), FileType::BlockDevice, makedev(259, 70_000))
    }),
    Case {
        name: "device numbers at their end",
        holds: &[Ext4, Btrfs, Tmpfs],
        build: |at| {
            node(&at.path("char"), FileType::CharacterDevice, makedev(4095, 1_048_575))?;
            node(&at.path("disk"), FileType::BlockDevice, makedev(4095, 1_048_575))?;
            fs::hard_link(at.path("disk"), at.path("disk, twice"))
        },
        lost: &[("char", MISSING), ("disk", MISSING), ("disk, twice", MISSING)],
    },
    case("device 0:0", |at| {
        node(&at.path("whiteout"), FileType::CharacterDevice, 0)?;
        node(&at.path("block"), FileType::BlockDevice, 0)
    }),
    case("a fifo", |at| node(&at.path("fifo"), FileType::Fifo, 0)),
    Case {
        name: "a socket",
        holds: &[],
        build: |at| UnixListener::bind(at.path("socket")).map(drop),
        lost: &[("socket", MISSING)],
    },
];
