//! Removes what policies do not keep from a directory of checkpoints, without a model.

use super::commit::preserve;
use super::directory::CheckpointDirectory;
use super::retention::RetentionPolicy;
use super::thinning;
use crate::catalog::{Found, Marks, sync_marks};
use crate::error::{Error, Result};
use crate::location::Location;
use crate::name::nearest_hint;
use crate::save::Held;
use crate::sync::Arc;
use std::collections::BTreeMap;

/// The result of [`CheckpointDirectory::prune`].
///
/// ```
/// # fn main() -> Result<(), Box<dyn std::error::Error>> {
/// # let temp = tempfile::tempdir()?;
/// # let dir = temp.path().join("run");
/// use std::sync::Arc;
/// use tch_checkpoint::retention::{Latest, RetentionPolicy};
/// use tch_checkpoint::{Checkpoint, CheckpointDirectory, Counter};
/// let mut checkpoint = Checkpoint::new().track("step", &Counter::new(0))?;
/// let first = checkpoint.save(dir.join("ckpt"))?;
/// checkpoint.save(dir.join("ckpt"))?;
/// let policies: [Arc<dyn RetentionPolicy>; 1] = [Arc::new(Latest(1))];
/// let pruned = CheckpointDirectory::new(&dir).prune(&policies)?;
/// assert_eq!(pruned.removed, [first]);
/// # Ok(())
/// # }
/// ```
#[derive(Debug, Clone, Default, PartialEq, Eq)]
#[non_exhaustive]
pub struct Pruned {
    /// What was removed, oldest first.
    pub removed: Vec<Location>,
    /// The checkpoints that should have been removed and were not, with the reason: a mark that was written meanwhile,
    /// or an error. Includes checkpoints of which a component should have been removed.
    pub spared: Vec<(Location, String)>,
    /// The components that were removed from checkpoints that are kept
    /// ([`keep_component`](CheckpointDirectory::keep_component)), with these checkpoints, oldest first.
    pub thinned: Vec<(Location, String)>,
}

impl CheckpointDirectory {
    /// A name that no checkpoint has would keep nothing, silently.
    pub(super) fn check_components(&self, found: &[Found]) -> Result<()> {
        for (component, keep) in &self.components {
            if *keep == 0 {
                return Err(Error::InvalidArgument(format!(
                    "keep_component({component:?}, 0): it must be at least 1, for a run is resumed from the newest checkpoint"
                )));
            }
            let known = || found.iter().flat_map(|found| found.separable.iter().chain(&found.without));
            if !found.is_empty() && !known().any(|known| known == component) {
                let hint = nearest_hint(component, known().map(String::as_str));
                let reason = "no checkpoint has a component of this name that can be removed without the others";
                return Err(Error::InvalidArgument(format!("keep_component({component:?}): {reason}{hint}")));
            }
        }
        Ok(())
    }

    /// Removes the checkpoints that nothing keeps according to [`explain`](CheckpointDirectory::explain), and the
    /// components that the kept ones lose, and links to what is removed, such as `best`. Takes the writer's lock. If a
    /// kept checkpoint cannot be read, or loses files meanwhile, nothing is removed. Those that only a policy keeps, for
    /// good ([`Every`](crate::retention::Every)), are marked as permanent first.
    ///
    /// # Errors
    /// [`Error::InvalidArgument`] without policies; [`Error::NotFound`] if there is no such directory; [`Error::Locked`]
    /// while a manager writes into it; [`Error::Damaged`] if a kept checkpoint loses files meanwhile; as for
    /// [`explain`](CheckpointDirectory::explain).
    pub fn prune(&self, policies: &[Arc<dyn RetentionPolicy>]) -> Result<Pruned> {
        if policies.is_empty() {
            let reason =
                "without a policy, prune would remove all checkpoints but the newest and those that are always kept";
            return Err(Error::InvalidArgument(format!("{reason}: give at least one, such as `Latest(3)`")));
        }
        let directory = &self.existing()?;
        let held = Held::take(directory)?;
        let (stay, go): (Vec<_>, Vec<_>) =
            self.decide(policies)?.into_iter().partition(|(_, explanation)| explanation.is_kept());
        let loses = stay.iter().filter(|(_, explanation)| !explanation.loses.is_empty());
        let thin: BTreeMap<String, Vec<String>> =
            loses.map(|(found, explanation)| (found.entry.name.clone(), explanation.loses.clone())).collect();
        for (found, _) in stay.iter().filter(|_| !go.is_empty() || !thin.is_empty()) {
            if !found.looks_whole(directory) {
                let reason = "it would stay and has lost files, so nothing is removed";
                return Err(Error::damaged(directory.path(&found.entry.name), reason));
            }
        }
        let for_good = stay.iter().filter(|(_, explanation)| explanation.is_only_for_good());
        let for_good: Vec<String> = for_good.map(|(found, _)| found.entry.name.clone()).collect();
        let mut pruned = Pruned::default();
        let mut kept: Vec<Found> = stay.into_iter().map(|(found, _)| found).collect();
        // Before acting on the decision, so that it is never forgotten.
        preserve(directory, &mut kept, &for_good)?;
        if !go.is_empty() || !thin.is_empty() {
            sync_marks(directory, kept.iter_mut())?;
        }
        thinning::mark(directory, &mut kept, &thin);
        let names: Vec<&str> = go.iter().map(|(found, _)| found.entry.name.as_str()).collect();
        CheckpointDirectory::drop_links(directory, &names)?;
        for (found, _) in go {
            let (name, id) = (found.entry.name.clone(), found.id());
            let path = directory.path(&name);
            let stays =
                |marks: &[(String, Vec<u8>)]| found.is_told_more_by(&Marks::among(marks, &id, directory.rules()));
            match directory.remove(&name, &id, &stays) {
                Ok(true) => pruned.removed.push(path),
                Ok(false) => pruned.spared.push((path, "something was noted in it at this moment".to_string())),
                Err(e) => pruned.spared.push((path, format!("{e:#}"))),
            }
        }
        thinning::finish(directory, &mut kept);
        for found in &kept {
            let path = directory.path(&found.entry.name);
            for component in thin.get(&found.entry.name).into_iter().flatten() {
                let why_not = match found.thinned.contains_key(component) {
                    true if found.leftover.is_empty() => {
                        pruned.thinned.push((path.clone(), component.clone()));
                        continue;
                    }
                    true => "its files could not be removed",
                    false => "the checkpoint was pinned at this moment, or could not be marked",
                };
                pruned.spared.push((path.clone(), format!("it keeps the component {component:?}: {why_not}")));
            }
        }
        CheckpointDirectory::tidy_index(directory, &held);
        Ok(pruned)
    }
}
