//! What a transfer costs, and medians of several.

use harness::Process;

/// What one process took for one transfer.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Cost {
    /// User and system seconds.
    pub(crate) cpu_s: f64,
    pub(crate) peak_rss_bytes: u64,
}

/// Of both sides.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Costs {
    pub(crate) serving: Cost,
    pub(crate) receiving: Cost,
    pub(crate) elapsed_s: f64,
}

impl Costs {
    /// Of two processes that are done and still there, the sender's since it had taken `before_s`.
    pub(crate) fn between(sender: &Process, before_s: f64, receiver: &Process, elapsed_s: f64) -> Self {
        Self {
            serving: Cost { cpu_s: sender.cpu_s() - before_s, peak_rss_bytes: sender.peak_rss_bytes() },
            receiving: Cost { cpu_s: receiver.cpu_s(), peak_rss_bytes: receiver.peak_rss_bytes() },
            elapsed_s,
        }
    }
}

pub(crate) fn median(of: impl Iterator<Item = f64>) -> f64 {
    let mut all: Vec<f64> = of.collect();
    all.sort_by(f64::total_cmp);
    let middle = all.len() / 2;
    if all.len() % 2 == 1 { all[middle] } else { f64::midpoint(all[middle - 1], all[middle]) }
}
