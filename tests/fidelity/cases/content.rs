//! Bytes, sizes, holes.

use std::os::unix::fs::FileExt;

use harness::Noise;
use rustix::fs::FallocateFlags;

use super::*;

const K: usize = 1 << 10;

fn noise(at: &At, name: &str, length: usize) -> io::Result<()> {
    let seed = u64::try_from(length).expect("a length") + 1;
    at.file(name, &Noise::new(seed).bytes(length)).map(drop)
}

/// A file of `size` bytes that are holes but for runs of noise: where and how long.
fn sparse(at: &At, name: &str, size: u64, runs: &[(u64, usize)]) -> io::Result<()> {
    let file = File::create(at.path(name))?;
    file.set_len(size)?;
    for &(start, length) in runs {
        file.write_all_at(&Noise::new(start + 3).bytes(length), start)?;
    }
    // A file system may guess at first how much room a file will want.
    file.sync_all()
}

pub(super) const CASES: &[Case] = &[
    case("an empty file", |at| at.file("f", b"").map(drop)),
    case("an empty folder", |at| at.folder("d").map(drop)),
    case("one byte", |at| at.file("f", b"1").map(drop)),
    case("about 16 KiB", |at| {
        (16 * K - 1..=16 * K + 1).try_for_each(|length| noise(at, &length.to_string(), length))
    }),
    case("about 64 KiB", |at| {
        (64 * K - 1..=64 * K + 1).try_for_each(|length| noise(at, &length.to_string(), length))
    }),
    case("about 256 KiB", |at| {
        (256 * K - 1..=256 * K + 1).try_for_each(|length| noise(at, &length.to_string(), length))
    }),
    case("about 1 MiB", |at| {
        (K * K - 1..=K * K + 1).try_for_each(|length| noise(at, &length.to_string(), length))
    }),
    case("larger than what is given its room at once", |at| noise(at, "f", 9 * K * K + 5)),
    case("many small files", |at| {
        for number in 0..500_u32 {
            if number % 50 == 0 {
                at.folder(format!("{}", number / 50))?;
            }
            at.file(format!("{}/{number}", number / 50), format!("small {number}").as_bytes())?;
        }
        Ok(())
    }),
    case("zeros that take room", |at| at.file("f", &vec![0; 3_000_000]).map(drop)),
    case("room given and not written", |at| {
        let file = File::create(at.path("f"))?;
        file.write_all_at(b"header", 0)?;
        rustix::fs::fallocate(&file, FallocateFlags::empty(), 0, 1 << 20)?;
        file.sync_all()
    }),
    case("5 GiB with 12 KiB of data", |at| {
        sparse(at, "f", 5 << 30, &[(0, 4096), (3 << 30, 4096), ((5 << 30) - 4096, 4096)])
    }),
    case("more than 4 GiB, one byte at its end", |at| sparse(at, "f", (4 << 30) + 7, &[((4 << 30) + 6, 1)])),
    case("nothing but a hole", |at| sparse(at, "f", 10 << 20, &[])),
    case("nothing but a hole of one byte", |at| sparse(at, "f", 1, &[])),
    case("a hole at the start", |at| sparse(at, "f", (1 << 20) + 100_000, &[(1 << 20, 100_000)])),
    case("a hole at the end", |at| sparse(at, "f", 10 << 20, &[(0, 100_000)])),
    case("a hole between unaligned data", |at| {
        sparse(at, "f", 3_000_001, &[(1, 70_000), (1_000_003, 50_001), (2_999_990, 11)])
    }),
    case("a hole every other block", |at| {
        let runs: Vec<(u64, usize)> = (0..100).map(|at| (at * 8192, 4096)).collect();
        sparse(at, "f", 100 * 8192, &runs)
    }),
    case("holes between large runs", |at| {
        sparse(at, "f", 30 << 20, &[(1 << 20, 3 << 20), (9 << 20, 9 << 20), (29 << 20, 5000)])
    }),
    case("a hole made afterwards", |at| {
        let file = File::create(at.path("f"))?;
        file.write_all_at(&Noise::new(5).bytes(1 << 20), 0)?;
        rustix::fs::fallocate(
            &file,
            FallocateFlags::PUNCH_HOLE | FallocateFlags::KEEP_SIZE,
            100_000,
            500_000,
        )?;
        file.sync_all()
    }),
    case("zeros that take room beside a hole", |at| {
        let file = File::create(at.path("f"))?;
        file.set_len(4 << 20)?;
        file.write_all_at(&[0; 100_000], 1 << 20)?;
        file.write_all_at(b"x", 2 << 20)?;
        file.sync_all()
    }),
    case("a file that grew by steps", |at| {
        let file = File::create(at.path("f"))?;
        for step in 0..10_u64 {
            // Beyond its end each time: some file systems guess here, and fill.
            file.write_all_at(&Noise::new(step).bytes(20_000), step * 131_072)?;
        }
        file.sync_all()
    }),
];
