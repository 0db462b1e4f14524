//! Whatever is wrong in a cluster file, an override or the name of a script is named by file and line, with what was
//! expected; and all of it at once.

use std::fs;
use std::path::Path;

use harness::Publisher;
use shoal_seeder::cluster;

/// A cluster file that nothing is wrong with, its overrides and its scripts.
fn write_good(folder: &Path) {
    for directory in ["overrides/base/etc", "overrides/gpu/etc", "scripts/post-install"] {
        fs::create_dir_all(folder.join(directory)).unwrap();
    }
    fs::write(folder.join("cluster.toml"), GOOD).unwrap();
    fs::write(folder.join("scripts/post-install/10all.hello"), "#!/bin/sh\n").unwrap();
}

const GOOD: &str = r#"script_timeout = "5m"
confidential = ["gpu"]

[global]
image = "debian-12"
overrides = ["base"]

[group.gpu]
hosts = ["node[001-064]", "test7"]
priority = 10
overrides = ["gpu"]
exclude = { full = ["/opt/big/"], update = "*.journal" }
preserve = ["/var/lib/db/"]
variables = { NTP = "10.0.0.1" }

[host.node007]
mode = "sync"
confirm = true
"#;

/// The line of the good file that is replaced, by what, and what is said of it. The line of the complaint is that line,
/// unless `at` says otherwise.
struct Case {
    line: &'static str,
    with: &'static str,
    at: Option<usize>,
    said: &'static [&'static str],
}

const fn case(line: &'static str, with: &'static str, said: &'static [&'static str]) -> Case {
    Case { line, with, at: None, said }
}

const fn case_at(line: &'static str, with: &'static str, at: usize, said: &'static [&'static str]) -> Case {
    Case { line, with, at: Some(at), said }
}

const IMAGE: &str = "image = \"debian-12\"";
const HOSTS: &str = "hosts = [\"node[001-064]\", \"test7\"]";
const PRIORITY: &str = "priority = 10";
const MODE: &str = "mode = \"sync\"";
const CONFIRM: &str = "confirm = true";
const PRESERVE: &str = "preserve = [\"/var/lib/db/\"]";
const EXCLUDE: &str = "exclude = { full = [\"/opt/big/\"], update = \"*.journal\" }";
const VARIABLES: &str = "variables = { NTP = \"10.0.0.1\" }";
const TIMEOUT: &str = "script_timeout = \"5m\"";
const BASE: &str = "overrides = [\"base\"]";
const GPU: &str = "overrides = [\"gpu\"]";
const GROUP: &str = "[group.gpu]";
const HOST: &str = "[host.node007]";
const CONFIDENTIAL: &str = "confidential = [\"gpu\"]";

