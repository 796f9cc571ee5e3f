//! Directories of checkpoints in memory, for tests and temporary state.

use super::names::{Aside, MANIFEST, before_aside};
use super::reading::{checkpoint_failed, marks_in, read_manifest};
use super::{
    Entry, FileId, Finished, Kind, Lock, OpenDir, OpenOptions, ReadFile, Repository, Scan, StagedFile, Stat, Stays,
    Storage, Transaction,
};
use crate::error::{Error, Result};
use crate::format::Follows;
use crate::location::Location;
use std::collections::BTreeMap;
use std::ffi::OsStr;
use std::io;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, Weak};

/// Checkpoints in memory, for tests and temporary state; clones share them.
///
/// Serves every location, path or URL, by its text: `run` and `./run` are different directories, which exist in no file
/// system. A directory is created when a manager opens it or a checkpoint is written to it. Its content is lost with
/// the last clone.
///
/// ```
/// # fn main() -> Result<(), Box<dyn std::error::Error>> {
/// use std::sync::Arc;
/// use tch_checkpoint::repository::Memory;
/// use tch_checkpoint::{Checkpoint, Counter};
/// let (memory, step) = (Arc::new(Memory::default()), Counter::new(7));
/// let path = Checkpoint::in_storage(memory.clone()).track("step", &step)?.write("run/seven")?;
/// step.set(0);
/// Checkpoint::in_storage(memory).track("step", &step)?.restore(&path)?;
/// assert_eq!(step.get(), 7);
/// # Ok(())
/// # }
/// ```
#[derive(Debug, Clone, Default)]
pub struct Memory(Arc<Mutex<BTreeMap<Location, Arc<Root>>>>);

/// A directory of checkpoints.
#[derive(Debug, Default)]
struct Root {
    state: Mutex<State>,
    lock: Mutex<Weak<()>>,
}

#[derive(Debug, Default)]
struct State {
    checkpoints: BTreeMap<String, Arc<Held>>,
    files: BTreeMap<String, File>,
}

/// A checkpoint.
#[derive(Debug)]
struct Held {
    id: FileId,
    files: Mutex<BTreeMap<String, File>>,
}

#[derive(Debug, Clone)]
struct File {
    stat: Stat,
    bytes: Arc<Vec<u8>>,
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

fn new_id() -> FileId {
    static NEXT: AtomicU64 = AtomicU64::new(1);
    FileId { device: 0, inode: NEXT.fetch_add(1, Ordering::Relaxed) }
}

impl File {
    fn new(bytes: Vec<u8>) -> File {
        let stat = Stat::new(new_id(), Kind::File, bytes.len() as u64);
        File { stat, bytes: Arc::new(bytes) }
    }
}

impl ReadFile for File {
    fn stat(&self) -> io::Result<Stat> {
        Ok(self.stat)
    }

    fn read_exact_at(&self, offset: u64, buffer: &mut [u8]) -> io::Result<()> {
        let start = usize::try_from(offset).ok();
        let bytes = start.and_then(|start| self.bytes.get(start..)?.get(..buffer.len()));
        buffer.copy_from_slice(bytes.ok_or(io::ErrorKind::UnexpectedEof)?);
        Ok(())
    }
}

/// Returns a file of a directory, open for reading.
fn read(files: &BTreeMap<String, File>, name: &OsStr) -> io::Result<Box<dyn ReadFile>> {
    let file = name.to_str().and_then(|name| files.get(name)).ok_or(io::ErrorKind::NotFound)?;
    Ok(Box::new(file.clone()))
}

impl OpenDir for Held {
    fn stat(&self) -> io::Result<Stat> {
        Ok(Stat::new(self.id, Kind::Directory, 0))
    }

    fn stat_of(&self, name: &OsStr) -> io::Result<Option<Stat>> {
        Ok(name.to_str().and_then(|name| Some(lock(&self.files).get(name)?.stat)))
    }

    fn list(&self) -> io::Result<Vec<Entry>> {
        Ok(lock(&self.files).keys().map(|name| Entry::new(name, Kind::File)).collect())
    }

