//! From live objects to the flat list of leaves, with every name checked.

use super::leaf::{TensorLeaf, ValueLeaf};
use super::node::{Collection, Kind, Node};
use crate::error::{Error, Result};
use crate::name;
use std::collections::HashSet;
use std::sync::Arc;

/// The maximum depth of objects. A collection that contains itself ends here.
const MAX_DEPTH: usize = name::MAX_NAMES - 1;

/// A leaf and its names.
pub(crate) struct Leaf {
    /// The key of its path.
    pub key: String,
    /// The first name of its path: the component it belongs to.
    pub component: String,
    /// Its name in the component's safetensors file.
    pub name_in_file: String,
    pub object: LeafObject,
    /// Whether a collection above it allows a checkpoint to lack it.
    pub may_be_lacked: bool,
}

/// What the collections above a place say about everything below them.
#[derive(Clone, Copy, Default)]
struct Above {
    may_be_lacked: bool,
    is_covered: bool,
}

#[derive(Clone)]
pub(crate) enum LeafObject {
    Tensor(Arc<dyn TensorLeaf>),
    Value(Arc<dyn ValueLeaf>),
}

/// What is below some objects.
#[derive(Default)]
pub(crate) struct Walked {
    /// In the order the objects were tracked.
    pub leaves: Vec<Leaf>,
    pub collections: Vec<Arc<dyn Collection>>,
    /// The keys of the collections, in the same order.
    pub collection_keys: Vec<String>,
    /// Whether the generation of a collection above moves with theirs, in the same order.
    pub covered: Vec<bool>,
}

/// Returns all leaves and collections below these named objects.
pub(crate) fn walk(objects: &[(String, Node)]) -> Result<Walked> {
    let mut found = Walked::default();
    let mut stems = HashSet::new();
    for (component, node) in objects {
        if !stems.insert(component_stem(component)?) {
            return Err(same_file(component));
        }
        walk_into(component, node, &mut found)?;
    }
    Ok(found)
}

/// Returns all leaves and collections of one component.
pub(crate) fn walk_one(component: &str, node: &Node) -> Result<Walked> {
    let mut found = Walked::default();
    walk_into(component, node, &mut found)?;
    Ok(found)
}

fn walk_into(component: &str, node: &Node, found: &mut Walked) -> Result<()> {
    let mut walker = Walker { found, files: FileNames::default() };
    walker.visit(node, Place::of_component(component)?, Above::default())
}

/// Returns the stem of a component's file, distinct on every file system. Checks the name.
pub(crate) fn component_stem(component: &str) -> Result<String> {
    name::check_component(component)?;
    Ok(name::file_stem(component).to_lowercase())
}

/// Returns the error for two components of one stem.
pub(crate) fn same_file(component: &str) -> Error {
    Error::name(
        component,
        "another component's name differs only in case, and both would be the same file on some systems",
    )
}

/// A position in the graph. Checks the names on the way down.
pub(crate) struct Place<'a> {
    component: &'a str,
    pub key: String,
    /// The path below the component, or the name that a collection gives instead; `None` at the component itself.
    in_file: Option<String>,
    depth: usize,
}

impl<'a> Place<'a> {
    pub(crate) fn of_component(component: &'a str) -> Result<Place<'a>> {
        name::check_component(component)?;
        Ok(Place { component, key: name::key([component]), in_file: None, depth: 0 })
    }

    /// Returns the place of a child; `name_in_file` as in [`Child`](super::Child).
    pub(crate) fn child(&self, name: &str, name_in_file: Option<&str>) -> Result<Place<'a>> {
        name::check(&self.key, name)?;
        let own_key = name::key([name]);
        let own = name_in_file.map_or_else(|| own_key.clone(), str::to_string);
        let in_file = self.in_file.as_ref().map_or(own.clone(), |parent| format!("{parent}/{own}"));
        let key = format!("{}/{own_key}", self.key);
        if self.depth == MAX_DEPTH {
            return Err(Error::name(key, format!("objects nest deeper than {MAX_DEPTH}; does one contain itself?")));
        }
        Ok(Place { component: self.component, key, in_file: Some(in_file), depth: self.depth + 1 })
    }

    fn name_in_file(&self) -> &str {
        self.in_file.as_deref().unwrap_or(self.component)
    }
}

/// The names of an object's children, each allowed once.
#[derive(Default)]
pub(crate) struct Siblings<'a>(HashSet<&'a str>);

impl<'a> Siblings<'a> {
    pub(crate) fn add(&mut self, name: &'a str, place: &Place<'_>) -> Result<()> {
        match self.0.insert(name) {
            true => Ok(()),
            false => Err(Error::name(&place.key, "two objects have this name; give one of them another")),
        }
    }
}

