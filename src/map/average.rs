//! Averages of several checkpoints, as a source.

use super::cast;
use crate::dtype::{Dtype, TensorSpec};
use crate::error::{Error, Result};
use crate::location::Location;
use crate::name;
use crate::source::{
    self, SourceAttributes, TensorSource, VerifiedBy, check_range, check_target, no_such_tensor, room,
};
use serde_json::Value;
use std::collections::BTreeMap;
use std::ops::Range;

/// The number of elements that are added at a time.
const CHUNK: u64 = 64 << 10;

/// The size of the largest tensor that is verified as it is read, in bytes. A larger one is verified first.
const AT_ONCE: usize = 1 << 20;

/// The average of several sources. Tensors of F16, BF16, F32 and F64 are averaged element by element, in 64 bits and
/// rounded once. Tensors of other types (counters, random state) and values are those of the last source.
///
/// It is a [`TensorSource`]: [`Checkpoint::restore_source`](crate::Checkpoint::restore_source) restores it into live
/// objects, and [`convert`](crate::convert::convert) writes it as a new checkpoint. Memory use does not depend on the
/// size of the tensors: a tensor of more than 1 MiB is verified in every source, and then read in pieces. All sources
/// must have the same names, with equal types and shapes; leave out what differs with a [`NameMap`](super::NameMap).
///
/// ```no_run
/// # fn main() -> tch_checkpoint::Result<()> {
/// use tch_checkpoint::{Checkpoint, RestoreOptions, interop, map::Average};
/// # let mut checkpoint = Checkpoint::new();
/// let sources = ["run/ckpt-800", "run/ckpt-900", "run/ckpt-1000"].map(interop::open);
/// let sources = sources.into_iter().collect::<Result<Vec<_>, _>>()?;
/// let average = Average::uniform(sources.iter().map(|source| &**source))?;
/// checkpoint.restore_source(&average, &RestoreOptions::new().skip("optimizer"))?;
/// # Ok(())
/// # }
/// ```
#[derive(Debug)]
pub struct Average<'a> {
    /// The sources, with the weight of each.
    sources: Vec<(&'a dyn TensorSource, f64)>,
    last: &'a dyn TensorSource,
}

