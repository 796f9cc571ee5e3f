//! A directory of checkpoints: its contents, and the operations that change it. Each function is one guarantee.

use super::lock::{Held, LOCK, holder};
use super::spares::Spares;
use super::{Dir, Disk, WriteFile};
use crate::error::{Error, Result};
use crate::format::Follows;
use crate::location::Location;
use crate::repository::names::{Aside, LONGEST_PREFIX, NONCE_DIGITS, STAGING, before_aside, is_leftover, nonce};
use crate::repository::reading::{is_no_directory, read_whole};
use crate::repository::{Durability, FileId, Kind, Lock, OpenDir, OpenOptions, Repository, Scan, Stays, Transaction};
use chrono::{DateTime, Utc};
use rustix::io::Errno;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, OnceLock, PoisonError, Weak};

/// A directory of checkpoints on some disk.
#[derive(Debug)]
pub(super) struct PosixDirectory {
    disk: Arc<dyn Disk>,
    /// The path as results and messages show it.
    root: Location,
    /// The path when this was made, independent of the working directory; `None` if it could not be found out.
    absolute: Option<PathBuf>,
    options: OpenOptions,
    /// The files of removed checkpoints, which the next one overwrites. `None` if they are removed at once.
    pub(super) spares: Option<Spares>,
    shared: Shared,
}

#[derive(Debug)]
struct Shared {
    /// The process that created it. A process forked from that one must not use it.
    process: u32,
    open: OnceLock<Open>,
    lock: Mutex<Weak<Held>>,
    /// Whether something was removed whose space the file system may free later.
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

impl PosixDirectory {
    /// Opens nothing. The first call that needs the directory opens it.
    pub(super) fn new(disk: Arc<dyn Disk>, root: Location, options: &OpenOptions) -> PosixDirectory {
        let shared = Shared {
            process: std::process::id(),
            open: OnceLock::new(),
            lock: Mutex::new(Weak::new()),
            freed: AtomicBool::new(false),
        };
        let spares = options.recycle.then(|| Spares::new(disk.least_recycled()));
        let absolute = super::path_of(&root).ok().and_then(|path| disk.absolute(path).ok());
        PosixDirectory { disk, root, absolute, options: *options, spares, shared }
    }

    pub(super) fn durability(&self) -> Durability {
        self.options.durability
    }

    pub(super) fn path(&self, name: &str) -> Location {
        self.root.join(name)
    }

    fn absolute(&self) -> Result<PathBuf> {
        if let Some(path) = &self.absolute {
            return Ok(path.clone());
        }
        self.disk
            .absolute(super::path_of(&self.root)?)
            .map_err(|e| Error::io("find out the absolute path of", &self.root, e))
    }

    /// Returns the open directory; an error of the kind "not found" when there is none.
    pub(super) fn open_root(&self) -> Result<&Arc<dyn Dir>> {
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
        let id = dir.stat().map_err(|e| Error::io("examine", &self.root, e))?.id;
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
                Error::not_found(link, reason)
            }
            None => Error::io("open the directory", &self.root, e),
        }
    }

    /// Makes the name of an existing directory durable, as far as possible.
    fn sync_parent(&self, parent: &Path) -> Result<()> {
        if self.options.durability == Durability::ProcessCrash {
            return Ok(());
        }
        let synced = self.disk.open_dir(parent).and_then(|dir| dir.sync());
        match synced {
            // A directory without permission to read belongs to another user and existed before.
            Err(e) if e.kind() == io::ErrorKind::PermissionDenied => Ok(()),
            Err(e) if cannot_sync(&e) => {
                no_promise(parent, &e);
                Ok(())
            }
            result => result.map_err(|e| Error::io("sync the directory", parent, e)),
        }
    }

    /// Makes the names in `dir` durable, if the durability requires it.
    pub(super) fn sync(&self, dir: &dyn Dir, path: &Path) -> Result<()> {
        match self.options.durability {
            Durability::ProcessCrash => Ok(()),
            Durability::PowerLoss => match dir.sync() {
                Err(e) if self.options.lenient && cannot_sync(&e) => {
                    no_promise(path, &e);
                    Ok(())
                }
                synced => synced.map_err(|e| Error::io("sync the directory", path, e)),
            },
        }
    }

    /// Returns `true` if files are synced: for durability, or because a file system that is not local reports write
    /// errors only then.
    pub(super) fn syncs_files(&self) -> bool {
        self.options.durability == Durability::PowerLoss || !self.opened().is_ok_and(|open| open.is_local)
    }

    pub(super) fn sync_file(&self, file: &dyn WriteFile, path: &Path) -> Result<()> {
        if !self.syncs_files() {
            return Ok(());
        }
        match file.sync() {
            Err(e)
                if cannot_sync(&e) && (self.options.durability == Durability::ProcessCrash || self.options.lenient) =>
            {
                if self.options.durability == Durability::PowerLoss {
                    no_promise(path, &e);
                }
                Ok(())
            }
            result => result.map_err(|e| Error::io("sync", path, e)),
        }
    }

    /// Records that something was removed.
    pub(super) fn freed(&self) {
        self.shared.freed.store(true, Ordering::Relaxed);
    }

    /// Returns `true` if something was removed since this was last asked.
    pub(super) fn take_freed(&self) -> bool {
        self.shared.freed.swap(false, Ordering::Relaxed)
    }

    fn read_text(&self, name: &str, limit: u64) -> Result<Vec<u8>> {
        read_whole(&**self.open_root()?, name, &self.path(name), limit)
    }

    /// Writes the new file `name` of `dir`, which `path` leads to.
    pub(super) fn write_small(&self, dir: &dyn Dir, name: &str, path: &Path, bytes: &[u8]) -> Result<()> {
        let file = dir.create(name.as_ref(), false).map_err(|e| Error::io("create", path, e))?;
        file.write_all_at(0, bytes).map_err(|e| Error::io("write", path, e))?;
        self.sync_file(&*file, path)
    }

    /// Writes a file of the directory itself, durably and atomically.
    fn write_in_root(&self, file: &str, bytes: &[u8]) -> Result<()> {
        self.check_process()?;
        let root = self.open_root()?;
        let staged = format!("{STAGING}index-{}", nonce());
        let result = self.write_small(&**root, &staged, &self.path(&staged), bytes).and_then(|()| {
            let replaced = root.replace(staged.as_ref(), file.as_ref());
            replaced.map_err(|e| Error::io("rename", self.path(file), e))?;
            self.sync(&**root, &self.root)
        });
        if result.is_err() {
            let _ = root.remove_file(staged.as_ref());
        }
        result
    }
}

