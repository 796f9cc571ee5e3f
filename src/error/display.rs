//! The messages of errors.

use super::{Error, listed};
use rustix::io::Errno;
use std::error::Error as _;
use std::fmt::{self, Display, Formatter};
use std::io;

impl Display for Error {
    fn fmt(&self, f: &mut Formatter<'_>) -> fmt::Result {
        let mut source = self.source();
        match self {
            Error::Io { action, path, source: answer } => {
                write!(f, "cannot {action} {path}")?;
                // The remedy comes last, because it is easier to understand after the reason.
                if f.alternate() {
                    write!(f, ": {answer}")?;
                    source = answer.source();
                }
                write!(f, "{}{}", remedy(action, answer), way_on(action))?;
            }
            other => other.message(f)?,
        }
        while let (true, Some(error)) = (f.alternate(), source) {
            write!(f, ": {error}")?;
            source = error.source();
        }
        Ok(())
    }
}

impl Error {
    /// Writes what happened, where, and what to do.
    fn message(&self, f: &mut Formatter<'_>) -> fmt::Result {
        match self {
            Error::Io { action, path, .. } => write!(f, "cannot {action} {path}"),
            Error::NoSpace { path, needed, free } => {
                write!(f, "no space left for {path}")?;
                match (needed, free) {
                    (0, None) => {}
                    (0, Some(free)) => write!(f, ": {free} bytes are free")?,
                    (needed, None) => write!(f, ": {needed} bytes are needed")?,
                    (needed, Some(free)) => write!(f, ": {needed} bytes are needed, {free} are free")?,
                }
                f.write_str("; free some space, or keep fewer checkpoints (`max_to_keep`)")
            }
            Error::NotFound { path, reason } => write!(f, "no checkpoint at {path}: {reason}"),
            Error::Removed { path } => write!(
                f,
                "{path} was removed, moved aside or replaced by another one meanwhile: nothing was changed; choose one that is \
                 there"
            ),
            Error::Unhealthy { path, tensors } => write!(
                f,
                "{} was not saved: there are values that are not finite in {}; restore an earlier checkpoint, save all \
                 the same (`OnUnhealthy::Keep`), or except constants (`SaveOptions::health_except`)",
                path,
                listed(tensors)
            ),
            Error::Pinned { path, pins } => {
                write!(f, "{} is pinned ({}): remove the pins first (`unpin`)", path, pins.join(", "))
            }
            Error::Damaged { path, reason } => write!(f, "{path} is damaged: {reason}"),
            Error::Link { path, hint } => write!(f, "{path} is a symbolic link: {hint}"),
            Error::Moved { path, reason } => {
                write!(f, "{path} is not the one that was opened: {reason}")
            }
            Error::Unsupported { path, reason } => {
                write!(f, "{path} cannot be read by this version: {reason}")
            }
            Error::InvalidName { name, reason } => write!(f, "the name {name:?} cannot be used: {reason}"),
            Error::Object { name, reason } => write!(f, "{name}: {reason}"),
            Error::Mismatch { path, report } => {
                write!(f, "{path} does not match the tracked objects: {report}")
            }
            Error::Assertion(what) | Error::InvalidArgument(what) => f.write_str(what),
            Error::PartlyRestored { path, .. } => write!(
                f,
                "restoring {path} stopped half-way, the objects are partly overwritten; restore another checkpoint before going \
                 on"
            ),
            Error::Callback { path, .. } => {
                write!(f, "{path} was saved and is durable, but a function given to `on_saved` failed")
            }
            Error::Locked { path, holder } => write!(
                f,
                "{path} is in use by another writer ({holder}); a directory has one writer: close it, or use another directory"
            ),
            Error::AlreadyExists { path, hint } => {
                write!(f, "{path} exists already and was left as it is; {hint}")
            }
            Error::Undecided { first, second } => write!(
                f,
                "{first} and {second} are of different runs, and nothing tells which one to go on from; restore one of them by its \
                 path (`CheckpointManager::restore`), or move the other one out of the directory"
            ),
            Error::Map { path, line, column, reason } => {
                match path {
                    Some(path) => write!(f, "{path}")?,
                    None => f.write_str("map")?,
                }
                write!(f, ", line {line}, column {column}: {reason}")
            }
            Error::OutOfMemory { what, bytes } => {
                write!(f, "there is not enough memory for {what}")?;
                if let Some(bytes) = bytes {
                    write!(f, " ({bytes} bytes)")?;
                }
                f.write_str("; free some, or use a machine that has more")
            }
            Error::Thread { task, .. } => {
                write!(f, "no thread could be started to {task}; end other threads, or raise the limit (`ulimit -u`)")
            }
            Error::Panicked { task, message } => {
                write!(f, "the thread that was to {task} panicked ({message}); standard error shows where")
            }
            #[cfg(feature = "torch")]
            Error::Torch { what, .. } => write!(f, "{what} failed"),
        }
    }
}

