//! Statistics of the values of tensors, computed from their elements.

use super::moments::{BLOCK, Moments};
use super::numbers::decode;
use super::reading::{Part, Wanted, fold};
use super::target::Target;
use crate::dtype::Dtype;
use crate::error::{Error, Result};
use crate::name;
use crate::parallel;
use crate::source::{TensorSource, no_such_tensor};
use serde::Serialize;
use std::collections::{BTreeMap, BTreeSet};
use std::ops::RangeInclusive;

/// The maximum number of bins of a [`Histogram`].
pub const MAX_BINS: usize = 65_536;

/// A tensor of at most so many bytes is read once, even for a histogram.
const KEPT: u64 = 4 << 20;

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

    /// Counts little-endian elements of type `dtype`.
    fn of(mut self, dtype: Dtype, bytes: &[u8]) -> Histogram {
        let mut numbers = Vec::with_capacity(BLOCK);
        for block in bytes.chunks(BLOCK * dtype.size()) {
            decode(dtype, block, &mut numbers);
            self.add(&numbers);
        }
        self
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
    let mut found = compute(&[Wanted { key, sources: [source] }], 1, options)?;
    found.pop().ok_or_else(|| no_such_tensor(source, key))
}

/// Returns statistics of all tensors that are wanted, in their order.
fn compute(wanted: &[Wanted<'_, 1>], threads: usize, options: &StatsOptions) -> Result<Vec<TensorStats>> {
    options.check()?;
    let given = options.bins.zip(options.range.as_ref());
    let given = given.map(|(bins, range)| Histogram::new(bins, *range.start(), *range.end()));
    // The range is known only when all was read.
    let bins = options.bins.filter(|_| given.is_none());
    let is_kept = |tensor: &Wanted<'_, 1>| bins.is_some() && tensor.bytes() <= KEPT;
    let mut found = fold(
        wanted,
        threads,
        |number, dtype, [bytes]| Computed {
            moments: Moments::of(dtype, bytes),
            histogram: Counted(given.clone().map(|histogram| histogram.of(dtype, bytes))),
            kept: wanted.get(number).filter(|tensor| is_kept(tensor)).map(|_| (dtype, bytes.to_vec())),
        },
        |_, computed: Computed| computed.stats(bins),
    )?;
    let Some(bins) = bins else { return Ok(found) };
    let (mut places, mut empty, mut again) = (Vec::new(), Vec::new(), Vec::new());
    for (stats, Wanted { key, sources }) in found.iter_mut().zip(wanted) {
        if stats.histogram.is_none()
            && let (Some(min), Some(max)) = (stats.min, stats.max)
        {
            places.push(&mut stats.histogram);
            empty.push(Histogram::new(bins, min, max));
            again.push(Wanted { key, sources: *sources });
        }
    }
    let count =
        |number: usize, dtype, [bytes]: [&[u8]; 1]| Counted(empty.get(number).cloned().map(|own| own.of(dtype, bytes)));
    let counted = fold(&again, threads, count, |_, Counted(histogram)| histogram)?;
    places.into_iter().zip(counted).for_each(|(place, histogram)| *place = histogram);
    Ok(found)
}

/// What is computed from elements.
#[derive(Default)]
struct Computed {
    moments: Moments,
    /// If the range was given.
    histogram: Counted,
    /// The elements of a small tensor, if the range is that of the tensor.
    kept: Option<(Dtype, Vec<u8>)>,
}

impl Part for Computed {
    fn append(&mut self, next: Computed) {
        self.moments.append(next.moments);
        self.histogram.append(next.histogram);
        match (&mut self.kept, next.kept) {
            (Some((_, kept)), Some((_, next))) => kept.extend_from_slice(&next),
            (None, next) => self.kept = next,
            (Some(_), None) => {}
        }
    }
}

impl Computed {
    /// Returns the statistics, with a histogram of `bins` bins if the elements were kept.
    fn stats(self, bins: Option<usize>) -> TensorStats {
        let Computed { moments, histogram: Counted(histogram), kept } = self;
        let own = bins.zip(moments.range).zip(kept);
        let own = own.map(|((bins, (min, max)), (dtype, bytes))| Histogram::new(bins, min, max).of(dtype, &bytes));
        TensorStats {
            count: moments.count,
            min: moments.range.map(|(min, _)| min),
            max: moments.range.map(|(_, max)| max),
            mean: moments.mean(),
            std: moments.std(),
            norm: moments.norm(),
            zeros: moments.zeros,
            nan: moments.nan,
            infinite: moments.infinite,
            histogram: histogram.or(own),
        }
    }
}

/// A histogram of the pieces so far.
#[derive(Default)]
struct Counted(Option<Histogram>);

impl Part for Counted {
    fn append(&mut self, next: Counted) {
        match (&mut self.0, next.0) {
            (Some(histogram), Some(next)) => {
                histogram.counts.iter_mut().zip(next.counts).for_each(|(count, next)| *count += next);
            }
            (own, next) => *own = own.take().or(next),
        }
    }
}

impl Target {
    /// Returns statistics of the tensors whose key matches `filter`, by key; of all tensors if there is no filter. `*`
    /// matches any text, including `/`. Tensors that share their elements are read once. Several threads read,
    /// also of one large tensor; the result does not depend on their number.
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
        let wanted = stored.iter().map(|key| Wanted { key, sources: [source] });
        let wanted: Vec<Wanted<'_, 1>> = wanted.collect();
        let bytes = wanted.iter().map(Wanted::bytes).fold(0, u64::saturating_add);
        let threads = parallel::worth(parallel::default_threads(), bytes);
        let found = compute(&wanted, threads, options)?;
        let found: BTreeMap<&str, TensorStats> = stored.into_iter().zip(found).collect();
        let of = |key: &str| found.get(source.first_alias(key)).cloned();
        Ok(keys.into_iter().filter_map(|key| Some((key, of(key)?))).collect())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::inspect::elements::Comparison;
    use crate::inspect::reading::tests::Bytes;

    /// Numbers of very different sizes, among them some that are not finite: in the wrong order, the sums are others.
    fn numbers(count: u32, seed: u32) -> Vec<u8> {
        let number = |i: u32| match i.wrapping_mul(2_654_435_761).wrapping_add(seed) {
            random if random % 100_003 == 0 => f32::NAN,
            random => (random as i32) as f32 * 2f32.powi((random % 40) as i32 - 50),
        };
        (0..count).flat_map(|i| number(i).to_le_bytes()).collect()
    }

    #[test]
    fn the_number_of_threads_changes_no_bit() {
        let [a, b] = [1, 2].map(|seed| Bytes::tensor(Dtype::F32, numbers(900_001, seed)));
        let wanted = [Wanted { key: "0", sources: [&a as &dyn TensorSource] }];
        let both = [Wanted { key: "0", sources: [&a as &dyn TensorSource, &b] }];
        for options in [
            StatsOptions::new(),
            StatsOptions::new().histogram(33),
            StatsOptions::new().histogram(33).range(-1.0..=0.5),
        ] {
            let of = |threads| compute(&wanted, threads, &options).unwrap();
            let one = of(1);
            assert!(one[0].nan > 0 && one[0].histogram.is_some() == options.bins.is_some(), "{one:?}");
            assert!([2, 7].into_iter().all(|threads| of(threads) == one), "{options:?}");
        }
        let diff =
            |threads| fold(&both, threads, |_, dtype, [a, b]| Comparison::of(dtype, a, b), |_, all| all.finish());
        let one = diff(1).unwrap();
        assert!(one[0].differing > 500_000 && one[0].cosine.is_some(), "{one:?}");
        assert!([2, 7].into_iter().all(|threads| diff(threads).unwrap() == one));
    }
}
