//! A manager's knowledge of its directory.

use super::pins;
use super::retention::{CheckpointInfo, Explanation, Goal, Retention};
use super::seen::Seen;
use super::thinning;
use crate::catalog::{Catalog, Chain, Found, Marks, number_of, write_mark};
use crate::error::{Error, Result};
use crate::figures::SaveFigures;
use crate::format::{Follows, IndexEntry, MarkKind};
use crate::location::Location;
use crate::repository::{Aside, Directory, MANIFEST, before_aside};
use crate::restore::PassedOver;
use crate::rules::Rule;
use crate::save::{Held, Memo};
use crate::sync::{Arc, Mutex};
use chrono::{DateTime, Utc};
use std::collections::{BTreeMap, BTreeSet, HashMap, HashSet};
use std::io::ErrorKind;
use std::time::Duration;

/// A link, and what it leads to.
#[derive(Debug, Clone)]
pub(super) struct Link {
    pub name: String,
    /// The metric and the goal; `None` for the newest.
    pub best: Option<(String, Goal)>,
}

/// The checkpoints of a directory that have the manager's name.
pub(super) struct Ledger {
    pub directory: Directory,
    pub held: Arc<Held>,
    /// The manager's name.
    pub name: String,
    pub retention: Retention,
    /// What is there of this run, oldest first; the last is the newest.
    pub known: Vec<Found>,
    /// Marks that were read while a copy of these is being updated, by checkpoint.
    read_meanwhile: Option<Vec<(Follows, Marks)>>,
    /// Out of the numbering since a run went back, by their names now.
    pub superseded: Vec<(String, Found)>,
    /// What is there of other runs, or of runs between which nothing decides; never removed by this manager.
    pub others: Vec<Found>,
    /// Those that are of this directory without doubt: the index had them when it was read, or will have them.
    pub listed: HashSet<Follows>,
    /// Two checkpoints if nothing decides which one to continue from.
    pub undecided: Option<(String, String)>,
    /// Those that cannot be read now, by name.
    pub unreachable: Vec<(String, Error)>,
    /// Those that another version wrote or marked, and that are older than the newest, by name.
    pub older: HashSet<String>,
    /// The sequences of all that were of this run since the manager was opened, also of those that are gone, by run.
    was: HashMap<String, BTreeSet<u64>>,
    /// Those that were skipped and still have their number.
    pub stuck: Vec<String>,
    /// Those that their user skipped, and that could not be renamed.
    pub skipped: HashSet<String>,
    /// When the manager was opened.
    opened: DateTime<Utc>,
    /// What this process restored last.
    pub restored: Option<Follows>,
    /// Those that could not be restored or read since the last restore.
    pub passed_over: Vec<PassedOver>,
    /// Those that an earlier process moved aside.
    pub set_aside: Vec<String>,
    /// Those that were found damaged and may be removed, by their names now: this process found them, or they have a
    /// manifest.
    pub damaged: Vec<String>,
    /// Superseded ones that cannot be read now, with the reason.
    unread: Vec<(String, String)>,
    /// The symbolic links to keep up to date. Locked while they are updated.
    pub links: Arc<Mutex<Vec<Link>>>,
    /// The time that the last save took until it was durable.
    pub last_took: Option<Duration>,
    /// Its cost.
    pub figures: Option<SaveFigures>,
    /// Checkpoints of other managers' names, with the reason if one cannot be used.
    strangers: Vec<(String, Option<String>)>,
    /// The parts of the last checkpoint.
    pub memo: Memo,
    pub seen: Seen,
}

/// Returns the input of the retention policies.
pub(super) fn infos<'a>(found: impl IntoIterator<Item = &'a Found>) -> Vec<CheckpointInfo> {
    found.into_iter().map(CheckpointInfo::from).collect()
}