impl<'a> Average<'a> {
    /// Returns the arithmetic mean.
    ///
    /// # Errors
    /// [`Error::InvalidArgument`] without a source; [`Error::Object`] for a tensor that a source lacks or has with
    /// another dtype or shape.
    pub fn uniform(sources: impl IntoIterator<Item = &'a dyn TensorSource>) -> Result<Average<'a>> {
        Average::weighted(sources.into_iter().map(|source| (source, 1.0)))
    }

    /// Returns the exponential moving average, the oldest source first:
    /// `average = decay * average + (1 - decay) * next`, starting with the first, as in
    /// `torch.optim.swa_utils.get_ema_avg_fn`.
    ///
    /// # Errors
    /// As for [`uniform`](Average::uniform); [`Error::InvalidArgument`] for a `decay` outside 0 to 1.
    pub fn exponential(sources: impl IntoIterator<Item = &'a dyn TensorSource>, decay: f64) -> Result<Average<'a>> {
        if !(0.0..=1.0).contains(&decay) {
            return Err(Error::InvalidArgument(format!("a decay lies between 0 and 1, {decay} does not")));
        }
        let sources: Vec<_> = sources.into_iter().collect();
        let count = i32::try_from(sources.len()).map_err(|_| Error::InvalidArgument("too many sources".to_string()))?;
        let weight = |at: i32| match at {
            0 => decay.powi(count - 1),
            at => (1.0 - decay) * decay.powi(count - 1 - at),
        };
        let weights: Vec<f64> = (0..count).map(weight).collect();
        Average::weighted(sources.into_iter().zip(weights))
    }

    /// Returns the mean with these weights, which are divided by their sum.
    ///
    /// # Errors
    /// As for [`uniform`](Average::uniform); [`Error::InvalidArgument`] for weights that are negative, not finite, or
    /// all 0.
    pub fn weighted(sources: impl IntoIterator<Item = (&'a dyn TensorSource, f64)>) -> Result<Average<'a>> {
        let mut sources: Vec<(&dyn TensorSource, f64)> = sources.into_iter().collect();
        let sum: f64 = sources.iter().map(|(_, weight)| weight).sum();
        if sources.iter().any(|(_, weight)| *weight < 0.0) || !sum.is_finite() || sum <= 0.0 {
            return Err(Error::InvalidArgument(
                "an average needs sources, and weights from 0 on of which one is above".to_string(),
            ));
        }
        sources.iter_mut().for_each(|(_, weight)| *weight /= sum);
        let Some((last, _)) = sources.last().copied() else {
            return Err(Error::InvalidArgument("an average needs sources".to_string()));
        };
        for (source, _) in &sources {
            check(*source, last)?;
        }
        Ok(Average { sources, last })
    }

    fn spec(&self, key: &str) -> Result<&TensorSpec> {
        self.last.tensors().get(key).ok_or_else(|| no_such_tensor(self.last, key))
    }

    /// Adds the elements that `read` returns for each source.
    fn add_up(
        &self,
        key: &str,
        dtype: Dtype,
        target: &mut [u8],
        mut read: impl FnMut(&dyn TensorSource, &mut [u8]) -> Result<()>,
    ) -> Result<()> {
        let failed = |reason: String| Error::object(key, reason);
        let count = target.len() / dtype.size();
        let mut sum = room(key, (count as u64).checked_mul(8))?;
        let mut buffer = room(key, Some(target.len() as u64))?;
        for (source, weight) in &self.sources {
            read(*source, &mut buffer)?;
            let numbers = cast::cast(&buffer, dtype, Dtype::F64).map_err(failed)?;
            for (sum, number) in sum.as_chunks_mut().0.iter_mut().zip(numbers.as_chunks().0) {
                *sum = (f64::from_le_bytes(*sum) + weight * f64::from_le_bytes(*number)).to_le_bytes();
            }
        }
        target.copy_from_slice(&cast::cast(&sum, Dtype::F64, dtype).map_err(failed)?);
        Ok(())
    }
}

/// Returns `true` if elements of this type are averaged.
fn is_averaged(dtype: Dtype) -> bool {
    matches!(dtype, Dtype::F16 | Dtype::BF16 | Dtype::F32 | Dtype::F64)
}

/// Checks that two sources have the same tensors.
fn check(source: &dyn TensorSource, other: &dyn TensorSource) -> Result<()> {
    let one_way = |a: &dyn TensorSource, b: &dyn TensorSource| {
        let differing = a.tensors().iter().find(|(key, spec)| b.tensors().get(*key) != Some(*spec));
        let Some((key, spec)) = differing else { return Ok(()) };
        let found = b.tensors().get(key).map_or("does not have it".to_string(), |other| format!("has {other}"));
        let reason = format!("{} has {spec}, {} {found}", a.path().display(), b.path().display());
        Err(Error::object(key, name::short_message(reason)))
    };
    one_way(source, other)?;
    one_way(other, source)
}

impl TensorSource for Average<'_> {
    fn format(&self) -> &'static str {
        self.last.format()
    }

    fn path(&self) -> &Location {
        self.last.path()
    }

    fn tensors(&self) -> &BTreeMap<String, TensorSpec> {
        self.last.tensors()
    }

    fn order(&self) -> Vec<&str> {
        self.last.order()
    }

    fn values(&self) -> &BTreeMap<String, Value> {
        self.last.values()
    }

    fn unreadable(&self) -> &BTreeMap<String, String> {
        self.last.unreadable()
    }

    fn first_alias<'k>(&'k self, key: &'k str) -> &'k str {
        // They are tied in the last source, but perhaps not in all.
        let first = self.last.first_alias(key);
        let is_tied = self.sources.iter().all(|(source, _)| source.first_alias(key) == source.first_alias(first));
        if is_tied { first } else { key }
    }

    fn lacks(&self, key: &str) -> Option<(String, String)> {
        self.last.lacks(key)
    }

    fn requires_grad(&self, key: &str) -> Option<bool> {
        self.last.requires_grad(key)
    }

    fn attributes(&self) -> Result<SourceAttributes> {
        let mut attributes = self.last.attributes()?;
        for name in std::mem::take(&mut attributes.metrics).into_keys() {
            let reason = "it was measured with other weights; the metadata `sources` has that of each source";
            attributes.left_out.insert(source::of("metrics", &name), reason.to_string());
        }
        attributes.drop_saved_model("the program has the weights of one source; export the saved model again");
        for (source, _) in &self.sources {
            attributes.unclean |= source.attributes()?.unclean;
        }
        let (sources, weights): (Vec<_>, Vec<_>) = self.sources.iter().copied().unzip();
        attributes.record(&sources, &weights)?;
        Ok(attributes)
    }

    fn read_asset(&self, name: &str, with: &mut dyn FnMut(&[u8]) -> Result<()>) -> Result<()> {
        self.last.read_asset(name, with)
    }

    fn verified_by(&self, key: &str) -> VerifiedBy {
        let all = self.sources.iter().map(|(source, _)| source.verified_by(key));
        all.min().unwrap_or(VerifiedBy::Nothing)
    }

    fn read(&self, key: &str, target: &mut [u8]) -> Result<()> {
        let spec = self.spec(key)?;
        check_target(key, spec, target.len())?;
        if !is_averaged(spec.dtype) {
            return self.last.read(key, target);
        }
        if target.len() <= AT_ONCE {
            return self.add_up(key, spec.dtype, target, |source, buffer| source.read(key, buffer));
        }
        self.verify_tensor(key)?;
        self.read_range(key, 0..(target.len() / spec.dtype.size()) as u64, target)
    }

    fn read_range(&self, key: &str, range: Range<u64>, target: &mut [u8]) -> Result<()> {
        let spec = self.spec(key)?;
        if !is_averaged(spec.dtype) {
            return self.last.read_range(key, range, target);
        }
        let size = spec.dtype.size() as u64;
        check_range(key, spec, &range, target.len())?;
        let mut at = range.start;
        for chunk in target.chunks_mut((CHUNK * size) as usize) {
            let end = at + chunk.len() as u64 / size;
            self.add_up(key, spec.dtype, chunk, |source, buffer| source.read_range(key, at..end, buffer))?;
            at = end;
        }
        Ok(())
    }

    fn ensure_readable(&self, key: &str) -> Result<bool> {
        for (source, _) in &self.sources {
            if !source::check(*source, key)? {
                return Ok(false);
            }
        }
        Ok(true)
    }

    fn verify_tensor(&self, key: &str) -> Result<()> {
        self.sources.iter().try_for_each(|(source, _)| source.verify_tensor(key))
    }

    fn verify(&self) -> Result<()> {
        self.sources.iter().try_for_each(|(source, _)| source.verify())
    }
}
