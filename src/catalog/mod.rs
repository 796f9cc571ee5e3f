//! Determines the content of a directory of checkpoints: which are valid, newest, marked, ours, or out of the
//! numbering. No other module answers these questions.

mod chain;
mod looks;
mod marks;
mod rule;
mod sequences;

pub(crate) use chain::{Chain, Link};
pub(crate) use looks::{Looks, is_settled};
pub(crate) use marks::{Marks, check_marks, mark_files, remove_mark, write_mark, write_marks};
pub(crate) use rule::{number_of, numbered};
pub(crate) use sequences::Sequences;

use self::chain::Decides;
use self::rule::Whose;
use crate::error::{Error, Result};
use crate::figures::SaveFigures;
use crate::format::{Follows, Index, IndexEntry, Manifest};
use crate::provenance::Provenance;
use crate::repository::{Aside, Directory, Scan, before_aside, link_met};
use crate::rules::{Rule, Rules};
use crate::source::Source;
use crate::sync::Arc;
use chrono::{DateTime, Utc};
use std::cmp::Ordering;
use std::collections::{BTreeMap, BTreeSet, HashMap, HashSet};
use std::hash::{DefaultHasher, Hash, Hasher};

/// A checkpoint that is valid, judging by its manifest and the lengths of its files.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct Found {
    /// The content of its manifest and marks, including late metrics; `permanent` is a mark.
    pub entry: IndexEntry,
    pub follows: Option<Follows>,
    /// See [`Manifest::earlier`].
    pub earlier: Vec<Follows>,
    /// As in the manifest.
    pub counted_from: Option<DateTime<Utc>>,
    /// The keys of tensors with non-finite values.
    pub non_finite: Vec<String>,
    /// As in the manifest.
    pub unclean: bool,
    /// The tracked components that it lacks: left out of the save, or removed later.
    pub without: Vec<String>,
    /// The components that can be removed without the others.
    pub separable: Vec<String>,
    /// The components that were removed after the commit, with their files.
    pub thinned: BTreeMap<String, Vec<String>>,
    /// Those of these files that still exist.
    pub leftover: BTreeSet<String>,
    /// A mark cannot be read: it is not removed, but not recorded as permanent either.
    pub has_unknown_mark: bool,
    /// Marks that may affect other checkpoints were read, and may not be durable yet.
    pub has_new_marks: bool,
    /// The names of its metadata.
    pub metadata: Vec<String>,
    pub provenance: Option<Arc<Provenance>>,
    pub figures: Option<SaveFigures>,
    /// Names and notes.
    pub pins: BTreeMap<String, String>,
    /// Names and texts.
    pub notes: BTreeMap<String, String>,
    pub tensors: usize,
    pub values: usize,
    /// A hash of the keys, types and shapes of its tensors, and of the keys of its values.
    pub layout: u64,
}

impl Found {
    /// Describes the checkpoint `name` by its manifest and marks.
    pub(crate) fn new(name: &str, manifest: &Manifest, marks: Marks) -> Found {
        let entry = IndexEntry {
            name: name.to_string(),
            sequence: manifest.sequence,
            run: manifest.run.clone(),
            step: manifest.step,
            saved_at: manifest.saved_at,
            bytes: manifest.bytes(),
            metrics: manifest.metrics.clone(),
            permanent: false,
        };
        let (tensors, values) = (manifest.tensors.len(), manifest.values.len());
        let (follows, earlier) = (manifest.follows.clone(), manifest.earlier.clone());
        let counted_from = manifest.counted_from;
        let non_finite = manifest.non_finite().map(str::to_string).collect();
        let (pins, notes) = (BTreeMap::new(), BTreeMap::new());
        let (unclean, without) = (manifest.unclean, manifest.without.clone());
        let metadata = manifest.metadata.keys().cloned().collect();
        let mut found = Found {
            entry,
            follows,
            earlier,
            counted_from,
            non_finite,
            unclean,
            without,
            separable: manifest.separable().into_keys().collect(),
            thinned: BTreeMap::new(),
            leftover: BTreeSet::new(),
            has_unknown_mark: false,
            has_new_marks: false,
            metadata,
            provenance: Provenance::of(&manifest.metadata).map(Arc::new),
            figures: manifest.figures,
            pins,
            notes,
            tensors,
            values,
            layout: layout(manifest),
        };
        found.take_in(marks);
        found
    }

