//! `CheckpointReader`: a checkpoint's content without any object to restore into, and without libtorch.

use crate::dtype::TensorSpec;
use crate::error::{Error, Result};
use crate::format::{Manifest, SAVED_MODEL_FILE, SavedModelInfo, TensorRecord, check_saved_model_length};
use crate::parallel;
use crate::source::Source;
use crate::store::{Disk, LocalDisk, MANIFEST};
use std::path::Path;
use std::sync::{Arc, Mutex, PoisonError};

/// Reads a checkpoint: names, types, shapes, values, bytes; and verifies all of it.
///
/// ```
/// # fn main() -> Result<(), Box<dyn std::error::Error>> {
/// # let folder = tempfile::tempdir()?;
/// # let dir = folder.path();
/// use tch_checkpoint::{Checkpoint, CheckpointReader, Counter};
/// let path = Checkpoint::new().track("step", &Counter::new(7))?.write(dir.join("seven"))?;
/// let reader = CheckpointReader::open(&path)?;
/// assert_eq!(reader.manifest().values["step"], 7);
/// assert!(reader.verify().is_empty());
/// # Ok(())
/// # }
/// ```
#[derive(Debug)]
pub struct CheckpointReader {
    pub(crate) source: Source,
    disk: Arc<dyn Disk>,
}

impl CheckpointReader {
    /// Opens the checkpoint in the folder `path`. Its files stay readable while this lives, even when it is pruned.
    ///
    /// # Errors
    /// [`Error::NotFound`], [`Error::Damaged`] (manifest, or a file missing or of another length),
    /// [`Error::Unsupported`], [`Error::Io`].
    pub fn open(path: impl AsRef<Path>) -> Result<CheckpointReader> {
        let disk: Arc<dyn Disk> = Arc::new(LocalDisk);
        Ok(CheckpointReader { source: Source::open(&disk, path.as_ref())?, disk })
    }

    /// The folder.
    pub fn path(&self) -> &Path {
        &self.source.path
    }

    /// Everything but the tensors' bytes.
    pub fn manifest(&self) -> &Manifest {
        &self.source.manifest
    }

    /// Type and shape of the tensor `key`, if there is one.
    pub fn spec(&self, key: &str) -> Option<&TensorSpec> {
        self.source.manifest.tensors.get(key).map(|record| &record.spec)
    }

    /// The elements of the tensor `key`: row-major, little-endian, verified.
    ///
    /// # Errors
    /// [`Error::Object`] when there is no such tensor or it does not fit into memory, [`Error::Damaged`], [`Error::Io`].
    pub fn tensor(&self, key: &str) -> Result<Vec<u8>> {
        let Some(record) = self.source.manifest.tensors.get(key) else {
            return Err(Error::object(key, format!("{} has no tensor of this name", self.path().display())));
        };
        let length = record.spec.bytes().and_then(|bytes| usize::try_from(bytes).ok());
        let too_large = || Error::object(key, "the tensor is larger than memory");
        let mut bytes = Vec::new();
        bytes.try_reserve_exact(length.ok_or_else(too_large)?).map_err(|_| too_large())?;
        bytes.resize(length.unwrap_or_default(), 0);
        self.source.read_tensor(key, record, &mut bytes, true)?;
        Ok(bytes)
    }

    /// The bytes of the asset `name`, verified: of a saved model its signatures, say.
    ///
    /// # Errors
    /// [`Error::Damaged`] when it is not what was written, or the manifest lists no such file; [`Error::Object`] when it
    /// does not fit into memory; [`Error::Io`].
    pub fn asset(&self, name: &str) -> Result<Vec<u8>> {
        let length = self.manifest().assets.get(name).map_or(0, |entry| entry.bytes);
        let mut bytes = Vec::new();
        let room = usize::try_from(length).ok().and_then(|length| bytes.try_reserve_exact(length).ok());
        room.ok_or_else(|| Error::object(name, "the file is larger than memory"))?;
        self.source.verify_asset(name, |chunk| {
            bytes.extend_from_slice(chunk);
            Ok(())
        })?;
        Ok(bytes)
    }

