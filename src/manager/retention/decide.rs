//! Combines the policies with the rules that do not depend on them: pure functions over a list of checkpoints.

use super::{CheckpointInfo, Reason, RetentionPolicy};
use crate::format::Follows;
use crate::rules::{Rule, Rules};
use crate::sync::Arc;
use chrono::{DateTime, Utc};
use std::collections::{BTreeMap, HashSet};
use std::fmt::{self, Display};
use std::panic::{AssertUnwindSafe, catch_unwind};

/// What keeps a checkpoint, if anything.
///
/// The functions that decide also explain.
///
/// ```
/// # fn main() -> Result<(), Box<dyn std::error::Error>> {
/// # let temp = tempfile::tempdir()?;
/// # let dir = temp.path().join("run");
/// use tch_checkpoint::{Checkpoint, CheckpointManager, Counter};
/// let checkpoint = Checkpoint::new().track("step", &Counter::new(0))?;
/// let mut manager = CheckpointManager::builder(checkpoint, &dir).max_to_keep(1).open()?;
/// manager.save_at(1)?;
/// let plan = manager.plan_removal(Some(2), [("loss", 0.5)]);
/// assert!(!plan[0].is_kept());
/// assert_eq!(plan[0].to_string(), "ckpt-1 is removed: no policy keeps it");
/// # Ok(())
/// # }
/// ```
#[derive(Debug, Clone, PartialEq)]
#[non_exhaustive]
pub struct Explanation {
    /// The checkpoint.
    pub checkpoint: CheckpointInfo,
    /// Everything that keeps it. If nothing does, it is removed after the next save, unless a checkpoint that is kept
    /// cannot be read then.
    pub kept_by: Vec<KeptBy>,
    /// The components that are removed from it after the next save although it is kept, because enough newer
    /// checkpoints have them ([`keep_component`](crate::CheckpointManagerBuilder::keep_component)).
    pub loses: Vec<String>,
}

impl Explanation {
    /// Returns `true` if it is kept.
    #[must_use]
    pub fn is_kept(&self) -> bool {
        !self.kept_by.is_empty()
    }

    /// Returns `true` if nothing but policies that keep it permanently does: it is to be marked as permanent.
    pub(crate) fn is_only_for_good(&self) -> bool {
        let for_good = |by: &KeptBy| matches!(by, KeptBy::Policy { reason, .. } if reason.for_good);
        self.is_kept() && self.kept_by.iter().all(for_good)
    }
}

impl Display for Explanation {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let name = &self.checkpoint.name;
        if self.kept_by.is_empty() {
            return write!(f, "{name} is removed: no policy keeps it");
        }
        let reasons: Vec<String> = self.kept_by.iter().map(ToString::to_string).collect();
        write!(f, "{name} stays{}: {}", without(&self.checkpoint.without, &self.loses), reasons.join("; "))
    }
}

/// Writes which components a checkpoint lacks, and which it loses next.
fn without(without: &[String], loses: &[String]) -> String {
    let without = if without.is_empty() { String::new() } else { format!(" without {}", without.join(", ")) };
    let loses = match loses {
        [] => String::new(),
        loses => format!(" and loses {} after the next save", loses.join(", ")),
    };
    without + &loses
}

/// Something that keeps a checkpoint.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub enum KeptBy {
    /// It is the newest one.
    Newest,
    /// It is the newest healthy one.
    NewestHealthy,
    /// It is the newest healthy one that a run can be resumed from exactly.
    NewestComplete,
    /// It is one of the newest unhealthy ones.
    Unhealthy {
        /// How many of them stay.
        keep: usize,
    },
    /// It is permanent, or has a mark that this version cannot read.
    Permanent,
    /// It is pinned.
    Pin {
        /// The name of the pin.
        name: String,
        /// The note of the pin.
        note: String,
    },
    /// A run was restored from it, and too few newer ones exist.
    Restored {
        /// The number of newer ones.
        newer: usize,
        /// The number that is needed.
        needed: usize,
    },
    /// A run abandoned it when it went back, or will with the next save, and too few newer ones are complete.
    Superseded {
        /// The number of newer ones.
        newer: usize,
        /// The number that is needed; `None` if no number is enough.
        needed: Option<usize>,
    },
    /// It was found damaged, and is one of those of the highest numbers.
    Damaged {
        /// How many of them stay; `None` for all.
        keep: Option<usize>,
    },
    /// It was found damaged, and has a pin, a note, or another mark that may keep it.
    Marked,
    /// A policy keeps it.
    Policy {
        /// The policy, by its [label](RetentionPolicy::label).
        policy: String,
        /// Why.
        reason: Reason,
    },
}