    /// Updates it with its present marks. Only pins, and marks that cannot be read, are ever removed.
    pub(crate) fn take_in(&mut self, marks: Marks) {
        self.has_new_marks |= !self.knows(&marks.metrics)
            || marks.permanent && !self.entry.permanent
            || marks.pins.keys().ne(self.pins.keys());
        self.entry.metrics.extend(marks.metrics);
        self.entry.permanent |= marks.permanent;
        self.has_unknown_mark = marks.unknown.is_some();
        (self.pins, self.notes) = (marks.pins, marks.notes);
    }

    /// Returns `true` if all values are finite, as far as they were recorded, and the state is not unclean.
    pub(crate) fn is_healthy(&self) -> bool {
        self.non_finite.is_empty() && !self.unclean
    }

    /// Returns `true` if `marks` have something new that may keep it.
    pub(crate) fn is_told_more_by(&self, marks: &Marks) -> bool {
        marks.stays() || !self.knows(&marks.metrics)
    }

    /// Returns `true` if it has its manifest, and files of at least as many bytes as were written. Cheap, unless files of
    /// removed components, which could stand in for others, are still there.
    pub(crate) fn looks_whole(&self, directory: &Directory) -> bool {
        match self.leftover.is_empty() {
            true => directory.looks_whole(&self.entry),
            false => look(directory, &self.entry.name).is_ok(),
        }
    }

    fn knows(&self, metrics: &BTreeMap<String, f64>) -> bool {
        let known = |(name, value): (&String, &f64)| {
            self.entry.metrics.get(name).is_some_and(|known| known.to_bits() == value.to_bits())
        };
        metrics.iter().all(known)
    }

    /// Returns its identity, independent of its name.
    pub(crate) fn id(&self) -> Follows {
        Follows { run: self.entry.run.clone(), sequence: self.entry.sequence }
    }

    /// Returns the runs that its manifest names: its own, and those that this one came from.
    pub(crate) fn runs(&self) -> impl Iterator<Item = &str> {
        let before = self.follows.iter().chain(&self.earlier).map(|before| before.run.as_str());
        std::iter::once(self.entry.run.as_str()).chain(before)
    }

    fn link(&self) -> Link {
        Link {
            id: self.id(),
            follows: self.follows.clone(),
            earlier: self.earlier.clone(),
            name: self.entry.name.clone(),
            saved_at: self.entry.saved_at,
            permanent: self.entry.permanent || self.has_unknown_mark,
        }
    }
}

/// Returns a hash of what a restore of a checkpoint writes: keys, types and shapes of tensors, and keys of values.
fn layout(manifest: &Manifest) -> u64 {
    let mut hasher = DefaultHasher::new();
    manifest.tensors.iter().for_each(|(key, tensor)| (key, &tensor.spec).hash(&mut hasher));
    manifest.values.keys().for_each(|key| key.hash(&mut hasher));
    hasher.finish()
}

/// The content of a directory.
#[derive(Debug, Default)]
pub(crate) struct Catalog {
    /// The valid checkpoints, of any name, in the order of their sequences.
    pub found: Vec<Found>,
    /// Our checkpoints that are damaged, by name.
    pub damaged: Vec<(String, Error)>,
    /// Directories with a component that may be other programs': they have no manifest, and the index does not list them.
    pub doubtful: Vec<(String, Error)>,
    /// Our checkpoints that cannot be read now, or by this version, by name.
    pub unreachable: Vec<(String, Error)>,
    /// Those of the unreachable ones that have the name of a checkpoint, and of which nothing else is known.
    pub named: HashSet<String>,
    /// See [`is_strange`](Catalog::is_strange).
    strange: HashSet<String>,
    /// Those that left the numbering because others took their place, by name, with their content if they can be read.
    pub superseded: Vec<(String, Result<Found>)>,
    /// Those that left the numbering for any other reason, by name.
    pub set_aside: Vec<String>,
    /// Symbolic links, by name. They are not followed. Those with the name of a checkpoint that may be newer than all
    /// others are also unreachable.
    pub links: Vec<String>,
    /// Leftovers of saves and removals.
    pub leftovers: Vec<String>,
    /// The names of all entries of the directory.
    pub names: BTreeSet<String>,
    pub index: Option<Index>,
    /// The names in the index, with the highest sequence of each.
    indexed: HashMap<String, u64>,
    /// The managers of these.
    indexed_managers: HashSet<String>,
    /// Names of entries that existed when the directory was listed, and were gone when they were examined.
    pub vanished: Vec<String>,
    /// A directory is no whole checkpoint, whatever it is: if it is being filled, it can become one in place.
    pub has_partial: bool,
    rules: Rules,
}

