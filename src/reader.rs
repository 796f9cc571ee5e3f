//! `CheckpointReader`: the content of a checkpoint, without objects to restore into and without libtorch.

use crate::dtype::TensorSpec;
use crate::error::{Error, Result};
use crate::format::{
    Digest, Manifest, SAVED_MODEL_FILE, SavedModelInfo, TensorRecord, check_saved_model_length, is_mark_file,
};
use crate::graph;
use crate::interop::durable::DurableFile;
use crate::location::Location;
use crate::name::nearest_hint;
use crate::parallel;
use crate::progress::{Observer, Tally};
use crate::repository::{Directory, MANIFEST, Posix, Storage, checkpoint_name, parent_of};
use crate::save::{self, AssetStream, SaveOptions};
use crate::source::Source;
use serde::de::DeserializeOwned;
use std::collections::{BTreeMap, HashSet, btree_map};
use std::iter::Map;
use std::path::Path;
use std::sync::{Mutex, PoisonError};

/// Reads and verifies a checkpoint: names, types, shapes, values, bytes.
///
/// ```
/// # fn main() -> Result<(), Box<dyn std::error::Error>> {
/// # let temp = tempfile::tempdir()?;
/// # let dir = temp.path();
/// use tch_checkpoint::{Checkpoint, CheckpointReader, Counter};
/// let path = Checkpoint::new().track("step", &Counter::new(7))?.write(dir.join("seven"))?;
/// let reader = CheckpointReader::open(&path)?;
/// assert_eq!(reader.manifest().values["step"], 7);
/// assert!(reader.verify().is_intact());
/// # Ok(())
/// # }
/// ```
#[derive(Debug)]
pub struct CheckpointReader {
    pub(crate) source: Source,
}

impl CheckpointReader {
    /// Opens the checkpoint in the directory `path`. Its first 256 files stay readable while this reader lives, even if the
    /// checkpoint is pruned, as long as all readers of the process hold fewer than three quarters of the files that it may
    /// open (`ulimit -n`). Reading others is an error ([`Error::NotFound`]) once the checkpoint is pruned.
    ///
    /// # Errors
    /// [`Error::NotFound`], [`Error::Damaged`] (manifest, or a file missing or of another length),
    /// [`Error::Unsupported`], [`Error::Io`].
    pub fn open(path: impl Into<Location>) -> Result<CheckpointReader> {
        CheckpointReader::open_in(&Posix::default(), path)
    }

    /// Like [`open`](CheckpointReader::open), in a storage other than the operating system's file systems.
    ///
    /// # Errors
    /// As for [`open`](CheckpointReader::open); [`Error::InvalidArgument`] for a location that the storage does not
    /// serve.
    pub fn open_in(storage: &dyn Storage, path: impl Into<Location>) -> Result<CheckpointReader> {
        Ok(CheckpointReader { source: Source::open(storage, path)? })
    }

    /// Returns the directory.
    #[must_use]
    pub fn path(&self) -> &Location {
        &self.source.path
    }

    /// Returns the manifest: everything except the tensors' bytes.
    #[must_use]
    pub fn manifest(&self) -> &Manifest {
        &self.source.manifest
    }

    /// Returns the keys of all tensors, in order.
    ///
    /// ```
    /// # fn main() -> Result<(), Box<dyn std::error::Error>> {
    /// # let directory = tempfile::tempdir()?;
    /// # let dir = directory.path();
    /// use tch_checkpoint::{Checkpoint, CheckpointReader, Counter};
    /// let path = Checkpoint::new().track("step", &Counter::new(7))?.write(dir.join("seven"))?;
    /// let reader = CheckpointReader::open(path)?;
    /// assert_eq!(reader.keys().count(), 0);
    /// assert_eq!(reader.values().collect::<Vec<_>>(), [("step", &7.into())]);
    /// for (key, spec) in &reader {
    ///     println!("{key}: {spec}, {} bytes", reader.tensor(key)?.len());
    /// }
    /// # Ok(())
    /// # }
    /// ```
    pub fn keys(&self) -> impl ExactSizeIterator<Item = &str> + Clone {
        self.source.manifest.tensors.keys().map(String::as_str)
    }

    /// Returns the keys of all tensors with their types and shapes, in the order of the keys. Iterating over `&reader`
    /// does the same.
    #[must_use]
    pub fn tensors(&self) -> impl ExactSizeIterator<Item = (&str, &TensorSpec)> + Clone {
        self.into_iter()
    }

