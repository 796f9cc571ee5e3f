//! What is wrong with a directory of checkpoints, and putting it right.

use super::problem::Problem;
use super::target::{Place, place};
use super::{lossy, lossy_option, text};
use crate::catalog::Catalog;
use crate::error::{Error, Result};
use crate::format::{Index, IndexEntry};
use crate::location::Location;
use crate::reader::CheckpointReader;
use crate::repository::{Aside, Directory, OpenOptions, Posix};
use crate::save::Held;
use serde::Serialize;
use std::collections::BTreeSet;
use std::fs;

/// What [`repair_plan`] would do to a directory of checkpoints, or what [`repair`] did.
#[derive(Debug, Clone, PartialEq, Serialize)]
#[non_exhaustive]
pub struct RepairReport {
    /// The directory.
    #[serde(serialize_with = "lossy")]
    pub directory: Location,
    /// What is to be done, or was.
    pub actions: Vec<RepairAction>,
    /// What cannot be read now, or by this version, and is left as it is.
    pub left: Vec<Problem>,
}

/// A part of a repair.
#[derive(Debug, Clone, PartialEq, Serialize)]
#[non_exhaustive]
pub struct RepairAction {
    /// What is done.
    pub kind: RepairKind,
    /// The entry of the directory.
    #[serde(serialize_with = "lossy")]
    pub path: Location,
    /// Why.
    pub reason: String,
    /// Whether it was done: `false` in a plan.
    pub done: bool,
    /// The new path of what was set aside.
    #[serde(serialize_with = "lossy_option")]
    pub moved_to: Option<Location>,
    /// Why it could not be done.
    pub failed: Option<String>,
}

/// The kind of a [`RepairAction`].
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize)]
#[serde(rename_all = "snake_case")]
#[non_exhaustive]
pub enum RepairKind {
    /// A damaged checkpoint is renamed, as a manager does it. Nothing of it is removed.
    SetAside,
    /// What a save or a removal left whose process died is removed.
    Sweep,
    /// A symbolic link that leads nowhere is removed.
    DropLink,
    /// The index is written anew.
    RebuildIndex,
}

impl RepairReport {
    /// Returns `true` if there is nothing to do.
    #[must_use]
    pub fn is_sound(&self) -> bool {
        self.actions.is_empty() && self.left.is_empty()
    }

    /// Returns `true` if everything that was to be done was done.
    #[must_use]
    pub fn is_done(&self) -> bool {
        self.actions.iter().all(|action| action.done)
    }
}

/// Returns what [`repair`] would do to the directory `path`. Reads every byte of every checkpoint, takes no lock and
/// changes nothing.
///
/// # Errors
/// [`Error::InvalidArgument`] if `path` is a checkpoint; [`Error::NotFound`], [`Error::Io`].
pub fn repair_plan(path: impl Into<Location>) -> Result<RepairReport> {
    let path = path.into();
    let directory = open(&path)?;
    let catalog = Catalog::of(&directory, directory.scan()?);
    let mut report = plan(&path, &catalog);
    report.actions.splice(0..0, sweeps(&path, &catalog));
    Ok(report)
}

/// Repairs the directory `path`: renames damaged checkpoints (`damaged-…`), so that nothing takes them for whole ones,
/// removes what dead processes and links to nothing left, and writes the index anew. Every byte of every checkpoint is
/// read. Nothing of a checkpoint is removed. Takes the writer's lock.
///
/// # Errors
/// As for [`repair_plan`]; [`Error::Locked`] while another process writes into the directory.
///
/// ```
/// # fn main() -> Result<(), Box<dyn std::error::Error>> {
/// # let dir = tempfile::tempdir()?;
/// # let dir = dir.path();
/// use tch_checkpoint::inspect::{self, RepairKind};
/// use tch_checkpoint::{Checkpoint, Counter};
/// let path = Checkpoint::new().track("step", &Counter::new(7))?.save(dir.join("ckpt"))?;
/// std::fs::write(path.join("manifest.json"), "overwritten")?;
/// assert_eq!(inspect::repair_plan(dir)?.actions[0].kind, RepairKind::SetAside);
/// assert!(inspect::repair(dir)?.is_done());
/// assert!(inspect::repair_plan(dir)?.is_sound());
/// # Ok(())
/// # }
/// ```
pub fn repair(path: impl Into<Location>) -> Result<RepairReport> {
    let path = path.into();
    let directory = open(&path)?;
    let before = Catalog::of(&directory, directory.scan()?);
    // Removes the leftovers: whoever holds the lock has none.
    let held = Held::take(&directory)?;
    let catalog = Catalog::of(&directory, directory.scan()?);
    let mut report = plan(&path, &catalog);
    for action in &mut report.actions {
        let name = text(action.path.file_name().map_or("".as_ref(), |name| name.as_ref()));
        let result = match action.kind {
            RepairKind::SetAside => directory.quarantine(&name, Aside::Damaged).map(|aside| {
                action.moved_to = Some(path.join(aside));
            }),
            // It is dangling, whatever its target.
            RepairKind::DropLink => directory.put_link(&name, None, &|_| true),
            RepairKind::Sweep | RepairKind::RebuildIndex => continue,
        };
        action.done = result.is_ok();
        action.failed = result.err().map(|error| format!("{error:#}"));
    }
    if let Some(action) = report.actions.iter_mut().find(|action| action.kind == RepairKind::RebuildIndex) {
        let catalog = Catalog::of(&directory, directory.scan()?);
        let result = held.update_index(&directory, |index| *index = index_of(&catalog, &BTreeSet::new()));
        action.done = result.is_ok();
        action.failed = result.err().map(|error| format!("{error:#}"));
    }
    let swept = sweeps(&path, &before).into_iter().map(|action| {
        let is_there = fs::symlink_metadata(&action.path).is_ok();
        let failed = is_there.then(|| "it could not be removed".to_string());
        RepairAction { done: !is_there, failed, ..action }
    });
    report.actions.splice(0..0, swept.collect::<Vec<_>>());
    Ok(report)
}

