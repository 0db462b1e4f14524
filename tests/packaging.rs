//! What the binaries say of themselves to `man` and to a shell, and the units that start them.

use std::collections::BTreeSet;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use harness::{Finished, Process, binary, skipped};

const PROGRAMS: [&str; 2] = ["shoal-node", "shoal-seeder"];

fn run(program: &str, arguments: &[&str]) -> Finished {
    let mut command = Command::new(binary(program));
    command.args(arguments);
    Process::start(command).finish().expect_success()
}

/// The commands that `program ARGUMENTS --help` lists, and what these list, as `a b`.
fn commands(program: &str, above: &[String]) -> BTreeSet<String> {
    let arguments: Vec<&str> = above.iter().map(String::as_str).chain(["--help"]).collect();
    let help = run(program, &arguments).stdout;
    let listed =
        help.iter().skip_while(|line| *line != "Commands:").skip(1).take_while(|line| !line.is_empty());
    let names = listed.filter(|line| line.starts_with("  ") && !line.starts_with("   "));
    let mut found = BTreeSet::new();
    for name in names.filter_map(|line| line.split_whitespace().next()).filter(|name| *name != "help") {
        let path = [above, &[name.to_owned()]].concat();
        found.insert(path.join(" "));
        found.extend(commands(program, &path));
    }
    found
}

#[test]
fn every_command_has_a_manual_page() {
    for program in PROGRAMS {
        let folder = tempfile::tempdir().unwrap();
        let pages = folder.path().join("man");
        run(program, &["man", pages.to_str().unwrap()]);
        let known = commands(program, &[]);
        assert!(known.len() >= 7 && known.contains("completions"), "{known:?}");
        for command in known {
            let page = pages.join(format!("{program}-{}.1", command.replace(' ', "-")));
            let text =
                fs::read_to_string(&page).unwrap_or_else(|error| panic!("{}: {error}", page.display()));
            assert!(text.contains(".SH SYNOPSIS"), "{}", page.display());
        }
        assert!(pages.join(format!("{program}.1")).is_file());
    }
}

#[test]
fn bash_completes_a_command_and_every_shell_gets_a_script() {
    for program in PROGRAMS {
        for shell in ["bash", "zsh", "fish"] {
            assert!(run(program, &["completions", shell]).stdout.len() > 20);
        }
    }
    let script = r#"source <("$1" completions bash); COMP_WORDS=(shoal-node ver); COMP_CWORD=1
        complete=$(complete -p shoal-node); complete=${complete#*-F }
        "${complete%% *}" shoal-node ver shoal-node; echo "${COMPREPLY[@]}""#;
    let mut bash = Command::new("bash");
    bash.args(["-c", script, "bash"]).arg(binary("shoal-node"));
    assert_eq!(Process::start(bash).finish().expect_success().stdout, ["verify"]);
}

#[test]
fn the_units_are_understood_by_systemd() {
    let units = ["seeder/dist/shoal-seeder.service", "node/dist/shoal-node-agent.service"];
    if Command::new("systemd-analyze").arg("--version").output().is_err() {
        return skipped("needs systemd-analyze");
    }
    // The programs are where a package puts them only on a machine that has it.
    let folder = tempfile::tempdir().unwrap();
    for unit in units {
        let source = Path::new(env!("CARGO_MANIFEST_DIR")).join("..").join(unit);
        let text = fs::read_to_string(&source).unwrap().replace("=/usr/bin/shoal-", "=/bin/true shoal-");
        let copy: PathBuf = folder.path().join(source.file_name().unwrap());
        fs::write(&copy, text).unwrap();
        let mut verify = Command::new("systemd-analyze");
        let found = Process::start({
            verify.args(["verify", "--man=no"]).arg(&copy);
            verify
        });
        let found = found.finish();
        let own: Vec<&String> = found.stderr.iter().filter(|line| line.contains("shoal-")).collect();
        assert!(own.is_empty(), "{unit}: {own:#?}");
    }
}
