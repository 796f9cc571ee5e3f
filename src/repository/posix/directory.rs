//! A directory of checkpoints: what is in it, and the few ways it may change. Each function is one guarantee.

use super::aside::{Aside, LONGEST_PREFIX, before_aside};
use super::lock::{Held, LOCK, Lock, holder};
use super::removal::is_leftover;
use super::spares::Spares;
use super::{Dir, Disk, FileId, Kind, NewFile, Stat};
use crate::error::{Error, Result};
use crate::format::{Index, MAX_INDEX_BYTES, MAX_MANIFEST_BYTES, Manifest};
use chrono::{DateTime, Utc};
use rustix::io::Errno;
use std::collections::BTreeSet;
use std::ffi::OsString;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, OnceLock, PoisonError, Weak};

/// The file that makes a directory a checkpoint.
pub(crate) const MANIFEST: &str = "manifest.json";
/// The index: a hint, never the truth.
pub(crate) const INDEX: &str = "checkpoint.json";
/// A checkpoint being written.
pub(crate) const STAGING: &str = ".tmp-";
/// A checkpoint being removed.
pub(crate) const TRASH: &str = ".trash-";

/// How long a [`nonce`] is.
pub(super) const NONCE_DIGITS: usize = 32;

/// What a finished save survives.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
#[non_exhaustive]
pub enum Durability {
    /// A power cut: every file and directory is synced to the device before the save counts as done. The default.
    #[default]
    PowerLoss,
    /// The death of the process, but not of the machine: nothing is synced, the system writes the data when it likes
    /// (within about 30 seconds on Linux). A power cut in between can lose the checkpoint, and with it older ones
    /// that were removed to make room; it is detected, never restored damaged.
    ///
    /// On file systems that are not known to be local (network file systems, FUSE) the files are synced all the same:
    /// only that tells whether they could be written.
    ProcessCrash,
}

/// A directory of checkpoints on some disk. Clones are the same open directory.
#[derive(Debug, Clone)]
pub struct Directory {
    disk: Arc<dyn Disk>,
    /// The path as results and messages show it.
    root: PathBuf,
    durability: Durability,
    locking: bool,
    /// Where the files of removed checkpoints go that the next one overwrites; `None` to remove them at once.
    pub(super) spares: Option<Arc<Spares>>,
    shared: Arc<Shared>,
}

#[derive(Debug)]
struct Shared {
    /// The process that made it. A process forked from that one may not use it.
    process: u32,
    open: OnceLock<Open>,
    lock: Mutex<Weak<Held>>,
    /// Something was removed whose room the file system may give back later.
    freed: AtomicBool,
}

/// The directory, opened.
#[derive(Debug)]
struct Open {
    dir: Arc<dyn Dir>,
    /// The path it was opened by, from the root directory.
    path: PathBuf,
    id: FileId,
    is_local: bool,
}

impl std::fmt::Debug for Held {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Held")
    }
}

/// What [`Directory::scan`] finds.
#[derive(Debug, Default)]
pub struct Scan {
    /// Names of directories that may be checkpoints, sorted.
    pub checkpoints: Vec<String>,
    /// Symbolic links, wherever they lead, sorted. None of them is followed.
    pub links: Vec<String>,
    /// Leftovers of a dead writer: safe to remove under the lock.
    pub leftovers: Vec<String>,
    /// What [`Directory::move_aside`] moved out of the numbering.
    pub aside: Vec<(Aside, String)>,
    /// The names of everything that is there, whatever it is.
    pub names: BTreeSet<String>,
}

impl Directory {
    /// Nothing is opened yet: that is done by the first call that needs it.
    pub fn new(disk: Arc<dyn Disk>, root: impl Into<PathBuf>, durability: Durability) -> Directory {
        let shared = Shared {
            process: std::process::id(),
            open: OnceLock::new(),
            lock: Mutex::new(Weak::new()),
            freed: AtomicBool::new(false),
        };
        Directory { disk, root: root.into(), durability, locking: true, spares: None, shared: Arc::new(shared) }
    }

    /// Renounces the lock: for file systems that have none.
    pub(crate) fn without_lock(mut self) -> Directory {
        self.locking = false;
        self
    }