    fn open(&self, name: &OsStr) -> io::Result<Box<dyn ReadFile>> {
        read(&lock(&self.files), name)
    }
}

impl OpenDir for Root {
    fn stat(&self) -> io::Result<Stat> {
        let id = FileId { device: 1, inode: std::ptr::from_ref(self) as u64 };
        Ok(Stat::new(id, Kind::Directory, 0))
    }

    fn stat_of(&self, name: &OsStr) -> io::Result<Option<Stat>> {
        let Some(name) = name.to_str() else { return Ok(None) };
        let state = lock(&self.state);
        let file = || state.files.get(name).map(|file| file.stat);
        state.checkpoints.get(name).map(|checkpoint| checkpoint.stat()).or_else(|| file().map(Ok)).transpose()
    }

    fn list(&self) -> io::Result<Vec<Entry>> {
        let state = lock(&self.state);
        let checkpoints = state.checkpoints.keys().map(|name| Entry::new(name, Kind::Directory));
        Ok(checkpoints.chain(state.files.keys().map(|name| Entry::new(name, Kind::File))).collect())
    }

    fn open(&self, name: &OsStr) -> io::Result<Box<dyn ReadFile>> {
        read(&lock(&self.state).files, name)
    }
}

impl Memory {
    fn root(&self, location: &Location) -> Option<Arc<Root>> {
        lock(&self.0).get(location).cloned()
    }
}

impl Storage for Memory {
    fn absolute(&self, location: &Location) -> Result<Location> {
        Ok(location.clone())
    }

    fn repository(&self, root: &Location, options: &OpenOptions) -> Result<Arc<dyn Repository>> {
        Ok(Arc::new(MemoryDirectory { memory: self.clone(), location: root.clone(), locks: options.lock }))
    }

    fn open(&self, location: &Location) -> Result<Arc<dyn OpenDir>> {
        let root = location.parent().and_then(|parent| self.root(&parent));
        let found =
            root.zip(location.file_name().and_then(OsStr::to_str)).and_then(|(root, name)| root.checkpoint(name));
        match found {
            Some(checkpoint) => Ok(checkpoint),
            None => Err(checkpoint_failed(location, io::ErrorKind::NotFound.into())),
        }
    }
}

impl Root {
    fn checkpoint(&self, name: &str) -> Option<Arc<Held>> {
        lock(&self.state).checkpoints.get(name).cloned()
    }
}

#[derive(Debug)]
struct MemoryDirectory {
    memory: Memory,
    location: Location,
    locks: bool,
}

impl MemoryDirectory {
    fn opened(&self) -> Result<Arc<Root>> {
        let missing = || Error::io("open the directory", &self.location, io::ErrorKind::NotFound.into());
        self.memory.root(&self.location).ok_or_else(missing)
    }

    /// Changes the files of the checkpoint `of`. Removals hold the same lock.
    fn marked<R>(
        &self,
        checkpoint: &str,
        of: &Follows,
        change: impl FnOnce(&mut BTreeMap<String, File>) -> R,
    ) -> Result<R> {
        let (root, path) = (self.opened()?, self.location.join(checkpoint));
        let state = lock(&root.state);
        let removed = || Error::Removed { path: path.clone() };
        let found = state.checkpoints.get(checkpoint).ok_or_else(removed)?;
        let manifest = read_manifest(&**found, &path)?;
        if (&manifest.run, manifest.sequence) != (&of.run, of.sequence) {
            return Err(removed());
        }
        Ok(change(&mut lock(&found.files)))
    }

    /// Gives the checkpoint `from` another name, which must be free.
    fn rename(&self, from: &str, to: &str) -> Result<()> {
        let root = self.opened()?;
        let mut state = lock(&root.state);
        if state.checkpoints.contains_key(to) {
            return Err(Error::already_exists(self.location.join(to)));
        }
        let missing = || Error::io("rename", self.location.join(from), io::ErrorKind::NotFound.into());
        let checkpoint = state.checkpoints.remove(from).ok_or_else(missing)?;
        state.checkpoints.insert(to.to_string(), checkpoint);
        Ok(())
    }
}

impl Repository for MemoryDirectory {
    fn root(&self) -> &Location {
        &self.location
    }

