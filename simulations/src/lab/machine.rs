//! The machine that a result is of.

use std::fs;

use serde::Serialize;

#[derive(Debug, Serialize)]
pub(super) struct Machine {
    pub(super) cpu: String,
    pub(super) cores: usize,
    pub(super) memory_bytes: u64,
    pub(super) kernel: String,
}

impl Machine {
    pub(super) fn this() -> Self {
        let memory_kib = field("/proc/meminfo", "MemTotal").trim_end_matches(" kB").parse().unwrap_or(0);
        Self {
            cpu: field("/proc/cpuinfo", "model name"),
            cores: cores(),
            memory_bytes: memory_kib * 1024,
            kernel: fs::read_to_string("/proc/sys/kernel/osrelease").unwrap_or_default().trim().to_owned(),
        }
    }
}

pub(super) fn cores() -> usize {
    std::thread::available_parallelism().map_or(1, usize::from)
}

/// The first value called `name` in a file of lines `name : value`; empty where there is none.
fn field(path: &str, name: &str) -> String {
    let text = fs::read_to_string(path).unwrap_or_default();
    let mut fields = text.lines().filter_map(|line| line.split_once(':'));
    fields
        .find(|(found, _)| found.trim() == name)
        .map_or_else(String::new, |(_, value)| value.trim().to_owned())
}
