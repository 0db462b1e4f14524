//! The three comparisons, their bars, and the table.

use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

use serde_json::{Value, json};

use crate::disk::Disk;
use crate::measure::{Competitor, Sample, Samples, compare, finish, script};
use crate::parts;

pub(crate) const TOOLS: [&str; 11] = [
    "bash",
    "cp",
    "mkfs.ext4",
    "mksquashfs",
    "mount",
    "rsync",
    "sync",
    "tar",
    "unshare",
    "unsquashfs",
    "zstd",
];
pub(crate) const PARTS: [&str; 3] = ["capture", "apply", "verify"];

const TAR: &str = "tar c | zstd -3";
const CAPTURE: &str = "capture";
const RECAPTURE: &str = "capture, nothing changed";
const COPY: &str = "cp -a, sync";
const APPLY: &str = "apply, sync";
const UNSQUASH: &str = "unsquashfs, sync";
const UNTAR: &str = "zstd -d | tar x, sync";
const RSYNC: &str = "rsync -c, nothing differs";
const VERIFY: &str = "verify";
const QUICK: &str = "verify --quick";

/// What is compared with what: the most that wall time may be of the reference's, where we promise it.
const RATIOS: [(&str, &str, Option<f64>); 7] = [
    (CAPTURE, TAR, Some(0.6)),
    (RECAPTURE, TAR, Some(0.15)),
    (APPLY, COPY, Some(0.8)),
    (APPLY, UNSQUASH, Some(1.0)),
    (APPLY, UNTAR, None),
    (VERIFY, RSYNC, Some(0.5)),
    (QUICK, RSYNC, None),
];

struct Disks {
    scratch: Disk,
    target: Disk,
}

/// Where everything is: on the scratch disk, but for the target.
struct Paths {
    source: PathBuf,
    /// The seeder's data that is applied and verified.
    data: PathBuf,
    /// Another one, made anew by each capture.
    fresh: PathBuf,
    tar: PathBuf,
    squashfs: PathBuf,
    target: PathBuf,
}

/// Measures and prints the table; returns it as JSON.
pub(crate) fn run(source: &Path, runs: usize, only: Option<&str>) -> anyhow::Result<Value> {
    let facts = Facts::of(source)?;
    eprintln!("{}: {} entries, {} bytes of files", source.display(), facts.entries, facts.file_bytes);
    let inodes = (facts.entries * 2 + 20_000).to_string();
    let room = |share: u64| facts.disk_bytes / 10 * share + facts.entries * 1024 + (256 << 20);
    let scratch = Disk::new(room(35), &["-N", &inodes])?;
    let target = Disk::new(room(14), &["-N", &inodes])?;
    let at = |name: &str| scratch.path().join(name);
    let paths = Paths {
        source: at("source"),
        data: at("data"),
        fresh: at("fresh"),
        tar: at("tar.zst"),
        squashfs: at("squashfs"),
        target: target.path(),
    };
    std::fs::create_dir(&paths.source)?;
    finish(&mut script("cp -ax -- \"$1/.\" \"$2\"", &[source, &paths.source]))?;
    finish(&mut parts::command("capture", &paths.data, &paths.source))?;
    let mut disks = Disks { scratch, target };
    let mut results: Vec<(&'static str, Samples)> = Vec::new();
    for part in PARTS.into_iter().filter(|part| only.is_none_or(|only| only == *part)) {
        let competitors = match part {
            "capture" => captures(&paths),
            "apply" => applies(&paths)?,
            _ => verifies(&paths),
        };
        if part == "verify" {
            disks.target.renew()?;
            finish(&mut parts::command("apply", &paths.data, &paths.target))?;
        }
        let samples = compare(&mut disks, &competitors, runs)?;
        results.extend(competitors.iter().map(|competitor| competitor.name).zip(samples));
    }
    let ratios = print_table(&results);
    let cores = std::thread::available_parallelism().map_or(0, usize::from);
    Ok(json!({ "tree": facts.json(), "runs": runs, "cores": cores, "ratios": ratios }))
}

fn captures(paths: &Paths) -> Vec<Competitor<'_, Disks>> {
    let remove = move |disks: &mut Disks| {
        let script_text = "rm -rf -- \"$1\" \"$2\"";
        finish(&mut script(script_text, &[&paths.tar, &paths.fresh]))?;
        disks.scratch.sync()
    };
    let tar = "tar --xattrs --acls -C \"$1\" -c . | zstd -T0 -3 -q > \"$2\"";
    vec![
        Competitor {
            name: TAR,
            prepare: Box::new(remove),
            command: Box::new(move || script(tar, &[&paths.source, &paths.tar])),
        },
        Competitor {
            name: CAPTURE,
            prepare: Box::new(remove),
            command: Box::new(|| parts::command("capture", &paths.fresh, &paths.source)),
        },
        Competitor {
            name: RECAPTURE,
            prepare: Box::new(|disks| disks.scratch.sync()),
            command: Box::new(|| parts::command("capture", &paths.fresh, &paths.source)),
        },
    ]
}

