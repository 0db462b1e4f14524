//! A node's place in the swarm while it is about one image: what it runs and serves, or what it fetches ahead.

use std::path::PathBuf;
use std::sync::Arc;
use std::time::Instant;

use shoal_proto::cid::Cid;
use shoal_proto::image::Manifest;
use shoal_proto::signing::{Keypair, Signed};
use shoal_proto::wire::{Answer, Query};

use super::Error;
use crate::change::{Change, Destination};
use crate::goal::Part;
use crate::join::{self, JoinOptions, Membership, blocking};
use crate::manifest::read_manifest;
use crate::peer::FleetConfig;
use crate::progress::{Stage, Unwatched};
use crate::state::TargetState;
use crate::store::Store;
use crate::tree::update::Update;
use crate::update::{self, TreeOptions};

pub(super) struct Session {
    pub(super) membership: Membership,
    key: Keypair,
    tree: Tree,
}

/// The tree of a node, and what is known of it.
#[derive(Clone, Debug)]
pub(super) struct Tree {
    pub(super) target: TargetState,
    pub(super) path: PathBuf,
    pub(super) options: TreeOptions,
    /// What the previous image had: open as long as the agent runs.
    pub(super) kept: Arc<Store>,
}

/// An image of which everything is here that the tree lacks.
pub(super) struct Prepared {
    pub(super) image: Cid,
    goal: Arc<Manifest>,
}

impl Session {
    pub(super) async fn join(
        key: Keypair,
        options: JoinOptions,
        fleet: FleetConfig,
        tree: Tree,
    ) -> Result<Self, Error> {
        let membership =
            Membership::join_fleet(key.clone(), options, fleet, &tree.target, Instant::now()).await?;
        Ok(Self { membership, key, tree })
    }

    /// Fetches what the tree lacks of the image and serves the rest from the tree, now and from then on.
    pub(super) async fn bring(&self, image: Cid) -> Result<Prepared, Error> {
        let goal = self.manifest(image).await?;
        let (tree, planned) = (self.tree.clone(), goal.clone());
        let (_, update) = blocking(move || tree.plan(&planned, image)).await?;
        let (trades, _) = update::trade(&self.membership, &[Part::whole(&goal)], &update).await?;
        for trade in trades {
            self.membership.watch(Stage::Pieces, &Unwatched, trade.completed()).await?;
        }
        Ok(Prepared { image, goal })
    }

    /// From this machine, or else from the swarm.
    async fn manifest(&self, image: Cid) -> Result<Arc<Manifest>, Error> {
        let (target, kept) = (self.tree.target.clone(), self.tree.target.root(&image)?);
        if let Some(root) = kept {
            let read = blocking(move || read_manifest(&target, &image)).await;
            match read {
                Ok(manifest) => {
                    self.tell(image, root);
                    return Ok(Arc::new(manifest));
                }
                // Interrupted before it was whole.
                Err(error) => tracing::debug!(%image, %error, "its manifest is not here"),
            }
        }
        let found = self.membership.look_up(Query::Image(image), &Unwatched).await;
        let (answer, root) = found.map_err(join::Error::from)?;
        let place = (&self.tree.target, &self.key);
        let goal = self.membership.fetch_goal(&root, None, &[], place, &Unwatched).await;
        let goal = goal.map_err(update::Error::from)?;
        self.membership.learn(answer);
        Ok(goal.manifest)
    }

    fn tell(&self, image: Cid, root: Signed<shoal_proto::image::RootRecord>) {
        self.membership.learn(Answer { root: Some(root), ..Answer::nothing(Query::Image(image)) });
    }

    /// Whether the tree can become the image without the network. It may have changed since that was fetched.
    pub(super) async fn is_ready(&self, prepared: &Prepared) -> Result<bool, Error> {
        let (tree, goal, image) = (self.tree.clone(), prepared.goal.clone(), prepared.image);
        let store = self.membership.store.clone();
        blocking(move || {
            let (_, update) = tree.plan(&goal, image)?;
            let list = update.goal().content().clone();
            Ok(update.wanted().iter().all(|piece| store.contains(&list.piece(piece).cid)))
        })
        .await
    }

    /// Makes the tree the image.
    pub(super) async fn apply(&self, prepared: &Prepared) -> Result<(), Error> {
        let (tree, goal, image) = (self.tree.clone(), prepared.goal.clone(), prepared.image);
        let store = self.membership.store.clone();
        blocking(move || {
            let (change, update) = tree.plan(&goal, image)?;
            change.perform(&update, &store, image_alone(image, None), false)?;
            Ok(())
        })
        .await
    }

    /// Makes the tree what it was, from what is on this machine.
    pub(super) async fn roll_back(&self, image: Cid, name: Option<String>) -> Result<(), Error> {
        let (tree, store) = (self.tree.clone(), self.membership.store.clone());
        blocking(move || {
            let goal = Arc::new(read_manifest(&tree.target, &image)?);
            let (change, update) = tree.plan(&goal, image)?;
            if update.wanted().count() > 0 {
                let lacking_bytes = update.lacking_bytes();
                return Err(update::Error::NotKept { image, lacking_bytes }.into());
            }
            change.perform(&update, &store, image_alone(image, name), true)?;
            Ok(())
        })
        .await
    }
}

impl Tree {
    fn plan(&self, goal: &Arc<Manifest>, image: Cid) -> Result<(Change, Update), Error> {
        let (target, kept) = (self.target.clone(), self.kept.clone());
        let change = Change::with_kept(target, &self.path, self.options.clone(), kept)?;
        if change.record().is_some_and(|record| record.layered.is_some()) {
            return Err(Error::Layered(self.path.clone()));
        }
        let update = change.prepare(goal, &image_alone(image, None))?;
        Ok((change, update))
    }
}

fn image_alone(image: Cid, name: Option<String>) -> Destination {
    Destination { image, name, layered: None }
}
