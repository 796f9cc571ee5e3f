//! The one public error: few kinds, each of which a caller can act on, always with the path or the name.

use std::io;
use std::path::{Path, PathBuf};

/// The result of this crate's functions.
pub type Result<T, E = Error> = std::result::Result<T, E>;

/// Everything that can go wrong, by what one can do about it.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// The operating system refused an operation on `path`.
    #[error("cannot {action} {}: {source}{}", path.display(), remedy(source))]
    Io {
        /// What was tried, as a verb: "create", "write", "sync" …
        action: &'static str,
        /// The file or folder.
        path: PathBuf,
        /// What the system answered.
        #[source]
        source: io::Error,
    },
    /// The file system has no room (or the quota or the file size limit is reached); nothing was changed.
    #[error(
        "no space left for {}: {needed} bytes are needed{}; free some space, or keep fewer checkpoints (`max_to_keep`)",
        path.display(),
        free.map(|free| format!(", {free} are free")).unwrap_or_default()
    )]
    NoSpace {
        /// The file or folder that was to be written.
        path: PathBuf,
        /// Bytes the checkpoint needs.
        needed: u64,
        /// Bytes the file system reported as free, where it was asked.
        free: Option<u64>,
    },
    /// There is no checkpoint at `path`.
    #[error("no checkpoint at {}: {reason}", path.display())]
    NotFound {
        /// Where a checkpoint was looked for.
        path: PathBuf,
        /// What is there instead, and what would be a checkpoint.
        reason: String,
    },
    /// A file of a checkpoint is not what was written: a changed, missing or added byte, or a hostile file.
    #[error("{} is damaged: {reason}", path.display())]
    Damaged {
        /// The damaged file.
        path: PathBuf,
        /// What differs.
        reason: String,
    },
    /// The file was written by a newer version of this crate, or in a form this version does not read.
    #[error("{} cannot be read by this version: {reason}", path.display())]
    Unsupported {
        /// The file.
        path: PathBuf,
        /// What it needs.
        reason: String,
    },
    /// A name in the object graph cannot be used.
    #[error("the name {name:?} cannot be used: {reason}")]
    Name {
        /// The name, with its path in the graph.
        name: String,
        /// Why, and what to do.
        reason: String,
    },
    /// A tracked object cannot be saved, or a saved value cannot be given to it.
    #[error("{name}: {reason}")]
    Object {
        /// The object's path in the graph.
        name: String,
        /// Why, and what to do.
        reason: String,
    },
    /// Checkpoint and objects do not match; no object was changed. The report has every difference.
    #[error("{} does not match the tracked objects: {report}", path.display())]
    Mismatch {
        /// The checkpoint.
        path: PathBuf,
        /// All differences.
        report: Box<crate::restore::Report>,
    },
    /// An assertion on a [`RestoreStatus`](crate::RestoreStatus) does not hold.
    #[error("{0}")]
    Assertion(String),
    /// Restoring failed after objects had begun to change (the files changed or failed between verification
    /// and reading). The objects hold a mixture: restore another checkpoint before going on.
    #[error("restoring {} stopped half-way, the objects are partly overwritten; restore another checkpoint before going on: {source}", path.display())]
    PartlyRestored {
        /// The checkpoint.
        path: PathBuf,
        /// What happened.
        #[source]
        source: Box<Error>,
    },
    /// Another manager writes into this folder.
    #[error("{} is in use by another writer ({holder}); one writer a folder: close it, or use another folder", path.display())]
    Locked {
        /// The folder.
        path: PathBuf,
        /// What the lock file says of its holder.
        holder: String,
    },
    /// A checkpoint of that name exists already; it was left as it is.
    #[error("{} exists already and was left as it is; {hint}", path.display())]
    AlreadyExists {
        /// The checkpoint.
        path: PathBuf,
        /// What to do.
        hint: String,
    },
    /// An option or argument makes no sense.
    #[error("{0}")]
    Usage(String),
}

/// What to do about an error of the system.
fn remedy(error: &io::Error) -> &'static str {
    use rustix::io::Errno;
    match Errno::from_io_error(error) {
        Some(Errno::IO) => "; the device or its connection fails: see the system's log, and save to another one",
        Some(Errno::ROFS) => "; the file system is read-only: mount it for writing, or save to another one",
        Some(Errno::ACCESS | Errno::PERM) => "; give this user the right to do that, or use another folder",
        Some(Errno::MFILE | Errno::NFILE) => "; close some files, or raise the limit (`ulimit -n`)",
        Some(Errno::NOMEM) => "; free some memory",
        Some(Errno::STALE) => "; the network file system lost it: try again, or mount it again",
        Some(Errno::INTR | Errno::AGAIN | Errno::TIMEDOUT | Errno::BUSY) => "; try again",
        _ => "",
    }
}

/// Whether the same checkpoint could be read with other rights, more memory or files, or at another time.
fn is_about_the_system(error: &io::Error) -> bool {
    use rustix::io::Errno;
    let passing = [
        Errno::ACCESS,
        Errno::PERM,
        Errno::MFILE,
        Errno::NFILE,
        Errno::NOMEM,
        Errno::INTR,
        Errno::AGAIN,
        Errno::STALE,
        Errno::TIMEDOUT,
    ];
    error.kind() == io::ErrorKind::PermissionDenied
        || error.raw_os_error().is_some_and(|code| passing.iter().any(|errno| errno.raw_os_error() == code))
}

impl Error {
    /// An [`Error::Io`], or [`Error::NoSpace`] where that is what the system said.
    pub(crate) fn io(action: &'static str, path: impl AsRef<Path>, source: io::Error) -> Error {
        let path = path.as_ref().to_path_buf();
        match source.kind() {
            io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded | io::ErrorKind::FileTooLarge => {
                Error::NoSpace { path, needed: 0, free: None }
            }
            _ => Error::Io { action, path, source },
        }
    }

    pub(crate) fn damaged(path: impl AsRef<Path>, reason: impl Into<String>) -> Error {
        Error::Damaged { path: path.as_ref().to_path_buf(), reason: reason.into() }
    }

    pub(crate) fn already_exists(path: impl AsRef<Path>) -> Error {
        let hint = "restore it and go on from there, or save into another folder or under another number".into();
        Error::AlreadyExists { path: path.as_ref().to_path_buf(), hint }
    }

    pub(crate) fn object(name: impl Into<String>, reason: impl Into<String>) -> Error {
        Error::Object { name: name.into(), reason: reason.into() }
    }

    pub(crate) fn name(name: impl Into<String>, reason: impl Into<String>) -> Error {
        Error::Name { name: name.into(), reason: reason.into() }
    }

    /// Whether the checkpoint itself is bad or gone, so that an older one is worth trying.
    pub(crate) fn is_about_the_checkpoint(&self) -> bool {
        match self {
            Error::Damaged { .. } | Error::NotFound { .. } => true,
            Error::Io { source, .. } => !is_about_the_system(source),
            Error::PartlyRestored { source, .. } => source.is_about_the_checkpoint(),
            _ => false,
        }
    }

    /// Whether the checkpoint's content is bad, for good.
    pub(crate) fn is_damage(&self) -> bool {
        match self {
            Error::Damaged { .. } | Error::NotFound { .. } => true,
            Error::PartlyRestored { source, .. } => source.is_damage(),
            _ => false,
        }
    }
}
