//! The operating system's file operations.

use super::lease::is_ours_alone;
use super::{Dir, Disk, LockFile, WriteFile};
use crate::repository::{Entry, FileId, Kind, OpenDir, PAGE, ReadFile, Stat};
#[cfg(target_os = "linux")]
use rustix::fs::ResolveFlags;
use rustix::fs::{Access, AtFlags, FileType, Mode, OFlags, RenameFlags};
use rustix::io::Errno;
use std::any::Any;
use std::collections::BTreeMap;
use std::ffi::{OsStr, OsString};
use std::fs::{File, TryLockError};
use std::io::{self, Write};
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::ffi::OsStringExt;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;

/// The local file system.
#[derive(Debug, Clone, Copy, Default)]
pub struct LocalDisk;

/// A directory, held open.
#[derive(Debug)]
struct LocalDir(OwnedFd);

/// A file being written, through the page cache or, if there is a `direct` one, past it.
struct LocalFile {
    file: File,
    direct: Option<File>,
}

struct LocalLock {
    file: File,
    id: FileId,
}

/// How often a file is opened that is replaced while it is being opened.
const TRIES: usize = 100;

/// The flags with which every directory and file is opened.
const CLOSED_ON_EXEC: OFlags = OFlags::CLOEXEC;
/// The modes of new directories and files, as the system's tools have them. The umask applies.
const NEW_FILE: u32 = 0o666;
const NEW_DIRECTORY: u32 = 0o777;

/// File systems whose files are accessed through this kernel only, which therefore knows of every open file. The files
/// of an overlay can also be opened in its layers, and those of FUSE and network file systems on other machines. ext2,
/// ext3 and ext4; XFS; btrfs; tmpfs; F2FS; bcachefs.
#[cfg(target_os = "linux")]
const LOCAL: [u64; 6] = [0xEF53, 0x5846_5342, 0x9123_683E, 0x0102_1994, 0xF2F5_2010, 0xCA45_1A4E];

impl Disk for LocalDisk {
    fn absolute(&self, path: &Path) -> io::Result<PathBuf> {
        std::path::absolute(path)
    }

    fn open_dir(&self, path: &Path) -> io::Result<Arc<dyn Dir>> {
        let flags = OFlags::RDONLY | OFlags::DIRECTORY | CLOSED_ON_EXEC;
        Ok(match rustix::fs::open(path, flags, Mode::empty()) {
            // Without the right to read it, it can still lead to what is in it.
            Err(Errno::ACCESS) => Arc::new(LocalDir(rustix::fs::open(path, flags | OFlags::PATH, Mode::empty())?)),
            result => Arc::new(LocalDir(result?)),
        })
    }
}

impl LocalDir {
    fn open_at(&self, name: &OsStr, flags: OFlags) -> Result<OwnedFd, Errno> {
        let flags = flags | OFlags::NOFOLLOW | CLOSED_ON_EXEC;
        rustix::fs::openat(&self.0, name, flags, Mode::from_raw_mode(NEW_FILE))
    }

    /// Returns the directory `name`, which was opened with this result.
    fn opened(&self, name: &OsStr, result: Result<OwnedFd, Errno>) -> io::Result<Arc<dyn Dir>> {
        match result {
            // The system reports that a link is not a directory.
            Err(Errno::NOTDIR) if self.stat_of(name)?.is_some_and(|stat| stat.kind == Kind::Link) => {
                Err(Errno::LOOP.into())
            }
            result => Ok(Arc::new(LocalDir(result?))),
        }
    }

    /// Opens the file `name`, which must be `file`, again for direct writes. `None` if that is not possible.
    fn open_direct(&self, name: &OsStr, file: &File) -> Option<File> {
        let direct = File::from(self.open_at(name, OFlags::WRONLY | OFlags::DIRECT).ok()?);
        let id = |file: &File| stat_fd(file).ok().map(|stat| stat.id);
        (id(&direct) == id(file)).then_some(direct)
    }

