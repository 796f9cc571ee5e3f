//! Groups: names and what they lead to.

use super::metadata::Metadata;
use crate::error::Result;

/// The deepest tree of nodes.
const MAX_LEVEL: u8 = 32;
/// The longest name, or path of a soft link.
const MAX_NAME: usize = 4096;

/// What a name in a group leads to.
#[derive(Debug, Clone, PartialEq)]
pub(super) enum Link {
    /// The header of an object.
    Hard(u64),
    /// A path, from the group or from the root.
    Soft(String),
}

/// A node of a tree: its level, and its keys and children.
pub(super) struct Node {
    pub level: u8,
    /// Each child with the key before it.
    pub children: Vec<(Vec<u8>, u64)>,
}

/// Reads a node of a tree of this type, whose keys have this length.
pub(super) fn node(metadata: &Metadata<'_>, address: u64, kind: u8, key: u64) -> Result<Node> {
    let start = metadata.read_signed(b"TREE", address, 24)?;
    let mut cursor = metadata.cursor(&start);
    let (found, level, count) = (cursor.u8()?, cursor.u8()?, u64::from(cursor.u16()?));
    if found != kind || level > MAX_LEVEL {
        return Err(metadata.damaged("a tree has nodes of another kind"));
    }
    let body = metadata.read(address.saturating_add(24), count * (key + 8))?;
    let mut cursor = metadata.cursor(&body);
    let children: Result<Vec<_>> = (0..count).map(|_| Ok((cursor.take(key)?.to_vec(), cursor.u64()?))).collect();
    Ok(Node { level, children: children? })
}

/// Returns the addresses below the leaves of a tree, with their keys. Levels decrease, so that no cycle is possible.
pub(super) fn leaves(metadata: &Metadata<'_>, root: u64, kind: u8, key: u64) -> Result<Vec<(Vec<u8>, u64)>> {
    let mut found = Vec::new();
    let mut open = vec![(root, None)];
    while let Some((address, expected)) = open.pop() {
        let node = node(metadata, address, kind, key)?;
        if expected.is_some_and(|level| level != node.level) {
            return Err(metadata.damaged("the levels of a tree are not in order"));
        }
        match node.level.checked_sub(1) {
            None => found.extend(node.children),
            Some(below) => open.extend(node.children.into_iter().rev().map(|(_, child)| (child, Some(below)))),
        }
    }
    Ok(found)
}

/// Returns the names of the group that a symbol table message describes.
pub(super) fn links(metadata: &Metadata<'_>, message: &[u8]) -> Result<Vec<(String, Link)>> {
    let mut cursor = metadata.cursor(message);
    let (tree, heap) = (cursor.u64()?, cursor.u64()?);
    let header = metadata.read_signed(b"HEAP", heap, 32)?;
    let mut cursor = metadata.cursor(&header);
    cursor.skip(4)?;
    let (size, _free, address) = (cursor.u64()?, cursor.u64()?, cursor.u64()?);
    let names = metadata.read(address, size)?;
    let text = |offset: u64| -> Result<String> {
        let rest = usize::try_from(offset).ok().and_then(|offset| names.get(offset..));
        let text = rest.and_then(|rest| rest.split(|byte| *byte == 0).next());
        let text = text.filter(|text| text.len() <= MAX_NAME).and_then(|text| std::str::from_utf8(text).ok());
        let text = text.ok_or_else(|| metadata.damaged("a name is not readable or too long"))?;
        metadata.charge(text.len() as u64)?;
        Ok(text.to_string())
    };
    let mut found = Vec::new();
    for (_, table) in leaves(metadata, tree, 0, 8)? {
        let start = metadata.read_signed(b"SNOD", table, 8)?;
        let mut cursor = metadata.cursor(&start);
        cursor.skip(2)?;
        let count = u64::from(cursor.u16()?);
        let body = metadata.read(table.saturating_add(8), count * 40)?;
        let mut cursor = metadata.cursor(&body);
        for _ in 0..count {
            let (name, header, cached) = (text(cursor.u64()?)?, cursor.u64()?, cursor.u32()?);
            cursor.skip(4)?;
            let target = u64::from(cursor.u32()?);
            cursor.skip(12)?;
            if name.is_empty() || name.contains('/') || name == "." {
                return Err(metadata.damaged(format!("a link has the name {name:?}")));
            }
            found.push((name, if cached == 2 { Link::Soft(text(target)?) } else { Link::Hard(header) }));
        }
    }
    Ok(found)
}
