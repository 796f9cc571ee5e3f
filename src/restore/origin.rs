//! The origin of restored values: a checkpoint of this crate, or a source of any format.

use crate::dtype::TensorSpec;
use crate::error::{Error, Result};
use crate::format::{Digest, Hasher};
use crate::graph::SavedTree;
use crate::location::Location;
use crate::map::{Mapped, Mapping};
use crate::name;
use crate::source::{CHUNK, Source, TensorSource, VerifiedBy, check, no_such_tensor, room, tree};
use serde_json::Value as Json;
use std::borrow::Cow;
use std::collections::BTreeMap;
use std::sync::{Mutex, PoisonError};

/// The origin of values.
pub(crate) enum Origin<'a> {
    /// A checkpoint of this crate.
    Ours(&'a Source),
    /// Anything else.
    Any(Any<'a>),
}

/// A source of any format.
pub(crate) struct Any<'a> {
    pub source: &'a dyn TensorSource,
    /// Digests of the first read of tensors that the source cannot verify.
    digests: Mutex<BTreeMap<String, Digest>>,
    /// The record of what a map did.
    mappings: &'a [Mapping],
}

impl<'a> Origin<'a> {
    pub(crate) fn any(source: &'a dyn TensorSource) -> Origin<'a> {
        Origin::Any(Any { source, digests: Mutex::default(), mappings: &[] })
    }

    pub(crate) fn mapped(source: &'a Mapped<'_>) -> Origin<'a> {
        Origin::Any(Any { source, digests: Mutex::default(), mappings: source.mappings() })
    }

    /// Returns what a map has renamed or transformed.
    pub(crate) fn mappings(&self) -> &[Mapping] {
        match self {
            Origin::Ours(_) => &[],
            Origin::Any(any) => any.mappings,
        }
    }

    pub(crate) fn path(&self) -> &Location {
        match self {
            Origin::Ours(source) => &source.path,
            Origin::Any(any) => any.source.path(),
        }
    }

    /// Returns the content as a tree.
    pub(crate) fn saved(&self) -> SavedTree {
        match self {
            Origin::Ours(source) => source.saved(),
            Origin::Any(any) => {
                let (tensors, values) = (any.source.tensors().iter(), any.source.values().keys());
                let requires_grad = |key: &str| any.source.requires_grad(key) == Some(true);
                tree(tensors, values, |key| any.source.was_trained(key) || requires_grad(key))
            }
        }
    }

    /// Returns the keys of all tensors and values, in order.
    pub(crate) fn keys(&self) -> Vec<&String> {
        let mut keys: Vec<&String> = match self {
            Origin::Ours(source) => source.manifest.tensors.keys().chain(source.manifest.values.keys()).collect(),
            Origin::Any(any) => any.source.tensors().keys().chain(any.source.values().keys()).collect(),
        };
        keys.sort_unstable();
        keys
    }

    pub(crate) fn spec(&self, key: &str) -> Option<&TensorSpec> {
        match self {
            Origin::Ours(source) => source.manifest.tensors.get(key).map(|record| &record.spec),
            Origin::Any(any) => any.source.tensors().get(key),
        }
    }

