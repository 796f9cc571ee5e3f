//! The public error: few kinds, each actionable, always with the path or the name.

mod display;
mod mapping;
mod report;

pub use mapping::{Loss, Mapping};
pub use report::{Mismatch, RestoreReport, SkipReason, Skipped, TrainableDifference};

use crate::location::Location;
use std::any::Any;
use std::io;

/// The result of this crate's functions.
pub type Result<T, E = Error> = std::result::Result<T, E>;

/// The error that implementations of this crate's traits ([`TensorLeaf`](crate::TensorLeaf),
/// [`ValueLeaf`](crate::ValueLeaf), [`Collection`](crate::Collection)) return: any error, or a sentence
/// (`"it is on no device".into()`). The caller adds the name of the object.
pub type BoxError = Box<dyn std::error::Error + Send + Sync>;

/// The error type of this crate. Its kinds are distinguished by what a caller can do.
///
/// [`Display`](std::fmt::Display) writes what happened, where, and what to do, without the
/// [`source`](std::error::Error::source), so that a program that prints error chains, for example with `anyhow`, prints
/// each error once. `{:#}` writes the error with its sources, for logs and programs that print errors themselves.
///
/// Methods answer the questions on which a program's reaction depends: [`is_damaged`](Error::is_damaged),
/// [`is_not_found`](Error::is_not_found), [`is_locked`](Error::is_locked), [`is_no_space`](Error::is_no_space),
/// [`is_transient`](Error::is_transient).
///
/// ```
/// use tch_checkpoint::Error;
///
/// /// The exit code by which a job script decides whether to start the run again.
/// fn exit_code(error: &Error) -> u8 {
///     match error {
///         _ if error.is_transient() || error.is_locked() => 75, // EX_TEMPFAIL: again, later
///         _ if error.is_damaged() || error.is_not_found() => 66, // EX_NOINPUT: from another checkpoint
///         _ => 70, // EX_SOFTWARE: someone has to look
///     }
/// }
/// # fn main() -> Result<(), Box<dyn std::error::Error>> {
/// # let directory = tempfile::tempdir()?;
/// let error = tch_checkpoint::CheckpointReader::open(directory.path()).unwrap_err();
/// assert_eq!(exit_code(&error), 66);
/// eprintln!("train: {error:#}");
/// # Ok(())
/// # }
/// ```
#[derive(Debug)]
#[non_exhaustive]
pub enum Error {
    /// The operating system refused an operation on `path`.
    #[non_exhaustive]
    Io {
        /// The operation, as a verb such as "create", "write" or "sync".
        action: &'static str,
        /// The file or directory.
        path: Location,
        /// The error of the system.
        source: io::Error,
    },
    /// The file system has no space (or the quota is reached). Nothing was changed.
    #[non_exhaustive]
    NoSpace {
        /// The file or directory that was to be written.
        path: Location,
        /// Bytes the checkpoint needs; 0 if that is not known.
        needed: u64,
        /// Bytes the file system reported as free, if known.
        free: Option<u64>,
    },
    /// There is no checkpoint at `path`.
    #[non_exhaustive]
    NotFound {
        /// Where a checkpoint was looked for.
        path: Location,
        /// What is there instead, and what would be a checkpoint.
        reason: String,
    },
    /// The checkpoint at `path` was removed, moved aside or replaced by another one before it could be changed.
    #[non_exhaustive]
    Removed {
        /// Its former path.
        path: Location,
    },
    /// The values to be saved include NaN or infinite ones, and the manager is set to reject them. Nothing was changed.
    #[non_exhaustive]
    Unhealthy {
        /// The checkpoint that was to be saved.
        path: Location,
        /// The keys of the tensors.
        tensors: Vec<String>,
    },
    /// The checkpoint at `path` is pinned, so it is not removed.
    #[non_exhaustive]
    Pinned {
        /// The checkpoint.
        path: Location,
        /// The names of its pins.
        pins: Vec<String>,
    },
    /// A file of a checkpoint differs from what was written: bytes were changed, are missing or were added, or the file
    /// is hostile.
    #[non_exhaustive]
    Damaged {
        /// The damaged file.
        path: Location,
        /// What differs.
        reason: String,
    },
    /// A symbolic link is in the place of a file or directory of this crate. It was not followed, moved or removed.
    #[non_exhaustive]
    Link {
        /// The link.
        path: Location,
        /// What to do.
        hint: String,
    },
    /// The path no longer refers to what was opened: a directory was renamed, removed or replaced, or this process was
    /// forked. Nothing was saved or removed.
    #[non_exhaustive]
    Moved {
        /// The directory or file.
        path: Location,
        /// What happened, and what to do.
        reason: String,
    },
    /// The file was written by a newer version of this crate, or in a form that this version does not read.
    #[non_exhaustive]
    Unsupported {
        /// The file.
        path: Location,
        /// What would be needed to read it.
        reason: String,
    },
    /// A name in the object graph cannot be used.
    #[non_exhaustive]
    InvalidName {
        /// The name, with its path in the graph.
        name: String,
        /// Why, and what to do.
        reason: String,
    },
    /// A tracked object cannot be saved, or a saved value cannot be restored into it.
    #[non_exhaustive]
    Object {
        /// The object's path in the graph.
        name: String,
        /// The reason and the remedy, or the error that the object itself returned.
        reason: BoxError,
    },
    /// Checkpoint and objects do not match; no object was changed. The report has every difference.
    #[non_exhaustive]
    Mismatch {
        /// The checkpoint.
        path: Location,
        /// All differences.
        report: Box<RestoreReport>,
    },
    /// An assertion on a [`RestoreStatus`](crate::RestoreStatus) does not hold.
    Assertion(String),
    /// Restoring failed after some objects had been changed, because the files changed or became unreadable between
    /// verification and reading. The objects hold a mixture of states: restore another checkpoint before continuing.
    #[non_exhaustive]
    PartlyRestored {
        /// The checkpoint.
        path: Location,
        /// What happened.
        source: Box<Error>,
    },
    /// A checkpoint was saved and is durable, and a function given to
    /// [`on_saved`](crate::CheckpointManagerBuilder::on_saved) failed or panicked.
    #[non_exhaustive]
    Callback {
        /// The checkpoint.
        path: Location,
        /// The error that the function returned, or the message of its panic.
        source: BoxError,
    },
    /// Another manager writes into this directory.
    #[non_exhaustive]
    Locked {
        /// The directory.
        path: Location,
        /// The content of the lock file about its holder.
        holder: String,
    },
    /// A checkpoint of that name already exists. It was left unchanged.
    #[non_exhaustive]
    AlreadyExists {
        /// The checkpoint.
        path: Location,
        /// What to do.
        hint: String,
    },
    /// A directory has checkpoints of different runs, and nothing decides which one to continue from.
    #[non_exhaustive]
    Undecided {
        /// The newest checkpoint of one run.
        first: Location,
        /// The newest checkpoint of another.
        second: Location,
    },
    /// A [`NameMap`](crate::map::NameMap) cannot be parsed, or does not fit the source to which it is applied.
    #[non_exhaustive]
    Map {
        /// The file of the map, if it was read from one.
        path: Option<Location>,
        /// The line, from 1; for a map made by calls, that of its text.
        line: usize,
        /// The column in characters, from 1.
        column: usize,
        /// What is wrong, and what would be right.
        reason: String,
    },
    /// An option or argument is invalid.
    InvalidArgument(String),
    /// There is not enough memory for a tensor, a file or a copy of the state. Nothing was changed.
    #[non_exhaustive]
    OutOfMemory {
        /// What the memory is needed for: a tensor's key, a file, the state.
        what: String,
        /// The number of bytes, if known.
        bytes: Option<u64>,
    },
    /// A thread of a save or restore could not be started. Nothing was changed.
    #[non_exhaustive]
    Thread {
        /// What it would have done.
        task: &'static str,
        /// The error of the system.
        source: io::Error,
    },
    /// A thread of a save or restore panicked: in a tensor, a collection or a callback of the program, or because of a
    /// bug in this crate. Nothing was saved, unless it panicked after the save.
    #[non_exhaustive]
    Panicked {
        /// What it was doing.
        task: &'static str,
        /// The message of the panic.
        message: String,
    },
    /// libtorch refused an operation. The source is a `tch::TchError`, which converts into this error.
    #[cfg(feature = "torch")]
    #[non_exhaustive]
    Torch {
        /// What failed: "the backward pass".
        what: &'static str,
        /// The error that libtorch or tch returned.
        source: BoxError,
    },
}

