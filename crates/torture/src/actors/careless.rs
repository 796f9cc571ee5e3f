//! A disk that reaches files carelessly, which the actor must notice.

use crate::system::System;
use std::any::Any;
use std::ffi::OsStr;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use tch_checkpoint::internal::{Dir, Disk, Entry, Kind, LocalDisk, LockFile, OpenDir, ReadFile, Stat, WriteFile};

/// The carelessness of a disk.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Careless {
    /// A directory is reached by its path at every call, and links are followed.
    ByPath,
    /// Anything that has a required name is removed.
    Overwrites,
}

impl Careless {
    /// All of them.
    pub const ALL: [Careless; 2] = [Careless::ByPath, Careless::Overwrites];
}

/// The operating system's file system, made careless.
pub(super) fn disk(careless: Option<Careless>) -> Arc<dyn Disk> {
    match careless {
        None => Arc::new(System::default()),
        Some(careless) => Arc::new(CarelessDisk(careless)),
    }
}

#[derive(Debug)]
struct CarelessDisk(Careless);

impl Disk for CarelessDisk {
    fn absolute(&self, path: &Path) -> io::Result<PathBuf> {
        LocalDisk.absolute(path)
    }

    fn open_dir(&self, path: &Path) -> io::Result<Arc<dyn Dir>> {
        let opened = LocalDisk.open_dir(path)?;
        Ok(Arc::new(CarelessDir { careless: self.0, path: path.to_path_buf(), opened }))
    }

    fn least_recycled(&self) -> u64 {
        1
    }
}

#[derive(Debug)]
struct CarelessDir {
    careless: Careless,
    path: PathBuf,
    opened: Arc<dyn Dir>,
}

impl CarelessDir {
    fn dir(&self) -> io::Result<Arc<dyn Dir>> {
        match self.careless {
            Careless::ByPath => LocalDisk.open_dir(&self.path),
            Careless::Overwrites => Ok(self.opened.clone()),
        }
    }

    /// The directory `to`, which is of this kind.
    fn other(to: &dyn Dir) -> io::Result<Arc<dyn Dir>> {
        to.as_any().downcast_ref::<CarelessDir>().ok_or(io::ErrorKind::InvalidInput)?.dir()
    }
}

impl OpenDir for CarelessDir {
    fn stat(&self) -> io::Result<Stat> {
        self.dir()?.stat()
    }

    fn stat_of(&self, name: &OsStr) -> io::Result<Option<Stat>> {
        let stat = self.dir()?.stat_of(name)?;
        let is_in_the_way =
            stat.is_some_and(|stat| stat.kind == Kind::File) && name.to_string_lossy().starts_with("ckpt-");
        Ok(stat.filter(|_| self.careless != Careless::Overwrites || !is_in_the_way))
    }

    fn list(&self) -> io::Result<Vec<Entry>> {
        self.dir()?.list()
    }

    fn open(&self, name: &OsStr) -> io::Result<Box<dyn ReadFile>> {
        self.dir()?.open(name)
    }
}

impl Dir for CarelessDir {
    fn as_any(&self) -> &dyn Any {
        self
    }

    fn open_dir(&self, name: &OsStr) -> io::Result<Arc<dyn Dir>> {
        let path = self.path.join(name);
        let opened = match self.careless {
            Careless::ByPath => LocalDisk.open_dir(&path)?,
            Careless::Overwrites => self.opened.open_dir(name)?,
        };
        Ok(Arc::new(CarelessDir { careless: self.careless, path, opened }))
    }

    fn create_dir(&self, name: &OsStr) -> io::Result<()> {
        self.dir()?.create_dir(name)
    }

    fn create(&self, name: &OsStr, direct: bool) -> io::Result<Box<dyn WriteFile>> {
        self.dir()?.create(name, direct)
    }

    fn recycle(&self, name: &OsStr, to: &dyn Dir, new: &OsStr, direct: bool) -> io::Result<Option<Box<dyn WriteFile>>> {
        self.dir()?.recycle(name, &*CarelessDir::other(to)?, new, direct)
    }

    fn link(&self, name: &OsStr, to: &dyn Dir, new: &OsStr) -> io::Result<()> {
        self.dir()?.link(name, &*CarelessDir::other(to)?, new)
    }

    fn rename_new(&self, from: &OsStr, to: &OsStr) -> io::Result<()> {
        let dir = self.dir()?;
        if self.careless == Careless::Overwrites && dir.remove_file(to).is_err() {
            if let Ok(inside) = dir.open_dir(to) {
                inside.list()?.iter().try_for_each(|entry| inside.remove_file(&entry.name))?;
            }
            let _ = dir.remove_dir(to);
        }
        dir.rename_new(from, to)
    }

    fn replace(&self, from: &OsStr, to: &OsStr) -> io::Result<()> {
        self.dir()?.replace(from, to)
    }

    fn remove_file(&self, name: &OsStr) -> io::Result<()> {
        self.dir()?.remove_file(name)
    }

    fn remove_dir(&self, name: &OsStr) -> io::Result<()> {
        self.dir()?.remove_dir(name)
    }

    fn sync(&self) -> io::Result<()> {
        self.dir()?.sync()
    }

    fn free_space(&self) -> io::Result<Option<u64>> {
        self.dir()?.free_space()
    }

    fn is_local(&self) -> bool {
        self.opened.is_local()
    }

    fn lock(&self, name: &OsStr, holder: &str) -> io::Result<Option<Box<dyn LockFile>>> {
        self.dir()?.lock(name, holder)
    }
}
