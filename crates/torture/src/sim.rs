//! A disk in memory that records what it is told, and tells apart what a crash may undo.

use super::marked::Noted;
use super::random::mix;
use std::any::Any;
use std::collections::{HashMap, HashSet};
use std::ffi::{OsStr, OsString};
use std::io;
use std::path::{Component, Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use tch_checkpoint::format::Digest;
use tch_checkpoint::internal::{Dir, Disk, Entry, FileId, Kind, LockFile, OpenDir, ReadFile, Stat, WriteFile};

/// A file or directory, apart from its names: its place in [`Files::nodes`].
pub(super) type Id = usize;

/// The directory everything is in.
pub(super) const TOP: Id = 0;

/// A name in a directory.
#[derive(Debug, Clone)]
pub(super) struct Name {
    pub text: Arc<str>,
    hash: u64,
}

impl Name {
    pub(super) fn new(text: &str) -> Name {
        Name { text: text.into(), hash: hash_of(text.as_bytes()) }
    }
}

impl PartialEq for Name {
    fn eq(&self, other: &Name) -> bool {
        self.hash == other.hash
    }
}

fn hash_of(bytes: &[u8]) -> u64 {
    Digest::of(bytes).to_bytes().into_iter().take(8).rev().fold(0, |hash, byte| hash << 8 | u64::from(byte))
}

/// A file's bytes.
#[derive(Debug, Clone)]
pub(super) struct Content {
    pub bytes: Arc<Vec<u8>>,
    hash: u64,
}

impl Content {
    pub(super) fn new(bytes: Vec<u8>) -> Content {
        Content { hash: hash_of(&bytes), bytes: Arc::new(bytes) }
    }

    pub(super) fn hash(&self) -> u64 {
        self.hash
    }
}

#[derive(Debug, Clone)]
pub(super) enum Node {
    Folder(Vec<(Name, Id)>),
    File(Content),
    /// A symbolic link to this path.
    Link(PathBuf),
}

/// Directories and files, as they are in memory, on the device, or after a crash.
#[derive(Debug, Clone)]
pub(super) struct Files {
    pub nodes: Vec<Node>,
}

/// A change of names. Nothing else of it can be lost or kept alone.
#[derive(Debug, Clone)]
pub(super) enum Rename {
    Add {
        folder: Id,
        name: Name,
        id: Id,
    },
    Remove {
        folder: Id,
        name: Name,
        id: Id,
    },
    /// `over`: the name `to` was taken, and may be.
    Move {
        folder: Id,
        from: Name,
        to: Name,
        id: Id,
        over: bool,
    },
}

impl Rename {
    pub(super) fn folder(&self) -> Id {
        match self {
            Rename::Add { folder, .. } | Rename::Remove { folder, .. } | Rename::Move { folder, .. } => *folder,
        }
    }
}

/// A directory's entries before a change.
pub(super) struct Undo {
    folder: Id,
    entries: Vec<(Name, Id)>,
}

impl Default for Files {
    fn default() -> Files {
        Files { nodes: vec![Node::Folder(Vec::new())] }
    }
}

impl Files {
    pub(super) fn entries(&self, folder: Id) -> &[(Name, Id)] {
        match self.nodes.get(folder) {
            Some(Node::Folder(entries)) => entries,
            _ => &[],
        }
    }

    fn entries_mut(&mut self, folder: Id) -> Option<&mut Vec<(Name, Id)>> {
        match self.nodes.get_mut(folder) {
            Some(Node::Folder(entries)) => Some(entries),
            _ => None,
        }
    }

    pub(super) fn find(&self, folder: Id, name: &Name) -> Option<Id> {
        self.entries(folder).iter().find(|(n, _)| n == name).map(|(_, id)| *id)
    }

    pub(super) fn content(&self, id: Id) -> Option<&Content> {
        match self.nodes.get(id) {
            Some(Node::File(content)) => Some(content),
            _ => None,
        }
    }

    /// Makes a change, if it can be made to these files; returns how to take it back.
    pub(super) fn apply(&mut self, rename: &Rename) -> Option<Undo> {
        let folder = rename.folder();
        let entries = self.entries_mut(folder)?;
        let place = |name: &Name| entries.iter().position(|(n, _)| n == name);
        let holds = |place: Option<usize>, id: Id| place.filter(|&at| entries[at].1 == id);
        let before = match rename {
            Rename::Add { name, id, .. } => {
                if place(name).is_some() {
                    return None;
                }
                let before = entries.clone();
                entries.push((name.clone(), *id));
                before
            }
            Rename::Remove { name, id, .. } => {
                let at = holds(place(name), *id)?;
                let before = entries.clone();
                entries.swap_remove(at);
                before
            }
            Rename::Move { from, to, id, over, .. } => {
                let (at, target) = (holds(place(from), *id)?, place(to));
                if target.is_some() && !over {
                    return None;
                }
                let before = entries.clone();
                entries[at].0 = to.clone();
                if let Some(target) = target {
                    entries.swap_remove(target);
                }
                before
            }
        };
        Some(Undo { folder, entries: before })
    }

    pub(super) fn undo(&mut self, undo: Undo) {
        if let Some(entries) = self.entries_mut(undo.folder) {
            *entries = undo.entries;
        }
    }

    /// Equal for equal names and contents.
    pub(super) fn hash(&self) -> u64 {
        self.hash_below(TOP)
    }

    fn hash_below(&self, id: Id) -> u64 {
        match &self.nodes[id] {
            Node::File(content) => mix(content.hash ^ 0xF11E),
            Node::Link(to) => mix(hash_of(to.as_os_str().as_encoded_bytes()) ^ 0x11_4B),
            Node::Folder(entries) => entries.iter().fold(0xD18, |sum: u64, (name, id)| {
                sum.wrapping_add(mix(name.hash.wrapping_add(self.hash_below(*id).rotate_left(17))))
            }),
        }
    }

    /// The files that have a name.
    pub(super) fn named_files(&self, folder: Id, found: &mut Vec<Id>) {
        for (_, id) in self.entries(folder) {
            match self.nodes[*id] {
                Node::File(_) if !found.contains(id) => found.push(*id),
                Node::File(_) | Node::Link(_) => {}
                Node::Folder(_) => self.named_files(*id, found),
            }
        }
    }

    /// How many names a file has.
    pub(super) fn links(&self, id: Id) -> usize {
        (0..self.nodes.len()).map(|folder| self.entries(folder).iter().filter(|(_, other)| *other == id).count()).sum()
    }

    /// All paths, for messages; files with their lengths.
    pub(super) fn tree(&self) -> String {
        fn descend(files: &Files, id: Id, path: &str, lines: &mut Vec<String>) {
            for (name, id) in files.entries(id) {
                let path = format!("{path}/{}", name.text);
                match &files.nodes[*id] {
                    Node::File(content) => lines.push(format!("{path} ({} bytes)", content.bytes.len())),
                    Node::Link(to) => lines.push(format!("{path} -> {}", to.display())),
                    Node::Folder(_) => {
                        lines.push(format!("{path}/"));
                        descend(files, *id, &path, lines);
                    }
                }
            }
        }
        let mut lines = Vec::new();
        descend(self, TOP, "", &mut lines);
        lines.sort();
        lines.join("\n")
    }
}

/// What was done to a disk, in order.
#[derive(Debug, Clone)]
pub(super) enum Op {
    New(Node),
    Rename(Rename),
    Write {
        id: Id,
        offset: usize,
        bytes: Arc<[u8]>,
    },
    Resize {
        id: Id,
        length: usize,
    },
    SyncFile(Id),
    SyncFolder(Id),
    /// The program was told that this step is saved.
    Saved(u64),
    /// The program was told something else about a checkpoint.
    Noted(Noted),
}

/// The simulated disk. Clones are the same disk.
#[derive(Clone)]
pub(super) struct SimDisk(Arc<Mutex<State>>);

struct State {
    files: Files,
    ops: Option<Vec<Op>>,
    locked: HashSet<Id>,
    /// The file system is not known to be local.
    remote: bool,
    /// Into how many parts a write is cut that a crash can tear apart.
    atoms: usize,
    /// What was tried that must not be: a path outside the directory, say.
    outrages: Vec<String>,
    /// Files that someone sees are given to be overwritten all the same.
    careless: bool,
    /// How many files were given to be overwritten.
    recycled: usize,
    /// How often a file is open.
    open: HashMap<Id, usize>,
}

impl std::fmt::Debug for SimDisk {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("SimDisk")
    }
}

