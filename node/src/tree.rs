//! Host file tree ↔ image.
//!
//! [`capture`] reads a tree into blocks, [`apply`] writes verified blocks into an empty tree, [`update`] makes a tree in
//! use another image, [`verify`] says where a tree and an image differ. All see a tree through one directory descriptor: only [`root`] opens anything below it,
//! one component at a time, and never through a symbolic link. So no manifest and no rearranged tree can lead them
//! elsewhere, and paths longer than the kernel takes in one call work.
//!
//! These are blocking functions with threads of their own; an async caller gives them a thread.

pub mod apply;
pub mod archive;
pub mod capture;
pub mod clear;
pub mod exclude;
pub mod export;
mod itemize;
mod metadata;
mod mounts;
mod project;
mod root;
pub mod rules;
mod survey;
pub mod update;
pub mod verify;

pub use itemize::Item;
pub use metadata::Aspect;

/// A directory that every fresh ext file system has, and no image.
pub const LOST_AND_FOUND: &[u8] = b"lost+found";
/// Where an update prepares what is new, at the top of each file system that it changes; there only meanwhile.
pub const STAGE: &[u8] = b".shoal-stage";
