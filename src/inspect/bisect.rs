//! The first checkpoint in which something holds.

use super::condition::{Condition, Facts, Quantity, Statistic};
use super::problem::Problem;
use super::stats::{StatsOptions, TensorStats};
use super::target::{Target, directory_at, no_checkpoint_in};
use super::{lossy, lossy_option};
use crate::catalog::numbered;
use crate::error::{Error, Result};
use crate::location::Location;
use crate::manager::{ListedCheckpoint, Listing};
use serde::Serialize;
use std::collections::{BTreeMap, BTreeSet};

/// The result of [`bisect`].
#[derive(Debug, Clone, PartialEq, Serialize)]
#[non_exhaustive]
pub struct BisectReport {
    /// The directory.
    #[serde(serialize_with = "lossy")]
    pub directory: Location,
    /// The condition.
    pub condition: Condition,
    /// The first checkpoint in which it holds. `None` if it holds in none of those that were examined.
    #[serde(serialize_with = "lossy_option")]
    pub first: Option<Location>,
    /// The last checkpoint before [`first`](Self::first) that was examined and in which it does not hold.
    #[serde(serialize_with = "lossy_option")]
    pub before: Option<Location>,
    /// The checkpoints that were examined, in the order in which that was done; then those of the directory that cannot
    /// be opened, whose place in the order is not known.
    pub examined: Vec<ExaminedCheckpoint>,
    /// What the condition asks for and none of them has, such as `metric("los")`: a misspelt name, perhaps, with which
    /// no comparison is true.
    pub missing: Vec<String>,
}

/// A checkpoint that [`bisect`] examined.
#[derive(Debug, Clone, PartialEq, Serialize)]
#[non_exhaustive]
pub struct ExaminedCheckpoint {
    /// Its directory.
    #[serde(serialize_with = "lossy")]
    pub path: Location,
    /// The training step, if it has one.
    pub step: Option<u64>,
    /// Whether the condition holds. `None` if the checkpoint cannot be read.
    pub holds: Option<bool>,
    /// Why it cannot be read.
    pub problem: Option<Problem>,
}

/// How [`bisect`] searches.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
#[non_exhaustive]
pub enum Search {
    /// Examines one checkpoint after another, the oldest first, until the condition holds.
    #[default]
    Forward,
    /// Binary search, which reads few checkpoints. Finds the first one if the condition holds in all checkpoints after
    /// it; otherwise, one in which it holds and did not in the one before.
    Halving,
}

/// Returns the first checkpoint in the directory `path` in which `condition` holds, in the order of
/// [`list`](super::list). `each` is called with every checkpoint that was examined.
///
/// Only the tensors that the condition needs are read and verified. Damaged checkpoints are skipped, although one of
/// them may be the first; [`BisectReport::examined`] lists them with their errors.
///
/// # Errors
/// [`Error::NotFound`] if there is no checkpoint; [`Error::InvalidArgument`] if `path` is a checkpoint;
/// [`Error::Undecided`] if nothing decides which of two checkpoints is newer; [`Error::Io`].
///
/// ```
/// # fn main() -> Result<(), Box<dyn std::error::Error>> {
/// # let dir = tempfile::tempdir()?;
/// # let dir = dir.path();
/// use tch_checkpoint::inspect::{self, Search};
/// use tch_checkpoint::{Checkpoint, CheckpointManager, Counter};
/// let checkpoint = Checkpoint::new().track("step", &Counter::new(0))?;
/// let mut manager = CheckpointManager::builder(checkpoint, dir).open()?;
/// for (step, loss) in [(1, 0.5), (2, 0.2), (3, 7.5)] {
///     manager.save_with_metrics(step, [("loss", loss)])?;
/// }
/// let report = inspect::bisect(dir, &"metric(\"loss\") > 2".parse()?, Search::Forward, |_| {})?;
/// assert_eq!(report.first, Some(dir.join("ckpt-3").into()));
/// # Ok(())
/// # }
/// ```
pub fn bisect(
    path: impl Into<Location>,
    condition: &Condition,
    search: Search,
    mut each: impl FnMut(&ExaminedCheckpoint),
) -> Result<BisectReport> {
    let directory = path.into();
    let listing = listing(&directory)?;
    let checkpoints = &listing.checkpoints;
    let mut report = BisectReport {
        directory: directory.clone(),
        condition: condition.clone(),
        first: None,
        before: None,
        examined: Vec::new(),
        missing: Vec::new(),
    };
    let mut known = BTreeMap::new();
    let mut examine = |at: usize| -> Option<bool> {
        let examined = examine(&checkpoints[at], condition, &mut known);
        each(&examined);
        report.examined.push(examined);
        report.examined.last().and_then(|examined| examined.holds)
    };
    let (mut first, mut before) = (None, None);
    match search {
        Search::Forward => {
            for at in 0..checkpoints.len() {
                match examine(at) {
                    Some(true) => {
                        first = Some(at);
                        break;
                    }
                    Some(false) => before = Some(at),
                    None => {}
                }
            }
        }
        Search::Halving => {
            // It does not hold before `low`, and it holds in `high`, if that is one.
            let (mut low, mut high) = (0, checkpoints.len());
            while low < high {
                let middle = low + (high - low) / 2;
                // The next readable checkpoint takes the place of one that cannot be read.
                match (middle..high).find_map(|at| Some((at, examine(at)?))) {
                    Some((at, true)) => {
                        first = Some(at);
                        high = middle;
                    }
                    Some((at, false)) => {
                        before = before.max(Some(at));
                        low = at + 1;
                    }
                    None => high = middle,
                }
            }
        }
    }
    // Directories of other programs may be listed, too.
    let manager = |path: &Location| Some(numbered(path.file_name()?.to_str()?)?.0.to_string());
    let managers: BTreeSet<String> = checkpoints.iter().filter_map(|listed| manager(&listed.path)).collect();
    let is_one = |path: &Location| manager(path).is_some_and(|manager| managers.contains(&manager));
    for (path, error) in listing.damaged.iter().filter(|(path, _)| is_one(path)) {
        let problem = Some(Problem::of(error));
        let examined = ExaminedCheckpoint { path: path.clone(), step: None, holds: None, problem };
        each(&examined);
        report.examined.push(examined);
    }
    let path = |at: usize| checkpoints[at].path.clone();
    (report.first, report.before) = (first.map(path), before.map(path));
    report.missing = known.into_iter().filter(|(_, is_known)| !is_known).map(|(asked, _)| asked).collect();
    Ok(report)
}

