//! A folder of checkpoints: what is in it, and the few ways it may change. Each function is one guarantee.

use super::aside::{Aside, before_aside};
use super::spares::Spares;
use super::{Disk, Entry, NewFile};
use crate::error::{Error, Result};
use crate::format::{Index, MAX_MANIFEST_BYTES, Manifest};
use crate::parallel;
use std::collections::BTreeSet;
use std::hash::{BuildHasher, Hasher, RandomState};
use std::io;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};

/// The file that makes a folder a checkpoint.
pub(crate) const MANIFEST: &str = "manifest.json";
/// The index: a hint, never the truth.
pub(crate) const INDEX: &str = "checkpoint.json";
/// The lock file; it is never removed, since removing it would race with another taking it.
const LOCK: &str = ".lock";
/// A checkpoint being written.
const STAGING: &str = ".tmp-";
/// A checkpoint being removed.
pub(crate) const TRASH: &str = ".trash-";

/// Files of at least so many bytes are written past the page cache, and each is synced as soon as it is written.
pub(crate) const DIRECT: u64 = 8 << 20;
/// So many small files are synced at a time, where there is more than one thread.
const SYNCS: usize = 8;

/// What a finished save survives.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
#[non_exhaustive]
pub enum Durability {
    /// A power cut: every file and folder is synced to the device before the save counts as done. The default.
    #[default]
    PowerLoss,
    /// The death of the process, but not of the machine: nothing is synced, the system writes the data when it likes
    /// (within about 30 seconds on Linux). A power cut in between can lose the checkpoint, and with it older ones
    /// that were removed to make room; it is detected, never restored damaged.
    ProcessCrash,
}

/// A folder of checkpoints on some disk.
#[derive(Debug, Clone)]
pub(crate) struct Directory {
    disk: Arc<dyn Disk>,
    root: PathBuf,
    durability: Durability,
    /// Where the files of removed checkpoints go that the next one overwrites; `None` to remove them at once.
    spares: Option<Arc<Spares>>,
}

/// What [`Directory::scan`] finds.
#[derive(Debug, Default)]
pub(crate) struct Scan {
    /// Names of folders that hold a manifest or look like a checkpoint, unsorted.
    pub checkpoints: Vec<String>,
    /// Leftovers of a dead writer: safe to remove under the lock.
    pub leftovers: Vec<Entry>,
    /// What [`Directory::move_aside`] moved out of the numbering.
    pub aside: Vec<(Aside, String)>,
    /// The names of everything that is there, whatever it is.
    pub names: BTreeSet<String>,
}

/// The right to write into a directory, until dropped.
pub(crate) struct Lock(#[allow(dead_code)] Box<dyn Send + Sync>);

impl std::fmt::Debug for Lock {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Lock")
    }
}

impl Directory {
    pub(crate) fn new(disk: Arc<dyn Disk>, root: impl Into<PathBuf>, durability: Durability) -> Directory {
        Directory { disk, root: root.into(), durability, spares: None }
    }

    /// From now on the files of removed checkpoints are overwritten by the next.
    pub(crate) fn recycle(&mut self) {
        self.spares = Some(Arc::default());
    }

    /// Removes what is kept to be overwritten.
    pub(crate) fn clear_spares(&self) {
        if let Some(spares) = &self.spares {
            spares.clear(&*self.disk);
        }
    }

    pub(crate) fn root(&self) -> &Path {
        &self.root
    }

    pub(crate) fn disk(&self) -> &Arc<dyn Disk> {
        &self.disk
    }

    pub(super) fn path(&self, name: &str) -> PathBuf {
        self.root.join(name)
    }