    /// Shows paths from the root directory, so that they lead here whatever the working directory is.
    pub(crate) fn make_absolute(&mut self) -> Result<()> {
        self.root = self.absolute()?;
        Ok(())
    }

    /// From now on the files of removed checkpoints are overwritten by the next.
    pub(crate) fn recycle(&mut self) {
        self.spares = Some(Arc::new(Spares::new(self.disk.least_recycled())));
    }

    /// The time now.
    pub(crate) fn now(&self) -> DateTime<Utc> {
        self.disk.now()
    }

    /// Removes what is kept to be overwritten.
    pub(crate) fn clear_spares(&self) {
        if let (Some(spares), Ok(()), Ok(root)) = (&self.spares, self.check_process(), self.dir()) {
            spares.clear(&**root);
        }
    }

    pub(crate) fn root(&self) -> &Path {
        &self.root
    }

    pub(super) fn durability(&self) -> Durability {
        self.durability
    }

    pub(crate) fn path(&self, name: &str) -> PathBuf {
        self.root.join(name)
    }

    fn absolute(&self) -> Result<PathBuf> {
        self.disk.absolute(&self.root).map_err(|e| Error::io("find out the absolute path of", &self.root, e))
    }

    /// The open directory; an error of the kind "not found" when there is none.
    pub(crate) fn dir(&self) -> Result<&Arc<dyn Dir>> {
        self.opened().map(|open| &open.dir)
    }

    fn opened(&self) -> Result<&Open> {
        if let Some(open) = self.shared.open.get() {
            return Ok(open);
        }
        let path = self.absolute()?;
        let dir = self.disk.open_dir(&path).map_err(|e| self.not_opened(&path, e))?;
        self.keep(path, dir)
    }

    fn keep(&self, path: PathBuf, dir: Arc<dyn Dir>) -> Result<&Open> {
        let id = dir.stat().map_err(|e| Error::io("look at", &self.root, e))?.id;
        let is_local = dir.is_local();
        Ok(self.shared.open.get_or_init(|| Open { dir, path, id, is_local }))
    }

    /// A directory that is not found is missing, or a link on the way to it leads nowhere.
    fn not_opened(&self, path: &Path, e: io::Error) -> Error {
        let dangling = path.ancestors().filter(|_| e.kind() == io::ErrorKind::NotFound).find(|path| {
            let parent = path.parent().and_then(|parent| self.disk.open_dir(parent).ok());
            let stat = parent.zip(path.file_name()).and_then(|(parent, name)| parent.stat_of(name).ok().flatten());
            stat.is_some_and(|stat| stat.kind == Kind::Link) && self.disk.open_dir(path).is_err()
        });
        match dangling {
            Some(link) => {
                let reason = "it is a link that leads nowhere; is the disk it leads to mounted?".to_string();
                Error::NotFound { path: link.to_path_buf(), reason }
            }
            None => Error::io("open the directory", &self.root, e),
        }
    }

    /// Creates the directory and its parents where they are missing, durably, and opens it. A directory that is there
    /// may have been made by someone who died, or did not care, before its name was durable: that is made up for.
    pub(crate) fn create(&self) -> Result<()> {
        let path = self.absolute()?;
        let (mut missing, mut at) = (Vec::new(), path.as_path());
        let mut dir = loop {
            match (self.disk.open_dir(at), at.parent(), at.file_name()) {
                (Ok(dir), _, _) => break dir,
                (Err(e), Some(parent), Some(name)) if e.kind() == io::ErrorKind::NotFound => {
                    if let dangling @ Error::NotFound { .. } = self.not_opened(at, e) {
                        return Err(dangling);
                    }
                    missing.push(name);
                    at = parent;
                }
                (Err(e), _, _) => return Err(Error::io("open the directory", at, e)),
            }
        };
        if let Some(parent) = at.parent() {
            self.sync_parent(parent)?;
        }
        let mut at = at.to_path_buf();
        for name in missing.into_iter().rev() {
            let child = at.join(name);
            match dir.create_dir(name) {
                // Another process made it at the same moment.
                Err(e) if e.kind() == io::ErrorKind::AlreadyExists => {}
                result => result.map_err(|e| Error::io("create the directory", &child, e))?,
            }
            match self.sync(&*dir, &at) {
                Err(Error::Io { source, .. }) if cannot_sync(&source) => no_promise(&at, &source),
                result => result?,
            }
            dir = dir.open_dir(name).map_err(|e| Error::io("open the directory", &child, e))?;
            at = child;
        }
        self.keep(path, dir)?;
        Ok(())
    }