impl Catalog {
    /// Examines everything that `scan` found in `directory`.
    pub(crate) fn of(directory: &Directory, scan: Scan) -> Catalog {
        Catalog::of_changed(directory, scan, &mut Looks::default())
    }

    /// Like [`of`](Catalog::of), but does not examine again what has not changed since the last call with these
    /// `looks`. Files that were modified in place are not noticed.
    pub(crate) fn of_changed(directory: &Directory, scan: Scan, looks: &mut Looks) -> Catalog {
        looks.keep(&scan.names);
        let mut catalog = Catalog {
            leftovers: scan.leftovers,
            names: scan.names,
            index: directory.index(),
            rules: directory.rules(),
            ..Catalog::default()
        };
        for entry in catalog.index.iter().flat_map(|index| &index.checkpoints) {
            let highest = catalog.indexed.entry(entry.name.clone()).or_default();
            *highest = entry.sequence.max(*highest);
            catalog.indexed_managers.extend(numbered(&entry.name).map(|(manager, _)| manager.to_string()));
        }
        for (name, found) in scan.checkpoints.iter().zip(looks.look(directory, &scan.checkpoints)) {
            catalog.take(directory, name, found);
        }
        let (superseded, set_aside): (Vec<_>, Vec<_>) =
            scan.aside.into_iter().partition(|(aside, _)| *aside == Aside::Superseded);
        let names = |aside: Vec<(Aside, String)>| aside.into_iter().map(|(_, name)| name).collect::<Vec<String>>();
        let superseded = names(superseded);
        catalog.set_aside = names(set_aside);
        catalog.superseded = superseded.iter().cloned().zip(looks.look(directory, &superseded)).collect();
        catalog.found.sort_by(order);
        catalog.look_at_links(directory, scan.links);
        catalog.look_at_strange();
        catalog.superseded.sort_by(|a, b| a.0.cmp(&b.0));
        catalog.set_aside.sort();
        catalog.leftovers.sort();
        catalog
    }

    /// Leaves these checkpoints out, as if they were not there.
    pub(crate) fn leave_out(&mut self, names: &HashSet<String>) {
        self.found.retain(|found| !names.contains(&found.entry.name));
        for list in [&mut self.damaged, &mut self.doubtful, &mut self.unreachable] {
            list.retain(|(name, _)| !names.contains(name));
        }
    }

    /// A link could lead to a checkpoint. One with the name of the newest must not be ignored silently.
    fn look_at_links(&mut self, directory: &Directory, links: Vec<String>) {
        for name in self.may_be_newest(&links) {
            self.unreachable.push((name.clone(), link_met(&directory.path(&name))));
            self.named.insert(name);
        }
        self.links = links;
    }

    /// Returns those of `names`, which are not there, that may be newer than all of their managers': by their number, or
    /// because the index says so. Numbers of other runs say nothing.
    fn may_be_newest(&self, names: &[String]) -> Vec<String> {
        let mut managers: HashMap<&str, Vec<&Found>> =
            names.iter().filter_map(|name| numbered(name)).map(|(manager, _)| (manager, Vec::new())).collect();
        if managers.is_empty() {
            return Vec::new();
        }
        for found in &self.found {
            let manager = numbered(&found.entry.name).map(|(manager, _)| manager);
            manager.and_then(|manager| managers.get_mut(manager)).into_iter().for_each(|mine| mine.push(found));
        }
        let mut trees = self.trees();
        // The highest number and sequence.
        let mut highest = |mine: Vec<&Found>| -> Option<(u64, u64)> {
            let own: Option<HashSet<String>> =
                self.chain_among(&mine, &mut trees).ok().map(|chain| chain.own.into_iter().collect());
            let own = || mine.iter().filter(|found| own.as_ref().is_none_or(|own| own.contains(&found.entry.name)));
            let number = own().filter_map(|found| numbered(&found.entry.name)).map(|(_, number)| number).max();
            Some((number?, own().map(|found| found.entry.sequence).max()?))
        };
        let managers: HashMap<&str, Option<(u64, u64)>> =
            managers.into_iter().map(|(manager, mine)| (manager, highest(mine))).collect();
        let latest = self.index.as_ref().and_then(|index| index.latest.as_ref());
        let may_be = |name: &&String| {
            let Some((manager, number)) = numbered(name) else { return false };
            let highest = managers.get(manager).copied().flatten();
            highest.is_none_or(|(last, _)| last < number)
                || latest == Some(*name)
                || self.indexed.get(*name).copied() > highest.map(|(_, sequence)| sequence)
        };
        names.iter().filter(may_be).cloned().collect()
    }

