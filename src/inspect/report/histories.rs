//! How the tensors of a run changed.

use super::point::TensorPoint;
use super::trend::{self, Trend};
use crate::dtype::{Dtype, TensorSpec};
use crate::error::{Error, Result};
use crate::inspect::lanes;
use crate::inspect::moments::BLOCK;
use crate::inspect::numbers::{Singles, decode};
use crate::inspect::reading::{Part, Wanted, fold};
use crate::inspect::stats::{StatsOptions, tensor_stats};
use crate::inspect::target::Target;
use crate::name;
use crate::parallel;
use crate::source::TensorSource;
use serde::Serialize;
use std::collections::{BTreeMap, BTreeSet};
use std::sync::{Mutex, PoisonError};

/// The history of a tensor over a run.
#[derive(Debug, Clone, Serialize)]
#[non_exhaustive]
pub struct TensorHistory {
    /// The key.
    pub key: String,
    /// The element type in the last sample that has it.
    pub dtype: Dtype,
    /// The size of each dimension there.
    pub shape: Vec<u64>,
    /// Bytes of its elements there.
    pub bytes: u64,
    /// Whether it was saved as a variable, with a gradient flag. `None` if the checkpoints do
    /// not record that of any tensor.
    pub is_variable: Option<bool>,
    /// Whether its norm stays in its usual range.
    pub trend: Trend,
    /// The largest norm divided by the usual one: the median of the first half. `None` if there are fewer than three
    /// points, or if the usual norm is 0.
    pub growth: Option<f64>,
    /// One per position in [`RunReport::sampled`](super::RunReport::sampled). `None` where the checkpoint does not have
    /// the tensor, or where it could not be read.
    pub points: Vec<Option<TensorPoint>>,
}

/// The number of bins of a histogram.
const BINS: usize = 32;

/// The histories so far.
pub(super) struct Histories<'a> {
    patterns: &'a [String],
    tensors: BTreeMap<String, TensorHistory>,
    samples: usize,
    /// The keys of the tensors that are recorded as variables.
    variables: BTreeSet<String>,
    /// The previous sample, if it could be opened.
    previous: Option<Target>,
}

