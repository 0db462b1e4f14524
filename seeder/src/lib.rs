//! A node that publishes: it captures trees, signs what they are called, and seeds them.
//!
//! [`catalog`] says which images there are, [`lists`] by which pieces they travel; [`publish`] captures and signs; [`serve`] is the main path: a peer with
//! everything to give. [`demo`] runs a seeder and many nodes in one process.
//!
//! **Invariant:** this crate has no exchange, store or transport of its own: role = storage + constructor.

pub mod catalog;
pub mod control;
pub mod demo;
pub mod home;
pub mod lists;
pub mod progress;
pub mod publish;
pub mod serve;