    /// Opens a file that another program holds a lease on. Blocks until the lease is released.
    fn open_leased(&self, name: &OsStr) -> io::Result<File> {
        // Must not wait for a pipe: the opened file must be the examined one.
        let held = self.open_at(name, OFlags::PATH)?;
        if stat_fd(&held)?.kind != Kind::File {
            return Err(Errno::AGAIN.into());
        }
        let path = format!("/proc/self/fd/{}", std::os::fd::AsRawFd::as_raw_fd(&held));
        Ok(File::from(rustix::fs::open(path, OFlags::RDONLY | CLOSED_ON_EXEC, Mode::empty())?))
    }

    /// Returns `true` if an old file has the owner, group, mode and extended attributes of a new file in this directory.
    fn is_like_new(&self, file: &File) -> io::Result<bool> {
        // A file without a name, which goes when it is closed.
        let flags = OFlags::TMPFILE | OFlags::WRONLY | CLOSED_ON_EXEC;
        let new = File::from(rustix::fs::openat(&self.0, ".", flags, Mode::from_raw_mode(NEW_FILE))?);
        let (old_stat, new_stat) = (rustix::fs::fstat(file)?, rustix::fs::fstat(&new)?);
        let owner = |stat: &rustix::fs::Stat| (stat.st_dev, stat.st_uid, stat.st_gid, stat.st_mode);
        Ok(old_stat.st_nlink == 1 && owner(&old_stat) == owner(&new_stat) && attributes(file)? == attributes(&new)?)
    }

    /// Opens the lock file, or creates it.
    fn open_lock(&self, name: &OsStr) -> io::Result<(File, bool)> {
        // Not waiting for the other end of a pipe.
        match self.open_at(name, OFlags::RDWR | OFlags::NONBLOCK) {
            // It belongs to another user. Locking it needs no write permission.
            Err(Errno::ACCESS | Errno::PERM) => {
                let rights = Access::WRITE_OK | Access::EXEC_OK;
                rustix::fs::accessat(&self.0, ".", rights, AtFlags::EACCESS)?;
                Ok((File::from(self.open_at(name, OFlags::RDONLY | OFlags::NONBLOCK)?), false))
            }
            Err(Errno::NOENT) => {
                Ok((File::from(self.open_at(name, OFlags::RDWR | OFlags::CREATE | OFlags::EXCL)?), true))
            }
            result => Ok((File::from(result?), true)),
        }
    }
}

impl OpenDir for LocalDir {
    fn stat(&self) -> io::Result<Stat> {
        stat_fd(&self.0)
    }

    fn stat_of(&self, name: &OsStr) -> io::Result<Option<Stat>> {
        match rustix::fs::statat(&self.0, name, AtFlags::SYMLINK_NOFOLLOW) {
            Ok(stat) => Ok(Some(to_stat(&stat))),
            Err(Errno::NOENT) => Ok(None),
            Err(e) => Err(e.into()),
        }
    }

    fn list(&self) -> io::Result<Vec<Entry>> {
        let mut entries = Vec::new();
        for entry in rustix::fs::Dir::read_from(&self.0)? {
            let entry = entry?;
            let name = entry.file_name().to_bytes();
            if matches!(name, b"." | b"..") {
                continue;
            }
            let name = OsString::from_vec(name.to_vec());
            let kind = match entry.file_type() {
                // Not every file system reports it.
                FileType::Unknown => match self.stat_of(&name)? {
                    Some(stat) => stat.kind,
                    None => continue,
                },
                known => kind_of(known),
            };
            entries.push(Entry { name, kind });
        }
        Ok(entries)
    }

