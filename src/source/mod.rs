//! An open checkpoint: a directory that is held open, and its files, of which the first [`HELD`] are held open too, as long
//! as all checkpoints of the process leave it some of the files that it may open ([`places`]). These stay readable until
//! they are dropped, even if the checkpoint is pruned.

mod attributes;
mod tensor_source;

pub use attributes::SourceAttributes;
pub(crate) use attributes::{SOURCES, of};
pub use tensor_source::{TensorSource, VerifiedBy};
pub(crate) use tensor_source::{check, check_range, check_target, digest, no_such_tensor, number, room};

use crate::dtype::TensorSpec;
use crate::error::{Error, Result, is_unreadable_data};
use crate::format::safetensors::{Header, parse_header};
use crate::format::{Digest, Hasher, Manifest, Mark, TensorRecord};
use crate::graph::SavedTree;
use crate::location::Location;
use crate::name;
use crate::repository::{
    Directory, FileId, Kind, OpenDir, ReadFile, Storage, Thinned, checkpoint_failed, marks_in, open_failed,
    read_manifest, thinned_in,
};
use std::collections::BTreeMap;
use std::ffi::OsString;
use std::ops::Range;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, OnceLock};

/// Bytes read at a time: few enough to be digested before they leave the core's cache.
pub(crate) const CHUNK: usize = 512 << 10;

/// How many times opening is retried if another checkpoint replaces the one being opened.
const ATTEMPTS: usize = 10;

/// The number of files of a checkpoint that are opened with it and held open. The others are opened for each read and
/// must not have changed.
const HELD: usize = 256;

/// Returns the number of files that the process holds open for all checkpoints: three quarters of those that it may open,
/// 768 of the usual 1,024.
fn places() -> usize {
    static PLACES: OnceLock<usize> = OnceLock::new();
    *PLACES.get_or_init(|| {
        let limit = rustix::process::getrlimit(rustix::process::Resource::Nofile).current;
        limit.and_then(|limit| usize::try_from(limit).ok()).unwrap_or(usize::MAX) / 4 * 3
    })
}

/// A checkpoint that is open for reading.
pub struct Source {
    /// The location at which it was opened.
    pub path: Location,
    /// Its manifest, without the components that were removed.
    pub manifest: Manifest,
    /// The components that were removed after the commit, with their files, which may still exist.
    pub(crate) thinned: BTreeMap<String, Vec<String>>,
    dir: Arc<dyn OpenDir>,
    files: BTreeMap<String, SourceFile>,
}

struct SourceFile {
    id: FileId,
    held: Option<Held>,
}

/// A file that is held open.
struct Held {
    file: Box<dyn ReadFile>,
    _place: Place,
}

/// One of the [`places`] of the process.
struct Place;

static TAKEN: AtomicUsize = AtomicUsize::new(0);

impl Place {
    fn take() -> Option<Place> {
        let more = |taken| (taken < places()).then_some(taken + 1);
        TAKEN.fetch_update(Ordering::Relaxed, Ordering::Relaxed, more).ok().map(|_| Place)
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        TAKEN.fetch_sub(1, Ordering::Relaxed);
    }
}

impl std::fmt::Debug for Source {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Source").field("path", &self.path).finish_non_exhaustive()
    }
}

impl Source {
    /// Opens the checkpoint in the directory `path`. The manifest must be valid, and all files must exist with their
    /// full length. Follows symbolic links in the path.
    ///
    /// # Errors
    /// [`Error::NotFound`], [`Error::Damaged`], [`Error::Unsupported`], [`Error::Io`].
    pub fn open(storage: &dyn Storage, path: impl Into<Location>) -> Result<Source> {
        let (source, problems) = Source::open_what_is_whole(storage, &path.into())?;
        problems.into_iter().next().map_or(Ok(source), Err)
    }

    /// Opens the checkpoint `name` of a directory of checkpoints. Refuses a symbolic link of that name.
    pub(crate) fn open_in(directory: &Directory, name: &str) -> Result<Source> {
        Source::open_named(directory, name, true)
    }

    /// Like [`open_in`](Source::open_in), but closes every file at once: many checkpoints are examined at a time, and a
    /// process may have few files open.
    pub(crate) fn examine_in(directory: &Directory, name: &str) -> Result<Source> {
        Source::open_named(directory, name, false)
    }