/// Returns the first of some names, and how many more there are.
pub(crate) fn listed(names: &[String]) -> String {
    match names {
        [] => "no".to_string(),
        [name] => name.clone(),
        [name, others @ ..] => format!("{name} and {} more", others.len()),
    }
}

/// For implementations of this crate's traits. The variants themselves may get more fields.
impl Error {
    /// Returns an [`Error::Io`], or [`Error::NoSpace`] where that is what the system said. `action` is a verb:
    /// "create", "read", "sync".
    #[must_use]
    pub fn io(action: &'static str, path: impl Into<Location>, source: io::Error) -> Error {
        let path = path.into();
        match source.kind() {
            io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded => Error::NoSpace { path, needed: 0, free: None },
            _ => Error::Io { action, path, source },
        }
    }

    /// Returns an [`Error::Damaged`].
    #[must_use]
    pub fn damaged(path: impl Into<Location>, reason: impl Into<String>) -> Error {
        Error::Damaged { path: path.into(), reason: reason.into() }
    }

    /// Returns an [`Error::NotFound`].
    #[must_use]
    pub fn not_found(path: impl Into<Location>, reason: impl Into<String>) -> Error {
        Error::NotFound { path: path.into(), reason: reason.into() }
    }

    /// Returns an [`Error::Unsupported`].
    #[must_use]
    pub fn unsupported(path: impl Into<Location>, reason: impl Into<String>) -> Error {
        Error::Unsupported { path: path.into(), reason: reason.into() }
    }

