//! The simulated disk as the library sees it: directories and files by descriptor.

use super::SimDisk;
use super::files::{Content, Id, Name, Node, Rename};
use super::ops::{Op, apply_data};
use std::any::Any;
use std::ffi::{OsStr, OsString};
use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use tch_checkpoint::internal::{Dir, Disk, Entry, FileId, LockFile, OpenDir, ReadFile, Stat, WriteFile};

impl Disk for SimDisk {
    fn least_recycled(&self) -> u64 {
        1
    }

    fn absolute(&self, path: &Path) -> io::Result<PathBuf> {
        Ok(Path::new("/").join(path))
    }

    fn open_dir(&self, path: &Path) -> io::Result<Arc<dyn Dir>> {
        let mut state = self.state();
        let mut id = state.resolve(path)?;
        if let Node::Link(target) = state.files.nodes[id].clone() {
            id = state.resolve(&target)?;
        }
        match state.files.nodes[id] {
            Node::Directory(_) => Ok(Arc::new(SimDir { disk: self.clone(), id })),
            _ => Err(io::ErrorKind::NotADirectory.into()),
        }
    }
}

/// An open directory, which stays the same when its name changes.
#[derive(Debug)]
struct SimDir {
    disk: SimDisk,
    id: Id,
}

fn sim(dir: &dyn Dir) -> io::Result<Id> {
    dir.as_any().downcast_ref::<SimDir>().map(|dir| dir.id).ok_or_else(|| io::ErrorKind::Unsupported.into())
}

fn link_met() -> io::Error {
    rustix::io::Errno::LOOP.into()
}

impl OpenDir for SimDir {
    fn stat(&self) -> io::Result<Stat> {
        Ok(self.disk.state().stat(self.id))
    }

    fn stat_of(&self, name: &OsStr) -> io::Result<Option<Stat>> {
        let mut state = self.disk.state();
        match state.child(self.id, name) {
            Ok(id) => Ok(Some(state.stat(id))),
            Err(e) if e.kind() == io::ErrorKind::NotFound => Ok(None),
            Err(e) => Err(e),
        }
    }

    fn list(&self) -> io::Result<Vec<Entry>> {
        let state = self.disk.state();
        let entry = |(name, id): &(Name, Id)| Entry::new(&*name.text, state.stat(*id).kind);
        Ok(state.files.entries(self.id).iter().map(entry).collect())
    }

    fn open(&self, name: &OsStr) -> io::Result<Box<dyn ReadFile>> {
        let mut state = self.disk.state();
        let id = state.child(self.id, name)?;
        match state.files.nodes[id] {
            Node::File(_) => Ok(Box::new(state.open_file(&self.disk, id))),
            Node::Link(_) => Err(link_met()),
            Node::Directory(_) => Err(io::Error::new(io::ErrorKind::InvalidInput, "a directory, not a regular file")),
        }
    }
}

impl Dir for SimDir {
    fn as_any(&self) -> &dyn Any {
        self
    }

    fn open_dir(&self, name: &OsStr) -> io::Result<Arc<dyn Dir>> {
        let mut state = self.disk.state();
        let id = state.child(self.id, name)?;
        match state.files.nodes[id] {
            Node::Directory(_) => Ok(Arc::new(SimDir { disk: self.disk.clone(), id })),
            Node::Link(_) => Err(link_met()),
            Node::File(_) => Err(io::ErrorKind::NotADirectory.into()),
        }
    }

    fn create_dir(&self, name: &OsStr) -> io::Result<()> {
        let mut state = self.disk.state();
        let name = state.free_name(self.id, name)?;
        state.add(self.id, name, Node::Directory(Vec::new()));
        Ok(())
    }

    fn create(&self, name: &OsStr, _direct: bool) -> io::Result<Box<dyn WriteFile>> {
        let mut state = self.disk.state();
        let name = state.free_name(self.id, name)?;
        let id = state.add(self.id, name, Node::File(Content::new(Vec::new())));
        Ok(Box::new(state.open_file(&self.disk, id)))
    }

    fn recycle(
        &self,
        name: &OsStr,
        to: &dyn Dir,
        new: &OsStr,
        _direct: bool,
    ) -> io::Result<Option<Box<dyn WriteFile>>> {
        let mut state = self.disk.state();
        let (id, other) = (state.child(self.id, name)?, sim(to)?);
        let (name, new) = (state.name(name)?, state.free_name(other, new)?);
        state.move_between(self.id, name, other, new.clone(), id);
        let in_use = state.open.get(&id).is_some_and(|count| *count > 0);
        let seen = in_use || state.files.links(id) != 1;
        if seen && !state.careless || state.files.content(id).is_none() {
            state.rename(Rename::Remove { directory: other, name: new, id });
            return Ok(None);
        }
        state.recycled += 1;
        Ok(Some(Box::new(state.open_file(&self.disk, id))))
    }

    fn link(&self, name: &OsStr, to: &dyn Dir, new: &OsStr) -> io::Result<()> {
        let mut state = self.disk.state();
        let (id, directory) = (state.child(self.id, name)?, sim(to)?);
        if let Node::Directory(_) = state.files.nodes[id] {
            return Err(io::ErrorKind::PermissionDenied.into());
        }
        let name = state.free_name(directory, new)?;
        state.rename(Rename::Add { directory, name, id });
        Ok(())
    }