const CASES: &[Case] = &[
    case(IMAGE, "image = debian", &["no TOML"]),
    case(IMAGE, "image = \"a\"\nimage = \"b\"", &["no TOML", "duplicate key"]),
    case(IMAGE, "image = 12", &["image is a whole number", "expected the name of a captured image"]),
    case(IMAGE, "image = \"../etc\"", &["image is not an image name", "expected the name"]),
    case_at(IMAGE, "", 9, &["node001 and 64 more of group gpu gets no image", "expected one in [global]"]),
    case(
        IMAGE,
        "imagee = \"debian-12\"",
        &["unknown key \"imagee\" in [global]", "expected one of", "image"],
    ),
    case(HOSTS, "hosts = [\"node[001-\"]", &["[ without its ]", "expected hosts such as"]),
    case(HOSTS, "hosts = [\"node1]\"]", &["] without its [", "expected hosts such as"]),
    case(HOSTS, "hosts = \"node[5-3]\"", &["ends before it begins", "expected hosts such as"]),
    case(HOSTS, "hosts = \"node[a-b]\"", &["is no number and no range", "expected hosts such as"]),
    case(HOSTS, "hosts = \"node[1-010]\"", &["padded differently", "expected such as 001-010"]),
    case(HOSTS, "hosts = \"node[0-99999]\"", &["more than 65536 hosts", "expected"]),
    case(HOSTS, "hosts = \"node7.example.org\"", &["not a host name", "expected hosts such as"]),
    case(HOSTS, "hosts = []", &["hosts is empty", "expected at least one host"]),
    case(HOSTS, "hosts = 7", &["hosts is a whole number", "expected a list"]),
    case(HOSTS, "hosts = [7]", &["a host is a whole number", "expected hosts such as"]),
    case_at(HOSTS, "", 8, &["[group.gpu] names no hosts", "expected such as hosts"]),
    case(PRIORITY, "priority = \"high\"", &["priority is a text", "expected a whole number"]),
    case(PRIORITY, "priority = -1", &["priority is -1", "expected a whole number from 0"]),
    case(PRIORITY, "priority = 1.5", &["priority is a number with a point", "expected a whole number"]),
    case(PRIORITY, "prio = 10", &["unknown key \"prio\" in [group.gpu]", "priority"]),
    case(MODE, "mode = \"fast\"", &["\"fast\" is none of", "expected one of auto, full, sync, none"]),
    case(MODE, "mode = true", &["mode is true or false", "expected one of auto"]),
    case(CONFIRM, "confirm = \"yes\"", &["confirm is a text", "expected true or false"]),
    case(CONFIRM, "hosts = [\"node008\"]", &["unknown key \"hosts\" in [host.node007]", "expected one of"]),
    case(PRESERVE, "preserve = [\"/var//lib\"]", &["two slashes", "expected a path from the top"]),
    case(PRESERVE, "preserve = [\"./var\"]", &["no path has . or ..", "expected a path"]),
    case(PRESERVE, "preserve = [\"/a/../b\"]", &["no path has . or ..", "expected a path"]),
    case(PRESERVE, "preserve = [\"\"]", &["can never match", "expected a path"]),
    case(PRESERVE, "no_new_files = [\"[a\"]", &["has a [ without its ]", "expected a path"]),
    case(PRESERVE, "preserve = [\"+ /x\"]", &["a rule of a list", "expected a path"]),
    case(PRESERVE, "preserve = [\"/x\", \"/x\"]", &["twice", "can never decide", "expected each once"]),
    case(EXCLUDE, "exclude = [\"/x\"]", &["exclude is a list", "expected a table"]),
    case(
        EXCLUDE,
        "exclude = { install = [\"/x\"] }",
        &["unknown key \"install\"", "expected one of full, sync, update"],
    ),
    case(EXCLUDE, "exclude = { full = [7] }", &["a pattern is a whole number", "expected a text"]),
    case(VARIABLES, "variables = { \"1X\" = \"\" }", &["\"1X\" is no name for a variable", "expected A-Z"]),
    case(VARIABLES, "variables = { SHOAL_HOST = \"x\" }", &["SHOAL_HOST", "which Shoal sets"]),
    case(VARIABLES, "variables = { NTP = 10 }", &["NTP is a whole number", "expected a text"]),
    case(VARIABLES, "variables = { NTP = \"a\\u0000\" }", &["NTP has a NUL", "expected text without one"]),
    case(VARIABLES, "variables = [\"NTP=x\"]", &["variables is a list", "expected a table"]),
    case(TIMEOUT, "script_timeout = \"soon\"", &["script_timeout is \"soon\"", "expected a time from 1s"]),
    case(TIMEOUT, "script_timeout = \"0s\"", &["script_timeout is \"0s\"", "expected a time from 1s"]),
    case(TIMEOUT, "scripts = \"elsewhere\"", &["there are no scripts", "expected the folder"]),
    case(TIMEOUT, "timeout = \"5m\"", &["unknown key \"timeout\" in the file", "script_timeout"]),
    case(BASE, "overrides = [\"nowhere\"]", &["there is no override nowhere", "expected the folder"]),
    case(BASE, "overrides = [\"a/b\"]", &["not the name of an override", "expected the name of a folder"]),
    case(BASE, "overrides = [\"base\", \"base\"]", &["base twice", "expected each once"]),
    case(BASE, "overrides = 3", &["overrides is a whole number", "expected a list"]),
    case_at(GPU, "", 2, &["gpu is confidential and nobody gets it", "expected it in some overrides"]),
    case(
        CONFIDENTIAL,
        "confidential = [true]",
        &["an override is true or false", "expected the name of a folder"],
    ),
    case(GROUP, "[group.all]", &["\"all\" is no name for a group", "expected 1 to 63"]),
    case(GROUP, "[group.\"a b\"]", &["\"a b\" is no name for a group", "expected 1 to 63"]),
    case(GROUP, "[groups.gpu]", &["unknown key \"groups\"", "expected one of", "group"]),
    case(HOST, "[host.\"-x\"]", &["not a host name", "expected a host as in"]),
    case(
        HOST,
        "[host]\nnode007 = 3\n[host.node008]",
        &["host.node007 is a whole number", "expected a table"],
    ),
];

/// Reads the file and gives its complaints, with paths below the folder.
fn complaints(folder: &Path) -> Vec<String> {
    let problems = cluster::read(&folder.join("cluster.toml")).unwrap_err();
    let short = |line: String| line.replace(&format!("{}/", folder.display()), "");
    problems.iter().map(|problem| short(problem.to_string())).collect()
}

