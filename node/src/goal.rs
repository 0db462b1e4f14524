//! What a tree is to become: an image alone, or one with the layers that the cluster file lays over it.
//!
//! Each layer is an image of its own and travels as one: what many hosts have is fetched from any of them. Their fold
//! is a manifest like any other, from which a tree is written, updated, verified and rolled back; it is made here, so the
//! node signs it itself. A confidential layer comes from the seeder alone and goes to nobody.

use std::sync::Arc;

use shoal_proto::assignment::{Assignment, LayerName};
use shoal_proto::cid::Cid;
use shoal_proto::exchange::Bitfield;
use shoal_proto::host::HostName;
use shoal_proto::image::layers::{self, LayerError};
use shoal_proto::image::{ImageName, Manifest, PieceIndex, PieceList, RootRecord};
use shoal_proto::signing::{Keypair, Signed};
use shoal_proto::wire::{ByteRanges, HostQuery};

use crate::join::{self, Membership, blocking};
use crate::manifest;
use crate::peer::{BoxError, Lacking, ListKind, Listing, LookupError, PieceSink};
use crate::progress::Monitor;
use crate::state::{self, TargetState};
use crate::tree::exclude::{Excludes, PatternError};

/// Who this machine is, and what the command line lays over what the cluster file says.
#[derive(Clone, Debug, Default)]
pub struct HostOptions {
    /// By which name the cluster file knows it; the system's own when not said.
    pub host: Option<HostName>,
    /// Over all other layers; the first wins.
    pub overrides: Vec<LayerName>,
    /// The image alone, whatever the cluster file says.
    pub alone: bool,
}

