//! Who takes part, in turns; what it came to, and what was promised.

use std::fs::File;
use std::io::Write;
use std::path::Path;

use harness::Process;
use serde_json::{Value, json};

use crate::Arguments;
use crate::measure::{Costs, median};
use crate::read_noise;
use crate::shoal::Image;
use crate::torrents::{Tool, Torrent};

const FILES: u64 = 32;
const SERVING_MAX: f64 = 1.25;
const RECEIVING_MAX: f64 = 1.6;
const RATE_MIN: f64 = 0.8;
const PEAK_RSS_BYTES_MAX: f64 = 150e6;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Competitor {
    Shoal,
    Bare,
    Other(Tool),
}

impl Competitor {
    const fn name(self) -> &'static str {
        match self {
            Self::Shoal => "shoal",
            Self::Bare => "bare libp2p",
            Self::Other(tool) => tool.name(),
        }
    }
}

/// The medians of one competitor.
struct Row {
    name: &'static str,
    serving_s_per_gb: f64,
    receiving_s_per_gb: f64,
    bytes_per_s: f64,
    serving_peak_bytes: f64,
    receiving_peak_bytes: f64,
}

/// Measures in `folder`, which has room, and prints the tables; returns them as JSON.
pub(crate) fn run(options: &Arguments, folder: &Path) -> anyhow::Result<Value> {
    let source = folder.join("source");
    write_noise(&source, options.bytes)?;
    let image = Image::capture(&source, folder)?;
    let torrent = match &options.with[..] {
        [] => {
            std::fs::remove_dir_all(&source)?;
            None
        }
        tools => Some(Torrent::make(&source, folder, tools)?),
    };
    let competitors: Vec<Competitor> = [Competitor::Bare, Competitor::Shoal]
        .into_iter()
        .chain(options.with.iter().copied().map(Competitor::Other))
        .collect();
    let mut costs: Vec<Vec<Costs>> = competitors.iter().map(|_| Vec::new()).collect();
    for _ in 0..options.runs {
        for (competitor, costs) in competitors.iter().zip(&mut costs) {
            let cost = match (competitor, &torrent) {
                (Competitor::Shoal, _) => image.transfer(options.bytes)?,
                (Competitor::Bare, _) => transfer_bare(options.bytes)?,
                (Competitor::Other(tool), Some(torrent)) => torrent.transfer(*tool, options.bytes)?,
                (Competitor::Other(_), None) => unreachable!("a torrent was made for the tools"),
            };
            let Costs { serving, receiving, elapsed_s } = cost;
            let name = competitor.name();
            eprintln!("{name:12} {elapsed_s:6.2} s, CPU {:.2} s and {:.2} s", serving.cpu_s, receiving.cpu_s);
            costs.push(cost);
        }
    }
    let rows: Vec<Row> = competitors
        .iter()
        .zip(&costs)
        .map(|(who, costs)| Row::of(who.name(), costs, options.bytes))
        .collect();
    print_rows(&rows);
    let ratios = print_ratios(&rows);
    let congestion_control = std::fs::read_to_string("/proc/sys/net/ipv4/tcp_congestion_control")?;
    Ok(json!({
        "bytes": options.bytes,
        "runs": options.runs,
        "cores": std::thread::available_parallelism().map_or(0, usize::from),
        "congestion_control": congestion_control.trim(),
        "transfers": rows.iter().map(Row::json).collect::<Vec<_>>(),
        "ratios": ratios,
    }))
}

fn transfer_bare(bytes: u64) -> anyhow::Result<Costs> {
    let bytes = bytes.to_string();
    let sender = Process::start(crate::part(&["send", &bytes]));
    let listening: Value = serde_json::from_str(&sender.stdout_line(|line| line.contains("listening")))?;
    let before_s = sender.cpu_s();
    let address = harness::text(&listening, "listening");
    let receiver = Process::start(crate::part(&["receive", &address, &bytes]));
    let done: Value = serde_json::from_str(&receiver.stdout_line(|line| line.contains("elapsed_s")))?;
    Ok(Costs::between(&sender, before_s, &receiver, done["elapsed_s"].as_f64().unwrap_or(f64::NAN)))
}

/// Files that do not compress.
fn write_noise(folder: &Path, bytes: u64) -> anyhow::Result<()> {
    std::fs::create_dir(folder)?;
    let mut noise = vec![0; 1 << 20];
    for number in 0..FILES {
        let mut file = File::create(folder.join(format!("{number:02}")))?;
        let mut left = bytes * (number + 1) / FILES - bytes * number / FILES;
        while left > 0 {
            let some = usize::try_from(left).unwrap_or(usize::MAX).min(noise.len());
            read_noise(&mut noise[..some])?;
            file.write_all(&noise[..some])?;
            left -= some as u64;
        }
    }
    Ok(())
}

