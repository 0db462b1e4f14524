//! Host file tree ↔ image.
//!
//! [`capture`] reads a tree into blocks, [`apply`] writes verified blocks into a tree, [`verify`] says where a tree
//! and an image differ. All three see a tree through one directory descriptor: only [`root`] opens anything below it,
//! one component at a time, and never through a symbolic link. So no manifest and no rearranged tree can lead them
//! elsewhere, and paths longer than the kernel takes in one call work.
//!
//! These are blocking functions with threads of their own; an async caller gives them a thread.

pub mod apply;
pub mod capture;
pub mod clear;
pub mod exclude;
mod metadata;
mod project;
mod root;
pub mod verify;

pub use metadata::Aspect;
