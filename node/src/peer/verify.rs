//! Threads that turn received bytes into verified pieces: decode, fill in what is here already, hash, store, then hand
//! to the sink.
//!
//! A piece is announced as soon as its record is written to the store, before the sink has it: a have that waited for
//! the tree would stretch the swarm's ramp (the store's doc says what "written" survives).

use std::any::Any;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;

use crossbeam_channel::{Receiver, Sender, TrySendError, bounded};
use shoal_proto::exchange::PeerKey;
use shoal_proto::image::PieceIndex;
use shoal_proto::wire::ByteRanges;
use tokio::sync::{OwnedSemaphorePermit, mpsc};

use crate::block::{DecodeError, EncodedBlock, EncodedPart, TRAVEL_LEVEL};
use crate::peer::serve::Delivery;
use crate::peer::{BoxError, PieceSink};
use crate::store::{self, Store};

/// Pieces that may wait for a thread: more than the inflow budget can hold, so that the driver never waits.
const JOBS_MAX: usize = 2048;

/// Each thread keeps one decoded piece in memory; four of them outrun a network of 10 Gbit/s.
const THREADS_MAX: usize = 4;

/// A received piece, or the part of it that was lacking, on its way to the store.
pub(super) struct Job {
    pub(super) trade: u32,
    pub(super) from: PeerKey,
    pub(super) piece: PieceIndex,
    /// Raw bytes of the whole piece.
    pub(super) raw_bytes: u32,
    pub(super) delivery: Delivery,
    pub(super) sink: Arc<dyn PieceSink>,
    pub(super) permit: OwnedSemaphorePermit,
}

#[derive(Debug)]
pub(super) enum FromVerifier {
    /// Matches its name and is in the store.
    Stored { trade: u32, piece: PieceIndex },
    /// Does not match its name.
    Corrupt { trade: u32, piece: PieceIndex, from: PeerKey, why: DecodeError },
    /// A part came, and the rest of the piece is not here any more: nobody's fault.
    Unfilled { trade: u32, piece: PieceIndex },
    /// The sink has it too.
    Sunk { trade: u32 },
    /// It is what was asked for, and this machine cannot keep it.
    Failed { trade: u32, piece: PieceIndex, why: Failure },
}

#[derive(Debug)]
pub(super) enum Failure {
    Store(store::Error),
    Sink(BoxError),
    Panicked(String),
}

/// The threads, one for each core up to [`THREADS_MAX`]; they end when the pool is dropped.
pub(super) struct Verifiers {
    jobs: Sender<Job>,
}

impl Verifiers {
    pub(super) fn start(store: &Arc<Store>, driver: &mpsc::Sender<FromVerifier>) -> Self {
        let (jobs, queue) = bounded(JOBS_MAX);
        let threads = std::thread::available_parallelism().map_or(2, usize::from).min(THREADS_MAX);
        for number in 0..threads {
            let (store, driver, queue) = (store.clone(), driver.clone(), queue.clone());
            std::thread::Builder::new()
                .name(format!("shoal-verify-{number}"))
                .spawn(move || run(&store, &driver, &queue))
                .expect("the system starts threads");
        }
        Self { jobs }
    }

    pub(super) fn submit(&self, job: Job) {
        match self.jobs.try_send(job) {
            Ok(()) => {}
            Err(TrySendError::Full(_)) => unreachable!("the inflow budget admits fewer pieces than JOBS_MAX"),
            Err(TrySendError::Disconnected(_)) => unreachable!("the threads live as long as the pool"),
        }
    }
}

/// The memory of one thread, kept from piece to piece.
#[derive(Default)]
struct Buffers {
    raw: Vec<u8>,
    part: Vec<u8>,
}

fn run(store: &Store, driver: &mpsc::Sender<FromVerifier>, queue: &Receiver<Job>) {
    let mut buffers = Buffers::default();
    while let Ok(job) = queue.recv() {
        let (trade, piece) = (job.trade, job.piece);
        let verified = catch_unwind(AssertUnwindSafe(|| verify(store, driver, job, &mut buffers)));
        if let Err(panic) = verified {
            buffers = Buffers::default();
            let why = Failure::Panicked(describe(&*panic));
            report(driver, FromVerifier::Failed { trade, piece, why });
        }
    }
}

fn verify(store: &Store, driver: &mpsc::Sender<FromVerifier>, job: Job, buffers: &mut Buffers) {
    let Job { trade, from, piece, raw_bytes, delivery, sink, permit } = job;
    let keep = |block: &EncodedBlock, raw: &[u8]| {
        if let Err(error) = store.put(block) {
            return report(driver, FromVerifier::Failed { trade, piece, why: Failure::Store(error) });
        }
        report(driver, FromVerifier::Stored { trade, piece });
        match sink.write(piece, raw) {
            Ok(()) => report(driver, FromVerifier::Sunk { trade }),
            Err(error) => report(driver, FromVerifier::Failed { trade, piece, why: Failure::Sink(error) }),
        }
    };
    let wrong = |why| report(driver, FromVerifier::Corrupt { trade, piece, from, why });
    match delivery {
        Delivery::Whole(block) => match block.decode_in(&mut buffers.raw) {
            Ok(raw) => keep(&block, raw),
            Err(why) => wrong(why),
        },
        Delivery::Part(part, encoded) => {
            buffers.raw.resize(raw_bytes as usize, 0);
            match join(piece, &part.ranges, &encoded, &*sink, buffers) {
                Joined::Block(block) => keep(&block, &buffers.raw),
                Joined::Wrong(why) => wrong(why),
                Joined::Unfilled => report(driver, FromVerifier::Unfilled { trade, piece }),
                Joined::Failed(error) => {
                    report(driver, FromVerifier::Failed { trade, piece, why: Failure::Sink(error) });
                }
            }
        }
    }
    drop(permit);
}

/// What became of a part.
enum Joined {
    /// Matches its name; the raw bytes are in the buffer.
    Block(EncodedBlock),
    Wrong(DecodeError),
    Unfilled,
    Failed(BoxError),
}

/// Joins a part with what is here already, in the buffer, which is as long as the piece.
fn join(
    piece: PieceIndex,
    ranges: &ByteRanges,
    encoded: &EncodedPart,
    sink: &dyn PieceSink,
    buffers: &mut Buffers,
) -> Joined {
    if let Err(why) = encoded.decode_into(&mut buffers.part) {
        return Joined::Wrong(why);
    }
    ranges.scatter(&buffers.part, &mut buffers.raw);
    match sink.fill(piece, &mut buffers.raw, ranges) {
        Ok(true) => {}
        Ok(false) => return Joined::Unfilled,
        Err(error) => return Joined::Failed(error),
    }
    let block = EncodedBlock::encode(&buffers.raw, TRAVEL_LEVEL);
    if block.cid == encoded.cid {
        Joined::Block(block)
    } else {
        Joined::Wrong(DecodeError::Hash { cid: encoded.cid, found: block.cid })
    }
}

fn describe(panic: &(dyn Any + Send)) -> String {
    let text = panic.downcast_ref::<&str>().copied().or(panic.downcast_ref::<String>().map(String::as_str));
    text.unwrap_or("it does not say why").to_owned()
}

fn report(driver: &mpsc::Sender<FromVerifier>, message: FromVerifier) {
    // The driver is gone only when the peer stops: nobody is left to tell.
    let _ = driver.blocking_send(message);
}
