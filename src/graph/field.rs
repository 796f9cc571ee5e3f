//! The fields from which `#[derive(Trackable)]` builds a node.

use super::node::{Child, Collection, Kind, Node};
use crate::error::BoxError;

/// A field of a struct that derives [`Trackable`](super::Trackable).
#[doc(hidden)]
#[derive(Debug)]
pub struct Field {
    name: &'static str,
    node: Node,
    is_flattened: bool,
}

impl Field {
    /// Returns a field that is tracked under its name.
    #[must_use]
    pub fn named(name: &'static str, node: Node) -> Field {
        Field { name, node, is_flattened: false }
    }

    /// Returns a field whose children are tracked as if they were fields.
    #[must_use]
    pub fn flattened(name: &'static str, node: Node) -> Field {
        Field { name, node, is_flattened: true }
    }

    /// Returns the node of a struct with these fields.
    pub fn node_of(fields: impl IntoIterator<Item = Field>) -> Node {
        let mut children = Vec::new();
        for field in fields {
            match &field.node.0 {
                Kind::Group(inner) if field.is_flattened => children.extend(inner.iter().cloned()),
                _ if field.is_flattened => return Node::collection(NotAGroup(field.name)),
                _ => children.push((field.name.to_string(), field.node)),
            }
        }
        Node::group(children)
    }
}

/// A node that reports, when it is tracked, which field cannot be flattened.
struct NotAGroup(&'static str);

impl Collection for NotAGroup {
    fn children(&self) -> Result<Vec<Child>, BoxError> {
        Err(format!(
            "the field `{}` is marked `#[track(flatten)]`, but it is a tensor, a value, or an object whose children come and go; \
             remove the attribute, or flatten a struct, list or map",
            self.0
        )
        .into())
    }
}
