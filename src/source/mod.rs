//! What a checkpoint is read from. Opened files stay readable until they are dropped, even when the checkpoint is
//! pruned meanwhile.

mod tensor_source;

pub use tensor_source::{TensorSource, VerifiedBy};

use crate::error::{Error, Result, is_unreadable_data};
use crate::format::safetensors::{Header, parse_header};
use crate::format::{Digest, Hasher, Manifest, TensorRecord};
use crate::graph::Saved;
use crate::name;
use crate::store::{Disk, OldFile, open_failed, read_manifest};
use std::collections::BTreeMap;
use std::ops::Range;
use std::path::{Path, PathBuf};
use std::sync::Arc;

/// Bytes read at a time: few enough to be digested before they leave the core's cache.
pub(crate) const CHUNK: usize = 512 << 10;

/// How often to look again at a checkpoint that another takes the place of.
const ATTEMPTS: usize = 10;

/// A checkpoint that is open for reading.
pub(crate) struct Source {
    pub path: PathBuf,
    pub manifest: Manifest,
    disk: Arc<dyn Disk>,
    files: BTreeMap<String, Box<dyn OldFile>>,
}

impl std::fmt::Debug for Source {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Source").field("path", &self.path).finish_non_exhaustive()
    }
}

impl Source {
    /// Opens the checkpoint in the folder `path`: its manifest must be sound, and all its files be there in full length.
    pub(crate) fn open(disk: &Arc<dyn Disk>, path: &Path) -> Result<Source> {
        let (source, problems) = Source::open_what_is_whole(disk, path)?;
        problems.into_iter().next().map_or(Ok(source), Err)
    }

    /// As [`open`](Source::open), but files that cannot be opened or have another length are left out, and returned
    /// as problems.
    pub(crate) fn open_what_is_whole(disk: &Arc<dyn Disk>, path: &Path) -> Result<(Source, Vec<Error>)> {
        let mut manifest = read_manifest(&**disk, path)?;
        for _ in 0..ATTEMPTS {
            let (source, problems) = Source::open_files(disk, path, manifest);
            if problems.is_empty() {
                return Ok((source, problems));
            }
            // Beside a writer the checkpoint may have been removed, or replaced, since its manifest was read.
            let now = read_manifest(&**disk, path);
            match now {
                Err(Error::NotFound { .. }) => return Err(removed(path)),
                Err(Error::Io { action, path, source }) => return Err(Error::Io { action, path, source }),
                Ok(now) if now != source.manifest => manifest = now,
                _ => return Ok((source, problems)),
            }
        }
        Err(removed(path))
    }

    /// Opens the files that `manifest` names.
    fn open_files(disk: &Arc<dyn Disk>, path: &Path, manifest: Manifest) -> (Source, Vec<Error>) {
        let mut files = BTreeMap::new();
        let mut problems = Vec::new();
        let components = manifest.files.iter().map(|(name, entry)| (name, entry.bytes));
        for (name, bytes) in components.chain(manifest.assets.iter().map(|(name, entry)| (name, entry.bytes))) {
            match open_whole(&**disk, &path.join(name), bytes) {
                Ok(file) => drop(files.insert(name.clone(), file)),
                Err(problem) => problems.push(problem),
            }
        }
        (Source { path: path.to_path_buf(), manifest, disk: disk.clone(), files }, problems)
    }

    /// Whether the file `name` is open.
    pub(crate) fn has_file(&self, name: &str) -> bool {
        self.files.contains_key(name)
    }

    fn file(&self, name: &str) -> Result<&dyn OldFile> {
        let file = self.files.get(name).map(|file| &**file);
        file.ok_or_else(|| Error::damaged(self.path.join(name), "the manifest does not list this file"))
    }

    /// Fills `buffer` from `offset` of a file.
    pub(crate) fn read(&self, file: &str, offset: u64, buffer: &mut [u8]) -> Result<()> {
        let open = self.file(file)?;
        let read = match open.read_exact_at(offset, buffer) {
            // A device that is asked again may read what it could not.
            Err(e) if is_unreadable_data(&e) => open.read_exact_at(offset, buffer),
            read => read,
        };
        read.map_err(|e| self.read_failed(&self.path.join(file), e))
    }