impl Repository for PosixDirectory {
    fn root(&self) -> &Location {
        &self.root
    }

    fn id(&self) -> Option<FileId> {
        self.opened().ok().map(|open| open.id)
    }

    fn now(&self) -> DateTime<Utc> {
        self.disk.now()
    }

    fn dir(&self) -> Result<Arc<dyn OpenDir>> {
        Ok(self.open_root()?.clone())
    }

    fn open(&self, name: &str) -> io::Result<Arc<dyn OpenDir>> {
        match self.open_root() {
            Ok(root) => Ok(root.open_dir(name.as_ref())?),
            Err(Error::Io { source, .. }) => Err(source),
            Err(error) => Err(io::Error::other(error)),
        }
    }

    fn scan(&self) -> Result<Scan> {
        let dir = match self.open_root() {
            Err(Error::Io { source, .. }) if source.kind() == io::ErrorKind::NotFound => return Ok(Scan::default()),
            result => result?,
        };
        let mut scan = Scan::default();
        for entry in dir.list().map_err(|e| Error::io("list the directory", &self.root, e))? {
            // A name that is not Unicode is not ours.
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

    fn scan_for_writing(&self) -> Result<Scan> {
        self.sync(&**self.open_root()?, &self.root)?;
        let scan = self.scan()?;
        let is_undone = self.undo_superseding(&scan)?;
        let (is_given_back, unread) = self.rescue_pinned(&scan)?;
        let mut scan = if is_undone || is_given_back { self.scan()? } else { scan };
        scan.leftovers.retain(|name| !unread.contains(name));
        Ok(scan)
    }

    // An existing directory may have been created by a process that crashed before syncing its parent, so the parent is
    // synced again.
    fn create(&self) -> Result<()> {
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

    fn lock(&self) -> Result<Lock> {
        let path = self.path(LOCK);
        let file = if self.options.lock {
            let taken = self.open_root()?.lock(LOCK.as_ref(), &holder()).map_err(|e| Error::io("lock", &path, e))?;
            if taken.is_none() {
                let holder = self.read_text(LOCK, 1024).ok().and_then(|text| String::from_utf8(text).ok());
                let holder = holder.filter(|holder| !holder.is_empty()).unwrap_or_else(|| "it does not say who".into());
                return Err(Error::locked(&self.root, holder));
            }
            taken
        } else {
            None
        };
        let held = Arc::new(Held::new(file));
        *self.shared.lock.lock().unwrap_or_else(PoisonError::into_inner) = Arc::downgrade(&held);
        Ok(Lock::new(held))
    }

    fn check_process(&self) -> Result<()> {
        if self.shared.process == std::process::id() {
            return Ok(());
        }
        let reason = "it was opened by the process that this one was forked from; open it anew in this process";
        Err(Error::moved(&self.root, reason))
    }

    // Called before every commit and every removal.
    fn check(&self) -> Result<()> {
        self.check_process()?;
        let open = self.opened()?;
        let now = match self.disk.open_dir(&open.path).and_then(|dir| dir.stat()) {
            Ok(stat) => Some(stat.id),
            Err(e) if e.kind() == io::ErrorKind::NotFound || is_no_directory(&e) => None,
            Err(e) => return Err(Error::io("examine", &self.root, e)),
        };
        match now {
            Some(id) if id == open.id => {}
            Some(_) => return Err(Error::moved(&self.root, "another directory has taken the place of the one opened")),
            None => return Err(Error::moved(&self.root, "the directory was renamed or removed since it was opened")),
        }
        let held = self.shared.lock.lock().unwrap_or_else(PoisonError::into_inner).upgrade();
        held.map_or(Ok(()), |held| held.check(&*open.dir, &self.root))
    }

    fn check_name(&self, name: &str) -> Result<()> {
        let limit = self.shared.open.get().map_or(255, |open| open.dir.name_limit());
        let most = limit.saturating_sub(LONGEST_PREFIX + 1 + NONCE_DIGITS);
        if name.len() <= most {
            return Ok(());
        }
        Err(Error::InvalidArgument(format!(
            "the checkpoint's name {name:?} has {} bytes, number included; it may have {most}, since what is added to it \
             while it is written or removed must fit into a file name; choose a shorter one",
            name.len()
        )))
    }

    fn begin(&self, name: &str, bytes: u64) -> Result<Box<dyn Transaction + '_>> {
        Ok(Box::new(self.stage(name, bytes)?))
    }

    fn remove(&self, name: &str, id: &Follows, stays: Stays<'_>) -> Result<bool> {
        self.remove_commit(name, id, stays)
    }

    fn put_link(&self, name: &str, target: Option<&str>, is_ours: &dyn Fn(&str) -> bool) -> Result<()> {
        self.update_link(name, target, is_ours)
    }

    fn free_space(&self) -> Option<u64> {
        self.open_root().ok()?.free_space().ok().flatten()
    }

    fn discard(&self, aside: &str, stays: Stays<'_>) -> Result<bool> {
        self.discard_damaged(aside, stays)
    }

    fn quarantine(&self, name: &str, aside: Aside) -> Result<String> {
        self.move_aside(name, aside)
    }

    fn release(&self, aside: &str, name: &str) -> Result<()> {
        self.move_back(aside, name)
    }

    fn put_small(&self, file: &str, bytes: &[u8]) -> Result<()> {
        self.write_in_root(file, bytes)
    }

    fn put_mark(&self, checkpoint: &str, of: &Follows, file: &str, bytes: &[u8]) -> Result<()> {
        self.write_mark(checkpoint, of, file, bytes)
    }

    fn remove_mark(&self, checkpoint: &str, of: &Follows, file: &str) -> Result<bool> {
        self.take_mark(checkpoint, of, file)
    }

    fn sync_marks(&self, checkpoint: &str, of: &Follows) -> Result<()> {
        self.settle_marks(checkpoint, of)
    }

    fn remove_files(&self, checkpoint: &str, of: &Follows, files: &[String]) -> Result<()> {
        self.take_files(checkpoint, of, files)
    }

    fn sweep_marks(&self, checkpoint: &str) {
        self.sweep_staged_marks(checkpoint);
    }

    fn remove_small(&self, file: &str) {
        if let Ok(root) = self.open_root()
            && root.remove_file(file.as_ref()).is_ok()
        {
            let _ = self.sync(&**root, &self.root);
        }
    }

    fn sweep(&self, leftovers: &[String]) {
        leftovers.iter().for_each(|leftover| self.remove_leftover(leftover));
    }

    fn clear_spares(&self) {
        let spares = self.spares.as_ref().filter(|spares| !spares.is_empty());
        if let (Some(spares), Ok(()), Ok(root)) = (spares, self.check_process(), self.open_root()) {
            spares.clear(&**root);
            self.freed();
        }
    }
}

/// Returns `true` if the file system has no sync for what was to be synced, rather than that it failed.
pub(crate) fn cannot_sync(e: &io::Error) -> bool {
    matches!(Errno::from_io_error(e), Some(Errno::INVAL | Errno::NOTSUP | Errno::NOSYS | Errno::ROFS))
}

pub(crate) fn no_promise(path: &Path, e: &io::Error) {
    log::warn!(
        "{} cannot be synced ({e:#}): whether what is in it survives a power cut cannot be promised",
        path.display()
    );
}
