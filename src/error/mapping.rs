//! What a map made of one key: a part of the restore's report.

use std::fmt;

/// What one tensor or value of a [`Mapped`](crate::map::Mapped) source is made of.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub struct Mapping {
    /// Its key.
    pub key: String,
    /// The keys of the source.
    pub from: Vec<String>,
    /// The transform, as the text form has it; empty for what is only renamed.
    pub transform: String,
    /// What is lost.
    pub loss: Loss,
}

/// How much of a tensor a [`Transform`](crate::map::Transform) loses. Ordered by gravity.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
#[non_exhaustive]
pub enum Loss {
    /// Nothing: the source can be made of the result again.
    Nothing,
    /// Values are rounded.
    Precision,
    /// Elements are left out, or added together.
    Elements,
    /// A function of the user does not say.
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