    /// Makes the name of a directory that was there before durable, as far as that can be done.
    fn sync_parent(&self, parent: &Path) -> Result<()> {
        if self.durability == Durability::ProcessCrash {
            return Ok(());
        }
        let synced = self.disk.open_dir(parent).and_then(|dir| dir.sync());
        match synced {
            // What we may not read was made by someone else, long ago.
            Err(e) if e.kind() == io::ErrorKind::PermissionDenied => Ok(()),
            Err(e) if cannot_sync(&e) => {
                no_promise(parent, &e);
                Ok(())
            }
            result => result.map_err(|e| Error::io("sync the directory", parent, e)),
        }
    }

    /// Makes the names in `dir` durable, where durability asks for it.
    pub(super) fn sync(&self, dir: &dyn Dir, path: &Path) -> Result<()> {
        match self.durability {
            Durability::ProcessCrash => Ok(()),
            Durability::PowerLoss => dir.sync().map_err(|e| Error::io("sync the directory", path, e)),
        }
    }

    /// Whether files are synced: for durability, or since a file system that is not local tells only then that it could
    /// not take what was written.
    pub(super) fn syncs_files(&self) -> bool {
        self.durability == Durability::PowerLoss || !self.opened().is_ok_and(|open| open.is_local)
    }

    pub(super) fn sync_file(&self, file: &dyn NewFile, path: &Path) -> Result<()> {
        if !self.syncs_files() {
            return Ok(());
        }
        match file.sync() {
            Err(e) if self.durability == Durability::ProcessCrash && cannot_sync(&e) => Ok(()),
            result => result.map_err(|e| Error::io("sync", path, e)),
        }
    }

    /// A process that was forked from the one that opened the directory shares its lock, and must leave it alone.
    pub(crate) fn check_process(&self) -> Result<()> {
        if self.shared.process == std::process::id() {
            return Ok(());
        }
        let reason = "it was opened by the process that this one was forked from; open it anew in this process";
        Err(Error::moved(&self.root, reason))
    }

    /// That the path still leads to the directory that was opened, and that its lock is the one that is held. Called
    /// before every commit and every removal.
    pub(crate) fn check(&self) -> Result<()> {
        self.check_process()?;
        let open = self.opened()?;
        let now = match self.disk.open_dir(&open.path).and_then(|dir| dir.stat()) {
            Ok(stat) => Some(stat.id),
            Err(e) if e.kind() == io::ErrorKind::NotFound || super::removal::is_no_directory(&e) => None,
            Err(e) => return Err(Error::io("look at", &self.root, e)),
        };
        match now {
            Some(id) if id == open.id => {}
            Some(_) => return Err(Error::moved(&self.root, "another directory has taken the place of the one opened")),
            None => return Err(Error::moved(&self.root, "the directory was renamed or removed since it was opened")),
        }
        let held = self.shared.lock.lock().unwrap_or_else(PoisonError::into_inner).upgrade();
        held.map_or(Ok(()), |held| held.check(&*open.dir, &self.root))
    }

    /// That a checkpoint of this name can be written, and moved to the trash or aside later.
    pub(crate) fn check_name(&self, name: &str) -> Result<()> {
        let limit = self.shared.open.get().map_or(255, |open| open.dir.name_limit());
        let most = limit.saturating_sub(LONGEST_PREFIX + 1 + NONCE_DIGITS);
        if name.len() <= most {
            return Ok(());
        }
        Err(Error::Usage(format!(
            "the checkpoint's name {name:?} has {} bytes, number included; it may have {most}, since what is added to it \
             while it is written or removed must fit into a file name; choose a shorter one",
            name.len()
        )))
    }

    /// Notes that something was removed.
    pub(super) fn freed(&self) {
        self.shared.freed.store(true, Ordering::Relaxed);
    }

