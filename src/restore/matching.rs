//! Matches saved values with objects. Changes nothing.

use super::options::{RestoreOptions, Verify};
use super::origin::Origin;
use super::overlap::{self, Common};
use crate::dtype::TensorSpec;
use crate::error::{Error, RestoreReport, Result, SkipReason, TrainableDifference};
use crate::graph::{
    Adopt, Area, Child, Children, Collection, Identity, Kind, LOST, Node, Place, SavedTree, TensorLeaf, ValueApply,
    ValueLeaf, Visitor, Walk,
};
use crate::name;
use std::collections::{BTreeMap, BTreeSet, HashMap, HashSet};
use std::sync::Arc;

/// A restore, ready to be verified and applied.
#[derive(Default)]
pub(crate) struct Matching {
    pub tensors: Vec<Matched>,
    /// The objects that it is for.
    pub objects: Vec<(String, Node)>,
    pub values: Vec<ValueApply>,
    pub collections: Vec<Replacement>,
    /// Variables whose `requires_grad` is to be set.
    pub flags: Vec<(String, Arc<dyn TensorLeaf>, bool)>,
    pub report: RestoreReport,
    /// Objects that may be partly overwritten and get no value.
    pub left_torn: Vec<String>,
}

/// A tensor that gets the value of its key.
pub(crate) struct Matched {
    pub key: String,
    pub leaf: Arc<dyn TensorLeaf>,
    /// The memory of its elements, if it reports where they are.
    pub area: Option<Area>,
    /// Whether another tensor has, or may have, a part of this memory: it is not written at the same time.
    pub overlaps: bool,
    /// Whether a collection has created it for this restore, and does not have it before the restore has succeeded.
    pub is_created: bool,
}

/// The changes to a collection's children.
pub(crate) struct Replacement {
    pub collection: Arc<dyn Collection>,
    pub dropped: Vec<String>,
    /// Adds the created children.
    pub adopt: Vec<Adopt>,
}

/// The entry of a collection without children, which cannot be distinguished from a missing one.
static EMPTY: SavedTree = SavedTree { children: BTreeMap::new(), tensor: None, has_value: false, was_trained: false };

/// Why a child of a collection that is one state is left unchanged.
const ONE_STATE: &str = "others that it belongs to are left unchanged";

/// Returns how many of the last keys are below `place`.
fn last_below<'a>(keys: impl DoubleEndedIterator<Item = &'a String>, place: &str) -> usize {
    let prefix = name::prefix(place);
    keys.rev().take_while(|key| key.starts_with(&prefix)).count()
}

/// Returns the saved part of a child, given that of its parent.
fn saved_of<'a>(parent: Option<&'a SavedTree>, name: &str, child: &Node) -> Option<&'a SavedTree> {
    let saved = parent?.children.get(name);
    saved.or_else(|| matches!(child.0, Kind::Collection(_)).then_some(&EMPTY))
}

/// What to restore, and what is known about the objects.
pub(crate) struct Request<'a> {
    pub saved: &'a SavedTree,
    pub origin: &'a Origin<'a>,
    pub options: &'a RestoreOptions,
    /// Tensors that an earlier restore may have left partly overwritten. No exception applies to them.
    pub torn: &'a BTreeSet<String>,
    /// Keys that were restored from this checkpoint before and are not restored again.
    pub given: &'a BTreeSet<String>,
}

/// Matches `objects` with what is saved; `unused` in the report has the saved keys that no object used. Walks the graph
/// once, and checks its names by the same rules as for saving.
pub(crate) fn match_objects(objects: &[(String, Node)], request: &Request<'_>) -> Result<Matching> {
    let mut matcher = Matcher {
        request,
        matching: Matching { objects: objects.to_vec(), ..Matching::default() },
        seen: HashMap::new(),
        identities: Vec::new(),
        same: Vec::new(),
        wanted: Vec::new(),
    };
    for (name, node) in objects {
        Walk::component(&mut matcher, name, node, saved_of(Some(request.saved), name, node))?;
    }
    matcher.match_overlapping()?;
    let Matcher { mut matching, wanted, .. } = matcher;
    let taken: HashSet<&str> = matching.report.matched.iter().map(String::as_str).collect();
    // A value uses a whole branch.
    let is_below_taken = |key: &str| key.match_indices('/').any(|(end, _)| taken.contains(&key[..end]));
    let has_branches = request.origin.has_branches();
    let is_taken = |key: &str| taken.contains(key) || has_branches && is_below_taken(key);
    let keys = request.origin.keys().into_iter();
    let unused = keys.filter(|key| !is_taken(key) && !request.options.skips(key)).cloned().collect();
    let mappings = request.origin.mappings().iter();
    matching.report.mapped = mappings.filter(|mapping| is_taken(&mapping.key)).cloned().collect();
    drop(taken);
    matching.report.unused = unused;
    matching.report.nearest = nearest(&matching.report, &wanted, request.origin);
    Ok(matching)
}

