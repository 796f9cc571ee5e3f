//! The report of a restore: what matched and what did not, by name.

use super::mapping::Mapping;
use crate::text::{SHOWN, component, listed, short_message, shown};
use std::collections::BTreeMap;
use std::fmt;

/// The tracked objects and saved values, grouped by whether they matched.
///
/// ```
/// # fn main() -> Result<(), Box<dyn std::error::Error>> {
/// # let temp = tempfile::tempdir()?;
/// # let dir = temp.path().join("run");
/// use tch_checkpoint::{Checkpoint, Counter, Error, RestoreOptions};
/// let path = Checkpoint::new().track("step", Counter::new(7))?.write(&dir)?;
/// let mut checkpoint = Checkpoint::new().track("steps", Counter::new(0))?;
/// let Err(Error::Mismatch { report, .. }) = checkpoint.restore(&path) else { panic!("the names differ") };
/// assert_eq!((&*report.missing, &*report.unused), (&["steps".to_string()][..], &["step".to_string()][..]));
/// assert_eq!(report.nearest["steps"], ["step"]);
///
/// let status = checkpoint.restore_with(&path, &RestoreOptions::new().allow_missing("steps"))?;
/// assert_eq!(status.report().skipped[0].key, "steps");
/// # Ok(())
/// # }
/// ```
#[derive(Debug, Clone, Default, PartialEq)]
#[non_exhaustive]
pub struct RestoreReport {
    /// Keys that were restored.
    pub matched: Vec<String>,
    /// Tracked objects for which the checkpoint has no value, unless an exception allows it.
    pub missing: Vec<String>,
    /// Tracked objects whose value in the checkpoint does not fit, unless an exception allows it.
    pub mismatched: Vec<Mismatch>,
    /// Objects that an exception of [`RestoreOptions`](crate::RestoreOptions) left unchanged.
    pub skipped: Vec<Skipped>,
    /// Saved values that no tracked object used. They are kept for objects that are tracked later.
    pub unused: Vec<String>,
    /// The restored keys that [`RestoreOptions::map`](crate::RestoreOptions::map) renamed or transformed, with their
    /// inputs and what was lost.
    pub mapped: Vec<Mapping>,
    /// Unused saved values that may correspond to a missing name: first the one with the nearest name, then those of
    /// its type and shape. At most 3 each, for the first 20 missing names.
    pub nearest: BTreeMap<String, Vec<String>>,
    /// For each object without a value whose name the source lists as
    /// [unreadable](crate::TensorSource::unreadable), or has unreadable entries below: the reason. An exception of
    /// [`RestoreOptions`](crate::RestoreOptions) does not remove it.
    pub unreadable: BTreeMap<String, String>,
    /// The components of missing objects that the checkpoint lacks completely, by the first part of the keys, with the
    /// reason: removed by [`keep_component`](crate::CheckpointManagerBuilder::keep_component), or left out of the save.
    pub lacking: BTreeMap<String, String>,
    /// Variables that require a gradient now and did not when they were saved, or vice versa.
    pub trainable: Vec<TrainableDifference>,
}

/// A saved value that does not fit its object.
#[derive(Debug, Clone, PartialEq)]
#[non_exhaustive]
pub struct Mismatch {
    /// The object's key.
    pub key: String,
    /// What differs.
    pub reason: String,
}

/// An object that kept its value, together with everything below it.
#[derive(Debug, Clone, PartialEq)]
#[non_exhaustive]
pub struct Skipped {
    /// The object's key.
    pub key: String,
    /// The exception that applied.
    pub why: SkipReason,
}

/// Why an object kept its value.
#[derive(Debug, Clone, PartialEq)]
#[non_exhaustive]
pub enum SkipReason {
    /// The checkpoint has no value for it ([`allow_missing`](crate::RestoreOptions::allow_missing)).
    Missing,
    /// The checkpoint's value does not fit, for this reason
    /// ([`allow_mismatch`](crate::RestoreOptions::allow_mismatch)).
    Mismatch(String),
    /// It was excluded from the restore ([`skip`](crate::RestoreOptions::skip)).
    Requested,
}

/// A variable whose `requires_grad` differs from the saved one.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub struct TrainableDifference {
    /// The variable's key.
    pub key: String,
    /// Whether it required a gradient when it was saved. The live variable is the opposite, unless the restore has
    /// [set it](crate::Trainable::Saved).
    pub saved: bool,
}

impl RestoreReport {
    pub(crate) fn mismatch(&mut self, key: &str, reason: String) {
        self.mismatched.push(Mismatch { key: key.to_string(), reason: short_message(reason) });
    }

