//! `Trackable`, the trait of everything that can be tracked, and `Node`, the live handle that it returns.

use super::gate::Guarded;
use super::leaf::{TensorLeaf, ValueLeaf};
use crate::dtype::TensorSpec;
use crate::error::BoxError;
use std::collections::{BTreeMap, HashMap};
use std::fmt;
use std::sync::{Arc, Weak};

/// An object that a [`Checkpoint`](crate::Checkpoint) can track.
///
/// Tracking keeps a handle to the object's state, neither a copy nor a borrow: a save writes the state at that time.
///
/// Objects form a tree. The same tensor or value may be in it under several names, but an object must not contain
/// itself: a graph that nests deeper than 64 objects is an error ([`Error::InvalidName`](crate::Error::InvalidName))
/// when it is tracked. Leave back references, such as a layer's handle to its model, out of `node`.
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
    /// Returns a handle to this object's part of the graph.
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
    /// Creates a leaf that holds a tensor.
    pub fn tensor(leaf: impl TensorLeaf + 'static) -> Node {
        Node(Kind::Tensor(Arc::new(leaf)))
    }

    /// Creates a leaf that holds a small value.
    pub fn value(leaf: impl ValueLeaf + 'static) -> Node {
        Node(Kind::Value(Arc::new(leaf)))
    }

    /// Creates an object with these children.
    pub fn group<N: Into<String>>(children: impl IntoIterator<Item = (N, Node)>) -> Node {
        Node(Kind::Group(Arc::new(children.into_iter().map(|(name, node)| (name.into(), node)).collect())))
    }

    /// Creates an object whose children are added and removed over time.
    pub fn collection(collection: impl Collection + 'static) -> Node {
        Node(Kind::Collection(Arc::new(collection)))
    }
}

/// An object below which there may be others, without keeping it alive.
#[derive(Clone)]
pub(crate) enum WeakNode {
    Group(Weak<Vec<(String, Node)>>),
    Collection(Weak<dyn Collection>),
}

impl Node {
    /// Returns `None` for a leaf.
    pub(crate) fn downgrade(&self) -> Option<WeakNode> {
        match &self.0 {
            Kind::Group(children) => Some(WeakNode::Group(Arc::downgrade(children))),
            Kind::Collection(collection) => Some(WeakNode::Collection(Arc::downgrade(collection))),
            Kind::Tensor(_) | Kind::Value(_) => None,
        }
    }
}

impl WeakNode {
    /// Returns `true` if both are handles to the same object. No other object gets its address while this exists.
    pub(crate) fn is(&self, other: &WeakNode) -> bool {
        self.address() == other.address()
    }

    /// Returns `true` if nobody has the object any more.
    pub(crate) fn is_dropped(&self) -> bool {
        match self {
            WeakNode::Group(children) => children.strong_count() == 0,
            WeakNode::Collection(collection) => collection.strong_count() == 0,
        }
    }

