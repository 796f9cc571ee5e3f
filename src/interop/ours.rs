//! Checkpoints of this crate as a [`TensorSource`].

use super::ReadOptions;
use super::probe::Probe;
use crate::dtype::TensorSpec;
use crate::error::{Error, Result};
use crate::format::{Digest, MANIFEST_FILE, MarkKind, TensorRecord};
use crate::location::Location;
use crate::repository::{Directory, OpenOptions, Posix};
use crate::source::{self, Source, SourceAttributes, TensorSource, VerifiedBy, no_such_tensor};
use serde_json::Value;
use std::collections::BTreeMap;
use std::fs;
use std::ops::Range;
use std::path::Path;

/// The name of the format.
pub(crate) const FORMAT: &str = "tch-checkpoint";

pub(super) fn detect(probe: &Probe<'_>, _: &ReadOptions) -> Option<Result<Box<dyn TensorSource>>> {
    let is_ours = probe.names.as_ref().is_some_and(|names| names.contains(MANIFEST_FILE) || is_listed(probe.path));
    is_ours.then(|| Ok(Box::new(Ours::open(probe.path)?) as Box<dyn TensorSource>))
}

/// Returns `true` if the index of the directory around `path` lists it: it is a checkpoint of this crate, whatever is
/// left of it.
pub(crate) fn is_listed(path: &Path) -> bool {
    let Ok(path) = fs::canonicalize(path) else { return false };
    let (Some(around), Some(name)) = (path.parent(), path.file_name()) else { return false };
    let directory = Directory::new(&Posix::default(), around, &OpenOptions::default());
    let index = directory.ok().and_then(|directory| directory.index());
    index.is_some_and(|index| index.checkpoints.iter().any(|entry| name == entry.name.as_str()))
}

#[derive(Debug)]
pub(crate) struct Ours {
    pub source: Source,
    tensors: BTreeMap<String, TensorSpec>,
    /// Keys of tensors that share their bytes with another key, which is the first of them.
    aliases: BTreeMap<String, String>,
    unreadable: BTreeMap<String, String>,
}

impl Ours {
    fn open(path: &Path) -> Result<Ours> {
        Ok(Ours::new(Source::open(&Posix::default(), path)?))
    }

    /// Creates a source from an open checkpoint.
    pub(crate) fn new(source: Source) -> Ours {
        let records = &source.manifest.tensors;
        let tensors = records.iter().map(|(key, record)| (key.clone(), record.spec.clone())).collect();
        let mut first: BTreeMap<Vec<(&str, u64, u64)>, &str> = BTreeMap::new();
        let mut aliases = BTreeMap::new();
        for (key, record) in records.iter().filter(|(_, record)| record.spec.bytes() != Some(0)) {
            let place = record.pieces.iter().map(|piece| (piece.file.as_str(), piece.begin, piece.end)).collect();
            let known = *first.entry(place).or_insert(key);
            if known != key && records.get(known).is_some_and(|other| other.spec == record.spec) {
                aliases.insert(key.clone(), known.to_string());
            }
        }
        Ours { tensors, aliases, unreadable: BTreeMap::new(), source }
    }

    fn record(&self, key: &str, target: usize, bytes: Option<u64>) -> Result<&TensorRecord> {
        let record = self.source.manifest.tensors.get(key).ok_or_else(|| no_such_tensor(self, key))?;
        if bytes.or(record.spec.bytes()) != Some(target as u64) {
            return Err(Error::object(key, format!("a target of {target} bytes does not fit {}", record.spec)));
        }
        Ok(record)
    }
}

