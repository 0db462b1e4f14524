//! Trees in archives: the same image as of the tree that the archive's own tools unpack.
#![expect(clippy::unwrap_used, reason = "a test")]

#[path = "tree/blocks.rs"]
mod blocks;
#[path = "tree/fixture.rs"]
mod fixture;
#[path = "archive/layout.rs"]
mod layout;
#[path = "tree/snapshot.rs"]
mod snapshot;

use std::fs::{self, File};
use std::os::unix::fs::{PermissionsExt, symlink};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use blocks::Blocks;
use fixture::{Scratch, is_root, make_tree, noise, set_time};
use layout::{Layer, Layout};
use shoal_node::tree::archive::Archive;
use shoal_node::tree::capture::{CaptureOptions, Captured, capture, capture_archive};
use shoal_node::tree::exclude::Excludes;
use shoal_node::tree::export::export_tar;
use snapshot::snapshot;

/// GNU tar, with all that it can keep.
const KEEP: [&str; 5] =
    ["--xattrs", "--xattrs-include=*", "--acls", "--numeric-owner", "--warning=no-file-ignored"];

fn run(program: &str, arguments: &[&str]) {
    let done = Command::new(program).args(arguments).output().unwrap();
    assert!(done.status.success(), "{program} {arguments:?}: {}", String::from_utf8_lossy(&done.stderr));
}

fn tar(arguments: &[&str]) {
    run("tar", &[arguments, &KEEP].concat());
}

fn text(path: &Path) -> &str {
    path.to_str().unwrap()
}

fn unpacked(scratch: &Scratch, name: &str, archive: &Path) -> PathBuf {
    let dir = scratch.dir(name);
    tar(&["-xpf", text(archive), "-C", text(&dir)]);
    dir
}

fn image(captured: &Captured) -> String {
    captured.report.image.clone()
}

fn of_directory(top: &Path) -> Captured {
    of_directory_into(top, &Blocks::default())
}

fn of_directory_into(top: &Path, blocks: &Blocks) -> Captured {
    capture(top, &CaptureOptions::default(), blocks, &()).unwrap()
}

fn of_archive(archive: &Archive, blocks: &Blocks) -> Captured {
    capture_archive(archive, &CaptureOptions::default(), blocks, &()).unwrap()
}

fn opened(path: &Path, scratch: &Scratch) -> Archive {
    Archive::open(path, None, &scratch.dir("scratch")).unwrap_or_else(|error| panic!("{error}"))
}

fn tree(scratch: &Scratch) -> PathBuf {
    let source = scratch.dir("source");
    make_tree(&source);
    if !is_root() {
        // Nobody else may read it.
        fs::set_permissions(source.join("a/min+1"), fs::Permissions::from_mode(0o600)).unwrap();
    }
    source
}

#[test]
fn a_tar_in_any_format_is_the_image_of_what_it_unpacks_to() {
    let scratch = Scratch::new();
    let source = tree(&scratch);
    let archive = scratch.0.path().join("x.tar");
    for format in [
        &["--format=pax"][..],
        &["--format=pax", "-S", "--sparse-version=1.0"],
        &["--format=pax", "-S", "--sparse-version=0.1"],
        &["--format=pax", "-S", "--sparse-version=0.0"],
        &["--format=gnu", "-S"],
        &["--format=oldgnu", "-S"],
        &["--format=pax", "-S", "-z"],
        &["--format=pax", "-S", "-J"],
        &["--format=gnu", "-S", "--zstd"],
    ] {
        // Without -S, a hole of 8 GiB is as many zeros.
        let left_out: &[&str] =
            if format.contains(&"-S") { &[] } else { &["--exclude=./hole", "--exclude=./sparse"] };
        // These formats have no room for attributes.
        let keep: &[&str] = if format.contains(&"--format=pax") { &KEEP } else { &["--numeric-owner"] };
        run("tar", &[&["-cf", text(&archive), "-C", text(&source)], left_out, format, keep, &["."]].concat());
        let dir = scratch.dir(&format!("unpacked{}", format.concat()));
        run("tar", &[&["-xpf", text(&archive), "-C", text(&dir)], keep].concat());
        let blocks = Blocks::default();
        let captured = of_archive(&opened(&archive, &scratch), &blocks);
        let expected = of_directory(&dir);
        if image(&captured) != image(&expected) {
            let target = scratch.dir("target");
            blocks.apply(&blocks.manifest(&captured.root), &target).unwrap();
            assert_eq!(snapshot(&target), snapshot(&dir), "{format:?}");
            panic!("{format:?}: another image of the same tree");
        }
    }
}

