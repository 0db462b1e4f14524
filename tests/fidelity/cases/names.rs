//! Names, paths, depth, and what is mounted.

use harness::Disk;
use rustix::fs::{OFlags, mkdirat, openat, symlinkat};

use super::*;

fn named(at: &At, names: &[&[u8]]) -> io::Result<()> {
    names.iter().try_for_each(|name| at.file(bytes(name), name).map(drop))
}

/// So many folders in each other, with a file and a link in each.
fn deep(at: &At, name: &str, levels: usize) -> io::Result<()> {
    let mut folder = File::open(&at.folder)?.into();
    for _ in 0..levels {
        mkdirat(&folder, name, Mode::RWXU)?;
        folder = openat(&folder, name, OFlags::RDONLY | OFlags::DIRECTORY, Mode::empty())?;
        symlinkat("../x", &folder, "link")?;
        let file = openat(&folder, "file", OFlags::WRONLY | OFlags::CREATE, Mode::RUSR | Mode::WUSR)?;
        rustix::io::write(&file, b"deep")?;
        rustix::fs::fsetxattr(&file, "user.a", b"deep", XattrFlags::CREATE)?;
    }
    Ok(())
}

pub(super) const CASES: &[Case] = &[
    case("a name of one byte", |at| named(at, &[b"n", b"\x01", b"\x7f"])),
    case("names of 255 bytes", |at| {
        fs::create_dir(at.path("d".repeat(255)))?;
        std::os::unix::fs::symlink("x", at.path("l".repeat(255)))?;
        named(at, &[&[b'n'; 255], &[0xff; 255]])
    }),
    case("a name with a newline", |at| named(at, &[b"new\nline", b"\n", b"tab\t\r"])),
    case("a name that is no UTF-8", |at| named(at, &[b"\xff\xfe", b"\x80"])),
    case("composed and decomposed names", |at| {
        named(at, &["\u{e9}", "e\u{301}", "\u{c5}", "\u{212b}", "A\u{30a}"].map(str::as_bytes))
    }),
    case("names that differ in case", |at| {
        named(at, &[b"readme", b"README", b"Readme", "ß".as_bytes(), b"SS"])
    }),
    case("a name with a leading dash", |at| named(at, &[b"-rf", b"--", b"-"])),
    case("a name of blanks", |at| named(at, &[b" ", b" leading", b"trailing "])),
    case("a name with a backslash", |at| named(at, &[b"\\", b"a\\b", b"\\n"])),
    case("names of a shell", |at| named(at, &[b"*", b"?", b"[a]", b"$HOME", b"`x`", b"\"'", b"~"])),
    case("names of dots", |at| named(at, &[b"...", b".hidden", b"..x"])),
    case("names on both sides of a slash", |at| {
        at.folder("a")?;
        named(at, &[b"a/z", b"a-", b"a.b", b"a0", b"a "])
    }),
    case("a path longer than any call takes", |at| deep(at, &"p".repeat(250), 24)),
    case("300 folders in each other", |at| deep(at, "d", 300)),
    case("a folder of 3000 entries", |at| {
        (0..3000).try_for_each(|number| at.file(format!("entry {number}"), b"").map(drop))
    }),
    case("a folder that looks like lost+found", |at| {
        let path = at.root.join("lost+found");
        fs::create_dir(&path)?;
        fs::write(path.join("#12"), b"found")?;
        chmod(&path, 0o700)
    }),
    case("a mount point", |at| {
        let point = at.folder("mounted")?;
        Disk::mount(&point, None);
        fs::write(point.join("not captured"), b"x")?;
        chmod(&point, 0o1777)?;
        lchown(&point, Some(3), Some(4))?;
        time(&point, 5, 6)
    }),
    case("a folder bound into the tree", |at| {
        let elsewhere = at.outside.join("bound");
        fs::create_dir(&elsewhere)?;
        fs::write(elsewhere.join("not captured"), b"x")?;
        chmod(&elsewhere, 0o711)?;
        Disk::mount(&at.folder("bound")?, Some(&elsewhere));
        Ok(())
    }),
];
