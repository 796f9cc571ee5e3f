//! A disk that fails by a plan.

use std::any::Any;
use std::ffi::OsStr;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use tch_checkpoint::internal::{Dir, Disk, Entry, LockFile, OpenDir, ReadFile, Stat, WriteFile};

/// What happens at an operation.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Fault {
    /// It fails with this error number, and changes nothing.
    Errno(i32),
    /// The disk is full: a write writes its first half before it fails.
    ShortWrite,
    /// A sync reports success and does nothing. Other operations succeed.
    LyingSync,
    /// The process ends.
    Die,
    /// A sync succeeds, and then another program moves the checkpoint `ckpt-1` away. Other operations succeed.
    #[cfg_attr(not(test), allow(dead_code, reason = "a test asks for it"))]
    Taken,
    /// As [`Taken`](Fault::Taken), and the other program puts a directory of its own in the place of `ckpt-1`. At a rename
    /// it comes before it.
    #[cfg_attr(not(test), allow(dead_code, reason = "a test asks for it"))]
    Exchanged,
}

/// The operations that a plan counts.
#[cfg_attr(not(test), allow(dead_code, reason = "the tests ask for single kinds"))]
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Only {
    Any,
    /// Renames, and syncs of directories.
    Names,
    /// Locks.
    Locks,
    /// Syncs of files and directories.
    Syncs,
    /// Syncs of directories.
    Directories,
}

/// When it happens: at these operations, counted from 0, or from the first of them on.
#[derive(Debug)]
pub(crate) struct Plan {
    pub fault: Fault,
    pub at: Vec<u64>,
    pub for_ever: bool,
    /// The operations that count.
    only: Only,
    count: AtomicU64,
    healed: AtomicU64,
}

impl Plan {
    pub(crate) fn new(fault: Fault, at: &[u64], for_ever: bool) -> Arc<Plan> {
        let (count, healed) = (AtomicU64::new(0), AtomicU64::new(0));
        Arc::new(Plan { fault, at: at.to_vec(), for_ever, only: Only::Any, count, healed })
    }

    /// Counts some operations only.
    pub(crate) fn of(only: Only, fault: Fault, at: &[u64], for_ever: bool) -> Arc<Plan> {
        let (count, healed) = (AtomicU64::new(0), AtomicU64::new(0));
        Arc::new(Plan { fault, at: at.to_vec(), for_ever, only, count, healed })
    }

    /// Returns the number of operations so far.
    pub(crate) fn count(&self) -> u64 {
        self.count.load(Ordering::SeqCst)
    }

    /// Ends the faults.
    pub(crate) fn heal(&self) {
        self.healed.store(1, Ordering::SeqCst);
    }

    fn strikes(&self) -> bool {
        let now = self.count.fetch_add(1, Ordering::SeqCst);
        let struck = self.at.contains(&now) || self.for_ever && self.at.first().is_some_and(|first| now > *first);
        struck && self.healed.load(Ordering::SeqCst) == 0
    }

    /// Returns the fault of an operation other than a write or a sync, if it is due.
    fn pass(&self) -> io::Result<()> {
        self.pass_as(Only::Any)
    }

    /// As [`pass`](Plan::pass), for an operation of a kind of its own.
    fn pass_as(&self, kind: Only) -> io::Result<()> {
        let counts = match self.only {
            Only::Any => true,
            Only::Names => kind == Only::Names,
            Only::Locks | Only::Syncs | Only::Directories => kind == self.only,
        };
        if !counts || !self.strikes() {
            return Ok(());
        }
        match self.fault {
            Fault::Errno(code) => Err(io::Error::from_raw_os_error(code)),
            Fault::ShortWrite => Err(full()),
            Fault::LyingSync | Fault::Taken | Fault::Exchanged => Ok(()),
            Fault::Die => std::process::abort(),
        }
    }