    fn open_named(directory: &Directory, name: &str, holds: bool) -> Result<Source> {
        directory.dir()?;
        let path = directory.path(name);
        let open = || directory.open(name).map_err(|e| checkpoint_failed(&path, e));
        let read = &mut |dir: &dyn OpenDir| read_content(dir, &path);
        let (source, problems) = Source::open_again_and_again(&open, read, &path, holds)?;
        problems.into_iter().next().map_or(Ok(source), Err)
    }

    /// Like [`open`](Source::open), with what `read` returns of the content: only the files in that are opened.
    pub(crate) fn open_part(
        storage: &dyn Storage,
        path: &Location,
        read: &mut dyn FnMut(&dyn OpenDir) -> Result<Content>,
    ) -> Result<Source> {
        let (source, problems) = Source::open_again_and_again(&|| storage.open(path), read, path, true)?;
        problems.into_iter().next().map_or(Ok(source), Err)
    }

    /// Like [`open`](Source::open), but leaves out files that cannot be opened or have another length, and returns them
    /// as problems.
    pub(crate) fn open_what_is_whole(storage: &dyn Storage, path: &Location) -> Result<(Source, Vec<Error>)> {
        Source::open_again_and_again(&|| storage.open(path), &mut |dir| read_content(dir, path), path, true)
    }

    fn open_again_and_again(
        open: &dyn Fn() -> Result<Arc<dyn OpenDir>>,
        read: &mut dyn FnMut(&dyn OpenDir) -> Result<Content>,
        path: &Location,
        holds: bool,
    ) -> Result<(Source, Vec<Error>)> {
        for _ in 0..ATTEMPTS {
            let dir = open()?;
            let content = read(&*dir)?;
            let (source, problems) = Source::open_files(dir, path, content, holds);
            if problems.is_empty() {
                return Ok((source, problems));
            }
            // A writer may have removed or replaced the checkpoint, or a component, since its manifest was read.
            let id = |dir: &dyn OpenDir| dir.stat().map(|stat| stat.id).ok();
            match open() {
                Err(Error::NotFound { .. }) => return Err(removed(path)),
                Ok(now) if id(&*now) != id(&*source.dir) => {}
                Ok(now) => match read(&*now) {
                    Err(Error::NotFound { .. }) => return Err(removed(path)),
                    Err(error @ Error::Io { .. }) => return Err(error),
                    Ok(now) if now.manifest != source.manifest => {}
                    _ => return Ok((source, problems)),
                },
                Err(error) => return Err(error),
            }
        }
        Err(removed(path))
    }

    /// Opens the files that the manifest names. Closes them again unless it `holds` them.
    fn open_files(dir: Arc<dyn OpenDir>, path: &Location, content: Content, holds: bool) -> (Source, Vec<Error>) {
        let Content { manifest, thinned, unread } = content;
        let mut files = BTreeMap::new();
        let (mut problems, mut any_missing) = (Vec::new(), false);
        let components = manifest.files.iter().map(|(name, entry)| (name, entry.bytes));
        for (name, bytes) in components.chain(manifest.assets.iter().map(|(name, entry)| (name, entry.bytes))) {
            match open_whole(&*dir, name, &path.join(name), bytes, files.len() < HELD) {
                Ok((id, file)) => {
                    let held = file.filter(|_| holds).and_then(|file| Some(Held { file, _place: Place::take()? }));
                    files.insert(name.clone(), SourceFile { id, held });
                }
                Err(problem) => {
                    any_missing |= matches!(dir.stat_of(name.as_ref()), Ok(None));
                    problems.push(problem);
                }
            }
        }
        // It may have been removed on purpose.
        if let Some(unread) = unread.filter(|_| any_missing) {
            problems.insert(0, unread);
        }
        (Source { path: path.clone(), manifest, thinned, dir, files }, problems)
    }

    /// Returns `true` if the file `name` can be read.
    pub(crate) fn has_file(&self, name: &str) -> bool {
        self.files.contains_key(name)
    }

    /// Returns the names in the checkpoint's directory, or none if it was removed meanwhile.
    pub(crate) fn names(&self) -> Result<Vec<OsString>> {
        match self.dir.list() {
            Err(e) if e.kind() == std::io::ErrorKind::NotFound => Ok(Vec::new()),
            Err(e) => Err(Error::io("list the checkpoint", &self.path, e)),
            Ok(entries) => Ok(entries.into_iter().map(|entry| entry.name).collect()),
        }
    }

