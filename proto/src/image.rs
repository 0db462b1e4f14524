//! Images: what a tree is made of, and how it is cut.
//!
//! A file is cut into chunks ([`chunker`]), chunks are laid into blocks ([`layout`]), and the [`manifest`] says which
//! entries are made of which chunks. A small [`root`] record names the manifest's blocks; its CID is the image's id.

pub mod children;
pub mod chunker;
pub mod chunks;
pub mod drift;
pub mod entry;
pub mod layers;
pub mod layout;
pub mod manifest;
pub mod name;
pub mod path;
pub mod pieces;
pub mod plan;
pub mod root;
/// The message of `schema/image.proto`, unchecked: [`RootRecord`] is its checked form.
pub mod schema {
    include!(concat!(env!("OUT_DIR"), "/shoal.image.rs"));
}
pub mod tree;

pub use manifest::{Manifest, ManifestDecoder};
pub use name::{ImageName, NameRecord};
pub use path::ImagePath;
pub use pieces::{Piece, PieceIndex, PieceList};
pub use root::RootRecord;