    /// Whether something was removed since this was last asked.
    pub(super) fn take_freed(&self) -> bool {
        self.shared.freed.swap(false, Ordering::Relaxed)
    }

    /// Takes the lock of the directory.
    pub(crate) fn lock(&self) -> Result<Lock> {
        let path = self.path(LOCK);
        let file = if self.locking {
            let taken = self.dir()?.lock(LOCK.as_ref(), &holder()).map_err(|e| Error::io("lock", &path, e))?;
            if taken.is_none() {
                let holder = self.read_text(LOCK, 1024).ok().and_then(|text| String::from_utf8(text).ok());
                let holder = holder.filter(|holder| !holder.is_empty()).unwrap_or_else(|| "it does not say who".into());
                return Err(Error::Locked { path: self.root.clone(), holder });
            }
            taken
        } else {
            None
        };
        let held = Arc::new(Held::new(file));
        *self.shared.lock.lock().unwrap_or_else(PoisonError::into_inner) = Arc::downgrade(&held);
        Ok(Lock(held))
    }

    /// What the directory holds. First makes durable what a killed predecessor may have renamed without syncing, so
    /// that nothing is acted upon that a power cut could still undo.
    pub(crate) fn scan_for_writing(&self) -> Result<Scan> {
        self.sync(&**self.dir()?, &self.root)?;
        self.scan()
    }

    /// What the directory holds; an empty scan where there is no directory.
    pub fn scan(&self) -> Result<Scan> {
        let dir = match self.dir() {
            Err(Error::Io { source, .. }) if source.kind() == io::ErrorKind::NotFound => return Ok(Scan::default()),
            result => result?,
        };
        let mut scan = Scan::default();
        for entry in dir.list().map_err(|e| Error::io("list the directory", &self.root, e))? {
            // A name that is not Unicode is none of ours.
            if let Some(name) = entry.name.to_str().map(str::to_string) {
                match (entry.kind, before_aside(&name)) {
                    _ if is_leftover(&name) => scan.leftovers.push(name),
                    (Kind::Directory, Some((aside, _))) => scan.aside.push((aside, name)),
                    (Kind::Directory, None) if !name.starts_with('.') => scan.checkpoints.push(name),
                    (Kind::Link, None) => scan.links.push(name),
                    _ => {}
                }
            }
            scan.names.insert(entry.name.to_string_lossy().into_owned());
        }
        scan.checkpoints.sort();
        scan.links.sort();
        Ok(scan)
    }

    /// What is in the directory `name` of this one.
    pub(crate) fn names_in(&self, name: &str) -> Result<Vec<OsString>> {
        let entries = self.dir()?.open_dir(name.as_ref()).and_then(|dir| dir.list());
        let entries = entries.map_err(|e| Error::io("list the checkpoint", self.path(name), e))?;
        Ok(entries.into_iter().map(|entry| entry.name).collect())
    }

    /// Whether anything has this name.
    pub(crate) fn has(&self, name: &str) -> Result<bool> {
        let stat = self.dir()?.stat_of(name.as_ref()).map_err(|e| Error::io("look for", self.path(name), e))?;
        Ok(stat.is_some())
    }

    /// Whether nothing has the name `name`, so that a checkpoint can get it.
    pub(crate) fn must_be_free(&self, name: &str) -> Result<()> {
        if self.has(name)? { Err(Error::already_exists(self.path(name))) } else { Ok(()) }
    }

    /// Whether both are the same directory, whatever paths they were opened by.
    pub(crate) fn is_same(&self, other: &Directory) -> bool {
        matches!((self.opened(), other.opened()), (Ok(own), Ok(other)) if own.id == other.id)
    }

    /// Whether the checkpoint `name` has its manifest, and files of at least as many `bytes`. Cheap: no file is read.
    pub(crate) fn looks_whole(&self, name: &str, bytes: u64) -> bool {
        let Some(dir) = self.dir().ok().and_then(|root| root.open_dir(name.as_ref()).ok()) else { return false };
        let Ok(entries) = dir.list() else { return false };
        let files = entries.iter().filter(|entry| entry.kind == Kind::File);
        let length = |name: &OsString| dir.stat_of(name).ok().flatten().map_or(0, |stat| stat.length);
        let (manifest, others): (Vec<_>, Vec<_>) = files.map(|entry| &entry.name).partition(|name| *name == MANIFEST);
        manifest.into_iter().any(|name| length(name) > 0) && others.into_iter().map(length).sum::<u64>() >= bytes
    }

