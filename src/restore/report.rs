//! What a restore matched and what it did not, by name.

use crate::dtype::TensorSpec;
use crate::name;
use std::fmt;

/// How many names of a kind a message lists.
const SHOWN: usize = 10;

/// Every object and every saved value, by whether they found each other.
#[derive(Debug, Clone, Default, PartialEq)]
#[non_exhaustive]
pub struct Report {
    /// Keys that were restored.
    pub matched: Vec<String>,
    /// Tracked objects for which the checkpoint has no value.
    pub missing: Vec<String>,
    /// Saved values that no tracked object took. They wait for objects that are tracked later.
    pub unused: Vec<String>,
    /// Tensors whose type or shape differ, and values that do not fit.
    pub mismatched: Vec<Difference>,
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

impl Report {
    pub(crate) fn mismatch(&mut self, key: &str, reason: String) {
        self.mismatched.push(Difference { key: key.to_string(), reason: name::short_message(reason) });
    }

    pub(crate) fn spec_differs(&mut self, key: &str, live: &TensorSpec, saved: &TensorSpec) {
        self.mismatch(key, format!("the object is {live}, the checkpoint has {saved}"));
    }
}

impl fmt::Display for Report {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut separate = separator();
        for Difference { key, reason } in self.mismatched.iter().take(SHOWN) {
            write!(f, "{}{}: {reason}", separate(), name::shown(key))?;
        }
        more(f, self.mismatched.len(), "different")?;
        for key in self.missing.iter().take(SHOWN) {
            write!(f, "{}{} is not in the checkpoint", separate(), name::shown(key))?;
            if let Some(near) = name::nearest(key, self.unused.iter().take(10_000).map(String::as_str)) {
                write!(f, " (it has {})", name::shown(near))?;
            }
        }
        more(f, self.missing.len(), "missing")?;
        if self.missing.is_empty() && self.mismatched.is_empty() {
            write!(f, "{} restored, {} unused", self.matched.len(), self.unused.len())?;
        }
        Ok(())
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
