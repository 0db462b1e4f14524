//! Whether a program runs on any machine of its architecture.

/// Where the header of an ELF file of 64 bits says where its program headers begin, how long each is, and how many.
const FIRST_AT: usize = 32;
const SIZE_AT: usize = 54;
const COUNT_AT: usize = 56;
/// The program header that names a loader.
const PT_INTERP: u64 = 3;

/// Whether a program asks for a loader, and so for the libraries of the machine that it was built on; `None` when it is
/// no ELF file for little-endian machines of 64 bits.
pub fn asks_for_loader(bytes: &[u8]) -> Option<bool> {
    if !bytes.starts_with(b"\x7fELF\x02\x01") {
        return None;
    }
    let field = |at: usize, length: usize| -> Option<u64> {
        let bytes = bytes.get(at..at.checked_add(length)?)?;
        Some(bytes.iter().rev().fold(0, |value, byte| value << 8 | u64::from(*byte)))
    };
    let place = |at, length| field(at, length).and_then(|value| usize::try_from(value).ok());
    let (first, size, count) = (place(FIRST_AT, 8)?, place(SIZE_AT, 2)?, place(COUNT_AT, 2)?);
    for index in 0..count {
        if field(first.checked_add(index * size)?, 4)? == PT_INTERP {
            return Some(true);
        }
    }
    Some(false)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_program_that_names_a_loader_is_told_from_one_that_needs_nothing() {
        let mut program = vec![0; 64 + 56];
        program[..6].copy_from_slice(b"\x7fELF\x02\x01");
        (program[FIRST_AT], program[SIZE_AT], program[COUNT_AT]) = (64, 56, 1);
        program[64] = 1;
        assert_eq!(asks_for_loader(&program), Some(false));
        assert_eq!(asks_for_loader(&program[..64]), None);
        program[64] = 3;
        assert_eq!(asks_for_loader(&program), Some(true));
        assert_eq!(asks_for_loader(b"#!/bin/sh\n"), None);
        let sh = std::fs::read("/bin/sh").unwrap();
        assert!(asks_for_loader(&sh).is_some());
    }
}
