//! The content of a device: what is durable, and what is pending.

use super::Model;
use crate::sim::{Files, Id, Node, Op, Rename, TOP, partly_written};

/// Returns what is durable on a device that had `start`, after these operations.
#[cfg(test)]
pub(crate) fn durable(start: &Files, ops: &[Op]) -> Files {
    let mut device = Device { files: start.clone(), renames: Vec::new(), data: Vec::new() };
    ops.iter().for_each(|op| device.take(op, Model::Weak));
    device.files
}

/// A device, with what is durable and what is pending.
pub(super) struct Device {
    pub files: Files,
    pub renames: Vec<Rename>,
    pub data: Vec<(Id, Op)>,
}

impl Device {
    /// Applies an operation.
    pub(super) fn take(&mut self, op: &Op, model: Model) {
        match op {
            Op::New(node) => self.files.nodes.push(node.clone()),
            Op::Rename(rename) => self.renames.push(rename.clone()),
            Op::Write { id, .. } | Op::Resize { id, .. } => self.data.push((*id, op.clone())),
            Op::SyncFile(id) => {
                if let Some(durable) = self.files.content(*id) {
                    let parts = self.data.iter().filter(|(file, _)| file == id).map(|(_, part)| part);
                    let content = partly_written(durable, parts);
                    self.files.nodes[*id] = Node::File(content);
                }
                self.data.retain(|(file, _)| file != id);
                if model == Model::Journal {
                    self.settle(|_| true);
                }
            }
            Op::SyncDirectory(id) => match model {
                Model::Weak => self.settle(|rename| rename.directory() == *id),
                Model::Journal => self.settle(|_| true),
            },
            Op::Saved(_) | Op::Noted(_) => {}
        }
    }

    /// Makes changes of names durable.
    fn settle(&mut self, which: impl Fn(&Rename) -> bool) {
        let (durable, pending) = std::mem::take(&mut self.renames).into_iter().partition(which);
        self.renames = pending;
        let durable: Vec<Rename> = durable;
        for rename in &durable {
            self.files.apply(rename);
        }
    }

    /// Drops pending changes of directories and files that have no name in any state.
    pub(super) fn forget_unreachable(&mut self) {
        let mut reachable = vec![false; self.files.nodes.len()];
        let mut queue = vec![TOP];
        while let Some(id) = queue.pop() {
            if std::mem::replace(&mut reachable[id], true) {
                continue;
            }
            queue.extend(self.files.entries(id).iter().map(|(_, id)| *id));
            let added = self.renames.iter().filter(|rename| rename.directory() == id);
            queue.extend(added.filter_map(|rename| match rename {
                Rename::Add { id, .. } => Some(*id),
                _ => None,
            }));
        }
        self.renames.retain(|rename| reachable[rename.directory()]);
        self.data.retain(|(file, _)| reachable[*file]);
    }
}
