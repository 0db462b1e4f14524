//! Images: what a tree is made of, and how it is cut.

pub mod name;
pub mod pieces;

pub use name::{ImageName, NameRecord};
pub use pieces::{Piece, PieceIndex, PieceList};
