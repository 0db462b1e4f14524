//! What happened to one host, line by line.

use shoal_proto::time::Time;

/// Most lines kept: a trace is read by people.
const LINES_MAX: usize = 1_000_000;

#[derive(Clone, Debug, Default)]
pub(crate) struct Trace {
    lines: Vec<String>,
    dropped: u64,
}

impl Trace {
    pub(crate) fn say(&mut self, now: Time, line: String) {
        if self.lines.len() < LINES_MAX {
            self.lines.push(format!("{:>12.6} {line}", now.since(Time::ZERO).as_secs_f64()));
        } else {
            self.dropped += 1;
        }
    }

    pub(crate) fn text(&self) -> String {
        let mut text = self.lines.join("\n");
        if self.dropped > 0 {
            text += &format!("\n… and {} lines more", self.dropped);
        }
        text
    }
}
