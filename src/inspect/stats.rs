//! Statistics of the values of tensors, computed from their elements.

use super::moments::Moments;
use super::numbers::decode;
use super::reading::Elements;
use super::target::Target;
use crate::dtype::Dtype;
use crate::error::{Error, Result};
use crate::name;
use crate::parallel;
use crate::source::TensorSource;
use serde::Serialize;
use std::cmp::Reverse;
use std::collections::{BTreeMap, BTreeSet};
use std::ops::RangeInclusive;
use std::sync::{Mutex, PoisonError};

/// The maximum number of bins of a [`Histogram`].
pub const MAX_BINS: usize = 65_536;

/// A tensor of at most so many bytes is read once, even for a histogram.
const KEPT: u64 = 4 << 20;

/// The number of elements that are decoded at a time: few enough for a core's first cache.
const BLOCK: usize = 2048;

/// Statistics of the values of a tensor; see [`Target::stats`].
///
/// Booleans are 0 and 1. The real and the imaginary part of a complex number are two values. Everything is computed in
/// 64 bits: integers of more than 53 bits are rounded.
#[derive(Debug, Clone, PartialEq, Serialize)]
#[non_exhaustive]
pub struct TensorStats {
    /// The number of values: of elements, or twice as many for complex numbers.
    pub count: u64,
    /// The smallest finite value. `None` if there is none.
    pub min: Option<f64>,
    /// The largest finite value. `None` if there is none.
    pub max: Option<f64>,
    /// The arithmetic mean of the finite values. `None` if there is none, or if it exceeds an `f64`.
    pub mean: Option<f64>,
    /// The population standard deviation of the finite values, `sqrt(sum((x - mean)²) / n)`, as NumPy's `std` computes
    /// it by default. `None` if there is none, or if it exceeds an `f64`.
    pub std: Option<f64>,
    /// The L2 norm of the finite values, `sqrt(sum(x²))`. `None` if it exceeds an `f64`.
    pub norm: Option<f64>,
    /// The number of values that are 0 or -0.
    pub zeros: u64,
    /// The number of values that are NaN.
    pub nan: u64,
    /// The number of values that are infinite.
    pub infinite: u64,
    /// The distribution of the finite values, if one was requested.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub histogram: Option<Histogram>,
}

impl TensorStats {
    /// Returns the number of values that are NaN or infinite.
    #[must_use]
    pub fn non_finite(&self) -> u64 {
        self.nan + self.infinite
    }

    /// Returns the share of zeros among all values, from 0 to 1; 0 for a tensor without elements.
    #[must_use]
    pub fn zero_share(&self) -> f64 {
        if self.count == 0 { 0.0 } else { self.zeros as f64 / self.count as f64 }
    }
}

/// The number of values in each of several bins of equal width.
///
/// A value belongs to the bin whose lower edge it reaches; the last bin includes its upper edge, as in
/// `numpy.histogram`. Because of rounding, values at the edge of two bins may be counted in either.
#[derive(Debug, Clone, PartialEq, Serialize)]
#[non_exhaustive]
pub struct Histogram {
    /// The lower edge of the first bin.
    pub min: f64,
    /// The upper edge of the last bin.
    pub max: f64,
    /// The number of values in each bin, in order. Values outside the range are not counted.
    pub counts: Vec<u64>,
}

impl Histogram {
    fn new(bins: usize, min: f64, max: f64) -> Histogram {
        // As `numpy.histogram` does for a single value.
        let (min, max) = if min == max { (min - 0.5, max + 0.5) } else { (min, max) };
        Histogram { min, max, counts: vec![0; bins] }
    }

    fn add(&mut self, numbers: &[f64]) {
        let bins = self.counts.len();
        // Halved, because the difference of two finite numbers can be infinite.
        let (low, width) = (self.min / 2.0, self.max / 2.0 - self.min / 2.0);
        let scale = bins as f64 / width;
        for number in numbers.iter().filter(|number| (self.min..=self.max).contains(*number)) {
            let bin = if scale.is_finite() { (number / 2.0 - low) * scale } else { 0.0 };
            if let Some(count) = self.counts.get_mut((bin as usize).min(bins - 1)) {
                *count += 1;
            }
        }
    }
}

