//! `Trackable`, the one trait of the graph, and `Node`, the live handle that it gives.

use super::gate::Guarded;
use super::leaf::{TensorLeaf, ValueLeaf};
use crate::dtype::TensorSpec;
use crate::error::BoxError;
use std::collections::{BTreeMap, HashMap};
use std::fmt;
use std::sync::Arc;

/// What a [`Checkpoint`](crate::Checkpoint) can track.
///
/// Tracking keeps a handle to the object's state, not a copy and not a borrow: what changes later is what is saved later.
///
/// Objects form a tree. The same tensor or value may be in it under several names, but an object must not contain
/// itself: a graph that nests deeper than 64 objects is an error ([`Error::InvalidName`](crate::Error::InvalidName)) when it is
/// tracked. Leave the way back (a layer's handle to its model, say) out of `node`.
///
/// ```
/// use tch_checkpoint::{Counter, Node, Trackable, Value};
///
/// struct Progress { step: Counter, best_loss: Value<f64> }
///
/// impl Trackable for Progress {
///     fn node(&self) -> Node {
///         Node::group([("step", self.step.node()), ("best_loss", self.best_loss.node())])
///     }
/// }
/// ```
pub trait Trackable {
    /// A handle to this object's part of the graph.
    fn node(&self) -> Node;
}

/// A live handle to an object's part of the graph. Cloning it copies the handle, not the state.
#[derive(Clone)]
pub struct Node(pub(crate) Kind);

#[derive(Clone)]
pub(crate) enum Kind {
    Tensor(Arc<dyn TensorLeaf>),
    Value(Arc<dyn ValueLeaf>),
    Group(Arc<Vec<(String, Node)>>),
    Collection(Arc<dyn Collection>),
}

impl Node {
    /// A leaf that holds a tensor.
    pub fn tensor(leaf: impl TensorLeaf + 'static) -> Node {
        Node(Kind::Tensor(Arc::new(leaf)))
    }

    /// A leaf that holds a small value.
    pub fn value(leaf: impl ValueLeaf + 'static) -> Node {
        Node(Kind::Value(Arc::new(leaf)))
    }

    /// An object with these children.
    pub fn group<N: Into<String>>(children: impl IntoIterator<Item = (N, Node)>) -> Node {
        Node(Kind::Group(Arc::new(children.into_iter().map(|(name, node)| (name.into(), node)).collect())))
    }

    /// An object whose children come and go.
    pub fn collection(collection: impl Collection + 'static) -> Node {
        Node(Kind::Collection(Arc::new(collection)))
    }
}

impl fmt::Debug for Node {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.0 {
            Kind::Tensor(_) => f.write_str("Node::tensor"),
            Kind::Value(_) => f.write_str("Node::value"),
            Kind::Group(children) => f.debug_map().entries(children.iter().map(|(name, node)| (name, node))).finish(),
            Kind::Collection(_) => f.write_str("Node::collection"),
        }
    }
}

/// An object whose children come and go: a `VarStore`, an optimizer's slots.
pub trait Collection: Send + Sync {
    /// The children as they are now; an error says which one cannot be tracked, and why.
    fn children(&self) -> Result<Vec<Child>, BoxError>;

    /// A restore found `name` in the checkpoint and not here: a new, detached child for it to fill, if this object
    /// can make one. It is handed to [`Collection::replace`] when the whole restore has succeeded, else dropped.
    fn create(&self, name: &str, saved: &Saved) -> Result<Option<Node>, BoxError> {
        let _ = (name, saved);
        Ok(None)
    }

    /// Whether a restore from a checkpoint that lacks the child `name` may go on: such a child is then
    /// removed in [`Collection::replace`].
    fn may_lack(&self, name: &str) -> bool {
        let _ = name;
        false
    }

    /// As [`may_lack`](Collection::may_lack), where it depends on what the checkpoint has of this object. Defaults to
    /// `may_lack`.
    fn may_lack_beside(&self, name: &str, saved: &Saved) -> bool {
        let _ = saved;
        self.may_lack(name)
    }

    /// The tensors, here or elsewhere in the graph, that change only after passing a gate of this object. A save in
    /// the background copies all others before it returns.
    fn guarded(&self) -> Option<Guarded> {
        None
    }