    fn open(&self, name: &OsStr) -> io::Result<Box<dyn ReadFile>> {
        let not_a_file = |what| Err(io::Error::new(io::ErrorKind::InvalidInput, what));
        for _ in 0..TRIES {
            // Opening a pipe must not wait for its other end.
            let file = match self.open_at(name, OFlags::RDONLY | OFlags::NONBLOCK) {
                Err(Errno::NXIO) => return not_a_file("a socket or device, not a regular file"),
                Err(Errno::AGAIN) => self.open_leased(name)?,
                result => File::from(result?),
            };
            let stat = stat_fd(&file)?;
            if stat.kind != Kind::File {
                return not_a_file("not a regular file");
            }
            // Between lookup and opening, the file may have been renamed to be overwritten.
            match self.stat_of(name)? {
                Some(now) if now.id == stat.id => return Ok(Box::new(file)),
                // Another file has taken its place, as the index is replaced by a save.
                Some(_) => {}
                None => return Err(io::ErrorKind::NotFound.into()),
            }
        }
        Err(io::Error::other("it is replaced all the time"))
    }
}

impl Dir for LocalDir {
    fn as_any(&self) -> &dyn Any {
        self
    }

    fn open_dir(&self, name: &OsStr) -> io::Result<Arc<dyn Dir>> {
        self.opened(name, self.open_at(name, OFlags::RDONLY | OFlags::DIRECTORY))
    }

    #[cfg(target_os = "linux")]
    fn open_dir_here(&self, name: &OsStr) -> io::Result<Arc<dyn Dir>> {
        let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::NOFOLLOW | CLOSED_ON_EXEC;
        match rustix::fs::openat2(&self.0, name, flags, Mode::empty(), ResolveFlags::NO_XDEV) {
            // Linux before 5.6, or a container that does not allow the call.
            Err(Errno::NOSYS | Errno::PERM) => Dir::open_dir(self, name),
            result => self.opened(name, result),
        }
    }

    fn create_dir(&self, name: &OsStr) -> io::Result<()> {
        Ok(rustix::fs::mkdirat(&self.0, name, Mode::from_raw_mode(NEW_DIRECTORY))?)
    }

    fn create(&self, name: &OsStr, direct: bool) -> io::Result<Box<dyn WriteFile>> {
        // O_EXCL neither follows a symbolic link nor opens what exists.
        let file = File::from(self.open_at(name, OFlags::WRONLY | OFlags::CREATE | OFlags::EXCL)?);
        let direct = if direct { self.open_direct(name, &file) } else { None };
        Ok(Box::new(LocalFile { file, direct }))
    }

    fn recycle(&self, name: &OsStr, to: &dyn Dir, new: &OsStr, direct: bool) -> io::Result<Option<Box<dyn WriteFile>>> {
        let Some(to) = to.as_any().downcast_ref::<LocalDir>() else {
            return Err(io::ErrorKind::Unsupported.into());
        };
        // Renamed first, so that no process that knows its old name can open it after the check.
        rename_new(self, name, to, new)?;
        let taken = || -> io::Result<Option<File>> {
            let file = File::from(to.open_at(new, OFlags::WRONLY | OFlags::NONBLOCK)?);
            let stat = stat_fd(&file)?;
            let fits = stat.kind == Kind::File && to.is_local() && to.is_like_new(&file)? && is_ours_alone(&file);
            Ok(fits.then_some(file))
        };
        match taken() {
            Ok(Some(file)) => {
                let direct = if direct { to.open_direct(new, &file) } else { None };
                Ok(Some(Box::new(LocalFile { file, direct })))
            }
            // Another process has it open and must not see other content, or it differs from a new file.
            _ => to.remove_file(new).map(|()| None),
        }
    }

    fn link(&self, name: &OsStr, to: &dyn Dir, new: &OsStr) -> io::Result<()> {
        let Some(to) = to.as_any().downcast_ref::<LocalDir>() else {
            return Err(io::ErrorKind::Unsupported.into());
        };
        Ok(rustix::fs::linkat(&self.0, name, &to.0, new, AtFlags::empty())?)
    }

    fn rename_new(&self, from: &OsStr, to: &OsStr) -> io::Result<()> {
        rename_new(self, from, self, to)
    }

