//! A golden client: offers its tree to the seeder, which captures it when its operator says so.
//!
//! Between captures nothing is read and nothing travels. A session that ends is opened again, and a seeder that is gone
//! is waited for. The node's own state, its key above all, is never part of what it offers.

use std::io::{BufReader, BufWriter};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use shoal_proto::image::ImageName;

use crate::join::{self, JoinOptions, Membership, blocking};
use crate::peer::{Session, SessionError};
use crate::state::{self, State};
use crate::tree::capture::remote::{OfferEvent, RemoteError, TreeOffer, offer_tree};
use crate::tree::exclude::{Excludes, PatternError};

/// What travels at once, both ways.
const BUFFER_BYTES: usize = 256 << 10;
/// Wait before a session is opened again.
const PAUSE: Duration = Duration::from_secs(1);

/// What to offer to whom.
#[derive(Debug)]
pub struct OfferOptions {
    pub join: JoinOptions,
    /// An existing directory.
    pub top: PathBuf,
    /// What the seeder's operator calls it by.
    pub name: ImageName,
    /// The node's state directory.
    pub data: PathBuf,
}

#[derive(Debug, thiserror::Error)]
pub enum Error {
    #[error(transparent)]
    State(#[from] state::Error),
    #[error(transparent)]
    Join(#[from] join::Error),
    #[error(transparent)]
    Session(#[from] SessionError),
    #[error(transparent)]
    Pattern(#[from] PatternError),
}

/// What becomes of an offer.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Told {
    /// The seeder knows of it.
    Offered,
    Captured(OfferEvent),
    /// The session ended; it is opened again.
    Ended(String),
}

/// Offers a tree until the caller drops the future.
///
/// # Errors
/// When the swarm cannot be joined, or the peer that the ticket names takes no offers.
pub async fn offer(
    options: OfferOptions,
    told: impl Fn(Told) + Clone + Send + Sync + 'static,
) -> Result<(), Error> {
    let OfferOptions { join, top, name, data } = options;
    let state = State::open(&data)?;
    let target = state.target(&top)?;
    let seeder = join.ticket.seeder;
    let membership = Membership::join(state.key.clone(), join, &target, Instant::now()).await?;
    let offer = TreeOffer { name: name.to_string(), host: host_name(), path: top.display().to_string() };
    let first = own_excludes(&top, &data)?;
    loop {
        let session = membership.peer.open_session(seeder).await?;
        told(Told::Offered);
        let (top, offer, first, tell) = (top.clone(), offer.clone(), first.clone(), told.clone());
        let ended = blocking(move || converse(&top, &offer, first, session, &tell)).await;
        told(Told::Ended(
            ended.err().map_or_else(|| "the seeder hung up".to_owned(), |error| error.to_string()),
        ));
        tokio::time::sleep(PAUSE).await;
    }
}

fn converse(
    top: &Path,
    offer: &TreeOffer,
    first: Excludes,
    session: Session,
    told: &dyn Fn(Told),
) -> Result<(), RemoteError> {
    let (reader, writer) = session.split();
    let threads = std::thread::available_parallelism().map_or(2, usize::from);
    offer_tree(
        top,
        offer,
        first,
        threads,
        Box::new(BufReader::with_capacity(BUFFER_BYTES, reader)),
        Box::new(BufWriter::with_capacity(BUFFER_BYTES, writer)),
        &|event| told(Told::Captured(event)),
    )
}

/// Leaves out the node's state where it lies in the tree.
fn own_excludes(top: &Path, data: &Path) -> Result<Excludes, PatternError> {
    let (top, data) = (top.canonicalize(), data.canonicalize());
    let below =
        top.ok().zip(data.ok()).and_then(|(top, data)| data.strip_prefix(&top).ok().map(Path::to_owned));
    let rules = below.filter(|below| below != Path::new("")).map(|below| {
        let mut rule = b"- /".to_vec();
        let bytes = below.as_os_str().as_encoded_bytes();
        let wild = bytes.iter().any(|byte| b"*?[".contains(byte));
        for &byte in bytes {
            if wild && b"*?[\\".contains(&byte) {
                rule.push(b'\\');
            }
            rule.push(byte);
        }
        rule
    });
    Excludes::new(rules)
}

/// This machine's own name, or nothing.
pub fn host_name() -> String {
    let name = rustix::system::uname();
    name.nodename().to_string_lossy().into_owned()
}
