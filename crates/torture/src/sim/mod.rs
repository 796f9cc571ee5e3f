//! A disk in memory that records what it is told, and distinguishes what a crash may undo.

mod dirs;
mod files;
mod ops;

pub(crate) use files::{Content, Files, Id, Name, Node, Rename, TOP};
pub(crate) use ops::{Op, partly_written};

use super::marked::Noted;
use dirs::SimFile;
use ops::apply_data;
use std::collections::{HashMap, HashSet};
use std::ffi::OsStr;
use std::io;
use std::path::{Component, Path};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use tch_checkpoint::internal::{FileId, Kind, Stat};

/// The simulated disk. Clones are the same disk.
#[derive(Clone)]
pub(crate) struct SimDisk(Arc<Mutex<State>>);

struct State {
    files: Files,
    ops: Option<Vec<Op>>,
    locked: HashSet<Id>,
    /// The file system is not known to be local.
    remote: bool,
    /// The number of parts into which a crash can tear a write.
    atoms: usize,
    /// Forbidden operations, such as on a path outside the directory.
    outrages: Vec<String>,
    /// Files that are open or have a second name are recycled too.
    careless: bool,
    /// The number of recycled files.
    recycled: usize,
    /// How often each file is open.
    open: HashMap<Id, usize>,
}

impl std::fmt::Debug for SimDisk {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("SimDisk")
    }
}

impl SimDisk {
    /// Returns a disk with `files`. Operations are recorded if `atoms` is not 0.
    pub(crate) fn new(files: Files, atoms: usize) -> SimDisk {
        SimDisk(Arc::new(Mutex::new(State {
            files,
            ops: (atoms > 0).then(Vec::new),
            locked: HashSet::new(),
            remote: false,
            atoms: atoms.max(1),
            outrages: Vec::new(),
            careless: false,
            recycled: 0,
            open: HashMap::new(),
        })))
    }

    /// Returns a disk that had `files`, after the operations `ops` of a process that was killed.
    pub(crate) fn resumed(files: Files, ops: &[Op], atoms: usize) -> SimDisk {
        let disk = SimDisk::new(files, atoms);
        let mut state = disk.state();
        for op in ops {
            state.do_again(op);
        }
        drop(state);
        disk
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(crate) fn files(&self) -> Files {
        self.state().files.clone()
    }

    pub(crate) fn ops(&self) -> Vec<Op> {
        self.state().ops.clone().unwrap_or_default()
    }

    pub(crate) fn outrages(&self) -> Vec<String> {
        self.state().outrages.clone()
    }

    /// Returns the number of references to the disk: open files, locks and users.
    pub(crate) fn holders(&self) -> usize {
        Arc::strong_count(&self.0)
    }

    /// Makes the disk recycle files that are open or have a second name.
    pub(crate) fn be_careless(&self) {
        self.state().careless = true;
    }

    /// Returns the number of recycled files.
    #[cfg(test)]
    pub(crate) fn recycled(&self) -> usize {
        self.state().recycled
    }

    /// Syncs a file by its path.
    pub(crate) fn sync_file(&self, path: &Path) {
        let mut state = self.state();
        if let Ok(id) = state.resolve(path) {
            state.record(Op::SyncFile(id));
        }
    }

    /// Returns the names in a directory.
    pub(crate) fn names(&self, path: &Path) -> Vec<String> {
        let mut state = self.state();
        let Ok(directory) = state.resolve(path) else { return Vec::new() };
        state.files.entries(directory).iter().map(|(name, _)| name.text.to_string()).collect()
    }

    /// Returns `true` if the path exists.
    pub(crate) fn has(&self, path: &Path) -> bool {
        self.state().resolve(path).is_ok()
    }

    /// Returns the bytes of a file.
    pub(crate) fn read(&self, path: &Path) -> Option<Vec<u8>> {
        let mut state = self.state();
        let id = state.resolve(path).ok()?;
        state.files.content(id).map(|content| content.bytes.to_vec())
    }

    /// Renames, as another program would.
    #[cfg(test)]
    pub(crate) fn rename(&self, from: &str, to: &str) {
        let mut state = self.state();
        let split = |state: &mut State, path: &str| {
            let (directory, name) = path.rsplit_once('/').unwrap_or_default();
            (state.resolve(Path::new(directory)).unwrap_or(TOP), Name::new(name))
        };
        let (directory, name) = split(&mut state, from);
        let (other, new) = split(&mut state, to);
        let id = state.files.find(directory, &name).unwrap_or(TOP);
        state.move_between(directory, name, other, new, id);
    }

    /// Creates a symbolic link, as another program would.
    #[cfg(test)]
    pub(crate) fn link(&self, directory: &str, name: &str, to: &str) {
        let mut state = self.state();
        if let Ok(directory) = state.resolve(Path::new(directory)) {
            state.add(directory, Name::new(name), Node::Link(to.into()));
        }
    }

    /// Makes the file system one that is not known to be local.
    #[cfg(test)]
    pub(crate) fn be_remote(&self) {
        self.state().remote = true;
    }

    /// Records that the save of `step` was acknowledged.
    pub(crate) fn saved(&self, step: u64) {
        self.state().record(Op::Saved(step));
    }

    /// Records another acknowledgement.
    pub(crate) fn noted(&self, noted: Noted) {
        self.state().record(Op::Noted(noted));
    }

    /// Creates a file and its parent directories without recording it.
    pub(crate) fn put(&self, path: &str, bytes: &[u8]) {
        let mut state = self.state();
        let recorded = state.ops.take();
        let mut directory = TOP;
        let parts: Vec<&str> = path.split('/').filter(|part| !part.is_empty()).collect();
        for (i, part) in parts.iter().enumerate() {
            let name = Name::new(part);
            directory = match state.files.find(directory, &name) {
                Some(id) => id,
                None => {
                    let last = i + 1 == parts.len() && !path.ends_with('/');
                    let node =
                        if last { Node::File(Content::new(bytes.to_vec())) } else { Node::Directory(Vec::new()) };
                    state.add(directory, name, node)
                }
            };
        }
        state.ops = recorded;
    }
}

impl State {
    fn record(&mut self, op: Op) {
        if let Some(ops) = &mut self.ops {
            ops.push(op);
        }
    }

