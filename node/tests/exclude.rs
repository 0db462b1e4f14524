//! Rules against the program whose language they are in.

#![expect(clippy::unwrap_used, reason = "a test")]

use std::collections::BTreeSet;
use std::fs;
use std::path::Path;
use std::process::Command;

use shoal_node::tree::exclude::Excludes;

/// A slash at the end makes a directory.
const TREE: &[&str] = &[
    "a",
    "b/",
    "b/a",
    "b/b",
    "b/c/",
    "b/c/a",
    "b/c/d/",
    "b/c/d/a",
    "b/c/d/x.o",
    "cache/",
    "cache/x",
    "deep/cache/",
    "deep/cache/y.tmp",
    "deep/er/",
    "deep/er/cache",
    "etc/",
    "etc/mtab",
    "etc/a*b",
    "etc/a?b",
    "etc/axb",
    "etc/[x]",
    "etc/x",
    "etc/back\\slash",
    "etc/ space",
    "etc/#hash",
    "etc/-dash",
    "etc/^",
    "etc/]",
    "etc/7",
    "etc/File.C",
    "usr/etc/mtab",
    "usr/lib/",
    "usr/lib/a.so",
    "usr/lib/a.so.1",
    "usr/lib/mod/a.ko",
    "usr/lib/mod/b/a.ko",
    "var/",
    "var/log/",
    "var/log/x.log",
    "var/log/keep/",
    "var/log/keep/y.log",
    "var/tmp/",
    "x.o",
];

const RULES: &[&[&str]] = &[
    &["a"],
    &["/a"],
    &["b/a"],
    &["/b/a"],
    &["a/"],
    &["cache/"],
    &["cache"],
    &["/cache"],
    &["/cache/"],
    &["/etc/mtab"],
    &["etc/mtab"],
    &["c/mtab"],
    &["*.o"],
    &["/*.o"],
    &["/b/*"],
    &["/b/**"],
    &["b/***"],
    &["/b/***"],
    &["c/***"],
    &["/var/log/*"],
    &["**/a"],
    &["**a"],
    &["**"],
    &["*"],
    &["/*"],
    &["/*/"],
    &["b**a"],
    &["/b**a"],
    &["b/**/a"],
    &["/usr/**/a.ko"],
    &["lib/**.ko"],
    &["usr/*/mod"],
    &["*/mod"],
    &["etc/a*b"],
    &["etc/a\\*b"],
    &["etc/a?b"],
    &["etc/[x]"],
    &["etc/[!x]"],
    &["etc/[^]x]"],
    &["etc/[]x]"],
    &["etc/[x-z]"],
    &["etc/[]-a]"],
    &["[[:digit:]]"],
    &["[[:upper:]]*.[[:alpha:]]"],
    &["[![:lower:]]"],
    &["back\\slash"],
    &["back\\\\slash"],
    &["back\\\\sl*"],
    &["bac*\\slash"],
    &[" space"],
    &["- a"],
    &["+ a", "*"],
    &["+ */", "- *"],
    &["+ */", "+ *.ko", "- *"],
    &["+ /usr/", "+ /usr/lib/***", "- *"],
    &["+ /usr/", "+ /usr/lib/", "+ *.so*", "- /usr/**", "- /etc"],
    &["- x.o", "+ *.o", "- /b/**"],
    &["+ /var/log/keep/***", "- /var/log/*"],
    &["+ /var/log/keep/", "- /var/log/*"],
    &["*.o", "!", "*.ko"],
    &["+ mtab", "- /etc/*", "- /usr/etc/*"],
    &["+ **/mod/", "- **/a.*"],
    &["- - a"],
    &["+ + a", "- a"],
];

fn by_us(top: &Path, rules: &[&str]) -> BTreeSet<String> {
    let excludes = Excludes::new(rules).unwrap();
    let mut found = BTreeSet::new();
    let mut waiting = vec![String::new()];
    while let Some(folder) = waiting.pop() {
        for entry in fs::read_dir(top.join(&folder)).unwrap() {
            let entry = entry.unwrap();
            let path = format!("{folder}{}", entry.file_name().into_string().unwrap());
            let directory = entry.file_type().unwrap().is_dir();
            if excludes.matches(path.as_bytes(), directory) {
                continue;
            }
            if directory {
                waiting.push(format!("{path}/"));
                found.insert(format!("{path}/"));
            } else {
                found.insert(path);
            }
        }
    }
    found
}

fn by_rsync(top: &Path, rules: &[&str], in_a_file: bool) -> BTreeSet<String> {
    let mut rsync = Command::new("rsync");
    rsync.args(["-an8", "--out-format=%n"]);
    if in_a_file {
        let file = top.with_extension("rules");
        fs::write(&file, format!("# a comment\n; another\n\n{}\n", rules.join("\n"))).unwrap();
        rsync.arg("--exclude-from").arg(file);
    } else {
        rsync.args(rules.iter().map(|rule| format!("--exclude={rule}")));
    }
    let output = rsync.arg(top.join("")).arg(top.with_extension("none").join("")).output().unwrap();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    let text = String::from_utf8(output.stdout).unwrap();
    text.lines()
        .filter(|line| !["./", ""].contains(line) && !line.starts_with("created "))
        .map(str::to_owned)
        .collect()
}

#[test]
fn rules_leave_out_what_rsync_leaves_out() {
    if Command::new("rsync").arg("--version").output().is_err() {
        return println!("skipped: needs rsync");
    }
    let scratch = tempfile::tempdir().unwrap();
    let top = scratch.path().join("top");
    for path in TREE {
        if path.ends_with('/') {
            fs::create_dir_all(top.join(path)).unwrap();
        } else {
            fs::create_dir_all(top.join(path).parent().unwrap()).unwrap();
            fs::write(top.join(path), b"").unwrap();
        }
    }
    let mut seen = BTreeSet::new();
    for rules in RULES {
        let found = by_us(&top, rules);
        for in_a_file in [false, true] {
            assert_eq!(found, by_rsync(&top, rules, in_a_file), "{rules:?}");
        }
        seen.insert(found);
    }
    assert!(seen.len() > 30, "the rules hardly differ: {}", seen.len());
}