#[test]
fn a_malformed_cluster_file_is_named_by_line_with_what_was_expected() {
    let folder = tempfile::tempdir().unwrap();
    write_good(folder.path());
    let cluster = cluster::read(&folder.path().join("cluster.toml")).unwrap();
    assert_eq!((cluster.host_names().len(), cluster.groups.len(), cluster.scripts.len()), (65, 1, 1));
    for Case { line, with, at, said } in CASES {
        let number = GOOD.lines().position(|known| known == *line).unwrap() + 1;
        // What stands twice is complained of where it stands again.
        let expected = at.unwrap_or(number + with.lines().count().saturating_sub(1).min(1));
        fs::write(folder.path().join("cluster.toml"), GOOD.replacen(line, with, 1)).unwrap();
        let complaints = complaints(folder.path());
        let found = complaints.iter().any(|complaint| {
            complaint.starts_with(&format!("cluster.toml:{expected}: "))
                && said.iter().all(|part| complaint.contains(part))
        });
        assert!(found, "{with:?} for line {number}: expected {expected} {said:?} in {complaints:#?}");
        assert!(complaints.len() <= 2, "{with:?} leads to more than is wrong: {complaints:#?}");
    }
}

#[test]
fn a_malformed_override_or_script_is_named_by_its_file() {
    let cases: &[(&str, &str, &str)] = &[
        ("overrides/base/etc/.wh.", "", "takes nothing away, expected .wh.NAME"),
        ("overrides/base/.wh..wh.plnk", "", "takes nothing away, expected .wh.NAME"),
        ("overrides/base/.wh...", "", "takes nothing away, expected .wh.NAME"),
        ("overrides/base/.wh.x/y", "", "is a folder and takes something away, expected an empty file"),
        ("scripts/post-install/1all.x", "#!/bin/sh", "two digits, expected NNclass.description"),
        ("scripts/post-install/all.x", "#!/bin/sh", "two digits, expected NNclass.description"),
        ("scripts/post-install/10all", "#!/bin/sh", "has no . between"),
        ("scripts/post-install/10all.", "#!/bin/sh", "has no description"),
        ("scripts/post-install/10nobody.x", "#!/bin/sh", "the class \"nobody\""),
        ("scripts/post-install/10all.x y", "#!/bin/sh", "has a space"),
        ("scripts/post-install/10all.x", "echo hello", "expected a first line such as #!/bin/sh"),
        ("scripts/post-install/10all.dir/x", "", "is no file, expected a script"),
        ("scripts/postinstall/10all.x", "#!/bin/sh", "is no folder of scripts, expected one of pre-install"),
    ];
    for (path, content, said) in cases {
        let folder = tempfile::tempdir().unwrap();
        write_good(folder.path());
        let file = folder.path().join(path);
        fs::create_dir_all(file.parent().unwrap()).unwrap();
        fs::write(&file, content).unwrap();
        let complaints = complaints(folder.path());
        // A folder that should be a file, or that should not be there, is what is wrong.
        let named = |complaint: &String| {
            let (file, rest) = complaint.split_once(":1: ").unwrap();
            (Path::new(path).starts_with(file) && file.matches('/').count() > 0) && rest.contains(said)
        };
        assert!(complaints.len() == 1 && named(&complaints[0]), "{path}: {complaints:#?}");
    }
}

#[test]
fn the_command_names_everything_at_once_and_fails() {
    let folder = tempfile::tempdir().unwrap();
    write_good(folder.path());
    let text = GOOD.replace("priority = 10", "priority = \"x\"").replace("\"sync\"", "\"fast\"");
    let file = folder.path().join("cluster.toml");
    fs::write(&file, text).unwrap();
    fs::write(folder.path().join("scripts/post-install/x"), "").unwrap();
    let publisher = Publisher::new();
    let finished = publisher.run(&["cluster", "check", file.to_str().unwrap()]);
    let said = finished.stderr.join("\n");
    assert_eq!(finished.status.code(), Some(1), "{said}");
    for place in ["cluster.toml:10: priority", "cluster.toml:17: mode", "scripts/post-install/x:1: "] {
        assert!(said.contains(place), "{said}");
    }
    write_good(folder.path());
    fs::remove_file(folder.path().join("scripts/post-install/x")).unwrap();
    let stdout =
        publisher.run(&["cluster", "check", file.to_str().unwrap()]).expect_success().stdout.concat();
    assert!(stdout.contains("65 hosts in 1 groups"), "{stdout}");
}