    /// Returns an [`Error::Moved`].
    #[must_use]
    pub fn moved(path: impl Into<Location>, reason: impl Into<String>) -> Error {
        Error::Moved { path: path.into(), reason: reason.into() }
    }

    /// Returns an [`Error::Removed`].
    #[must_use]
    pub fn removed(path: impl Into<Location>) -> Error {
        Error::Removed { path: path.into() }
    }

    /// Returns an [`Error::Locked`].
    #[must_use]
    pub fn locked(path: impl Into<Location>, holder: impl Into<String>) -> Error {
        Error::Locked { path: path.into(), holder: holder.into() }
    }

    /// Returns an [`Error::AlreadyExists`].
    #[must_use]
    pub fn already_exists(path: impl Into<Location>) -> Error {
        let hint = "restore it and continue from there if it is a checkpoint of this run; otherwise move it away, or save \
                    into another directory or under another number";
        Error::AlreadyExists { path: path.into(), hint: hint.to_string() }
    }

    /// Returns an [`Error::Object`].
    #[must_use]
    pub fn object(name: impl Into<String>, reason: impl Into<BoxError>) -> Error {
        Error::Object { name: name.into(), reason: reason.into() }
    }
}

impl Error {
    pub(crate) fn link(path: impl Into<Location>, hint: impl Into<String>) -> Error {
        Error::Link { path: path.into(), hint: hint.into() }
    }

    pub(crate) fn name(name: impl Into<String>, reason: impl Into<String>) -> Error {
        Error::InvalidName { name: name.into(), reason: reason.into() }
    }

