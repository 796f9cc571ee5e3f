//! An error as a path, a kind and a reason.

use super::{lossy_option, text};
use crate::error::Error;
use crate::location::Location;
use serde::Serialize;
use std::path::Path;

/// An [`Error`] as data: what is wrong with a file or a directory.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[non_exhaustive]
pub struct Problem {
    /// The file or directory. `None` if the error concerns neither.
    #[serde(serialize_with = "lossy_option")]
    pub path: Option<Location>,
    /// The kind of error.
    pub kind: ProblemKind,
    /// The reason, without the path.
    pub reason: String,
}

/// The kind of a [`Problem`].
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize)]
#[serde(rename_all = "snake_case")]
#[non_exhaustive]
pub enum ProblemKind {
    /// The content is not what was written.
    Damaged,
    /// A newer version wrote the file, or it uses a feature that this version does not read.
    Unsupported,
    /// Nothing is there, or no checkpoint.
    NotFound,
    /// A symbolic link, which is not followed.
    Link,
    /// The operating system refused an operation.
    Io,
    /// Any other error.
    Other,
}

impl Problem {
    /// Describes `error`.
    #[must_use]
    pub fn of(error: &Error) -> Problem {
        let about = |path: &Path, kind, reason: String| Problem { path: Some(path.into()), kind, reason };
        match error {
            Error::Damaged { path, reason, .. } => about(path, ProblemKind::Damaged, reason.clone()),
            Error::Unsupported { path, reason, .. } => about(path, ProblemKind::Unsupported, reason.clone()),
            Error::NotFound { path, reason, .. } => about(path, ProblemKind::NotFound, reason.clone()),
            Error::Link { path, hint, .. } => about(path, ProblemKind::Link, format!("it is a symbolic link: {hint}")),
            Error::Io { action, path, source, .. } => {
                about(path, ProblemKind::Io, format!("cannot {action} it: {source}"))
            }
            other => Problem { path: None, kind: ProblemKind::Other, reason: format!("{other:#}") },
        }
    }

    /// Returns the reason, preceded by the path relative to `directory` where that is not empty.
    #[must_use]
    pub fn within(&self, directory: &Path) -> String {
        let inside = self.path.as_deref().map(|path| text(path.strip_prefix(directory).unwrap_or(path)));
        match inside.filter(|path| !path.is_empty()) {
            Some(path) => format!("{path}: {}", self.reason),
            None => self.reason.clone(),
        }
    }
}