fn applies(paths: &Paths) -> anyhow::Result<Vec<Competitor<'_, Disks>>> {
    finish(&mut script(
        "tar --xattrs --acls -C \"$1\" -c . | zstd -T0 -3 -q > \"$2\"",
        &[&paths.source, &paths.tar],
    ))?;
    // The level of our blocks; unpacking is about as fast at every level.
    let squash = "mksquashfs \"$1\" \"$2\" -comp zstd -Xcompression-level 3 -noappend -quiet -no-progress";
    finish(&mut script(squash, &[&paths.source, &paths.squashfs]))?;
    let renew = |disks: &mut Disks| {
        disks.target.renew()?;
        disks.target.sync()?;
        disks.scratch.sync()
    };
    let scripted = |name, text: &'static str, from: &'static dyn Fn(&Paths) -> &Path| Competitor {
        name,
        prepare: Box::new(renew),
        command: Box::new(move || script(text, &[from(paths), &paths.target])),
    };
    Ok(vec![
        scripted(COPY, "cp -a -- \"$1/.\" \"$2\"; sync -f \"$2\"", &|paths| &paths.source),
        Competitor {
            name: APPLY,
            prepare: Box::new(renew),
            command: Box::new(|| parts::command("apply", &paths.data, &paths.target)),
        },
        scripted(UNSQUASH, "unsquashfs -q -n -f -d \"$2\" \"$1\"; sync -f \"$2\"", &|paths| &paths.squashfs),
        scripted(UNTAR, "zstd -dc \"$1\" | tar --xattrs --acls -C \"$2\" -xp; sync -f \"$2\"", &|paths| {
            &paths.tar
        }),
    ])
}

fn verifies(paths: &Paths) -> Vec<Competitor<'_, Disks>> {
    let rsync = "found=$(rsync -aHAX --checksum --dry-run --itemize-changes --delete \"$1/\" \"$2/\"); \
                 echo \"$found\"; [ -z \"$found\" ]";
    let sync = |disks: &mut Disks| disks.target.sync();
    vec![
        Competitor {
            name: RSYNC,
            prepare: Box::new(sync),
            command: Box::new(move || script(rsync, &[&paths.source, &paths.target])),
        },
        Competitor {
            name: VERIFY,
            prepare: Box::new(sync),
            command: Box::new(|| parts::command("verify", &paths.data, &paths.target)),
        },
        Competitor {
            name: QUICK,
            prepare: Box::new(sync),
            command: Box::new(|| parts::command("quick", &paths.data, &paths.target)),
        },
    ]
}

fn print_table(results: &[(&'static str, Samples)]) -> Vec<Value> {
    let wall: fn(&Sample) -> f64 = |sample| sample.wall_s;
    let cpu: fn(&Sample) -> f64 = |sample| sample.cpu_s;
    let of = |name: &str| results.iter().find(|(other, _)| *other == name).map(|(_, samples)| samples);
    println!("{:24}   {:24}  wall: minima medians    CPU   bar", "what", "beside");
    let mut rows = Vec::new();
    for (what, reference, bar) in RATIOS {
        let Some((ours, theirs)) = of(what).zip(of(reference)) else { continue };
        let minima = ours.min(wall) / theirs.min(wall);
        let medians = ours.median(wall) / theirs.median(wall);
        let cpu = ours.median(cpu) / theirs.median(cpu);
        let verdict = bar.map_or(String::new(), |bar| {
            format!("{bar:5.2} {}", if minima <= bar { "met" } else { "missed" })
        });
        println!("{what:24} ÷ {reference:24}        {minima:6.3}  {medians:6.3} {cpu:6.2} {verdict}");
        rows.push(json!({
            "what": what,
            "reference": reference,
            "wall_minima": rounded(minima),
            "wall_medians": rounded(medians),
            "cpu_medians": rounded(cpu),
            "bar": bar,
            "met": bar.map(|bar| minima <= bar),
        }));
    }
    rows
}

fn rounded(ratio: f64) -> f64 {
    (ratio * 1000.0).round() / 1000.0
}

/// What is in a tree.
#[derive(Default)]
struct Facts {
    entries: u64,
    files: u64,
    file_bytes: u64,
    disk_bytes: u64,
}

impl Facts {
    fn of(source: &Path) -> anyhow::Result<Self> {
        let mut facts = Self { entries: 1, ..Self::default() };
        let device = source.metadata()?.dev();
        let mut waiting = vec![source.to_owned()];
        while let Some(folder) = waiting.pop() {
            for entry in std::fs::read_dir(&folder)? {
                let entry = entry?;
                let metadata = entry.metadata()?;
                if metadata.dev() != device {
                    continue;
                }
                facts.entries += 1;
                facts.disk_bytes += metadata.blocks() * 512;
                if metadata.is_dir() {
                    waiting.push(entry.path());
                } else if metadata.is_file() {
                    facts.files += 1;
                    facts.file_bytes += metadata.len();
                }
            }
        }
        Ok(facts)
    }

    fn json(&self) -> Value {
        json!({ "entries": self.entries, "files": self.files, "file_bytes": self.file_bytes })
    }
}