/// Returns for each missing key the unused ones that may correspond to it: the one with the nearest name, and those of
/// its type and shape.
fn nearest(
    report: &RestoreReport,
    wanted: &[(String, TensorSpec)],
    origin: &Origin<'_>,
) -> BTreeMap<String, Vec<String>> {
    let missing = report.missing.iter().take(MAX_HINTS);
    let mut nearest: BTreeMap<String, Vec<String>> = BTreeMap::new();
    let unused = || report.unused.iter().take(MAX_CANDIDATES).map(String::as_str);
    for key in missing {
        let by_text = name::nearest(key, unused());
        let spec = wanted.iter().find(|(wanted, _)| wanted == key).map(|(_, spec)| spec);
        let by_shape = unused().filter(|key| spec.is_some() && origin.spec(key) == spec).take(HINTS);
        let mut found: Vec<String> = Vec::new();
        for candidate in by_text.into_iter().chain(by_shape) {
            if found.len() < HINTS && !found.iter().any(|known| known == candidate) {
                found.push(candidate.to_string());
            }
        }
        if !found.is_empty() {
            nearest.insert(key.clone(), found);
        }
    }
    nearest
}

/// The maximum number of missing keys with hints.
const MAX_HINTS: usize = 20;

/// The maximum number of unused keys that are considered.
const MAX_CANDIDATES: usize = 10_000;

/// The maximum number of hints per key.
const HINTS: usize = 3;

struct Matcher<'a> {
    request: &'a Request<'a>,
    matching: Matching,
    /// Tensor memory that is already matched, with its key.
    seen: HashMap<Identity, String>,
    /// The keys of `seen`, in order.
    identities: Vec<Identity>,
    /// Keys of tensors whose memory is already matched, each with the key in `seen`.
    same: Vec<(String, String)>,
    /// Type and shape of tensors that are missing.
    wanted: Vec<(String, TensorSpec)>,
}

/// The position of a matching.
struct Mark {
    tensors: usize,
    values: usize,
    flags: usize,
    matched: usize,
    trainable: usize,
    identities: usize,
    same: usize,
    not_matched: usize,
}

impl<'a> Visitor for Matcher<'a> {
    /// The saved part of the object.
    type Above = Option<&'a SavedTree>;

    fn enters(&mut self, place: &Place<'_>) -> bool {
        let skips = self.request.options.skips_here(&place.key);
        if skips {
            self.matching.left_torn.extend(below(self.request.torn, &place.key).cloned());
            self.matching.report.skip(&place.key, SkipReason::Requested);
        }
        !skips
    }

    fn tensor(&mut self, leaf: &Arc<dyn TensorLeaf>, place: Place<'_>, saved: Option<&'a SavedTree>) -> Result<()> {
        self.match_tensor(leaf, saved, place.key)
    }

    fn value(&mut self, leaf: &Arc<dyn ValueLeaf>, place: Place<'_>, saved: Option<&'a SavedTree>) -> Result<()> {
        self.match_value(leaf, saved, place.key)
    }

    fn in_group(&self, saved: Option<&'a SavedTree>, name: &str, child: &Node) -> Option<&'a SavedTree> {
        saved_of(saved, name, child)
    }

    fn in_collection(
        &self,
        collection: &dyn Collection,
        saved: Option<&'a SavedTree>,
        child: &Child,
        place: &Place<'_>,
    ) -> Option<Option<&'a SavedTree>> {
        let may_lack = |name: &str| match saved {
            Some(saved) => collection.may_lack_beside(name, saved),
            None => collection.may_lack(name),
        };
        let is_saved = saved.is_some_and(|saved| saved.children.contains_key(&child.name));
        let is_lacked = !is_saved
            && may_lack(&child.name)
            && !self.request.options.skips_here(&place.key)
            && !self.request.origin.is_lost(&place.key);
        (!is_lacked).then(|| saved_of(saved, &child.name, &child.node))
    }

