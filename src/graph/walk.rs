//! The walk of the object graph, with every name checked, and the flat list of leaves.

use super::leaf::{TensorLeaf, ValueLeaf};
use super::node::{Child, Collection, Kind, Node};
use super::place::{FileNames, Place, Siblings, component_stem, same_file};
use crate::error::{Error, Result};
use std::collections::HashSet;
use std::sync::Arc;

/// Receives the objects that a [`Walk`] visits, from the top down.
pub(crate) trait Visitor {
    /// What the objects above a place determine for that place.
    type Above: Copy;

    /// Returns `false` to leave out the object at `place` and everything below it.
    fn enters(&mut self, place: &Place<'_>) -> bool {
        let _ = place;
        true
    }

    fn tensor(&mut self, leaf: &Arc<dyn TensorLeaf>, place: Place<'_>, above: Self::Above) -> Result<()>;

    fn value(&mut self, leaf: &Arc<dyn ValueLeaf>, place: Place<'_>, above: Self::Above) -> Result<()>;

    /// Returns what `above` and a group determine for the child `name`.
    fn in_group(&self, above: Self::Above, name: &str, child: &Node) -> Self::Above {
        let _ = (name, child);
        above
    }

    /// Returns what `above` and a collection determine for a child at `place`, or `None` to leave it out.
    fn in_collection(
        &self,
        collection: &dyn Collection,
        above: Self::Above,
        child: &Child,
        place: &Place<'_>,
    ) -> Option<Self::Above>;

    /// Called after the children of a collection, with those that were left out.
    fn after_collection(
        &mut self,
        walk: &mut Walk,
        collection: &Arc<dyn Collection>,
        children: &Children,
        place: Place<'_>,
        above: Self::Above,
    ) -> Result<()>;
}

/// The children of a collection.
pub(crate) struct Children {
    pub all: Vec<Child>,
    /// The places in `all` of those that the visitor left out.
    pub left_out: Vec<usize>,
}

/// A walk of one component.
#[derive(Default)]
pub(crate) struct Walk {
    files: FileNames,
}

impl Walk {
    /// Walks a component.
    pub(crate) fn component<V: Visitor>(visitor: &mut V, component: &str, node: &Node, above: V::Above) -> Result<()> {
        Walk::default().visit(visitor, node, Place::of_component(component)?, above)
    }

    /// Walks an object of the component and everything below it.
    pub(crate) fn visit<V: Visitor>(
        &mut self,
        visitor: &mut V,
        node: &Node,
        place: Place<'_>,
        above: V::Above,
    ) -> Result<()> {
        if !visitor.enters(&place) {
            return Ok(());
        }
        match &node.0 {
            Kind::Tensor(leaf) => {
                self.files.add(&place)?;
                visitor.tensor(leaf, place, above)
            }
            Kind::Value(leaf) => visitor.value(leaf, place, above),
            Kind::Group(children) => {
                let mut siblings = Siblings::default();
                for (name, child) in children.iter() {
                    let below = place.child(name, None)?;
                    siblings.add(name, &below)?;
                    let above = visitor.in_group(above, name, child);
                    self.visit(visitor, child, below, above)?;
                }
                Ok(())
            }
            Kind::Collection(collection) => {
                let all = collection.children().map_err(|reason| Error::object(&place.key, reason))?;
                let (mut siblings, mut left_out) = (Siblings::default(), Vec::new());
                for (at, child) in all.iter().enumerate() {
                    let below = place.child(&child.name, child.name_in_file.as_deref())?;
                    siblings.add(&child.name, &below)?;
                    match visitor.in_collection(&**collection, above, child, &below) {
                        Some(above) => self.visit(visitor, &child.node, below, above)?,
                        None => left_out.push(at),
                    }
                }
                visitor.after_collection(self, collection, &Children { all, left_out }, place, above)
            }
        }
    }
}

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
    /// See [`Child::frozen`].
    pub is_frozen: bool,
}

/// What the collections above a place determine for everything below them.
#[derive(Clone, Copy, Default)]
pub(crate) struct Above {
    may_be_lacked: bool,
    is_covered: bool,
    is_frozen: bool,
}

#[derive(Clone)]
pub(crate) enum LeafObject {
    Tensor(Arc<dyn TensorLeaf>),
    Value(Arc<dyn ValueLeaf>),
}

impl LeafObject {
    /// Returns the tensor, if it is one.
    pub(crate) fn into_tensor(self) -> Option<Arc<dyn TensorLeaf>> {
        match self {
            LeafObject::Tensor(leaf) => Some(leaf),
            LeafObject::Value(_) => None,
        }
    }
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
        Walk::component(&mut found, component, node, Above::default())?;
    }
    Ok(found)
}

/// Checks the names of one component.
pub(crate) fn check_component(component: &str, node: &Node) -> Result<()> {
    Walk::component(&mut Walked::default(), component, node, Above::default())
}

impl Walked {
    fn leaf(&mut self, place: Place<'_>, object: LeafObject, may_be_lacked: bool, is_frozen: bool) {
        let component = place.component.to_string();
        let name_in_file = place.name_in_file().to_string();
        self.leaves.push(Leaf { key: place.key, component, name_in_file, object, may_be_lacked, is_frozen });
    }
}

impl Visitor for Walked {
    type Above = Above;

    fn tensor(&mut self, leaf: &Arc<dyn TensorLeaf>, place: Place<'_>, above: Above) -> Result<()> {
        let may_be_lacked = above.may_be_lacked || leaf.is_optional();
        self.leaf(place, LeafObject::Tensor(leaf.clone()), may_be_lacked, above.is_frozen);
        Ok(())
    }

    fn value(&mut self, leaf: &Arc<dyn ValueLeaf>, place: Place<'_>, above: Above) -> Result<()> {
        self.leaf(place, LeafObject::Value(leaf.clone()), above.may_be_lacked, false);
        Ok(())
    }

    fn in_collection(&self, collection: &dyn Collection, above: Above, child: &Child, _: &Place<'_>) -> Option<Above> {
        let may_be_lacked = above.may_be_lacked || collection.may_lack(&child.name);
        let is_covered = above.is_covered || collection.generation_covers_collections();
        Some(Above { may_be_lacked, is_covered, is_frozen: above.is_frozen || child.frozen })
    }

    fn after_collection(
        &mut self,
        _: &mut Walk,
        collection: &Arc<dyn Collection>,
        _: &Children,
        place: Place<'_>,
        above: Above,
    ) -> Result<()> {
        self.collections.push(collection.clone());
        self.collection_keys.push(place.key);
        self.covered.push(above.is_covered);
        Ok(())
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