    /// Finds those of `named` whose managers have no other checkpoint, while there are checkpoints.
    fn look_at_strange(&mut self) {
        let found = self.found.iter().map(|found| found.entry.name.as_str());
        let superseded = self.superseded.iter().map(|(aside, _)| aside);
        let aside = superseded.chain(&self.set_aside).filter_map(|aside| before_aside(aside).map(|(_, name)| name));
        let known: HashSet<&str> = found.chain(aside).filter_map(|name| Some(numbered(name)?.0)).collect();
        let is_known = |manager: &str| known.contains(manager) || self.indexed_managers.contains(manager);
        let is_alone = |name: &&String| !numbered(name).is_some_and(|(manager, _)| is_known(manager));
        let strange = self.named.iter().filter(|_| !self.found.is_empty()).filter(is_alone).cloned().collect();
        self.strange = strange;
    }

    /// Returns `true` if the index lists a checkpoint of this name.
    pub(crate) fn is_indexed(&self, name: &str) -> bool {
        self.indexed.contains_key(name)
    }

    /// Returns `true` if nothing but its name tells that the unreachable `name` is a checkpoint, while there are others,
    /// none of them of the same manager: it is an alias, or of another program or user.
    pub(crate) fn is_strange(&self, name: &str) -> bool {
        self.strange.contains(name)
    }

    /// Returns the sequence of the valid checkpoint `name`.
    pub(crate) fn sequence_of(&self, name: &str) -> Option<u64> {
        self.found.iter().find(|found| found.entry.name == name).map(|found| found.entry.sequence)
    }

    /// Returns `true` if the checkpoint `name`, which cannot be read, is older than the one with the sequence `newest`: the
    /// index lists it, with a lower sequence.
    pub(crate) fn is_older(&self, newest: Option<u64>, name: &str) -> bool {
        let is_latest = self.index.as_ref().is_some_and(|index| index.latest.as_deref() == Some(name));
        !is_latest && self.indexed.get(name).is_some_and(|sequence| Some(*sequence) < newest)
    }

    /// Adds what was found when the checkpoint `name` was examined.
    fn take(&mut self, directory: &Directory, name: &str, found: Result<Found>) {
        let error = match found {
            Ok(found) => return self.found.push(found),
            Err(error) => error,
        };
        self.has_partial = true;
        if !directory.has(name).unwrap_or(true) {
            self.vanished.push(name.to_string());
            return;
        }
        let list = match rule::whose(directory, self.indexed.contains_key(name), name) {
            Whose::Ours | Whose::Named if error.is_damage() => &mut self.damaged,
            Whose::Ours => &mut self.unreachable,
            Whose::Named => {
                self.named.insert(name.to_string());
                &mut self.unreachable
            }
            Whose::Doubtful => &mut self.doubtful,
            Whose::Others => return,
        };
        list.push((name.to_string(), error));
    }

    /// Returns the highest sequence in the directory. Unreadable checkpoints count as far as the index lists them: the
    /// next save must be later.
    pub(crate) fn sequence(&self) -> u64 {
        let found = self.found.iter().chain(self.superseded.iter().filter_map(|(_, found)| found.as_ref().ok()));
        let indexed = self.index.iter().flat_map(|index| &index.checkpoints);
        let indexed = indexed.filter(|entry| self.names.contains(&entry.name)).map(|entry| entry.sequence);
        found.map(|found| found.entry.sequence).chain(indexed).max().unwrap_or(0)
    }

    /// Returns the checkpoints called `manager` and a number, in the order in which they follow one another.
    ///
    /// # Errors
    /// The names of two checkpoints if nothing decides which one the run should continue from.
    pub(crate) fn chain(&self, manager: &str) -> Result<Chain, (String, String)> {
        let mine = self.found.iter().filter(|found| number_of(manager, &found.entry.name).is_some());
        self.chain_among(&mine.collect::<Vec<_>>(), &mut self.trees())
    }