    /// Creates the folder and its parents where they are missing, durably. A folder that is there may have been made
    /// by someone who died, or did not care, before its name was durable: that is made up for.
    pub(crate) fn create(&self) -> Result<()> {
        let mut missing = Vec::new();
        let mut folder = self.root.as_path();
        while !self.disk.exists(folder).map_err(|e| Error::io("look for", folder, e))? {
            missing.push(folder);
            match folder.parent() {
                Some(parent) if !parent.as_os_str().is_empty() => folder = parent,
                _ => break,
            }
        }
        match self.sync_dir(parent_of(folder)) {
            // What we may not read was made by someone else, long ago.
            Err(Error::Io { source, .. }) if source.kind() == io::ErrorKind::PermissionDenied => {}
            result => result?,
        }
        for folder in missing.into_iter().rev() {
            match self.disk.create_dir(folder) {
                // Another process made it at the same moment.
                Err(e) if e.kind() == io::ErrorKind::AlreadyExists => {}
                result => result.map_err(|e| Error::io("create the folder", folder, e))?,
            }
            self.sync_dir(parent_of(folder))?;
        }
        Ok(())
    }

    /// Makes the names in `folder` durable, where durability asks for it.
    pub(super) fn sync_dir(&self, folder: &Path) -> Result<()> {
        match self.durability {
            Durability::ProcessCrash => Ok(()),
            Durability::PowerLoss => self.disk.sync_dir(folder).map_err(|e| Error::io("sync the folder", folder, e)),
        }
    }

    fn sync_file(&self, file: &dyn NewFile, path: &Path) -> Result<()> {
        match self.durability {
            Durability::ProcessCrash => Ok(()),
            Durability::PowerLoss => file.sync().map_err(|e| Error::io("sync", path, e)),
        }
    }

    /// Takes the lock of the folder.
    pub(crate) fn lock(&self) -> Result<Lock> {
        let path = self.path(LOCK);
        let holder =
            format!("process {}, since {}", std::process::id(), chrono::Utc::now().format("%Y-%m-%d %H:%M:%S UTC"));
        match self.disk.lock(&path, &holder).map_err(|e| Error::io("lock", &path, e))? {
            Some(lock) => Ok(Lock(lock)),
            None => {
                let holder = self.read_text(LOCK, 1024).ok().and_then(|text| String::from_utf8(text).ok());
                let holder = holder.filter(|holder| !holder.is_empty()).unwrap_or_else(|| "it does not say who".into());
                Err(Error::Locked { path: self.root.clone(), holder })
            }
        }
    }

    /// What the folder holds. First makes durable what a killed predecessor may have renamed without syncing, so
    /// that nothing is acted upon that a power cut could still undo.
    pub(crate) fn scan_for_writing(&self) -> Result<Scan> {
        self.sync_dir(&self.root)?;
        self.scan()
    }

    /// What the folder holds; an empty scan where there is no folder.
    pub(crate) fn scan(&self) -> Result<Scan> {
        let entries = match self.disk.list(&self.root) {
            Err(e) if e.kind() == io::ErrorKind::NotFound => return self.nothing(),
            result => result.map_err(|e| Error::io("list the folder", &self.root, e))?,
        };
        let mut scan = Scan::default();
        for entry in entries {
            scan.names.insert(entry.name.clone());
            if is_leftover(&entry.name) {
                scan.leftovers.push(entry);
            } else if let Some((aside, _)) = entry.is_dir.then(|| before_aside(&entry.name)).flatten() {
                scan.aside.push((aside, entry.name));
            } else if entry.is_dir && !entry.name.starts_with('.') {
                scan.checkpoints.push(entry.name);
            }
        }
        scan.checkpoints.sort();
        Ok(scan)
    }

    /// An empty scan, unless the name of the folder is a link that leads nowhere: its disk may not be mounted.
    fn nothing(&self) -> Result<Scan> {
        match self.disk.exists(&self.root).map_err(|e| Error::io("look for", &self.root, e))? {
            false => Ok(Scan::default()),
            true => {
                let reason = "it is a link that leads nowhere; is the disk it leads to mounted?".to_string();
                Err(Error::NotFound { path: self.root.clone(), reason })
            }
        }
    }

