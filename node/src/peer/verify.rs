//! Threads that turn received bytes into verified pieces: decode, hash, store, then hand to the sink.
//!
//! A piece is announced as soon as its record is written to the store, before the sink has it: a have that waited for
//! the tree would stretch the swarm's ramp (the store's doc says what "written" survives).

use std::sync::Arc;

use crossbeam_channel::{Receiver, Sender, TrySendError, bounded};
use shoal_proto::exchange::PeerKey;
use shoal_proto::image::PieceIndex;
use tokio::sync::{OwnedSemaphorePermit, mpsc};

use crate::block::{DecodeError, EncodedBlock};
use crate::peer::PieceSink;
use crate::store::{self, Store};

/// Pieces that may wait for a thread: more than the inflow budget can hold, so that the driver never waits.
const JOBS_MAX: usize = 2048;

/// Each thread keeps one decoded piece in memory; four of them outrun a network of 10 Gbit/s.
const THREADS_MAX: usize = 4;

/// A received piece on its way to the store.
pub(super) struct Job {
    pub(super) trade: u32,
    pub(super) from: PeerKey,
    pub(super) piece: PieceIndex,
    pub(super) block: EncodedBlock,
    pub(super) sink: Arc<dyn PieceSink>,
    pub(super) permit: OwnedSemaphorePermit,
}

#[derive(Debug)]
pub(super) enum FromVerifier {
    /// Matches its name and is in the store.
    Stored { trade: u32, piece: PieceIndex },
    /// Does not match its name.
    Corrupt { trade: u32, piece: PieceIndex, from: PeerKey, why: DecodeError },
    /// The sink has it too.
    Sunk { trade: u32 },
    /// It is what was asked for, and this machine cannot keep it.
    Failed { trade: u32, piece: PieceIndex, why: Failure },
}

#[derive(Debug)]
pub(super) enum Failure {
    Store(store::Error),
    Sink(Box<dyn std::error::Error + Send + Sync>),
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

fn run(store: &Store, driver: &mpsc::Sender<FromVerifier>, queue: &Receiver<Job>) {
    let mut raw = Vec::new();
    while let Ok(job) = queue.recv() {
        let (trade, piece) = (job.trade, job.piece);
        if let Err(why) = job.block.decode_into(&mut raw) {
            report(driver, FromVerifier::Corrupt { trade, piece, from: job.from, why });
            continue;
        }
        if let Err(error) = store.put(&job.block) {
            report(driver, FromVerifier::Failed { trade, piece, why: Failure::Store(error) });
            continue;
        }
        report(driver, FromVerifier::Stored { trade, piece });
        match job.sink.write(piece, &raw) {
            Ok(()) => report(driver, FromVerifier::Sunk { trade }),
            Err(error) => report(driver, FromVerifier::Failed { trade, piece, why: Failure::Sink(error) }),
        }
        drop(job.permit);
    }
}

fn report(driver: &mpsc::Sender<FromVerifier>, message: FromVerifier) {
    // The driver is gone only when the peer stops: nobody is left to tell.
    let _ = driver.blocking_send(message);
}
