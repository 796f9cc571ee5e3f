//! What is in checkpoints and directories of checkpoints, as data.
//!
//! The command-line tool `ckpt` is built on this module: each of its commands calls one function, and `--json` prints
//! the returned struct. The fields are described in `docs/ckpt.md` in the repository. Nothing here needs libtorch. Only
//! [`prune`] and [`repair`] change a directory.
//!
//! * [`list`]: everything in a directory of checkpoints, intact or not.
//! * [`Target::open`], [`Target::summary`]: the content of one checkpoint, of any format that [`interop`] reads.
//! * [`Target::stats`], [`tensor_stats`]: range, mean, deviation, norm and distribution of tensors.
//! * [`Target::slice`]: a part of a tensor, element by element.
//! * [`verify`]: whether every byte is what was written.
//! * [`diff`]: which tensors and values differ between two checkpoints.
//! * [`bisect`]: the first checkpoint in which a [`Condition`] holds.
//! * [`disk_usage`]: the disk space that checkpoints use, and what they share.
//! * [`repair_plan`], [`repair`], [`salvage`]: the damage in a directory, its repair, and the intact part of a damaged
//!   checkpoint.
//! * [`latest`], [`best`], [`explain`], [`prune`]: selecting checkpoints, and which of them a policy keeps.
//! * [`report`]: a complete run: its checkpoints, and how its tensors changed.
//!
//! ```
//! # fn main() -> Result<(), Box<dyn std::error::Error>> {
//! # let dir = tempfile::tempdir()?;
//! # let dir = dir.path();
//! use tch_checkpoint::inspect::{self, Target};
//! use tch_checkpoint::{Checkpoint, Counter};
//!
//! let step = Counter::new(7);
//! let mut checkpoint = Checkpoint::new().track("step", &step)?;
//! let a = checkpoint.write(dir.join("a"))?;
//! step.set(8);
//! let b = checkpoint.write(dir.join("b"))?;
//!
//! let (a, b) = (Target::open(a)?, Target::open(b)?);
//! let diff = inspect::diff(&a, &b)?;
//! assert_eq!(diff.differences[0].key, "step");
//! assert_eq!(serde_json::to_value(&diff)?["differences"][0]["b"]["value"], 8);
//! # Ok(())
//! # }
//! ```
//!
//! [`interop`]: crate::interop

mod bisect;
mod condition;
mod diff;
mod elements;
mod files;
mod lanes;
mod listing;
mod moments;
mod numbers;
mod problem;
mod reading;
mod repair;
mod report;
mod retention;
mod salvage;
mod slice;
mod stats;
mod summary;
mod target;
mod usage;
mod verify;

pub use bisect::{BisectReport, ExaminedCheckpoint, Search, bisect};
pub use condition::{Condition, ConditionError};
pub use diff::{Diff, DiffEntry, DiffKind, DiffOptions, DiffSide, MetadataDiff, diff, diff_as, diff_with};
pub use elements::ElementDiff;
pub use listing::{CheckpointEntry, DirectoryListing, OtherEntry, OtherState, list};
pub use problem::{Problem, ProblemKind};
pub use repair::{RepairAction, RepairKind, RepairReport, repair, repair_plan};
pub use report::{
    ReportGap, ReportOptions, ReportedCheckpoint, RunOrigin, RunReport, TensorHistory, TensorPoint, Trend, report,
};
pub use retention::{
    FoundCheckpoint, NoteState, PinState, RetentionEntry, RetentionReport, best, explain, latest, prune,
};
pub use salvage::{Salvaged, salvage};
pub use slice::{Element, Slice, TensorSlice};
pub use stats::{Histogram, MAX_BINS, StatsOptions, TensorStats, tensor_stats};
pub use summary::{ComponentSummary, DtypeSummary, FileSummary, Summary, TensorSummary, Totals};
pub use target::{Overview, Target, runs_below};
pub use usage::{CheckpointUsage, DiskUsage, DuplicateUsage, PathUsage, disk_usage};
pub use verify::{
    SkippedPath, VerifiedCheckpoint, VerifyItem, VerifyOptions, VerifyReport, VerifyState, verify, verify_with,
};

use crate::location::Location;
use serde::Serializer;
use std::path::Path;

/// Returns a path as text. Bytes that are not Unicode become `U+FFFD`.
fn text(path: &Path) -> String {
    path.to_string_lossy().into_owned()
}

/// Serializes a path as [`text`].
fn lossy<S: Serializer>(path: &Path, serializer: S) -> Result<S::Ok, S::Error> {
    serializer.serialize_str(&path.to_string_lossy())
}

/// Serializes paths as [`text`].
fn lossy_all<S: Serializer>(paths: &[Location], serializer: S) -> Result<S::Ok, S::Error> {
    serializer.collect_seq(paths.iter().map(|path| path.to_string_lossy()))
}

/// Serializes a path that may be absent as [`text`].
fn lossy_option<S: Serializer>(path: &Option<Location>, serializer: S) -> Result<S::Ok, S::Error> {
    match path {
        Some(path) => serializer.serialize_some(&path.to_string_lossy()),
        None => serializer.serialize_none(),
    }
}