    fn read_text(&self, name: &str, limit: u64) -> Result<Vec<u8>> {
        read_whole(&*self.disk, &self.path(name), limit)
    }

    /// Reads the manifest of the checkpoint `name`; does not look at its other files.
    pub(crate) fn manifest(&self, name: &str) -> Result<Manifest> {
        read_manifest(&*self.disk, &self.path(name))
    }

    /// The index, if there is a sound one.
    pub(crate) fn index(&self) -> Option<Index> {
        let bytes = self.read_text(INDEX, MAX_MANIFEST_BYTES as u64).ok()?;
        Index::from_bytes(&bytes).ok()
    }

    /// Replaces the index, durably and in one step. Only who has the directory's lock may.
    pub(crate) fn write_index(&self, _: &Lock, index: &Index) -> Result<()> {
        let staged = self.path(&format!("{STAGING}index-{}", nonce()));
        let result = self.write_small(&staged, &index.to_bytes()?).and_then(|()| {
            let path = self.path(INDEX);
            self.disk.replace(&staged, &path).map_err(|e| Error::io("rename", &path, e))?;
            self.sync_dir(&self.root)
        });
        if result.is_err() {
            let _ = self.disk.remove_file(&staged);
        }
        result
    }

    pub(super) fn write_small(&self, path: &Path, bytes: &[u8]) -> Result<()> {
        let file = self.disk.create(path).map_err(|e| Error::io("create", path, e))?;
        file.write_all_at(0, bytes).map_err(|e| Error::io("write", path, e))?;
        self.sync_file(&*file, path)
    }

    /// Whether nothing has the name `name`, so that a checkpoint can get it.
    pub(crate) fn must_be_free(&self, name: &str) -> Result<()> {
        let path = self.path(name);
        match self.disk.exists(&path).map_err(|e| Error::io("look for", &path, e))? {
            true => Err(Error::already_exists(path)),
            false => Ok(()),
        }
    }

    /// Begins a new checkpoint in a folder of its own that no reader looks at. `needed` bytes must be free.
    pub(crate) fn stage(&self, name: &str, needed: u64) -> Result<Staging<'_>> {
        let mut free = self.disk.free_space(&self.root).ok().flatten();
        if free.is_some_and(|free| free < needed) && self.spares.as_ref().is_some_and(|spares| spares.bytes() > 0) {
            self.clear_spares();
            free = self.disk.free_space(&self.root).ok().flatten();
        }
        if let Some(free) = free.filter(|free| *free < needed) {
            return Err(Error::NoSpace { path: self.path(name), needed, free: Some(free) });
        }
        let path = self.path(&format!("{STAGING}{name}-{}", nonce()));
        self.disk.create_dir(&path).map_err(|e| Error::io("create the folder", &path, e))?;
        let unsynced = Mutex::default();
        Ok(Staging { directory: self, path, name: name.to_string(), needed, unsynced, done: false })
    }

    /// Takes a checkpoint out of the namespace, and when that is durable removes its files, or keeps them to be
    /// overwritten. An error after the first step is only logged: the leftovers are removed when the folder is next opened.
    pub(crate) fn remove(&self, name: &str) -> Result<()> {
        let bare = before_aside(name).map_or(name, |(_, before)| before);
        let trash = format!("{TRASH}{bare}-{}", nonce());
        let path = self.path(name);
        match self.disk.rename_new(&path, &self.path(&trash)) {
            Err(e) if e.kind() == io::ErrorKind::NotFound => return Ok(()),
            // A folder of an overlay's lower layer cannot be renamed: without its manifest it is no checkpoint either.
            Err(e) if e.kind() == io::ErrorKind::CrossesDevices => {
                let manifest = path.join(MANIFEST);
                self.disk.remove_file(&manifest).map_err(|e| Error::io("remove", &manifest, e))?;
                self.sync_dir(&path)?;
                self.remove_leftover(&Entry { name: name.to_string(), is_dir: true });
                return Ok(());
            }
            result => result.map_err(|e| Error::io("move to the trash", &path, e))?,
        }
        match self.sync_dir(&self.root) {
            Ok(()) => {
                let kept = self.spares.as_ref().map(|spares| spares.refill(&*self.disk, &self.path(&trash)));
                if !matches!(kept, Some(Ok(()))) {
                    self.remove_leftover(&Entry { name: trash, is_dir: true });
                }
            }
            // A power cut could bring back the name: it must not be that of half a checkpoint.
            Err(e) => log::warn!("{trash} is removed when the folder is next opened: {e}"),
        }
        Ok(())
    }

    /// Removes a staging or trash folder with what it holds, as far as it goes.
    pub(crate) fn remove_leftover(&self, leftover: &Entry) {
        let path = self.path(&leftover.name);
        if let Err(e) = self.remove_all(&path, leftover.is_dir) {
            log::warn!(
                "could not remove {}: {e}; it will be tried again when the folder is next opened",
                path.display()
            );
        }
    }

    /// Removes a file or a folder. A symbolic link is a file here, wherever it leads: only the link goes.
    fn remove_all(&self, path: &Path, is_dir: bool) -> io::Result<()> {
        if is_dir {
            let entries = match self.disk.list(path) {
                Err(e) if e.kind() == io::ErrorKind::NotFound => return Ok(()),
                result => result?,
            };
            for entry in entries {
                self.remove_all(&path.join(&entry.name), entry.is_dir)?;
            }
        }
        let removed = if is_dir { self.disk.remove_dir(path) } else { self.disk.remove_file(path) };
        removed.or_else(|e| if e.kind() == io::ErrorKind::NotFound { Ok(()) } else { Err(e) })
    }
}