    fn rename_new(&self, from: &OsStr, to: &OsStr) -> io::Result<()> {
        let mut state = self.disk.state();
        let id = state.child(self.id, from)?;
        let (name, new) = (state.name(from)?, state.free_name(self.id, to)?);
        state.move_between(self.id, name, self.id, new, id);
        Ok(())
    }

    fn replace(&self, from: &OsStr, to: &OsStr) -> io::Result<()> {
        let mut state = self.disk.state();
        let id = state.child(self.id, from)?;
        let (name, new) = (state.name(from)?, state.name(to)?);
        if let Some(Node::Directory(_)) = state.files.find(self.id, &new).map(|id| &state.files.nodes[id]) {
            return Err(io::ErrorKind::IsADirectory.into());
        }
        state.rename(Rename::Move { directory: self.id, from: name, to: new, id, over: true });
        Ok(())
    }

    fn symlink(&self, target: &OsStr, name: &OsStr) -> io::Result<()> {
        let mut state = self.disk.state();
        let name = state.free_name(self.id, name)?;
        state.add(self.id, name, Node::Link(target.into()));
        Ok(())
    }

    fn read_link(&self, name: &OsStr) -> io::Result<OsString> {
        let mut state = self.disk.state();
        let id = state.child(self.id, name)?;
        match &state.files.nodes[id] {
            Node::Link(to) => Ok(to.clone().into_os_string()),
            _ => Err(io::ErrorKind::InvalidInput.into()),
        }
    }

    fn remove_file(&self, name: &OsStr) -> io::Result<()> {
        let mut state = self.disk.state();
        let id = state.child(self.id, name)?;
        if let Node::Directory(_) = state.files.nodes[id] {
            return Err(io::ErrorKind::IsADirectory.into());
        }
        let name = state.name(name)?;
        state.rename(Rename::Remove { directory: self.id, name, id });
        Ok(())
    }

    fn remove_dir(&self, name: &OsStr) -> io::Result<()> {
        let mut state = self.disk.state();
        let id = state.child(self.id, name)?;
        match &state.files.nodes[id] {
            Node::File(_) | Node::Link(_) => return Err(io::ErrorKind::NotADirectory.into()),
            Node::Directory(entries) if !entries.is_empty() => return Err(io::ErrorKind::DirectoryNotEmpty.into()),
            Node::Directory(_) => {}
        }
        let name = state.name(name)?;
        state.rename(Rename::Remove { directory: self.id, name, id });
        Ok(())
    }

    fn sync(&self) -> io::Result<()> {
        self.disk.state().record(Op::SyncDirectory(self.id));
        Ok(())
    }

    fn free_space(&self) -> io::Result<Option<u64>> {
        Ok(None)
    }

    fn is_local(&self) -> bool {
        !self.disk.state().remote
    }

    fn lock(&self, name: &OsStr, _holder: &str) -> io::Result<Option<Box<dyn LockFile>>> {
        let mut state = self.disk.state();
        let id = match state.child(self.id, name) {
            Ok(id) => id,
            Err(_) => {
                let name = state.name(name)?;
                state.add(self.id, name, Node::File(Content::new(Vec::new())))
            }
        };
        if !state.locked.insert(id) {
            return Ok(None);
        }
        Ok(Some(Box::new(SimLock { disk: self.disk.clone(), id })))
    }
}

struct SimLock {
    disk: SimDisk,
    id: Id,
}

impl LockFile for SimLock {
    fn id(&self) -> FileId {
        FileId { device: 1, inode: self.id as u64 }
    }

    fn release(&self) {
        self.disk.state().locked.remove(&self.id);
    }
}

pub(super) struct SimFile {
    pub(super) disk: SimDisk,
    pub(super) id: Id,
}

impl Drop for SimFile {
    fn drop(&mut self) {
        if let Some(count) = self.disk.state().open.get_mut(&self.id) {
            *count -= 1;
        }
    }
}

impl WriteFile for SimFile {
    fn set_len(&self, length: u64) -> io::Result<()> {
        let mut state = self.disk.state();
        let (id, length) = (self.id, length as usize);
        if state.files.content(id).is_some_and(|content| content.bytes.len() != length) {
            state.record(Op::Resize { id, length });
            apply_data(&mut state.files, &Op::Resize { id, length });
        }
        Ok(())
    }

    fn write_all_at(&self, offset: u64, bytes: &[u8]) -> io::Result<()> {
        self.disk.state().write(self.id, offset as usize, bytes);
        Ok(())
    }

    fn sync(&self) -> io::Result<()> {
        self.disk.state().record(Op::SyncFile(self.id));
        Ok(())
    }

    fn stat(&self) -> io::Result<Stat> {
        Ok(self.disk.state().stat(self.id))
    }
}

impl ReadFile for SimFile {
    fn stat(&self) -> io::Result<Stat> {
        Ok(self.disk.state().stat(self.id))
    }

    fn read_exact_at(&self, offset: u64, buffer: &mut [u8]) -> io::Result<()> {
        let state = self.disk.state();
        let bytes = state.files.content(self.id).map(|content| content.bytes.as_slice()).unwrap_or_default();
        let range = (offset as usize).min(bytes.len())..bytes.len();
        let from = bytes[range].get(..buffer.len()).ok_or_else(|| io::Error::from(io::ErrorKind::UnexpectedEof))?;
        buffer.copy_from_slice(from);
        Ok(())
    }
}