    fn replace(&self, from: &OsStr, to: &OsStr) -> io::Result<()> {
        Ok(rustix::fs::renameat(&self.0, from, &self.0, to)?)
    }

    fn symlink(&self, target: &OsStr, name: &OsStr) -> io::Result<()> {
        Ok(rustix::fs::symlinkat(target, &self.0, name)?)
    }

    fn read_link(&self, name: &OsStr) -> io::Result<OsString> {
        let target = rustix::fs::readlinkat(&self.0, name, Vec::new())?;
        Ok(OsString::from_vec(target.into_bytes()))
    }

    fn remove_file(&self, name: &OsStr) -> io::Result<()> {
        Ok(rustix::fs::unlinkat(&self.0, name, AtFlags::empty())?)
    }

    fn remove_dir(&self, name: &OsStr) -> io::Result<()> {
        Ok(rustix::fs::unlinkat(&self.0, name, AtFlags::REMOVEDIR)?)
    }

    fn sync(&self) -> io::Result<()> {
        match rustix::fs::fsync(&self.0) {
            // Opened without the right to read it.
            Err(Errno::BADF) => return Err(Errno::ACCESS.into()),
            result => result?,
        }
        // XFS, once it has shut itself down after an error of its device, reports a directory as synced when it is not;
        // reading the directory does fail.
        #[cfg(target_os = "linux")]
        if let Some(entry) = rustix::fs::Dir::read_from(&self.0)?.next() {
            entry?;
        }
        Ok(())
    }

    fn free_space(&self) -> io::Result<Option<u64>> {
        let stat = rustix::fs::fstatvfs(&self.0)?;
        // Some network and memory file systems report no blocks at all.
        Ok((stat.f_blocks > 0).then(|| stat.f_bavail.saturating_mul(stat.f_frsize)))
    }

    fn name_limit(&self) -> usize {
        let told = rustix::fs::fstatvfs(&self.0).map_or(0, |stat| stat.f_namemax);
        usize::try_from(told).ok().filter(|told| (1..255).contains(told)).unwrap_or(255)
    }

    #[cfg(target_os = "linux")]
    fn is_local(&self) -> bool {
        rustix::fs::fstatfs(&self.0).is_ok_and(|stat| LOCAL.contains(&(stat.f_type as u64 & 0xFFFF_FFFF)))
    }

    #[cfg(not(target_os = "linux"))]
    fn is_local(&self) -> bool {
        false
    }

    fn lock(&self, name: &OsStr, holder: &str) -> io::Result<Option<Box<dyn LockFile>>> {
        // Tried again if it was removed or created by another process between opening and locking.
        for _ in 0..100 {
            let (mut file, writable) = match self.open_lock(name) {
                Err(e) if matches!(e.kind(), io::ErrorKind::AlreadyExists | io::ErrorKind::NotFound) => continue,
                result => result?,
            };
            let stat = stat_fd(&file)?;
            if stat.kind != Kind::File {
                return Err(io::Error::new(io::ErrorKind::InvalidInput, "not a regular file"));
            }
            match file.try_lock() {
                Ok(()) => {}
                Err(TryLockError::WouldBlock) => return Ok(None),
                Err(TryLockError::Error(e)) => return Err(e),
            }
            if self.stat_of(name)?.is_none_or(|now| now.id != stat.id) {
                continue;
            }
            // The name of the holder is informative, so a full disk is no error. A file with a second name is not
            // written.
            if writable && rustix::fs::fstat(&file)?.st_nlink == 1 {
                let _ = file.set_len(0).and_then(|()| file.write_all(holder.as_bytes()));
            }
            return Ok(Some(Box::new(LocalLock { file, id: stat.id })));
        }
        Err(io::Error::other("it is removed and made again all the time"))
    }
}

impl LockFile for LocalLock {
    fn id(&self) -> FileId {
        self.id
    }