/// What [`Target::stats`] and [`tensor_stats`] compute beyond the moments.
///
/// ```
/// use tch_checkpoint::inspect::StatsOptions;
/// let options = StatsOptions::new().histogram(64).range(-1.0..=1.0);
/// # let _ = options;
/// ```
#[derive(Debug, Clone, Default, PartialEq)]
#[non_exhaustive]
pub struct StatsOptions {
    bins: Option<usize>,
    range: Option<RangeInclusive<f64>>,
}

impl StatsOptions {
    /// Returns options without a histogram.
    #[must_use]
    pub fn new() -> StatsOptions {
        StatsOptions::default()
    }

    /// Requests a histogram of `bins` bins, from 1 to [`MAX_BINS`].
    #[must_use]
    pub fn histogram(mut self, bins: usize) -> Self {
        self.bins = Some(bins);
        self
    }

    /// Sets the range of the histogram. Defaults to the smallest and the largest finite value of each tensor, which
    /// requires reading tensors of more than 4 MiB twice.
    #[must_use]
    pub fn range(mut self, range: RangeInclusive<f64>) -> Self {
        self.range = Some(range);
        self
    }

    fn check(&self) -> Result<()> {
        if self.bins.is_some_and(|bins| !(1..=MAX_BINS).contains(&bins)) {
            return Err(Error::InvalidArgument(format!("a histogram has from 1 to {MAX_BINS} bins")));
        }
        match &self.range {
            Some(range) if !(range.start().is_finite() && range.end().is_finite() && range.start() <= range.end()) => {
                Err(Error::InvalidArgument(format!(
                    "the range of a histogram is finite and ascends, {range:?} does not"
                )))
            }
            _ => Ok(()),
        }
    }
}

/// Returns statistics of the tensor `key` of `source`.
///
/// The elements are read in pieces of 512 KiB and verified as far as the source allows; memory is bounded by about 5
/// MiB and the histogram, regardless of the size of the tensor.
///
/// # Errors
/// [`Error::Object`] for an unknown key; [`Error::InvalidArgument`] for invalid options; [`Error::Damaged`] if the
/// elements differ from what was written; [`Error::Io`].
///
/// ```
/// # fn main() -> Result<(), Box<dyn std::error::Error>> {
/// # let dir = tempfile::tempdir()?;
/// # #[cfg(feature = "huggingface")]
/// # {
/// use tch_checkpoint::inspect::{self, StatsOptions};
/// use tch_checkpoint::interop;
/// # let path = dir.path().join("model.safetensors");
/// # let data: Vec<u8> = [3.0f32, -4.0, 0.0].iter().flat_map(|x| x.to_le_bytes()).collect();
/// # let view = safetensors::tensor::TensorView::new(safetensors::Dtype::F32, vec![3], &data)?;
/// # safetensors::serialize_to_file([("bias", view)], None, &path)?;
/// let source = interop::open(&path)?;
/// let stats = inspect::tensor_stats(&*source, "bias", &StatsOptions::new().histogram(2))?;
/// assert_eq!((stats.min, stats.max, stats.norm, stats.zeros), (Some(-4.0), Some(3.0), Some(5.0), 1));
/// assert_eq!(stats.histogram.unwrap().counts, [1, 2]);
/// # }
/// # Ok(())
/// # }
/// ```
pub fn tensor_stats(source: &dyn TensorSource, key: &str, options: &StatsOptions) -> Result<TensorStats> {
    options.check()?;
    let known = options.bins.zip(options.range.as_ref());
    let mut histogram = known.map(|(bins, range)| Histogram::new(bins, *range.start(), *range.end()));
    let mut moments = Moments::default();
    let mut kept = Vec::new();
    let bytes = source.tensors().get(key).and_then(|spec| spec.bytes()).unwrap_or(u64::MAX);
    let keeps = options.bins.is_some() && histogram.is_none() && bytes <= KEPT;
    let mut dtype = None;
    read(source, key, |of, bytes, numbers| {
        dtype = Some(of);
        if keeps {
            kept.extend_from_slice(bytes);
        }
        moments.add(numbers);
        // Only finite values are left.
        if let Some(histogram) = &mut histogram {
            histogram.add(numbers);
        }
    })?;
    if let (Some(bins), None, Some((min, max))) = (options.bins, &options.range, moments.range) {
        let own = histogram.insert(Histogram::new(bins, min, max));
        match dtype.filter(|_| keeps) {
            Some(dtype) => {
                let mut numbers = Vec::new();
                for block in kept.chunks(BLOCK * dtype.size()) {
                    decode(dtype, block, &mut numbers);
                    own.add(&numbers);
                }
            }
            None => read(source, key, |_, _, numbers| own.add(numbers))?,
        }
    }
    Ok(TensorStats {
        count: moments.count,
        min: moments.range.map(|(min, _)| min),
        max: moments.range.map(|(_, max)| max),
        mean: moments.mean(),
        std: moments.std(),
        norm: moments.norm(),
        zeros: moments.zeros,
        nan: moments.nan,
        infinite: moments.infinite,
        histogram,
    })
}