    fn after_collection(
        &mut self,
        walk: &mut Walk,
        collection: &Arc<dyn Collection>,
        children: &Children,
        place: Place<'_>,
        saved: Option<&'a SavedTree>,
    ) -> Result<()> {
        let adopt = self.create(walk, collection, &children.all, saved, &place)?;
        if collection.is_one_state() && self.is_mixed(&place.key) {
            self.leave_whole(&place.key);
            return Ok(());
        }
        // What was restored before has changed since.
        let was_given = below(self.request.given, &place.key).next().is_some();
        let lacked = children.left_out.iter().filter(|_| saved.is_some() && !was_given);
        let dropped: Vec<String> = lacked.map(|&at| children.all[at].name.clone()).collect();
        if !adopt.is_empty() || !dropped.is_empty() {
            self.matching.collections.push(Replacement { collection: collection.clone(), dropped, adopt });
        }
        Ok(())
    }
}

impl<'a> Matcher<'a> {
    fn match_value(&mut self, leaf: &Arc<dyn ValueLeaf>, saved: Option<&SavedTree>, key: String) -> Result<()> {
        if self.request.given.contains(&key) {
            return Ok(());
        }
        let value = if saved.is_some() { self.request.origin.value(&key)? } else { None };
        let Some(value) = value else {
            self.missing(key);
            return Ok(());
        };
        match leaf.load(&value) {
            Ok(apply) => {
                self.matching.values.push(apply);
                self.matching.report.matched.push(key);
            }
            Err(reason) => {
                if self.request.options.may_mismatch(&key) {
                    self.matching.values.extend(leaf.load_partly(&value));
                }
                self.mismatch(key, format!("{reason:#}"));
            }
        }
        Ok(())
    }

    fn match_tensor(&mut self, leaf: &Arc<dyn TensorLeaf>, saved: Option<&SavedTree>, key: String) -> Result<()> {
        if self.request.given.contains(&key) {
            return Ok(());
        }
        let Some(spec) = saved.and_then(|saved| saved.tensor.as_ref()) else {
            let is_lost = self.request.origin.is_lost(&key);
            match leaf.is_optional() && !is_lost && !self.request.torn.contains(&key) {
                true => {}
                false => {
                    if self.wanted.len() < MAX_HINTS {
                        self.wanted.extend(leaf.spec().ok().map(|spec| (key.clone(), spec)));
                    }
                    self.missing(key);
                }
            }
            return Ok(());
        };
        let live = leaf.spec().map_err(|reason| Error::object(&key, reason))?;
        if live != *spec && !leaf.adapt_to(spec) {
            self.mismatch(key, format!("the object is {live}, the checkpoint has {spec}"));
            return Ok(());
        }
        if leaf.is_lost() {
            return Err(Error::object(key, LOST));
        }
        if leaf.has_rules() {
            let saved = self.request.origin.bytes(&key, self.verifies())?;
            if let Err(reason) = leaf.check(&saved) {
                self.mismatch(key, reason.to_string());
                return Ok(());
            }
        }
        match leaf.identity() {
            Some(identity) => match self.seen.get(&identity) {
                // Shared memory: both names must have the same value.
                Some(first) if !self.request.origin.are_same(first, &key)? => {
                    let reason = format!(
                        "it shares its memory with {}, but the checkpoint has different values for the two",
                        name::shown(first)
                    );
                    self.mismatch(key, reason);
                    return Ok(());
                }
                Some(first) => self.same.push((key.clone(), first.clone())),
                None => {
                    let area = Area::of_known(&identity);
                    self.identities.push(identity.clone());
                    self.seen.insert(identity, key.clone());
                    let (key, leaf) = (key.clone(), leaf.clone());
                    self.matching.tensors.push(Matched { key, leaf, area, overlaps: false, is_created: false });
                }
            },
            None => {
                // A variable without memory of its own, such as a conjugate view, may show that of any other.
                let overlaps = leaf.variable().is_some();
                let (key, leaf) = (key.clone(), leaf.clone());
                self.matching.tensors.push(Matched { key, leaf, area: None, overlaps, is_created: false });
            }
        }
        self.trainable(leaf, &key);
        self.matching.report.matched.push(key);
        Ok(())
    }