impl Ledger {
    pub(super) fn new(
        directory: Directory,
        held: Arc<Held>,
        name: String,
        retention: Retention,
        opened: DateTime<Utc>,
    ) -> Ledger {
        Ledger {
            directory,
            held,
            name,
            retention,
            known: Vec::new(),
            read_meanwhile: None,
            superseded: Vec::new(),
            others: Vec::new(),
            listed: HashSet::new(),
            undecided: None,
            unreachable: Vec::new(),
            older: HashSet::new(),
            was: HashMap::new(),
            stuck: Vec::new(),
            skipped: HashSet::new(),
            opened,
            restored: None,
            passed_over: Vec::new(),
            set_aside: Vec::new(),
            damaged: Vec::new(),
            unread: Vec::new(),
            links: Arc::default(),
            last_took: None,
            figures: None,
            strangers: Vec::new(),
            memo: Memo::default(),
            seen: Seen::default(),
        }
    }

    pub(super) fn path(&self, name: &str) -> Location {
        self.directory.root().join(name)
    }

    /// Returns the healthy checkpoints that stay when `next` is saved, each with the components that it lacks then.
    /// Those that were removed by hand do not count.
    pub(super) fn beside(&mut self, next: CheckpointInfo) -> BTreeMap<String, Vec<String>> {
        let (name, now) = (next.name.clone(), next.saved_at);
        let Ledger { seen, known, directory, .. } = self;
        let others = known.iter().filter(|found| found.entry.name != name);
        let mut all = infos(others.filter(|found| seen.is_there(directory, found)));
        all.push(self.retention.with_components(next));
        let explanations = self.retention.explain(&all, self.restored.as_ref(), now).into_iter();
        let stays = |explanation: &Explanation| explanation.is_kept() && explanation.checkpoint.is_healthy();
        let stay = explanations.filter(|explanation| stays(explanation) && explanation.checkpoint.name != name);
        let lacks = |explanation: Explanation| {
            let Explanation { checkpoint, loses, .. } = explanation;
            (checkpoint.name, [checkpoint.without, loses].concat())
        };
        stay.map(lacks).collect()
    }

    /// Returns what the next checkpoint, which takes the place of `superseded`, records for the policies that count
    /// intervals.
    pub(super) fn counted_from(&self, superseded: &[String]) -> Option<DateTime<Utc>> {
        let stay = self.known.iter().filter(|found| !superseded.contains(&found.entry.name));
        // An earlier process of the run may have begun the first interval.
        let goes_on = self.restored.as_ref().is_some_and(|id| self.was_here(id));
        let began = self.known.iter().filter(|_| goes_on).filter_map(|found| found.counted_from).min();
        let opened = began.map_or(self.opened, |began| began.min(self.opened));
        self.retention.counted_from(&infos(stay), opened, self.directory.now())
    }

    /// After a save failed with this error, the next one takes no file of the last checkpoint, because one of them may
    /// have caused the failure. A lack of space is not their fault, and writing them again needs more.
    pub(super) fn doubt_memo(&mut self, error: &Error) {
        if !error.is_no_space() {
            self.memo = Memo::default();
        }
    }

