//! Marks: decisions about a checkpoint after its commit, each a small file in the checkpoint's own directory.

use super::envelope::Envelope;
use super::json;
use super::manifest::check_run;
use super::{Digest, Follows, FormatError, damaged};
use crate::error::{Error, Result};
use crate::name;
use serde::de::IgnoredAny;
use serde::{Deserialize, Serialize};
use std::fmt;

/// The maximum length of a mark, in bytes.
pub const MAX_MARK_BYTES: usize = 64 * 1024;

const ENVELOPE: Envelope =
    Envelope { format: "tch-checkpoint-mark", version: 3, max_bytes: MAX_MARK_BYTES, what: "mark" };

const PREFIX: &str = "mark-";
const EXTENSION: &str = ".json";

/// A mark of a checkpoint.
#[derive(Debug, Clone, PartialEq)]
#[non_exhaustive]
pub struct Mark {
    /// The run and the sequence of the checkpoint's manifest. Marks of other checkpoints are ignored.
    pub of: Follows,
    /// The content.
    pub kind: MarkKind,
}

/// The content of a mark.
#[derive(Debug, Clone, PartialEq)]
#[non_exhaustive]
pub enum MarkKind {
    /// The checkpoint is kept permanently, until its user deletes it.
    Permanent,
    /// A metric that became known after the commit. It replaces one of the same name in the manifest.
    Metric {
        /// Its name.
        name: String,
        /// Its value, which can be NaN or infinite.
        value: f64,
    },
    /// The checkpoint is kept until the pin of this name is removed. Since version 2.
    Pin {
        /// The name, such as that of its user.
        name: String,
        /// A note on the reason.
        note: String,
    },
    /// A note. Since version 2.
    Note {
        /// The name of the note.
        name: String,
        /// The text.
        text: String,
    },
    /// The component was removed, or is about to be: it is no longer part of the checkpoint, even if its files still
    /// exist. Since version 3.
    Thinned {
        /// The name of the component.
        component: String,
    },
}

impl MarkKind {
    /// Checks that a new pin or note has a name.
    pub(crate) fn check(&self) -> Result<()> {
        match self {
            MarkKind::Pin { name, .. } | MarkKind::Note { name, .. } if name.is_empty() => {
                Err(Error::InvalidArgument("the name of a pin or note is empty".to_string()))
            }
            _ => Ok(()),
        }
    }
}

/// A mark's JSON.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Text {
    #[serde(rename = "format")]
    _format: IgnoredAny,
    #[serde(rename = "version")]
    _version: IgnoredAny,
    of: Follows,
    mark: Kind,
    #[serde(rename = "xxh3_128")]
    _digest: IgnoredAny,
}

#[derive(Serialize, Deserialize)]
#[serde(rename_all = "snake_case", deny_unknown_fields)]
enum Kind {
    Permanent,
    Metric { name: String, value: json::Metric },
    Pin { name: String, note: String },
    Note { name: String, text: String },
    Thinned { component: String },
}

/// Returns `true` if a file of this name may be the mark of a removed component: `mark-thinned-….json`.
pub(crate) fn is_thinned_file(file: &str) -> bool {
    file.starts_with("mark-thinned-") && is_mark_file(file)
}

/// Returns `true` if a file of this name in a checkpoint's directory is a mark: `mark-….json`.
#[must_use]
pub fn is_mark_file(file: &str) -> bool {
    file.len() > PREFIX.len() + EXTENSION.len() && file.starts_with(PREFIX) && file.ends_with(EXTENSION)
}

/// The kind and the name: `the pin "paper"`.
impl fmt::Display for MarkKind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            MarkKind::Permanent => f.write_str("that it is permanent"),
            MarkKind::Metric { name, .. } => write!(f, "the metric {name:?}"),
            MarkKind::Pin { name, .. } => write!(f, "the pin {name:?}"),
            MarkKind::Note { name, .. } => write!(f, "the note {name:?}"),
            MarkKind::Thinned { component } => write!(f, "that it lacks the component {component:?}"),
        }
    }
}

impl Mark {
    /// Creates a mark of the checkpoint `of`.
    #[must_use]
    pub fn new(of: Follows, kind: MarkKind) -> Mark {
        Mark { of, kind }
    }