    /// Returns `true` if an exception leaves a part of what was matched last, below `place`, unchanged.
    fn is_mixed(&self, place: &str) -> bool {
        let report = &self.matching.report;
        let is_matched = last_below(report.matched.iter(), place) > 0;
        let mut skipped =
            report.skipped.iter().rev().take(last_below(report.skipped.iter().map(|one| &one.key), place));
        is_matched && skipped.any(|one| one.why != SkipReason::Requested)
    }

    /// Discards the matches below `place`, which are the last ones: the state there is left unchanged as a whole.
    fn leave_whole(&mut self, place: &str) {
        let Matching { tensors, flags, report, .. } = &self.matching;
        let identities = self.identities.iter().filter_map(|identity| self.seen.get(identity));
        let now = self.mark();
        let before = Mark {
            tensors: now.tensors - last_below(tensors.iter().map(|tensor| &tensor.key), place),
            flags: now.flags - last_below(flags.iter().map(|(key, ..)| key), place),
            matched: now.matched - last_below(report.matched.iter(), place),
            trainable: now.trainable - last_below(report.trainable.iter().map(|one| &one.key), place),
            identities: now.identities - last_below(identities, place),
            same: now.same - last_below(self.same.iter().map(|(key, _)| key), place),
            ..now
        };
        let matched = report.matched[before.matched..].to_vec();
        self.go_back(&before);
        for key in matched {
            match self.request.torn.contains(&key) {
                true => self.matching.left_torn.push(key),
                false => self.matching.report.skip(&key, SkipReason::Mismatch(ONE_STATE.to_string())),
            }
        }
    }

    /// Whether what is read to be compared is verified.
    fn verifies(&self) -> bool {
        self.request.options.verify != Verify::Never
    }

    /// Looks for tensors that have a part of their memory in common: the checkpoint must have the same bytes for it.
    fn match_overlapping(&mut self) -> Result<()> {
        let mut left_out = HashSet::new();
        for group in overlap::groups(self.matching.tensors.iter().map(|tensor| tensor.area)) {
            let tensors = group.iter().map(|&place| &self.matching.tensors[place]);
            let key = &self.matching.tensors[group[0]].key;
            let Some(mut common) = Common::of(key, tensors.filter_map(|tensor| tensor.area))? else { continue };
            for (at, &place) in group.iter().enumerate() {
                let Matched { key, leaf, area, .. } = &self.matching.tensors[place];
                let Some(identity) = leaf.identity() else { continue };
                let saved = self.request.origin.bytes(key, self.verifies())?;
                if common.add(key, &identity, &saved)? {
                    self.matching.tensors[place].overlaps = true;
                    continue;
                }
                let mut others = group[..at].iter().map(|&place| &self.matching.tensors[place]);
                let is_other = |other: &&Matched| area.zip(other.area).is_some_and(|(a, b)| a.overlaps(&b));
                let other =
                    others.find(is_other).map_or("another".to_string(), |other| name::shown(&other.key).to_string());
                let reason = format!(
                    "it shares a part of its memory with {other}, but the checkpoint has different values for that part"
                );
                left_out.insert(key.clone());
                self.mismatch(key.clone(), reason);
            }
        }
        if left_out.is_empty() {
            return Ok(());
        }
        for (key, first) in std::mem::take(&mut self.same) {
            if left_out.contains(&first) {
                let reason = format!("it shares its memory with {}, which differs", name::shown(&first));
                self.mismatch(key.clone(), reason);
                left_out.insert(key);
            }
        }
        self.matching.tensors.retain(|tensor| !left_out.contains(&tensor.key));
        self.matching.flags.retain(|(key, ..)| !left_out.contains(key));
        self.matching.report.matched.retain(|key| !left_out.contains(key));
        self.matching.report.trainable.retain(|difference| !left_out.contains(&difference.key));
        Ok(())
    }

    /// Compares the variable's `requires_grad` with the saved flag.
    fn trainable(&mut self, leaf: &Arc<dyn TensorLeaf>, key: &str) {
        let Some(saved) = self.request.origin.requires_grad(key) else {
            return;
        };
        if leaf.requires_grad().is_some_and(|live| live != saved) {
            self.matching.report.trainable.push(TrainableDifference { key: key.to_string(), saved });
            if self.request.options.takes_saved_trainable() {
                self.matching.flags.push((key.to_string(), leaf.clone(), saved));
            }
        }
    }

