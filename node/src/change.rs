//! A tree's way from one image to another, beside the network: what the record says, what is kept for the way back.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use shoal_proto::cid::Cid;
use shoal_proto::image::Manifest;

use crate::manifest::read_manifest;
use crate::state::{Layered, Phase, Previous, Record, TargetState};
use crate::store::Store;
use crate::tree::rules::Rules;
use crate::tree::update::{Update, UpdateOptions, UpdateReport};
use crate::update::{Error, TreeOptions};

/// Which image a tree is to be, as the record will say.
#[derive(Clone, Debug)]
pub(crate) struct Destination {
    pub(crate) image: Cid,
    pub(crate) name: Option<String>,
    pub(crate) layered: Option<Layered>,
}

/// A target that is about to change. One at a time: the caller holds the node's state.
#[derive(Debug)]
pub(crate) struct Change {
    target: TargetState,
    path: PathBuf,
    record: Option<Record>,
    kept: Arc<Store>,
    options: TreeOptions,
}

impl Change {
    pub(crate) fn of(target: TargetState, path: &Path, options: TreeOptions) -> Result<Self, Error> {
        let kept = Arc::new(Store::open(&target.kept_dir())?);
        Self::with_kept(target, path, options, kept)
    }

    /// As [`of`](Self::of), with the store of [`TargetState::kept_dir`], which is open already.
    pub(crate) fn with_kept(
        target: TargetState,
        path: &Path,
        options: TreeOptions,
        kept: Arc<Store>,
    ) -> Result<Self, Error> {
        let record = target.record()?;
        if let Some(record) = &record
            && matches!(record.phase, Phase::Installing | Phase::Emptying)
        {
            return Err(Error::UnfinishedInstall(path.to_owned()));
        }
        Ok(Self { target, path: path.to_owned(), record, kept, options })
    }

    /// Whether the tree is replaced as a whole.
    pub(crate) fn is_whole(&self) -> bool {
        self.options.whole
    }

    pub(crate) fn record(&self) -> Option<&Record> {
        self.record.as_ref()
    }

    /// The image that was complete last.
    fn complete(&self) -> Option<Cid> {
        self.record.as_ref()?.applied().first().copied()
    }

    /// Looks at the tree and plans. Nothing is touched.
    pub(crate) fn prepare(&self, goal: &Arc<Manifest>, to: &Destination) -> Result<Update, Error> {
        let image = to.image;
        let further = to.layered.as_ref().map_or(&[][..], |layered| &layered.rules);
        let mut owners = Vec::new();
        for owner in self.record.as_ref().map_or(Vec::new(), Record::applied) {
            owners.push(if owner == image {
                goal.clone()
            } else {
                Arc::new(read_manifest(&self.target, &owner)?)
            });
        }
        let rules = match self.options.whole {
            true => Rules::of_whole(further)?,
            false => Rules::load_with(&self.path, self.options.rules.as_deref(), further)?,
        };
        let options = UpdateOptions {
            rules: rules.without(&self.path, self.target.data_dir()),
            remove_unowned: self.options.delete,
            switch: self.options.switch,
            lost: self.record.as_ref().map_or(Vec::new(), |record| record.lost.clone()),
        };
        Ok(Update::prepare(goal.clone(), owners, &self.path, &options, Some(self.kept.clone()))?)
    }

    /// Makes the tree the image, and records it. `blocks` has what was wanted.
    pub(crate) fn perform(
        &self,
        update: &Update,
        blocks: &Store,
        to: Destination,
        rolling_back: bool,
    ) -> Result<UpdateReport, Error> {
        update.check()?;
        let Destination { image, name, layered } = to;
        let complete = self.complete();
        let previous = self.previous(image);
        let owners = self.record.as_ref().map_or(Vec::new(), Record::applied);
        let mut record = Record {
            target: self.path.display().to_string(),
            image: image.to_string(),
            name,
            phase: Phase::Updating,
            lost: self.record.as_ref().map_or(Vec::new(), |record| record.lost.clone()),
            owners: owners.into_iter().map(|owner| owner.to_string()).collect(),
            rolling_back,
            previous,
            layered,
        };
        if !update.plan().is_empty() {
            if complete.is_some_and(|complete| complete != image)
                && update.keep_previous(&self.kept, self.options.keep_bytes)?.is_none()
            {
                tracing::warn!(target = %self.path.display(), "not enough is kept for a rollback: see --keep");
                record.previous = None;
            }
            self.target.write_record(&record)?;
        }
        let report = update.apply(blocks)?;
        if !report.busy.is_empty() {
            // The next run tries them again.
            return Err(Error::Busy { path: report.busy[0].clone(), others: report.busy.len() - 1 });
        }
        record.phase = Phase::Complete;
        record.owners.clear();
        record.rolling_back = false;
        record.lost.extend(report.losses.kinds());
        record.lost.sort_unstable();
        record.lost.dedup();
        self.target.write_record(&record)?;
        self.target.prune()?;
        self.drop_unneeded(record.previous.as_ref(), update.goal())?;
        Ok(report)
    }

    /// What a rollback of this change would return to: repairing an image changes nothing about that.
    fn previous(&self, image: Cid) -> Option<Previous> {
        let record = self.record.as_ref()?;
        let complete = self.complete()?;
        if complete == image {
            return record.previous.clone().filter(|previous| previous.image != image.to_string());
        }
        let name = match &record.previous {
            _ if record.phase == Phase::Complete => record.name.clone(),
            Some(previous) if previous.image == complete.to_string() => previous.name.clone(),
            _ => None,
        };
        let layered = match &record.previous {
            _ if record.phase == Phase::Complete => record.layered.clone(),
            Some(previous) if previous.image == complete.to_string() => previous.layered.clone(),
            _ => None,
        };
        Some(Previous { image: complete.to_string(), name, layered })
    }

    /// Keeps only what the previous image needs and the present one lacks.
    fn drop_unneeded(&self, previous: Option<&Previous>, present: &Manifest) -> Result<(), Error> {
        let image = previous.and_then(|previous| previous.image.parse().ok());
        let Some(image) = image else {
            self.kept.retain(&|_| false)?;
            return Ok(());
        };
        let previous = match read_manifest(&self.target, &image) {
            Ok(previous) => previous,
            // The tree is the present image all the same; a rollback says what it lacks.
            Err(error) => {
                tracing::warn!(%image, %error, "the previous image cannot be read");
                return Ok(());
            }
        };
        let needed: std::collections::HashSet<Cid> =
            crate::tree::update::kept_blocks(&previous, present).collect();
        self.kept.retain(&|block| needed.contains(block))?;
        Ok(())
    }
}
