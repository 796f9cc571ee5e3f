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
    #[error("cannot {action} {}: {source}{}{}", path.display(), remedy(action, source), way_on(action))]
    Io {
        /// What was tried, as a verb: "create", "write", "sync" …
        action: &'static str,
        /// The file or directory.
        path: PathBuf,
        /// What the system answered.
        #[source]
        source: io::Error,
    },
    /// The file system has no room (or the quota is reached); nothing was changed.
    #[error(
        "no space left for {}: {needed} bytes are needed{}; free some space, or keep fewer checkpoints (`max_to_keep`)",
        path.display(),
        free.map(|free| format!(", {free} are free")).unwrap_or_default()
    )]
    NoSpace {
        /// The file or directory that was to be written.
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
    /// The checkpoint at `path` was removed, or moved aside, before something could be noted in it.
    #[error("{} was removed or moved aside meanwhile: nothing was noted in it; choose one that is there", path.display())]
    Removed {
        /// Where it was.
        path: PathBuf,
    },
    /// Values that are NaN or infinite were to be saved, and the manager was asked to refuse them; nothing was changed.
    #[error(
        "{} was not saved: there are values that are not finite in {}; restore an earlier checkpoint, or save all the same \
        (`OnUnhealthy::Keep`)",
        path.display(),
        listed(tensors)
    )]
    Unhealthy {
        /// The checkpoint that was to be saved.
        path: PathBuf,
        /// The keys of the tensors.
        tensors: Vec<String>,
    },
    /// The checkpoint at `path` is pinned, so it is not removed.
    #[error("{} is pinned ({}): take the pins away first (`unpin`)", path.display(), pins.join(", "))]
    Pinned {
        /// The checkpoint.
        path: PathBuf,
        /// The names of its pins.
        pins: Vec<String>,
    },
    /// A file of a checkpoint is not what was written: a changed, missing or added byte, or a hostile file.
    #[error("{} is damaged: {reason}", path.display())]
    Damaged {
        /// The damaged file.
        path: PathBuf,
        /// What differs.
        reason: String,
    },
    /// A symbolic link stands where a file or directory of our own must be. It was not followed, moved or removed.
    #[error("{} is a symbolic link: {hint}", path.display())]
    Link {
        /// The link.
        path: PathBuf,
        /// What to do.
        hint: String,
    },
    /// What was opened is not what its path leads to any more: a directory was renamed, removed or replaced, or this
    /// process was forked. Nothing was saved or removed.
    #[error("{} is not the one that was opened: {reason}", path.display())]
    Moved {
        /// The directory or file.
        path: PathBuf,
        /// What happened, and what to do.
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
    InvalidName {
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
    /// A checkpoint was saved and is durable, and a function given to
    /// [`on_saved`](crate::CheckpointManagerBuilder::on_saved) failed or panicked.
    #[error("{} was saved and is durable, but a function given to `on_saved` failed: {source}", path.display())]
    Callback {
        /// The checkpoint.
        path: PathBuf,
        /// What the function returned, or what it panicked with.
        #[source]
        source: Box<dyn std::error::Error + Send + Sync>,
    },
    /// Another manager writes into this directory.
    #[error("{} is in use by another writer ({holder}); one writer a folder: close it, or use another folder", path.display())]
    Locked {
        /// The directory.
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
    /// A directory holds checkpoints of different runs, and nothing tells which one to go on from.
    #[error(
        "{} and {} are of different runs, and nothing tells which one to go on from; restore one of them by its path \
        (`CheckpointManager::restore`), or move the other one out of the directory",
        first.display(),
        second.display()
    )]
    Undecided {
        /// The newest checkpoint of one run.
        first: PathBuf,
        /// The newest checkpoint of another.
        second: PathBuf,
    },
    /// A [`NameMap`](crate::map::NameMap) cannot be read, or does not fit the source it is applied to.
    #[error(
        "{}, line {line}, column {column}: {reason}",
        path.as_ref().map_or("map".to_string(), |path| path.display().to_string())
    )]
    Map {
        /// The file of the map, where it was read from one.
        path: Option<PathBuf>,
        /// The line, from 1; for a map made by calls, that of its text.
        line: usize,
        /// The column in characters, from 1.
        column: usize,
        /// What is wrong, and what would be right.
        reason: String,
    },
    /// An option or argument makes no sense.
    #[error("{0}")]
    InvalidArgument(String),
}

/// The first of some names, and how many more there are.
pub(crate) fn listed(names: &[String]) -> String {
    match names {
        [] => "no".to_string(),
        [name] => name.clone(),
        [name, others @ ..] => format!("{name} and {} more", others.len()),
    }
}

