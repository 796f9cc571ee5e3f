//! The input of the detectors of formats.

use crate::error::{Error, Result};
use std::collections::BTreeSet;
use std::fs::{self, File};
use std::io::{self, Read};
use std::os::unix::fs::OpenOptionsExt;
use std::path::Path;

/// The number of bytes of a file that detectors examine.
const START: u64 = 1024;

/// The maximum number of names in a directory that detectors examine.
const MAX_NAMES: usize = 1 << 20;

/// The path that a detector examines.
pub(crate) struct Probe<'a> {
    /// The user's path. Nothing needs to exist there: the path of a TensorFlow bundle is the prefix of its files.
    pub path: &'a Path,
    /// The first bytes, if it is a file.
    pub start: Option<Vec<u8>>,
    /// The names in it, if it is a directory.
    pub names: Option<BTreeSet<String>>,
}

/// Examines what is at `path`.
pub(super) fn probe(path: &Path) -> Result<Probe<'_>> {
    let failed = |action, e| Error::io(action, path, e);
    let metadata = match fs::metadata(path) {
        Ok(metadata) => metadata,
        Err(e) if e.kind() == io::ErrorKind::NotFound => return Ok(Probe { path, start: None, names: None }),
        Err(e) => return Err(failed("examine", e)),
    };
    if metadata.is_dir() {
        let mut names = BTreeSet::new();
        for entry in fs::read_dir(path).map_err(|e| failed("list", e))?.take(MAX_NAMES) {
            let name = entry.map_err(|e| failed("list", e))?.file_name();
            names.extend(name.into_string().ok());
        }
        return Ok(Probe { path, start: None, names: Some(names) });
    }
    let mut start = Vec::new();
    open_file(path)?.take(START).read_to_end(&mut start).map_err(|e| failed("read the file", e))?;
    Ok(Probe { path, start: Some(start), names: None })
}

/// Opens a regular file, following links (the cache of Hugging Face consists of them).
pub(crate) fn open_file(path: &Path) -> Result<File> {
    // O_NONBLOCK, so that opening a pipe does not wait for its other end.
    let flags = rustix::fs::OFlags::NONBLOCK.bits() as i32;
    let file = match fs::OpenOptions::new().read(true).custom_flags(flags).open(path) {
        Ok(file) => file,
        Err(e) if e.kind() == io::ErrorKind::NotFound => {
            return Err(Error::not_found(path, "the file is missing".to_string()));
        }
        Err(e) => return Err(Error::io("open the file", path, e)),
    };
    match file.metadata() {
        Ok(metadata) if metadata.is_file() => Ok(file),
        Ok(_) => Err(Error::unsupported(path, "it is not a regular file".to_string())),
        Err(e) => Err(Error::io("open the file", path, e)),
    }
}
