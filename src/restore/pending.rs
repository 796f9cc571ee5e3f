//! A completed restore: which objects got a value, and which values are deferred for objects that are tracked later. No
//! file stays open: the checkpoint is opened again when a deferred value is used ([`Whence`]).

use super::matching::{Matching, Request, below, match_objects};
use super::opened::About;
use super::options::RestoreOptions;
use super::origin::Origin;
use super::whence::Whence;
use crate::error::{Error, RestoreReport, Result};
use crate::graph::{Node, Tracked, torn_keys, walk};
use crate::location::Location;
use crate::name;
use crate::source::VerifiedBy;
use std::collections::{BTreeSet, HashMap, HashSet};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

/// A successful restore.
#[derive(Debug)]
pub(crate) struct Pending {
    pub about: About,
    /// How far everything that was restored had been verified.
    pub verified_by: VerifiedBy,
    options: RestoreOptions,
    tracked: Tracked,
    /// The components of the checkpoint.
    components: BTreeSet<String>,
    state: Mutex<State>,
}

/// The outcome of a restore.
pub(crate) struct Restored {
    pub report: RestoreReport,
    /// The components of the checkpoint.
    pub components: BTreeSet<String>,
    pub verified_by: VerifiedBy,
}

impl Restored {
    /// Created before the matching is applied.
    pub(crate) fn of(matching: &Matching, origin: &Origin<'_>) -> Restored {
        let verified_by = matching.tensors.iter().map(|tensor| origin.verified_by(&tensor.key)).min();
        Restored {
            report: matching.report.clone(),
            components: origin.keys().into_iter().map(|key| name::component(key).to_string()).collect(),
            verified_by: verified_by.unwrap_or_else(|| origin.values_verified_by()),
        }
    }
}

#[derive(Debug)]
struct State {
    report: RestoreReport,
    /// The keys whose value was used by an object, even if that is gone.
    given: BTreeSet<String>,
    /// Those of them that the presently tracked object got.
    matched: BTreeSet<String>,
    /// The objects that got them, by name.
    filled: HashMap<String, u64>,
    /// The keys that nothing has used.
    unused: BTreeSet<String>,
    /// Those of them that are kept for objects that are tracked later.
    waiting: BTreeSet<String>,
    /// The identification of the checkpoint, while values are deferred.
    whence: Option<Whence>,
}