#[test]
fn a_tar_of_everything_installs_as_the_tree_that_it_was_made_of() {
    let scratch = Scratch::new();
    let (source, target) = (tree(&scratch), scratch.dir("target"));
    let archive = scratch.0.path().join("x.tar");
    tar(&["-cf", text(&archive), "-C", text(&source), "--format=pax", "-S", "."]);
    let blocks = Blocks::default();
    let captured = of_archive(&opened(&archive, &scratch), &blocks);
    let report = blocks.apply(&blocks.manifest(&captured.root), &target).unwrap();
    assert!(report.losses.listed.is_empty(), "{:?}", report.losses);
    let (mut expected, found) = (snapshot(&source), snapshot(&target));
    // What GNU tar has no words for: flags, and other names of fifos and devices.
    expected.retain(|path, said| {
        let lost = ["fifo", "zz-fifo", "null", "zz-null", "a/b/large", "a-/large", "a-/x", "empty", "sgid"];
        if lost.iter().any(|lost| Path::new(lost) == path) {
            return false;
        }
        assert_eq!(found.get(path), Some(&*said), "{}", path.display());
        true
    });
    assert!(expected.len() > 20);
}

#[test]
fn a_tar_through_a_pipe_is_the_same_image_and_leaves_nothing_behind() {
    let scratch = Scratch::new();
    let source = tree(&scratch);
    let archive = scratch.0.path().join("x.tar");
    tar(&["-cf", text(&archive), "-C", text(&source), "--format=pax", "-S", "."]);
    let from_file = image(&of_archive(&opened(&archive, &scratch), &Blocks::default()));
    let mut zstd = Command::new("zstd");
    zstd.args(["-q", "-c"]).arg(&archive).stdout(Stdio::piped());
    let mut zstd = zstd.spawn().unwrap();
    let pipe = zstd.stdout.take().unwrap();
    let path = PathBuf::from(format!("/proc/self/fd/{}", std::os::fd::AsRawFd::as_raw_fd(&pipe)));
    let archive = opened(&path, &scratch);
    assert_eq!(image(&of_archive(&archive, &Blocks::default())), from_file);
    assert_eq!(fs::read_dir(scratch.dir("scratch")).unwrap().count(), 0, "it has no name");
    assert!(zstd.wait().unwrap().success());
}

#[test]
fn excludes_count_in_archives_too() {
    let scratch = Scratch::new();
    let source = tree(&scratch);
    let archive = scratch.0.path().join("x.tar");
    tar(&["-cf", text(&archive), "-C", text(&source), "--format=pax", "-S", "."]);
    let dir = unpacked(&scratch, "unpacked", &archive);
    // The first name of a file with several is among them.
    let excludes = Excludes::new(["/a/b/", "one", "/links/*"]).unwrap();
    let options = CaptureOptions { excludes, ..CaptureOptions::default() };
    let from_archive =
        capture_archive(&opened(&archive, &scratch), &options, &Blocks::default(), &()).unwrap();
    let from_directory = capture(&dir, &options, &Blocks::default(), &()).unwrap();
    assert_eq!(image(&from_archive), image(&from_directory));
    assert_eq!(from_archive.report.excluded, from_directory.report.excluded);
}

#[test]
fn an_exported_tar_is_the_same_image_again_and_unpacks_to_the_same_tree() {
    let scratch = Scratch::new();
    let source = tree(&scratch);
    let blocks = Blocks::default();
    let captured = of_directory_into(&source, &blocks);
    let manifest = blocks.manifest(&captured.root);
    let write = || {
        let mut bytes = Vec::new();
        let mut read = |piece| Ok(blocks.raw(manifest.content().piece(piece).cid));
        let said = export_tar(&manifest, &mut read, &mut bytes).unwrap();
        assert_eq!(said, bytes.len() as u64);
        bytes
    };
    let bytes = write();
    assert!(bytes == write(), "the same image is the same tar");
    let path = scratch.0.path().join("exported.tar");
    fs::write(&path, bytes).unwrap();
    let again = of_archive(&opened(&path, &scratch), &Blocks::default());
    assert_eq!(image(&again), image(&captured));

    let dir = unpacked(&scratch, "unpacked", &path);
    let (mut expected, found) = (snapshot(&source), snapshot(&dir));
    // Flags, which GNU tar does not set.
    let flagged = ["a/b/large", "a-/large", "a-/x", "empty", "sgid"];
    expected.retain(|path, _| !flagged.iter().any(|flagged| Path::new(flagged) == path));
    for (path, said) in &expected {
        assert_eq!(found.get(path), Some(said), "{}", path.display());
    }
}