#[derive(Debug, thiserror::Error)]
pub enum Error {
    #[error(transparent)]
    Join(#[from] join::Error),
    #[error(transparent)]
    State(#[from] state::Error),
    #[error(transparent)]
    Manifest(#[from] manifest::Error),
    #[error("the layers of this host make no tree ({})", .names.join(" < "))]
    Fold {
        names: Vec<String>,
        #[source]
        source: LayerError,
    },
    #[error("a list of the cluster file")]
    Pattern(#[from] PatternError),
    #[error("{0:?} is no host name: say --host NAME")]
    NoHostName(String),
    #[error("overrides are laid over an image for a host of a cluster, and the seeder has no cluster file")]
    NoCluster,
}

impl Error {
    /// The publisher did not say this.
    pub fn is_unbelieved(&self) -> bool {
        matches!(self, Self::Join(error) if error.is_unbelieved())
    }
}

impl HostOptions {
    /// What to ask the seeder; `None` when it is not asked.
    ///
    /// # Errors
    /// When the system's name is no host's name.
    pub(crate) fn query(&self, image: Option<&ImageName>) -> Result<Option<HostQuery>, Error> {
        if self.alone {
            return Ok(None);
        }
        let host = match &self.host {
            Some(host) => host.clone(),
            None => own_name()?,
        };
        Ok(Some(HostQuery { host, image: image.cloned(), overrides: self.overrides.clone() }))
    }
}

fn own_name() -> Result<HostName, Error> {
    let name = rustix::system::uname().nodename().to_string_lossy().into_owned();
    // A rescue system may have none.
    let named = if name.is_empty() || name == "(none)" { "localhost" } else { &name };
    HostName::of_full_name(named).map_err(|_| Error::NoHostName(name.clone()))
}

/// What a tree is to become.
#[derive(Debug)]
pub(crate) struct Goal {
    pub(crate) manifest: Arc<Manifest>,
    /// The image's id; of layers that of their fold.
    pub(crate) id: Cid,
    pub(crate) parts: Vec<Arc<Part>>,
}

/// One image of those that a tree is made of, by which its pieces travel.
#[derive(Debug)]
pub(crate) struct Part {
    pub(crate) list: Arc<PieceList>,
    /// By piece its place in the goal; when there are none, it is the goal's own list.
    places: Option<Vec<Option<PieceIndex>>>,
    private: bool,
}

impl Part {
    /// All of an image that has no layers over it.
    pub(crate) fn whole(image: &Manifest) -> Arc<Self> {
        Arc::new(Self { list: image.content().clone(), places: None, private: false })
    }

    /// Where in the goal a piece is; `None` when the goal needs nothing of it.
    pub(crate) fn place(&self, piece: PieceIndex) -> Option<PieceIndex> {
        match &self.places {
            Some(places) => places[piece.at()],
            None => Some(piece),
        }
    }

    /// A listing of its content, of which this is held and this not wanted.
    pub(crate) fn listing(&self, held: Bitfield, unwanted: Bitfield) -> Listing {
        Listing { list: self.list.clone(), kind: ListKind::Content, held, unwanted, private: self.private }
    }
}

/// A sink by the pieces of the goal, for the pieces of a part.
#[derive(Debug)]
pub(crate) struct PartSink<S> {
    pub(crate) part: Arc<Part>,
    pub(crate) sink: Arc<S>,
}

impl<S: PieceSink> PieceSink for PartSink<S> {
    fn write(&self, piece: PieceIndex, raw: &[u8]) -> Result<(), BoxError> {
        self.part.place(piece).map_or(Ok(()), |piece| self.sink.write(piece, raw))
    }

    fn lacking(&self, piece: PieceIndex) -> Lacking {
        self.part.place(piece).map_or(Lacking::Whole, |piece| self.sink.lacking(piece))
    }

    fn fill(&self, piece: PieceIndex, raw: &mut [u8], arrived: &ByteRanges) -> Result<bool, BoxError> {
        self.part.place(piece).map_or(Ok(false), |piece| self.sink.fill(piece, raw, arrived))
    }
}

impl Membership {
    /// What this machine is to be, as the publisher says; `None` when there is no cluster.
    pub(crate) async fn ask(
        &self,
        host: &HostOptions,
        image: Option<&ImageName>,
        monitor: &dyn Monitor,
    ) -> Result<Option<Assignment>, Error> {
        let Some(query) = host.query(image)? else { return Ok(None) };
        let assignment = match self.assignment(query, monitor).await {
            Err(LookupError::Unknown(_)) => None,
            found => Some(found.map_err(join::Error::from)?),
        };
        match assignment {
            None if !host.overrides.is_empty() => Err(Error::NoCluster),
            assignment => Ok(assignment),
        }
    }

    /// Fetches the manifests of the image and of the layers over it, folds them, and keeps the result beside the state of
    /// `target`. `excluded`: patterns of what is left out.
    pub(crate) async fn fetch_goal(
        &self,
        root: &Signed<RootRecord>,
        assignment: Option<&Assignment>,
        excluded: &[String],
        (target, key): (&TargetState, &Keypair),
        monitor: &dyn Monitor,
    ) -> Result<Goal, Error> {
        let record = self.believed(root)?;
        let layers = assignment.map_or(&[][..], |assignment| &assignment.layers);
        // All at once: each has to be found first.
        let fetched =
            layers.iter().map(|layer| self.fetch_manifest(&layer.root, layer.confidential, monitor));
        let fetched = futures::future::try_join_all(fetched);
        let (image, fetched) = futures::try_join!(self.fetch_manifest(&record, false, monitor), fetched)?;
        if layers.is_empty() && excluded.is_empty() {
            target.write_root(root)?;
            let (store, target) = (self.store.clone(), target.clone());
            let (kept, id) = (record.clone(), root.cid());
            blocking(move || manifest::save_manifest(&store, &kept, &target)).await?;
            let parts = vec![Part::whole(&image)];
            return Ok(Goal { manifest: image, id, parts });
        }
        let mut manifests = vec![(image, false)];
        manifests
            .extend(fetched.into_iter().zip(layers).map(|(manifest, layer)| (manifest, layer.confidential)));
        let mut names =
            vec![assignment.map_or_else(|| "the image".to_owned(), |said| said.image.to_string())];
        names.extend(layers.iter().map(|layer| layer.name.to_string()));
        let excluded = Excludes::new(excluded)?;
        let (target, key) = (target.clone(), key.clone());
        blocking(move || fold(&manifests, names, &excluded, &record, &target, &key)).await
    }
}

fn fold(
    manifests: &[(Arc<Manifest>, bool)],
    names: Vec<String>,
    excluded: &Excludes,
    image: &RootRecord,
    target: &TargetState,
    key: &Keypair,
) -> Result<Goal, Error> {
    let layers: Vec<layers::Layer<'_>> = manifests
        .iter()
        .map(|(manifest, confidential)| layers::Layer { manifest, confidential: *confidential })
        .collect();
    let folded = layers::fold(&layers, &|path, directory| excluded.matches(path, directory))
        .map_err(|source| Error::Fold { names, source })?;
    let mut stream = Vec::new();
    let root = folded
        .manifest
        .encode_blocks(image.block_bytes(), |_, block| stream.extend_from_slice(block))
        .map_err(manifest::Error::from)?;
    target.write_root(&Signed::sign(&root, key))?;
    manifest::write_manifest(&stream, &root.image_id(), target)?;
    let part = |((manifest, private), places): (&(Arc<Manifest>, bool), Vec<Option<PieceIndex>>)| Part {
        list: manifest.content().clone(),
        places: Some(places),
        private: *private,
    };
    let parts = manifests.iter().zip(folded.pieces).map(part);
    // Of two layers with the same content, one is needed.
    let needed = |part: &Part| part.places.as_ref().is_some_and(|places| places.iter().any(Option::is_some));
    let parts = parts.filter(needed).map(Arc::new).collect();
    Ok(Goal { manifest: Arc::new(folded.manifest), id: root.image_id(), parts })
}

/// What the lists of an assignment leave to the machine, as rules.
pub(crate) fn rules(excluded: &[String], assignment: &Assignment) -> Vec<String> {
    let mut rules = Vec::new();
    let lists = &assignment.lists;
    rules.extend(lists.preserve.iter().chain(excluded).map(|pattern| format!("ignore {pattern}")));
    rules.extend(lists.no_new_files.iter().map(|pattern| format!("present {pattern}")));
    rules
}