    /// Returns the value for the object `key`.
    ///
    /// # Errors
    /// Those of reading a number that the source holds as a tensor.
    pub(crate) fn value(&self, key: &str) -> Result<Option<Cow<'_, Json>>> {
        match self {
            Origin::Ours(source) => Ok(source.manifest.values.get(key).map(Cow::Borrowed)),
            Origin::Any(any) => match any.source.value(key) {
                Some(value) => Ok(Some(Cow::Owned(value))),
                None => Ok(any.number(key)?.map(Cow::Owned)),
            },
        }
    }

    /// Returns why the entry `key` of the source, or the first one below it, cannot be read. `None` if there is no such
    /// entry.
    pub(crate) fn unreadable(&self, key: &str) -> Option<String> {
        let Origin::Any(any) = self else { return None };
        let unreadable = any.source.unreadable();
        if let Some(reason) = unreadable.get(key) {
            return Some(reason.clone());
        }
        let prefix = name::prefix(key);
        let (below, reason) = unreadable.range(prefix.clone()..).next()?;
        below.starts_with(&prefix).then(|| format!("{below}: {reason}"))
    }

    /// Returns the component of the object `key`, as the first part of the key, and the reason if the checkpoint lacks
    /// the whole component.
    pub(crate) fn lacks(&self, key: &str) -> Option<(String, String)> {
        match self {
            Origin::Ours(source) => source.lacks(key),
            Origin::Any(any) => any.source.lacks(key),
        }
    }

    /// Returns `true` if the object `key` was saved, and its value cannot be restored.
    pub(crate) fn is_lost(&self, key: &str) -> bool {
        self.lacks(key).is_some() || self.unreadable(key).is_some()
    }

    /// Returns `true` if a value uses everything below its key.
    pub(crate) fn has_branches(&self) -> bool {
        matches!(self, Origin::Any(_))
    }

    /// Returns `true` if two tensors have the same elements.
    pub(crate) fn are_same(&self, a: &str, b: &str) -> Result<bool> {
        match self {
            Origin::Ours(source) => {
                let digest = |key| source.manifest.tensors.get(key).map(|record| record.digest);
                Ok(digest(a) == digest(b))
            }
            Origin::Any(any) => any.are_same(a, b),
        }
    }

    /// Reads the elements of a tensor, to be compared before anything is restored.
    pub(crate) fn bytes(&self, key: &str, verify: bool) -> Result<Vec<u8>> {
        let mut bytes = room(key, self.spec(key).and_then(TensorSpec::bytes))?;
        match self {
            Origin::Ours(source) => {
                if let Some(record) = source.manifest.tensors.get(key) {
                    source.read_tensor(key, record, &mut bytes, verify)?;
                }
            }
            Origin::Any(any) => any.source.read(key, &mut bytes)?,
        }
        Ok(bytes)
    }

    pub(crate) fn requires_grad(&self, key: &str) -> Option<bool> {
        match self {
            Origin::Ours(source) => source.manifest.tensors.get(key)?.requires_grad,
            Origin::Any(any) => any.source.requires_grad(key),
        }
    }

    /// How far everything but tensors is verified.
    pub(crate) fn values_verified_by(&self) -> VerifiedBy {
        match self {
            Origin::Ours(_) => VerifiedBy::Digest,
            Origin::Any(_) => VerifiedBy::Nothing,
        }
    }

    /// How far the elements of a tensor are verified.
    pub(crate) fn verified_by(&self, key: &str) -> VerifiedBy {
        match self {
            Origin::Ours(_) => VerifiedBy::Digest,
            Origin::Any(any) => any.source.verified_by(key),
        }
    }
}

impl Any<'_> {
    /// Returns a tensor of one element as a number: formats without values store numbers in this form.
    fn number(&self, key: &str) -> Result<Option<Json>> {
        let Some(spec) = self.source.tensors().get(key).filter(|spec| spec.shape.is_empty()) else {
            return Ok(None);
        };
        let mut bytes = [0; 8];
        let bytes = &mut bytes[..spec.dtype.size()];
        self.source.read(key, bytes)?;
        Ok(crate::source::number(spec.dtype, bytes))
    }

    fn are_same(&self, a: &str, b: &str) -> Result<bool> {
        if self.source.first_alias(a) == self.source.first_alias(b) {
            return Ok(true);
        }
        Ok(self.source.tensors().get(a) == self.source.tensors().get(b) && self.digest(a)? == self.digest(b)?)
    }

    /// Returns the digest of a tensor's elements, read piece by piece.
    fn digest(&self, key: &str) -> Result<Digest> {
        let mut hasher = Hasher::new();
        self.for_each_chunk(key, |chunk| hasher.update(chunk))?;
        Ok(hasher.finish())
    }

    fn for_each_chunk(&self, key: &str, mut with: impl FnMut(&[u8])) -> Result<()> {
        let spec = self.spec(key)?;
        let size = spec.dtype.size() as u64;
        let (count, step) = (spec.bytes().unwrap_or_default() / size, CHUNK as u64 / size);
        let mut buffer = room(key, Some((count * size).min(CHUNK as u64)))?;
        let mut at = 0;
        while at < count {
            let end = (at + step).min(count);
            let chunk = &mut buffer[..((end - at) * size) as usize];
            self.source.read_range(key, at..end, chunk)?;
            with(chunk);
            at = end;
        }
        Ok(())
    }

    fn spec(&self, key: &str) -> Result<&TensorSpec> {
        self.source.tensors().get(key).ok_or_else(|| no_such_tensor(self.source, key))
    }

    /// Checks a tensor as far as that can be, and that all of it can be read. What its source cannot check must be the
    /// same when it is read once more.
    pub(super) fn verify(&self, key: &str) -> Result<()> {
        if check(self.source, key)? {
            return Ok(());
        }
        let digest = self.digest(key)?;
        self.digests.lock().unwrap_or_else(PoisonError::into_inner).insert(key.to_string(), digest);
        Ok(())
    }

    /// Reads a tensor into `target`, which has its size.
    pub(super) fn read(&self, key: &str, target: &mut [u8]) -> Result<()> {
        self.source.read(key, target)?;
        let before = self.digests.lock().unwrap_or_else(PoisonError::into_inner).get(key).copied();
        match before {
            Some(before) if Digest::of(target) != before => {
                let reason = format!("{key}: its elements changed while they were being restored");
                Err(Error::damaged(self.source.path(), reason))
            }
            _ => Ok(()),
        }
    }
}
