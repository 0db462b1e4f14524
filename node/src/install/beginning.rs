//! What a target holds when an install begins, and what the mode makes of that.

use std::path::{Path, PathBuf};

use shoal_proto::assignment::{Assignment, Mode, Stage};
use shoal_proto::cid::Cid;
use shoal_proto::image::ImageName;

use super::{Error, target};
use crate::state::{Pending, Phase, Record, TargetState};

/// What the mode comes to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum How {
    Anew,
    /// `whole`: nothing but what is to be preserved is the machine's own.
    InPlace {
        whole: bool,
    },
    Untouched,
}

/// What an install begins with.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Beginning {
    Empty,
    /// Holds something that goes once the image is known to be there.
    ToBeEmptied,
    /// Holds what an interrupted run wrote of this image.
    Resumed(Cid),
    /// Holds a complete tree of this image, asked for by the same name.
    Complete(Cid),
}

/// What is asked of a target.
pub(super) struct Ask<'a> {
    pub(super) path: &'a Path,
    pub(super) target: &'a TargetState,
    pub(super) kept: &'a [PathBuf],
    pub(super) force: bool,
    pub(super) mode: Option<Mode>,
}

impl Ask<'_> {
    /// What the mode comes to, for what the target holds.
    pub(super) fn beginning(
        &self,
        name: Option<&ImageName>,
        assignment: Option<&Assignment>,
    ) -> Result<(How, Beginning), Error> {
        let mode = self.mode.or(assignment.and_then(|said| said.mode));
        let record = self.target.record()?;
        let in_use = || -> Result<bool, Error> { Ok(!target::is_empty(self.path)?) };
        let runs = |record: &Record| matches!(record.phase, Phase::Complete | Phase::Updating);
        let anew = |force| Ok((How::Anew, choose_beginning(self.path, self.target, name, force, self.kept)?));
        match mode {
            Some(Mode::None) => Ok((How::Untouched, Beginning::Empty)),
            Some(Mode::Sync) => Ok((How::InPlace { whole: false }, Beginning::Empty)),
            Some(Mode::Auto) if !self.force && record.as_ref().is_some_and(runs) && in_use()? => {
                Ok((How::InPlace { whole: false }, Beginning::Empty))
            }
            Some(Mode::Full) => {
                let preserves = assignment.is_some_and(|said| !said.lists.preserve.is_empty());
                let unfinished = record.as_ref().is_some_and(|record| record.phase == Phase::Installing);
                if preserves && !self.force && !unfinished && in_use()? {
                    // What is preserved would not outlive an emptied target.
                    choose_beginning(self.path, self.target, name, true, self.kept)?;
                    return Ok((How::InPlace { whole: true }, Beginning::Empty));
                }
                let scripts_left = |pending: Pending| pending.stage == Stage::PostInstall.name();
                anew(self.force || !unfinished && !self.target.pending()?.is_some_and(scripts_left))
            }
            Some(Mode::Auto) | None => anew(self.force),
        }
    }
}

/// Finds out what a target holds: an unfinished install goes on with its own image, even when the name means another one
/// by now.
pub(super) fn choose_beginning(
    target: &Path,
    state: &TargetState,
    name: Option<&ImageName>,
    force: bool,
    kept: &[PathBuf],
) -> Result<Beginning, Error> {
    let record = state.record()?.filter(|_| !force);
    if let Some(record) = record.filter(|record| record.phase != Phase::Emptying) {
        let image: Option<Cid> = record.image.parse().ok();
        // Without a name, the cluster file may say the same one.
        let same = name.is_none_or(|name| record.name.as_deref() == Some(name.as_str()));
        let image = image.filter(|_| same);
        match (record.phase, image) {
            (Phase::Installing, Some(image)) => return Ok(Beginning::Resumed(image)),
            (Phase::Installing, None) => {
                return Err(Error::OtherUnfinished { path: target.to_owned(), image: record.image });
            }
            (Phase::Updating, _) if !target::is_empty(target)? => {
                return Err(Error::UnfinishedUpdate(target.to_owned()));
            }
            (_, Some(image)) if !target::is_empty(target)? => return Ok(Beginning::Complete(image)),
            _ => {}
        }
    }
    let kept: Vec<&Path> = kept.iter().map(PathBuf::as_path).collect();
    let full = target::check(target, force, &kept)?;
    Ok(if full { Beginning::ToBeEmptied } else { Beginning::Empty })
}
