//! A machine that takes part: it fetches an image's blocks from its peers, writes the tree and serves what it has.
//!
//! [`install`] is the main path. [`peer`] is the only folder that knows libp2p, [`store`] keeps compressed blocks
//! (only `store/index.rs` knows sled), [`tree`] reads and writes file trees, [`state`] remembers between runs. A
//! seeder is a caller of this library with everything to give.

pub mod block;
mod change;
pub mod durable;
pub mod exit;
pub mod install;
pub mod join;
pub mod keys;
pub mod manifest;
mod mountinfo;
pub mod peer;
pub mod progress;
pub mod rack;
pub mod state;
pub mod store;
pub mod tree;
pub mod update;
pub mod verify;