/// A tree for each layer: what it adds, and by markers what it takes away.
fn layers(scratch: &Scratch) -> Vec<PathBuf> {
    let layers: Vec<PathBuf> = (1..=4).map(|number| scratch.dir(&format!("layer {number}"))).collect();
    let file = |layer: usize, path: &str, bytes: &[u8]| {
        let path = layers[layer - 1].join(path);
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        fs::write(path, bytes).unwrap();
    };
    for path in [
        "etc/passwd",
        "etc/conf.d/a",
        "etc/conf.d/b",
        "usr/lib/x.so",
        "var/cache/deep/er/file",
        "opt/old/file",
    ] {
        file(1, path, path.as_bytes());
    }
    file(1, "to-directory", b"becomes a directory");
    file(1, "to-file/inside", b"becomes a file");
    file(1, "usr/bin/tool", &noise("tool", 300_000));
    fs::hard_link(layers[0].join("usr/bin/tool"), layers[0].join("usr/bin/alias")).unwrap();
    symlink("usr/lib", layers[0].join("lib")).unwrap();
    // A file taken away, a directory, what is in a directory, and what never was there.
    for marker in ["etc/.wh.passwd", "opt/.wh.old", "var/.wh..wh..opq", "etc/.wh.never", "usr/.wh..wh.plnk"] {
        file(2, marker, b"");
    }
    file(2, "etc/conf.d/.wh.a", b"");
    file(2, "etc/conf.d/c", b"c");
    file(2, "var/new", b"stays");
    // One of two names of a file goes, the other one is another file now.
    file(2, "usr/bin/.wh.alias", b"");
    file(3, "usr/bin/tool", b"smaller");
    file(3, "opt/old/again", b"back, without what was in it");
    file(3, "to-directory/inside", b"x");
    file(3, "to-file", b"x");
    // Taken away and put back at once.
    file(3, "etc/.wh.conf.d", b"");
    file(3, "etc/conf.d/only", b"this");
    file(4, "usr/.wh..wh..opq", b"");
    file(4, "usr/share/doc", b"doc");
    for (number, layer) in layers.iter().enumerate() {
        let found = Command::new("find").arg(layer).arg("-print0").output().unwrap();
        for path in found.stdout.split(|byte| *byte == 0).filter(|path| !path.is_empty()) {
            set_time(Path::new(std::str::from_utf8(path).unwrap()), 1_000_000 + number as i64, 7);
        }
    }
    layers
}

/// As a tool without any cleverness does it: for each layer remove what its markers name, then unpack the rest.
fn laid_by_hand(scratch: &Scratch, layers: &[PathBuf]) -> PathBuf {
    let target = scratch.dir("by hand");
    for layer in layers {
        let mut markers = Command::new("find");
        let listed = markers.arg(".").args(["-name", ".wh.*"]).current_dir(layer).output().unwrap();
        for marker in String::from_utf8(listed.stdout).unwrap().lines() {
            let (dir, name) = marker.rsplit_once('/').unwrap();
            match name.strip_prefix(".wh.").unwrap() {
                ".wh..opq" => run("find", &[text(&target.join(dir)), "-mindepth", "1", "-delete"]),
                aufs if aufs.starts_with(".wh.") => {}
                hidden => run("rm", &["-rf", text(&target.join(dir).join(hidden))]),
            }
        }
        let archive = scratch.0.path().join("by-hand.tar");
        tar(&["-cf", text(&archive), "-C", text(layer), "--format=pax", "--exclude=.wh.*", "."]);
        // --recursive-unlink removes a directory that a file is to replace; it also empties others, so only then.
        for (kind, other) in [("f", "d"), ("d", "f")] {
            let listed = Command::new("find").args([".", "-type", kind]).current_dir(layer).output().unwrap();
            for path in String::from_utf8(listed.stdout).unwrap().lines() {
                let script = format!("test -{other} \"$1\" && ! test -L \"$1\" && rm -rf \"$1\" || true");
                run("sh", &["-c", &script, "sh", text(&target.join(path))]);
            }
        }
        tar(&["-xpf", text(&archive), "-C", text(&target), "--delay-directory-restore"]);
    }
    target
}