    /// A file that ends early is a damaged one, whatever its length was at the opening; and so is one that the device
    /// cannot read, if it can read the directory and the manifest: else the device may be what is missing.
    fn read_failed(&self, path: &Path, e: std::io::Error) -> Error {
        if e.kind() == std::io::ErrorKind::UnexpectedEof {
            return Error::damaged(path, "the file ends early");
        }
        if !is_unreadable_data(&e) {
            return Error::io("read", path, e);
        }
        let listed = self.disk.list(&self.path).map_err(|e| Error::io("list the folder", &self.path, e));
        match listed.and_then(|_| read_manifest(&*self.disk, &self.path)) {
            Err(Error::Io { action, path, source }) => Error::Io { action, path, source },
            _ => Error::damaged(path, format!("the device cannot read it: {e}")),
        }
    }

    /// Checks everything before the tensors of the file `name`.
    pub(crate) fn verify_header(&self, name: &str) -> Result<()> {
        let Some(entry) = self.manifest.files.get(name) else {
            return Ok(());
        };
        self.verify_start(name, "its header", entry.header.bytes, entry.header.digest, |_| Ok(()))
    }

    /// Checks everything before the tensors of the file `name`, and reads it; `None` for a file that the manifest does not
    /// list.
    pub(crate) fn read_header(&self, name: &str) -> Result<Option<Header>> {
        let Some(entry) = self.manifest.files.get(name) else {
            return Ok(None);
        };
        let mut header = Vec::new();
        self.verify_start(name, "its header", entry.header.bytes, entry.header.digest, |chunk| {
            header.extend_from_slice(chunk);
            Ok(())
        })?;
        parse_header(&header, entry.bytes).map(Some).map_err(|e| e.at(self.path.join(name)))
    }

    /// Checks all of the asset `name`, and passes its bytes on.
    pub(crate) fn verify_asset(&self, name: &str, with: impl FnMut(&[u8]) -> Result<()>) -> Result<()> {
        let Some(entry) = self.manifest.assets.get(name) else {
            return Err(Error::damaged(self.path.join(name), "the manifest does not list this file"));
        };
        self.verify_start(name, "it", entry.bytes, entry.digest, with)
    }

    /// Checks the digest of a file's first bytes, chunk by chunk.
    fn verify_start(
        &self,
        name: &str,
        what: &str,
        bytes: u64,
        written: Digest,
        mut with: impl FnMut(&[u8]) -> Result<()>,
    ) -> Result<()> {
        let mut hasher = Hasher::new();
        let mut buffer = vec![0; bytes.min(CHUNK as u64) as usize];
        let mut offset = 0;
        while offset < bytes {
            let length = (bytes - offset).min(CHUNK as u64) as usize;
            self.read(name, offset, &mut buffer[..length])?;
            hasher.update(&buffer[..length]);
            with(&buffer[..length])?;
            offset += length as u64;
        }
        match hasher.finish() {
            found if found == written => Ok(()),
            found => Err(changed(&self.path.join(name), what, found, written)),
        }
    }

    /// Reads a tensor chunk by chunk, in order, and checks its digest at the end.
    pub(crate) fn verify_tensor(&self, key: &str, record: &TensorRecord, buffer: &mut Vec<u8>) -> Result<()> {
        let mut hasher = Hasher::new();
        // Most tensors are small: for them a whole chunk of memory would be dearer than their bytes.
        let largest = record.pieces.iter().map(|piece| piece.end - piece.begin).max().unwrap_or(0);
        let needed = largest.min(CHUNK as u64) as usize;
        if buffer.len() < needed {
            buffer.resize(needed, 0);
        }
        for piece in &record.pieces {
            let mut offset = piece.begin;
            while offset < piece.end {
                let length = (piece.end - offset).min(CHUNK as u64) as usize;
                self.read(&piece.file, offset, &mut buffer[..length])?;
                hasher.update(&buffer[..length]);
                offset += length as u64;
            }
        }
        self.check_tensor(key, record, hasher.finish())
    }