fn listing(directory: &Location) -> Result<Listing> {
    let listing = directory_at(directory)?;
    if let Some((first, second)) = listing.undecided {
        return Err(Error::Undecided { first, second });
    }
    if listing.checkpoints.is_empty() {
        return Err(Error::not_found(directory, no_checkpoint_in(directory, &listing)));
    }
    Ok(listing)
}

fn examine(listed: &ListedCheckpoint, condition: &Condition, known: &mut BTreeMap<String, bool>) -> ExaminedCheckpoint {
    let mut facts = Listed { listed, target: None, stats: BTreeMap::new(), known };
    let (holds, problem) = match condition.holds(&mut facts) {
        Ok(holds) => (Some(holds), None),
        Err(error) => (None, Some(Problem::of(&error))),
    };
    ExaminedCheckpoint { path: listed.path.clone(), step: listed.entry.step, holds, problem }
}

/// A checkpoint that is read only as far as necessary.
struct Listed<'a> {
    listed: &'a ListedCheckpoint,
    target: Option<Target>,
    /// By pattern.
    stats: BTreeMap<String, Vec<TensorStats>>,
    /// What was asked for, as text, and whether this or another checkpoint has it.
    known: &'a mut BTreeMap<String, bool>,
}

impl Listed<'_> {
    fn stats(&mut self, pattern: &str) -> Result<&[TensorStats]> {
        if !self.stats.contains_key(pattern) {
            let target = match self.target.take() {
                Some(target) => target,
                None => Target::open(&self.listed.path)?,
            };
            let target = self.target.insert(target);
            let found = target.stats(Some(pattern), &StatsOptions::new())?;
            // Tensors that share their elements count once.
            let source = target.source();
            let mut seen = BTreeSet::new();
            let own = found.into_iter().filter(|(key, _)| seen.insert(source.first_alias(key)));
            let own: Vec<TensorStats> = own.map(|(_, stats)| stats).collect();
            self.stats.insert(pattern.to_string(), own);
        }
        Ok(self.stats.get(pattern).map_or(&[], Vec::as_slice))
    }
}

impl Facts for Listed<'_> {
    type Error = Error;

    fn non_finite(&mut self, pattern: Option<&str>) -> Result<bool> {
        let pattern = pattern.unwrap_or("*");
        // A save records this by default, and then nothing is read.
        let is_recorded = self.listed.non_finite.iter().any(|key| crate::name::matches(pattern, key));
        let (is_known, found) = if is_recorded {
            (true, true)
        } else {
            let stats = self.stats(pattern)?;
            (!stats.is_empty(), stats.iter().any(|stats| stats.non_finite() > 0))
        };
        if pattern != "*" {
            *self.known.entry(Condition::non_finite(pattern).to_string()).or_default() |= is_known;
        }
        Ok(found)
    }

    fn unclean(&mut self) -> Result<bool> {
        Ok(self.listed.unclean)
    }

    fn number(&mut self, quantity: &Quantity) -> Result<Option<f64>> {
        let (number, is_known) = match quantity {
            Quantity::Step => {
                let step = self.listed.entry.step.map(|step| step as f64);
                (step, step.is_some())
            }
            Quantity::Metric(name) => {
                let value = self.listed.entry.metrics.get(name).copied();
                (value, value.is_some())
            }
            Quantity::Tensors(statistic, pattern) => {
                let stats = self.stats(pattern)?;
                // They may have no finite value.
                (together(*statistic, stats), !stats.is_empty())
            }
        };
        *self.known.entry(quantity.to_string()).or_default() |= is_known;
        Ok(number)
    }
}

/// Returns a statistic of the values of several tensors, taken together.
fn together(statistic: Statistic, all: &[TensorStats]) -> Option<f64> {
    match statistic {
        // Infinite if the norm of one tensor exceeds 64 bits.
        Statistic::Norm if all.is_empty() => None,
        Statistic::Norm => Some(all.iter().fold(0.0, |norm, stats| stats.norm.unwrap_or(f64::INFINITY).hypot(norm))),
        Statistic::Min => all.iter().filter_map(|stats| stats.min).reduce(f64::min),
        Statistic::Max => all.iter().filter_map(|stats| stats.max).reduce(f64::max),
        Statistic::Mean => {
            let finite = |stats: &TensorStats| (stats.count - stats.non_finite()) as f64;
            let count: f64 = all.iter().map(finite).sum();
            let own = all.iter().filter(|stats| finite(stats) > 0.0);
            // That of one may exceed 64 bits: then it is not known.
            let sum: Option<f64> = own.map(|stats| Some(stats.mean? * (finite(stats) / count))).sum();
            sum.filter(|_| count > 0.0)
        }
        Statistic::Zeros => {
            let (zeros, count) =
                all.iter().fold((0, 0), |(zeros, count), stats| (zeros + stats.zeros, count + stats.count));
            (count > 0).then(|| zeros as f64 / count as f64)
        }
    }
}