    /// Returns the values that are saved in the manifest, by key, in the order of the keys.
    #[must_use]
    pub fn values(&self) -> impl ExactSizeIterator<Item = (&str, &serde_json::Value)> + Clone {
        self.source.manifest.values.iter().map(|(key, value)| (key.as_str(), value))
    }

    /// Returns the type and shape of the tensor `key`, if there is one.
    #[must_use]
    pub fn spec(&self, key: &str) -> Option<&TensorSpec> {
        self.source.manifest.tensors.get(key).map(|record| &record.spec)
    }

    /// Returns the elements of the tensor `key`: row-major, little-endian, verified.
    ///
    /// # Errors
    /// [`Error::Object`] when there is no such tensor, [`Error::OutOfMemory`], [`Error::Damaged`], [`Error::Io`].
    pub fn tensor(&self, key: &str) -> Result<Vec<u8>> {
        let record = self.record(key)?;
        let length = record.spec.bytes().and_then(|bytes| usize::try_from(bytes).ok());
        let too_large = || Error::out_of_memory(format!("the tensor {key}"), record.spec.bytes());
        let mut bytes = Vec::new();
        bytes.try_reserve_exact(length.ok_or_else(too_large)?).map_err(|_| too_large())?;
        bytes.resize(length.unwrap_or_default(), 0);
        self.source.read_tensor(key, record, &mut bytes, true)?;
        Ok(bytes)
    }

    /// Fills `buffer` with bytes of the tensor `key`, starting at its byte `offset`. Use this to read a tensor in
    /// pieces. The bytes are not verified; call [`check_digest`](CheckpointReader::check_digest) with the digest of all
    /// of them at the end.
    ///
    /// # Errors
    /// [`Error::Object`] when there is no such tensor or it ends before, [`Error::Damaged`], [`Error::Io`].
    pub fn read_at(&self, key: &str, offset: u64, buffer: &mut [u8]) -> Result<()> {
        let record = self.record(key)?;
        let (mut skip, mut rest) = (offset, buffer);
        for piece in &record.pieces {
            let begin = piece.begin.saturating_add(skip).min(piece.end);
            skip = skip.saturating_sub(piece.end - piece.begin);
            let length = usize::try_from(piece.end - begin).map_or(rest.len(), |length| length.min(rest.len()));
            let (part, others) = rest.split_at_mut(length);
            self.source.read(&piece.file, begin, part)?;
            rest = others;
        }
        match rest.is_empty() {
            true => Ok(()),
            false => Err(Error::object(key, "the tensor ends before the bytes that were asked for")),
        }
    }

    /// Compares `digest`, which covers all bytes of the tensor `key` in order, with the recorded digest.
    ///
    /// # Errors
    /// [`Error::Object`] when there is no such tensor, [`Error::Damaged`] when the digest differs.
    pub fn check_digest(&self, key: &str, digest: Digest) -> Result<()> {
        self.source.check_tensor(key, self.record(key)?, digest)
    }

    fn record(&self, key: &str) -> Result<&TensorRecord> {
        let missing = || Error::object(key, format!("{} has no tensor of this name", self.path().display()));
        self.source.manifest.tensors.get(key).ok_or_else(missing)
    }

    /// Returns the metadata that the program recorded as `name`
    /// ([`Checkpoint::metadata`](crate::Checkpoint::metadata)), or `None`.
    /// [`Manifest::metadata`](crate::format::Manifest::metadata) has all metadata without a type.
    ///
    /// # Errors
    /// [`Error::Object`] when it does not fit the type.
    pub fn metadata<T: DeserializeOwned>(&self, name: &str) -> Result<Option<T>> {
        let value = self.manifest().metadata.get(name).map(graph::decode);
        value.transpose().map_err(|reason| Error::object(name, reason))
    }

    /// Returns the bytes of the asset `name`, verified.
    ///
    /// # Errors
    /// [`Error::Object`] if the checkpoint has no asset of this name; [`Error::Damaged`] if it is not what was written;
    /// [`Error::OutOfMemory`]; [`Error::Io`].
    pub fn asset(&self, name: &str) -> Result<Vec<u8>> {
        self.must_have(name)?;
        asset(&self.source, name)
    }

