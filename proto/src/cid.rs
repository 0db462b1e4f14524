//! Names of bytes: BLAKE3-256, shown to people and sent to peers as CIDv1 (raw codec).

use std::fmt;
use std::str::FromStr;

use multihash::Multihash;

/// Multicodec of uninterpreted bytes (multiformats table).
const CODEC_RAW: u64 = 0x55;
/// Multihash code of BLAKE3 (multiformats table).
const MULTIHASH_BLAKE3: u64 = 0x1e;
/// Bytes of a BLAKE3-256 digest.
pub const DIGEST_BYTES: usize = 32;

/// The name of a block, of a manifest block or of a root record: BLAKE3-256 of its uncompressed bytes.
///
/// Held as the bare digest (32 bytes; `cid::Cid` takes 96), turned into a CIDv1 at the edges.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Cid([u8; DIGEST_BYTES]);

/// The name of a chunk: BLAKE3-256 of its raw bytes. Never leaves a manifest, so it has no text form of its own.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct ChunkId([u8; DIGEST_BYTES]);

/// Text or bytes that are no CID of ours.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum CidError {
    #[error("not a CID: {0}")]
    Malformed(String),
    #[error("a CID of another kind: need CIDv1, raw, BLAKE3-256")]
    OtherKind,
}

impl Cid {
    /// Names `bytes`.
    pub fn of(bytes: &[u8]) -> Self {
        Self(*blake3::hash(bytes).as_bytes())
    }

    /// Takes a digest that a caller computed or a checked message carried.
    pub const fn from_digest(digest: [u8; DIGEST_BYTES]) -> Self {
        Self(digest)
    }

    pub const fn digest(&self) -> &[u8; DIGEST_BYTES] {
        &self.0
    }

    /// Reads the 36 bytes of a binary CIDv1, refusing any other codec, hash or length.
    pub fn from_cid_bytes(bytes: &[u8]) -> Result<Self, CidError> {
        let parsed = cid::Cid::try_from(bytes).map_err(|source| CidError::Malformed(source.to_string()))?;
        let known = Self::from_parsed(&parsed)?;
        // A varint may be written longer than it needs; one name has one spelling.
        if known.to_cid_bytes() != bytes {
            return Err(CidError::OtherKind);
        }
        Ok(known)
    }

    pub fn to_cid_bytes(self) -> Vec<u8> {
        self.to_parsed().to_bytes()
    }

    fn from_parsed(parsed: &cid::Cid) -> Result<Self, CidError> {
        let hash = parsed.hash();
        let digest: [u8; DIGEST_BYTES] = hash.digest().try_into().map_err(|_| CidError::OtherKind)?;
        if parsed.version() != cid::Version::V1
            || parsed.codec() != CODEC_RAW
            || hash.code() != MULTIHASH_BLAKE3
        {
            return Err(CidError::OtherKind);
        }
        Ok(Self(digest))
    }

    fn to_parsed(self) -> cid::Cid {
        let hash = Multihash::wrap(MULTIHASH_BLAKE3, &self.0).expect("32 bytes fit a 64-byte multihash");
        cid::Cid::new_v1(CODEC_RAW, hash)
    }
}

impl FromStr for Cid {
    type Err = CidError;

    fn from_str(text: &str) -> Result<Self, CidError> {
        let parsed = cid::Cid::try_from(text).map_err(|source| CidError::Malformed(source.to_string()))?;
        Self::from_parsed(&parsed)
    }
}

impl fmt::Display for Cid {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.to_parsed().fmt(f)
    }
}

impl fmt::Debug for Cid {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

impl ChunkId {
    /// Names `bytes`.
    pub fn of(bytes: &[u8]) -> Self {
        Self(*blake3::hash(bytes).as_bytes())
    }

    pub const fn from_digest(digest: [u8; DIGEST_BYTES]) -> Self {
        Self(digest)
    }

    pub const fn digest(&self) -> &[u8; DIGEST_BYTES] {
        &self.0
    }
}

impl fmt::Debug for ChunkId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}", data_encoding::HEXLOWER.encode(&self.0))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn text_and_bytes_round_trip() {
        let cid = Cid::of(b"shoal");
        assert_eq!(cid.to_string().parse(), Ok(cid));
        let bytes = cid.to_cid_bytes();
        assert_eq!(bytes.len(), 36);
        assert_eq!(bytes[..4], [0x01, 0x55, 0x1e, 0x20]);
        assert_eq!(Cid::from_cid_bytes(&bytes), Ok(cid));
    }

    #[test]
    fn other_kinds_of_cid_are_refused() {
        let sha2 = Multihash::<64>::wrap(0x12, &[7; 32]).unwrap();
        let short = Multihash::<64>::wrap(MULTIHASH_BLAKE3, &[7; 20]).unwrap();
        for other in [
            cid::Cid::new_v1(CODEC_RAW, sha2),
            cid::Cid::new_v1(CODEC_RAW, short),
            cid::Cid::new_v1(0x70, Multihash::wrap(MULTIHASH_BLAKE3, &[7; 32]).unwrap()),
        ] {
            assert_eq!(other.to_string().parse::<Cid>(), Err(CidError::OtherKind));
            assert_eq!(Cid::from_cid_bytes(&other.to_bytes()), Err(CidError::OtherKind));
        }
        assert!("debian-12".parse::<Cid>().is_err());
    }
}
