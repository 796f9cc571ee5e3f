//! Opens what is at a path: a checkpoint of this crate, or files of another tool.

use super::options::RestoreOptions;
use super::origin::Origin;
use super::stamp::Stamp;
use crate::error::{Error, Result};
use crate::format::{Follows, INDEX_FILE};
use crate::interop::{self, OWN_FORMAT, Ours};
use crate::location::Location;
use crate::repository::Storage;
use crate::source::{Source, TensorSource};
use std::fs;
use std::io;
use std::sync::Arc;

/// A checkpoint that is open for a restore.
pub(crate) enum Opened {
    Ours(Source),
    /// A checkpoint of this crate under other names.
    Renamed(Ours),
    Foreign(Box<dyn TensorSource>, Stamp),
}

/// The description of a checkpoint, without its tensors and values.
#[derive(Debug, Clone, Default)]
pub(crate) struct About {
    pub path: Location,
    pub step: Option<u64>,
    pub save_counter: Option<u64>,
    /// Its identity, and those of earlier runs; empty for other tools' checkpoints.
    pub lineage: Vec<Follows>,
}

impl Opened {
    /// Opens the checkpoint at `path`, of any format.
    pub(crate) fn open(storage: &Arc<dyn Storage>, path: &Location, options: &RestoreOptions) -> Result<Opened> {
        let error = match Source::open(&**storage, path) {
            Ok(source) => return Ok(Opened::ours(source, options)),
            Err(error) => error,
        };
        let is_none_of_ours = match &error {
            Error::NotFound { .. } => true,
            Error::Io { source, .. } => source.kind() == io::ErrorKind::NotADirectory,
            _ => false,
        };
        // Other tools' files are read by path.
        if !is_none_of_ours || path.as_path().is_none() {
            return Err(error);
        }
        // Before opening, so that later changes are noticed.
        let stamp = Stamp::of(path);
        match interop::open(path) {
            Ok(source) => Ok(Opened::Foreign(source, stamp)),
            Err(Error::NotFound { .. }) => Err(error),
            // A directory that is not a checkpoint has its own error.
            Err(Error::Unsupported { reason, .. }) if path.is_dir() => Err(of_no_format(error, &reason)),
            Err(foreign) => Err(foreign),
        }
    }

    /// Like [`open`](Opened::open), for checkpoints of this crate.
    pub(crate) fn open_ours(storage: &Arc<dyn Storage>, path: &Location, options: &RestoreOptions) -> Result<Opened> {
        Source::open(&**storage, path).map(|source| Opened::ours(source, options))
    }

    pub(super) fn ours(source: Source, options: &RestoreOptions) -> Opened {
        match options.map.is_some() {
            true => Opened::Renamed(Ours::new(source)),
            false => Opened::Ours(source),
        }
    }

    pub(crate) fn about(&self) -> About {
        match self {
            Opened::Ours(source) | Opened::Renamed(Ours { source, .. }) => {
                let manifest = &source.manifest;
                About {
                    path: source.path.clone(),
                    step: manifest.step,
                    save_counter: manifest.save_counter,
                    lineage: manifest.lineage(),
                }
            }
            Opened::Foreign(source, _) => About { path: source.path().clone(), ..About::default() },
        }
    }

    /// Calls `with` with the values, under the names of the options.
    pub(crate) fn with_origin<R>(
        &self,
        options: &RestoreOptions,
        with: impl FnOnce(&Origin<'_>) -> Result<R>,
    ) -> Result<R> {
        match self {
            Opened::Ours(source) => with(&Origin::Ours(source)),
            Opened::Renamed(source) => with_names(source, options, with),
            Opened::Foreign(source, _) => with_names(&**source, options, with),
        }
    }
}

/// Calls `with` with the values of a source, under the names of the options.
pub(crate) fn with_names<R>(
    source: &dyn TensorSource,
    options: &RestoreOptions,
    with: impl FnOnce(&Origin<'_>) -> Result<R>,
) -> Result<R> {
    match &options.map {
        Some(map) => {
            let mapped = map.apply(source)?;
            with(&Origin::mapped(&mapped))
        }
        None => with(&Origin::any(source)),
    }
}

/// Adds to the `error` of a directory without a manifest the `reason` why it is not a checkpoint of another tool, if it
/// has any content that does not belong to a directory of checkpoints.
fn of_no_format(error: Error, reason: &str) -> Error {
    match error {
        Error::NotFound { path, reason: own }
            if fs::read_dir(&path).is_ok_and(|mut entries| entries.next().is_some())
                && !path.join(INDEX_FILE).exists() =>
        {
            let reason = format!("{own}; {reason}; {OWN_FORMAT}");
            Error::not_found(path, reason)
        }
        error => error,
    }
}