    fn must_have(&self, asset: &str) -> Result<()> {
        let assets = &self.manifest().assets;
        if assets.contains_key(asset) {
            return Ok(());
        }
        let hint = nearest_hint(asset, assets.keys().map(String::as_str));
        Err(Error::object(asset, format!("{} has no asset of this name{hint}", self.path().display())))
    }

    /// Fills `buffer` with bytes of the asset `name` from `offset`, for an asset that should not be held in memory
    /// completely. The bytes are not verified; see [`verify_asset`](CheckpointReader::verify_asset).
    ///
    /// # Errors
    ///
    /// [`Error::Object`] if the checkpoint has no asset of this name; [`Error::Damaged`] if it ends before;
    /// [`Error::Io`].
    pub fn read_asset_at(&self, name: &str, offset: u64, buffer: &mut [u8]) -> Result<()> {
        self.must_have(name)?;
        self.source.read(name, offset, buffer)
    }

    /// Reads the asset `name` and compares it with its digest.
    ///
    /// # Errors
    ///
    /// As for [`asset`](CheckpointReader::asset), except for memory.
    pub fn verify_asset(&self, name: &str) -> Result<()> {
        self.must_have(name)?;
        self.source.verify_asset(name, |_| Ok(()))
    }

    /// Writes the asset `name` to the file `path`, verified, atomically and durably. Replaces an existing file.
    ///
    /// # Errors
    /// As for [`asset`](CheckpointReader::asset), except `OutOfMemory`; [`Error::Io`] if the file cannot be written.
    pub fn copy_asset(&self, name: &str, path: impl AsRef<Path>) -> Result<()> {
        self.must_have(name)?;
        let file = DurableFile::create(path.as_ref())?;
        let mut written = 0;
        self.source.verify_asset(name, |chunk| {
            file.write_at(written, chunk)?;
            written += chunk.len() as u64;
            Ok(())
        })?;
        file.publish()
    }

