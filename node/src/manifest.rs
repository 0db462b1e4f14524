//! A manifest read back from the blocks that a store holds.

use shoal_proto::cid::Cid;
use shoal_proto::image::{Manifest, RootRecord};

use crate::block::DecodeError;
use crate::store::{self, Store};

#[derive(Debug, thiserror::Error)]
pub enum Error {
    #[error(transparent)]
    Store(#[from] store::Error),
    #[error("manifest block {0} is not in the store")]
    Missing(Cid),
    #[error(transparent)]
    Block(#[from] DecodeError),
}