impl KeptBy {
    /// Returns `true` if it keeps all components: those of a checkpoint that is there to be resumed from, or pinned.
    fn is_whole(&self) -> bool {
        !matches!(self, KeptBy::Policy { .. } | KeptBy::Permanent | KeptBy::Unhealthy { .. })
    }
}

impl Display for KeptBy {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            KeptBy::Newest => f.write_str("it is the newest, until another one is saved"),
            KeptBy::NewestHealthy => f.write_str("it is the newest healthy one, until another one is saved"),
            KeptBy::NewestComplete => {
                f.write_str("it is the newest healthy one with all components, until another one is saved")
            }
            KeptBy::Unhealthy { keep } => {
                write!(f, "it is among the newest {keep} unhealthy ones, which no policy keeps")
            }
            KeptBy::Permanent => f.write_str("it is marked as permanent"),
            KeptBy::Pin { name, note } if note.is_empty() => {
                write!(f, "it is pinned as {name:?}, until the pin is removed")
            }
            KeptBy::Pin { name, note } => write!(f, "it is pinned as {name:?} ({note}), until the pin is removed"),
            KeptBy::Restored { newer, needed } => {
                let missing = super::newer(needed.saturating_sub(*newer));
                write!(f, "a run was restored from it, until {missing} saved")
            }
            KeptBy::Superseded { newer, needed: Some(needed) } => {
                let missing = super::newer(needed.saturating_sub(*newer));
                write!(f, "a run went back to an older one, until {missing} saved")
            }
            KeptBy::Superseded { needed: None, .. } => {
                f.write_str("a run went back to an older one, and all checkpoints are kept")
            }
            KeptBy::Damaged { keep: Some(keep) } => {
                write!(f, "it was found damaged, and is among the {keep} of the highest numbers")
            }
            KeptBy::Damaged { keep: None } => f.write_str("it was found damaged, and all of these are kept"),
            KeptBy::Marked => f.write_str("it was found damaged, and has a mark that keeps it"),
            KeptBy::Policy { policy, reason } => write!(f, "{policy}: {reason}"),
        }
    }
}

/// The policies of a manager.
#[derive(Debug, Clone)]
pub(crate) struct Retention {
    policies: Vec<Guarded>,
    /// How many newer ones must be complete before a superseded one is removed; `None` if they never are.
    pub superseded_after: Option<usize>,
    /// How many newer ones must exist before the checkpoint that a run was restored from may be removed.
    protect_restored: usize,
    /// How many unhealthy ones are kept.
    keep_unhealthy: usize,
    /// How many of those that were found damaged are kept; `None` for all.
    pub keep_damaged: Option<usize>,
    /// For components that only the newest checkpoints keep: how many checkpoints.
    components: BTreeMap<String, usize>,
    rules: Rules,
}

/// The decision about superfluous checkpoints.
#[derive(Debug, Clone, PartialEq, Default)]
pub(crate) struct Verdict {
    /// Names to remove, oldest first.
    pub remove: Vec<String>,
    /// Names to mark as permanent, oldest first.
    pub preserve: Vec<String>,
    /// The components to remove from kept checkpoints, by the checkpoint's name.
    pub thin: BTreeMap<String, Vec<String>>,
}

impl Verdict {
    /// Returns `true` if anything is removed.
    pub(crate) fn removes(&self) -> bool {
        !self.remove.is_empty() || !self.thin.is_empty()
    }
}

/// A policy, whose panics end nothing: a decision follows a save, which is durable by then.
#[derive(Debug, Clone)]
struct Guarded(Arc<dyn RetentionPolicy>);

impl Guarded {
    /// Returns the result of a function of the policy, or `None` if it panics.
    fn ask<T>(&self, ask: impl FnOnce(&dyn RetentionPolicy) -> T) -> Option<T> {
        catch_unwind(AssertUnwindSafe(|| ask(&*self.0))).ok()
    }

    fn label(&self) -> String {
        self.ask(|policy| policy.label()).unwrap_or_else(|| "a policy that does not say its name".to_string())
    }
}

/// Returns the labels of these policies.
pub(crate) fn labels(policies: &[Arc<dyn RetentionPolicy>]) -> Vec<String> {
    policies.iter().map(|policy| Guarded(policy.clone()).label()).collect()
}

/// Keeps all checkpoints: `max_to_keep` is `None`.
#[derive(Debug)]
struct All;

impl RetentionPolicy for All {
    fn keep(&self, checkpoints: &[CheckpointInfo], _now: DateTime<Utc>) -> Vec<Option<Reason>> {
        checkpoints.iter().map(|_| Some(Reason::new("all checkpoints are kept"))).collect()
    }
}

impl Retention {
    pub(crate) fn new(policies: Vec<Arc<dyn RetentionPolicy>>, superseded_after: Option<usize>) -> Retention {
        Retention {
            policies: policies.into_iter().map(Guarded).collect(),
            superseded_after,
            protect_restored: 1,
            keep_unhealthy: 1,
            keep_damaged: None,
            components: BTreeMap::new(),
            rules: Rules::default(),
        }
    }