impl SimDisk {
    /// A disk that holds `files`. `atoms` of 1 and more: every operation is recorded.
    pub(super) fn new(files: Files, atoms: usize) -> SimDisk {
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

    /// A disk that held `files` and to which `ops` were done by a process that is dead now; the machine is not.
    pub(super) fn resumed(files: Files, ops: &[Op], atoms: usize) -> SimDisk {
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

    pub(super) fn files(&self) -> Files {
        self.state().files.clone()
    }

    pub(super) fn ops(&self) -> Vec<Op> {
        self.state().ops.clone().unwrap_or_default()
    }

    pub(super) fn outrages(&self) -> Vec<String> {
        self.state().outrages.clone()
    }

    /// How many hold the disk: its open files, locks and users.
    pub(super) fn holders(&self) -> usize {
        Arc::strong_count(&self.0)
    }

    /// Makes the disk give away files that someone sees.
    pub(super) fn be_careless(&self) {
        self.state().careless = true;
    }

    /// How many files were given to be overwritten.
    #[cfg(test)]
    pub(super) fn recycled(&self) -> usize {
        self.state().recycled
    }

    /// Syncs a file by its path.
    pub(super) fn sync_file(&self, path: &Path) {
        let mut state = self.state();
        if let Ok(id) = state.resolve(path) {
            state.record(Op::SyncFile(id));
        }
    }

    /// What is in a directory.
    pub(super) fn names(&self, path: &Path) -> Vec<String> {
        let mut state = self.state();
        let Ok(folder) = state.resolve(path) else { return Vec::new() };
        state.files.entries(folder).iter().map(|(name, _)| name.text.to_string()).collect()
    }

    /// Whether the path leads to anything.
    pub(super) fn has(&self, path: &Path) -> bool {
        self.state().resolve(path).is_ok()
    }

    /// A file's bytes.
    pub(super) fn read(&self, path: &Path) -> Option<Vec<u8>> {
        let mut state = self.state();
        let id = state.resolve(path).ok()?;
        state.files.content(id).map(|content| content.bytes.to_vec())
    }

    /// Renames, as another program would.
    #[cfg(test)]
    pub(super) fn rename(&self, from: &str, to: &str) {
        let mut state = self.state();
        let split = |state: &mut State, path: &str| {
            let (folder, name) = path.rsplit_once('/').unwrap_or_default();
            (state.resolve(Path::new(folder)).unwrap_or(TOP), Name::new(name))
        };
        let (folder, name) = split(&mut state, from);
        let (other, new) = split(&mut state, to);
        let id = state.files.find(folder, &name).unwrap_or(TOP);
        state.move_between(folder, name, other, new, id);
    }

    /// Puts a symbolic link there, as another program would.
    #[cfg(test)]
    pub(super) fn link(&self, folder: &str, name: &str, to: &str) {
        let mut state = self.state();
        if let Ok(folder) = state.resolve(Path::new(folder)) {
            state.add(folder, Name::new(name), Node::Link(to.into()));
        }
    }

    /// From now on the file system is one that is not known to be local.
    #[cfg(test)]
    pub(super) fn be_remote(&self) {
        self.state().remote = true;
    }

    /// Notes that the program was told `step` is saved.
    pub(super) fn saved(&self, step: u64) {
        self.state().record(Op::Saved(step));
    }

    /// Notes what else the program was told.
    pub(super) fn noted(&self, noted: Noted) {
        self.state().record(Op::Noted(noted));
    }

    /// Puts a file there as if it had always been, with the directories it is in.
    pub(super) fn put(&self, path: &str, bytes: &[u8]) {
        let mut state = self.state();
        let recorded = state.ops.take();
        let mut folder = TOP;
        let parts: Vec<&str> = path.split('/').filter(|part| !part.is_empty()).collect();
        for (i, part) in parts.iter().enumerate() {
            let name = Name::new(part);
            folder = match state.files.find(folder, &name) {
                Some(id) => id,
                None => {
                    let last = i + 1 == parts.len() && !path.ends_with('/');
                    let node = if last { Node::File(Content::new(bytes.to_vec())) } else { Node::Folder(Vec::new()) };
                    state.add(folder, name, node)
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

    fn add(&mut self, folder: Id, name: Name, node: Node) -> Id {
        let id = self.files.nodes.len();
        self.record(Op::New(node.clone()));
        self.files.nodes.push(node);
        self.rename(Rename::Add { folder, name, id });
        id
    }

    fn rename(&mut self, rename: Rename) {
        if self.files.apply(&rename).is_none() {
            self.outrages.push(format!("a change of names that cannot be made: {rename:?}"));
        }
        self.record(Op::Rename(rename));
    }

    fn move_between(&mut self, folder: Id, name: Name, other: Id, new: Name, id: Id) {
        if folder == other {
            self.rename(Rename::Move { folder, from: name, to: new, id, over: false });
        } else {
            // Two directories: the two names can reach the device one without the other.
            self.rename(Rename::Add { folder: other, name: new, id });
            self.rename(Rename::Remove { folder, name, id });
        }
    }

    fn do_again(&mut self, op: &Op) {
        match op {
            Op::New(node) => self.files.nodes.push(node.clone()),
            Op::Rename(rename) => {
                self.files.apply(rename);
            }
            Op::Write { .. } | Op::Resize { .. } => apply_data(&mut self.files, op),
            Op::SyncFile(_) | Op::SyncFolder(_) | Op::Saved(_) | Op::Noted(_) => {}
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

    /// A name of one component.
    fn name(&mut self, name: &OsStr) -> io::Result<Name> {
        let text = name.to_string_lossy();
        if text.is_empty() || text.contains('/') || text == "." || text == ".." {
            self.outrages.push(format!("a name that leads elsewhere: {text}"));
            return Err(io::ErrorKind::InvalidInput.into());
        }
        Ok(Name::new(&text))
    }

    /// What has the name in a directory.
    fn child(&mut self, folder: Id, name: &OsStr) -> io::Result<Id> {
        let name = self.name(name)?;
        match self.files.nodes[folder] {
            Node::Folder(_) => self.files.find(folder, &name).ok_or_else(|| io::ErrorKind::NotFound.into()),
            _ => Err(io::ErrorKind::NotADirectory.into()),
        }
    }

    fn free_name(&mut self, folder: Id, name: &OsStr) -> io::Result<Name> {
        let name = self.name(name)?;
        match self.files.find(folder, &name) {
            Some(_) => Err(io::ErrorKind::AlreadyExists.into()),
            None => Ok(name),
        }
    }

    fn stat(&self, id: Id) -> Stat {
        let (kind, length, modified) = match &self.files.nodes[id] {
            Node::Folder(_) => (Kind::Directory, 0, 0),
            Node::Link(_) => (Kind::Link, 0, 0),
            // Another content is another time.
            Node::File(content) => (Kind::File, content.bytes.len() as u64, content.hash as i64),
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

/// Writes into a file, growing it; or sets its length.
fn apply_data(files: &mut Files, op: &Op) {
    let (Op::Write { id, .. } | Op::Resize { id, .. }) = op else { return };
    let Some(Node::File(content)) = files.nodes.get_mut(*id) else { return };
    let mut bytes = std::mem::take(Arc::make_mut(&mut content.bytes));
    match op {
        Op::Write { offset, bytes: new, .. } => {
            let end = offset + new.len();
            if bytes.len() < end {
                bytes.resize(end, 0);
            }
            bytes[*offset..end].copy_from_slice(new);
        }
        Op::Resize { length, .. } => bytes.resize(*length, 0),
        _ => {}
    }
    *content = Content::new(bytes);
}

/// A file's bytes after some of its pending writes and lengths have reached the device.
pub(super) fn partly_written<'a>(durable: &Content, units: impl Iterator<Item = &'a Op>) -> Content {
    let mut bytes = (*durable.bytes).clone();
    let mut length = bytes.len();
    for unit in units {
        match unit {
            Op::Write { offset, bytes: new, .. } => {
                let end = offset + new.len();
                if bytes.len() < end {
                    bytes.resize(end, 0);
                }
                bytes[*offset..end].copy_from_slice(new);
            }
            Op::Resize { length: new, .. } => length = *new,
            _ => {}
        }
    }
    bytes.resize(length, 0);
    Content::new(bytes)
}

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
            Node::Folder(_) => Ok(Arc::new(SimDir { disk: self.clone(), id })),
            _ => Err(io::ErrorKind::NotADirectory.into()),
        }
    }
}

/// An open folder: it stays the same one when it is renamed, or another gets its name.
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
            Node::Folder(_) => Err(io::Error::new(io::ErrorKind::InvalidInput, "a folder, not a regular file")),
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
            Node::Folder(_) => Ok(Arc::new(SimDir { disk: self.disk.clone(), id })),
            Node::Link(_) => Err(link_met()),
            Node::File(_) => Err(io::ErrorKind::NotADirectory.into()),
        }
    }

    fn create_dir(&self, name: &OsStr) -> io::Result<()> {
        let mut state = self.disk.state();
        let name = state.free_name(self.id, name)?;
        state.add(self.id, name, Node::Folder(Vec::new()));
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
            state.rename(Rename::Remove { folder: other, name: new, id });
            return Ok(None);
        }
        state.recycled += 1;
        Ok(Some(Box::new(state.open_file(&self.disk, id))))
    }

    fn link(&self, name: &OsStr, to: &dyn Dir, new: &OsStr) -> io::Result<()> {
        let mut state = self.disk.state();
        let (id, folder) = (state.child(self.id, name)?, sim(to)?);
        if let Node::Folder(_) = state.files.nodes[id] {
            return Err(io::ErrorKind::PermissionDenied.into());
        }
        let name = state.free_name(folder, new)?;
        state.rename(Rename::Add { folder, name, id });
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
        if let Some(Node::Folder(_)) = state.files.find(self.id, &new).map(|id| &state.files.nodes[id]) {
            return Err(io::ErrorKind::IsADirectory.into());
        }
        state.rename(Rename::Move { folder: self.id, from: name, to: new, id, over: true });
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
        if let Node::Folder(_) = state.files.nodes[id] {
            return Err(io::ErrorKind::IsADirectory.into());
        }
        let name = state.name(name)?;
        state.rename(Rename::Remove { folder: self.id, name, id });
        Ok(())
    }

    fn remove_dir(&self, name: &OsStr) -> io::Result<()> {
        let mut state = self.disk.state();
        let id = state.child(self.id, name)?;
        match &state.files.nodes[id] {
            Node::File(_) | Node::Link(_) => return Err(io::ErrorKind::NotADirectory.into()),
            Node::Folder(entries) if !entries.is_empty() => return Err(io::ErrorKind::DirectoryNotEmpty.into()),
            Node::Folder(_) => {}
        }
        let name = state.name(name)?;
        state.rename(Rename::Remove { folder: self.id, name, id });
        Ok(())
    }

    fn sync(&self) -> io::Result<()> {
        self.disk.state().record(Op::SyncFolder(self.id));
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

struct SimFile {
    disk: SimDisk,
    id: Id,
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
