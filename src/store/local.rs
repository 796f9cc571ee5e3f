//! The operating system's file operations.

use super::{Disk, Entry, NewFile, OldFile, PAGE};
use rustix::fs::{CWD, OFlags, RenameFlags};
use std::fs::{self, File, OpenOptions, TryLockError};
use std::io::{self, Write};
use std::os::unix::fs::{FileExt, MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};

/// The local file system.
#[derive(Debug, Clone, Copy, Default)]
pub(crate) struct LocalDisk;

/// A file being written: through the page cache, and past it once it goes direct.
struct LocalFile {
    file: File,
    path: PathBuf,
    direct: Option<File>,
}

impl Disk for LocalDisk {
    fn create_dir(&self, path: &Path) -> io::Result<()> {
        fs::create_dir(path)
    }

    fn create(&self, path: &Path) -> io::Result<Box<dyn NewFile>> {
        // O_EXCL neither follows a symbolic link nor opens what exists; the mode is left to the user's umask.
        let file = OpenOptions::new().write(true).create_new(true).open(path)?;
        Ok(Box::new(LocalFile { file, path: path.to_path_buf(), direct: None }))
    }

    fn recycle(&self, from: &Path, to: &Path) -> io::Result<Option<Box<dyn NewFile>>> {
        let flags = (OFlags::NOFOLLOW | OFlags::NONBLOCK).bits();
        let file = OpenOptions::new().write(true).custom_flags(flags as i32).open(from)?;
        let metadata = file.metadata()?;
        if !metadata.is_file() || metadata.nlink() != 1 || !is_ours_alone(&file) {
            return Ok(None);
        }
        self.rename_new(from, to)?;
        Ok(Some(Box::new(LocalFile { file, path: to.to_path_buf(), direct: None })))
    }

    fn link(&self, existing: &Path, new: &Path) -> io::Result<()> {
        fs::hard_link(existing, new)
    }

    fn open(&self, path: &Path) -> io::Result<Box<dyn OldFile>> {
        // O_NONBLOCK: opening a pipe must not wait for its other end.
        let flags = (OFlags::NOFOLLOW | OFlags::NONBLOCK).bits();
        let not_a_file = |what| Err(io::Error::new(io::ErrorKind::InvalidInput, what));
        let file = match OpenOptions::new().read(true).custom_flags(flags as i32).open(path) {
            Err(e) => match rustix::io::Errno::from_io_error(&e) {
                Some(rustix::io::Errno::LOOP) => return not_a_file("a symbolic link, not a regular file"),
                Some(rustix::io::Errno::NXIO) => return not_a_file("a socket or device, not a regular file"),
                _ => return Err(e),
            },
            Ok(file) => file,
        };
        if !file.metadata()?.is_file() {
            return not_a_file("not a regular file");
        }
        Ok(Box::new(file))
    }

    fn list(&self, path: &Path) -> io::Result<Vec<Entry>> {
        let mut entries = Vec::new();
        for entry in walkdir::WalkDir::new(path).min_depth(1).max_depth(1) {
            let entry = entry.map_err(io::Error::from)?;
            // A name that is not Unicode is none of ours; what stands for it here is not either.
            let name = entry.file_name().to_string_lossy().into_owned();
            entries.push(Entry { name, is_dir: entry.file_type().is_dir() });
        }
        Ok(entries)
    }

    fn exists(&self, path: &Path) -> io::Result<bool> {
        match fs::symlink_metadata(path) {
            Ok(_) => Ok(true),
            Err(e) if e.kind() == io::ErrorKind::NotFound => Ok(false),
            Err(e) => Err(e),
        }
    }

    fn sync_dir(&self, path: &Path) -> io::Result<()> {
        let folder = File::open(path)?;
        folder.sync_all()?;
        // XFS, once it has shut itself down after an error of its device, says that a folder is synced when it is not;
        // it does say so when the folder is read.
        #[cfg(target_os = "linux")]
        if let Some(entry) = rustix::fs::Dir::new(folder)?.next() {
            entry?;
        }
        Ok(())
    }

    fn rename_new(&self, from: &Path, to: &Path) -> io::Result<()> {
        match rustix::fs::renameat_with(CWD, from, CWD, to, RenameFlags::NOREPLACE) {
            // The file system has no such rename: the lock of the folder is what keeps others away.
            Err(rustix::io::Errno::INVAL | rustix::io::Errno::NOSYS | rustix::io::Errno::NOTSUP) => {
                if self.exists(to)? {
                    return Err(io::ErrorKind::AlreadyExists.into());
                }
                fs::rename(from, to)
            }
            result => Ok(result?),
        }
    }