    /// Records the checkpoints that exist. Damaged ones leave the numbering.
    pub(super) fn take_in(&mut self, mut catalog: Catalog) {
        self.skipped.retain(|name| catalog.names.contains(name));
        catalog.leave_out(&self.skipped);
        let chain = catalog.chain(&self.name);
        let mut left_alone = std::mem::take(&mut catalog.doubtful);
        left_alone.retain(|(name, _)| number_of(&self.name, name).is_some() && catalog.may_be_ours(name));
        let mine = |name: &str| number_of(&self.name, name).is_some();
        self.set_aside = catalog.set_aside_of(&self.name).cloned().collect();
        let found_before = std::mem::take(&mut self.damaged);
        let has_manifest =
            |name: &str| self.directory.names_in(name).is_ok_and(|names| names.iter().any(|name| name == MANIFEST));
        let is_damaged = |name: &&String| {
            matches!(before_aside(name), Some((Aside::Damaged, _)))
                && (found_before.contains(*name) || has_manifest(name))
        };
        self.damaged = self.set_aside.iter().filter(is_damaged).cloned().collect();
        let (unreachable, others): (Vec<_>, Vec<_>) =
            std::mem::take(&mut catalog.unreachable).into_iter().partition(|(name, _)| mine(name));
        let newest = chain.as_ref().ok().and_then(|chain| catalog.sequence_of(chain.own.last()?));
        // What another version wrote, or marked, stops the run only if it may be the newest.
        let is_older = |(name, error): &(String, Error)| {
            matches!(error, Error::Unsupported { .. }) && catalog.is_older(newest, name)
        };
        let (older, unreachable): (Vec<_>, Vec<_>) = unreachable.into_iter().partition(is_older);
        self.unreachable = unreachable;
        self.older = older.iter().map(|(name, _)| name.clone()).collect();
        left_alone.extend(older);
        let (found, strangers): (Vec<Found>, Vec<Found>) =
            std::mem::take(&mut catalog.found).into_iter().partition(|found| mine(&found.entry.name));
        // Also those that cannot be used, but not what may be another program's.
        let damaged = catalog.damaged.iter().filter(|(name, _)| !mine(name) && catalog.is_indexed(name));
        let unreachable_others = others.iter().filter(|(name, _)| !catalog.named.contains(name));
        let unusable =
            damaged.chain(unreachable_others).map(|(name, error)| (name.clone(), Some(format!("{error:#}"))));
        self.strangers = strangers.into_iter().map(|found| (found.entry.name, None)).chain(unusable).collect();
        self.strangers.retain(|(name, _)| crate::catalog::numbered(name).is_some());
        let of_mine = |aside: &str| crate::repository::before_aside(aside).is_some_and(|(_, name)| mine(name));
        let superseded: Vec<_> = catalog.superseded.into_iter().filter(|(name, _)| of_mine(name)).collect();
        let mut damaged: Vec<_> = catalog.damaged.into_iter().filter(|(name, _)| mine(name)).collect();
        // The newest first, by number.
        damaged.sort_by_key(|(name, _)| std::cmp::Reverse(number_of(&self.name, name)));
        let entries = catalog.index.iter().flat_map(|index| &index.checkpoints);
        let id = |entry: &IndexEntry| Follows { run: entry.run.clone(), sequence: entry.sequence };
        self.listed = entries.filter(|entry| mine(&entry.name)).map(id).collect();
        match chain {
            Ok(chain) => self.follow(found, &chain),
            Err(pair) => {
                self.undecided = Some(pair);
                (self.known, self.others) = (Vec::new(), found);
            }
        }
        if let Some(index) = catalog.index {
            let permanent = index.checkpoints.iter().filter(|entry| entry.permanent);
            let permanent: HashSet<(&str, u64)> =
                permanent.map(|entry| (entry.name.as_str(), entry.sequence)).collect();
            self.mark_permanent(|found| permanent.contains(&(found.entry.name.as_str(), found.entry.sequence)));
        } else if self.counted_from(&[]).is_some() {
            // Before there were marks only the index knew: then all that could be are permanent. Such checkpoints name
            // none that they follow; later only the first of a run does.
            let older = self.known.len().saturating_sub(self.retention.superseded_after.unwrap_or(usize::MAX));
            let names_none = |found: &&Found| found.follows.is_none() && found.counted_from.is_none();
            let without: Vec<&Found> = self.known.iter().filter(names_none).collect();
            let is_first =
                |found: &Found| without.iter().filter(|other| other.entry.run == found.entry.run).count() == 1;
            let old = self.known[..older].iter().filter(|found| names_none(found) && !is_first(found));
            let names: Vec<String> = old.map(|found| found.entry.name.clone()).collect();
            self.mark_permanent(|found| names.contains(&found.entry.name));
        }
        self.known.iter().for_each(|found| self.directory.sweep_marks(&found.entry.name));
        thinning::resume(&self.directory, &mut self.known);
        for (name, error) in damaged {
            self.pass_over(&name, &error, Some(Aside::Damaged));
        }
        for (name, error) in left_alone {
            let hint = match &error {
                Error::Unsupported { .. } => "",
                _ => "; if a checkpoint has lost its manifest here, `ckpt repair --salvage` reads the rest",
            };
            self.report(self.path(&name), format!("{error:#}{hint}"));
        }
        (self.superseded, self.unread) = (Vec::new(), Vec::new());
        for (name, found) in superseded {
            self.take_in_superseded(name, found);
        }
        for aside in pins::take_off(&self.directory, &self.superseded, &self.known) {
            if let Ok(marks) = self.directory.marks(&aside) {
                self.note_marks(&aside, &marks);
            }
        }
        // What was restored still decides.
        if let Some(restored) = self.restored.clone() {
            self.choose(&restored);
        }
    }