    fn add(&mut self, directory: Id, name: Name, node: Node) -> Id {
        let id = self.files.nodes.len();
        self.record(Op::New(node.clone()));
        self.files.nodes.push(node);
        self.rename(Rename::Add { directory, name, id });
        id
    }

    fn rename(&mut self, rename: Rename) {
        if self.files.apply(&rename).is_none() {
            self.outrages.push(format!("a change of names that cannot be made: {rename:?}"));
        }
        self.record(Op::Rename(rename));
    }

    fn move_between(&mut self, directory: Id, name: Name, other: Id, new: Name, id: Id) {
        if directory == other {
            self.rename(Rename::Move { directory, from: name, to: new, id, over: false });
        } else {
            // Two directories: the two names can reach the device one without the other.
            self.rename(Rename::Add { directory: other, name: new, id });
            self.rename(Rename::Remove { directory, name, id });
        }
    }

    fn do_again(&mut self, op: &Op) {
        match op {
            Op::New(node) => self.files.nodes.push(node.clone()),
            Op::Rename(rename) => {
                self.files.apply(rename);
            }
            Op::Write { .. } | Op::Resize { .. } => apply_data(&mut self.files, op),
            Op::SyncFile(_) | Op::SyncDirectory(_) | Op::Saved(_) | Op::Noted(_) => {}
        }
        self.record(op.clone());
    }

    fn resolve(&mut self, path: &Path) -> io::Result<Id> {
        let mut id = TOP;
        for part in path.components() {
            match part {
                Component::RootDir => {}
                Component::Normal(name) => id = self.child(id, name)?,
                _ => {
                    self.outrages.push(format!("a path that leads elsewhere: {}", path.display()));
                    return Err(io::ErrorKind::InvalidInput.into());
                }
            }
        }
        Ok(id)
    }

    /// Checks that a name has one component.
    fn name(&mut self, name: &OsStr) -> io::Result<Name> {
        let text = name.to_string_lossy();
        if text.is_empty() || text.contains('/') || text == "." || text == ".." {
            self.outrages.push(format!("a name that leads elsewhere: {text}"));
            return Err(io::ErrorKind::InvalidInput.into());
        }
        Ok(Name::new(&text))
    }

    /// Returns what has the name in a directory.
    fn child(&mut self, directory: Id, name: &OsStr) -> io::Result<Id> {
        let name = self.name(name)?;
        match self.files.nodes[directory] {
            Node::Directory(_) => self.files.find(directory, &name).ok_or_else(|| io::ErrorKind::NotFound.into()),
            _ => Err(io::ErrorKind::NotADirectory.into()),
        }
    }

    fn free_name(&mut self, directory: Id, name: &OsStr) -> io::Result<Name> {
        let name = self.name(name)?;
        match self.files.find(directory, &name) {
            Some(_) => Err(io::ErrorKind::AlreadyExists.into()),
            None => Ok(name),
        }
    }

    fn stat(&self, id: Id) -> Stat {
        let (kind, length, modified) = match &self.files.nodes[id] {
            Node::Directory(_) => (Kind::Directory, 0, 0),
            Node::Link(_) => (Kind::Link, 0, 0),
            // The time differs if the content does.
            Node::File(content) => (Kind::File, content.bytes.len() as u64, content.hash() as i64),
        };
        Stat::new(FileId { device: 1, inode: id as u64 }, kind, length).modified(modified, 0)
    }

    fn open_file(&mut self, disk: &SimDisk, id: Id) -> SimFile {
        *self.open.entry(id).or_default() += 1;
        SimFile { disk: disk.clone(), id }
    }

    fn write(&mut self, id: Id, offset: usize, bytes: &[u8]) {
        let length = match self.files.content(id) {
            Some(content) => content.bytes.len(),
            None => return,
        };
        if self.ops.is_some() {
            for (i, part) in bytes.chunks(bytes.len().div_ceil(self.atoms).max(1)).enumerate() {
                let offset = offset + i * bytes.len().div_ceil(self.atoms).max(1);
                self.record(Op::Write { id, offset, bytes: part.into() });
            }
            if offset + bytes.len() > length {
                self.record(Op::Resize { id, length: offset + bytes.len() });
            }
        }
        apply_data(&mut self.files, &Op::Write { id, offset, bytes: bytes.into() });
    }
}