    /// Returns the marks of the checkpoint: none if it was removed meanwhile. Marks that cannot be read are ignored.
    pub(crate) fn marks(&self) -> Result<Vec<Mark>> {
        let of = self.manifest.id();
        match marks_in(&*self.dir, &self.path) {
            Err(Error::Io { source, .. }) if source.kind() == std::io::ErrorKind::NotFound => Ok(Vec::new()),
            marks => {
                let marks = marks?.into_iter().filter_map(|(_, bytes)| Mark::from_bytes(&bytes).ok());
                Ok(marks.filter(|mark| mark.of == of).collect())
            }
        }
    }

    /// Fills `buffer` from a file, starting at `offset`.
    pub(crate) fn read(&self, file: &str, offset: u64, buffer: &mut [u8]) -> Result<()> {
        let path = self.path.join(file);
        let Some(known) = self.files.get(file) else {
            return Err(Error::damaged(path, "the manifest does not list this file"));
        };
        let again;
        let open = match &known.held {
            Some(held) => &*held.file,
            None => {
                again = self.open_again(file, known, &path)?;
                &*again
            }
        };
        let read = match open.read_exact_at(offset, buffer) {
            // A second attempt may succeed.
            Err(e) if is_unreadable_data(&e) => open.read_exact_at(offset, buffer),
            read => read,
        };
        read.map_err(|e| self.read_failed(&path, e))
    }

    /// A file that ends early is damaged, whatever its length was when it was opened. So is a file that the device
    /// cannot read although it can read the directory and the manifest; if it cannot read those either, the device may
    /// be unavailable.
    fn read_failed(&self, path: &Location, e: std::io::Error) -> Error {
        if e.kind() == std::io::ErrorKind::UnexpectedEof {
            return Error::damaged(path, "the file ends early");
        }
        if !is_unreadable_data(&e) {
            return Error::io("read", path, e);
        }
        match self.names().and_then(|_| read_manifest(&*self.dir, &self.path)) {
            Err(error @ Error::Io { .. }) => error,
            _ => Error::damaged(path, format!("the device cannot read it: {e}")),
        }
    }

    /// Opens a file that is not held open. It must be the file that was checked when the checkpoint was opened.
    fn open_again(&self, name: &str, known: &SourceFile, path: &Location) -> Result<Box<dyn ReadFile>> {
        let opened = self.dir.open(name.as_ref()).and_then(|file| Ok((file.stat()?.id, file)));
        match opened {
            Ok((id, file)) if id == known.id => Ok(file),
            Ok(_) => Err(Error::damaged(path, "it was exchanged while the checkpoint was being read")),
            Err(e) if e.kind() == std::io::ErrorKind::NotFound => Err(removed(&self.path)),
            Err(e) => Err(open_failed(path, e)),
        }
    }

    /// Checks everything before the tensors of the file `name`.
    ///
    /// # Errors
    /// [`Error::Damaged`], [`Error::Io`].
    pub fn verify_header(&self, name: &str) -> Result<()> {
        let Some(entry) = self.manifest.files.get(name) else {
            return Ok(());
        };
        self.verify_start(name, "its header", entry.header.bytes, entry.header.digest, |_| Ok(()))
    }

    /// Checks everything before the tensors of the file `name`, and reads it; `None` for a file that the manifest does
    /// not list.
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