    pub(crate) fn unreadable(&mut self, key: &str, reason: String) {
        self.unreadable.insert(key.to_string(), short_message(reason));
    }

    pub(crate) fn skip(&mut self, key: &str, why: SkipReason) {
        self.skipped.push(Skipped { key: key.to_string(), why });
    }

    /// Returns `true` if nothing prevents the restore.
    pub(crate) fn is_clean(&self) -> bool {
        self.missing.is_empty() && self.mismatched.is_empty()
    }
}

impl fmt::Display for RestoreReport {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut separate = separator();
        for Mismatch { key, reason } in self.mismatched.iter().take(SHOWN) {
            write!(f, "{}{}: {reason}", separate(), shown(key))?;
        }
        more(f, self.mismatched.len(), "different")?;
        for reason in self.lacking.values() {
            write!(f, "{}{reason}", separate())?;
        }
        let missing: Vec<&String> = self.missing.iter().filter(|key| !self.is_lacking(key)).collect();
        for key in missing.iter().take(SHOWN) {
            if let Some(reason) = self.unreadable.get(*key) {
                write!(f, "{}{} is in the checkpoint and cannot be read: {reason}", separate(), shown(key))?;
                continue;
            }
            if self.unused.contains(*key) {
                let why = "it is a tensor there and a value here, or the reverse, or was created after the restore";
                write!(f, "{}{} is in the checkpoint, and was not restored: {why}", separate(), shown(key))?;
                continue;
            }
            write!(f, "{}{} is not in the checkpoint", separate(), shown(key))?;
            if let Some(near) = self.nearest.get(*key) {
                write!(f, " (it has {})", listed(near.iter().map(String::as_str)))?;
            }
        }
        more(f, missing.len(), "missing")?;
        if self.is_clean() {
            write!(f, "{}{} restored, {} unused", separate(), self.matched.len(), self.unused.len())?;
            if !self.skipped.is_empty() {
                write!(f, ", {} skipped", self.skipped.len())?;
            }
        }
        for TrainableDifference { key, saved } in self.trainable.iter().take(SHOWN) {
            let (saved, live) = if *saved { ("trainable", "frozen") } else { ("frozen", "trainable") };
            write!(f, "{}{} was saved {saved} and is {live}", separate(), shown(key))?;
        }
        more(f, self.trainable.len(), "whose `requires_grad` differs")?;
        if !self.trainable.is_empty() {
            f.write_str(
                "; choose which counts with `RestoreOptions::trainable`: `Trainable::Saved` sets `requires_grad` as it was \
                 saved, `Trainable::Live` leaves it",
            )?;
        }
        self.remedies(f)
    }
}

impl RestoreReport {
    /// Returns `true` if the checkpoint lacks the component of the object `key`.
    fn is_lacking(&self, key: &str) -> bool {
        self.lacking.contains_key(component(key))
    }

    /// Writes how to restore the rest.
    fn remedies(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let is_unreadable = |key: &&String| self.unreadable.contains_key(*key);
        if let Some(component) = self.lacking.keys().next() {
            let component = shown(component);
            return write!(
                f,
                ". To restore all the rest, leave the component as it is with `RestoreOptions`: skip({component})"
            );
        }
        let missing = self.missing.iter().find(|key| !is_unreadable(key)).map(|key| ("allow_missing", key));
        let unreadable = self.missing.iter().find(is_unreadable).map(|key| ("skip", key));
        let mismatched = self.mismatched.first().map(|difference| ("allow_mismatch", &difference.key));
        let Some((_, key)) = mismatched.or(missing) else {
            let Some((_, key)) = unreadable else { return Ok(()) };
            let key = shown(key);
            return write!(
                f,
                ". To restore all the rest, leave the object as it is with `RestoreOptions`: skip({key})"
            );
        };
        f.write_str(". To restore all the rest, allow it with `RestoreOptions`: ")?;
        for (option, key) in missing.into_iter().chain(mismatched).chain(unreadable) {
            write!(f, "{option}({}), ", shown(key))?;
        }
        let component = shown(component(key));
        write!(f, "or skip({component}) to leave that object as it is (`*` stands for any text)")
    }
}

fn separator() -> impl FnMut() -> &'static str {
    let mut first = true;
    move || if std::mem::take(&mut first) { "" } else { "; " }
}

fn more(f: &mut fmt::Formatter<'_>, count: usize, kind: &str) -> fmt::Result {
    match count.checked_sub(SHOWN) {
        Some(more) if more > 0 => write!(f, "; and {more} more {kind}"),
        _ => Ok(()),
    }
}
