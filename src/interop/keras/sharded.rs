//! The index of sharded weights: `model.weights.json`.

use serde::Deserialize;
use std::collections::{BTreeMap, BTreeSet};
use std::path::{Component, Path};

/// The longest index.
pub(super) const MAX_BYTES: u64 = 64 << 20;

/// Which files the groups of variables are in.
#[derive(Debug, Deserialize)]
pub(super) struct Index {
    pub weight_map: BTreeMap<String, Files>,
}

/// A group may be in several files.
#[derive(Debug, Deserialize)]
#[serde(untagged)]
pub(super) enum Files {
    One(String),
    Many(Vec<String>),
}

impl Files {
    pub(super) fn names(&self) -> &[String] {
        match self {
            Files::One(name) => std::slice::from_ref(name),
            Files::Many(names) => names,
        }
    }
}

impl Index {
    /// Reads an index; `None` for any other text.
    pub(super) fn parse(text: &[u8]) -> Option<Index> {
        let index: Index = serde_json::from_slice(text).ok()?;
        let files: BTreeSet<&String> = index.weight_map.values().flat_map(Files::names).collect();
        (!files.is_empty() && files.iter().all(|name| name.ends_with(".h5"))).then_some(index)
    }

    /// Returns the files, in order; an error for one that is not in the directory of the index.
    pub(super) fn files(&self) -> Result<BTreeSet<&str>, String> {
        let files: BTreeSet<&str> = self.weight_map.values().flat_map(Files::names).map(String::as_str).collect();
        for name in &files {
            let mut parts = Path::new(name).components();
            if !matches!((parts.next(), parts.next()), (Some(Component::Normal(_)), None)) {
                return Err(format!("the file {name:?} is not beside the index"));
            }
        }
        Ok(files)
    }
}