    /// Returns a copy of the known ones, which [`put_back`](Ledger::put_back) takes when it is updated.
    pub(super) fn take_copy(&mut self) -> Vec<Found> {
        self.read_meanwhile = Some(Vec::new());
        self.known.clone()
    }

    /// Replaces the known ones by the updated copy, with the marks that were read meanwhile.
    pub(super) fn put_back(&mut self, copy: Vec<Found>) {
        self.known = copy;
        for (id, marks) in self.read_meanwhile.take().into_iter().flatten() {
            if let Some(found) = self.known.iter_mut().find(|found| found.id() == id) {
                found.take_in(marks);
            }
        }
    }

    /// Records the marks that are in the directory `name` now.
    pub(super) fn note_marks(&mut self, name: &str, files: &[(String, Vec<u8>)]) {
        let superseded = self.superseded.iter_mut().filter(|(aside, _)| aside == name).map(|(_, found)| found);
        let known = self.known.iter_mut().filter(|found| found.entry.name == name);
        let Some(found) = superseded.chain(known).next() else { return };
        let marks = Marks::among(files, &found.id(), self.directory.rules());
        if let Some(read) = &mut self.read_meanwhile {
            read.push((found.id(), marks.clone()));
        }
        found.take_in(marks);
    }

    /// Adds a checkpoint that was saved.
    pub(super) fn add(&mut self, found: Found) {
        self.note(found.id());
        self.skipped.remove(&found.entry.name);
        self.older.remove(&found.entry.name);
        self.known.push(found);
    }

    fn note(&mut self, id: Follows) {
        self.was.entry(id.run).or_default().insert(id.sequence);
    }

    /// Damaged ones count among the damaged.
    fn take_in_superseded(&mut self, name: String, found: Result<Found>) {
        let error = match found {
            Ok(found) => {
                self.note(found.id());
                return self.superseded.push((name, found));
            }
            Err(error) => error,
        };
        let path = self.path(&name);
        log::warn!("{} cannot be read: {error:#}", path.display());
        if error.is_damage() {
            match self.directory.quarantine(&name, Aside::Damaged) {
                Ok(aside) => {
                    self.set_aside.push(aside.clone());
                    return self.damaged.push(aside);
                }
                Err(Error::Io { source, .. }) if source.kind() == ErrorKind::NotFound => return,
                Err(e) => log::warn!("{} could not be moved aside: {e:#}", path.display()),
            }
        }
        self.unread.push((name, format!("{error:#}")));
    }

    /// Records that what is at `path` is not restored, once.
    fn report(&mut self, path: Location, reason: String) {
        log::warn!("{} is skipped: {reason}", path.display());
        if !self.passed_over.iter().any(|passed| passed.path == path) {
            self.passed_over.push(PassedOver { path, reason });
        }
    }

    /// Sorts the checkpoints by the chain to which they belong.
    fn follow(&mut self, mut found: Vec<Found>, chain: &Chain) {
        let mut take = |name: &String| {
            let at = found.iter().position(|found| found.entry.name == *name)?;
            Some(found.swap_remove(at))
        };
        self.known = chain.own.iter().filter_map(&mut take).collect();
        let others = chain.others.iter().filter_map(&mut take).collect();
        self.others.clear();
        self.leave(others);
        self.undecided = None;
        let ids: Vec<Follows> = self.known.iter().map(Found::id).collect();
        ids.into_iter().for_each(|id| self.note(id));
    }

    /// Decides for the run of the checkpoint `id`, which was restored.
    pub(super) fn choose(&mut self, id: &Follows) {
        let is_other = self.others.iter().any(|found| found.id() == *id);
        let ids = if is_other {
            HashSet::from([id.clone()])
        } else if self.has(id) {
            // One that was superseded belongs to the run of those that come from where it comes from.
            self.related_to(id)
        } else {
            return;
        };
        let is_of_it = |found: &Found| ids.contains(&found.id());
        if self.known.iter().any(is_of_it) || !self.others.iter().any(is_of_it) {
            if !is_other {
                self.leave_foreign(&ids);
            }
            return;
        }
        let mut found = std::mem::take(&mut self.known);
        found.append(&mut self.others);
        found.sort_by(crate::catalog::order);
        let superseded = self.superseded.iter().map(|(_, found)| found);
        if let Ok(chain) = crate::catalog::chain_with(&found, superseded, &ids) {
            self.follow(found, &chain);
        }
    }

