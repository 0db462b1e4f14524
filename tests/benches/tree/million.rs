//! The memory that a million entries take.

use std::fmt::Write as _;
use std::path::Path;

use anyhow::Context;
use serde_json::{Value, json};

use crate::disk::Disk;
use crate::measure::finish;
use crate::parts;

pub(crate) const TOOLS: [&str; 3] = ["mkfs.ext4", "mount", "unshare"];

const DIRECTORIES: u32 = 1000;
const FILES_PER_DIRECTORY: u32 = 1000;
/// The most that an apply or a verify may have resident.
const PEAK_RSS_BYTES_MAX: u64 = 200_000_000;
/// Small blocks: a file is far smaller than one. No file needs more room than that.
const MKFS: [&str; 4] = ["-b", "1024", "-N", "1100000"];
const DISK_BYTES: u64 = 3 << 30;

/// Captures, applies and verifies a million small files, each in a process of its own; prints their peaks.
pub(crate) fn run() -> anyhow::Result<Value> {
    let scratch = tempfile::tempdir_in("/dev/shm")?;
    let data = scratch.path().join("data");
    let mut disk = Disk::new(DISK_BYTES, &MKFS)?;
    fill(&disk.path())?;
    let mut figures = json!({});
    for (what, bar) in
        [("capture", None), ("apply", Some(PEAK_RSS_BYTES_MAX)), ("verify", Some(PEAK_RSS_BYTES_MAX))]
    {
        if what == "apply" {
            disk.renew()?;
        }
        let output = finish(&mut parts::command(what, &data, &disk.path()))?;
        let facts: Value = serde_json::from_slice(&output.stdout)?;
        let peak = facts["peak_rss_bytes"].as_u64().context("a part says its peak")?;
        let verdict = match bar {
            Some(bar) if peak <= bar => format!("bar {} MB: met", bar / 1_000_000),
            Some(bar) => format!("bar {} MB: missed", bar / 1_000_000),
            None => String::new(),
        };
        println!("{what:8} {} entries: peak of {} MB  {verdict}", facts["entries"], peak / 1_000_000);
        figures[what] = json!({
            "entries": facts["entries"],
            "peak_rss_bytes": peak,
            "bar_bytes": bar,
            "met": bar.map(|bar| peak <= bar),
        });
    }
    Ok(figures)
}

/// No two files are alike, so that there are as many chunks as files.
fn fill(top: &Path) -> anyhow::Result<()> {
    let mut content = String::new();
    for directory in 0..DIRECTORIES {
        let folder = top.join(format!("directory-{directory:04}"));
        std::fs::create_dir(&folder)?;
        for file in 0..FILES_PER_DIRECTORY {
            content.clear();
            for line in 0..4 {
                writeln!(content, "line {line} of file {file} in directory {directory}")?;
            }
            std::fs::write(folder.join(format!("file-{file:04}.txt")), &content)?;
        }
    }
    Ok(())
}
