//! Finds and repairs damage in a directory of checkpoints.

use super::problem::{Problem, ProblemKind};
use super::target::{Place, place};
use super::{lossy, lossy_all, lossy_option, text};
use crate::catalog::{Catalog, numbered};
use crate::error::{Error, Result};
use crate::format::{Index, IndexEntry};
use crate::location::Location;
use crate::reader::CheckpointReader;
use crate::repository::{Aside, Directory, OpenOptions, Posix, before_aside, before_trash};
use crate::save::Held;
use serde::Serialize;
use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::io::ErrorKind;

/// What [`repair_plan`] would do to a directory of checkpoints, or what [`repair`] did.
#[derive(Debug, Clone, PartialEq, Serialize)]
#[non_exhaustive]
pub struct RepairReport {
    /// The directory.
    #[serde(serialize_with = "lossy")]
    pub directory: Location,
    /// The actions that would be, or were, taken.
    pub actions: Vec<RepairAction>,
    /// Problems that are left alone:
    ///
    /// * entries that cannot be read now, or by this version;
    /// * directories with the name of a checkpoint that have no manifest and are not in the index;
    /// * dangling links that no manager created;
    /// * checkpoints of two runs if nothing decides between them.
    pub left: Vec<Problem>,
    /// Checkpoints that a manager or an earlier repair set aside as damaged or unreadable.
    #[serde(serialize_with = "lossy_all")]
    pub moved_aside: Vec<Location>,
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
    /// Whether it was done; `false` in a plan.
    pub done: bool,
    /// The new path of what was set aside, or got its name back.
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
    /// A damaged checkpoint is renamed, as by a manager. None of its files are removed.
    SetAside,
    /// The remains of a save or removal whose process died are removed. A whole checkpoint that was pinned while it was
    /// being removed gets its name back instead (`moved_to`).
    Sweep,
    /// A symbolic link such as `latest` is removed, because the checkpoint that it leads to is gone.
    DropLink,
    /// The index is rewritten.
    RebuildIndex,
}

impl RepairReport {
    /// Returns `true` if no action is necessary.
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
///
/// ```no_run
/// # fn main() -> tch_checkpoint::Result<()> {
/// use tch_checkpoint::inspect;
/// let plan = inspect::repair_plan("checkpoints/run")?;
/// for action in &plan.actions {
///     println!("{:?} {}: {}", action.kind, action.path, action.reason);
/// }
/// # Ok(())
/// # }
/// ```
pub fn repair_plan(path: impl Into<Location>) -> Result<RepairReport> {
    let path = path.into();
    let directory = open(&path)?;
    let catalog = Catalog::of(&directory, directory.scan()?);
    let mut sweeps = sweeps(&path, &catalog);
    for sweep in &mut sweeps {
        if before_trash(&name_of(sweep)).is_some() {
            sweep.reason += "; one that is whole and pinned gets its name back";
        }
    }
    let mut report = plan(&path, catalog);
    report.actions.splice(0..0, sweeps);
    Ok(report)
}

/// Repairs the directory `path`. Reads every byte of every checkpoint and takes the writer's lock. No file of a
/// checkpoint is removed.
///
/// * Damaged checkpoints are renamed (`damaged-…`), so that nothing mistakes them for valid ones. This applies to
///   directories that are in the index or have a manifest; others, such as exports of weights and the checkpoints of
///   other programs, are left alone. They are reported if they have a component and the name of a checkpoint, and the
///   index lists no checkpoint of that name and another number.
/// * The remains of saves and removals whose process died are removed.
/// * A link that leads to a checkpoint of this directory (`latest`, `best`) is removed if that checkpoint is gone. All
///   other links are left alone.
/// * The index is rewritten if it does not list what a manager would list: for each name, the checkpoints of the
///   directory's run. Because the index decides between the checkpoints of different runs, those of other runs are
///   never added. If nothing decides ([`Error::Undecided`]), no checkpoint of that name is listed.
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
    // Removes the leftovers. They belong to processes that died, because this process holds the lock.
    let held = Held::take(&directory)?;
    let catalog = Catalog::of(&directory, directory.scan()?);
    let came: BTreeSet<String> = catalog.names.difference(&before.names).cloned().collect();
    let mut report = plan(&path, catalog);
    for action in &mut report.actions {
        let name = name_of(action);
        let result = match action.kind {
            RepairKind::SetAside => directory.quarantine(&name, Aside::Damaged).map(|aside| {
                action.moved_to = Some(path.join(aside));
            }),
            RepairKind::DropLink => {
                let is_gone = |target: &str| is_checkpoint(target) && matches!(directory.has(target), Ok(false));
                directory.put_link(&name, None, &is_gone)
            }
            RepairKind::Sweep | RepairKind::RebuildIndex => continue,
        };
        action.done = result.is_ok();
        action.failed = result.err().map(|error| format!("{error:#}"));
    }
    if let Some(action) = report.actions.iter_mut().find(|action| action.kind == RepairKind::RebuildIndex) {
        let catalog = Catalog::of(&directory, directory.scan()?);
        let result = held.update_index(&directory, |index| *index = index_of(&catalog).0);
        action.done = result.is_ok();
        action.failed = result.err().map(|error| format!("{error:#}"));
    }
    let swept = sweeps(&path, &before).into_iter().map(|action| {
        if let Some(name) = given_back(&name_of(&action), &came) {
            let reason = "it was pinned while it was being removed: it has its name back".to_string();
            return RepairAction { done: true, reason, moved_to: Some(path.join(name)), ..action };
        }
        let is_there = fs::symlink_metadata(&action.path).is_ok();
        let failed = is_there.then(|| "it could not be removed".to_string());
        RepairAction { done: !is_there, failed, ..action }
    });
    report.actions.splice(0..0, swept.collect::<Vec<_>>());
    Ok(report)
}