impl Pending {
    /// `whence` identifies the checkpoint of deferred values; without it, none are deferred.
    pub(crate) fn new(
        about: About,
        whence: Option<Whence>,
        options: RestoreOptions,
        tracked: Tracked,
        done: Restored,
    ) -> Arc<Pending> {
        let Restored { report, components, verified_by } = done;
        let unused: BTreeSet<String> = report.unused.iter().cloned().collect();
        let matched: BTreeSet<String> = report.matched.iter().cloned().collect();
        let filled = tracked.ids();
        let pending = Pending {
            about,
            verified_by,
            options,
            tracked,
            components,
            state: Mutex::new(State {
                report,
                given: matched.clone(),
                matched,
                filled,
                waiting: if whence.is_some() { unused.clone() } else { BTreeSet::new() },
                unused,
                whence,
            }),
        };
        pending.state().close_if_over();
        Arc::new(pending)
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Returns `true` if no value is deferred.
    pub(crate) fn is_over(&self) -> bool {
        self.state().whence.is_none()
    }

    /// Returns `true` if a value is deferred for an object `name`.
    pub(crate) fn waits_for(&self, name: &str) -> bool {
        below(&self.state().waiting, &name::key([name])).next().is_some()
    }

    /// Discards all deferred values.
    pub(crate) fn expect_partial(&self) {
        let mut state = self.state();
        state.waiting.clear();
        state.close_if_over();
    }

    /// Discards deferred values for the components of a newer restore.
    pub(crate) fn superseded_by(&self, newer: &Pending) {
        let mut state = self.state();
        state.waiting.retain(|key| !newer.components.contains(name::component(key)));
        state.close_if_over();
    }

    /// Restores an object that was tracked after the restore.
    pub(crate) fn fill(&self, name: &str, node: &Node) -> Result<()> {
        let mut state = self.state();
        let Some(whence) = &mut state.whence else { return Ok(()) };
        let opened = whence.open_again(name, &self.options).map_err(|error| self.gone(error, name))?;
        let opened = opened.ok_or_else(|| self.not_found(name, "another checkpoint is there now"))?;
        let report = opened.with_origin(&self.options, |origin| {
            let objects = [(name.to_string(), node.clone())];
            let request = Request {
                saved: &origin.saved(),
                origin,
                options: &self.options,
                torn: &torn_keys(&objects)?,
                given: &state.given,
            };
            let matching = match_objects(&objects, &request)?;
            check(&matching, origin.path(), &self.options)?;
            let report = matching.report.clone();
            super::run(matching, origin, &self.options)?;
            Ok(report)
        })?;
        state.took(name, self.tracked.id(name), report);
        Ok(())
    }

    fn gone(&self, error: Error, name: &str) -> Error {
        match error {
            Error::NotFound { .. } => self.not_found(name, "the checkpoint was removed"),
            other => other,
        }
    }

    fn not_found(&self, name: &str, what: &str) -> Error {
        let reason = format!(
            "{what} since it was restored, and it had the value of {}, which is tracked only now. Track objects before \
             restoring, restore another checkpoint, or call `expect_partial` on the restore's status to leave what is \
             tracked later as it is",
            name::shown(name)
        );
        Error::not_found(&self.about.path, reason)
    }

    /// Returns the report of the restore, without examining the objects.
    pub(crate) fn report_of_the_restore(&self) -> RestoreReport {
        self.state().report.clone()
    }

    /// Returns the report for the present objects.
    pub(crate) fn report(&self) -> Result<RestoreReport> {
        let walked = walk(&self.tracked.list())?;
        let ids = self.tracked.ids();
        let state = self.state();
        let mut report = state.report.clone();
        // Nothing is known about objects that were replaced or are no longer tracked.
        let is_there = |name: &String| state.filled.contains_key(name) && state.filled.get(name) == ids.get(name);
        let there: HashSet<String> =
            state.filled.keys().filter(|name| is_there(name)).map(|name| name::key([name])).collect();
        report.matched.retain(|key| there.contains(name::component(key)));
        report.skipped.retain(|skipped| there.contains(name::component(&skipped.key)));
        report.mapped.retain(|mapping| there.contains(name::component(&mapping.key)));
        report.trainable.retain(|differs| there.contains(name::component(&differs.key)));
        report.unused = state.unused.iter().cloned().collect();
        // Values that were restored for objects that do not exist yet are unused.
        let collections = walked.collection_keys.iter().zip(&walked.collections);
        let kept: Vec<String> = collections
            .flat_map(|(key, collection)| collection.waiting().into_iter().map(move |name| (key, name)))
            .map(|(key, name)| name::join(key, &name::key([name])))
            .collect();
        if !kept.is_empty() {
            let kept: BTreeSet<&String> = kept.iter().flat_map(|place| below(&state.matched, place)).collect();
            report.unused.extend(kept.iter().map(|key| (*key).clone()));
            report.matched.retain(|key| !kept.contains(key));
            report.unused.sort_unstable();
        }
        let mut known: HashSet<&str> = state.matched.iter().map(String::as_str).collect();
        known.retain(|key| there.contains(name::component(key)));
        known.extend(report.skipped.iter().map(|skipped| skipped.key.as_str()));
        let without: Vec<String> = walked
            .leaves
            .iter()
            .filter(|leaf| !leaf.may_be_lacked && !known.contains(leaf.key.as_str()))
            .filter(|leaf| !self.options.skips(&leaf.key))
            .map(|leaf| leaf.key.clone())
            .collect();
        report.missing.extend(without);
        Ok(report)
    }
}

impl State {
    /// Records a deferred restore.
    fn took(&mut self, name: &str, id: Option<u64>, later: RestoreReport) {
        // Of an object that was not there before, nothing is known.
        if self.filled.contains_key(name) {
            let key = name::key([name]);
            let is_of_another = |other: &str| name::component(other) != key;
            self.matched.retain(|matched| is_of_another(matched));
            self.report.matched.retain(|matched| is_of_another(matched));
            self.report.skipped.retain(|skipped| is_of_another(&skipped.key));
            self.report.trainable.retain(|differs| is_of_another(&differs.key));
        }
        self.filled.extend(id.map(|id| (name.to_string(), id)));
        for key in later.matched {
            // A value uses a whole branch.
            let branch: Vec<String> = below(&self.unused, &key).cloned().collect();
            for used in branch {
                self.unused.remove(&used);
                self.waiting.remove(&used);
            }
            self.given.insert(key.clone());
            if self.matched.insert(key.clone()) {
                self.report.matched.push(key);
            }
        }
        self.report.skipped.extend(later.skipped);
        self.report.trainable.extend(later.trainable);
        self.report.mapped.extend(later.mapped);
        self.close_if_over();
    }

    fn close_if_over(&mut self) {
        if self.waiting.is_empty() {
            self.whence = None;
        }
    }
}

/// Returns an error for mismatches, unless the options allow them.
pub(crate) fn check(matching: &Matching, path: &Location, options: &RestoreOptions) -> Result<()> {
    if let Some(key) = matching.left_torn.first() {
        let reason = format!(
            "an earlier restore or step stopped half-way and may have left it partly overwritten, and {} has no value for it; \
             restore a checkpoint that has one",
            path.display()
        );
        return Err(Error::object(key, reason));
    }
    let report = &matching.report;
    if report.is_clean() && (report.trainable.is_empty() || !options.trainable_must_be_chosen) {
        return Ok(());
    }
    Err(Error::Mismatch { path: path.clone(), report: Box::new(report.clone()) })
}