    fn id(&self) -> Option<FileId> {
        self.opened().ok()?.stat().ok().map(|stat| stat.id)
    }

    fn dir(&self) -> Result<Arc<dyn OpenDir>> {
        Ok(self.opened()?)
    }

    fn open(&self, name: &str) -> io::Result<Arc<dyn OpenDir>> {
        match self.memory.root(&self.location).and_then(|root| root.checkpoint(name)) {
            Some(checkpoint) => Ok(checkpoint),
            None => Err(io::ErrorKind::NotFound.into()),
        }
    }

    fn scan(&self) -> Result<Scan> {
        let mut scan = Scan::default();
        let Some(root) = self.memory.root(&self.location) else { return Ok(scan) };
        let state = lock(&root.state);
        for name in state.checkpoints.keys() {
            match before_aside(name) {
                Some((aside, _)) => scan.aside.push((aside, name.clone())),
                None => scan.checkpoints.push(name.clone()),
            }
        }
        scan.names = state.checkpoints.keys().chain(state.files.keys()).cloned().collect();
        Ok(scan)
    }

    fn scan_for_writing(&self) -> Result<Scan> {
        self.scan()
    }

    fn create(&self) -> Result<()> {
        lock(&self.memory.0).entry(self.location.clone()).or_default();
        Ok(())
    }

    fn lock(&self) -> Result<Lock> {
        let (root, guard) = (self.opened()?, Arc::new(()));
        let mut held = lock(&root.lock);
        if self.locks && held.upgrade().is_some() {
            let holder = "another writer of this process".to_string();
            return Err(Error::Locked { path: self.location.clone(), holder });
        }
        *held = Arc::downgrade(&guard);
        Ok(Lock::new(guard))
    }

    fn check_process(&self) -> Result<()> {
        Ok(())
    }

    fn check(&self) -> Result<()> {
        Ok(())
    }

    fn check_name(&self, _name: &str) -> Result<()> {
        Ok(())
    }

    fn begin(&self, name: &str, _bytes: u64) -> Result<Box<dyn Transaction + '_>> {
        Ok(Box::new(Staged { directory: self, root: self.opened()?, name: name.to_string(), files: Mutex::default() }))
    }

    fn remove(&self, name: &str, id: &Follows, stays: Stays<'_>) -> Result<bool> {
        let path = self.location.join(name);
        let root = self.opened()?;
        let Some(checkpoint) = lock(&root.state).checkpoints.get(name).cloned() else { return Ok(true) };
        match read_manifest(&*checkpoint, &path) {
            Ok(manifest) if manifest.run == id.run && manifest.sequence == id.sequence => {}
            Ok(_) => return Ok(true),
            Err(_) => return self.quarantine(name, Aside::Damaged).map(|_| true),
        }
        // Writers of marks hold the same lock.
        let mut state = lock(&root.state);
        if stays(&marks_in(&*checkpoint, &path)?) {
            return Ok(false);
        }
        state.checkpoints.remove(name);
        Ok(true)
    }

    fn discard(&self, aside: &str, stays: Stays<'_>) -> Result<bool> {
        if !matches!(before_aside(aside), Some((Aside::Damaged, _))) {
            return Ok(false);
        }
        let root = self.opened()?;
        let mut state = lock(&root.state);
        let Some(checkpoint) = state.checkpoints.get(aside).cloned() else { return Ok(true) };
        if stays(&marks_in(&*checkpoint, &self.location.join(aside))?) {
            return Ok(false);
        }
        state.checkpoints.remove(aside);
        Ok(true)
    }

    fn quarantine(&self, name: &str, aside: Aside) -> Result<String> {
        let new = aside.new_name(name);
        self.rename(name, &new).map(|()| new)
    }

    fn release(&self, aside: &str, name: &str) -> Result<()> {
        self.rename(aside, name)
    }

    fn put_small(&self, file: &str, bytes: &[u8]) -> Result<()> {
        lock(&self.opened()?.state).files.insert(file.to_string(), File::new(bytes.to_vec()));
        Ok(())
    }

