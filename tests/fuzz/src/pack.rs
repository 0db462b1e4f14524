//! A pack file as a crash, a bad disk or an enemy with access to it left it.
//!
//! The layout of a record is restated here: bytes that chance alone would never give a right checksum get one.

use std::fs::File;
use std::io::Write;

use shoal_node::block::EncodedBlock;
use shoal_node::store::read_pack;

use crate::Script;

const PACK_HEADER: &[u8; 16] = b"shoal pack 0001\n";

/// Writes a pack as the input says, then reads it twice.
pub fn pack(input: &[u8]) {
    let (bytes, intact) = pack_file(input);
    let Ok(file) = in_memory(&bytes) else { return };
    let (found, end) = read_pack(&file).expect("memory reads");
    assert!(end <= bytes.len() as u64);
    if let Some(intact) = intact {
        assert!(found == intact, "an intact pack holds what was put there");
    }
    // Cut where the good records end, it holds the same.
    file.set_len(end).expect("memory shrinks");
    let (again, again_end) = read_pack(&file).expect("memory reads");
    assert!(again == found && again_end == end, "a pack cut at its end holds what it held");
}

/// The pack that an input describes; with its blocks when nothing but good records is in it.
pub fn pack_file(input: &[u8]) -> (Vec<u8>, Option<Vec<EncodedBlock>>) {
    let mut script = Script(input);
    let mut bytes = PACK_HEADER.to_vec();
    let mut blocks = Some(Vec::new());
    while !script.is_over() {
        match script.below(8) {
            0..=2 => {
                let count = usize::from(script.byte());
                let block = EncodedBlock::encode(script.bytes(count), 1);
                bytes.extend(record(&block, block.raw_bytes));
                blocks.iter_mut().for_each(|blocks| blocks.push(block.clone()));
                continue;
            }
            3 => {
                // A record with the right sums of the wrong bytes.
                let count = usize::from(script.byte());
                let mut block = EncodedBlock::encode(script.bytes(count), 1);
                let raw_bytes = script.number();
                block.payload = [&block.payload, script.bytes(3)].concat().into();
                bytes.extend(record(&block, raw_bytes));
            }
            4 => {
                let count = usize::from(script.byte());
                bytes.extend_from_slice(script.bytes(count));
            }
            5 => {
                let at = script.number() as usize % bytes.len();
                bytes[at] ^= script.byte();
            }
            6 => bytes.truncate(script.number() as usize % bytes.len() + 1),
            _ => {
                let (from, count) = (script.number() as usize % bytes.len(), usize::from(script.byte()));
                let copied = bytes[from..(from + count).min(bytes.len())].to_vec();
                bytes.extend(copied);
            }
        }
        blocks = None;
    }
    (bytes, blocks)
}

fn record(block: &EncodedBlock, raw_bytes: u32) -> Vec<u8> {
    let mut record = b"\xf5SB\x9d".to_vec();
    record.extend_from_slice(block.cid.digest());
    record.push(block.encoding.code());
    record.extend_from_slice(&raw_bytes.to_le_bytes());
    record.extend_from_slice(&u32::try_from(block.payload.len()).expect("a short payload").to_le_bytes());
    record.extend_from_slice(&crc32c::crc32c(&block.payload).to_le_bytes());
    record.extend_from_slice(&crc32c::crc32c(&record).to_le_bytes());
    record.extend_from_slice(&block.payload);
    record
}

fn in_memory(bytes: &[u8]) -> std::io::Result<File> {
    let file = rustix::fs::memfd_create("pack", rustix::fs::MemfdFlags::CLOEXEC)?;
    let mut file = File::from(file);
    file.write_all(bytes)?;
    Ok(file)
}
