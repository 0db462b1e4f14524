//! x
pub mod block;