/// Returns the remedy for an error of the operating system.
fn remedy(action: &str, error: &io::Error) -> &'static str {
    let errno = Errno::from_io_error(error);
    let has_none = matches!(errno, Some(Errno::INVAL | Errno::NOSYS | Errno::NOTSUP | Errno::NOLCK | Errno::BADF));
    match (action, errno) {
        ("lock", _) if has_none => {
            return "; the file system has no locks for this file: see to it that nobody else writes there, and renounce \
                    the lock (`SaveOptions::without_lock`)";
        }
        ("sync" | "sync the directory", _) if has_none => {
            return "; the file system cannot make this durable: save to another one, or renounce surviving a power cut \
                    (`Durability::ProcessCrash`)";
        }
        ("sync the file", _) if has_none => return "; the file system cannot make this durable: write to another one",
        (_, Some(Errno::FBIG)) => {
            return "; the file system, or a limit (`ulimit -f`), allows no larger file: split components into smaller \
                    files (`SaveOptions::max_file_bytes`)";
        }
        (_, Some(Errno::NAMETOOLONG)) => return "; choose a shorter name",
        _ => {}
    }
    match errno {
        Some(Errno::IO) => "; the device or its connection fails: see the system's log, and save to another one",
        Some(Errno::ROFS) => "; the file system is read-only: mount it for writing, or save to another one",
        Some(Errno::ACCESS | Errno::PERM) => "; give this user the right to do that, or use another directory",
        Some(Errno::MFILE | Errno::NFILE) => "; close some files, or raise the limit (`ulimit -n`)",
        Some(Errno::NOMEM) => "; free some memory",
        Some(Errno::STALE | Errno::NOTCONN | Errno::HOSTDOWN | Errno::NODEV) => AWAY,
        Some(Errno::INTR | Errno::AGAIN | Errno::TIMEDOUT | Errno::BUSY) => "; try again",
        _ if linux_says(error, &[121]) => AWAY, // EREMOTEIO
        _ => "",
    }
}

const AWAY: &str = "; the file system or its server is away: try again, or mount it again";

/// Returns `true` if the error has one of these numbers, which only Linux knows.
pub(super) fn linux_says(error: &io::Error, numbers: &[i32]) -> bool {
    cfg!(target_os = "linux") && error.raw_os_error().is_some_and(|number| numbers.contains(&number))
}

/// Returns the remedy for a checkpoint that cannot be read now, which is not the same as a damaged one. Other files are
/// "read the file" and "open the file": no manager passes over them.
fn way_on(action: &str) -> &'static str {
    match action {
        "read" | "open" | "open the checkpoint" | "list the checkpoint" => {
            "; to continue without this checkpoint, which may be a newer one: `CheckpointManager::pass_over`"
        }
        _ => "",
    }
}

/// Returns `true` if the same call can succeed later, without anyone changing anything.
pub(super) fn is_transient(error: &io::Error) -> bool {
    let errno = Errno::from_io_error(error);
    let is_away = [Errno::STALE, Errno::NOTCONN, Errno::HOSTDOWN, Errno::NODEV];
    let is_busy = [Errno::INTR, Errno::AGAIN, Errno::TIMEDOUT, Errno::BUSY, Errno::NOMEM, Errno::MFILE, Errno::NFILE];
    errno.is_some_and(|errno| is_away.contains(&errno) || is_busy.contains(&errno)) || linux_says(error, &[121])
}
