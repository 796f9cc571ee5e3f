//! What a restore may leave out.

use crate::map::NameMap;
use crate::name::matches;
use crate::parallel;
use crate::progress::{Observer, Progress};
use std::sync::Arc;

/// How strict a restore is. By default every tracked object must find its value, with exact type and shape, and
/// every byte is verified before anything changes.
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
/// `/`: `encoder/gru.weight`, `optimizer/param_groups`, `optimizer/state/head.weight/exp_avg`. In a pattern `*` stands
/// for any text, `/` included. Exceptions also hold for objects that are tracked later and filled then. What they
/// left as it was is in [`Report::skipped`](crate::Report::skipped), with the reason.
///
/// | Exception | Lets a restore go on when |
/// |---|---|
/// | [`allow_missing`](RestoreOptions::allow_missing) | the checkpoint has no value for an object |
/// | [`allow_mismatch`](RestoreOptions::allow_mismatch) | the checkpoint's value does not fit an object |
/// | [`skip`](RestoreOptions::skip) | always: the restore leaves these objects and values alone |
///
/// None stands for another: `allow_mismatch` does not forgive what is missing.
///
/// After [`Error::PartlyRestored`](crate::Error::PartlyRestored) no exception holds for the objects that the failed
/// restore may have overwritten in part, until a restore has given them a value.
///
/// # What changed between saving and restoring
///
/// * **Another head** (a number of classes, say), the rest goes on with its optimizer: `allow_mismatch("model/head.*")`
///   and `allow_mismatch("optimizer/state/head.*")`. The head keeps its values, and the optimizer begins anew with it.
/// * **Another optimizer** (Adam to SGD): `skip("optimizer")`. All else is restored, and the new optimizer begins as it
///   was built. To take over what fits instead (the moments of Adam in AdamW), `allow_mismatch("optimizer/*")`.
/// * **One more parameter group**: `allow_mismatch("optimizer/param_groups")`. The groups that the checkpoint has get
///   their saved options, the additional ones keep those they have.
/// * **One more field in a saved struct** ([`Value`](crate::Value)): `#[serde(default)]` on the field. Or
///   `allow_mismatch("progress")`, which keeps the whole value as it is.
/// * **One more object**: `allow_missing("ema/*")`.
/// * **A part frozen or unfrozen since**: [`trainable`](RestoreOptions::trainable).
///
/// ```
/// use tch_checkpoint::{Checkpoint, Counter, RestoreOptions, Value};
/// # fn main() -> Result<(), Box<dyn std::error::Error>> {
/// # let folder = tempfile::tempdir()?;
/// let step = Counter::new(100);
/// let path = Checkpoint::new()
///     .track("step", &step)?
///     .track("optimizer", Value::new("Adam".to_string()))?
///     .write(folder.path().join("c"))?;
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

/// Which flag counts where a saved variable required a gradient and the live one does not, or the other way round.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[non_exhaustive]
pub enum Trainable {
    /// That of the checkpoint: the restore sets `requires_grad`.
    Saved,
    /// That of the live variable: it stays.
    Live,
}

/// When digests are looked at.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Verify {
    First,
    WhileReading,
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
            verify: Verify::First,
            threads: parallel::default_threads(),
            observer: Observer::default(),
        }
    }
}

impl RestoreOptions {
    /// Returns the strict default.
    pub fn new() -> RestoreOptions {
        RestoreOptions::default()
    }

    /// Objects whose key matches `pattern` keep their values when the checkpoint has none for them.
    pub fn allow_missing(mut self, pattern: impl Into<String>) -> Self {
        self.missing.push(pattern.into());
        self
    }

    /// Objects whose key matches `pattern` keep their values when the checkpoint's do not fit: tensors of another type
    /// or shape, values of another type, slots that an optimizer cannot use. Of the options of parameter groups those
    /// that fit are restored.
    pub fn allow_mismatch(mut self, pattern: impl Into<String>) -> Self {
        self.mismatched.push(pattern.into());
        self
    }

    /// Leaves objects whose key matches `pattern`, and all below them, out of the restore: they keep their values,
    /// whatever the checkpoint has. `skip("optimizer")` and `skip("optimizer/*")` restore without the optimizer. What
    /// the checkpoint has under such keys does not count as unused, and the assertions of
    /// [`RestoreStatus`](crate::RestoreStatus) do not ask for it.
    pub fn skip(mut self, pattern: impl Into<String>) -> Self {
        self.skipped.push(pattern.into());
        self
    }

    /// Restores what the checkpoint has under the names that `map` gives, transformed as it says. It is checked as a
    /// whole before anything changes; [`Report::mapped`](crate::Report::mapped) lists what it did. The exceptions name
    /// objects, by their own keys. A `requires_grad` that was saved is not compared.
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
    pub fn map(mut self, map: NameMap) -> Self {
        self.map = Some(Arc::new(map));
        self
    }

    /// Decides what happens to variables whose `requires_grad` differs from what was saved. Unless set, a restore
    /// leaves the flags as they are and lists them in [`Report::trainable`](crate::Report::trainable), and
    /// `restore_or_initialize` is refused: a run that was interrupted would go on with other variables frozen.
    pub fn trainable(mut self, which: Trainable) -> Self {
        self.trainable = Some(which);
        self
    }

    /// Restores in one pass instead of two: every byte is still checked, but as it is put into the objects. Faster; a
    /// damaged file is then found when some objects have changed already
    /// ([`Error::PartlyRestored`](crate::Error::PartlyRestored)).
    pub fn verify_while_reading(mut self) -> Self {
        self.verify = Verify::WhileReading;
        self
    }

    /// Restores without looking at the digests: for a checkpoint that was verified just before. Types, shapes and
    /// files' lengths are still checked; changed bytes are not found.
    pub fn without_verification(mut self) -> Self {
        self.verify = Verify::Never;
        self
    }

    /// How many threads read; by default one per processor, at most 8.
    pub fn threads(mut self, threads: usize) -> Self {
        self.threads = threads.max(1);
        self
    }

    /// Calls `report` after every tensor, from the threads that read; what it does there holds them up.
    pub fn on_progress(mut self, report: impl Fn(Progress) + Send + Sync + 'static) -> Self {
        self.observer = Observer::new(report);
        self
    }

    /// A difference in `requires_grad` that [`trainable`](RestoreOptions::trainable) does not decide is an error.
    pub(crate) fn with_trainable_chosen(mut self) -> Self {
        self.trainable_must_be_chosen = self.trainable.is_none();
        self
    }

    /// Returns `true` if digests are looked at before anything changes.
    pub(crate) fn verifies_first(&self) -> bool {
        self.verify == Verify::First
    }

    /// Returns `true` if an object may be left without a value.
    pub(crate) fn has_exceptions(&self) -> bool {
        !self.missing.is_empty() || !self.mismatched.is_empty()
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