/// What to do about an error of the system.
fn remedy(action: &str, error: &io::Error) -> &'static str {
    use rustix::io::Errno;
    let errno = Errno::from_io_error(error);
    let has_none = matches!(errno, Some(Errno::INVAL | Errno::NOSYS | Errno::NOTSUP | Errno::NOLCK | Errno::BADF));
    match (action, errno) {
        ("lock", _) if has_none => {
            return "; the file system has no locks for this file: see to it that nobody else writes there, and renounce \
                    the lock (`without_lock()`)";
        }
        ("sync" | "sync the directory", _) if has_none => {
            return "; the file system cannot make this durable: save to another one, or renounce surviving a power cut \
                    (`Durability::ProcessCrash`)";
        }
        (_, Some(Errno::FBIG)) => {
            return "; the file system, or a limit (`ulimit -f`), allows no larger file: split components into smaller \
                    files (`max_file_bytes`)";
        }
        (_, Some(Errno::NAMETOOLONG)) => return "; choose a shorter name",
        _ => {}
    }
    match errno {
        Some(Errno::IO) => "; the device or its connection fails: see the system's log, and save to another one",
        Some(Errno::ROFS) => "; the file system is read-only: mount it for writing, or save to another one",
        Some(Errno::ACCESS | Errno::PERM) => "; give this user the right to do that, or use another folder",
        Some(Errno::MFILE | Errno::NFILE) => "; close some files, or raise the limit (`ulimit -n`)",
        Some(Errno::NOMEM) => "; free some memory",
        Some(Errno::STALE | Errno::NOTCONN | Errno::HOSTDOWN | Errno::NODEV) => AWAY,
        Some(Errno::INTR | Errno::AGAIN | Errno::TIMEDOUT | Errno::BUSY) => "; try again",
        _ if linux_says(error, &[121]) => AWAY, // EREMOTEIO
        _ => "",
    }
}

const AWAY: &str = "; the file system or its server is away: try again, or mount it again";

/// Whether the error has one of these numbers, which only Linux knows.
fn linux_says(error: &io::Error, numbers: &[i32]) -> bool {
    cfg!(target_os = "linux") && error.raw_os_error().is_some_and(|number| numbers.contains(&number))
}

/// What to do about a checkpoint that cannot be read now, which is not the same as one that is damaged.
fn way_on(action: &str) -> &'static str {
    match action {
        "read" | "open" | "open the checkpoint" | "list the checkpoint" => {
            "; to go on without this checkpoint, which may be a newer one: `CheckpointManager::pass_over`"
        }
        _ => "",
    }
}

impl Error {
    /// An [`Error::Io`], or [`Error::NoSpace`] where that is what the system said.
    pub(crate) fn io(action: &'static str, path: impl AsRef<Path>, source: io::Error) -> Error {
        let path = path.as_ref().to_path_buf();
        match source.kind() {
            io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded => Error::NoSpace { path, needed: 0, free: None },
            _ => Error::Io { action, path, source },
        }
    }

    pub(crate) fn damaged(path: impl AsRef<Path>, reason: impl Into<String>) -> Error {
        Error::Damaged { path: path.as_ref().to_path_buf(), reason: reason.into() }
    }

    pub(crate) fn link(path: impl AsRef<Path>, hint: impl Into<String>) -> Error {
        Error::Link { path: path.as_ref().to_path_buf(), hint: hint.into() }
    }

    pub(crate) fn moved(path: impl AsRef<Path>, reason: impl Into<String>) -> Error {
        Error::Moved { path: path.as_ref().to_path_buf(), reason: reason.into() }
    }

    pub(crate) fn already_exists(path: impl AsRef<Path>) -> Error {
        let hint = "restore it and go on from there, or save into another folder or under another number".into();
        Error::AlreadyExists { path: path.as_ref().to_path_buf(), hint }
    }

    pub(crate) fn object(name: impl Into<String>, reason: impl Into<String>) -> Error {
        Error::Object { name: name.into(), reason: reason.into() }
    }

    pub(crate) fn name(name: impl Into<String>, reason: impl Into<String>) -> Error {
        Error::InvalidName { name: name.into(), reason: reason.into() }
    }

    /// Whether the checkpoint itself is bad or gone, for good, so that an older one is worth trying. An error of the
    /// system never says so: what cannot be read now may be there again later. Only data that the device twice could
    /// not read, beside a directory and a manifest that it can read, is damage, and is an [`Error::Damaged`] already.
    pub(crate) fn is_damage(&self) -> bool {
        match self {
            Error::Damaged { .. } | Error::NotFound { .. } => true,
            Error::PartlyRestored { source, .. } => source.is_damage(),
            _ => false,
        }
    }
}

/// Whether the system says that the device cannot read what was written to it, or reads something else.
pub(crate) fn is_unreadable_data(error: &io::Error) -> bool {
    use rustix::io::Errno;
    // EUCLEAN, "structure needs cleaning", is what XFS and ext4 say of a wrong checksum.
    matches!(Errno::from_io_error(error), Some(Errno::IO | Errno::BADMSG | Errno::ILSEQ)) || linux_says(error, &[117])
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_cannot_be_read_now_is_not_damage_and_names_the_way_on() {
        // EIO, ENOTCONN, ESTALE, EHOSTDOWN, ENODEV, EREMOTEIO, EACCES, EMFILE, ETIMEDOUT, ENXIO, EBADMSG
        for errno in [5, 107, 116, 112, 19, 121, 13, 24, 110, 6, 74] {
            let error = Error::io("open", "run/ckpt-3/manifest.json", io::Error::from_raw_os_error(errno));
            assert!(!error.is_damage() && error.to_string().contains("CheckpointManager::pass_over"), "{error}");
        }
        let error = Error::io("write", "run/ckpt-3", io::Error::from_raw_os_error(5));
        assert!(!error.to_string().contains("pass_over"), "{error}");
    }
}
