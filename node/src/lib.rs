//! x
pub mod block;
pub mod store;
pub mod tree;
