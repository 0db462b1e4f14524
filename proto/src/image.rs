//! Images: what a tree is made of, and how it is cut.

pub mod name;
pub mod pieces;

pub use name::{ImageName, NameRecord};
pub use pieces::{Piece, PieceIndex, PieceList};

#[derive(Debug, Clone, PartialEq, Eq)]
pub struct RootRecord(Vec<u8>);
impl crate::signing::Statement for RootRecord {
    const DOMAIN: &'static str = "x";
    type Error = std::fmt::Error;
    fn to_payload(&self) -> Vec<u8> {
        self.0.clone()
    }
    fn from_payload(payload: &[u8]) -> Result<Self, Self::Error> {
        Ok(Self(payload.to_vec()))
    }
}