    /// Verifies the asset `name` completely and passes its bytes to `with`.
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
    ///
    /// # Errors
    /// [`Error::Damaged`], [`Error::Io`].
    pub fn verify_tensor(&self, key: &str, record: &TensorRecord, buffer: &mut Vec<u8>) -> Result<()> {
        let mut hasher = Hasher::new();
        // Most tensors are small: allocating a full chunk would take longer than reading them.
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

    /// Reads a tensor into `target`, which has its exact size. Checks the digest if `verify` is set.
    ///
    /// # Errors
    /// [`Error::Damaged`], [`Error::Io`].
    pub fn read_tensor(&self, key: &str, record: &TensorRecord, target: &mut [u8], verify: bool) -> Result<()> {
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

    /// Reads tensors that are consecutive in a file into `buffer`, in one read.
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

    /// Returns the component of the object `key`, as the first part of the key, and the reason, if the checkpoint lacks
    /// the complete component.
    pub(crate) fn lacks(&self, key: &str) -> Option<(String, String)> {
        if self.manifest.without.is_empty() {
            return None;
        }
        let first = name::component(key);
        let component = name::path(first)?.pop()?;
        self.manifest.without.binary_search(&component).ok()?;
        let why = match self.thinned.contains_key(&component) {
            true => "was removed from it (`keep_component`)",
            false => "was left out of it (`Preemption::save_only`)",
        };
        let reason =
            format!("the component {} {why}, so that a run cannot be resumed from it", name::shown(&component));
        Some((first.to_string(), reason))
    }

    /// Returns the content of the checkpoint, as a tree.
    pub(crate) fn saved(&self) -> SavedTree {
        let tensors = self.manifest.tensors.iter().map(|(key, record)| (key, &record.spec));
        let was_trained =
            |key: &str| self.manifest.tensors.get(key).is_some_and(|record| record.requires_grad == Some(true));
        tree(tensors, self.manifest.values.keys(), was_trained)
    }
}

/// The content of a checkpoint, or a part of it.
pub(crate) struct Content {
    /// Without the components that were removed.
    pub manifest: Manifest,
    /// These, with their files.
    pub thinned: BTreeMap<String, Vec<String>>,
    /// Why it is unknown which components were removed.
    pub unread: Option<Error>,
}

/// Reads the manifest in the checkpoint `dir`, and which components were removed since.
pub(crate) fn read_content(dir: &dyn OpenDir, path: &Location) -> Result<Content> {
    let mut manifest = read_manifest(dir, path)?;
    let Thinned { components, unread } = thinned_in(dir, path, &manifest.id());
    let thinned = manifest.take_out(&components);
    Ok(Content { manifest, thinned, unread })
}

/// Opens a file of a checkpoint, which must have the length it was written with. Only checks it if it is not to be held
/// open.
fn open_whole(
    dir: &dyn OpenDir,
    name: &str,
    path: &Location,
    bytes: u64,
    hold: bool,
) -> Result<(FileId, Option<Box<dyn ReadFile>>)> {
    let missing = || Error::damaged(path, "the file is missing");
    let open = || if hold { dir.open(name.as_ref()).map(Some) } else { Ok(None) };
    let opened = open().or_else(|e| if is_unreadable_data(&e) { open() } else { Err(e) });
    let file = match opened {
        Err(e) if is_unreadable_data(&e) => {
            return Err(Error::damaged(path, format!("the device cannot read it: {e}")));
        }
        Err(e) if e.kind() == std::io::ErrorKind::NotFound => return Err(missing()),
        result => result.map_err(|e| open_failed(path, e))?,
    };
    let stat = match &file {
        Some(file) => file.stat().map(Some),
        None => dir.stat_of(name.as_ref()),
    };
    let stat = stat.map_err(|e| Error::io("read", path, e))?.ok_or_else(missing)?;
    match stat.kind {
        Kind::File if stat.length == bytes => Ok((stat.id, file)),
        Kind::File => Err(Error::damaged(path, format!("it has {} bytes, {bytes} were written", stat.length))),
        Kind::Link => Err(open_failed(path, rustix::io::Errno::LOOP.into())),
        _ => Err(Error::damaged(path, "it is not a regular file")),
    }
}

/// Returns the error for a checkpoint that was removed while it was being opened.
fn removed(path: &Location) -> Error {
    let reason = "it was removed while it was being opened; ask `latest_checkpoint` for the newest".to_string();
    Error::not_found(path, reason)
}

/// Returns tensors, variables that were trained among them, and values as a tree.
pub(crate) fn tree<'a>(
    tensors: impl Iterator<Item = (&'a String, &'a TensorSpec)>,
    values: impl Iterator<Item = &'a String>,
    was_trained: impl Fn(&str) -> bool,
) -> SavedTree {
    let mut root = SavedTree::default();
    for (key, spec) in tensors {
        let node = descend(&mut root, key);
        (node.tensor, node.was_trained) = (Some(spec.clone()), was_trained(key));
    }
    for key in values {
        descend(&mut root, key).has_value = true;
    }
    root
}

/// Returns the node of a key in the tree, created if necessary.
fn descend<'a>(root: &'a mut SavedTree, key: &str) -> &'a mut SavedTree {
    let path = name::path(key).unwrap_or_default();
    path.into_iter().fold(root, |node, part| node.children.entry(part).or_default())
}

fn changed(path: &Location, what: &str, found: Digest, written: Digest) -> Error {
    Error::damaged(path, format!("{what} is not what was written: its digest is {found}, it was {written}"))
}