impl TensorSource for Ours {
    fn format(&self) -> &'static str {
        FORMAT
    }

    fn path(&self) -> &Location {
        &self.source.path
    }

    fn tensors(&self) -> &BTreeMap<String, TensorSpec> {
        &self.tensors
    }

    fn values(&self) -> &BTreeMap<String, Value> {
        &self.source.manifest.values
    }

    fn unreadable(&self) -> &BTreeMap<String, String> {
        &self.unreadable
    }

    fn first_alias<'a>(&'a self, key: &'a str) -> &'a str {
        self.aliases.get(key).map_or(key, String::as_str)
    }

    fn lacks(&self, key: &str) -> Option<(String, String)> {
        self.source.lacks(key)
    }

    fn requires_grad(&self, key: &str) -> Option<bool> {
        self.source.manifest.tensors.get(key)?.requires_grad
    }

    fn attributes(&self) -> Result<SourceAttributes> {
        let manifest = &self.source.manifest;
        let mut attributes = SourceAttributes {
            id: Some(manifest.id()),
            step: manifest.step,
            save_counter: manifest.save_counter,
            metrics: manifest.metrics.clone(),
            metadata: manifest.metadata.clone(),
            unclean: manifest.unclean,
            without: manifest.without.clone(),
            assets: manifest.assets.clone(),
            ..SourceAttributes::default()
        };
        for mark in self.source.marks()? {
            match mark.kind {
                MarkKind::Metric { name, value } => drop(attributes.metrics.insert(name, value)),
                MarkKind::Note { name, .. } => {
                    let reason = "a note stays with its checkpoint; `ckpt annotate` adds it to another".to_string();
                    attributes.left_out.insert(source::of("notes", &name), reason);
                }
                _ => {}
            }
        }
        Ok(attributes)
    }

    fn read_asset(&self, name: &str, with: &mut dyn FnMut(&[u8]) -> Result<()>) -> Result<()> {
        self.source.verify_asset(name, with)
    }

    fn verified_by(&self, _: &str) -> VerifiedBy {
        VerifiedBy::Digest
    }

    fn digest(&self, key: &str) -> Option<Digest> {
        self.source.manifest.tensors.get(key).map(|record| record.digest)
    }

    fn read(&self, key: &str, target: &mut [u8]) -> Result<()> {
        let record = self.record(key, target.len(), None)?;
        self.source.read_tensor(key, record, target, true)
    }

    fn read_range(&self, key: &str, range: Range<u64>, target: &mut [u8]) -> Result<()> {
        let size = self.tensors.get(key).map_or(1, |spec| spec.dtype.size() as u64);
        let (Some(begin), Some(end)) = (range.start.checked_mul(size), range.end.checked_mul(size)) else {
            return Err(Error::object(key, "the range is outside the tensor"));
        };
        let length = end.checked_sub(begin);
        let record = self.record(key, target.len(), Some(length.unwrap_or(u64::MAX)))?;
        if record.spec.bytes().is_none_or(|bytes| end > bytes) {
            return Err(Error::object(key, format!("elements {range:?} are outside a tensor of {}", record.spec)));
        }
        // The start of the current piece, in bytes of the tensor.
        let mut at = 0;
        for piece in &record.pieces {
            let next = at + (piece.end - piece.begin);
            let (from, to) = (begin.max(at), end.min(next));
            if from < to {
                let part = &mut target[(from - begin) as usize..(to - begin) as usize];
                self.source.read(&piece.file, piece.begin + (from - at), part)?;
            }
            at = next;
        }
        Ok(())
    }

    fn verify_tensor(&self, key: &str) -> Result<()> {
        let record = self.source.manifest.tensors.get(key).ok_or_else(|| no_such_tensor(self, key))?;
        self.source.verify_tensor(key, record, &mut Vec::new())
    }

    fn verify(&self) -> Result<()> {
        let manifest = &self.source.manifest;
        manifest.files.keys().try_for_each(|file| self.source.verify_header(file))?;
        manifest.assets.keys().try_for_each(|asset| self.source.verify_asset(asset, |_| Ok(())))?;
        let mut buffer = Vec::new();
        // Tensors that share their pieces have one digest.
        let mut stored = manifest.tensors.iter().filter(|(key, _)| !self.aliases.contains_key(*key));
        stored.try_for_each(|(key, record)| self.source.verify_tensor(key, record, &mut buffer))
    }
}