    /// Reads a tensor into `target`, which has its exact size, and checks the digest of what came if it is to `verify`.
    pub(crate) fn read_tensor(&self, key: &str, record: &TensorRecord, target: &mut [u8], verify: bool) -> Result<()> {
        let mut hasher = Hasher::new();
        let mut rest = target;
        for piece in &record.pieces {
            let mut offset = piece.begin;
            while offset < piece.end {
                let length = (rest.len().min(CHUNK) as u64).min(piece.end - offset) as usize;
                if length == 0 {
                    return Err(Error::object(key, "its memory is smaller than the saved tensor"));
                }
                let (chunk, tail) = rest.split_at_mut(length);
                self.read(&piece.file, offset, chunk)?;
                if verify {
                    hasher.update(chunk);
                }
                offset += length as u64;
                rest = tail;
            }
        }
        if verify { self.check_tensor(key, record, hasher.finish()) } else { Ok(()) }
    }

    /// Reads tensors that follow one another in a file, at once, into `buffer`.
    pub(crate) fn read_run(&self, run: Range<u64>, file: &str, buffer: &mut Vec<u8>) -> Result<()> {
        buffer.resize((run.end - run.start) as usize, 0);
        self.read(file, run.start, buffer)
    }

    /// Compares a tensor's digest with what was written.
    pub(crate) fn check_tensor(&self, key: &str, record: &TensorRecord, found: Digest) -> Result<()> {
        if found == record.digest {
            return Ok(());
        }
        let file = record.pieces.first().map_or_else(|| self.path.clone(), |piece| self.path.join(&piece.file));
        Err(changed(&file, &format!("the tensor {}", name::shown(key)), found, record.digest))
    }

    /// What the checkpoint holds, as a tree.
    pub(crate) fn saved(&self) -> Saved {
        let mut root = Saved::default();
        for (key, record) in &self.manifest.tensors {
            descend(&mut root, key).tensor = Some(record.spec.clone());
        }
        for key in self.manifest.values.keys() {
            descend(&mut root, key).has_value = true;
        }
        root
    }
}

/// Opens a file of a checkpoint, which must have the length it was written with.
fn open_whole(disk: &dyn Disk, path: &Path, bytes: u64) -> Result<Box<dyn OldFile>> {
    let file = match disk.open(path) {
        Err(e) if is_unreadable_data(&e) => disk.open(path),
        result => result,
    };
    let file = match file {
        Err(e) if e.kind() == std::io::ErrorKind::NotFound => return Err(Error::damaged(path, "the file is missing")),
        Err(e) if is_unreadable_data(&e) => {
            return Err(Error::damaged(path, format!("the device cannot read it: {e}")));
        }
        result => result.map_err(|e| open_failed(path, e))?,
    };
    let length = file.len().map_err(|e| Error::io("read", path, e))?;
    if length != bytes {
        return Err(Error::damaged(path, format!("it has {length} bytes, {bytes} were written")));
    }
    Ok(file)
}

/// The error for a checkpoint that was there a moment ago.
fn removed(path: &Path) -> Error {
    let reason = "it was removed while it was being opened; ask `latest_checkpoint` for the newest".to_string();
    Error::NotFound { path: path.to_path_buf(), reason }
}

/// The place of a key in the tree, made if need be.
fn descend<'a>(root: &'a mut Saved, key: &str) -> &'a mut Saved {
    let path = name::path(key).unwrap_or_default();
    path.into_iter().fold(root, |node, part| node.children.entry(part).or_default())
}

fn changed(path: &Path, what: &str, found: Digest, written: Digest) -> Error {
    Error::damaged(path, format!("{what} is not what was written: its digest is {found}, it was {written}"))
}
