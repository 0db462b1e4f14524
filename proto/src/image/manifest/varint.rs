//! Numbers in the manifest stream: base 128, lowest group first, in the fewest bytes.

use super::ManifestError;
use super::decode::Stop;

/// Longest spelling of a 64-bit number.
const VARINT_BYTES_MAX: usize = 10;

pub(super) fn put(out: &mut Vec<u8>, mut number: u64) {
    while number >= 0x80 {
        #[expect(clippy::cast_possible_truncation, reason = "the low seven bits are what is wanted")]
        out.push(number as u8 | 0x80);
        number >>= 7;
    }
    #[expect(clippy::cast_possible_truncation, reason = "less than 128")]
    out.push(number as u8);
}

/// Maps small numbers of either sign to small numbers: 0, -1, 1, -2 …
pub(super) fn zigzag(number: i64) -> u64 {
    (number.cast_unsigned() << 1) ^ (number >> 63).cast_unsigned()
}

pub(super) fn unzigzag(number: u64) -> i64 {
    (number >> 1).cast_signed() ^ -(number & 1).cast_signed()
}

/// Reads what came so far, and says when that is not enough.
#[derive(Debug)]
pub(super) struct Reader<'a> {
    bytes: &'a [u8],
    at: usize,
}

impl<'a> Reader<'a> {
    pub(super) fn new(bytes: &'a [u8]) -> Self {
        Self { bytes, at: 0 }
    }

    pub(super) fn consumed(&self) -> usize {
        self.at
    }

    pub(super) fn take(&mut self, len: usize) -> Result<&'a [u8], Stop> {
        let taken = self.bytes.get(self.at..).and_then(|rest| rest.get(..len)).ok_or(Stop::NeedMore)?;
        self.at += len;
        Ok(taken)
    }

    pub(super) fn byte(&mut self) -> Result<u8, Stop> {
        Ok(self.take(1)?[0])
    }

    pub(super) fn digest(&mut self) -> Result<[u8; 32], Stop> {
        Ok(*self.take(32)?.first_chunk().expect("32 were taken"))
    }

    pub(super) fn varint(&mut self) -> Result<u64, Stop> {
        let mut number = 0_u64;
        for place in 0..VARINT_BYTES_MAX {
            let byte = self.byte()?;
            if place == VARINT_BYTES_MAX - 1 && byte > 1 || place > 0 && byte == 0 {
                return Err(ManifestError::Number.into());
            }
            number |= u64::from(byte & 0x7f) << (7 * place);
            if byte < 0x80 {
                return Ok(number);
            }
        }
        Err(ManifestError::Number.into())
    }

    pub(super) fn varint_u32(&mut self) -> Result<u32, Stop> {
        u32::try_from(self.varint()?).map_err(|_| ManifestError::Number.into())
    }

    /// A length, at most `max`, checked before anything is set aside for it.
    pub(super) fn length(&mut self, max: usize) -> Result<usize, Stop> {
        usize::try_from(self.varint()?)
            .ok()
            .filter(|&length| length <= max)
            .ok_or_else(|| ManifestError::Length(max).into())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_have_one_spelling() {
        for number in [0, 1, 127, 128, 16_383, 16_384, u64::from(u32::MAX), u64::MAX - 1, u64::MAX] {
            let mut bytes = Vec::new();
            put(&mut bytes, number);
            let mut reader = Reader::new(&bytes);
            assert_eq!(reader.varint().ok(), Some(number));
            assert_eq!(reader.consumed(), bytes.len());
            assert!(matches!(Reader::new(&bytes[..bytes.len() - 1]).varint(), Err(Stop::NeedMore)));
        }
        for bytes in [&[0x80, 0][..], &[0xff; 10], &[0x80, 0x80, 0x80, 0x80, 0x80, 0x80, 0x80, 0x80, 0x80, 2]]
        {
            assert!(matches!(Reader::new(bytes).varint(), Err(Stop::Refuse(ManifestError::Number))));
        }
        for number in [0, -1, 1, i64::MIN, i64::MAX] {
            assert_eq!(unzigzag(zigzag(number)), number);
        }
    }
}