    /// Returns the name of its file. A mark replaces the one of the same name.
    ///
    /// ```
    /// use tch_checkpoint::format::{Follows, Mark, MarkKind};
    /// let of = Follows { run: "0123456789abcdef0123456789abcdef".to_string(), sequence: 7 };
    /// let mark = Mark::new(of, MarkKind::Metric { name: "val loss".to_string(), value: 0.25 });
    /// assert_eq!(mark.file_name(), "mark-metric-val%20loss.json");
    /// assert_eq!(Mark::from_bytes(&mark.to_bytes()?), Ok(mark));
    /// # Ok::<(), tch_checkpoint::Error>(())
    /// ```
    #[must_use]
    pub fn file_name(&self) -> String {
        match &self.kind {
            MarkKind::Permanent => format!("{PREFIX}permanent{EXTENSION}"),
            MarkKind::Metric { name, .. } => named("metric", name),
            MarkKind::Pin { name, .. } => named("pin", name),
            MarkKind::Note { name, .. } => named("note", name),
            MarkKind::Thinned { component } => named("thinned", component),
        }
    }

    /// Returns the lowest version that can represent this mark.
    fn version(&self) -> u64 {
        match self.kind {
            MarkKind::Permanent | MarkKind::Metric { .. } => 1,
            MarkKind::Pin { .. } | MarkKind::Note { .. } => 2,
            MarkKind::Thinned { .. } => 3,
        }
    }

    /// Returns the text of the file.
    ///
    /// # Errors
    ///
    /// [`Error::InvalidArgument`] for a mark that [`from_bytes`](Mark::from_bytes) would refuse.
    pub fn to_bytes(&self) -> Result<Vec<u8>> {
        check_run(&self.of.run).map_err(|e| e.unwritable("the mark"))?;
        let text = self.lines().map_err(|e| Error::InvalidArgument(format!("the mark cannot be written: {e}")))?;
        ENVELOPE.close(text).map_err(|e| e.unwritable("the mark"))
    }

    /// Returns all lines but the last.
    fn lines(&self) -> Result<Vec<u8>, String> {
        let kind = match &self.kind {
            MarkKind::Permanent => Kind::Permanent,
            MarkKind::Metric { name, value } => Kind::Metric { name: name.clone(), value: json::Metric(*value) },
            MarkKind::Pin { name, note } => Kind::Pin { name: name.clone(), note: note.clone() },
            MarkKind::Note { name, text } => Kind::Note { name: name.clone(), text: text.clone() },
            MarkKind::Thinned { component } => Kind::Thinned { component: component.clone() },
        };
        let mut text = ENVELOPE.open(self.version());
        text.extend_from_slice(b"\"of\":");
        json::append(&mut text, &self.of)?;
        text.extend_from_slice(b",\n\"mark\":");
        json::append(&mut text, &kind)?;
        text.extend_from_slice(b",\n");
        Ok(text)
    }

    /// Reads a mark.
    ///
    /// # Errors
    ///
    /// [`FormatError::Unsupported`] for a mark of a newer version, [`FormatError::Damaged`] for every other difference
    /// from what a writer writes. A checkpoint with an unreadable mark is not removed, because the content of the mark
    /// is unknown.
    pub fn from_bytes(bytes: &[u8]) -> Result<Mark, FormatError> {
        let version = ENVELOPE.check(bytes)?;
        let text: Text = serde_json::from_slice(bytes).map_err(|e| damaged(e.to_string()))?;
        check_run(&text.of.run)?;
        let kind = match text.mark {
            Kind::Permanent => MarkKind::Permanent,
            Kind::Metric { name, value } => MarkKind::Metric { name, value: value.0 },
            Kind::Pin { name, note } => MarkKind::Pin { name, note },
            Kind::Note { name, text } => MarkKind::Note { name, text },
            Kind::Thinned { component } => MarkKind::Thinned { component },
        };
        let mark = Mark { of: text.of, kind };
        if mark.version() > version {
            let needed = mark.version();
            return Err(damaged(format!("it has version {version}, and is a mark that only version {needed} has")));
        }
        Ok(mark)
    }
}

/// Returns the file of a mark that has a name of its own.
fn named(kind: &str, name: &str) -> String {
    let stem = name::file_stem(name);
    let stem = if stem.len() <= 200 { stem } else { Digest::of(name.as_bytes()).to_string() };
    format!("{PREFIX}{kind}-{stem}{EXTENSION}")
}
