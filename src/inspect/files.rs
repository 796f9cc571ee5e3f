//! The files of a checkpoint as the file system has them.

use crate::repository::FileId;
use std::ffi::OsString;
use std::fs;
use std::os::unix::fs::MetadataExt;
use std::path::Path;

/// Returns the regular files in the directory `path`: the name of each, which file it is, and its length. Nothing if
/// the directory cannot be read.
pub(super) fn files_in(path: &Path) -> Vec<(OsString, FileId, u64)> {
    let entries = fs::read_dir(path).into_iter().flatten().flatten();
    let files =
        entries.filter_map(|entry| Some((entry.file_name(), entry.metadata().ok().filter(fs::Metadata::is_file)?)));
    files.map(|(name, file)| (name, FileId { device: file.dev(), inode: file.ino() }, file.len())).collect()
}
