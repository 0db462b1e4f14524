//! Images: what a tree is made of, and how it is cut.

pub mod pieces;

pub use pieces::{PieceIndex, PieceList};
