//! Reads the manifest and the index of checkpoints.

use super::OpenDir;
use super::names::{INDEX, MANIFEST};
use crate::error::{Error, Result};
use crate::format::{Follows, MAX_MANIFEST_BYTES, MAX_MARK_BYTES, Manifest, Mark, MarkKind, is_thinned_file};
use crate::location::Location;
use rustix::io::Errno;
use std::collections::BTreeSet;
use std::io;

/// Reads a file of at most `limit` bytes.
pub(crate) fn read_whole(dir: &dyn OpenDir, name: &str, path: &Location, limit: u64) -> Result<Vec<u8>> {
    let file = dir.open(name.as_ref()).map_err(|e| open_failed(path, e))?;
    let length = file.stat().map_err(|e| Error::io("read", path, e))?.length;
    if length > limit {
        return Err(Error::damaged(path, format!("it has {length} bytes, more than the {limit} such a file may have")));
    }
    let mut bytes = vec![0; length as usize];
    file.read_exact_at(0, &mut bytes).map_err(|e| Error::io("read", path, e))?;
    Ok(bytes)
}

/// Returns the error for a file of ours that cannot be opened: a link is reported as such; anything else that is not a
/// regular file is damage.
pub(crate) fn open_failed(path: &Location, e: io::Error) -> Error {
    match e.kind() {
        io::ErrorKind::InvalidInput => Error::damaged(path, format!("it is {e}")),
        _ if Errno::from_io_error(&e) == Some(Errno::LOOP) => {
            Error::link(path, "the files of a checkpoint must be files: copy what it leads to into its place (`cp -L`)")
        }
        _ => Error::io("open", path, e),
    }
}

/// Returns the error for a directory of ours that cannot be opened as a checkpoint.
pub(crate) fn checkpoint_failed(path: &Location, e: io::Error) -> Error {
    match e.kind() {
        _ if Errno::from_io_error(&e) == Some(Errno::LOOP) => link_met(path),
        io::ErrorKind::NotFound => Error::not_found(path, NOTHING.to_string()),
        _ => Error::io("open the checkpoint", path, e),
    }
}

/// Returns the error for a link in the place of a checkpoint.
pub(crate) fn link_met(path: &Location) -> Error {
    let hint = "links in a directory of checkpoints are not followed: restore the checkpoint by this path, or move it \
                here; to go on without it, remove the link, or pass over it (`CheckpointManager::pass_over`)";
    Error::link(path, hint)
}

const NOTHING: &str = "there is nothing of that name; a checkpoint is a directory such as `checkpoints/ckpt-100`";

/// Reads the manifest in the checkpoint `dir`, which `path` leads to.
pub(crate) fn read_manifest(dir: &dyn OpenDir, path: &Location) -> Result<Manifest> {
    let file = path.join(MANIFEST);
    let bytes = match read_whole(dir, MANIFEST, &file, MAX_MANIFEST_BYTES as u64) {
        Err(Error::Io { source, .. }) if source.kind() == io::ErrorKind::NotFound => {
            return Err(not_a_checkpoint(dir, path));
        }
        result => result?,
    };
    Manifest::from_bytes(&bytes).map_err(|e| e.at(&file))
}

fn not_a_checkpoint(dir: &dyn OpenDir, path: &Location) -> Error {
    let reason = match dir.stat_of(INDEX.as_ref()) {
        Ok(Some(_)) => {
            "this directory holds checkpoints; name one of them, or ask `latest_checkpoint` for the newest".into()
        }
        _ => format!("it has no {MANIFEST}"),
    };
    Error::not_found(path, reason)
}

/// Returns the mark files of a checkpoint with their bytes, by name. A file that is longer than a mark can be,
/// or that this user may not read, is returned without its bytes.
pub(crate) fn marks_in(dir: &dyn OpenDir, path: &Location) -> Result<Vec<(String, Vec<u8>)>> {
    let entries = dir.list().map_err(|e| Error::io("list the checkpoint", path, e))?;
    let mut names: Vec<String> = entries.into_iter().filter_map(|entry| entry.name.into_string().ok()).collect();
    names.retain(|name| crate::format::is_mark_file(name));
    names.sort();
    let mut marks = Vec::with_capacity(names.len());
    for name in names {
        match read_whole(dir, &name, &path.join(&name), MAX_MARK_BYTES as u64) {
            Ok(bytes) => marks.push((name, bytes)),
            // Replaced or removed meanwhile.
            Err(Error::Io { source, .. }) if source.kind() == io::ErrorKind::NotFound => {}
            // Another user's: what it says is unknown, as that of a damaged one.
            Err(Error::Io { source, .. }) if source.kind() == io::ErrorKind::PermissionDenied => {
                marks.push((name, Vec::new()));
            }
            Err(error @ Error::Io { .. }) => return Err(error),
            Err(_) => marks.push((name, Vec::new())),
        }
    }
    Ok(marks)
}

/// The components of a checkpoint that were removed after its commit, according to its marks.
#[derive(Debug, Default)]
pub(crate) struct Thinned {
    pub components: BTreeSet<String>,
    /// Why a mark could not be read. A missing file may then have been removed, and is not damage.
    pub unread: Option<Error>,
}

/// Returns the components of the checkpoint `of` that were removed after its commit.
pub(crate) fn thinned_in(dir: &dyn OpenDir, path: &Location, of: &Follows) -> Thinned {
    let mut thinned = Thinned::default();
    let entries = dir.list().unwrap_or_else(|e| {
        thinned.unread = Some(Error::io("list the checkpoint", path, e));
        Vec::new()
    });
    for name in entries.into_iter().filter_map(|entry| entry.name.into_string().ok()) {
        if !is_thinned_file(&name) {
            continue;
        }
        let file = path.join(&name);
        let unknown = |reason: String| {
            Error::unsupported(
                &file,
                format!("it does not say which component was removed from the checkpoint: {reason}"),
            )
        };
        let mark = match read_whole(dir, &name, &file, MAX_MARK_BYTES as u64) {
            Ok(bytes) => Mark::from_bytes(&bytes).map_err(|e| unknown(e.to_string())),
            // Removed meanwhile.
            Err(Error::Io { source, .. }) if source.kind() == io::ErrorKind::NotFound => continue,
            Err(error @ Error::Io { .. }) => Err(error),
            Err(error) => Err(unknown(format!("{error:#}"))),
        };
        match mark {
            Ok(Mark { of: whose, kind: MarkKind::Thinned { component }, .. }) if whose == *of => {
                thinned.components.insert(component);
            }
            Ok(_) => {}
            Err(error) => thinned.unread = Some(error),
        }
    }
    thinned
}

/// Returns `true` if opening a directory failed because it is a file or a symbolic link.
pub(crate) fn is_no_directory(e: &io::Error) -> bool {
    e.kind() == io::ErrorKind::NotADirectory || Errno::from_io_error(e) == Some(Errno::LOOP)
}