    fn chain_among(&self, mine: &[&Found], trees: &mut Trees<'_>) -> Result<Chain, (String, String)> {
        match self.rules.hold(Rule::Chain) {
            true => trees.chain(mine),
            false => Ok(Chain { own: mine.iter().map(|found| found.entry.name.clone()).collect(), others: Vec::new() }),
        }
    }

    /// Returns what decides between the trees of each name.
    fn trees(&self) -> Trees<'_> {
        let entries = self.index.iter().flat_map(|index| &index.checkpoints);
        let gone = gone(self.superseded.iter().filter_map(|(_, found)| found.as_ref().ok()));
        let steps = chain::steps(self.found.len() + gone.len());
        Trees { indexed: entries.map(|entry| (entry.run.as_str(), entry.sequence)).collect(), gone, steps }
    }

    /// Returns all valid ones, the newest last. If there are several names, the one with the highest sequence is the
    /// newest.
    ///
    /// # Errors
    /// Also returns the names of two checkpoints of one name if nothing decides which one is newer.
    pub(crate) fn ordered(&self) -> (Vec<Found>, Option<(String, String)>) {
        let mut undecided = None;
        let mut groups: BTreeMap<&str, Vec<&Found>> = BTreeMap::new();
        for found in &self.found {
            let name = found.entry.name.as_str();
            groups.entry(numbered(name).map_or(name, |(manager, _)| manager)).or_default().push(found);
        }
        let (mut others, mut own, mut trees) = (BTreeSet::new(), Vec::new(), self.trees());
        for group in groups.into_values() {
            match trees.chain(&group) {
                Ok(chain) => {
                    others.extend(chain.others);
                    own.extend(chain.own.last().cloned());
                }
                Err(pair) => undecided = Some(pair),
            }
        }
        let by_name: HashMap<&str, &Found> =
            self.found.iter().map(|found| (found.entry.name.as_str(), found)).collect();
        let heads = own.iter().filter_map(|name| by_name.get(name.as_str()).copied());
        let newest = heads.max_by(|a, b| order(a, b)).map(|found| found.entry.name.clone());
        let mut all = self.found.clone();
        // Before marks existed, only the index recorded it.
        let hints = self.index.iter().flat_map(|index| &index.checkpoints).filter(|entry| entry.permanent);
        let hints: HashSet<(&str, u64)> = hints.map(|entry| (entry.name.as_str(), entry.sequence)).collect();
        for found in &mut all {
            found.entry.permanent |= hints.contains(&(found.entry.name.as_str(), found.entry.sequence));
        }
        // Those of other runs first, the newest last.
        let rank = |found: &Found| (!others.contains(&found.entry.name), newest.as_ref() == Some(&found.entry.name));
        all.sort_by(|a, b| rank(a).cmp(&rank(b)).then_with(|| order(a, b)));
        (all, undecided)
    }

    /// Returns `true` if the doubtful directory `name` may be a checkpoint of a manager that has lost its manifest: the
    /// index lists no checkpoint of that manager, so it may be lost as well.
    pub(crate) fn may_be_ours(&self, name: &str) -> bool {
        numbered(name).is_some_and(|(manager, _)| !self.indexed_managers.contains(manager))
    }

    /// Returns those named `manager` and a number that left the numbering for another reason than that a run went back.
    pub(crate) fn set_aside_of<'a>(&'a self, manager: &'a str) -> impl Iterator<Item = &'a String> {
        let of = move |name: &&String| before_aside(name).and_then(|(_, name)| number_of(manager, name)).is_some();
        self.set_aside.iter().filter(of)
    }
}

/// What decides between the trees of the checkpoints of one name, the same for all names.
struct Trees<'a> {
    /// Runs and sequences in the index.
    indexed: HashSet<(&'a str, u64)>,
    /// Those that left the numbering, and their predecessors.
    gone: HashMap<Follows, Option<Follows>>,
    /// How many steps through these are left.
    steps: usize,
}