    fn read_text(&self, name: &str, limit: u64) -> Result<Vec<u8>> {
        read_whole(&**self.dir()?, name, &self.path(name), limit)
    }

    /// Reads the manifest of the checkpoint `name`; does not look at its other files.
    pub(crate) fn manifest(&self, name: &str) -> Result<Manifest> {
        let path = self.path(name);
        let dir = self.dir()?.open_dir(name.as_ref()).map_err(|e| checkpoint_failed(&path, e))?;
        read_manifest(&*dir, &path)
    }

    /// The index, if there is a sound one.
    pub fn index(&self) -> Option<Index> {
        let bytes = self.read_text(INDEX, MAX_INDEX_BYTES as u64).ok()?;
        Index::from_bytes(&bytes).ok()
    }

    /// Replaces the index, durably and in one step. Whoever does this holds the `lock`: what the index says is read,
    /// changed and written.
    pub(crate) fn write_index(&self, _lock: &Lock, index: &Index) -> Result<()> {
        self.check_process()?;
        let root = self.dir()?;
        let staged = format!("{STAGING}index-{}", nonce());
        let result = self.write_small(&**root, &staged, &self.path(&staged), &index.to_bytes()?).and_then(|()| {
            let replaced = root.replace(staged.as_ref(), INDEX.as_ref());
            replaced.map_err(|e| Error::io("rename", self.path(INDEX), e))?;
            self.sync(&**root, &self.root)
        });
        if result.is_err() {
            let _ = root.remove_file(staged.as_ref());
        }
        result
    }

    /// Whether `name` is a directory, as far as the system tells.
    pub(crate) fn may_hold(&self, name: &str) -> bool {
        let stat = self.dir().map(|root| root.stat_of(name.as_ref()));
        !matches!(stat, Ok(Ok(None))) && !matches!(stat, Ok(Ok(Some(stat))) if stat.kind != Kind::Directory)
    }

    /// What the system says of the manifest of the checkpoint `name`; `None` also where it says nothing.
    pub(crate) fn stat_of_manifest(&self, name: &str) -> Option<Stat> {
        self.dir().ok()?.open_dir(name.as_ref()).ok()?.stat_of(MANIFEST.as_ref()).ok()?
    }

    /// Removes the index, which says less than the truth, as far as it goes.
    pub(crate) fn forget_index(&self, _lock: &Lock) {
        if let Ok(root) = self.dir()
            && root.remove_file(INDEX.as_ref()).is_ok()
        {
            let _ = self.sync(&**root, &self.root);
        }
    }

    /// Writes the new file `name` of `dir`, which `path` leads to.
    pub(super) fn write_small(&self, dir: &dyn Dir, name: &str, path: &Path, bytes: &[u8]) -> Result<()> {
        let file = dir.create(name.as_ref(), false).map_err(|e| Error::io("create", path, e))?;
        file.write_all_at(0, bytes).map_err(|e| Error::io("write", path, e))?;
        self.sync_file(&*file, path)
    }
}

/// Whether the file system has no sync for what was to be synced, rather than that it failed.
fn cannot_sync(e: &io::Error) -> bool {
    matches!(Errno::from_io_error(e), Some(Errno::INVAL | Errno::NOTSUP | Errno::NOSYS | Errno::ROFS))
}

fn no_promise(path: &Path, e: &io::Error) {
    log::warn!("{} cannot be synced ({e}): whether names in it survive a power cut cannot be promised", path.display());
}

