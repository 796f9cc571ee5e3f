//! From live objects to the flat list of leaves, with every name checked.

use super::leaf::{TensorLeaf, ValueLeaf};
use super::node::{Collection, Kind, Node};
use crate::error::{Error, Result};
use crate::name;
use std::collections::HashSet;
use std::sync::Arc;

/// How deep objects may nest; a collection that contains itself ends here.
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
}

/// All leaves and collections below these named objects.
pub(crate) fn walk(objects: &[(String, Node)]) -> Result<Walked> {
    let mut walker = Walker { found: Walked::default() };
    let mut stems = HashSet::new();
    for (component, node) in objects {
        name::check_component(component)?;
        if !stems.insert(name::file_stem(component).to_lowercase()) {
            let reason =
                "another component's name differs only in case, and both would be the same file on some systems";
            return Err(Error::name(component, reason));
        }
        let place = Place { component, key: name::key([component]), in_file: None, depth: 0 };
        walker.visit(node, place)?;
    }
    check_names_in_files(&walker.found.leaves)?;
    Ok(walker.found)
}

/// Where in the graph the walker stands.
struct Place<'a> {
    component: &'a str,
    key: String,
    /// The path below the component, or what a collection wants instead; `None` at the component itself.
    in_file: Option<String>,
    depth: usize,
}

struct Walker {
    found: Walked,
}

impl Walker {
    fn visit(&mut self, node: &Node, place: Place<'_>) -> Result<()> {
        if place.depth > MAX_DEPTH {
            return Err(Error::name(
                place.key,
                format!("objects nest deeper than {MAX_DEPTH}; does one contain itself?"),
            ));
        }
        match &node.0 {
            Kind::Tensor(leaf) => self.leaf(place, LeafObject::Tensor(leaf.clone())),
            Kind::Value(leaf) => self.leaf(place, LeafObject::Value(leaf.clone())),
            Kind::Group(children) => {
                let children = children.iter().map(|(name, node)| (name.as_str(), node, None));
                self.children(children, &place)?;
            }
            Kind::Collection(collection) => {
                let children = collection.children().map_err(|reason| Error::object(&place.key, reason))?;
                let children =
                    children.iter().map(|child| (child.name.as_str(), &child.node, child.name_in_file.as_deref()));
                self.children(children, &place)?;
                self.found.collections.push(collection.clone());
            }
        }
        Ok(())
    }

    fn children<'a>(
        &mut self,
        children: impl Iterator<Item = (&'a str, &'a Node, Option<&'a str>)>,
        place: &Place<'_>,
    ) -> Result<()> {
        let mut seen = HashSet::new();
        for (child, node, name_in_file) in children {
            name::check(&place.key, child)?;
            let key = format!("{}/{}", place.key, name::key([child]));
            if !seen.insert(child) {
                return Err(Error::name(key, "two objects have this name; give one of them another"));
            }
            let own = name_in_file.map_or_else(|| name::key([child]), str::to_string);
            let in_file = place.in_file.as_ref().map_or(own.clone(), |parent| format!("{parent}/{own}"));
            self.visit(
                node,
                Place { component: place.component, key, in_file: Some(in_file), depth: place.depth + 1 },
            )?;
        }
        Ok(())
    }

    fn leaf(&mut self, place: Place<'_>, object: LeafObject) {
        let component = place.component.to_string();
        let name_in_file = place.in_file.unwrap_or_else(|| component.clone());
        self.found.leaves.push(Leaf { key: place.key, component, name_in_file, object });
    }
}

/// Two tensors of a component must not have the same name in its file, nor the one name the format reserves.
fn check_names_in_files(leaves: &[Leaf]) -> Result<()> {
    let mut seen = HashSet::new();
    for leaf in leaves.iter().filter(|leaf| matches!(leaf.object, LeafObject::Tensor(_))) {
        if leaf.name_in_file == "__metadata__" {
            return Err(Error::name(&leaf.key, "safetensors files reserve `__metadata__`; choose another name"));
        }
        if !seen.insert((&leaf.component, &leaf.name_in_file)) {
            let reason = format!("another tensor of the component is called {:?} in its file", leaf.name_in_file);
            return Err(Error::name(&leaf.key, reason));
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
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
            assert!(matches!(names(&one(name, node)), Err(Error::Name { .. })), "{name}");
        }
        let both = vec![("Encoder".to_string(), counter.clone()), ("encoder".to_string(), counter)];
        assert!(names(&both).err().unwrap().to_string().contains("case"));
    }

    #[test]
    fn a_collection_that_contains_itself_is_an_error_not_a_hang() {
        #[derive(Clone)]
        struct Itself;
        impl Collection for Itself {
            fn children(&self) -> Result<Vec<Child>, String> {
                Ok(vec![Child::new("again", Node::collection(Itself))])
            }
        }
        assert!(names(&one("loop", Node::collection(Itself))).err().unwrap().to_string().contains("contain itself"));
    }
}