impl Trees<'_> {
    /// Returns the checkpoints of one name in the order in which they follow one another.
    fn chain(&mut self, mine: &[&Found]) -> Result<Chain, (String, String)> {
        let links: Vec<Link> = mine.iter().map(|found| found.link()).collect();
        let is_known = |id: &Follows| self.indexed.contains(&(id.run.as_str(), id.sequence));
        let indexed = |link: &Link| is_known(&link.id) || link.follows.as_ref().is_some_and(is_known);
        chain::order(&links, &self.gone, &Decides::Index(indexed), &mut self.steps)
    }
}

/// Returns the number of the tree of each of these. Those of one tree have the same number.
pub(crate) fn trees<'a>(all: impl Iterator<Item = &'a Found>) -> Vec<usize> {
    let links: Vec<Link> = all.map(Found::link).collect();
    chain::trees(&links)
}

/// Returns all that come from where the checkpoint `id` comes from, whether or not they left the numbering: those of its
/// tree, and those of trees that name one of the runs that its tree names, because what both come from may be gone.
pub(crate) fn related_to(all: &[&Found], id: &Follows) -> HashSet<Follows> {
    let trees = trees(all.iter().copied());
    let with_trees = || all.iter().zip(&trees);
    let tree = with_trees().find(|(found, _)| found.id() == *id).map(|(_, tree)| tree);
    let of_it = with_trees().filter(|(_, other)| Some(*other) == tree);
    let runs: HashSet<&str> = of_it.flat_map(|(found, _)| found.runs()).chain([id.run.as_str()]).collect();
    let names_one = |found: &Found| found.runs().any(|run| runs.contains(run));
    let related: HashSet<usize> = with_trees().filter(|(found, _)| names_one(found)).map(|(_, tree)| *tree).collect();
    with_trees().filter(|(_, tree)| related.contains(tree)).map(|(found, _)| found.id()).collect()
}

/// Returns the chain of `found` to which the checkpoints `ids` belong.
pub(crate) fn chain_with<'a>(
    found: &[Found],
    superseded: impl Iterator<Item = &'a Found>,
    ids: &HashSet<Follows>,
) -> Result<Chain, (String, String)> {
    let (links, gone): (Vec<Link>, _) = (found.iter().map(Found::link).collect(), gone(superseded));
    let mut steps = chain::steps(links.len() + gone.len());
    chain::order(&links, &gone, &Decides::Chosen(|link: &Link| ids.contains(&link.id)), &mut steps)
}

/// Returns those that left the numbering, with their predecessors.
fn gone<'a>(superseded: impl Iterator<Item = &'a Found>) -> HashMap<Follows, Option<Follows>> {
    superseded.map(|found| (found.id(), found.follows.clone())).collect()
}

/// Examines a checkpoint without reading its tensors.
pub(crate) fn look(directory: &Directory, name: &str) -> Result<Found> {
    let source = Source::examine_in(directory, name)?;
    let marks = Marks::read(directory, name, &source.manifest)?;
    let mut found = Found::new(name, &source.manifest, marks);
    if !source.thinned.is_empty() {
        let names = source.names()?.into_iter().filter_map(|name| name.into_string().ok());
        let files: HashSet<&String> = source.thinned.values().flatten().collect();
        found.leftover = names.filter(|name| files.contains(name)).collect();
        found.thinned = source.thinned;
    }
    Ok(found)
}

/// Makes the marks of these checkpoints durable before anything is removed because of them: a writer may have ended or
/// failed between writing a mark and syncing it.
///
/// # Errors
/// As for [`write_mark`].
pub(crate) fn sync_marks<'a>(directory: &Directory, stay: impl IntoIterator<Item = &'a mut Found>) -> Result<()> {
    for found in stay.into_iter().filter(|found| found.has_new_marks) {
        directory.sync_marks(&found.entry.name, &found.id())?;
        found.has_new_marks = false;
    }
    Ok(())
}

/// Returns `true` if the error of a checkpoint is permanent for this version.
fn is_final(error: &Error) -> bool {
    error.is_damage() || matches!(error, Error::Unsupported { .. })
}

/// Compares by commit sequence, oldest first. The rest only orders copies of one checkpoint.
pub(crate) fn order(a: &Found, b: &Found) -> Ordering {
    let key = |found: &Found| (found.entry.sequence, found.entry.saved_at);
    key(a).cmp(&key(b)).then_with(|| (&a.entry.run, &a.entry.name).cmp(&(&b.entry.run, &b.entry.name)))
}