/// A checkpoint being written. Dropped before [`Staging::publish`] has succeeded, it removes what it wrote.
pub(crate) struct Staging<'a> {
    directory: &'a Directory,
    path: PathBuf,
    name: String,
    needed: u64,
    /// Files that are written and wait to be synced together.
    unsynced: Mutex<Vec<(PathBuf, Box<dyn NewFile>)>>,
    done: bool,
}

impl Staging<'_> {
    /// Opens a file of the checkpoint, of `bytes` in the end: a recycled one if there is one.
    pub(crate) fn create(&self, name: &str, bytes: u64) -> Result<StagedFile<'_>> {
        let path = self.path.join(name);
        let spare = self.directory.spares.as_ref().and_then(|spares| spares.take(&*self.directory.disk, &path, bytes));
        let mut staged = match spare {
            Some(file) => StagedFile { staging: self, file, path, bytes },
            None => self.create_new(name, bytes)?,
        };
        if staged.is_direct() {
            staged.file.go_direct();
        }
        Ok(staged)
    }

    /// Creates a file of the checkpoint. The manifest is always a new one: it vouches for all the others, so on a device
    /// that loses what it said was written there must be none, rather than that of an older checkpoint.
    fn create_new(&self, name: &str, bytes: u64) -> Result<StagedFile<'_>> {
        let path = self.path.join(name);
        let disk = &*self.directory.disk;
        let file = disk.create(&path).map_err(|e| self.no_space(Error::io("create", &path, e)))?;
        Ok(StagedFile { staging: self, file, path, bytes })
    }

    /// Gives a file of an earlier checkpoint a second name in this one.
    pub(crate) fn link(&self, existing: &Path, name: &str) -> Result<()> {
        let path = self.path.join(name);
        self.directory.disk.link(existing, &path).map_err(|e| Error::io("link", &path, e))
    }

    /// Syncs what waits for it. The system waits for the device, and for one device it can wait for all at once.
    fn sync_files(&mut self, threads: usize) -> Result<()> {
        let files = std::mem::take(self.unsynced.get_mut().unwrap_or_else(PoisonError::into_inner));
        let threads = match self.directory.durability {
            Durability::PowerLoss if threads > 1 => SYNCS,
            _ => 1,
        };
        parallel::for_each(&files, threads, || (), |(path, file), ()| self.sync(path, &**file))
    }

    fn sync(&self, path: &Path, file: &dyn NewFile) -> Result<()> {
        self.directory.sync_file(file, path).map_err(|e| self.no_space(e))
    }

    /// Tells a full disk how much the whole checkpoint needs.
    fn no_space(&self, error: Error) -> Error {
        match error {
            Error::NoSpace { path, .. } => {
                let free = self.directory.disk.free_space(&self.directory.root).ok().flatten();
                Error::NoSpace { path, needed: self.needed, free }
            }
            error => error,
        }
    }

    /// Makes the checkpoint one: manifest last, everything synced before its name appears, and the name before
    /// this returns.
    pub(crate) fn publish(mut self, manifest: &Manifest, threads: usize) -> Result<PathBuf> {
        let directory = self.directory;
        let text = manifest.to_bytes()?;
        let file = self.create_new(MANIFEST, text.len() as u64)?;
        file.write_all_at(0, &text)?;
        file.end(text.len() as u64)?;
        self.sync_files(threads)?;
        directory.sync_dir(&self.path)?;
        let path = directory.path(&self.name);
        match directory.disk.rename_new(&self.path, &path) {
            Ok(()) => {
                if let Err(e) = directory.sync_dir(&directory.root) {
                    // Not durable, so not done: take the name back before saying so. The files may go only when that is
                    // durable, else a power cut could bring back the name without them.
                    let back = directory.disk.rename_new(&path, &self.path);
                    self.done = back.is_err() || directory.sync_dir(&directory.root).is_err();
                    return Err(e);
                }
                self.done = true;
            }
            Err(e) if already_there(&e) => return Err(Error::already_exists(path)),
            Err(e) => return Err(Error::io("rename to", &path, e)),
        }
        Ok(path)
    }
}