fn open(path: &Location) -> Result<Directory> {
    match place(path)? {
        Place::Directory(_) => Directory::new(&Posix::default(), path, &OpenOptions::default()),
        _ => {
            let reason = format!("{} is a checkpoint, not a directory of checkpoints", path.display());
            Err(Error::InvalidArgument(reason))
        }
    }
}

fn action(kind: RepairKind, path: Location, reason: impl Into<String>) -> RepairAction {
    RepairAction { kind, path, reason: reason.into(), done: false, moved_to: None, failed: None }
}

fn sweeps(path: &Location, catalog: &Catalog) -> Vec<RepairAction> {
    let sweep = |name: &String| action(RepairKind::Sweep, path.join(name), "left by a save or a removal");
    catalog.leftovers.iter().map(sweep).collect()
}

/// Everything but the leftovers.
fn plan(path: &Location, catalog: &Catalog) -> RepairReport {
    let damage = |name: &String, error: &Error| {
        let inside = path.join(name);
        action(RepairKind::SetAside, inside.clone(), Problem::of(error).within(&inside))
    };
    let mut actions: Vec<RepairAction> = catalog
        .damaged
        .iter()
        .filter(|(_, error)| error.is_damage())
        .map(|(name, error)| damage(name, error))
        .collect();
    let mut left: Vec<Problem> =
        catalog.damaged.iter().filter(|(_, error)| !error.is_damage()).map(|(_, error)| Problem::of(error)).collect();
    for found in &catalog.found {
        let name = &found.entry.name;
        let problems = CheckpointReader::open(path.join(name)).map(|reader| reader.verify().problems);
        match problems.map_or_else(Some, |problems| problems.into_iter().next()) {
            Some(error) if error.is_damage() => actions.push(damage(name, &error)),
            Some(error) => left.push(Problem::of(&error)),
            None => {}
        }
    }
    let dangling =
        |name: &&String| fs::metadata(path.join(name)).is_err_and(|e| e.kind() == std::io::ErrorKind::NotFound);
    let links: Vec<&String> = catalog.links.iter().filter(dangling).collect();
    let unreachable = catalog.unreachable.iter().filter(|(name, _)| !links.contains(&name));
    left.extend(unreachable.map(|(_, error)| Problem::of(error)));
    let set_aside: BTreeSet<&str> = actions.iter().filter_map(|action| action.path.file_name()?.to_str()).collect();
    let expected = index_of(catalog, &set_aside);
    let is_current = catalog.index.as_ref().is_some_and(|index| is_same(index, &expected));
    actions.extend(links.iter().map(|name| action(RepairKind::DropLink, path.join(name), "it leads nowhere")));
    if !is_current && (catalog.index.is_some() || !expected.checkpoints.is_empty()) {
        let reason = match catalog.index {
            Some(_) => "it does not list what is there",
            None => "it is missing, or it cannot be read",
        };
        actions.push(action(RepairKind::RebuildIndex, path.join(crate::format::INDEX_FILE), reason));
    }
    RepairReport { directory: path.clone(), actions, left }
}

/// Returns the index of what is whole, without the checkpoints that are set aside.
fn index_of(catalog: &Catalog, set_aside: &BTreeSet<&str>) -> Index {
    let (found, undecided) = catalog.ordered();
    let stay = found.into_iter().map(|found| found.entry).filter(|entry| !set_aside.contains(entry.name.as_str()));
    let checkpoints: Vec<IndexEntry> = stay.collect();
    let permanent = checkpoints.iter().filter(|entry| entry.permanent);
    Index {
        latest: checkpoints.last().filter(|_| undecided.is_none()).map(|entry| entry.name.clone()),
        last_permanent: permanent.map(|entry| entry.saved_at).max(),
        checkpoints,
    }
}

/// Returns `true` if two indexes list the same checkpoints, in any order.
fn is_same(a: &Index, b: &Index) -> bool {
    let names = |index: &Index| -> BTreeSet<(String, u64, String)> {
        let entries = index.checkpoints.iter();
        entries.map(|entry| (entry.name.clone(), entry.sequence, entry.run.clone())).collect()
    };
    names(a) == names(b) && a.latest == b.latest
}