    fn put_mark(&self, checkpoint: &str, of: &Follows, file: &str, bytes: &[u8]) -> Result<()> {
        self.marked(checkpoint, of, |files| {
            files.insert(file.to_string(), File::new(bytes.to_vec()));
        })
    }

    fn remove_mark(&self, checkpoint: &str, of: &Follows, file: &str) -> Result<bool> {
        self.marked(checkpoint, of, |files| files.remove(file).is_some())
    }

    fn sync_marks(&self, _checkpoint: &str, _of: &Follows) -> Result<()> {
        Ok(())
    }

    fn remove_files(&self, checkpoint: &str, of: &Follows, files: &[String]) -> Result<()> {
        self.marked(checkpoint, of, |all| files.iter().for_each(|file| drop(all.remove(file))))
    }

    fn sweep_marks(&self, _checkpoint: &str) {}

    fn remove_small(&self, file: &str) {
        if let Some(root) = self.memory.root(&self.location) {
            lock(&root.state).files.remove(file);
        }
    }

    fn sweep(&self, _leftovers: &[String]) {}
}

/// A checkpoint being written.
struct Staged<'a> {
    directory: &'a MemoryDirectory,
    root: Arc<Root>,
    name: String,
    files: Mutex<BTreeMap<String, File>>,
}

impl Transaction for Staged<'_> {
    fn create(&self, file: &str, _bytes: u64) -> Result<Box<dyn StagedFile + '_>> {
        Ok(Box::new(Writing { staged: self, name: file.to_string(), bytes: Mutex::default() }))
    }

    fn reuse(&self, file: &str, earlier: &str, finished: &Finished) -> Result<()> {
        let earlier = lock(&self.root.state).checkpoints.get(earlier).cloned();
        let same = earlier.and_then(|earlier| lock(&earlier.files).get(file).cloned());
        let Some(same) = same.filter(|same| Finished::from(same.stat) == *finished) else {
            return Err(Error::damaged(
                self.directory.location.join(file),
                "the file it would share is not there any more",
            ));
        };
        lock(&self.files).insert(file.to_string(), same);
        Ok(())
    }

    fn commit(
        self: Box<Self>,
        manifest: &[u8],
        _threads: usize,
        supersedes: &[String],
    ) -> Result<Vec<(String, String)>> {
        let mut files = std::mem::take(&mut *lock(&self.files));
        files.insert(MANIFEST.to_string(), File::new(manifest.to_vec()));
        let mut state = lock(&self.root.state);
        if state.checkpoints.contains_key(&self.name) && !supersedes.contains(&self.name) {
            return Err(Error::already_exists(self.directory.location.join(&self.name)));
        }
        let mut superseded = Vec::new();
        for name in supersedes {
            if let Some(checkpoint) = state.checkpoints.remove(name) {
                let aside = Aside::Superseded.new_name(name);
                state.checkpoints.insert(aside.clone(), checkpoint);
                superseded.push((name.clone(), aside));
            }
        }
        state.checkpoints.insert(self.name.clone(), Arc::new(Held { id: new_id(), files: Mutex::new(files) }));
        Ok(superseded)
    }
}

/// A file being written.
struct Writing<'a> {
    staged: &'a Staged<'a>,
    name: String,
    bytes: Mutex<Vec<u8>>,
}

impl StagedFile for Writing<'_> {
    fn write_all_at(&self, offset: u64, bytes: &[u8]) -> Result<()> {
        let mut all = lock(&self.bytes);
        let start = usize::try_from(offset).ok();
        let end = start.and_then(|start| start.checked_add(bytes.len()));
        let (Some(start), Some(end)) = (start, end) else {
            return Err(Error::object(&self.name, "the file is larger than memory"));
        };
        if all.len() < end {
            all.resize(end, 0);
        }
        all[start..end].copy_from_slice(bytes);
        Ok(())
    }

    fn finish(self: Box<Self>, bytes: u64) -> Result<Finished> {
        let mut all = std::mem::take(&mut *lock(&self.bytes));
        all.resize(usize::try_from(bytes).unwrap_or(usize::MAX), 0);
        let file = File::new(all);
        let finished = Finished::from(file.stat);
        lock(&self.staged.files).insert(self.name.clone(), file);
        Ok(finished)
    }
}