    pub(crate) fn rules(mut self, rules: Rules) -> Retention {
        self.rules = rules;
        self
    }

    /// Also keeps all checkpoints that no policy keeps.
    pub(crate) fn keep_all(mut self) -> Retention {
        self.policies.push(Guarded(Arc::new(All)));
        (self.keep_unhealthy, self.keep_damaged) = (usize::MAX, None);
        self
    }

    pub(crate) fn keep_damaged(mut self, keep: Option<usize>) -> Retention {
        self.keep_damaged = keep;
        self
    }

    pub(crate) fn keep_components(mut self, components: BTreeMap<String, usize>) -> Retention {
        self.components = components;
        self
    }

    /// Describes a checkpoint with all components that only the newest ones keep: the next one.
    pub(crate) fn with_components(&self, mut info: CheckpointInfo) -> CheckpointInfo {
        info.components = self.components.keys().filter(|name| !info.without.contains(name)).cloned().collect();
        info
    }

    pub(crate) fn protect_restored(mut self, newer: usize) -> Retention {
        self.protect_restored = newer;
        self
    }

    pub(crate) fn keep_unhealthy(mut self, keep: usize) -> Retention {
        self.keep_unhealthy = keep;
        self
    }

    /// Returns the maximum number of checkpoints that the policies with a bound keep together.
    pub(crate) fn bound(&self) -> usize {
        self.policies
            .iter()
            .filter_map(|policy| policy.ask(|policy| policy.bound())?)
            .fold(0, usize::saturating_add)
            .max(1)
    }

    /// Returns what keeps each of `checkpoints`, which are those of one run, oldest first. `restored` is what this
    /// process restored; what earlier ones did is in the list.
    pub(crate) fn explain(
        &self,
        checkpoints: &[CheckpointInfo],
        restored: Option<&Follows>,
        now: DateTime<Utc>,
    ) -> Vec<Explanation> {
        let explanation =
            |info: &CheckpointInfo| Explanation { checkpoint: info.clone(), kept_by: Vec::new(), loses: Vec::new() };
        let mut explanations: Vec<Explanation> = checkpoints.iter().map(explanation).collect();
        if let Some(newest) = explanations.last_mut() {
            newest.kept_by.push(KeptBy::Newest);
        }
        let counts = |info: &CheckpointInfo| info.is_healthy() || !self.rules.hold(Rule::Healthy);
        let (healthy, unhealthy): (Vec<usize>, Vec<usize>) =
            (0..checkpoints.len()).partition(|&at| counts(&checkpoints[at]));
        if let Some(&newest) = healthy.last().filter(|newest| **newest + 1 < checkpoints.len()) {
            explanations[newest].kept_by.push(KeptBy::NewestHealthy);
        }
        let complete = healthy.iter().copied().rfind(|&at| checkpoints[at].is_complete());
        if let Some(newest) = complete.filter(|newest| healthy.last() != Some(newest)) {
            explanations[newest].kept_by.push(KeptBy::NewestComplete);
        }
        for &at in unhealthy.iter().rev().take(self.keep_unhealthy) {
            explanations[at].kept_by.push(KeptBy::Unhealthy { keep: self.keep_unhealthy });
        }
        for Explanation { checkpoint, kept_by, .. } in &mut explanations {
            kept_by.extend(self.marks_of(checkpoint));
        }
        let all_restored: HashSet<&Follows> = restored_from(checkpoints).chain(restored).collect();
        for (at, info) in checkpoints.iter().enumerate() {
            let newer = healthy.len() - healthy.partition_point(|&healthy| healthy <= at);
            let needed = self.protect_restored;
            let is_it = info.id.as_ref().is_some_and(|id| all_restored.contains(id));
            if is_it && newer < needed && self.rules.hold(Rule::Restored) {
                explanations[at].kept_by.push(KeptBy::Restored { newer, needed });
            }
        }
        let infos: Vec<CheckpointInfo> = healthy.iter().map(|&at| checkpoints[at].clone()).collect();
        let mut is_decided = true;
        for policy in &self.policies {
            let reasons = policy.ask(|policy| policy.keep(&infos, now));
            let is_complete = reasons.as_ref().is_some_and(|reasons| reasons.len() == infos.len());
            if !is_complete {
                is_decided = false;
                log::warn!(
                    "the retention policy `{}` did not decide what it keeps, so nothing is removed",
                    policy.label()
                );
            }
            let reasons = reasons.unwrap_or_default().into_iter().chain(std::iter::repeat(None));
            for (&at, reason) in healthy.iter().zip(reasons) {
                let unsaid = || Reason::new("what it keeps is not known");
                if let Some(reason) = if is_complete { reason } else { Some(unsaid()) } {
                    explanations[at].kept_by.push(KeptBy::Policy { policy: policy.label(), reason });
                }
            }
            // Then nothing is removed, including unhealthy ones.
            for &at in unhealthy.iter().filter(|_| !is_complete) {
                let reason = Reason::new("what it keeps is not known");
                explanations[at].kept_by.push(KeptBy::Policy { policy: policy.label(), reason });
            }
        }
        // All count as kept then, so components would be removed from those that only a decision keeps.
        if is_decided {
            self.thin(&mut explanations);
        }
        explanations
    }