impl<'a> Histories<'a> {
    pub(super) fn new(patterns: &'a [String]) -> Histories<'a> {
        Histories { patterns, tensors: BTreeMap::new(), samples: 0, variables: BTreeSet::new(), previous: None }
    }

    /// Adds the next sample, `None` if it could not be opened. Returns the first error; a tensor that cannot be read
    /// gets no point.
    pub(super) fn add(&mut self, target: Option<Target>, has_histograms: bool) -> Option<Error> {
        let failed = target.as_ref().and_then(|target| self.add_source(target.source(), has_histograms));
        if let Some(source) = target.as_ref().and_then(Target::own_source) {
            let variables = source.manifest.tensors.iter().filter(|(_, record)| record.requires_grad.is_some());
            self.variables.extend(variables.map(|(key, _)| key.clone()));
        }
        self.samples += 1;
        for history in self.tensors.values_mut() {
            history.points.resize(self.samples, None);
        }
        self.previous = target;
        failed
    }

    fn add_source(&mut self, source: &dyn TensorSource, has_histograms: bool) -> Option<Error> {
        let patterns = self.patterns;
        let fits = |key: &str| patterns.is_empty() || patterns.iter().any(|pattern| name::matches(pattern, key));
        let wanted: Vec<(&String, &TensorSpec)> = source.tensors().iter().filter(|(key, _)| fits(key)).collect();
        let stored: BTreeSet<&str> = wanted.iter().map(|(key, _)| source.first_alias(key)).collect();
        let stored: Vec<&str> = stored.into_iter().collect();
        let bytes = wanted.iter().map(|(_, spec)| spec.bytes().unwrap_or(u64::MAX)).fold(0, u64::saturating_add);
        let (found, failed) = (Mutex::new(BTreeMap::new()), Mutex::new(None));
        let threads = parallel::worth(parallel::default_threads(), bytes);
        let read = parallel::for_each(
            &stored,
            threads,
            || (),
            |key, ()| {
                match self.point(source, key, has_histograms) {
                    Ok(point) => drop(found.lock().unwrap_or_else(PoisonError::into_inner).insert(*key, point)),
                    // One damaged tensor must not hide the others.
                    Err(error) => drop(failed.lock().unwrap_or_else(PoisonError::into_inner).get_or_insert(error)),
                }
                Ok(())
            },
        );
        let found = found.into_inner().unwrap_or_else(PoisonError::into_inner);
        for (key, spec) in wanted {
            let history = self.tensors.entry(key.clone()).or_insert_with(|| TensorHistory {
                key: key.clone(),
                dtype: spec.dtype,
                shape: Vec::new(),
                bytes: 0,
                is_variable: None,
                trend: Trend::Unknown,
                growth: None,
                points: vec![None; self.samples],
            });
            history.dtype = spec.dtype;
            history.shape.clone_from(&spec.shape);
            history.bytes = spec.bytes().unwrap_or(u64::MAX);
            history.points.push(found.get(source.first_alias(key)).cloned());
        }
        failed.into_inner().unwrap_or_else(PoisonError::into_inner).or(read.err())
    }

    /// Describes the tensor `key` of the next sample.
    fn point(&self, source: &dyn TensorSource, key: &str, has_histogram: bool) -> Result<TensorPoint> {
        let before = self.previous.as_ref().map(Target::source);
        let known = self.tensors.get(key).and_then(|history| history.points.last()?.as_ref());
        let digest = source.digest(key);
        let is_same = digest.is_some() && before.is_some_and(|before| before.digest(key) == digest);
        let known =
            known.filter(|_| before.is_some_and(|before| before.tensors().get(key) == source.tensors().get(key)));
        if let Some(known) = known.filter(|known| is_same && has_histogram == known.stats.histogram.is_some()) {
            let has_ratio = known.stats.non_finite() == 0 && known.stats.norm.is_some_and(|norm| norm > 0.0);
            return Ok(TensorPoint { stats: known.stats.clone(), update: has_ratio.then_some(0.0) });
        }
        let options = StatsOptions::new();
        let options = if has_histogram { options.histogram(BINS) } else { options };
        let stats = tensor_stats(source, key, &options)?;
        let update = match known.zip(before) {
            Some((known, before)) => ratio(source, before, key, known.stats.norm, is_same)?,
            None => None,
        };
        Ok(TensorPoint { stats, update })
    }

    pub(super) fn finish(self) -> Vec<TensorHistory> {
        let mut tensors: Vec<TensorHistory> = self.tensors.into_values().collect();
        for history in &mut tensors {
            let is_variable = self.variables.contains(&history.key);
            history.is_variable = (!self.variables.is_empty()).then_some(is_variable);
            (history.trend, history.growth) = trend::of(&history.points, history.is_variable.unwrap_or(true));
        }
        tensors
    }
}

/// Returns the norm of the difference, divided by `norm`, that of the tensor in `before`.
fn ratio(
    source: &dyn TensorSource,
    before: &dyn TensorSource,
    key: &str,
    norm: Option<f64>,
    is_same: bool,
) -> Result<Option<f64>> {
    let Some(norm) = norm.filter(|norm| *norm > 0.0) else { return Ok(None) };
    let sum = if is_same { 0.0 } else { squared_distance(source, before, key)? };
    Ok(Some(sum.sqrt() / norm).filter(|ratio| ratio.is_finite()))
}

/// Returns the sum of the squares of the differences of all elements.
fn squared_distance(source: &dyn TensorSource, before: &dyn TensorSource, key: &str) -> Result<f64> {
    let wanted = [Wanted { key, sources: [source, before] }];
    let sums = fold(&wanted, 1, |_, dtype, [new, old]| Distances::of(dtype, new, old), |_, Distances(sum)| sum)?;
    Ok(sums.into_iter().sum())
}

/// The sum of the squares of differences.
#[derive(Default)]
struct Distances(f64);

impl Distances {
    fn of(dtype: Dtype, new: &[u8], old: &[u8]) -> Distances {
        let block = BLOCK * dtype.size();
        let blocks = new.chunks(block).zip(old.chunks(block));
        let Some((mut a, mut b)) = Singles::of(dtype).zip(Singles::of(dtype)) else {
            let (mut a, mut b) = (Vec::new(), Vec::new());
            return Distances(blocks.fold(0.0, |sum, (new, old)| {
                decode(dtype, new, &mut a);
                decode(dtype, old, &mut b);
                sum + a.iter().zip(&b).map(|(a, b)| (a - b) * (a - b)).sum::<f64>()
            }));
        };
        Distances(blocks.map(|(new, old)| lanes::squared_distance(a.decode(new), b.decode(old))).sum())
    }
}

impl Part for Distances {
    fn append(&mut self, next: Distances) {
        self.0 += next.0;
    }
}