    /// As [`pass`](Plan::pass), for an operation that changes nothing. Dying before it is dying before the next that
    /// does.
    fn look(&self) -> io::Result<()> {
        if self.fault == Fault::Die { Ok(()) } else { self.pass() }
    }

    fn sync(&self, sync: impl FnOnce() -> io::Result<()>) -> io::Result<()> {
        if !self.strikes() {
            return sync();
        }
        match self.fault {
            Fault::Errno(code) => Err(io::Error::from_raw_os_error(code)),
            Fault::ShortWrite => Err(full()),
            Fault::LyingSync => Ok(()),
            Fault::Taken | Fault::Exchanged => sync(),
            Fault::Die => std::process::abort(),
        }
    }
}

fn full() -> io::Error {
    rustix::io::Errno::NOSPC.into()
}

/// A disk that fails by a plan.
#[derive(Debug, Clone)]
pub(crate) struct FaultDisk {
    inner: Arc<dyn Disk>,
    plan: Arc<Plan>,
}

impl FaultDisk {
    pub(crate) fn new(inner: Arc<dyn Disk>, plan: Arc<Plan>) -> FaultDisk {
        FaultDisk { inner, plan }
    }
}

impl FaultDisk {
    fn dir(&self, dir: io::Result<Arc<dyn Dir>>) -> io::Result<Arc<dyn Dir>> {
        Ok(Arc::new(FaultDir { dir: dir?, disk: self.clone() }))
    }

    fn new_file(&self, file: Box<dyn WriteFile>) -> Box<dyn WriteFile> {
        Box::new(FaultFile { file, plan: self.plan.clone() })
    }
}

impl Disk for FaultDisk {
    fn absolute(&self, path: &Path) -> io::Result<PathBuf> {
        self.inner.absolute(path)
    }

    fn least_recycled(&self) -> u64 {
        self.inner.least_recycled()
    }

    fn open_dir(&self, path: &Path) -> io::Result<Arc<dyn Dir>> {
        self.plan.look().and_then(|()| self.dir(self.inner.open_dir(path)))
    }
}

#[derive(Debug)]
struct FaultDir {
    dir: Arc<dyn Dir>,
    disk: FaultDisk,
}

impl FaultDir {
    fn plan(&self) -> &Plan {
        &self.disk.plan
    }

    /// Another program moves `ckpt-1` away.
    fn others_take(&self) -> io::Result<()> {
        self.dir.rename_new("ckpt-1".as_ref(), "archived".as_ref())
    }

    /// It also puts a directory of its own in that place.
    fn others_exchange(&self) -> io::Result<()> {
        self.others_take()?;
        self.dir.create_dir("ckpt-1".as_ref())?;
        self.dir.open_dir("ckpt-1".as_ref())?.create("precious".as_ref(), false).map(drop)
    }
}

impl OpenDir for FaultDir {
    fn stat(&self) -> io::Result<Stat> {
        self.plan().look().and_then(|()| self.dir.stat())
    }

    fn stat_of(&self, name: &OsStr) -> io::Result<Option<Stat>> {
        self.plan().look().and_then(|()| self.dir.stat_of(name))
    }

    fn list(&self) -> io::Result<Vec<Entry>> {
        self.plan().look().and_then(|()| self.dir.list())
    }

    fn open(&self, name: &OsStr) -> io::Result<Box<dyn ReadFile>> {
        self.plan().look()?;
        Ok(Box::new(FaultFile { file: self.dir.open(name)?, plan: self.disk.plan.clone() }))
    }
}

impl Dir for FaultDir {
    fn as_any(&self) -> &dyn Any {
        self.dir.as_any()
    }

    fn open_dir(&self, name: &OsStr) -> io::Result<Arc<dyn Dir>> {
        self.plan().look().and_then(|()| self.disk.dir(self.dir.open_dir(name)))
    }

    fn create_dir(&self, name: &OsStr) -> io::Result<()> {
        self.plan().pass().and_then(|()| self.dir.create_dir(name))
    }