    /// Returns what keeps a checkpoint that left the numbering because a run went back, given `newer` complete ones.
    pub(crate) fn keeps_superseded(&self, checkpoint: &CheckpointInfo, newer: usize) -> Vec<KeptBy> {
        let mut kept_by = self.marks_of(checkpoint);
        kept_by.extend(self.waits_superseded(newer));
        kept_by
    }

    /// Returns what keeps a checkpoint that left the numbering because a run went back, unless `newer` complete ones
    /// are enough. Marks may keep it all the same.
    pub(crate) fn waits_superseded(&self, newer: usize) -> Option<KeptBy> {
        let needed = self.superseded_after.map(|keep| if self.rules.hold(Rule::KeepSuperseded) { keep } else { 0 });
        needed.is_none_or(|needed| newer < needed).then_some(KeptBy::Superseded { newer, needed })
    }

    /// Returns the marks that keep a checkpoint regardless of the policies.
    fn marks_of(&self, checkpoint: &CheckpointInfo) -> Vec<KeptBy> {
        let permanent = checkpoint.permanent.then_some(KeptBy::Permanent);
        let pins = checkpoint.pins.iter().filter(|_| self.rules.hold(Rule::Pins));
        let pins = pins.map(|(name, note)| KeptBy::Pin { name: name.clone(), note: note.clone() });
        permanent.into_iter().chain(pins).collect()
    }

    /// Decides which components the kept checkpoints lose. Of the healthy ones that have the component, the requested
    /// number of newest ones keep it, and so does each one that is kept for resuming or by a pin.
    fn thin(&self, explanations: &mut [Explanation]) {
        for (component, keep) in &self.components {
            let mut newer = 0;
            for Explanation { checkpoint, kept_by, loses } in explanations.iter_mut().rev() {
                if kept_by.is_empty() || !checkpoint.is_healthy() || !checkpoint.components.contains(component) {
                    continue;
                }
                let stays_whole = kept_by.iter().any(KeptBy::is_whole) && self.rules.hold(Rule::Whole);
                if newer >= *keep && !checkpoint.has_unknown_mark && !stays_whole {
                    loses.push(component.clone());
                }
                newer += 1;
            }
        }
    }

    /// Decides which of `checkpoints` are removed, and which are marked as permanent because nothing else keeps them.
    pub(crate) fn decide(
        &self,
        checkpoints: &[CheckpointInfo],
        restored: Option<&Follows>,
        now: DateTime<Utc>,
    ) -> Verdict {
        let mut verdict = Verdict::default();
        for explanation in self.explain(checkpoints, restored, now) {
            let (is_kept, is_only_for_good) = (explanation.is_kept(), explanation.is_only_for_good());
            let name = explanation.checkpoint.name;
            if !explanation.loses.is_empty() {
                verdict.thin.insert(name.clone(), explanation.loses);
            }
            if !is_kept {
                verdict.remove.push(name);
            } else if is_only_for_good {
                verdict.preserve.push(name);
            }
        }
        verdict
    }

    /// Returns what the next checkpoint records for [`Every`](super::Every); `opened` is when the manager was opened.
    pub(crate) fn counted_from(
        &self,
        checkpoints: &[CheckpointInfo],
        opened: DateTime<Utc>,
        now: DateTime<Utc>,
    ) -> Option<DateTime<Utc>> {
        let healthy: Vec<CheckpointInfo> = checkpoints.iter().filter(|info| info.is_healthy()).cloned().collect();
        let now = if healthy.is_empty() { opened.min(now) } else { now };
        if !self.rules.hold(Rule::CountedFrom) {
            return None;
        }
        self.policies.iter().find_map(|policy| policy.ask(|policy| policy.counted_from(&healthy, now))?)
    }
}

/// Returns the checkpoints from which the runs of these checkpoints were restored: for each, the latest ancestor of
/// another run.
fn restored_from(checkpoints: &[CheckpointInfo]) -> impl Iterator<Item = &Follows> {
    checkpoints.iter().filter_map(|info| {
        let own = info.id.as_ref()?;
        info.follows.iter().chain(&info.earlier).find(|earlier| earlier.run != own.run)
    })
}
