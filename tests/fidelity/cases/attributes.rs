//! Owners, modes, times.

use rustix::fs::FileType;

use super::*;

pub(super) const CASES: &[Case] = &[
    case("a set-user-id file of another", |at| at.owned("f", 0o4755, 1234, 5678).map(drop)),
    case("a set-group-id file of another", |at| at.owned("f", 0o2755, 1234, 5678).map(drop)),
    case("a sticky file", |at| at.owned("f", 0o1644, 0, 0).map(drop)),
    case("every mode bit", |at| at.owned("f", 0o7777, 7, 7).map(drop)),
    case("a file of mode 0000", |at| at.owned("f", 0, 0, 0).map(drop)),
    case("a folder of mode 0000 with content", |at| {
        let inner = at.folder("d")?;
        fs::write(inner.join("f"), b"inside")?;
        fs::create_dir(inner.join("e"))?;
        chmod(&inner, 0)
    }),
    case("a read-only folder with content", |at| {
        let inner = at.folder("d")?;
        fs::write(inner.join("f"), b"inside")?;
        chmod(&inner, 0o555)
    }),
    case("a set-group-id folder of another with content", |at| {
        let inner = at.folder("d")?;
        lchown(&inner, Some(12), Some(3456))?;
        chmod(&inner, 0o2775)?;
        fs::write(inner.join("of its group"), b"")?;
        fs::create_dir(inner.join("set-group-id too"))?;
        fs::create_dir(inner.join("of root's"))?;
        lchown(inner.join("of root's"), Some(0), Some(0))?;
        chmod(&inner.join("of root's"), 0o755)
    }),
    case("a sticky folder", |at| chmod(&at.folder("d")?, 0o1777)),
    case("owner 65535", |at| at.owned("f", 0o644, 65_535, 65_535).map(drop)),
    case("owner 65534", |at| at.owned("f", 0o644, 65_534, 65_534).map(drop)),
    case("owner 2147483648", |at| at.owned("f", 0o644, 1 << 31, 1 << 31).map(drop)),
    case("owner 4294967294", |at| at.owned("f", 0o4755, u32::MAX - 1, u32::MAX - 1).map(drop)),
    case("owner of a folder", |at| lchown(at.folder("d")?, Some(77), Some(88))),
    case("owner of a fifo and of a device", |at| {
        node(&at.path("fifo"), FileType::Fifo, 0)?;
        node(&at.path("null"), FileType::CharacterDevice, rustix::fs::makedev(1, 3))?;
        for name in ["fifo", "null"] {
            lchown(at.path(name), Some(5), Some(6))?;
            chmod(&at.path(name), 0o6664)?;
        }
        Ok(())
    }),
    case("999999999 nanoseconds", |at| time(&at.file("f", b"x")?, 1_700_000_000, 999_999_999)),
    case("one nanosecond", |at| time(&at.file("f", b"x")?, 1_700_000_000, 1)),
    case("a time before 1970", |at| time(&at.file("f", b"x")?, -86_400, 500_000_000)),
    case("a time of 1902", |at| time(&at.file("f", b"x")?, -2_140_000_000, 1)),
    case("the second 0", |at| time(&at.file("f", b"x")?, 0, 0)),
    case("a time after 2038", |at| time(&at.file("f", b"x")?, 1 << 31, 1)),
    case("a time after 2106", |at| time(&at.file("f", b"x")?, 1 << 32, 2)),
    Case {
        name: "a time after 2500",
        holds: &[Btrfs, Tmpfs],
        build: |at| time(&at.file("f", b"x")?, 16_800_000_000, 0),
        lost: &[("f", "time")],
    },
    Case {
        name: "times before 1901",
        holds: &[Btrfs, Tmpfs],
        build: |at| {
            time(&at.file("f", b"x")?, -3_000_000_000, 7)?;
            std::os::unix::fs::symlink("x", at.path("link"))?;
            time(&at.path("link"), -3_000_000_000, 7)?;
            time(&at.folder("d")?, -3_000_000_000, 7)
        },
        lost: &[("d", "time"), ("f", "time"), ("link", "time")],
    },
    case("the time of a folder with content", |at| {
        let inner = at.folder("d")?;
        fs::write(inner.join("f"), b"inside")?;
        fs::create_dir(inner.join("e"))?;
        time(&inner.join("e"), 11, 12)?;
        time(&inner, 13, 14)
    }),
    case("the time of a symlink", |at| {
        std::os::unix::fs::symlink("x", at.path("link"))?;
        time(&at.path("link"), 15, 16)
    }),
    case("the times of a fifo and a device", |at| {
        node(&at.path("fifo"), FileType::Fifo, 0)?;
        node(&at.path("null"), FileType::CharacterDevice, rustix::fs::makedev(1, 3))?;
        time(&at.path("fifo"), 17, 18)?;
        time(&at.path("null"), -19, 20)
    }),
    case("the root itself", |at| {
        chmod(&at.root, 0o1751)?;
        lchown(&at.root, Some(3), Some(4))
    }),
];