impl Drop for Staging<'_> {
    fn drop(&mut self) {
        if !self.done
            && let Err(e) = self.directory.remove_all(&self.path, true)
        {
            log::warn!(
                "could not remove {}: {e}; it will be removed when the folder is next opened",
                self.path.display()
            );
        }
    }
}

/// Whether a name is one that this module gave to what is being written or removed. All others are the user's.
fn is_leftover(name: &str) -> bool {
    without_mark(name, STAGING).or_else(|| without_mark(name, TRASH)).is_some()
}

/// The name that this module marked with a prefix and a nonce; `None` when it did not.
pub(super) fn without_mark<'a>(name: &'a str, prefix: &str) -> Option<&'a str> {
    let (name, nonce) = name.strip_prefix(prefix)?.rsplit_once('-')?;
    let is_nonce = nonce.len() == NONCE_DIGITS && nonce.bytes().all(|byte| matches!(byte, b'0'..=b'9' | b'a'..=b'f'));
    is_nonce.then_some(name)
}

/// Renaming a folder onto an existing one: file systems say it in two ways.
fn already_there(e: &io::Error) -> bool {
    matches!(e.kind(), io::ErrorKind::AlreadyExists | io::ErrorKind::DirectoryNotEmpty)
}

/// A file of a checkpoint being written.
pub(crate) struct StagedFile<'a> {
    staging: &'a Staging<'a>,
    file: Box<dyn NewFile>,
    path: PathBuf,
    /// How long it is in the end.
    bytes: u64,
}