    fn release(&self) {
        // A process that was forked from this one has the file open too: closing it would not be enough.
        if let Err(e) = self.file.unlock() {
            log::warn!("the lock could not be given back before the process ends: {e:#}");
        }
    }
}

impl WriteFile for LocalFile {
    fn write_all_at(&self, offset: u64, bytes: &[u8]) -> io::Result<()> {
        let aligned = [offset as usize, bytes.as_ptr() as usize, bytes.len()].iter().all(|n| n % PAGE == 0);
        match self.direct.as_ref().filter(|_| aligned).map(|direct| direct.write_all_at(bytes, offset)) {
            // This file system or device requires another alignment; the page cache accepts any.
            None => self.file.write_all_at(bytes, offset),
            Some(Err(e)) if e.kind() == io::ErrorKind::InvalidInput => self.file.write_all_at(bytes, offset),
            Some(result) => result,
        }
    }

    fn set_len(&self, length: u64) -> io::Result<()> {
        self.file.set_len(length)
    }

    fn sync(&self) -> io::Result<()> {
        // Syncs the content and what is needed to read it, but not the modification time, which would be a second
        // write.
        self.file.sync_data()
    }

    fn stat(&self) -> io::Result<Stat> {
        stat_fd(&self.file)
    }
}

impl ReadFile for File {
    fn stat(&self) -> io::Result<Stat> {
        stat_fd(self)
    }

    fn read_exact_at(&self, offset: u64, buffer: &mut [u8]) -> io::Result<()> {
        FileExt::read_exact_at(self, buffer, offset)
    }
}

/// Renames to a name that must be free.
fn rename_new(from: &LocalDir, name: &OsStr, to: &LocalDir, new: &OsStr) -> io::Result<()> {
    match rustix::fs::renameat_with(&from.0, name, &to.0, new, RenameFlags::NOREPLACE) {
        // The file system has no such rename: the lock of the directory is what keeps others away.
        Err(Errno::INVAL | Errno::NOSYS | Errno::NOTSUP) => {
            if to.stat_of(new)?.is_some() {
                return Err(io::ErrorKind::AlreadyExists.into());
            }
            Ok(rustix::fs::renameat(&from.0, name, &to.0, new)?)
        }
        result => Ok(result?),
    }
}

fn stat_fd(fd: impl AsFd) -> io::Result<Stat> {
    Ok(to_stat(&rustix::fs::fstat(fd)?))
}

#[allow(clippy::unnecessary_cast, reason = "the fields differ between systems")]
fn to_stat(stat: &rustix::fs::Stat) -> Stat {
    Stat {
        id: FileId { device: stat.st_dev as u64, inode: stat.st_ino as u64 },
        kind: kind_of(FileType::from_raw_mode(stat.st_mode)),
        length: stat.st_size as u64,
        modified: (stat.st_mtime as i64, stat.st_mtime_nsec as i64),
    }
}

fn kind_of(file_type: FileType) -> Kind {
    match file_type {
        FileType::RegularFile => Kind::File,
        FileType::Directory => Kind::Directory,
        FileType::Symlink => Kind::Link,
        _ => Kind::Other,
    }
}

/// Returns a file's extended attributes, which access control lists are among, by name.
fn attributes(file: &File) -> io::Result<BTreeMap<Vec<u8>, Vec<u8>>> {
    let mut names = [0; 4096];
    let length = match rustix::fs::flistxattr(file, &mut names[..]) {
        Ok(length) => length,
        Err(Errno::NOTSUP | Errno::NOSYS) => 0,
        Err(e) => return Err(e.into()),
    };
    let mut attributes = BTreeMap::new();
    for name in names[..length].split(|byte| *byte == 0).filter(|name| !name.is_empty()) {
        // An error, so that the file is not reused, for a longer one.
        let mut value = [0; 4096];
        let length = rustix::fs::fgetxattr(file, name, &mut value[..])?;
        attributes.insert(name.to_vec(), value[..length].to_vec());
    }
    Ok(attributes)
}
