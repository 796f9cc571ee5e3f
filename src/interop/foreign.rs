//! The implementation of [`TensorSource`] for all formats whose tensors are views of bytes.

use super::ReadOptions;
use super::blob::Blob;
use super::view::Stored;
use crate::dtype::TensorSpec;
use crate::error::{Error, Result};
use crate::location::Location;
use crate::source::{TensorSource, VerifiedBy, check_range, check_target};
use serde_json::Value;
use std::collections::{BTreeMap, BTreeSet};
use std::ops::Range;
use std::path::Path;
use std::sync::Arc;

/// One or several files of another tool.
#[derive(Debug)]
pub(crate) struct Foreign {
    format: &'static str,
    path: Location,
    specs: BTreeMap<String, TensorSpec>,
    stored: BTreeMap<String, Stored>,
    /// Keys in the order of the file.
    order: Vec<String>,
    /// Keys that share their elements with another key, which is the first of them.
    aliases: BTreeMap<String, String>,
    values: BTreeMap<String, Value>,
    unreadable: BTreeMap<String, String>,
    /// Everything that has a checksum.
    checks: Vec<Arc<Blob>>,
}

/// The content of the files.
#[derive(Debug, Default)]
pub(crate) struct Found {
    pub stored: BTreeMap<String, Stored>,
    /// Keys of tensors in the order of the file. Keys that are missing here come last.
    pub order: Vec<String>,
    pub values: BTreeMap<String, Value>,
    pub unreadable: BTreeMap<String, String>,
    pub checks: Vec<Arc<Blob>>,
    /// Bytes of all files.
    pub file_bytes: u64,
}

impl Foreign {
    pub(crate) fn new(format: &'static str, path: &Path, found: Found, options: &ReadOptions) -> Result<Foreign> {
        let Found { stored, mut order, values, unreadable, checks, file_bytes } = found;
        order.retain(|key| stored.contains_key(key));
        let known: BTreeSet<&String> = order.iter().collect();
        let others: Vec<String> = stored.keys().filter(|key| !known.contains(key)).cloned().collect();
        order.extend(others);
        let mut first = BTreeMap::new();
        let mut aliases = BTreeMap::new();
        let (mut bytes, mut inflated) = (0u64, 0u64);
        for (key, tensor) in &stored {
            if let Some(identity) = tensor.identity() {
                let (blob, begin, stride, change, spec) = identity;
                let identity = (blob, begin, stride, change, spec.dtype, spec.shape.clone());
                let known = first.entry(identity).or_insert(key);
                if *known != key {
                    aliases.insert(key.clone(), (*known).clone());
                    continue;
                }
            }
            bytes = bytes.saturating_add(tensor.spec.bytes().unwrap_or(u64::MAX));
            let packed = tensor.parts.iter().filter(|part| part.view.blob.input().is_none());
            inflated = packed.fold(inflated, |sum, part| sum.saturating_add(part.view.blob.len()));
        }
        // Reading one tensor of a compressed blob takes as long as reading the whole blob.
        options.check_expansion(bytes.max(inflated), file_bytes).map_err(|reason| Error::unsupported(path, reason))?;
        let specs = stored.iter().map(|(key, tensor)| (key.clone(), tensor.spec.clone())).collect();
        let path = path.into();
        Ok(Foreign { format, path, specs, stored, order, aliases, values, unreadable, checks })
    }

    /// Returns the content, without the bytes of the file.
    #[cfg(feature = "huggingface")]
    pub(crate) fn into_found(self) -> Found {
        let Foreign { stored, order, values, unreadable, checks, .. } = self;
        Found { stored, order, values, unreadable, checks, file_bytes: 0 }
    }

    fn get(&self, key: &str) -> Result<&Stored> {
        self.stored.get(key).ok_or_else(|| {
            let reason = match self.unreadable.get(key) {
                Some(reason) => format!("cannot be read from {}: {reason}", self.path.display()),
                None => format!("{} has no such tensor", self.path.display()),
            };
            Error::object(key, reason)
        })
    }
}

impl TensorSource for Foreign {
    fn format(&self) -> &'static str {
        self.format
    }

    fn path(&self) -> &Location {
        &self.path
    }

    fn tensors(&self) -> &BTreeMap<String, TensorSpec> {
        &self.specs
    }

    fn order(&self) -> Vec<&str> {
        self.order.iter().map(String::as_str).collect()
    }

    fn values(&self) -> &BTreeMap<String, Value> {
        &self.values
    }

    fn unreadable(&self) -> &BTreeMap<String, String> {
        &self.unreadable
    }

    fn first_alias<'a>(&'a self, key: &'a str) -> &'a str {
        self.aliases.get(key).map_or(key, String::as_str)
    }

    fn verified_by(&self, key: &str) -> VerifiedBy {
        let parts = self.stored.get(key).map(|tensor| tensor.parts.as_slice()).unwrap_or_default();
        // Empty tensors have no checksum; they count as verified where others are.
        let is_empty = |blob: &Blob| blob.len() == 0 && self.checks.iter().any(|other| other.has_checksum());
        let has_checksum = parts.iter().all(|part| part.view.blob.has_checksum() || is_empty(&part.view.blob));
        if has_checksum && !parts.is_empty() { VerifiedBy::Container } else { VerifiedBy::Nothing }
    }

    fn read(&self, key: &str, target: &mut [u8]) -> Result<()> {
        let tensor = self.get(key)?;
        check_target(key, &tensor.spec, target.len())?;
        tensor.read(target)
    }

    fn read_range(&self, key: &str, range: Range<u64>, target: &mut [u8]) -> Result<()> {
        let tensor = self.get(key)?;
        check_range(key, &tensor.spec, &range, target.len())?;
        tensor.read_range(range, target)
    }

    fn ensure_readable(&self, key: &str) -> Result<bool> {
        self.get(key)?.fetch()
    }

    fn verify_tensor(&self, key: &str) -> Result<()> {
        self.get(key)?.parts.iter().try_for_each(|part| part.view.blob.verify())
    }

    fn verify(&self) -> Result<()> {
        self.checks.iter().try_for_each(|blob| blob.verify_again())
    }
}