    /// Returns those that come from where the checkpoint `id` comes from.
    pub(super) fn related_to(&self, id: &Follows) -> HashSet<Follows> {
        let superseded = self.superseded.iter().map(|(_, found)| found);
        let all: Vec<&Found> = self.known.iter().chain(&self.others).chain(superseded).collect();
        crate::catalog::related_to(&all, id)
    }

    /// Returns `true` if a checkpoint is of this directory without doubt: the index lists it, or its predecessor.
    fn is_listed(&self, found: &Found) -> bool {
        let is_listed = |id: &Follows| self.listed.contains(id);
        is_listed(&found.id()) || found.follows.as_ref().is_some_and(is_listed)
    }

    /// Leaves alone what nothing connects with the run of the checkpoints `ids`: it was copied in when none that has a
    /// number was there, and counted because it was alone.
    fn leave_foreign(&mut self, ids: &HashSet<Follows>) {
        let aside = self.superseded.iter().map(|(_, found)| found);
        let all: Vec<&Found> = self.known.iter().chain(aside).collect();
        let trees = crate::catalog::trees(all.iter().copied());
        let is_ours = |found: &Found| ids.contains(&found.id()) || self.is_listed(found);
        let with_trees = || all.iter().zip(&trees);
        let ours: HashSet<usize> = with_trees().filter(|(found, _)| is_ours(found)).map(|(_, tree)| *tree).collect();
        // Without the index, a permanent one is ours, and alone when its neighbours are gone.
        let may_be_alone = |found: &Found| found.entry.permanent && self.listed.is_empty();
        let known = with_trees().take(self.known.len());
        let others: HashSet<usize> =
            known.filter(|(found, tree)| !may_be_alone(found) && !ours.contains(tree)).map(|(_, tree)| *tree).collect();
        if others.is_empty() {
            return;
        }
        let mut tree = trees.into_iter();
        let (foreign, known) = std::mem::take(&mut self.known)
            .into_iter()
            .partition(|_| tree.next().is_some_and(|tree| others.contains(&tree)));
        self.known = known;
        self.leave(foreign);
    }

    /// Adds these to those of other runs.
    fn leave(&mut self, others: Vec<Found>) {
        for other in &others {
            log::warn!(
                "{} is of another run than the newest and is left alone",
                self.path(&other.entry.name).display()
            );
        }
        self.others.extend(others);
        self.others.sort_by(crate::catalog::order);
    }

    /// Marks each of these checkpoints as permanent, unless it is marked already.
    fn mark_permanent(&mut self, which: impl Fn(&Found) -> bool) {
        for found in self.known.iter_mut().filter(|found| !found.entry.permanent) {
            if which(found) {
                found.entry.permanent = true;
                if let Err(e) = write_mark(&self.directory, &found.entry.name, found.id(), MarkKind::Permanent) {
                    log::warn!("{} could not be marked as permanent: {e:#}", found.entry.name);
                }
            }
        }
    }

    /// Removes a checkpoint that is not restored from the list, and renames it if `aside` is set.
    pub(super) fn pass_over(&mut self, name: &str, error: &Error, aside: Option<Aside>) {
        let mut path = self.path(name);
        match aside.map(|aside| self.directory.quarantine(name, aside)) {
            Some(Ok(aside)) => {
                path = self.path(&aside);
                self.damaged.push(aside);
            }
            // Somebody has removed it.
            Some(Err(Error::Io { source, .. })) if source.kind() == ErrorKind::NotFound => {}
            // It must leave it before the run comes to its number.
            failed => {
                if let Some(Err(e)) = failed {
                    log::warn!("{} could not be moved aside: {e:#}", path.display());
                }
                if !self.stuck.iter().any(|stuck| stuck == name) {
                    self.stuck.push(name.to_string());
                }
            }
        }
        self.forget(name);
        self.report(path, format!("{error:#}"));
    }