    /// Lets the collection create the children that the checkpoint has and it lacks. A child is restored completely or
    /// not at all.
    fn create(
        &mut self,
        walk: &mut Walk,
        collection: &Arc<dyn Collection>,
        children: &[Child],
        saved: Option<&'a SavedTree>,
        place: &Place<'_>,
    ) -> Result<Vec<Adopt>> {
        let live: HashSet<&str> = children.iter().map(|child| child.name.as_str()).collect();
        let mut adopt = Vec::new();
        for (name, saved) in saved.into_iter().flat_map(|saved| &saved.children) {
            if live.contains(name.as_str()) {
                continue;
            }
            let below = place.child(name, None)?;
            if self.request.options.skips_here(&below.key) {
                self.matching.report.skip(&below.key, SkipReason::Requested);
                continue;
            }
            if self::below(self.request.given, &below.key).next().is_some() {
                continue;
            }
            let may_mismatch = self.all_may_mismatch(saved, &below.key);
            match collection.create_or_discard(name, saved, may_mismatch) {
                Ok(Some(created)) => {
                    let mark = self.mark();
                    let below = place.child(name, created.name_in_file.as_deref())?;
                    walk.visit(self, &created.node, below, Some(saved))?;
                    let new = self.matching.tensors.iter_mut().skip(mark.tensors);
                    new.for_each(|tensor| tensor.is_created = true);
                    match self.mark().not_matched == mark.not_matched {
                        true => adopt.push(created.adopt),
                        false => self.go_back(&mark),
                    }
                }
                Ok(None) => {}
                Err(reason) if may_mismatch => {
                    self.matching.report.skip(&below.key, SkipReason::Mismatch(format!("{reason:#}")));
                }
                Err(reason) => self.mismatch(below.key, format!("{reason:#}")),
            }
        }
        Ok(adopt)
    }

    /// Returns `true` if everything that the checkpoint has at `key` and below may differ.
    fn all_may_mismatch(&self, saved: &SavedTree, key: &str) -> bool {
        let is_leaf = saved.tensor.is_some() || saved.has_value;
        (!is_leaf || self.request.options.may_mismatch(key))
            && (is_leaf || !saved.children.is_empty())
            && saved
                .children
                .iter()
                .all(|(name, child)| self.all_may_mismatch(child, &name::join(key, &name::key([name]))))
    }

    fn mark(&self) -> Mark {
        let (matching, report) = (&self.matching, &self.matching.report);
        Mark {
            tensors: matching.tensors.len(),
            values: matching.values.len(),
            flags: matching.flags.len(),
            matched: report.matched.len(),
            trainable: report.trainable.len(),
            identities: self.identities.len(),
            same: self.same.len(),
            not_matched: report.missing.len() + report.mismatched.len() + report.skipped.len(),
        }
    }

    /// Discards the matches since then; mismatches remain in the report.
    fn go_back(&mut self, mark: &Mark) {
        self.matching.tensors.truncate(mark.tensors);
        self.matching.values.truncate(mark.values);
        self.matching.flags.truncate(mark.flags);
        self.matching.report.matched.truncate(mark.matched);
        self.matching.report.trainable.truncate(mark.trainable);
        self.same.truncate(mark.same);
        for identity in self.identities.drain(mark.identities..) {
            self.seen.remove(&identity);
        }
    }

    fn missing(&mut self, key: String) {
        if let Some(reason) = self.request.origin.unreadable(&key) {
            self.matching.report.unreadable(&key, reason);
        }
        match self.request.options.may_be_missing(&key) {
            true if self.request.torn.contains(&key) => self.matching.left_torn.push(key),
            true => self.matching.report.skip(&key, SkipReason::Missing),
            false => {
                self.matching.report.lacking.extend(self.request.origin.lacks(&key));
                self.matching.report.missing.push(key);
            }
        }
    }

    fn mismatch(&mut self, key: String, reason: String) {
        match self.request.options.may_mismatch(&key) {
            true if self.request.torn.contains(&key) => self.matching.left_torn.push(key),
            true => self.matching.report.skip(&key, SkipReason::Mismatch(reason)),
            false => self.matching.report.mismatch(&key, reason),
        }
    }
}

/// Returns the keys of a set that are those of the object at `place` and of what is below it.
pub(super) fn below<'a>(keys: &'a BTreeSet<String>, place: &str) -> impl Iterator<Item = &'a String> {
    let prefix = name::prefix(place);
    let under = keys.range(prefix.clone()..).take_while(move |key| key.starts_with(&prefix));
    keys.get(place).into_iter().chain(under)
}