impl Row {
    fn of(name: &'static str, costs: &[Costs], bytes: u64) -> Self {
        let gb = bytes as f64 / 1e9;
        let of = |figure: fn(&Costs) -> f64| median(costs.iter().map(figure));
        Self {
            name,
            serving_s_per_gb: of(|costs| costs.serving.cpu_s) / gb,
            receiving_s_per_gb: of(|costs| costs.receiving.cpu_s) / gb,
            bytes_per_s: bytes as f64 / of(|costs| costs.elapsed_s),
            serving_peak_bytes: of(|costs| costs.serving.peak_rss_bytes as f64),
            receiving_peak_bytes: of(|costs| costs.receiving.peak_rss_bytes as f64),
        }
    }

    fn json(&self) -> Value {
        json!({
            "name": self.name,
            "serving_cpu_s_per_gb": rounded(self.serving_s_per_gb),
            "receiving_cpu_s_per_gb": rounded(self.receiving_s_per_gb),
            "bytes_per_s": self.bytes_per_s.round(),
            "serving_peak_rss_bytes": self.serving_peak_bytes,
            "receiving_peak_rss_bytes": self.receiving_peak_bytes,
        })
    }
}

fn print_rows(rows: &[Row]) {
    println!("\n{:12} {:>19} {:>8} {:>19}", "medians", "CPU-seconds per GB", "", "peak MB");
    println!(
        "{:12} {:>9} {:>9} {:>8} {:>9} {:>9}",
        "", "serving", "receiving", "MB/s", "serving", "receiving"
    );
    for row in rows {
        println!(
            "{:12} {:9.2} {:9.2} {:8.0} {:9.0} {:9.0}",
            row.name,
            row.serving_s_per_gb,
            row.receiving_s_per_gb,
            row.bytes_per_s / 1e6,
            row.serving_peak_bytes / 1e6,
            row.receiving_peak_bytes / 1e6,
        );
    }
}

/// What was promised of Shoal.
struct Bar {
    what: String,
    found: f64,
    bar: f64,
    /// Whether less is better.
    at_most: bool,
}

fn print_ratios(rows: &[Row]) -> Vec<Value> {
    let row = |name| rows.iter().find(|row| row.name == name).expect("both take part in every run");
    let (shoal, bare) = (row(Competitor::Shoal.name()), row(Competitor::Bare.name()));
    let at_most = |what: &str, found, bar| Bar { what: what.to_owned(), found, bar, at_most: true };
    let serving = shoal.serving_s_per_gb / bare.serving_s_per_gb;
    let receiving = shoal.receiving_s_per_gb / bare.receiving_s_per_gb;
    let mut bars = vec![
        at_most("serving ÷ bare sender, CPU", serving, SERVING_MAX),
        at_most("receiving ÷ bare receiver, CPU", receiving, RECEIVING_MAX),
        at_most("seeder's peak ÷ 150 MB", shoal.serving_peak_bytes / PEAK_RSS_BYTES_MAX, 1.0),
        at_most("node's peak ÷ 150 MB", shoal.receiving_peak_bytes / PEAK_RSS_BYTES_MAX, 1.0),
    ];
    for other in rows.iter().filter(|row| ![shoal.name, bare.name].contains(&row.name)) {
        let what = format!("bytes per second ÷ {}'s", other.name);
        bars.push(Bar { what, found: shoal.bytes_per_s / other.bytes_per_s, bar: RATE_MIN, at_most: false });
    }
    println!();
    for bar in &bars {
        let sign = if bar.at_most { '≤' } else { '≥' };
        let verdict = if bar.is_met() { "" } else { "  MISSED" };
        println!("{:34} {:6.3}  {sign} {:.2}{verdict}", bar.what, bar.found, bar.bar);
    }
    let line = |bar: &Bar| json!({ "what": bar.what, "ratio": rounded(bar.found), "bar": bar.bar, "met": bar.is_met() });
    bars.iter().map(line).collect()
}

impl Bar {
    fn is_met(&self) -> bool {
        if self.at_most { self.found <= self.bar } else { self.found >= self.bar }
    }
}

fn rounded(figure: f64) -> f64 {
    (figure * 1000.0).round() / 1000.0
}
