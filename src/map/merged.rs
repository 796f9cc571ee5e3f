//! Several sources as one.

use crate::dtype::TensorSpec;
use crate::error::{Error, Result};
use crate::format::Digest;
use crate::location::Location;
use crate::name;
use crate::source::{SourceAttributes, TensorSource, VerifiedBy};
use serde_json::Value;
use std::collections::BTreeMap;
use std::ops::Range;

/// The tensors and values of several sources under their own names.
///
/// It is a [`TensorSource`]: [`convert`](crate::convert::convert) writes it as a new checkpoint. If a source has names
/// that another one has as well, apply a [`NameMap`](super::NameMap) to it first.
///
/// ```no_run
/// # fn main() -> tch_checkpoint::Result<()> {
/// use tch_checkpoint::convert::{Format, convert};
/// use tch_checkpoint::{interop, map::Merged};
/// let (encoder, decoder) = (interop::open("encoder.pt")?, interop::open("decoder.pt")?);
/// let both = Merged::new([&*encoder, &*decoder])?;
/// convert(&both, "both", Format::Checkpoint)?;
/// # Ok(())
/// # }
/// ```
#[derive(Debug)]
pub struct Merged<'a> {
    sources: Vec<&'a dyn TensorSource>,
    first: &'a dyn TensorSource,
    /// By key, the source of each tensor.
    of: BTreeMap<String, &'a dyn TensorSource>,
    order: Vec<&'a str>,
    specs: BTreeMap<String, TensorSpec>,
    values: BTreeMap<String, Value>,
    unreadable: BTreeMap<String, String>,
}

impl<'a> Merged<'a> {
    /// Returns everything that the sources have.
    ///
    /// # Errors
    /// [`Error::InvalidArgument`] without a source; [`Error::Object`] for a name that two sources have.
    pub fn new(sources: impl IntoIterator<Item = &'a dyn TensorSource>) -> Result<Merged<'a>> {
        let sources: Vec<&dyn TensorSource> = sources.into_iter().collect();
        let nothing = || Error::InvalidArgument("there is nothing to merge".to_string());
        let first = *sources.first().ok_or_else(nothing)?;
        let (of, order, specs) = (BTreeMap::new(), Vec::new(), BTreeMap::new());
        let (values, unreadable) = (BTreeMap::new(), BTreeMap::new());
        let mut merged = Merged { sources, first, of, order, specs, values, unreadable };
        let mut owners: BTreeMap<&str, &Location> = BTreeMap::new();
        for source in merged.sources.clone() {
            for key in source.tensors().keys().chain(source.values().keys()) {
                if let Some(other) = owners.insert(key, source.path()) {
                    let (other, own) = (other.display(), source.path().display());
                    let reason = format!("{other} and {own} both have it; rename it in one of them, or leave it out");
                    return Err(Error::object(key, reason));
                }
            }
            merged.order.extend(source.order());
            merged.of.extend(source.tensors().keys().map(|key| (key.clone(), source)));
            merged.specs.extend(source.tensors().iter().map(|(key, spec)| (key.clone(), spec.clone())));
            merged.values.extend(source.values().iter().map(|(key, value)| (key.clone(), value.clone())));
            merged.unreadable.extend(source.unreadable().iter().map(|(key, reason)| (key.clone(), reason.clone())));
        }
        Ok(merged)
    }

    fn source(&self, key: &str) -> Result<&'a dyn TensorSource> {
        self.of.get(key).copied().ok_or_else(|| Error::object(key, "none of the merged sources has such a tensor"))
    }
}

impl TensorSource for Merged<'_> {
    fn format(&self) -> &'static str {
        self.first.format()
    }

    fn path(&self) -> &Location {
        self.first.path()
    }

    fn tensors(&self) -> &BTreeMap<String, TensorSpec> {
        &self.specs
    }

    fn order(&self) -> Vec<&str> {
        self.order.clone()
    }

    fn values(&self) -> &BTreeMap<String, Value> {
        &self.values
    }

    fn unreadable(&self) -> &BTreeMap<String, String> {
        &self.unreadable
    }

    fn first_alias<'k>(&'k self, key: &'k str) -> &'k str {
        self.of.get(key).map_or(key, |source| source.first_alias(key))
    }

    fn lacks(&self, key: &str) -> Option<(String, String)> {
        let lacking = self.sources.iter().find_map(|source| source.lacks(key))?;
        // Another source may have it.
        let is_there = name::has_at(&self.specs, &lacking.0) || name::has_at(&self.values, &lacking.0);
        (!is_there).then_some(lacking)
    }

    fn requires_grad(&self, key: &str) -> Option<bool> {
        self.of.get(key)?.requires_grad(key)
    }

    fn attributes(&self) -> Result<SourceAttributes> {
        SourceAttributes::common(&self.sources)
    }

    fn read_asset(&self, name: &str, with: &mut dyn FnMut(&[u8]) -> Result<()>) -> Result<()> {
        for source in &self.sources {
            if source.attributes()?.assets.contains_key(name) {
                return source.read_asset(name, with);
            }
        }
        self.first.read_asset(name, with)
    }

    fn verified_by(&self, key: &str) -> VerifiedBy {
        self.of.get(key).map_or(VerifiedBy::Nothing, |source| source.verified_by(key))
    }

    fn digest(&self, key: &str) -> Option<Digest> {
        self.of.get(key).and_then(|source| source.digest(key))
    }

    fn read(&self, key: &str, target: &mut [u8]) -> Result<()> {
        self.source(key)?.read(key, target)
    }

    fn read_range(&self, key: &str, range: Range<u64>, target: &mut [u8]) -> Result<()> {
        self.source(key)?.read_range(key, range, target)
    }

    fn ensure_readable(&self, key: &str) -> Result<bool> {
        self.source(key)?.ensure_readable(key)
    }

    fn verify_tensor(&self, key: &str) -> Result<()> {
        self.source(key)?.verify_tensor(key)
    }

    fn verify(&self) -> Result<()> {
        let mut stored = self.specs.keys().filter(|key| self.first_alias(key) == key.as_str());
        stored.try_for_each(|key| self.verify_tensor(key))
    }
}
