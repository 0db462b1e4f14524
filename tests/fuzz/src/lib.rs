//! What is done with arbitrary bytes to show that no decoder falls over them.
//!
//! Each function takes one input, whatever it is, and panics when an invariant is broken. The targets in `targets/`
//! hand them to libFuzzer; `cargo test` replays the corpus, and every input that once failed, through the same
//! functions:
//!
//! ```text
//! cargo install cargo-fuzz
//! RUSTC_BOOTSTRAP=1 cargo fuzz run --fuzz-dir tests/fuzz --features libfuzzer fuzz-frame tests/fuzz/corpus/frame
//! ```

mod exchange;
mod pack;
mod wire;

#[path = "../../../proto/tests/hostile/stream.rs"]
#[expect(dead_code, clippy::unwrap_used, reason = "the hand that writes manifests for tests too")]
mod stream;

#[path = "../../../proto/tests/exchange/model.rs"]
mod model;

mod image;

pub use exchange::exchange;
pub use image::{manifest, root, ticket};
pub use pack::{pack, pack_file};
pub use wire::{bulk, frame};

/// A target: its name, which is that of its folder in the corpus too, and what it does with an input.
pub type Target = (&'static str, fn(&[u8]));

/// All targets.
pub const TARGETS: &[Target] = &[
    ("frame", frame),
    ("bulk", bulk),
    ("manifest", manifest),
    ("root", root),
    ("ticket", ticket),
    ("pack", pack),
    ("exchange", exchange),
];

/// Takes numbers off the front of an input; zeroes once it is used up.
struct Script<'a>(&'a [u8]);

impl<'a> Script<'a> {
    fn is_over(&self) -> bool {
        self.0.is_empty()
    }

    fn byte(&mut self) -> u8 {
        match self.0.split_first() {
            Some((&byte, rest)) => {
                self.0 = rest;
                byte
            }
            None => 0,
        }
    }

    fn below(&mut self, bound: u32) -> u32 {
        u32::from(self.byte()) % bound
    }

    fn number(&mut self) -> u32 {
        u32::from_le_bytes([self.byte(), self.byte(), self.byte(), self.byte()])
    }

    /// As many bytes as there are left, at most `count`.
    fn bytes(&mut self, count: usize) -> &'a [u8] {
        let (taken, rest) = self.0.split_at(count.min(self.0.len()));
        self.0 = rest;
        taken
    }
}