/// Reads a tensor and passes on its elements in blocks, also as numbers.
fn read(source: &dyn TensorSource, key: &str, mut with: impl FnMut(Dtype, &[u8], &mut Vec<f64>)) -> Result<()> {
    let mut elements = Elements::open(source, key)?;
    let dtype = elements.dtype();
    let mut numbers = Vec::with_capacity(BLOCK);
    while let Some(piece) = elements.next()? {
        for block in piece.chunks(BLOCK * dtype.size()) {
            decode(dtype, block, &mut numbers);
            with(dtype, block, &mut numbers);
        }
    }
    Ok(())
}

impl Target {
    /// Returns statistics of the tensors whose key matches `filter`, by key; of all tensors if there is no filter. `*`
    /// matches any text, including `/`. Tensors that share their elements are read once. Several threads read, one
    /// tensor each.
    ///
    /// # Errors
    /// As for [`tensor_stats`].
    ///
    /// ```
    /// # fn main() -> Result<(), Box<dyn std::error::Error>> {
    /// # let dir = tempfile::tempdir()?;
    /// use tch_checkpoint::inspect::{StatsOptions, Target};
    /// use tch_checkpoint::{Checkpoint, Counter};
    /// let path = Checkpoint::new().track("step", &Counter::new(7))?.write(dir.path().join("seven"))?;
    /// let target = Target::open(path)?;
    /// for (key, stats) in target.stats(Some("encoder/*"), &StatsOptions::new())? {
    ///     println!("{key}: norm {:?}, {:.0} % zeros", stats.norm, 100.0 * stats.zero_share());
    /// }
    /// # Ok(())
    /// # }
    /// ```
    pub fn stats(&self, filter: Option<&str>, options: &StatsOptions) -> Result<BTreeMap<&str, TensorStats>> {
        options.check()?;
        let source = self.source();
        let fits = |key: &str| filter.is_none_or(|pattern| name::matches(pattern, key));
        let keys: Vec<&str> = source.tensors().keys().map(String::as_str).filter(|key| fits(key)).collect();
        let stored: BTreeSet<&str> = keys.iter().map(|key| source.first_alias(key)).collect();
        let bytes = |key: &&str| source.tensors().get(*key).and_then(|spec| spec.bytes()).unwrap_or(u64::MAX);
        let wanted = stored.iter().map(bytes).fold(0, u64::saturating_add);
        // The largest first, so that no thread starts a large one when the others have finished.
        let mut stored: Vec<&str> = stored.into_iter().collect();
        stored.sort_by_key(|key| Reverse(bytes(key)));
        let found = Mutex::new(BTreeMap::new());
        let threads = parallel::worth(parallel::default_threads(), wanted);
        parallel::for_each(
            &stored,
            threads,
            || (),
            |key, ()| {
                let stats = tensor_stats(source, key, options)?;
                found.lock().unwrap_or_else(PoisonError::into_inner).insert(*key, stats);
                Ok(())
            },
        )?;
        let found = found.into_inner().unwrap_or_else(PoisonError::into_inner);
        let of = |key: &str| found.get(source.first_alias(key)).cloned();
        Ok(keys.into_iter().filter_map(|key| Some((key, of(key)?))).collect())
    }
}