    /// Returns the error of the first checkpoint that cannot be read, which stays in the list for the next call.
    pub(super) fn why_unreachable(&self) -> Option<Error> {
        let (name, _) = self.unreachable.first()?;
        let path = self.path(name);
        let again = || {
            Error::InvalidArgument(format!(
                "the checkpoint {} could not be read when the directory was opened, and it may be the newest; call \
                 `restore_or_initialize` first, or continue without it by `CheckpointManager::pass_over`",
                path.display()
            ))
        };
        let error = crate::catalog::look(&self.directory, name).err().unwrap_or_else(again);
        Some(match error {
            Error::Unsupported { path, reason } => {
                let reason = format!(
                    "{reason}; it may be the newest: use the version that wrote it, or continue without it by \
                     `CheckpointManager::pass_over`"
                );
                Error::Unsupported { path, reason }
            }
            error => error,
        })
    }

    /// # Errors
    /// If nothing decides which of two checkpoints is the newest.
    pub(super) fn decided(&self) -> Result<()> {
        match &self.undecided {
            Some((first, second)) => Err(Error::Undecided { first: self.path(first), second: self.path(second) }),
            None => Ok(()),
        }
    }

    /// Returns the names of damaged checkpoints, oldest first by number.
    pub(super) fn damaged_by_number(&self) -> Vec<String> {
        let number = |name: &String| before_aside(name).and_then(|(_, name)| number_of(&self.name, name));
        let mut damaged = self.damaged.clone();
        damaged.sort_by_key(|name| (number(name), name.clone()));
        damaged
    }

    /// Returns those that exceed the number to keep.
    pub(super) fn damaged_to_remove(&self) -> Vec<String> {
        let mut damaged = self.damaged_by_number();
        damaged.truncate(damaged.len().saturating_sub(self.retention.keep_damaged.unwrap_or(usize::MAX)));
        damaged
    }

    /// Removes a checkpoint from all lists.
    pub(super) fn forget(&mut self, name: &str) {
        self.known.retain(|found| found.entry.name != name);
        self.others.retain(|found| found.entry.name != name);
        self.unreachable.retain(|(unreachable, _)| unreachable != name);
    }

    /// Renames the skipped checkpoints whose number is above that of `restored`.
    ///
    /// # Errors
    /// When one cannot be moved: the run would come to its number and could not save.
    pub(super) fn free_numbers(&mut self, restored: &str) -> Result<()> {
        let restored = number_of(&self.name, restored);
        self.stuck.retain(|name| number_of(&self.name, name) > restored);
        while let Some(name) = self.stuck.first().cloned() {
            let old = self.path(&name);
            match self.directory.quarantine(&name, Aside::PassedOver) {
                Ok(aside) => {
                    let path = self.path(&aside);
                    self.passed_over.iter_mut().filter(|passed| passed.path == old).for_each(|passed| {
                        passed.path.clone_from(&path);
                    });
                }
                Err(Error::Io { source, .. }) if source.kind() == ErrorKind::NotFound => {}
                Err(e) => return Err(e),
            }
            self.stuck.remove(0);
        }
        Ok(())
    }

    /// Returns the known checkpoints that are abandoned if the run continues from `head`, or from nothing: all later
    /// ones, unless nothing connects them with `head`.
    pub(super) fn after(&self, head: Option<&Follows>) -> Vec<String> {
        if !self.directory.rules().hold(Rule::Supersede) {
            return Vec::new();
        }
        let later = &self.known[head.and_then(|head| self.place(head)).map_or(0, |at| at + 1)..];
        // Without the index, a permanent one counts even if it is of another run. It is not of the path that is abandoned.
        let may_be_foreign = |found: &&Found| found.entry.permanent && !self.is_listed(found);
        let related =
            head.filter(|_| later.iter().any(|found| may_be_foreign(&found))).map(|head| self.related_to(head));
        let is_of_it = |found: &&Found| {
            !may_be_foreign(found) || related.as_ref().is_none_or(|related| related.contains(&found.id()))
        };
        later.iter().filter(is_of_it).map(|found| found.entry.name.clone()).collect()
    }

