//! Statements of the publisher: bytes, a signature, and the only way from there to something believed.

use std::marker::PhantomData;
use std::ops::Deref;

pub use libp2p_identity::{Keypair, PeerId, PublicKey};

use crate::cid::Cid;

/// Most bytes that a signed payload may have: those of the longest root record.
pub const SIGNED_BYTES_MAX: usize = crate::image::root::ROOT_BYTES_MAX;
/// Bytes of an ed25519 signature (RFC 8032).
pub const SIGNATURE_BYTES: usize = 64;

/// Something that a publisher states under its key.
pub trait Statement: Sized {
    /// Signed together with the payload, so that one kind of statement can never pass for another.
    const DOMAIN: &'static str;
    /// What failed, when the payload is no such statement.
    type Error: std::error::Error;

    fn to_payload(&self) -> Vec<u8>;
    fn from_payload(payload: &[u8]) -> Result<Self, Self::Error>;
}

/// A statement as it travels and rests: not yet believed. [`Signed::verify`] is the only way to its content.
pub struct Signed<T> {
    payload: Vec<u8>,
    signature: Vec<u8>,
    kind: PhantomData<fn() -> T>,
}

/// A statement that the pinned publisher made.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Verified<T>(T);

/// Why a statement is not believed.
#[derive(Debug, thiserror::Error)]
pub enum SignatureError<E> {
    #[error("{bytes} signed bytes where at most {SIGNED_BYTES_MAX} are allowed")]
    TooLong { bytes: usize },
    #[error("the signature is not the publisher's")]
    NotThePublisher,
    #[error("the publisher signed something unreadable")]
    Unreadable(#[source] E),
}

impl<T: Statement> Signed<T> {
    /// States `statement` under `key`.
    pub fn sign(statement: &T, key: &Keypair) -> Self {
        let payload = statement.to_payload();
        let signature = key.sign(&Self::signed_bytes(&payload)).expect("ed25519 signs any bytes");
        Self { payload, signature, kind: PhantomData }
    }

    /// Takes what arrived or was read; nothing is checked yet.
    pub fn from_parts(payload: Vec<u8>, signature: Vec<u8>) -> Self {
        Self { payload, signature, kind: PhantomData }
    }

    pub fn payload(&self) -> &[u8] {
        &self.payload
    }

    pub fn signature(&self) -> &[u8] {
        &self.signature
    }

    /// The CID of the payload; of a root record, the image id.
    pub fn cid(&self) -> Cid {
        Cid::of(&self.payload)
    }

    pub fn verify(&self, publisher: &PublicKey) -> Result<Verified<T>, SignatureError<T::Error>> {
        if self.payload.len() > SIGNED_BYTES_MAX {
            return Err(SignatureError::TooLong { bytes: self.payload.len() });
        }
        if !publisher.verify(&Self::signed_bytes(&self.payload), &self.signature) {
            return Err(SignatureError::NotThePublisher);
        }
        T::from_payload(&self.payload).map(Verified).map_err(SignatureError::Unreadable)
    }

    fn signed_bytes(payload: &[u8]) -> Vec<u8> {
        let mut bytes = Vec::with_capacity(T::DOMAIN.len() + 1 + payload.len());
        bytes.extend_from_slice(T::DOMAIN.as_bytes());
        bytes.push(0);
        bytes.extend_from_slice(payload);
        bytes
    }
}

impl<T> Clone for Signed<T> {
    fn clone(&self) -> Self {
        Self { payload: self.payload.clone(), signature: self.signature.clone(), kind: PhantomData }
    }
}

impl<T> std::fmt::Debug for Signed<T> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Signed({} bytes)", self.payload.len())
    }
}

impl<T> PartialEq for Signed<T> {
    fn eq(&self, other: &Self) -> bool {
        self.payload == other.payload && self.signature == other.signature
    }
}

impl<T> Eq for Signed<T> {}

impl<T> Verified<T> {
    pub fn into_inner(self) -> T {
        self.0
    }
}

impl<T> Deref for Verified<T> {
    type Target = T;

    fn deref(&self) -> &T {
        &self.0
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[derive(Debug, PartialEq)]
    struct Note(Vec<u8>);
    impl Statement for Note {
        const DOMAIN: &'static str = "note";
        type Error = std::fmt::Error;
        fn to_payload(&self) -> Vec<u8> {
            self.0.clone()
        }
        fn from_payload(payload: &[u8]) -> Result<Self, Self::Error> {
            Ok(Self(payload.to_vec()))
        }
    }

    #[derive(Debug)]
    struct OtherKind;
    impl Statement for OtherKind {
        const DOMAIN: &'static str = "other";
        type Error = std::fmt::Error;
        fn to_payload(&self) -> Vec<u8> {
            b"hello".to_vec()
        }
        fn from_payload(_: &[u8]) -> Result<Self, Self::Error> {
            Ok(Self)
        }
    }

    fn key(seed: u8) -> Keypair {
        Keypair::ed25519_from_bytes([seed; 32]).unwrap()
    }

    #[test]
    fn only_the_publishers_untouched_statement_is_believed() {
        let signed = Signed::sign(&Note(b"hello".to_vec()), &key(1));
        assert_eq!(*signed.verify(&key(1).public()).unwrap(), Note(b"hello".to_vec()));
        assert!(matches!(signed.verify(&key(2).public()), Err(SignatureError::NotThePublisher)));
        let touched = Signed::<Note>::from_parts(b"hullo".to_vec(), signed.signature().to_vec());
        assert!(matches!(touched.verify(&key(1).public()), Err(SignatureError::NotThePublisher)));
    }

    #[test]
    fn one_kind_of_statement_never_passes_for_another() {
        let other = Signed::sign(&OtherKind, &key(1));
        let posing = Signed::<Note>::from_parts(other.payload().to_vec(), other.signature().to_vec());
        assert!(matches!(posing.verify(&key(1).public()), Err(SignatureError::NotThePublisher)));
    }
}