    /// What a saved model says of itself; `None` for a checkpoint that is none. The program is not looked at.
    ///
    /// # Errors
    /// As for [`asset`](CheckpointReader::asset).
    pub fn saved_model(&self) -> Result<Option<SavedModelInfo>> {
        let Some(entry) = self.manifest().assets.get(SAVED_MODEL_FILE) else {
            return Ok(None);
        };
        check_saved_model_length(entry.bytes).map_err(|e| e.at(self.path().join(SAVED_MODEL_FILE)))?;
        let bytes = self.asset(SAVED_MODEL_FILE)?;
        SavedModelInfo::from_bytes(&bytes).map(Some).map_err(|e| e.at(self.path().join(SAVED_MODEL_FILE)))
    }

    /// Checks every byte of every file, and that the folder holds nothing else. Returns all that is wrong; nothing
    /// when the checkpoint is intact.
    pub fn verify(&self) -> Vec<Error> {
        let problems = Mutex::new(Vec::new());
        let note = |result: Result<()>| {
            problems.lock().unwrap_or_else(PoisonError::into_inner).extend(result.err());
            Ok(())
        };
        let manifest = &self.source.manifest;
        let files: Vec<&String> = manifest.files.keys().filter(|file| self.source.has_file(file)).collect();
        let assets: Vec<&String> = manifest.assets.keys().filter(|asset| self.source.has_file(asset)).collect();
        let is_open = |record: &TensorRecord| record.pieces.iter().all(|piece| self.source.has_file(&piece.file));
        let tensors: Vec<_> = manifest.tensors.iter().filter(|(_, record)| is_open(record)).collect();
        let threads = parallel::default_threads();
        let verify_asset = |asset: &&String, _: &mut ()| note(self.source.verify_asset(asset, |_| Ok(())));
        let read = parallel::for_each(&files, threads, || (), |file, _| note(self.source.verify_header(file)))
            .and_then(|()| parallel::for_each(&assets, threads, || (), verify_asset))
            .and_then(|()| {
                parallel::for_each(&tensors, threads, Vec::new, |(key, record), buffer| {
                    note(self.source.verify_tensor(key, record, buffer))
                })
            });
        let mut problems = problems.into_inner().unwrap_or_else(PoisonError::into_inner);
        problems.extend(read.err());
        problems.extend(self.strangers());
        problems.sort_by_cached_key(Error::to_string);
        problems
    }

    /// What is in the folder and not in the manifest.
    fn strangers(&self) -> Vec<Error> {
        let entries = match self.disk.list(self.path()) {
            Ok(entries) => entries,
            // Pruned meanwhile: what is open is all there is.
            Err(e) if e.kind() == std::io::ErrorKind::NotFound => return Vec::new(),
            Err(e) => return vec![Error::io("list the folder", self.path(), e)],
        };
        let manifest = &self.source.manifest;
        let ours =
            |name: &str| name == MANIFEST || manifest.files.contains_key(name) || manifest.assets.contains_key(name);
        let mut strangers: Vec<String> =
            entries.into_iter().map(|entry| entry.name).filter(|name| !ours(name)).collect();
        strangers.sort();
        strangers
            .iter()
            .map(|name| {
                Error::damaged(self.path().join(name), "the manifest does not list this file: it was added later")
            })
            .collect()
    }
}

/// Checks every byte of the checkpoint in the folder `path`, and that the folder holds nothing else. Returns all that is
/// wrong, in a fixed order; nothing when the checkpoint is intact.
///
/// As [`CheckpointReader::open`] and [`CheckpointReader::verify`], but a file that is missing or has another length
/// does not keep the others from being checked.
///
/// ```
/// # fn main() -> Result<(), Box<dyn std::error::Error>> {
/// # let folder = tempfile::tempdir()?;
/// # let dir = folder.path();
/// use tch_checkpoint::{Checkpoint, Counter, verify_checkpoint};
/// let path = Checkpoint::new().track("step", &Counter::new(7))?.write(dir.join("seven"))?;
/// assert!(verify_checkpoint(&path).is_empty());
/// std::fs::write(path.join("notes.txt"), "not ours")?;
/// assert_eq!(verify_checkpoint(&path).len(), 1);
/// # Ok(())
/// # }
/// ```
pub fn verify_checkpoint(path: impl AsRef<Path>) -> Vec<Error> {
    let disk: Arc<dyn Disk> = Arc::new(LocalDisk);
    match Source::open_what_is_whole(&disk, path.as_ref()) {
        Ok((source, mut problems)) => {
            problems.extend(CheckpointReader { source, disk }.verify());
            problems
        }
        Err(problem) => vec![problem],
    }
}