    fn create(&self, name: &OsStr, direct: bool) -> io::Result<Box<dyn WriteFile>> {
        self.plan().pass()?;
        Ok(self.disk.new_file(self.dir.create(name, direct)?))
    }

    fn recycle(&self, name: &OsStr, to: &dyn Dir, new: &OsStr, direct: bool) -> io::Result<Option<Box<dyn WriteFile>>> {
        self.plan().pass()?;
        Ok(self.dir.recycle(name, to, new, direct)?.map(|file| self.disk.new_file(file)))
    }

    fn link(&self, name: &OsStr, to: &dyn Dir, new: &OsStr) -> io::Result<()> {
        self.plan().pass().and_then(|()| self.dir.link(name, to, new))
    }

    fn rename_new(&self, from: &OsStr, to: &OsStr) -> io::Result<()> {
        let plan = self.plan();
        if plan.fault == Fault::Exchanged && plan.at.contains(&plan.count()) {
            self.others_exchange()?;
        }
        plan.pass_as(Only::Names).and_then(|()| self.dir.rename_new(from, to))
    }

    fn replace(&self, from: &OsStr, to: &OsStr) -> io::Result<()> {
        self.plan().pass().and_then(|()| self.dir.replace(from, to))
    }

    fn remove_file(&self, name: &OsStr) -> io::Result<()> {
        self.plan().pass().and_then(|()| self.dir.remove_file(name))
    }

    fn remove_dir(&self, name: &OsStr) -> io::Result<()> {
        self.plan().pass().and_then(|()| self.dir.remove_dir(name))
    }

    fn sync(&self) -> io::Result<()> {
        let plan = self.plan();
        let is_struck = plan.at.contains(&plan.count());
        if plan.only == Only::Locks { self.dir.sync() } else { plan.sync(|| self.dir.sync()) }?;
        match plan.fault {
            Fault::Taken if is_struck => self.others_take(),
            Fault::Exchanged if is_struck => self.others_exchange(),
            _ => Ok(()),
        }
    }

    fn free_space(&self) -> io::Result<Option<u64>> {
        self.plan().look().and_then(|()| self.dir.free_space())
    }

    fn is_local(&self) -> bool {
        self.dir.is_local()
    }

    fn lock(&self, name: &OsStr, holder: &str) -> io::Result<Option<Box<dyn LockFile>>> {
        self.plan().pass_as(Only::Locks).and_then(|()| self.dir.lock(name, holder))
    }
}

struct FaultFile<F: ?Sized> {
    plan: Arc<Plan>,
    file: Box<F>,
}

impl WriteFile for FaultFile<dyn WriteFile> {
    fn write_all_at(&self, offset: u64, bytes: &[u8]) -> io::Result<()> {
        if self.plan.fault == Fault::ShortWrite && self.plan.at.contains(&self.plan.count()) {
            self.file.write_all_at(offset, &bytes[..bytes.len() / 2])?;
        }
        self.plan.pass().and_then(|()| self.file.write_all_at(offset, bytes))
    }

    fn set_len(&self, length: u64) -> io::Result<()> {
        self.plan.pass().and_then(|()| self.file.set_len(length))
    }

    fn sync(&self) -> io::Result<()> {
        let counts = matches!(self.plan.only, Only::Any | Only::Syncs);
        if counts { self.plan.sync(|| self.file.sync()) } else { self.file.sync() }
    }

    fn stat(&self) -> io::Result<Stat> {
        self.plan.look().and_then(|()| self.file.stat())
    }
}

impl ReadFile for FaultFile<dyn ReadFile> {
    fn stat(&self) -> io::Result<Stat> {
        self.plan.look().and_then(|()| self.file.stat())
    }

    fn read_exact_at(&self, offset: u64, buffer: &mut [u8]) -> io::Result<()> {
        self.plan.look().and_then(|()| self.file.read_exact_at(offset, buffer))
    }
}
