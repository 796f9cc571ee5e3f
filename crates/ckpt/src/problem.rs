//! An error as a path, a kind and a reason.

use serde::Serialize;
use std::path::Path;
use tch_checkpoint::Error;

/// What is wrong with a file or a directory.
#[derive(Debug, Clone, Serialize)]
pub struct Problem {
    /// The file or directory; `null` when it is about neither.
    pub path: Option<String>,
    pub kind: Kind,
    pub reason: String,
}

/// The kinds of problems.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Kind {
    /// Not what was written.
    Damaged,
    /// Written by a newer version, or in a form this one does not read.
    Unsupported,
    /// There is nothing, or no checkpoint.
    NotFound,
    /// A symbolic link, which is not followed.
    Link,
    /// The operating system refused.
    Io,
    /// Anything else.
    Other,
}

impl Problem {
    pub fn of(error: &Error) -> Problem {
        let about = |path: &Path, kind, reason: String| Problem { path: Some(text(path)), kind, reason };
        match error {
            Error::Damaged { path, reason, .. } => about(path, Kind::Damaged, reason.clone()),
            Error::Unsupported { path, reason, .. } => about(path, Kind::Unsupported, reason.clone()),
            Error::NotFound { path, reason, .. } => about(path, Kind::NotFound, reason.clone()),
            Error::Link { path, hint, .. } => about(path, Kind::Link, format!("it is a symbolic link: {hint}")),
            Error::Io { action, path, source, .. } => about(path, Kind::Io, format!("cannot {action} it: {source}")),
            other => Problem { path: None, kind: Kind::Other, reason: format!("{other:#}") },
        }
    }

    /// For people: the path as seen from the directory `checkpoint`, and the reason.
    pub fn within(&self, checkpoint: &Path) -> String {
        let path = self.path.as_deref().map(Path::new);
        let inside = path.map(|path| path.strip_prefix(checkpoint).unwrap_or(path)).map(text);
        match inside.filter(|path| !path.is_empty()) {
            Some(path) => format!("{path}: {}", self.reason),
            None => self.reason.clone(),
        }
    }
}

/// A path as text; what is not Unicode in it becomes `U+FFFD`.
pub fn text(path: &Path) -> String {
    path.to_string_lossy().into_owned()
}