#[test]
fn layers_are_laid_over_one_another_and_markers_take_away_what_is_below() {
    let scratch = Scratch::new();
    let layers = layers(&scratch);
    let expected = of_directory(&laid_by_hand(&scratch, &layers));
    let compressions = [Layer::Plain, Layer::Gzip, Layer::Zstd, Layer::Plain];
    let layout = Layout::new(&scratch.dir("layout"));
    let written: Vec<_> = layers.iter().zip(compressions).map(|(dir, how)| layout.layer(dir, how)).collect();
    layout.image("the/image:1", "amd64", &written);
    let blocks = Blocks::default();
    let captured = of_archive(&opened(layout.path(), &scratch), &blocks);
    if image(&captured) != image(&expected) {
        let target = scratch.dir("target");
        blocks.apply(&blocks.manifest(&captured.root), &target).unwrap();
        assert_eq!(snapshot(&target), snapshot(&scratch.dir("by hand")));
        panic!("another image of the same tree");
    }
    // As one file, plain and compressed.
    for (name, how) in [("x.tar", &[][..]), ("x.tar.gz", &["-z"])] {
        let archive = scratch.0.path().join(name);
        run("tar", &[&["-cf", text(&archive), "-C", text(layout.path())], how, &["."]].concat());
        assert_eq!(
            image(&of_archive(&opened(&archive, &scratch), &Blocks::default())),
            image(&expected),
            "{name}"
        );
    }
}

#[test]
fn a_layer_reaches_through_a_link_of_a_lower_one_and_never_out_of_the_tree() {
    let scratch = Scratch::new();
    let (lower, upper) = (scratch.dir("lower"), scratch.dir("upper"));
    fs::create_dir_all(lower.join("usr/lib")).unwrap();
    symlink("/usr/lib", lower.join("lib")).unwrap();
    symlink("../../../../../usr", lower.join("far")).unwrap();
    symlink("circle", lower.join("circle")).unwrap();
    fs::create_dir_all(upper.join("lib")).unwrap();
    fs::create_dir_all(upper.join("far/share")).unwrap();
    fs::write(upper.join("lib/new.so"), "new").unwrap();
    fs::write(upper.join("far/share/file"), "far").unwrap();
    let layout = Layout::new(&scratch.dir("layout"));
    // Only the files: the directory itself would take the place of the link.
    let upper = layout.layer_of(&upper, &["lib/new.so", "far/share/file"], Layer::Plain);
    layout.image("x", "amd64", &[layout.layer(&lower, Layer::Plain), upper]);
    let captured = of_archive(&opened(layout.path(), &scratch), &Blocks::default());
    let paths: Vec<String> = captured.manifest.entries().map(|entry| entry.path().to_string()).collect();
    let expected =
        [".", "circle", "far", "lib", "usr", "usr/lib", "usr/lib/new.so", "usr/share", "usr/share/file"];
    assert_eq!(paths, expected);

    let inside = scratch.dir("inside");
    fs::create_dir_all(inside.join("circle")).unwrap();
    fs::write(inside.join("circle/x"), "x").unwrap();
    let circle = layout.layer_of(&inside, &["circle/x"], Layer::Plain);
    layout.image("x", "amd64", &[layout.layer(&lower, Layer::Plain), circle]);
    let refused = Archive::open(layout.path(), None, &scratch.dir("scratch")).unwrap_err().to_string();
    assert!(refused.ends_with("circle/x: lies behind more than 40 symbolic links"), "{refused}");
}

#[test]
fn one_of_several_images_is_taken_by_name_or_by_kind_of_machine() {
    let scratch = Scratch::new();
    let (one, two) = (scratch.dir("one"), scratch.dir("two"));
    fs::write(one.join("which"), "one").unwrap();
    fs::write(two.join("which"), "two").unwrap();
    let layout = Layout::new(&scratch.dir("layout"));
    let (one_layer, two_layer) = (layout.layer(&one, Layer::Plain), layout.layer(&two, Layer::Gzip));
    layout.image("one", "amd64", std::slice::from_ref(&one_layer));
    layout.add_image("two", "amd64", &[two_layer]);
    let open = |reference: Option<&str>| Archive::open(layout.path(), reference, &scratch.dir("scratch"));
    assert_eq!(
        image(&of_archive(&open(Some("two")).unwrap(), &Blocks::default())),
        image(&of_directory(&two))
    );
    let refused = |reference| open(reference).unwrap_err().to_string();
    assert!(refused(None).ends_with("it has several images, name one of one, two (oci:PATH:NAME)"));
    assert!(refused(Some("none")).ends_with("it has no image none, only one, two"));

    layout.image("one", "amd64", std::slice::from_ref(&one_layer));
    layout.add_image("foreign", "s390x", &[one_layer]);
    assert!(open(None).is_ok(), "the other one is of another kind of machine");
}