    /// Copies the checkpoint to `path`, verified, with `assets` in addition to its own files, or in place of those with
    /// the same names. The copy is not part of the run: it follows no checkpoint. Returns the path.
    ///
    /// ```
    /// # fn main() -> Result<(), Box<dyn std::error::Error>> {
    /// # let directory = tempfile::tempdir()?;
    /// # let dir = directory.path();
    /// use tch_checkpoint::{AssetStream, Checkpoint, CheckpointReader, Counter, SaveOptions};
    /// let path = Checkpoint::new().track("step", Counter::new(7))?.write(dir.join("seven"))?;
    /// let card = AssetStream::new("card.md", 8, |out| out.write_all(b"# Seven\n"));
    /// let copy = CheckpointReader::open(path)?.copy_to(dir.join("published"), &SaveOptions::new(), [card])?;
    /// assert_eq!(CheckpointReader::open(copy)?.asset("card.md")?, b"# Seven\n");
    /// # Ok(())
    /// # }
    /// ```
    ///
    /// # Errors
    /// [`Error::Damaged`] if it differs from what was written; otherwise as for
    /// [`Checkpoint::write_with_assets`](crate::Checkpoint::write_with_assets). After an error, nothing exists at
    /// `path`.
    pub fn copy_to<'a>(
        &self,
        path: impl Into<Location>,
        options: &SaveOptions,
        assets: impl IntoIterator<Item = AssetStream<'a>>,
    ) -> Result<Location> {
        let (path, assets) = (&path.into(), assets.into_iter().collect());
        let directory = Directory::new(&Posix::default(), parent_of(path), &options.open_options())?;
        save::copy(&self.source, &directory, checkpoint_name(path)?, options, assets)
    }

    /// Returns the description of a saved model, or `None` if the checkpoint is not a saved model. Does not read the
    /// program.
    ///
    /// # Errors
    /// As for [`asset`](CheckpointReader::asset).
    pub fn saved_model(&self) -> Result<Option<SavedModelInfo>> {
        saved_model(&self.source)
    }

    /// Verifies every byte of every file, and that the headers of the files agree with the manifest. Bytes that several
    /// tensors share are read once.
    pub fn verify(&self) -> Verification {
        self.verify_as(false, &Observer::default().begin(0))
    }

    /// Like [`verify`](CheckpointReader::verify). If `quick`, reads neither tensors nor assets; `tally` counts the
    /// bytes that were read.
    pub(crate) fn verify_as(&self, quick: bool, tally: &Tally) -> Verification {
        let problems = Mutex::new(Vec::new());
        let note = |result: Result<()>| {
            problems.lock().unwrap_or_else(PoisonError::into_inner).extend(result.err());
            Ok(())
        };
        let manifest = &self.source.manifest;
        let files: Vec<&String> = manifest.files.keys().filter(|file| self.source.has_file(file)).collect();
        let mut assets: Vec<&String> = manifest.assets.keys().filter(|asset| self.source.has_file(asset)).collect();
        let mut tensors = self.tensors_to_verify();
        if quick {
            assets.clear();
            tensors.clear();
        }
        let threads = parallel::default_threads();
        let headers = Mutex::new(BTreeMap::new());
        let verify_header = |file: &&String, (): &mut ()| {
            note(self.source.read_header(file).map(|header| {
                headers.lock().unwrap_or_else(PoisonError::into_inner).extend(header.map(|it| ((*file).clone(), it)));
            }))
        };
        let verify_asset = |asset: &&String, (): &mut ()| {
            note(self.source.verify_asset(asset, |bytes| {
                tally.add(bytes.len() as u64);
                Ok(())
            }))
        };
        let read = parallel::for_each(&files, threads, || (), verify_header)
            .and_then(|()| parallel::for_each(&assets, threads, || (), verify_asset))
            .and_then(|()| {
                parallel::for_each(&tensors, threads, Vec::new, |(key, record), buffer| {
                    note(self.source.verify_tensor(key, record, buffer).map(|()| {
                        tally.add(record.spec.bytes().unwrap_or_default());
                    }))
                })
            });
        let headers = headers.into_inner().unwrap_or_else(PoisonError::into_inner);
        let mut problems = problems.into_inner().unwrap_or_else(PoisonError::into_inner);
        problems.extend(read.err());
        problems.extend(manifest.check_headers(&headers).map_err(|e| e.at(self.path().join(MANIFEST))).err());
        let mut verification = Verification { problems, unexpected: Vec::new() };
        match self.unexpected() {
            Ok(unexpected) => verification.unexpected = unexpected,
            Err(e) => verification.problems.push(e),
        }
        verification.problems.sort_by_cached_key(Error::to_string);
        verification
    }

    /// Returns the tensors whose files are open. Of a tensor under several keys, only the first is included.
    fn tensors_to_verify(&self) -> Vec<(&String, &TensorRecord)> {
        let mut seen = HashSet::new();
        let is_open = |record: &TensorRecord| record.pieces.iter().all(|piece| self.source.has_file(&piece.file));
        // Tensors that share their first piece share all pieces.
        let mut is_first = |record: &TensorRecord| {
            record.pieces.first().is_none_or(|piece| seen.insert((piece.file.clone(), piece.name.clone())))
        };
        let tensors = self.source.manifest.tensors.iter();
        tensors.filter(|(_, record)| is_open(record) && is_first(record)).collect()
    }

    /// Returns the files in the directory that are neither in the manifest nor marks, sorted.
    fn unexpected(&self) -> Result<Vec<Location>> {
        // If it was removed meanwhile, only the open files are left.
        let names = self.source.names()?;
        let manifest = &self.source.manifest;
        let is_ours = |name: &str| {
            name == MANIFEST
                || manifest.files.contains_key(name)
                || manifest.assets.contains_key(name)
                || self.source.thinned.values().flatten().any(|file| file == name)
                || is_mark_file(name)
                || name.starts_with(".tmp-mark-")
        };
        let others = names.into_iter().filter(|name| !name.to_str().is_some_and(is_ours));
        let mut others: Vec<Location> = others.map(|name| self.path().join(name)).collect();
        others.sort();
        Ok(others)
    }
}

fn asset(source: &Source, name: &str) -> Result<Vec<u8>> {
    let length = source.manifest.assets.get(name).map_or(0, |entry| entry.bytes);
    let mut bytes = Vec::new();
    let room = usize::try_from(length).ok().and_then(|length| bytes.try_reserve_exact(length).ok());
    room.ok_or_else(|| Error::out_of_memory(name, length))?;
    source.verify_asset(name, |chunk| {
        bytes.extend_from_slice(chunk);
        Ok(())
    })?;
    Ok(bytes)
}

