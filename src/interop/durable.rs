//! A file that appears under its name only when all of it is on disk.

use super::zip::Sink;
use crate::error::{Error, Result};
use crate::store::nonce;
use std::fs::{self, File};
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};

/// A file being written beside the one that it will replace.
#[derive(Debug)]
pub(crate) struct DurableFile {
    path: PathBuf,
    temporary: PathBuf,
    file: File,
    is_done: bool,
}

impl DurableFile {
    /// Begins a file that will be `path`.
    pub(crate) fn create(path: &Path) -> Result<DurableFile> {
        let name = path.file_name().ok_or_else(|| Error::Usage(format!("{} is no name of a file", path.display())))?;
        let temporary = path.with_file_name(format!(".{}.tmp-{}", name.to_string_lossy(), nonce()));
        let file = File::options().write(true).create_new(true).open(&temporary);
        let file = file.map_err(|e| Error::io("create", &temporary, e))?;
        Ok(DurableFile { path: path.to_path_buf(), temporary, file, is_done: false })
    }

    pub(crate) fn write_at(&self, offset: u64, bytes: &[u8]) -> Result<()> {
        self.file.write_all_at(bytes, offset).map_err(|e| Error::io("write", &self.temporary, e))
    }

    /// Makes the content durable, gives the file its name in one step, in place of what had it, and makes that durable.
    pub(crate) fn publish(mut self) -> Result<()> {
        self.file.sync_all().map_err(|e| Error::io("sync", &self.temporary, e))?;
        fs::rename(&self.temporary, &self.path).map_err(|e| Error::io("rename", &self.temporary, e))?;
        self.is_done = true;
        let parent = self.path.parent().filter(|parent| !parent.as_os_str().is_empty()).unwrap_or(Path::new("."));
        let synced = File::open(parent).and_then(|parent| parent.sync_all());
        synced.map_err(|e| Error::io("sync", parent, e))
    }
}

impl Drop for DurableFile {
    fn drop(&mut self) {
        if !self.is_done {
            // What is left over has a name that says so.
            let _ = fs::remove_file(&self.temporary);
        }
    }
}

impl Sink for DurableFile {
    fn write_at(&mut self, offset: u64, bytes: &[u8]) -> Result<()> {
        DurableFile::write_at(self, offset, bytes)
    }
}
