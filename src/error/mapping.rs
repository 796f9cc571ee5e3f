//! What a map did with one key, as reported by a restore.

use std::fmt;

/// How one tensor or value of a [`Mapped`](crate::map::Mapped) source is computed.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub struct Mapping {
    /// Its key.
    pub key: String,
    /// The keys of the source.
    pub from: Vec<String>,
    /// The transform in text form. Empty if the entry is only renamed.
    pub transform: String,
    /// What is lost.
    pub loss: Loss,
}

/// How much of a tensor a [`Transform`](crate::map::Transform) loses, in increasing order.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
#[non_exhaustive]
pub enum Loss {
    /// Nothing is lost: the source can be computed from the result.
    Nothing,
    /// Values are rounded.
    Precision,
    /// Elements are left out or added.
    Elements,
    /// Unknown, because a user-defined function does not report it.
    Unknown,
}

impl fmt::Display for Loss {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Loss::Nothing => "loses nothing",
            Loss::Precision => "rounds values",
            Loss::Elements => "leaves elements out",
            Loss::Unknown => "loses what its function loses",
        })
    }
}
