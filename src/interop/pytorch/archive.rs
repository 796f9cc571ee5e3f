//! Zip archives of torch: `torch.save`, TorchScript, and tch's `.ot`, which is TorchScript.

use super::bind::{StorageBinder, Storages};
use super::pickle::{Arena, PickleReader, StorageRef, unpickle};
use super::rules::{Dialect, TorchRules};
use super::tree::Style;
use super::{check_refused, collect, unpickle_failed};
use crate::error::Result;
use crate::interop::ReadOptions;
use crate::interop::blob::Blob;
use crate::interop::foreign::{Foreign, Found};
use crate::interop::zip::Archive;
use std::sync::Arc;

/// The versions of the format that torch reads.
const VERSIONS: std::ops::RangeInclusive<u64> = 1..=10;

/// Returns `true` if there is a pickle where torch has one.
pub(super) fn is_torch(archive: &Archive) -> bool {
    archive.records().keys().any(|name| name.split_once('/').is_some_and(|(_, rest)| rest == "data.pkl"))
}

/// What an archive holds, before its tensors get names.
pub(super) struct Contents {
    pub archive: Archive,
    pub arena: Arena,
    pub root: super::pickle::Id,
    pub is_script: bool,
    top: String,
    big_endian: bool,
}

impl Contents {
    /// Reads the pickle. Archives with two pickles, which torch reads in its own way, are refused.
    pub(super) fn read(archive: Archive, options: &ReadOptions) -> Result<Contents> {
        let input = archive.input().clone();
        let mut tops: Vec<&str> = archive.records().keys().filter_map(|name| Some(name.split_once('/')?.0)).collect();
        tops.dedup();
        let top = match tops.as_slice() {
            [top] => top.to_string(),
            [] => return Err(input.unsupported("it is a zip archive without `data.pkl`, no file of PyTorch")),
            more => return Err(input.unsupported(format!("its records are in the directories {more:?}, one is right"))),
        };
        let text = |name: &str| match archive.get(&format!("{top}/{name}")) {
            Some(record) => record.read_vec(64).map(Some),
            None => Ok(None),
        };
        let big_endian = match text("byteorder")?.as_deref() {
            None | Some(b"little") => false,
            Some(b"big") => true,
            Some(_) => return Err(input.damaged("its record `byteorder` is neither `little` nor `big`")),
        };
        if let Some(version) = text("version")? {
            let number = std::str::from_utf8(version.trim_ascii()).ok().and_then(|text| text.parse().ok());
            if number.is_none_or(|number: u64| !VERSIONS.contains(&number)) {
                return Err(input.unsupported("its record `version` is of no version that is known"));
            }
        }
        let pickle = archive.get(&format!("{top}/data.pkl")).cloned();
        let pickle =
            pickle.ok_or_else(|| input.unsupported("it is a zip archive without `data.pkl`, no file of PyTorch"))?;
        pickle.verify()?;
        let is_script = archive.get(&format!("{top}/constants.pkl")).is_some();
        let (arena, root) = {
            let mut arena = Arena::default();
            let mut rules = TorchRules::new(if is_script { Dialect::Script } else { Dialect::Zip });
            let mut reader = PickleReader::new(&pickle);
            let unpickled =
                unpickle(&mut reader, &mut arena, &mut rules).map_err(|e| unpickle_failed(&input, "data.pkl", e))?;
            check_refused(&input, "data.pkl", &arena, unpickled.root, unpickled.refused, options)?;
            if reader.left() > 0 {
                return Err(input.damaged(format!("data.pkl: {} bytes follow its end", reader.left())));
            }
            (arena, unpickled.root)
        };
        Ok(Contents { archive, arena, root, is_script, top, big_endian })
    }

    /// Returns the storages of the archive.
    pub(super) fn storages(&self) -> Records<'_> {
        let has_checksums = self.archive.records().values().any(|record| record.has_checksum());
        Records { contents: self, has_checksums }
    }
}

/// The records `data/KEY`.
pub(super) struct Records<'a> {
    contents: &'a Contents,
    has_checksums: bool,
}

impl Storages for Records<'_> {
    fn storage(&mut self, storage: &StorageRef) -> Result<(Option<Arc<Blob>>, bool)> {
        let Contents { archive, top, big_endian, .. } = self.contents;
        let key = &storage.key;
        let record = archive.get(&format!("{top}/data/{key}"));
        let record =
            record.ok_or_else(|| archive.input().damaged(format!("there is no record for the storage {key:?}")))?;
        // Multiplied without overflow when the pickle was read.
        let bytes = storage.elements.saturating_mul(storage.kind.size());
        if record.len() != bytes {
            return Err(record.damaged(format!("it has {} bytes, its storage has {bytes}", record.len())));
        }
        // Torch leaves a hole where it is told to skip the data; all else has a checksum then.
        let is_hole = self.has_checksums && !record.has_checksum() && bytes > 0;
        Ok(((!is_hole).then(|| record.clone()), *big_endian))
    }
}

pub(super) fn open(archive: Archive, options: &ReadOptions) -> Result<Foreign> {
    let mut contents = Contents::read(archive, options)?;
    let input = contents.archive.input().clone();
    let style = if contents.is_script { Style::Modules } else { Style::Tree };
    let mut found = Found { file_bytes: input.len(), ..Found::default() };
    let is_tch = contents.is_script && contents.undo_bars();
    let mut binder = StorageBinder::new(contents.storages(), input.path());
    collect(&input, "data.pkl", &contents.arena, contents.root, style, &mut binder, &mut found)?;
    found.checks = contents.archive.records().values().cloned().collect();
    let format = match (is_tch, contents.is_script) {
        (true, _) => "tch (TorchScript archive)",
        (_, true) => "TorchScript",
        _ => "PyTorch (zip)",
    };
    Foreign::new(format, input.path(), found, options)
}

impl Contents {
    /// Returns `true` if it is what `VarStore::save` writes: one module with tensors only. Their names have a bar for
    /// each dot, which is undone.
    fn undo_bars(&mut self) -> bool {
        use super::pickle::Node;
        let Node::Object(root) = self.arena.node(self.root) else { return false };
        let class = self.arena.globals.get(root.class as usize);
        let is_plain = class.is_some_and(|class| (&*class.module, &*class.name) == ("__torch__", "Module"));
        let entries = root.state.and_then(|state| self.arena.dict(state)).unwrap_or_default().to_vec();
        let is_attribute =
            |id| matches!(self.arena.node(id), Node::Tensor(_) | Node::Bool(_) | Node::None | Node::Unreadable(_));
        if !is_plain || !entries.iter().all(|(_, value)| is_attribute(*value)) {
            return false;
        }
        let mut keys: Vec<_> = entries.iter().map(|(key, _)| *key).collect();
        keys.sort_unstable();
        keys.dedup();
        for key in keys {
            if let Some(Node::Text(text)) = self.arena.node_mut(key) {
                *text = text.replace('|', ".").into();
            }
        }
        true
    }
}