    /// Returns an [`Error::OutOfMemory`]: `what` needs `bytes` of memory.
    pub(crate) fn out_of_memory(what: impl Into<String>, bytes: impl Into<Option<u64>>) -> Error {
        Error::OutOfMemory { what: what.into(), bytes: bytes.into() }
    }

    /// Returns the error for a thread that panicked while it was doing `task`.
    pub(crate) fn panicked(task: &'static str, panic: &(dyn Any + Send)) -> Error {
        let text = panic.downcast_ref::<&str>().map(|text| text.to_string());
        let text = text.or_else(|| panic.downcast_ref::<String>().cloned());
        Error::Panicked { task, message: text.unwrap_or_else(|| "no message".to_string()) }
    }

    /// Returns `true` if a file of a checkpoint permanently differs from what was written: try an older checkpoint, and
    /// examine this one. Errors of the operating system do not count, because what cannot be read now may be readable
    /// later. The exception is data that the device failed to read twice although the directory and the manifest are
    /// readable: that is [`Error::Damaged`].
    #[must_use]
    pub fn is_damaged(&self) -> bool {
        match self {
            Error::Damaged { .. } => true,
            Error::PartlyRestored { source, .. } => source.is_damaged(),
            _ => false,
        }
    }

    /// Returns `true` if there is no checkpoint, or no longer one: none has been saved yet, the path is wrong, or it
    /// was removed.
    #[must_use]
    pub fn is_not_found(&self) -> bool {
        match self {
            Error::NotFound { .. } | Error::Removed { .. } => true,
            Error::PartlyRestored { source, .. } => source.is_not_found(),
            _ => false,
        }
    }

    /// Returns `true` if another writer holds the directory's lock: the same run, which is still alive or was started
    /// twice.
    #[must_use]
    pub fn is_locked(&self) -> bool {
        matches!(self, Error::Locked { .. })
    }

    /// Returns `true` if the file system or a quota is full. Nothing was changed.
    #[must_use]
    pub fn is_no_space(&self) -> bool {
        matches!(self, Error::NoSpace { .. })
    }

    /// Returns `true` if the operating system reported a temporary failure, so that the same call may succeed later: a
    /// call was interrupted or timed out, or a server or a device is unavailable.
    #[must_use]
    pub fn is_transient(&self) -> bool {
        match self {
            Error::Io { source, .. } | Error::Thread { source, .. } => display::is_transient(source),
            Error::PartlyRestored { source, .. } => source.is_transient(),
            _ => false,
        }
    }

    /// Returns `true` if the checkpoint itself is permanently damaged or gone, so that an older one is worth trying.
    pub(crate) fn is_damage(&self) -> bool {
        match self {
            Error::Damaged { .. } | Error::NotFound { .. } => true,
            Error::PartlyRestored { source, .. } => source.is_damage(),
            _ => false,
        }
    }
}

impl std::error::Error for Error {
    fn source(&self) -> Option<&(dyn std::error::Error + 'static)> {
        match self {
            Error::Io { source, .. } | Error::Thread { source, .. } => Some(source),
            Error::PartlyRestored { source, .. } => Some(source),
            Error::Callback { source, .. } => Some(&**source),
            // The message already contains the reason.
            Error::Object { reason, .. } => reason.source(),
            #[cfg(feature = "torch")]
            Error::Torch { source, .. } => Some(&**source),
            _ => None,
        }
    }
}

/// Returns `true` if the system reports that the device cannot read what was written, or reads something else.
pub(crate) fn is_unreadable_data(error: &io::Error) -> bool {
    use rustix::io::Errno;
    // EUCLEAN, "structure needs cleaning", is what XFS and ext4 say of a wrong checksum.
    matches!(Errno::from_io_error(error), Some(Errno::IO | Errno::BADMSG | Errno::ILSEQ))
        || display::linux_says(error, &[117])
}

#[cfg(test)]
mod tests;
