//! Options of a restore.

use crate::map::NameMap;
use crate::name::matches;
use crate::parallel;
use crate::progress::{Observer, Progress};
use std::sync::Arc;

/// Options of a restore. By default, every tracked object must have a value with exact type and shape, and every byte
/// is verified before anything changes.
///
/// ```
/// use tch_checkpoint::RestoreOptions;
/// // Fine-tuning: the decoder is new, everything else must come from the checkpoint.
/// let options = RestoreOptions::new().allow_missing("decoder/*");
/// # let _ = options;
/// ```
///
/// # Exceptions
///
/// An exception names objects by a pattern for their keys. A key is the names from the tracked object down, joined by
/// `/`: `encoder/gru.weight`, `optimizer/param_groups`, `optimizer/state/head.weight/exp_avg`. In a pattern, `*`
/// matches any text, including `/`. Exceptions also apply to objects that are tracked and restored later.
/// [`RestoreReport::skipped`](crate::RestoreReport::skipped) lists the objects that kept their values, with the reason.
///
/// | Exception | Allows a restore if |
/// |---|---|
/// | [`allow_missing`](RestoreOptions::allow_missing) | the checkpoint has no value for an object |
/// | [`allow_mismatch`](RestoreOptions::allow_mismatch) | the checkpoint's value does not fit an object |
/// | [`skip`](RestoreOptions::skip) | (always) these objects and values are excluded |
///
/// Exceptions do not imply each other: `allow_mismatch` does not allow missing values.
///
/// After [`Error::PartlyRestored`](crate::Error::PartlyRestored), no exception applies to the objects that the failed
/// restore may have partly overwritten, until a restore has given them a value.
///
/// # What changed between saving and restoring
///
/// * **Another head** (for another number of classes) while the rest continues with its optimizer:
///   `allow_mismatch("model/head.*")` and `allow_mismatch("optimizer/state/head.*")`. The head keeps its values.
///   Its optimizer state, which is restored completely or not at all, starts over, unless the head was already stepped:
///   then it keeps that, too.
/// * **Another optimizer** (Adam to SGD): `skip("optimizer")`. Everything else is restored, and the new optimizer
///   starts as it was built. To keep what fits (the moments of Adam in AdamW), use `allow_mismatch("optimizer/*")`.
/// * **One more parameter group**: `allow_mismatch("optimizer/param_groups")`. The groups in the checkpoint get their
///   saved options; additional ones keep their options.
/// * **One more field in a saved struct** ([`Value`](crate::Value)): `#[serde(default)]` on the field. Or
///   `allow_mismatch("progress")`, which keeps the present value as it is.
/// * **One more object**: `allow_missing("ema/*")`.
/// * **A part that was frozen or unfrozen**: [`trainable`](RestoreOptions::trainable).
///
/// ```
/// use tch_checkpoint::{Checkpoint, Counter, RestoreOptions, Value};
/// # fn main() -> Result<(), Box<dyn std::error::Error>> {
/// # let temp = tempfile::tempdir()?;
/// let step = Counter::new(100);
/// let path = Checkpoint::new()
///     .track("step", &step)?
///     .track("optimizer", Value::new("Adam".to_string()))?
///     .write(temp.path().join("c"))?;
///
/// let another = Value::new(0.9);
/// let mut checkpoint = Checkpoint::new().track("step", &step)?.track("optimizer", &another)?;
/// assert!(checkpoint.restore(&path).is_err());
/// step.set(0);
/// checkpoint.restore_with(&path, &RestoreOptions::new().skip("optimizer"))?;
/// assert_eq!((step.get(), another.get()), (100, 0.9));
/// # Ok(())
/// # }
/// ```
#[derive(Debug, Clone)]
pub struct RestoreOptions {
    missing: Vec<String>,
    mismatched: Vec<String>,
    skipped: Vec<String>,
    trainable: Option<Trainable>,
    pub(crate) trainable_must_be_chosen: bool,
    pub(crate) map: Option<Arc<NameMap>>,
    pub(crate) verify: Verify,
    pub(crate) threads: usize,
    pub(crate) observer: Observer,
}

