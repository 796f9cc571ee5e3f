//! What a restore matched and what it did not, by name.

use super::mapping::Mapping;
use crate::text::{SHOWN, listed, short_message, shown};
use std::collections::BTreeMap;
use std::fmt;

/// Every object and every saved value, by whether they found each other.
#[derive(Debug, Clone, Default, PartialEq)]
#[non_exhaustive]
pub struct Report {
    /// Keys that were restored.
    pub matched: Vec<String>,
    /// Tracked objects for which the checkpoint has no value, and no exception allows that.
    pub missing: Vec<String>,
    /// Tracked objects whose value in the checkpoint does not fit, and no exception allows that.
    pub mismatched: Vec<Difference>,
    /// What an exception of [`RestoreOptions`](crate::RestoreOptions) left as it was.
    pub skipped: Vec<Skipped>,
    /// Saved values that no tracked object took. They wait for objects that are tracked later.
    pub unused: Vec<String>,
    /// What [`RestoreOptions::map`](crate::RestoreOptions::map) gave another name or transformed, of the restored keys: of
    /// which tensors it was made, how, and whether that loses information.
    pub mapped: Vec<Mapping>,
    /// Unused saved values that may be meant by a missing name: that of the nearest text first, then those of its type and
    /// shape. At most 3 each, for the first 20 missing names.
    pub nearest: BTreeMap<String, Vec<String>>,
    /// Variables that require a gradient here and did not when they were saved, or the other way round.
    pub trainable: Vec<TrainableDifference>,
}

/// A saved value that does not fit its object.
#[derive(Debug, Clone, PartialEq)]
#[non_exhaustive]
pub struct Difference {
    /// The object's key.
    pub key: String,
    /// What differs.
    pub reason: String,
}

/// An object that kept its value, with all below it.
#[derive(Debug, Clone, PartialEq)]
#[non_exhaustive]
pub struct Skipped {
    /// The object's key.
    pub key: String,
    /// Which exception it was.
    pub why: SkipReason,
}

/// Why an object kept its value.
#[derive(Debug, Clone, PartialEq)]
#[non_exhaustive]
pub enum SkipReason {
    /// The checkpoint has no value for it ([`allow_missing`](crate::RestoreOptions::allow_missing)).
    Missing,
    /// The checkpoint's value does not fit, for this reason ([`allow_mismatch`](crate::RestoreOptions::allow_mismatch)).
    Mismatch(String),
    /// It was left out of the restore ([`skip`](crate::RestoreOptions::skip)).
    Requested,
}

/// A variable whose `requires_grad` is not what was saved.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub struct TrainableDifference {
    /// The variable's key.
    pub key: String,
    /// Whether it required a gradient when it was saved. Live it is the opposite, unless the restore has
    /// [set it](crate::Trainable::Saved).
    pub saved: bool,
}

impl Report {
    pub(crate) fn mismatch(&mut self, key: &str, reason: String) {
        self.mismatched.push(Difference { key: key.to_string(), reason: short_message(reason) });
    }

    pub(crate) fn skip(&mut self, key: &str, why: SkipReason) {
        self.skipped.push(Skipped { key: key.to_string(), why });
    }

    /// Whether nothing stands against the restore.
    pub(crate) fn is_clean(&self) -> bool {
        self.missing.is_empty() && self.mismatched.is_empty()
    }
}

impl fmt::Display for Report {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut separate = separator();
        for Difference { key, reason } in self.mismatched.iter().take(SHOWN) {
            write!(f, "{}{}: {reason}", separate(), shown(key))?;
        }
        more(f, self.mismatched.len(), "different")?;
        for key in self.missing.iter().take(SHOWN) {
            write!(f, "{}{} is not in the checkpoint", separate(), shown(key))?;
            if let Some(near) = self.nearest.get(key) {
                write!(f, " (it has {})", listed(near.iter().map(String::as_str)))?;
            }
        }
        more(f, self.missing.len(), "missing")?;
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

impl Report {
    /// How to restore all the rest.
    fn remedies(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let missing = self.missing.first().map(|key| ("allow_missing", key));
        let mismatched = self.mismatched.first().map(|difference| ("allow_mismatch", &difference.key));
        let Some((_, key)) = mismatched.or(missing) else { return Ok(()) };
        f.write_str(". To restore all the rest, allow it with `RestoreOptions`: ")?;
        for (option, key) in missing.into_iter().chain(mismatched) {
            write!(f, "{option}({}), ", shown(key))?;
        }
        let component = key.split('/').next().unwrap_or_default();
        write!(f, "or skip({}) to leave that object as it is (`*` stands for any text)", shown(component))
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