#[test]
fn a_damaged_archive_is_refused_wherever_it_is_cut_or_changed() {
    let scratch = Scratch::new();
    let source = scratch.dir("source");
    fs::write(source.join("file"), noise("file", 3000)).unwrap();
    fs::write(source.join(format!("long-{}", "n".repeat(200))), "x").unwrap();
    let path = scratch.0.path().join("x.tar");
    tar(&["-cf", text(&path), "-C", text(&source), "--format=pax", "-b1", "."]);
    let whole = fs::read(&path).unwrap();
    let open = || Archive::open(&path, None, &scratch.dir("scratch"));
    for length in (0..whole.len() - 1024).step_by(512).chain([1, 700, 2600]) {
        File::options().write(true).open(&path).unwrap().set_len(length as u64).unwrap();
        let refused = open().unwrap_err().to_string();
        let named = refused.contains("x.tar: damaged at byte")
            || length < 512 && refused.contains("not a tar archive");
        assert!(named, "{length}: {refused}");
        fs::write(&path, &whole).unwrap();
    }
    let mut changed = whole.clone();
    // The first entry's own header; before it are that of its extended one, and its records.
    changed[2 * 512 + 100] ^= 1;
    fs::write(&path, &changed).unwrap();
    assert!(open().unwrap_err().to_string().ends_with("the checksum of the entry's header does not match"));

    let layout = Layout::new(&scratch.dir("layout"));
    let layer = layout.layer(&source, Layer::Gzip);
    layout.image("x", "amd64", std::slice::from_ref(&layer));
    let blob = layout.blob(&layer);
    let mut bytes = fs::read(&blob).unwrap();
    let middle = bytes.len() / 2;
    bytes[middle] ^= 1;
    fs::write(&blob, bytes).unwrap();
    let refused = Archive::open(layout.path(), None, &scratch.dir("scratch")).unwrap_err().to_string();
    assert!(refused.contains("is damaged: its digest is sha256:"), "{refused}");
}

#[test]
fn an_archive_that_changes_while_it_is_captured_is_not_captured() {
    let scratch = Scratch::new();
    let source = scratch.dir("source");
    fs::write(source.join("file"), noise("file", 100_000)).unwrap();
    let path = scratch.0.path().join("x.tar");
    tar(&["-cf", text(&path), "-C", text(&source), "."]);
    let archive = opened(&path, &scratch);
    set_time(&path, 1, 1);
    let refused = capture_archive(&archive, &CaptureOptions::default(), &Blocks::default(), &()).unwrap_err();
    assert!(refused.to_string().ends_with("x.tar changed while it was read"), "{refused}");
}

#[test]
fn what_no_tree_holds_is_refused_by_name() {
    let scratch = Scratch::new();
    let source = scratch.dir("source");
    fs::create_dir(source.join("dir")).unwrap();
    fs::write(source.join("dir/file"), "x").unwrap();
    fs::hard_link(source.join("dir/file"), source.join("dir/link")).unwrap();
    let path = scratch.0.path().join("x.tar");
    let refused = |arguments: &[&str]| {
        let fixed = ["-cf", text(&path), "-C", text(&source), "-P", "--sort=name"];
        run("tar", &[&fixed, arguments].concat());
        Archive::open(&path, None, &scratch.dir("scratch")).unwrap_err().to_string()
    };
    let outside = refused(&["--transform=s,^dir/file,dir/../../etc/file,", "dir"]);
    assert!(
        outside.ends_with("x.tar: dir/../../etc/file: the name \"..\", which means another directory"),
        "{outside}"
    );
    let missing = refused(&["--transform=flags=h;s,^dir/file,elsewhere,", "dir"]);
    assert!(missing.ends_with("x.tar: dir/link: a hard link to elsewhere, which is not there"), "{missing}");

    fs::write(&path, "BZh91AY&SY").unwrap();
    let refused = Archive::open(&path, None, &scratch.dir("scratch")).unwrap_err().to_string();
    assert!(refused.ends_with("compressed with bzip2, which is not supported: unpack it first"), "{refused}");
    fs::write(&path, "no archive at all").unwrap();
    let refused = Archive::open(&path, None, &scratch.dir("scratch")).unwrap_err().to_string();
    assert!(refused.ends_with("not a tar archive, plain or compressed with gzip, xz or zstd"), "{refused}");
}