/// Which flag applies if the `requires_grad` of a live variable differs from the saved one.
///
/// ```no_run
/// # fn main() -> tch_checkpoint::Result<()> {
/// use tch_checkpoint::{Checkpoint, RestoreOptions, Trainable};
/// # let mut checkpoint = Checkpoint::new();
/// // Variables that were frozen after the save remain frozen.
/// checkpoint.restore_with("checkpoints/ckpt-10", &RestoreOptions::new().trainable(Trainable::Live))?;
/// # Ok(())
/// # }
/// ```
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[non_exhaustive]
pub enum Trainable {
    /// The flag of the checkpoint: the restore sets `requires_grad`.
    Saved,
    /// The flag of the live variable, which is unchanged.
    Live,
}

/// When a restore verifies digests; see [`RestoreOptions::verify`].
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[non_exhaustive]
pub enum Verify {
    /// Before anything changes: every byte is read twice, and a damaged checkpoint changes no object. Of another tool's
    /// file without checksums it is made sure that every byte can be read. The default.
    Before,
    /// While values are read into the objects, in one pass. This is faster, but a damaged file may be found after some
    /// objects were changed ([`Error::PartlyRestored`](crate::Error::PartlyRestored)).
    WhileReading,
    /// Never, for a checkpoint that was just verified. Types, shapes and file lengths are still checked; changed bytes
    /// are not detected.
    Never,
}

impl Default for RestoreOptions {
    fn default() -> Self {
        RestoreOptions {
            missing: Vec::new(),
            mismatched: Vec::new(),
            skipped: Vec::new(),
            trainable: None,
            trainable_must_be_chosen: false,
            map: None,
            verify: Verify::Before,
            threads: parallel::default_threads(),
            observer: Observer::default(),
        }
    }
}

impl RestoreOptions {
    /// Creates options without exceptions.
    #[must_use]
    pub fn new() -> RestoreOptions {
        RestoreOptions::default()
    }

    /// Allows missing values: objects whose key matches `pattern` keep their values if the checkpoint has none.
    #[must_use]
    pub fn allow_missing(mut self, pattern: impl Into<String>) -> Self {
        self.missing.push(pattern.into());
        self
    }

    /// Allows mismatches: objects whose key matches `pattern` keep their values if those of the checkpoint do not fit
    /// (tensors of another type or shape, values of another type, slots that an optimizer cannot use). Options of
    /// parameter groups that fit are restored.
    #[must_use]
    pub fn allow_mismatch(mut self, pattern: impl Into<String>) -> Self {
        self.mismatched.push(pattern.into());
        self
    }

    /// Excludes objects whose key matches `pattern`, and everything below them: they keep their values, regardless of
    /// the checkpoint. `skip("optimizer")` and `skip("optimizer/*")` restore without the optimizer. Values of the
    /// checkpoint under such keys do not count as unused, and the assertions of [`RestoreStatus`](crate::RestoreStatus)
    /// ignore them.
    #[must_use]
    pub fn skip(mut self, pattern: impl Into<String>) -> Self {
        self.skipped.push(pattern.into());
        self
    }

    /// Restores the checkpoint through `map`, which renames and transforms its entries. The map is checked completely
    /// before anything changes; [`RestoreReport::mapped`](crate::RestoreReport::mapped) lists what it did. Exceptions
    /// use the keys of objects.
    ///
    /// ```no_run
    /// # fn main() -> tch_checkpoint::Result<()> {
    /// use tch_checkpoint::{Checkpoint, RestoreOptions, map::NameMap};
    /// # let mut checkpoint = Checkpoint::new();
    /// // A file of PyTorch has `encoder.weight`, the tracked `VarStore` is called `model`.
    /// let map = NameMap::new().weights().add_prefix("model/");
    /// let status = checkpoint.restore_with("encoder.pt", &RestoreOptions::new().map(map))?;
    /// for mapping in &status.report().mapped {
    ///     println!("{} from {:?}: {}", mapping.key, mapping.from, mapping.loss);
    /// }
    /// # Ok(())
    /// # }
    /// ```
    #[must_use]
    pub fn map(mut self, map: NameMap) -> Self {
        self.map = Some(Arc::new(map));
        self
    }