impl StagedFile<'_> {
    pub(crate) fn write_all_at(&self, offset: u64, bytes: &[u8]) -> Result<()> {
        let written = self.file.write_all_at(offset, bytes);
        written.map_err(|e| self.staging.no_space(Error::io("write", &self.path, e)))
    }

    /// Ends the file at its length. A large one is durable when this returns, where durability asks for it.
    pub(crate) fn finish(&self) -> Result<()> {
        let cut = self.file.set_len(self.bytes);
        cut.map_err(|e| self.staging.no_space(Error::io("set the length of", &self.path, e)))?;
        if self.is_large() { self.staging.sync(&self.path, &*self.file) } else { Ok(()) }
    }

    /// Closes the finished file. A small one is synced with the others when the checkpoint is
    /// [published](Staging::publish).
    pub(crate) fn close(self) {
        if !self.is_large() {
            let mut unsynced = self.staging.unsynced.lock().unwrap_or_else(PoisonError::into_inner);
            unsynced.push((self.path, self.file));
        }
    }

    /// Finishes and closes the file, of which the length is known only now.
    pub(crate) fn end(mut self, bytes: u64) -> Result<()> {
        self.bytes = bytes;
        self.finish()?;
        self.close();
        Ok(())
    }

    fn is_large(&self) -> bool {
        self.bytes >= DIRECT
    }

    /// Whether it is written past the page cache: without a sync that takes the bytes faster than the device, with
    /// one they must reach it anyway.
    pub(crate) fn is_direct(&self) -> bool {
        self.staging.directory.durability == Durability::PowerLoss && self.is_large()
    }
}

/// Reads a file of at most `limit` bytes.
pub(super) fn read_whole(disk: &dyn Disk, path: &Path, limit: u64) -> Result<Vec<u8>> {
    let file = disk.open(path).map_err(|e| open_failed(path, e))?;
    let length = file.len().map_err(|e| Error::io("read", path, e))?;
    if length > limit {
        return Err(Error::damaged(path, format!("it has {length} bytes, more than the {limit} such a file may have")));
    }
    let mut bytes = vec![0; length as usize];
    file.read_exact_at(0, &mut bytes).map_err(|e| Error::io("read", path, e))?;
    Ok(bytes)
}

/// A file of ours that cannot be opened: one that is no regular file is not the one that was written.
pub(crate) fn open_failed(path: &Path, e: io::Error) -> Error {
    match e.kind() {
        io::ErrorKind::InvalidInput => Error::damaged(path, format!("it is {e}")),
        _ => Error::io("open", path, e),
    }
}

/// Reads the manifest in the folder `checkpoint`.
pub(crate) fn read_manifest(disk: &dyn Disk, checkpoint: &Path) -> Result<Manifest> {
    let path = checkpoint.join(MANIFEST);
    let bytes = match read_whole(disk, &path, MAX_MANIFEST_BYTES as u64) {
        Err(Error::Io { source, .. }) if source.kind() == io::ErrorKind::NotFound => {
            return Err(not_a_checkpoint(disk, checkpoint));
        }
        result => result?,
    };
    Manifest::from_bytes(&bytes).map_err(|e| e.at(&path))
}

fn not_a_checkpoint(disk: &dyn Disk, path: &Path) -> Error {
    let there = |path: &Path| disk.exists(path).unwrap_or(false);
    let reason = if !there(path) {
        "there is nothing of that name; a checkpoint is a folder such as `checkpoints/ckpt-100`".to_string()
    } else if there(&path.join(INDEX)) {
        "this folder holds checkpoints; name one of them, or ask `latest_checkpoint` for the newest".to_string()
    } else {
        format!("it has no {MANIFEST}")
    };
    Error::NotFound { path: path.to_path_buf(), reason }
}

/// The folder a path lies in.
pub(crate) fn parent_of(path: &Path) -> &Path {
    match path.parent() {
        Some(parent) if !parent.as_os_str().is_empty() => parent,
        _ => Path::new("."),
    }
}

/// How long a [`nonce`] is.
const NONCE_DIGITS: usize = 32;

/// A name no other has: 128 random bits in hexadecimal.
pub(crate) fn nonce() -> String {
    // Each `RandomState` has keys of its own, drawn from the system's random source.
    let random = || RandomState::new().build_hasher().finish();
    format!("{:016x}{:016x}", random(), random())
}
