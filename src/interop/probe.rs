//! What detectors of formats look at.

use crate::error::{Error, Result};
use std::collections::BTreeSet;
use std::fs::{self, File};
use std::io::{self, Read};
use std::os::unix::fs::OpenOptionsExt;
use std::path::Path;

/// Bytes of a file that detectors see.
const START: u64 = 1024;

/// The most names of a directory that detectors see.
const MAX_NAMES: usize = 1 << 20;

/// What a detector looks at.
pub(crate) struct Probe<'a> {
    /// The path that the user gave. There may be nothing: a TensorFlow bundle is given by the prefix of its files.
    pub path: &'a Path,
    /// The first bytes, where it is a file.
    pub start: Option<Vec<u8>>,
    /// The names in it, where it is a directory.
    pub names: Option<BTreeSet<String>>,
}

/// Looks at what is at `path`.
pub(super) fn probe(path: &Path) -> Result<Probe<'_>> {
    let failed = |action, e| Error::io(action, path, e);
    let metadata = match fs::metadata(path) {
        Ok(metadata) => metadata,
        Err(e) if e.kind() == io::ErrorKind::NotFound => return Ok(Probe { path, start: None, names: None }),
        Err(e) => return Err(failed("open", e)),
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
    open_file(path)?.take(START).read_to_end(&mut start).map_err(|e| failed("read", e))?;
    Ok(Probe { path, start: Some(start), names: None })
}

/// Opens a regular file, following links (the cache of Hugging Face consists of them).
pub(crate) fn open_file(path: &Path) -> Result<File> {
    // O_NONBLOCK: opening a pipe must not wait for its other end.
    let flags = rustix::fs::OFlags::NONBLOCK.bits() as i32;
    let file = match fs::OpenOptions::new().read(true).custom_flags(flags).open(path) {
        Ok(file) => file,
        Err(e) if e.kind() == io::ErrorKind::NotFound => {
            return Err(Error::NotFound { path: path.to_path_buf(), reason: "the file is missing".to_string() });
        }
        Err(e) => return Err(Error::io("open", path, e)),
    };
    match file.metadata() {
        Ok(metadata) if metadata.is_file() => Ok(file),
        Ok(_) => Err(Error::Unsupported { path: path.to_path_buf(), reason: "it is not a regular file".to_string() }),
        Err(e) => Err(Error::io("open", path, e)),
    }
}