    /// A number that moves whenever [`children`](Collection::children) or [`guarded`](Collection::guarded) would give
    /// something else; `None` if that is not known, and they are asked at every save. The tensors below are asked
    /// themselves ([`TensorLeaf::generation`](crate::TensorLeaf::generation)).
    fn generation(&self) -> Option<u64> {
        None
    }

    /// Whether [`generation`](Collection::generation) also moves when a collection below would give something else.
    /// Otherwise, as by default, each of these is asked at every save.
    fn generation_covers_collections(&self) -> bool {
        false
    }

    /// The names of children that a restore created and that nothing uses yet: an optimizer's slots for a variable that
    /// the model does not have. The values count as unused in the [`Report`](crate::Report) until something takes them.
    fn waiting(&self) -> Vec<String> {
        Vec::new()
    }

    /// Why the state is between two steps, so that a checkpoint of it could not be resumed exactly: gradients that no
    /// step has used. `None`, the default, where a save may happen at any time.
    fn unfinished(&self) -> Option<Unfinished> {
        None
    }

    /// Ends a restore that has succeeded: takes the created children in, and drops those the checkpoint lacks. All
    /// tensors and values are restored before.
    fn replace(&self, created: Vec<(String, Node)>, dropped: Vec<String>) {
        let _ = (created, dropped);
    }
}

/// An update that has begun and is not complete.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub struct Unfinished {
    /// What a checkpoint would lack, and what to do about it.
    pub reason: String,
    /// How many updates were completed before.
    pub steps: u64,
}

impl Unfinished {
    /// An update that follows `steps` others.
    pub fn new(reason: impl Into<String>, steps: u64) -> Unfinished {
        Unfinished { reason: reason.into(), steps }
    }
}

/// A child of a [`Collection`].
#[derive(Debug, Clone)]
pub struct Child {
    /// Its name in the graph.
    pub name: String,
    /// Its part of the graph.
    pub node: Node,
    /// Its name in the safetensors file, where that differs from its path in the component: a `VarStore`'s own full name.
    pub name_in_file: Option<String>,
}

impl Child {
    /// A child whose name in the file is its path in the component.
    pub fn new(name: impl Into<String>, node: Node) -> Child {
        Child { name: name.into(), node, name_in_file: None }
    }
}

/// What a checkpoint holds below some object.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Saved {
    /// Children, by name.
    pub children: BTreeMap<String, Saved>,
    /// The tensor saved here, if one is.
    pub tensor: Option<TensorSpec>,
    /// Whether a value is saved here.
    pub has_value: bool,
}

impl Trackable for Node {
    fn node(&self) -> Node {
        self.clone()
    }
}

impl<T: Trackable + ?Sized> Trackable for &T {
    fn node(&self) -> Node {
        (**self).node()
    }
}

impl<T: Trackable + ?Sized> Trackable for Box<T> {
    fn node(&self) -> Node {
        (**self).node()
    }
}

impl<T: Trackable + ?Sized> Trackable for Arc<T> {
    fn node(&self) -> Node {
        (**self).node()
    }
}

/// A list: its elements are named `0`, `1`, … The list as it is at this moment. After appending,
/// [`Checkpoint::untrack`](crate::Checkpoint::untrack) it and track it again.
impl<T: Trackable> Trackable for [T] {
    fn node(&self) -> Node {
        Node::group(self.iter().enumerate().map(|(i, item)| (i.to_string(), item.node())))
    }
}

impl<T: Trackable> Trackable for Vec<T> {
    fn node(&self) -> Node {
        self.as_slice().node()
    }
}

impl<T: Trackable, const N: usize> Trackable for [T; N] {
    fn node(&self) -> Node {
        self.as_slice().node()
    }
}

/// A map: its keys are the names.
impl<K: AsRef<str>, T: Trackable> Trackable for BTreeMap<K, T> {
    fn node(&self) -> Node {
        Node::group(self.iter().map(|(name, item)| (name.as_ref(), item.node())))
    }
}

/// A map: its keys are the names.
impl<K: AsRef<str>, T: Trackable, S> Trackable for HashMap<K, T, S> {
    fn node(&self) -> Node {
        let mut items: Vec<_> = self.iter().map(|(name, item)| (name.as_ref(), item.node())).collect();
        items.sort_by(|a, b| a.0.cmp(b.0));
        Node::group(items)
    }
}