/// The names of a component's tensors in its file, each allowed once, and none that the format reserves.
#[derive(Default)]
pub(crate) struct FileNames(HashSet<String>);

impl FileNames {
    pub(crate) fn add(&mut self, place: &Place<'_>) -> Result<()> {
        let name = place.name_in_file();
        if name == "__metadata__" {
            return Err(Error::name(&place.key, "safetensors files reserve `__metadata__`; choose another name"));
        }
        if !self.0.insert(name.to_string()) {
            let reason = format!("another tensor of the component is called {name:?} in its file");
            return Err(Error::name(&place.key, reason));
        }
        Ok(())
    }
}

struct Walker<'w> {
    found: &'w mut Walked,
    files: FileNames,
}

impl Walker<'_> {
    fn visit(&mut self, node: &Node, place: Place<'_>, above: Above) -> Result<()> {
        match &node.0 {
            Kind::Tensor(leaf) => {
                self.files.add(&place)?;
                let may_be_lacked = above.may_be_lacked || leaf.is_optional();
                self.leaf(place, LeafObject::Tensor(leaf.clone()), Above { may_be_lacked, ..above });
            }
            Kind::Value(leaf) => self.leaf(place, LeafObject::Value(leaf.clone()), above),
            Kind::Group(children) => {
                let mut siblings = Siblings::default();
                for (name, child) in children.iter() {
                    let below = place.child(name, None)?;
                    siblings.add(name, &below)?;
                    self.visit(child, below, above)?;
                }
            }
            Kind::Collection(collection) => {
                let children = collection.children().map_err(|reason| Error::object(&place.key, reason))?;
                let is_covered = above.is_covered || collection.generation_covers_collections();
                let mut siblings = Siblings::default();
                for child in &children {
                    let below = place.child(&child.name, child.name_in_file.as_deref())?;
                    siblings.add(&child.name, &below)?;
                    let may_be_lacked = above.may_be_lacked || collection.may_lack(&child.name);
                    self.visit(&child.node, below, Above { may_be_lacked, is_covered })?;
                }
                self.found.collections.push(collection.clone());
                self.found.collection_keys.push(place.key);
                self.found.covered.push(above.is_covered);
            }
        }
        Ok(())
    }

    fn leaf(&mut self, place: Place<'_>, object: LeafObject, above: Above) {
        let component = place.component.to_string();
        let name_in_file = place.name_in_file().to_string();
        let may_be_lacked = above.may_be_lacked;
        self.found.leaves.push(Leaf { key: place.key, component, name_in_file, object, may_be_lacked });
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::error::BoxError;
    use crate::graph::{Child, Collection, Counter, Trackable};

    fn names(objects: &[(String, Node)]) -> Result<Vec<(String, String)>> {
        Ok(walk(objects)?.leaves.into_iter().map(|leaf| (leaf.key, leaf.name_in_file)).collect())
    }

    fn one(name: &str, node: Node) -> Vec<(String, Node)> {
        vec![(name.to_string(), node)]
    }

    #[test]
    fn keys_and_names_in_files_follow_the_path() {
        let counter = Counter::new(0);
        let tree = Node::group([("a/b", vec![counter.clone(), counter.clone()].node()), ("c", counter.node())]);
        let pairs = names(&one("m", tree)).unwrap();
        assert_eq!(pairs[0], ("m/a%2Fb/0".to_string(), "a%2Fb/0".to_string()));
        assert_eq!(pairs[2], ("m/c".to_string(), "c".to_string()));
        assert_eq!(names(&one("step", counter.node())).unwrap()[0].1, "step");
    }

    #[test]
    fn bad_names_are_refused_and_named() {
        let counter = Counter::new(0).node();
        for (name, node) in [
            ("", counter.clone()),
            ("m", Node::group([("", counter.clone())])),
            ("m", Node::group([("twice", counter.clone()), ("twice", counter.clone())])),
            ("m", Node::group([("x".repeat(300), counter.clone())])),
        ] {
            assert!(matches!(names(&one(name, node)), Err(Error::InvalidName { .. })), "{name}");
        }
        let both = vec![("Encoder".to_string(), counter.clone()), ("encoder".to_string(), counter)];
        assert!(names(&both).err().unwrap().to_string().contains("case"));
    }

    #[test]
    fn a_collection_that_contains_itself_is_an_error_not_a_hang() {
        #[derive(Clone)]
        struct Itself;
        impl Collection for Itself {
            fn children(&self) -> Result<Vec<Child>, BoxError> {
                Ok(vec![Child::new("again", Node::collection(Itself))])
            }
        }
        assert!(names(&one("loop", Node::collection(Itself))).err().unwrap().to_string().contains("contain itself"));
    }
}