fn open(path: &Location) -> Result<Directory> {
    let reason = match place(path)? {
        Place::Directory(_) => {
            let options = OpenOptions { lenient: true, ..OpenOptions::default() };
            return Directory::new(&Posix::default(), path, &options);
        }
        Place::Foreign(_) => "is a checkpoint of another tool, not a directory of checkpoints",
        Place::Checkpoint | Place::LostManifest => {
            "is a checkpoint, not a directory of checkpoints; `salvage` writes what is intact of it \
             (`ckpt repair --salvage OUT`)"
        }
    };
    Err(Error::InvalidArgument(format!("{} {reason}", path.display())))
}

fn action(kind: RepairKind, path: Location, reason: impl Into<String>) -> RepairAction {
    RepairAction { kind, path, reason: reason.into(), done: false, moved_to: None, failed: None }
}

/// Returns the name of the entry.
fn name_of(action: &RepairAction) -> String {
    text(action.path.file_name().map_or("".as_ref(), |name| name.as_ref()))
}

/// Returns the name that a checkpoint has which was in the trash: its own, or if that was taken one that nothing
/// removes.
fn given_back<'a>(trash: &str, came: &'a BTreeSet<String>) -> Option<&'a String> {
    let name = before_trash(trash)?;
    came.iter().find(|came| **came == name || before_aside(came) == Some((Aside::PassedOver, name.as_str())))
}

fn sweeps(path: &Location, catalog: &Catalog) -> Vec<RepairAction> {
    let sweep = |name: &String| action(RepairKind::Sweep, path.join(name), "left by a save or a removal");
    catalog.leftovers.iter().map(sweep).collect()
}

/// Describes everything but the leftovers.
fn plan(path: &Location, mut catalog: Catalog) -> RepairReport {
    let damage = |name: &str, error: &Error| {
        let inside = path.join(name);
        action(RepairKind::SetAside, inside.clone(), Problem::of(error).within(&inside))
    };
    let (mut actions, mut left) = (Vec::new(), Vec::new());
    actions.extend(catalog.damaged.iter().map(|(name, error)| damage(name, error)));
    // `weights-STEP` is also the name of an export.
    let is_export = |name: &str| numbered(name).is_some_and(|(manager, _)| manager == "weights");
    let doubtful = catalog.doubtful.iter().filter(|(name, _)| catalog.may_be_ours(name) && !is_export(name));
    left.extend(doubtful.map(|(_, error)| Problem::of(error)));
    for found in &catalog.found {
        let name = &found.entry.name;
        let problems = CheckpointReader::open(path.join(name)).map(|reader| reader.verify().problems);
        match problems.map_or_else(Some, |problems| problems.into_iter().next()) {
            Some(error) if error.is_damage() => actions.push(damage(name, &error)),
            Some(error) => left.push(Problem::of(&error)),
            None => {}
        }
    }
    let name = |action: &RepairAction| action.path.file_name().map(|name| text(name.as_ref()));
    let set_aside: BTreeSet<String> = actions.iter().filter_map(name).collect();
    let (dropped, dangling) = links(path, &catalog, &set_aside);
    let unreachable = catalog.unreachable.iter().filter(|(name, _)| !dangling.contains_key(name));
    left.extend(unreachable.map(|(_, error)| Problem::of(error)));
    left.extend(dangling.into_values());
    actions.extend(dropped);
    // The checkpoints as a manager would find them after the repair.
    catalog.found.retain(|found| !set_aside.contains(&found.entry.name));
    catalog.damaged.retain(|(name, _)| !set_aside.contains(name));
    let (expected, undecided) = index_of(&catalog);
    left.extend(
        undecided.into_iter().map(|(first, second)| {
            Problem::of(&Error::Undecided { first: path.join(first), second: path.join(second) })
        }),
    );
    let is_current = catalog.index.as_ref().is_some_and(|index| is_same(index, &expected));
    if !is_current && (catalog.index.is_some() || !expected.checkpoints.is_empty()) {
        let reason = match catalog.index {
            Some(_) => "it does not list the checkpoints that are there",
            None => "it is missing, or it cannot be read",
        };
        actions.push(action(RepairKind::RebuildIndex, path.join(crate::format::INDEX_FILE), reason));
    }
    let moved_aside = catalog.set_aside.iter().map(|name| path.join(name)).collect();
    RepairReport { directory: path.clone(), actions, left, moved_aside }
}

