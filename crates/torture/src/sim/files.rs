//! Directories and files as a value: names, contents, and changes of names that can be undone.

use crate::random::mix;
use std::path::PathBuf;
use std::sync::Arc;
use tch_checkpoint::format::Digest;

/// A file or directory, apart from its names: its place in [`Files::nodes`].
pub(crate) type Id = usize;

/// The root directory.
pub(crate) const TOP: Id = 0;

/// A name in a directory.
#[derive(Debug, Clone)]
pub(crate) struct Name {
    pub text: Arc<str>,
    hash: u64,
}

impl Name {
    pub(crate) fn new(text: &str) -> Name {
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
pub(crate) struct Content {
    pub bytes: Arc<Vec<u8>>,
    hash: u64,
}

impl Content {
    pub(crate) fn new(bytes: Vec<u8>) -> Content {
        Content { hash: hash_of(&bytes), bytes: Arc::new(bytes) }
    }

    pub(crate) fn hash(&self) -> u64 {
        self.hash
    }
}

#[derive(Debug, Clone)]
pub(crate) enum Node {
    Directory(Vec<(Name, Id)>),
    File(Content),
    /// A symbolic link to this path.
    Link(PathBuf),
}

/// Directories and files, as they are in memory, on the device, or after a crash.
#[derive(Debug, Clone)]
pub(crate) struct Files {
    pub nodes: Vec<Node>,
}

/// A change of names, which is lost or kept as a whole.
#[derive(Debug, Clone)]
pub(crate) enum Rename {
    Add {
        directory: Id,
        name: Name,
        id: Id,
    },
    Remove {
        directory: Id,
        name: Name,
        id: Id,
    },
    /// `over`: the name `to` was taken, and may be.
    Move {
        directory: Id,
        from: Name,
        to: Name,
        id: Id,
        over: bool,
    },
}

impl Rename {
    pub(crate) fn directory(&self) -> Id {
        match self {
            Rename::Add { directory, .. } | Rename::Remove { directory, .. } | Rename::Move { directory, .. } => {
                *directory
            }
        }
    }
}

/// A directory's entries before a change.
pub(crate) struct Undo {
    directory: Id,
    entries: Vec<(Name, Id)>,
}

impl Default for Files {
    fn default() -> Files {
        Files { nodes: vec![Node::Directory(Vec::new())] }
    }
}

impl Files {
    pub(crate) fn entries(&self, directory: Id) -> &[(Name, Id)] {
        match self.nodes.get(directory) {
            Some(Node::Directory(entries)) => entries,
            _ => &[],
        }
    }

    fn entries_mut(&mut self, directory: Id) -> Option<&mut Vec<(Name, Id)>> {
        match self.nodes.get_mut(directory) {
            Some(Node::Directory(entries)) => Some(entries),
            _ => None,
        }
    }

    pub(crate) fn find(&self, directory: Id, name: &Name) -> Option<Id> {
        self.entries(directory).iter().find(|(n, _)| n == name).map(|(_, id)| *id)
    }

    pub(crate) fn content(&self, id: Id) -> Option<&Content> {
        match self.nodes.get(id) {
            Some(Node::File(content)) => Some(content),
            _ => None,
        }
    }

    /// Makes a change, if it is possible, and returns how to undo it.
    pub(crate) fn apply(&mut self, rename: &Rename) -> Option<Undo> {
        let directory = rename.directory();
        let entries = self.entries_mut(directory)?;
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
        Some(Undo { directory, entries: before })
    }

    pub(crate) fn undo(&mut self, undo: Undo) {
        if let Some(entries) = self.entries_mut(undo.directory) {
            *entries = undo.entries;
        }
    }

    /// Returns a hash of all names and contents.
    pub(crate) fn hash(&self) -> u64 {
        self.hash_below(TOP)
    }

    fn hash_below(&self, id: Id) -> u64 {
        match &self.nodes[id] {
            Node::File(content) => mix(content.hash ^ 0xF11E),
            Node::Link(to) => mix(hash_of(to.as_os_str().as_encoded_bytes()) ^ 0x11_4B),
            Node::Directory(entries) => entries.iter().fold(0xD18, |sum: u64, (name, id)| {
                sum.wrapping_add(mix(name.hash.wrapping_add(self.hash_below(*id).rotate_left(17))))
            }),
        }
    }

    /// Collects the files below `directory`.
    pub(crate) fn named_files(&self, directory: Id, found: &mut Vec<Id>) {
        for (_, id) in self.entries(directory) {
            match self.nodes[*id] {
                Node::File(_) if !found.contains(id) => found.push(*id),
                Node::File(_) | Node::Link(_) => {}
                Node::Directory(_) => self.named_files(*id, found),
            }
        }
    }

    /// Returns the number of names of a file.
    pub(crate) fn links(&self, id: Id) -> usize {
        (0..self.nodes.len())
            .map(|directory| self.entries(directory).iter().filter(|(_, other)| *other == id).count())
            .sum()
    }

    /// Returns all paths, with the lengths of files, for messages.
    pub(crate) fn tree(&self) -> String {
        fn descend(files: &Files, id: Id, path: &str, lines: &mut Vec<String>) {
            for (name, id) in files.entries(id) {
                let path = format!("{path}/{}", name.text);
                match &files.nodes[*id] {
                    Node::File(content) => lines.push(format!("{path} ({} bytes)", content.bytes.len())),
                    Node::Link(to) => lines.push(format!("{path} -> {}", to.display())),
                    Node::Directory(_) => {
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
