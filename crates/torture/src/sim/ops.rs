//! The operations on a disk, and what they do to the contents of files.

use super::files::{Content, Files, Id, Node, Rename};
use crate::marked::Noted;
use std::sync::Arc;

/// An operation on a disk.
#[derive(Debug, Clone)]
pub(crate) enum Op {
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
    SyncDirectory(Id),
    /// The save of this step was acknowledged.
    Saved(u64),
    /// Something else was acknowledged.
    Noted(Noted),
}

/// Writes into a file, growing it; or sets its length.
pub(super) fn apply_data(files: &mut Files, op: &Op) {
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

/// Returns the content of a file after some of its pending writes and lengths have reached the device.
pub(crate) fn partly_written<'a>(durable: &Content, units: impl Iterator<Item = &'a Op>) -> Content {
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
