//! What a run left that was killed before it could tidy up: known by the number of its process, which runs no more.

use std::path::Path;

use rustix::process::{Pid, Signal, kill_process};

use crate::lab::NAME;
use crate::lab::network::run;

pub(super) fn remove(dir: &Path) -> anyhow::Result<()> {
    let listed = run("ip", &["netns", "list"])?;
    for namespace in listed.lines().filter_map(|line| line.split_whitespace().next()) {
        if !is_left(namespace) {
            continue;
        }
        for pid in run("ip", &["netns", "pids", namespace])?.lines() {
            if let Some(pid) = pid.trim().parse().ok().and_then(Pid::from_raw) {
                // One that ended meanwhile is as good.
                let _ = kill_process(pid, Signal::KILL);
            }
        }
        run("ip", &["netns", "delete", namespace])?;
        eprintln!("shoal-sim: removed namespace {namespace} of a run that was killed");
    }
    for entry in dir.read_dir()? {
        let entry = entry?;
        let is_kept = entry.path().join(KEPT).exists();
        if entry.file_name().to_str().is_some_and(is_left) && !is_kept {
            std::fs::remove_dir_all(entry.path())?;
            eprintln!("shoal-sim: removed {} of a run that was killed", entry.path().display());
        }
    }
    Ok(())
}

/// In a folder that is to stay.
pub(super) const KEPT: &str = "kept";

/// Whether `name` is of a run whose process is gone.
fn is_left(name: &str) -> bool {
    let rest = name.strip_prefix(NAME).and_then(|rest| rest.strip_prefix('-'));
    let Some(rest) = rest else { return false };
    let pid = rest.split('-').next().unwrap_or_default();
    let Ok(pid) = pid.parse::<u32>() else { return false };
    // Another process may have the number by now.
    let runs =
        std::fs::read_to_string(format!("/proc/{pid}/comm")).is_ok_and(|name| name.trim() == "shoal-sim");
    !runs
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_what_a_run_that_is_gone_named_is_left() {
        // Above the largest number that a process can have.
        assert!(is_left("shoal-lab-4194305-bridge"));
        assert!(is_left("shoal-lab-4194305"));
        // A process that runs, and is no lab.
        assert!(is_left("shoal-lab-1-3"));
        for name in ["shoal-lab", "shoal-lab-", "shoal-lab-x-1", "other-4194305-bridge"] {
            assert!(!is_left(name), "{name}");
        }
    }
}