    fn address(&self) -> *const () {
        match self {
            WeakNode::Group(children) => children.as_ptr().cast(),
            WeakNode::Collection(collection) => collection.as_ptr().cast(),
        }
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

/// An object whose children are added and removed over time, such as a `VarStore` or an optimizer's slots.
pub trait Collection: Send + Sync {
    /// Returns the current children, or an error that names a child that cannot be tracked.
    ///
    /// # Errors
    /// If a child cannot be tracked, with its name.
    fn children(&self) -> Result<Vec<Child>, BoxError>;

    /// Called when the checkpoint has a child `name` that this collection lacks. Returns a new, detached child to
    /// restore into, with a function that adds it to the collection, or `None`.
    ///
    /// ```
    /// use std::collections::BTreeMap;
    /// use std::sync::{Arc, Mutex};
    /// use tch_checkpoint::{BoxError, Checkpoint, Child, Collection, Counter, Created, Node, SavedTree, Trackable};
    ///
    /// /// How often each word was seen.
    /// #[derive(Clone, Default)]
    /// struct Words(Arc<Mutex<BTreeMap<String, Counter>>>);
    ///
    /// impl Collection for Words {
    ///     fn children(&self) -> Result<Vec<Child>, BoxError> {
    ///         let words = self.0.lock().map_err(|e| e.to_string())?;
    ///         Ok(words.iter().map(|(word, count)| Child::new(word, count.node())).collect())
    ///     }
    ///
    ///     fn create(&self, word: &str, _: &SavedTree) -> Result<Option<Created>, BoxError> {
    ///         let (words, word, count) = (self.0.clone(), word.to_string(), Counter::new(0));
    ///         Ok(Some(Created::new(count.node(), move || {
    ///             if let Ok(mut words) = words.lock() {
    ///                 words.insert(word, count);
    ///             }
    ///         })))
    ///     }
    ///
    ///     fn may_lack(&self, _: &str) -> bool {
    ///         true
    ///     }
    ///
    ///     fn remove(&self, names: &[String]) {
    ///         if let Ok(mut words) = self.0.lock() {
    ///             words.retain(|word, _| !names.contains(word));
    ///         }
    ///     }
    /// }
    ///
    /// # fn main() -> Result<(), Box<dyn std::error::Error>> {
    /// # let directory = tempfile::tempdir()?;
    /// let seen = Words::default();
    /// seen.0.lock().map_err(|e| e.to_string())?.insert("odd".to_string(), Counter::new(3));
    /// let path = Checkpoint::new().track("words", Node::collection(seen))?.write(directory.path().join("ckpt"))?;
    ///
    /// let fresh = Words::default();
    /// Checkpoint::new().track("words", Node::collection(fresh.clone()))?.restore(path)?.assert_consumed()?;
    /// assert_eq!(fresh.0.lock().map_err(|e| e.to_string())?["odd"].get(), 3);
    /// # Ok(())
    /// # }
    /// ```
    ///
    /// # Errors
    /// If the child cannot be created, with the reason.
    fn create(&self, name: &str, saved: &SavedTree) -> Result<Option<Created>, BoxError> {
        let _ = (name, saved);
        Ok(None)
    }

    /// Like [`create`](Collection::create), which it calls by default. `may_mismatch` is `true` if an exception
    /// ([`RestoreOptions::allow_mismatch`](crate::RestoreOptions::allow_mismatch)) applies to everything that the checkpoint
    /// has of the child: a child that is kept for an object that comes later may be discarded if it does not fit that object.
    ///
    /// # Errors
    /// If the child cannot be created, with the reason.
    fn create_or_discard(
        &self,
        name: &str,
        saved: &SavedTree,
        may_mismatch: bool,
    ) -> Result<Option<Created>, BoxError> {
        let _ = may_mismatch;
        self.create(name, saved)
    }

    /// Returns `true` if a checkpoint may lack the child `name`. The child is then [removed](Collection::remove),
    /// unless the checkpoint also lacks the object that this collection is a part of.
    fn may_lack(&self, name: &str) -> bool {
        let _ = name;
        false
    }

    /// Like [`may_lack`](Collection::may_lack), if the answer depends on what the checkpoint has of this object.
    /// Defaults to `may_lack`.
    fn may_lack_beside(&self, name: &str, saved: &SavedTree) -> bool {
        let _ = saved;
        self.may_lack(name)
    }

    /// Returns `true` if its children are tensors that are one state, such as an optimizer's slots of a variable. If an
    /// exception of the restore ([`RestoreOptions`](crate::RestoreOptions)) leaves one of them unchanged, the others are
    /// left unchanged, too. Defaults to `false`.
    fn is_one_state(&self) -> bool {
        false
    }

    /// Returns the tensors, here or elsewhere in the graph, that change only after [`Gate::pass`](crate::Gate::pass) on
    /// a gate of this object. A background save copies all other tensors before it returns.
    fn guarded(&self) -> Option<Guarded> {
        None
    }

    /// Returns a number that changes whenever [`children`](Collection::children) or [`guarded`](Collection::guarded)
    /// would return something else. `None` means unknown: both are then called at every save. The tensors below are
    /// queried separately ([`TensorLeaf::generation`](crate::TensorLeaf::generation)).
    fn generation(&self) -> Option<u64> {
        None
    }

    /// Returns `true` if [`generation`](Collection::generation) also changes when a collection below changes. Defaults
    /// to `false`: each collection below is queried at every save.
    fn generation_covers_collections(&self) -> bool {
        false
    }

    /// Returns the names of children that a restore created and that nothing uses yet, such as an optimizer's slots for
    /// a variable that the model lacks. Their values count as unused in the [`RestoreReport`](crate::RestoreReport)
    /// until something uses them.
    fn waiting(&self) -> Vec<String> {
        Vec::new()
    }

    /// Returns a function that keeps again what is [`waiting`](Collection::waiting) now. A rollback calls it: a snapshot has
    /// nothing of objects that do not exist yet.
    #[doc(hidden)]
    fn keep_waiting(&self) -> Option<Box<dyn FnOnce()>> {
        None
    }

    /// Returns why the state is between two steps, such as gradients that no step has used, so that a checkpoint could
    /// not be resumed exactly. `None`, the default, allows a save at any time.
    fn unfinished(&self) -> Option<Unfinished> {
        None
    }

    /// Removes the children `names`, which the checkpoint lacks and [may lack](Collection::may_lack). Called when the
    /// whole restore has succeeded: after all tensors and values are restored, and before [created](Collection::create)
    /// children are adopted.
    fn remove(&self, names: &[String]) {
        let _ = names;
    }
}

/// A new child of a collection, to be restored before it is added. Returned by [`Collection::create`].
#[must_use = "a restore fills it"]
pub struct Created {
    pub(crate) node: Node,
    /// As in [`Child`].
    pub(crate) name_in_file: Option<String>,
    pub(crate) adopt: Adopt,
}

/// Adds a created child to its collection.
pub(crate) type Adopt = Box<dyn FnOnce() + Send>;

impl Created {
    /// Creates a child whose part of the graph is `node`. `adopt` adds it to the collection: it is called when the
    /// whole restore has succeeded, and dropped otherwise.
    pub fn new(node: Node, adopt: impl FnOnce() + Send + 'static) -> Created {
        Created { node, name_in_file: None, adopt: Box::new(adopt) }
    }
}

impl fmt::Debug for Created {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Created").field("node", &self.node).finish_non_exhaustive()
    }
}

/// An update that has started and is not complete.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub struct Unfinished {
    /// What a checkpoint would lack, and what to do about it.
    pub reason: String,
    /// The number of completed updates.
    pub steps: u64,
}