/// Reads a file of at most `limit` bytes.
pub(super) fn read_whole(dir: &dyn Dir, name: &str, path: &Path, limit: u64) -> Result<Vec<u8>> {
    let file = dir.open(name.as_ref()).map_err(|e| open_failed(path, e))?;
    let length = file.stat().map_err(|e| Error::io("read", path, e))?.length;
    if length > limit {
        return Err(Error::damaged(path, format!("it has {length} bytes, more than the {limit} such a file may have")));
    }
    let mut bytes = vec![0; length as usize];
    file.read_exact_at(0, &mut bytes).map_err(|e| Error::io("read", path, e))?;
    Ok(bytes)
}

/// A file of ours that cannot be opened: a link is called one; what else is no regular file is not what was written.
pub(crate) fn open_failed(path: &Path, e: io::Error) -> Error {
    match e.kind() {
        io::ErrorKind::InvalidInput => Error::damaged(path, format!("it is {e}")),
        _ if Errno::from_io_error(&e) == Some(Errno::LOOP) => {
            Error::link(path, "the files of a checkpoint must be files: copy what it leads to into its place (`cp -L`)")
        }
        _ => Error::io("open", path, e),
    }
}

/// A directory of ours that cannot be opened as a checkpoint.
pub(crate) fn checkpoint_failed(path: &Path, e: io::Error) -> Error {
    match e.kind() {
        _ if Errno::from_io_error(&e) == Some(Errno::LOOP) => link_met(path),
        io::ErrorKind::NotFound => Error::NotFound { path: path.to_path_buf(), reason: NOTHING.to_string() },
        _ => Error::io("open the checkpoint", path, e),
    }
}

/// A link in the place of a checkpoint.
pub(crate) fn link_met(path: &Path) -> Error {
    let hint = "links in a directory of checkpoints are not followed: restore the checkpoint by this path, or move it \
                here; or go on without it (`CheckpointManager::pass_over`)";
    Error::link(path, hint)
}

const NOTHING: &str = "there is nothing of that name; a checkpoint is a directory such as `checkpoints/ckpt-100`";

/// Reads the manifest in the checkpoint `dir`, which `path` leads to.
pub(crate) fn read_manifest(dir: &dyn Dir, path: &Path) -> Result<Manifest> {
    let file = path.join(MANIFEST);
    let bytes = match read_whole(dir, MANIFEST, &file, MAX_MANIFEST_BYTES as u64) {
        Err(Error::Io { source, .. }) if source.kind() == io::ErrorKind::NotFound => {
            return Err(not_a_checkpoint(dir, path));
        }
        result => result?,
    };
    Manifest::from_bytes(&bytes).map_err(|e| e.at(&file))
}

fn not_a_checkpoint(dir: &dyn Dir, path: &Path) -> Error {
    let reason = match dir.stat_of(INDEX.as_ref()) {
        Ok(Some(_)) => {
            "this directory holds checkpoints; name one of them, or ask `latest_checkpoint` for the newest".into()
        }
        _ => format!("it has no {MANIFEST}"),
    };
    Error::NotFound { path: path.to_path_buf(), reason }
}

/// The directory a path lies in.
pub(crate) fn parent_of(path: &Path) -> &Path {
    match path.parent() {
        Some(parent) if !parent.as_os_str().is_empty() => parent,
        _ => Path::new("."),
    }
}

/// A name no other has: 128 random bits in hexadecimal.
pub(crate) fn nonce() -> String {
    let mut bits = [0; NONCE_DIGITS / 2];
    if !random(&mut bits) {
        // Each `RandomState` has keys of its own, drawn from the system's random source: but not in a forked process.
        use std::hash::{BuildHasher, Hasher, RandomState};
        let draw = || (RandomState::new().build_hasher().finish() ^ u64::from(std::process::id())).to_ne_bytes();
        bits[..8].copy_from_slice(&draw());
        bits[8..].copy_from_slice(&draw());
    }
    bits.iter().map(|byte| format!("{byte:02x}")).collect()
}

#[cfg(target_os = "linux")]
fn random(bits: &mut [u8]) -> bool {
    rustix::rand::getrandom(&mut *bits, rustix::rand::GetRandomFlags::empty()).is_ok_and(|got| got == bits.len())
}

#[cfg(not(target_os = "linux"))]
fn random(bits: &mut [u8]) -> bool {
    use std::io::Read;
    std::fs::File::open("/dev/urandom").and_then(|mut source| source.read_exact(bits)).is_ok()
}
