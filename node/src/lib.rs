//! A machine that takes part: it fetches an image's blocks from its peers, writes the tree and serves what it has.
//!
//! [`install`] is the main path, [`goal`] what a tree is to become. [`peer`] is the only folder that knows libp2p, [`store`] keeps compressed blocks
//! (only `store/index.rs` knows sled), [`tree`] reads and writes file trees, [`state`] remembers between runs. A
//! seeder is a caller of this library with everything to give.

pub mod agent;
pub mod block;
pub mod buffer;
mod change;
pub mod clock;
pub mod command;
pub mod control;
pub mod disks;
pub mod durable;
pub mod elf;
pub mod exit;
pub mod goal;
mod identity;
pub mod install;
pub mod join;
pub mod keys;
pub mod manifest;
mod mountinfo;
pub mod offer;
pub mod peer;
pub mod progress;
pub mod rack;
pub mod replace;
pub mod scripts;
pub mod state;
pub mod store;
pub mod tree;
pub mod update;
pub mod verify;
