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

/// What an implementation of this crate's traits ([`TensorLeaf`](crate::TensorLeaf), [`ValueLeaf`](crate::ValueLeaf),
/// [`Collection`](crate::Collection)) returns when it refuses: any error, or a sentence (`"it is on no
/// device".into()`). The caller adds the name of the object.
pub type BoxError = Box<dyn std::error::Error + Send + Sync>;

/// The error of this crate, with kinds by what a caller can do.
///
/// [`Display`](std::fmt::Display) writes what happened, where, and what to do, without the
/// [`source`](std::error::Error::source): so that a printer of error chains, such as `anyhow`, prints each error once.
/// `{:#}` writes the error with its sources, for logs and programs that print errors themselves.
///
/// What a program does about an error depends on few questions, which have methods: [`is_damaged`](Error::is_damaged),
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
        /// The operation, as a verb: "create", "write", "sync" …
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
        /// Bytes the checkpoint needs.
        needed: u64,
        /// Bytes the file system reported as free, where it was asked.
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
    /// The checkpoint at `path` was removed, or moved aside, before something could be noted in it.
    #[non_exhaustive]
    Removed {
        /// Where it was.
        path: Location,
    },
    /// Values that are NaN or infinite were to be saved, and the manager was asked to refuse them; nothing was changed.
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
    /// A file of a checkpoint is not what was written: a changed, missing or added byte, or a hostile file.
    #[non_exhaustive]
    Damaged {
        /// The damaged file.
        path: Location,
        /// What differs.
        reason: String,
    },
    /// A symbolic link stands where a file or directory of our own must be. It was not followed, moved or removed.
    #[non_exhaustive]
    Link {
        /// The link.
        path: Location,
        /// What to do.
        hint: String,
    },
    /// What was opened is not what its path leads to any more: a directory was renamed, removed or replaced, or this
    /// process was forked. Nothing was saved or removed.
    #[non_exhaustive]
    Moved {
        /// The directory or file.
        path: Location,
        /// What happened, and what to do.
        reason: String,
    },
    /// The file was written by a newer version of this crate, or in a form this version does not read.
    #[non_exhaustive]
    Unsupported {
        /// The file.
        path: Location,
        /// What it needs.
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
    /// A tracked object cannot be saved, or a saved value cannot be given to it.
    #[non_exhaustive]
    Object {
        /// The object's path in the graph.
        name: String,
        /// Why, and what to do; what the object itself returned, if it refused.
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
    /// Restoring failed after objects had begun to change (the files changed or failed between verification
    /// and reading). The objects hold a mixture: restore another checkpoint before continuing.
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
        /// What the function returned, or what it panicked with.
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
    /// A checkpoint of that name exists already; it was left as it is.
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
    /// A [`NameMap`](crate::map::NameMap) cannot be read, or does not fit the source it is applied to.
    #[non_exhaustive]
    Map {
        /// The file of the map, where it was read from one.
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
        /// How many bytes, where that is known.
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
    /// A thread of a save or restore panicked: in a tensor, a collection or a callback of the program, or by a fault of
    /// this crate. The save has not happened.
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
        /// What libtorch, or tch, answered.
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
        let hint = "restore it and continue from there, or save into another directory or under another number".into();
        Error::AlreadyExists { path: path.into(), hint }
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

    /// Memory for `bytes` is wanted for `what`, and there is none.
    pub(crate) fn out_of_memory(what: impl Into<String>, bytes: impl Into<Option<u64>>) -> Error {
        Error::OutOfMemory { what: what.into(), bytes: bytes.into() }
    }

    /// `panic` ended a thread that was doing `task`.
    pub(crate) fn panicked(task: &'static str, panic: &(dyn Any + Send)) -> Error {
        let text = panic.downcast_ref::<&str>().map(|text| text.to_string());
        let text = text.or_else(|| panic.downcast_ref::<String>().cloned());
        Error::Panicked { task, message: text.unwrap_or_else(|| "no message".to_string()) }
    }

    /// Returns `true` if a file of a checkpoint is permanently not what was written: an older checkpoint is worth
    /// trying, and this one is worth a look. An error of the system never counts, because what cannot be read now may
    /// be readable later; only data that the device could not read twice, beside a directory and a manifest that it can
    /// read, are [`Error::Damaged`].
    #[must_use]
    pub fn is_damaged(&self) -> bool {
        match self {
            Error::Damaged { .. } => true,
            Error::PartlyRestored { source, .. } => source.is_damaged(),
            _ => false,
        }
    }

    /// Returns `true` if there is no checkpoint, or no longer one: none was saved yet, the path is wrong, or it was
    /// removed.
    #[must_use]
    pub fn is_not_found(&self) -> bool {
        match self {
            Error::NotFound { .. } | Error::Removed { .. } => true,
            Error::PartlyRestored { source, .. } => source.is_not_found(),
            _ => false,
        }
    }

    /// Returns `true` if another writer has the directory: the same run, still alive or started twice.
    #[must_use]
    pub fn is_locked(&self) -> bool {
        matches!(self, Error::Locked { .. })
    }

    /// Returns `true` if the file system or a quota is full. Nothing was changed.
    #[must_use]
    pub fn is_no_space(&self) -> bool {
        matches!(self, Error::NoSpace { .. })
    }

    /// Returns `true` if the system said that it cannot do it now, so that the same call can succeed later: a call that
    /// was interrupted or took too long, a server or a device that is away.
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
            // The message has the reason itself.
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