    /// Sets what happens to variables whose `requires_grad` differs from the saved flag. By default, a restore keeps
    /// the live flags and lists the differences in [`RestoreReport::trainable`](crate::RestoreReport::trainable), and
    /// `restore_or_initialize` fails, because the resumed run would have other variables frozen.
    #[must_use]
    pub fn trainable(mut self, which: Trainable) -> Self {
        self.trainable = Some(which);
        self
    }

    /// Sets when digests are verified. Defaults to [`Verify::Before`].
    ///
    /// ```
    /// use tch_checkpoint::{RestoreOptions, Verify};
    /// let options = RestoreOptions::new().verify(Verify::WhileReading);
    /// # let _ = options;
    /// ```
    #[must_use]
    pub fn verify(mut self, verify: Verify) -> Self {
        self.verify = verify;
        self
    }

    /// Sets the number of threads that read. Defaults to one per processor, at most 8.
    #[must_use]
    pub fn threads(mut self, threads: usize) -> Self {
        self.threads = threads.max(1);
        self
    }

    /// Sets a function that is called after every tensor, on the threads that read, which it delays.
    #[must_use]
    pub fn on_progress(mut self, report: impl Fn(Progress) + Send + Sync + 'static) -> Self {
        self.observer = Observer::new(report);
        self
    }

    /// A difference in `requires_grad` that [`trainable`](RestoreOptions::trainable) does not decide is an error.
    pub(crate) fn with_trainable_chosen(mut self) -> Self {
        self.trainable_must_be_chosen = self.trainable.is_none();
        self
    }

    /// Returns `true` if digests are verified before anything changes.
    pub(crate) fn verifies_first(&self) -> bool {
        self.verify == Verify::Before
    }

    /// Returns `true` if an object may be left without a value. Where the flags may differ, that is a frozen variable which
    /// only some checkpoints have: it is restored from those.
    pub(crate) fn has_exceptions(&self) -> bool {
        !self.missing.is_empty() || !self.mismatched.is_empty() || self.trainable.is_some()
    }

    /// Returns `true` if the saved flag is to be set.
    pub(crate) fn takes_saved_trainable(&self) -> bool {
        self.trainable == Some(Trainable::Saved)
    }

    pub(crate) fn may_be_missing(&self, key: &str) -> bool {
        any_matches(&self.missing, key)
    }

    pub(crate) fn may_mismatch(&self, key: &str) -> bool {
        any_matches(&self.mismatched, key)
    }

    /// Returns `true` if the object at `key` itself is left out.
    pub(crate) fn skips_here(&self, key: &str) -> bool {
        any_matches(&self.skipped, key)
    }

    /// Returns `true` if the object at `key` is left out, itself or with an object that it is part of.
    pub(crate) fn skips(&self, key: &str) -> bool {
        if self.skipped.is_empty() {
            return false;
        }
        let above = key.match_indices('/').map(|(end, _)| &key[..end]);
        above.chain([key]).any(|key| self.skips_here(key))
    }
}

fn any_matches(patterns: &[String], key: &str) -> bool {
    patterns.iter().any(|pattern| matches(pattern, key))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_skipped_object_takes_along_what_is_below() {
        let options = RestoreOptions::new().skip("optimizer").skip("model/head.*");
        for key in ["optimizer", "optimizer/state/w/exp_avg", "model/head.w"] {
            assert!(options.skips(key), "{key}");
        }
        for key in ["optimizer2", "model", "model/body.w"] {
            assert!(!options.skips(key), "{key}");
        }
    }
}