    /// Where a checkpoint stands among the known ones, or that before it if it was superseded.
    fn place(&self, id: &Follows) -> Option<usize> {
        let mut id = id.clone();
        for _ in 0..=self.superseded.len() {
            if let Some(at) = self.known.iter().rposition(|found| found.id() == id) {
                return Some(at);
            }
            match self
                .superseded
                .iter()
                .find(|(_, found)| found.id() == id)
                .and_then(|(_, found)| found.follows.as_ref())
            {
                Some(follows) => id = follows.clone(),
                None => break,
            }
        }
        // What it followed is gone: those that were there before it stay.
        self.known.iter().rposition(|found| found.entry.sequence < id.sequence)
    }

    /// Returns the step of the last checkpoint with a step that is there, up to this one.
    pub(super) fn step_up_to(&mut self, id: &Follows) -> Option<u64> {
        let Ledger { seen, known, directory, .. } = self;
        let at = known.iter().position(|found| found.id() == *id)?;
        let there = known[..=at].iter().rev().filter(|found| seen.is_there(directory, found));
        there.into_iter().find_map(|found| found.entry.step)
    }

    /// Returns `true` if all known ones are still what has their names.
    pub(super) fn are_all_there(&mut self) -> bool {
        let mut seen = std::mem::take(&mut self.seen);
        let all = self.known.iter().all(|found| seen.is_there(&self.directory, found));
        self.seen = seen;
        all
    }

    /// Returns `true` if a checkpoint is, or was, one of this directory's run.
    pub(super) fn has(&self, id: &Follows) -> bool {
        let superseded = self.superseded.iter().map(|(_, found)| found);
        self.known.iter().chain(superseded).any(|found| found.id() == *id)
    }

    /// Returns `true` if a checkpoint is, or was, one of this directory's run, even if it has been removed since, or, where
    /// one that is there names its run, before this manager was opened: sequences of one directory can be compared.
    pub(super) fn was_here(&self, id: &Follows) -> bool {
        let was = || self.was.get(&id.run).is_some_and(|sequences| sequences.contains(&id.sequence));
        let all = || self.known.iter().chain(self.superseded.iter().map(|(_, found)| found));
        let is_named = || all().any(|found| found.runs().any(|run| run == id.run));
        self.has(id) || self.directory.rules().hold(Rule::GoneBefore) && (was() || is_named())
    }

    /// Why a directory without a usable checkpoint is not the same as an empty one.
    pub(super) fn why_not_afresh(&self) -> Option<String> {
        self.why_not_beside().or_else(|| {
            let (stranger, unusable) = self.strangers.first()?;
            let (path, name) = (self.path(stranger), crate::catalog::numbered(stranger)?.0);
            let path = path.display();
            Some(match unusable {
                Some(reason) => {
                    format!("there are only those of another name, such as {path}, which cannot be used: {reason}; {AFRESH}")
                }
                None => format!(
                    "there are only those of another name, such as {path}; `checkpoint_name({name:?})` continues from them, {AFRESH}"
                ),
            })
        })
    }

    /// Why there was a run of this name, although no checkpoint of it is usable.
    pub(super) fn why_not_beside(&self) -> Option<String> {
        if !self.passed_over.is_empty() {
            let reasons: Vec<&str> = self.passed_over.iter().map(|passed| passed.reason.as_str()).collect();
            return Some(format!("none that is there can be used: {}; {AFRESH}", reasons.join("; ")));
        }
        if let Some((aside, reason)) = self.unread.first() {
            let path = self.path(aside);
            return Some(format!("{} cannot be read: {reason}; {AFRESH}", path.display()));
        }
        let superseded = self.superseded.iter().map(|(name, _)| name);
        if let Some(aside) = self.set_aside.iter().chain(superseded).next() {
            let path = self.path(aside);
            let path = path.display();
            return Some(format!(
                "there are only damaged or abandoned ones, such as {path}; {AFRESH} or move them away"
            ));
        }
        None
    }
}

/// How to start a new run anyway.
const AFRESH: &str = "`CheckpointManagerBuilder::fresh_start` starts a new run beside them";