    fn replace(&self, from: &Path, to: &Path) -> io::Result<()> {
        fs::rename(from, to)
    }

    fn remove_file(&self, path: &Path) -> io::Result<()> {
        fs::remove_file(path)
    }

    fn remove_dir(&self, path: &Path) -> io::Result<()> {
        fs::remove_dir(path)
    }

    fn free_space(&self, path: &Path) -> io::Result<Option<u64>> {
        let stat = rustix::fs::statvfs(path)?;
        // Some network and memory file systems report no blocks at all.
        Ok((stat.f_blocks > 0).then(|| stat.f_bavail.saturating_mul(stat.f_frsize)))
    }

    fn lock(&self, path: &Path, holder: &str) -> io::Result<Option<Box<dyn Send + Sync>>> {
        // Neither following a link out of the folder nor waiting for the other end of a pipe.
        let flags = (OFlags::NOFOLLOW | OFlags::NONBLOCK).bits();
        let mut options = OpenOptions::new();
        let mut file = options.write(true).create(true).truncate(false).custom_flags(flags as i32).open(path)?;
        let metadata = file.metadata()?;
        if !metadata.is_file() {
            return Err(io::Error::new(io::ErrorKind::InvalidInput, "not a regular file"));
        }
        match file.try_lock() {
            Ok(()) => {}
            Err(TryLockError::WouldBlock) => return Ok(None),
            Err(TryLockError::Error(e)) => return Err(e),
        }
        // Who holds it is for people, so a full disk is no reason to refuse; a file with another name is not ours.
        if metadata.nlink() == 1 {
            let _ = file.set_len(0).and_then(|()| file.write_all(holder.as_bytes()));
        }
        Ok(Some(Box::new(file)))
    }
}

impl NewFile for LocalFile {
    fn write_all_at(&self, offset: u64, bytes: &[u8]) -> io::Result<()> {
        let aligned = [offset as usize, bytes.as_ptr() as usize, bytes.len()].iter().all(|n| n % PAGE == 0);
        match self.direct.as_ref().filter(|_| aligned).map(|direct| direct.write_all_at(bytes, offset)) {
            // This file system, or device, wants another alignment: the page cache takes any.
            None => self.file.write_all_at(bytes, offset),
            Some(Err(e)) if e.kind() == io::ErrorKind::InvalidInput => self.file.write_all_at(bytes, offset),
            Some(result) => result,
        }
    }

    fn go_direct(&mut self) {
        let flags = (OFlags::NOFOLLOW | OFlags::DIRECT).bits();
        self.direct = OpenOptions::new().write(true).custom_flags(flags as i32).open(&self.path).ok();
    }

    fn set_len(&self, length: u64) -> io::Result<()> {
        self.file.set_len(length)
    }

    fn sync(&self) -> io::Result<()> {
        // Content, length and where they are on the device; not the time of the change, which would be a second write.
        self.file.sync_data()
    }
}

impl OldFile for File {
    fn len(&self) -> io::Result<u64> {
        Ok(self.metadata()?.len())
    }

    fn read_exact_at(&self, offset: u64, buffer: &mut [u8]) -> io::Result<()> {
        FileExt::read_exact_at(self, buffer, offset)
    }
}

/// Whether no other open file, in this process or another, shows this one; mapped memory counts as open. Asks for
/// a lease for writing, which the system grants only then (fcntl(2), "Leases"), and gives it back.
#[cfg(target_os = "linux")]
#[expect(unsafe_code, reason = "there is no safe wrapper of F_SETLEASE")]
fn is_ours_alone(file: &File) -> bool {
    use std::os::fd::AsRawFd;
    // SAFETY: both calls take the descriptor of an open file and an integer, and touch no memory of ours.
    unsafe {
        let granted = libc::fcntl(file.as_raw_fd(), libc::F_SETLEASE, libc::F_WRLCK) == 0;
        granted && libc::fcntl(file.as_raw_fd(), libc::F_SETLEASE, libc::F_UNLCK) == 0
    }
}

/// Other systems do not tell.
#[cfg(not(target_os = "linux"))]
fn is_ours_alone(_: &File) -> bool {
    false
}