/// Reads the description of a saved model; see [`CheckpointReader::saved_model`].
pub(crate) fn saved_model(source: &Source) -> Result<Option<SavedModelInfo>> {
    let Some(entry) = source.manifest.assets.get(SAVED_MODEL_FILE) else {
        return Ok(None);
    };
    let path = source.path.join(SAVED_MODEL_FILE);
    check_saved_model_length(entry.bytes).map_err(|e| e.at(&path))?;
    let bytes = asset(source, SAVED_MODEL_FILE)?;
    SavedModelInfo::from_bytes(&bytes).map(Some).map_err(|e| e.at(&path))
}

#[allow(clippy::into_iter_without_iter, reason = "`tensors` is that method")]
impl<'a> IntoIterator for &'a CheckpointReader {
    type Item = (&'a str, &'a TensorSpec);
    type IntoIter = Map<btree_map::Iter<'a, String, TensorRecord>, fn((&'a String, &'a TensorRecord)) -> Self::Item>;

    fn into_iter(self) -> Self::IntoIter {
        self.source.manifest.tensors.iter().map(|(key, record)| (key.as_str(), &record.spec))
    }
}

/// The result of verifying a checkpoint.
///
/// ```
/// # fn main() -> Result<(), Box<dyn std::error::Error>> {
/// # let temp = tempfile::tempdir()?;
/// # let dir = temp.path().join("run");
/// use tch_checkpoint::{Checkpoint, Counter, verify_checkpoint};
/// let path = Checkpoint::new().track("step", Counter::new(7))?.write(&dir)?;
/// assert!(verify_checkpoint(&path).is_intact());
///
/// std::fs::write(path.join("manifest.json"), "something else")?;
/// let verification = verify_checkpoint(&path);
/// assert!(!verification.is_intact() && verification.problems[0].is_damaged());
/// # Ok(())
/// # }
/// ```
#[derive(Debug, Default)]
#[non_exhaustive]
#[must_use = "a checkpoint is intact only if `is_intact` says so"]
pub struct Verification {
    /// Everything that is wrong, in a fixed order: changed bytes, missing files, headers that disagree with the
    /// manifest, and read errors.
    pub problems: Vec<Error>,
    /// Files and directories that the manifest does not list, sorted. They do not count as damage, and no reader uses
    /// them. The marks of a manager (`mark-*.json`, `.tmp-mark-*`) are not included.
    pub unexpected: Vec<Location>,
}

impl Verification {
    /// Returns `true` if every byte is what was written. Unexpected files do not matter.
    #[must_use]
    pub fn is_intact(&self) -> bool {
        self.problems.is_empty()
    }
}

/// Verifies every byte of the checkpoint in the directory `path`.
///
/// Like [`CheckpointReader::open`] followed by [`CheckpointReader::verify`], but verifies the other files if one is
/// missing or has another length. An error that prevents the checkpoint from being opened is reported as a problem,
/// too.
///
/// ```
/// # fn main() -> Result<(), Box<dyn std::error::Error>> {
/// # let temp = tempfile::tempdir()?;
/// # let dir = temp.path();
/// use tch_checkpoint::{Checkpoint, Counter, verify_checkpoint};
/// let path = Checkpoint::new().track("step", &Counter::new(7))?.write(dir.join("seven"))?;
/// std::fs::write(path.join("notes.txt"), "not ours")?;
/// let found = verify_checkpoint(&path);
/// assert!(found.is_intact());
/// assert_eq!(found.unexpected, [path.join("notes.txt")]);
/// # Ok(())
/// # }
/// ```
pub fn verify_checkpoint(path: impl Into<Location>) -> Verification {
    verify_checkpoint_as(path, false, &Observer::default().begin(0))
}

/// Like [`verify_checkpoint`]; see [`CheckpointReader::verify_as`].
pub(crate) fn verify_checkpoint_as(path: impl Into<Location>, quick: bool, tally: &Tally) -> Verification {
    match Source::open_what_is_whole(&Posix::default(), &path.into()) {
        Ok((source, mut problems)) => {
            let mut found = CheckpointReader { source }.verify_as(quick, tally);
            problems.append(&mut found.problems);
            Verification { problems, ..found }
        }
        Err(problem) => Verification { problems: vec![problem], unexpected: Vec::new() },
    }
}
