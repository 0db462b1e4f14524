//! A node that publishes: it captures trees, signs what they are called, and seeds them.
//!
//! [`catalog`] says which images there are, [`lists`] by which pieces they travel; [`publish`] captures and signs; [`serve`] is the main path: a peer with
//! everything to give. [`cluster`] says what each machine gets. [`boot`] gets the node's binary onto a machine that has
//! nothing yet. [`demo`] runs a seeder and many nodes in one process.
//!
//! **Invariant:** this crate has no exchange, store or transport of its own: role = storage + constructor.

pub mod assign;
pub mod bindings;
pub mod boot;
pub mod catalog;
pub mod cluster;
pub mod control;
pub mod dashboard;
pub mod demo;
pub mod export;
pub mod fleet;
pub mod golden;
pub mod home;
pub mod lists;
pub mod members;
pub mod progress;
pub mod publish;
pub mod releases;
pub mod rollouts;
pub mod serve;
pub mod source;
pub mod swarms;