/// Returns `true` if the target of a link is the name of a checkpoint in the same directory.
fn is_checkpoint(target: &str) -> bool {
    !target.contains('/') && numbered(target).is_some()
}

/// Returns the links to remove, and the problems of other dangling links, by name. A link with the name of a checkpoint
/// may refer to one on a file system that is not mounted now; links to anything but checkpoints are not a manager's.
fn links(
    path: &Location,
    catalog: &Catalog,
    set_aside: &BTreeSet<String>,
) -> (Vec<RepairAction>, BTreeMap<String, Problem>) {
    let (mut dropped, mut dangling) = (Vec::new(), BTreeMap::new());
    for name in &catalog.links {
        let link = path.join(name);
        let Ok(target) = fs::read_link(&link) else { continue };
        let target = text(&target);
        let is_set_aside = set_aside.contains(&target);
        if !is_set_aside && !fs::metadata(&link).is_err_and(|e| e.kind() == ErrorKind::NotFound) {
            continue;
        }
        if is_checkpoint(&target) && numbered(name).is_none() {
            let why = if is_set_aside { "is set aside" } else { "is gone" };
            dropped.push(action(RepairKind::DropLink, link, format!("the checkpoint {target} that it leads to {why}")));
        } else {
            let reason = format!(
                "it is a symbolic link to {target}, which is not there: mount or restore that, or remove the link"
            );
            dangling.insert(name.clone(), Problem { path: Some(link), kind: ProblemKind::Link, reason });
        }
    }
    (dropped, dangling)
}

/// Returns the index as managers write it: for each name, only the checkpoints of this directory's run, because the
/// index decides between runs. For a name for which nothing decides, it lists none, and the two checkpoints are
/// returned.
fn index_of(catalog: &Catalog) -> (Index, Vec<(String, String)>) {
    let managers: BTreeSet<&str> =
        catalog.found.iter().filter_map(|found| numbered(&found.entry.name)).map(|(manager, _)| manager).collect();
    let (mut own, mut undecided) = (BTreeSet::new(), Vec::new());
    for manager in managers {
        match catalog.chain(manager) {
            Ok(chain) => own.extend(chain.own),
            Err(pair) => undecided.push(pair),
        }
    }
    let is_own = |name: &str| numbered(name).is_none() || own.contains(name);
    let found = catalog.ordered().0.into_iter().map(|found| found.entry);
    let mut checkpoints: Vec<IndexEntry> = found.filter(|entry| is_own(&entry.name)).collect();
    let latest = checkpoints.last().filter(|_| undecided.is_empty()).map(|entry| entry.name.clone());
    // What cannot be read now stays in the index.
    let unread: BTreeSet<&String> = catalog.damaged.iter().chain(&catalog.unreachable).map(|(name, _)| name).collect();
    let known = catalog.index.iter().flat_map(|index| &index.checkpoints);
    checkpoints.extend(known.filter(|entry| unread.contains(&entry.name)).cloned());
    let permanent = checkpoints.iter().filter(|entry| entry.permanent);
    (Index { latest, last_permanent: permanent.map(|entry| entry.saved_at).max(), checkpoints }, undecided)
}

/// Returns `true` if two indexes list the same checkpoints, in any order.
fn is_same(a: &Index, b: &Index) -> bool {
    let names = |index: &Index| -> BTreeSet<(String, u64, String)> {
        let entries = index.checkpoints.iter();
        entries.map(|entry| (entry.name.clone(), entry.sequence, entry.run.clone())).collect()
    };
    names(a) == names(b) && a.latest == b.latest
}
