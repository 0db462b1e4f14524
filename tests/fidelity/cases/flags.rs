//! Inode flags (`chattr`) and projects.

use rustix::fs::IFlags;

use super::*;

pub(super) const PROJECT_INHERIT: IFlags = IFlags::from_bits_retain(0x2000_0000);

const LOST: &[(&str, &str)] = &[("f", "flags")];
const LOST_OF_FOLDER: &[(&str, &str)] = &[("d", "flags")];

pub(super) const CASES: &[Case] = &[
    case("an immutable file", |at| flag(&at.file("f", b"x")?, IFlags::IMMUTABLE)),
    case("an immutable file with two names", |at| {
        let path = at.file("f", b"x")?;
        fs::hard_link(&path, at.path("g"))?;
        flag(&path, IFlags::IMMUTABLE)
    }),
    case("an append-only file", |at| flag(&at.file("f", b"x")?, IFlags::APPEND)),
    case("a file without access times", |at| flag(&at.file("f", b"x")?, IFlags::NOATIME)),
    case("a file that is not dumped", |at| flag(&at.file("f", b"x")?, IFlags::NODUMP)),
    Case {
        name: "a synchronous file",
        holds: &[Ext4, Xfs, Btrfs],
        build: |at| flag(&at.file("f", b"x")?, IFlags::SYNC),
        lost: LOST,
    },
    Case {
        name: "a synchronous folder",
        holds: &[Ext4, Btrfs],
        build: |at| flag(&at.folder("d")?, IFlags::DIRSYNC),
        lost: LOST_OF_FOLDER,
    },
    Case {
        name: "a file that is not copied on write",
        holds: &[Btrfs],
        build: |at| {
            let path = at.file("f", b"")?;
            flag(&path, IFlags::NOCOW)?;
            fs::write(path, harness::Noise::new(2).bytes(300_000))
        },
        lost: LOST,
    },
    Case {
        name: "a folder whose files are not copied on write",
        holds: &[Btrfs],
        build: |at| {
            let inner = at.folder("d")?;
            fs::write(inner.join("copied on write"), b"x")?;
            flag(&inner, IFlags::NOCOW)?;
            fs::write(inner.join("heir"), harness::Noise::new(2).bytes(300_000))
        },
        lost: &[("d", "flags"), ("d/heir", "flags")],
    },
    Case {
        name: "flags of which only some are held",
        holds: &[Ext4, Btrfs],
        build: |at| flag(&at.folder("d")?, IFlags::NODUMP | IFlags::NOATIME | IFlags::DIRSYNC),
        lost: LOST_OF_FOLDER,
    },
    case("flags of a folder, with heirs and others", |at| {
        let inner = at.folder("d")?;
        fs::write(inner.join("other"), b"x")?;
        fs::create_dir(inner.join("other folder"))?;
        flag(&inner, IFlags::NODUMP | IFlags::NOATIME)?;
        fs::write(inner.join("heir"), b"x")?;
        fs::create_dir(inner.join("heir folder"))
    }),
    case("an immutable folder with content", |at| {
        let inner = at.folder("d")?;
        fs::create_dir(inner.join("e"))?;
        fs::write(inner.join("e/f"), b"x")?;
        fs::write(inner.join("f"), harness::Noise::new(3).bytes(300_000))?;
        flag(&inner.join("e"), IFlags::IMMUTABLE)?;
        flag(&inner, IFlags::IMMUTABLE)
    }),
    case("an append-only folder with content", |at| {
        let inner = at.folder("d")?;
        fs::write(inner.join("f"), b"x")?;
        fs::hard_link(inner.join("f"), at.path("g"))?;
        flag(&inner, IFlags::APPEND)
    }),
    case("flags of a file with attributes and a time", |at| {
        let path = at.owned("f", 0o4755, 1, 2)?;
        xattr(&path, b"user.a", b"b")?;
        time(&path, 1, 2)?;
        flag(&path, IFlags::IMMUTABLE | IFlags::NODUMP)
    }),
    Case {
        name: "projects of a file and a folder",
        holds: &[Xfs],
        build: |at| {
            harness::set_project(&File::open(at.file("f", b"x")?)?, 42)?;
            harness::set_project(&File::open(at.file("empty", b"")?)?, u32::MAX - 1)?;
            harness::set_project(&File::open(at.folder("d")?)?, 43)
        },
        lost: &[("d", "project"), ("empty", "project"), ("f", "project")],
    },
    Case {
        name: "a folder that gives its project on",
        holds: &[Ext4, Xfs],
        build: |at| {
            let inner = at.folder("d")?;
            flag(&inner, PROJECT_INHERIT)?;
            fs::create_dir(inner.join("heir"))?;
            fs::write(inner.join("heir/f"), b"x")?;
            fs::hard_link(inner.join("heir/f"), inner.join("twice"))
        },
        lost: &[("d", "flags"), ("d/heir", "flags")],
    },
    Case {
        name: "heirs of a project, and others",
        holds: &[Xfs],
        build: |at| {
            let inner = at.folder("d")?;
            fs::write(inner.join("before"), b"x")?;
            harness::set_project(&File::open(&inner)?, 44)?;
            flag(&inner, PROJECT_INHERIT)?;
            fs::write(inner.join("heir"), harness::Noise::new(6).bytes(300_000))?;
            fs::create_dir(inner.join("heirs"))?;
            fs::write(inner.join("heirs/heir"), b"")?;
            flag_off(&inner.join("heirs"), PROJECT_INHERIT)?;
            flag_off(&inner, PROJECT_INHERIT)
        },
        lost: &[("d", "project"), ("d/heir", "project"), ("d/heirs", "project"), ("d/heirs/heir", "project")],
    },
];

fn flag_off(path: &Path, flags: IFlags) -> io::Result<()> {
    let file = File::open(path)?;
    Ok(ioctl_setflags(&file, ioctl_getflags(&file)? - flags)?)
}
