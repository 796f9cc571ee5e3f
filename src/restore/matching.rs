//! Which saved value goes into which object. Nothing changes here.

use super::options::RestoreOptions;
use super::report::Report;
use crate::error::{Error, Result};
use crate::format::Manifest;
use crate::graph::{Collection, Identity, Kind, Node, Saved, TensorLeaf, ValueApply, walk};
use crate::name;
use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::sync::Arc;

/// A restore, ready to be verified and applied.
#[derive(Default)]
pub(crate) struct Matching {
    pub tensors: Vec<(String, Arc<dyn TensorLeaf>)>,
    pub values: Vec<ValueApply>,
    pub collections: Vec<Replacement>,
    pub report: Report,
}

/// How a collection's children change.
pub(crate) struct Replacement {
    pub collection: Arc<dyn Collection>,
    pub created: Vec<(String, Node)>,
    pub dropped: Vec<String>,
}

/// Matches `objects` with what is `saved`; `unused` in the report are the keys of `saved` that no object took.
pub(crate) fn match_objects(
    objects: &[(String, Node)],
    saved: &Saved,
    manifest: &Manifest,
    options: &RestoreOptions,
) -> Result<Matching> {
    // All names are checked by the same rules as for saving.
    walk(objects)?;
    let mut matcher =
        Matcher { manifest, options, matching: Matching::default(), taken: BTreeSet::new(), seen: HashMap::new() };
    for (name, node) in objects {
        matcher.visit(node, saved.children.get(name), name::key([name]))?;
    }
    let mut unused = BTreeMap::new();
    collect_keys(saved, String::new(), &mut unused);
    let Matcher { mut matching, taken, .. } = matcher;
    matching.report.unused = unused.into_keys().filter(|key| !taken.contains(key)).collect();
    Ok(matching)
}

/// The keys of all tensors and values of a tree.
pub(crate) fn collect_keys(saved: &Saved, key: String, keys: &mut BTreeMap<String, ()>) {
    for (name, child) in &saved.children {
        let own = name::key([name]);
        collect_keys(child, if key.is_empty() { own } else { format!("{key}/{own}") }, keys);
    }
    if saved.tensor.is_some() || saved.has_value {
        keys.insert(key, ());
    }
}

struct Matcher<'a> {
    manifest: &'a Manifest,
    options: &'a RestoreOptions,
    matching: Matching,
    taken: BTreeSet<String>,
    /// Tensor memory that is restored already, and from which key.
    seen: HashMap<Identity, String>,
}

impl Matcher<'_> {
    fn visit(&mut self, node: &Node, saved: Option<&Saved>, key: String) -> Result<()> {
        match &node.0 {
            Kind::Tensor(leaf) => self.tensor(leaf, saved, key),
            Kind::Value(leaf) => {
                match self.manifest.values.get(&key).filter(|_| saved.is_some_and(|saved| saved.has_value)) {
                    None => {
                        self.missing(key);
                        Ok(())
                    }
                    Some(value) => {
                        match leaf.load(value) {
                            Ok(apply) => {
                                self.matching.values.push(apply);
                                self.take(key);
                            }
                            Err(reason) => self.matching.report.mismatch(&key, reason),
                        }
                        Ok(())
                    }
                }
            }
            Kind::Group(children) => {
                for (name, child) in children.iter() {
                    let key = format!("{key}/{}", name::key([name]));
                    self.visit(child, saved.and_then(|saved| saved.children.get(name)), key)?;
                }
                Ok(())
            }
            Kind::Collection(collection) => self.collection(collection, saved, key),
        }
    }

    fn tensor(&mut self, leaf: &Arc<dyn TensorLeaf>, saved: Option<&Saved>, key: String) -> Result<()> {
        let Some(spec) = saved.and_then(|saved| saved.tensor.as_ref()) else {
            if !leaf.is_optional() {
                self.missing(key);
            }
            return Ok(());
        };
        let live = leaf.spec().map_err(|reason| Error::object(&key, reason))?;
        if live != *spec {
            match self.options.may_mismatch(&key) {
                true => self.matching.report.missing.push(key),
                false => self.matching.report.spec_differs(&key, &live, spec),
            }
            return Ok(());
        }
        if let Some(first) = leaf.identity().and_then(|identity| self.seen.insert(identity, key.clone())) {
            // Shared memory: one value must serve both names.
            if self.digest(&first) != self.digest(&key) {
                let reason = format!(
                    "it shares its memory with {}, but the checkpoint has different values for the two",
                    name::shown(&first)
                );
                self.matching.report.mismatch(&key, reason);
                return Ok(());
            }
        } else {
            self.matching.tensors.push((key.clone(), leaf.clone()));
        }
        self.take(key);
        Ok(())
    }

    fn digest(&self, key: &str) -> Option<crate::format::Digest> {
        self.manifest.tensors.get(key).map(|record| record.digest)
    }

    fn collection(&mut self, collection: &Arc<dyn Collection>, saved: Option<&Saved>, key: String) -> Result<()> {
        let children = collection.children().map_err(|reason| Error::object(&key, reason))?;
        let below = |name: &str| format!("{key}/{}", name::key([name]));
        let mut created = Vec::new();
        let mut dropped = Vec::new();
        let live: BTreeSet<&str> = children.iter().map(|child| child.name.as_str()).collect();
        for child in &children {
            match saved.and_then(|saved| saved.children.get(&child.name)) {
                None if collection.may_lack(&child.name) => dropped.push(child.name.clone()),
                saved => self.visit(&child.node, saved, below(&child.name))?,
            }
        }
        for (name, saved) in saved.iter().flat_map(|saved| &saved.children) {
            if live.contains(name.as_str()) {
                continue;
            }
            match collection.create(name, saved) {
                Ok(Some(node)) => {
                    self.visit(&node, Some(saved), below(name))?;
                    created.push((name.clone(), node));
                }
                Ok(None) => {}
                Err(reason) => self.matching.report.mismatch(&below(name), reason),
            }
        }
        if !created.is_empty() || !dropped.is_empty() {
            self.matching.collections.push(Replacement { collection: collection.clone(), created, dropped });
        }
        Ok(())
    }

    fn missing(&mut self, key: String) {
        self.matching.report.missing.push(key);
    }

    fn take(&mut self, key: String) {
        self.taken.insert(key.clone());
        self.matching.report.matched.push(key);
    }
}