impl Unfinished {
    /// Creates a description of an update after `steps` completed ones.
    pub fn new(reason: impl Into<String>, steps: u64) -> Unfinished {
        Unfinished { reason: reason.into(), steps }
    }
}

/// A child of a [`Collection`].
#[derive(Debug, Clone)]
#[non_exhaustive]
pub struct Child {
    /// Its name in the graph.
    pub name: String,
    /// Its part of the graph.
    pub node: Node,
    /// Its name in the safetensors file, where that differs from its path in the component: a `VarStore`'s own full
    /// name.
    pub name_in_file: Option<String>,
    /// Whether it is a parameter that is not trained at present. Such tensors are saved in a second file of their
    /// component if it has others as well.
    pub frozen: bool,
}

impl Child {
    /// Creates a child whose name in the file is its path in the component.
    pub fn new(name: impl Into<String>, node: Node) -> Child {
        Child { name: name.into(), node, name_in_file: None, frozen: false }
    }

    /// Sets its name in the safetensors file. Defaults to its path in the component.
    #[must_use]
    pub fn name_in_file(mut self, name: impl Into<String>) -> Child {
        self.name_in_file = Some(name.into());
        self
    }

    /// Sets whether it is a parameter that is not trained at present. Defaults to `false`.
    #[must_use]
    pub fn frozen(mut self, frozen: bool) -> Child {
        self.frozen = frozen;
        self
    }
}

/// What a checkpoint has below an object.
#[derive(Debug, Clone, Default, PartialEq)]
#[non_exhaustive]
pub struct SavedTree {
    /// Children, by name.
    pub children: BTreeMap<String, SavedTree>,
    /// The tensor saved here, if any.
    pub tensor: Option<TensorSpec>,
    /// Whether a value is saved here.
    pub has_value: bool,
    /// Whether the tensor is a variable that was trained when it was saved.
    pub was_trained: bool,
}

impl Node {
    /// Tells the tensors that are in it or in its groups that it was tracked.
    pub(crate) fn was_tracked(&self) {
        match &self.0 {
            Kind::Tensor(leaf) => leaf.was_tracked(),
            Kind::Group(children) => children.iter().for_each(|(_, child)| child.was_tracked()),
            Kind::Value(_) | Kind::Collection(_) => {}
        }
    }
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

/// A list: its elements are named `0`, `1`, and so on. The list is tracked with its current elements. After appending,
/// call [`Checkpoint::untrack`](crate::Checkpoint::untrack) and track it again.
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
