//! The internals that the packages of this workspace need to test and measure the crate. They are not part of the
//! public interface, and semantic versioning does not apply to them.

pub use crate::repository::{
    Aside, Dir, Directory, Disk, Entry, FileId, Finished, Kind, LocalDisk, Lock, LockFile, Memory, OpenDir,
    OpenOptions, PAGE, Posix, ReadFile, Repository, Scan, StagedFile, Stat, Stays, Storage, Transaction, WriteFile,
    before_aside, hold_lease, not_served,
};
pub use crate::rules::Rule;
pub use crate::source::Source;

use crate::checkpoint::Checkpoint;
use crate::error::Result;
use crate::graph::Node;
#[cfg(feature = "pytorch")]
use crate::interop::{self, ReadOptions};
use crate::manager::CheckpointManagerBuilder;
use crate::manager::retention::{CheckpointInfo, Every, Latest, Retention};
use crate::rules::Rules;
use crate::save::{self, SaveOptions};
#[cfg(feature = "pytorch")]
use crate::source::TensorSource;
use chrono::{DateTime, Utc};
#[cfg(feature = "pytorch")]
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

/// Creates a checkpoint that tracks nothing, in `storage`.
pub fn checkpoint_in(storage: Arc<dyn Storage>) -> Checkpoint {
    Checkpoint::in_storage(storage)
}

/// Like [`checkpoint_in`], on `disk`.
pub fn checkpoint_on(disk: Arc<dyn Disk>) -> Checkpoint {
    checkpoint_in(Arc::new(Posix::new(disk)))
}

/// Returns a builder whose manager does not follow `rule`.
#[must_use]
pub fn without_rule(builder: CheckpointManagerBuilder, rule: Rule) -> CheckpointManagerBuilder {
    builder.rules(Rules::without(rule))
}

/// Returns whether a component may have this name.
///
/// # Errors
/// [`Error::InvalidName`](crate::Error::InvalidName) when not.
pub fn check_component(name: &str) -> Result<()> {
    crate::name::check_component(name)
}

/// Returns `true` if a manifest may name this file.
#[must_use]
pub fn is_plain_file_name(name: &str) -> bool {
    crate::name::is_plain_file_name(name)
}

/// Plans a save of these objects; returns the bytes it would write.
///
/// # Errors
/// Those of a save before it writes.
pub fn planned_bytes(objects: &[(String, Node)]) -> Result<u64> {
    Ok(save::plan(objects, &SaveOptions::new())?.bytes())
}

/// Returns how many of these checkpoints, oldest first, are removed if the newest ten and one per hour are kept.
#[must_use]
pub fn removed(checkpoints: &[(String, DateTime<Utc>)]) -> usize {
    let infos = checkpoints.iter().map(|(name, saved_at)| CheckpointInfo::new(name, *saved_at));
    let infos: Vec<CheckpointInfo> = infos.collect();
    let retention = Retention::new(vec![Arc::new(Latest(10)), Arc::new(Every(Duration::from_secs(3600)))], Some(10));
    retention.decide(&infos, None, Utc::now()).remove.len()
}

/// Opens bytes in memory as a file of PyTorch.
///
/// # Errors
/// Those of [`interop::pytorch`].
#[cfg(feature = "pytorch")]
pub fn open_pytorch(bytes: Vec<u8>, options: &ReadOptions) -> Result<Box<dyn TensorSource>> {
    Ok(Box::new(interop::pytorch::open_bytes(bytes, options)?))
}

/// An archive of PyTorch with these records.
///
/// # Errors
/// Those of writing one.
#[cfg(feature = "pytorch")]
pub fn pytorch_archive(records: &[(&str, &[u8])]) -> Result<Vec<u8>> {
    interop::pytorch::archive_of(records)
}

/// Returns the pickle of an archive of PyTorch.
///
/// # Errors
/// Those of reading one.
#[cfg(feature = "pytorch")]
pub fn pickle_of(path: &Path) -> Result<Vec<u8>> {
    interop::pytorch::pickle_of(path)
}

/// Opens bytes in memory as an HDF5 file of Keras.
///
/// # Errors
/// Those of [`interop::keras`].
#[cfg(feature = "keras")]
pub fn open_keras(bytes: &[u8], options: &ReadOptions) -> Result<Box<dyn TensorSource>> {
    Ok(Box::new(interop::keras::Weights::of_bytes(bytes, options)?))
}

/// The `.index` file of a bundle of TensorFlow whose entries are these bytes, whatever they are.
#[cfg(feature = "tensorflow")]
#[must_use]
pub fn tensorflow_table(entries: &[u8]) -> Vec<u8> {
    interop::tensorflow::table_of(entries)
}

/// Reads bytes as each of the small formats that a bundle of TensorFlow is made of.
#[cfg(feature = "tensorflow")]
pub fn parse_tensorflow(bytes: &[u8]) {
    interop::tensorflow::read_any(bytes);
}
