//! Marks on tensors that a restore, a step of an optimizer, or a change of averages which stopped half-way may have left partly
//! overwritten.
//!
//! They are the process's, by tensor and not by name: whichever object, checkpoint or manager has such a tensor next does
//! not save it. A tensor that does not tell which one it is, and whose handle a collection may make anew, is known by its
//! name in the object that is tracked. If there are no marks, this costs one atomic read.

use super::captures::{Area, Touched};
use super::leaf::{Identity, TensorLeaf};
use super::node::{Node, WeakNode};
use super::walk::{LeafObject, walk};
use crate::error::Result;
use crate::name;
use std::collections::{BTreeSet, HashMap, HashSet};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

type Leaf = Arc<dyn TensorLeaf>;

/// The number of marks.
static COUNT: AtomicUsize = AtomicUsize::new(0);

/// The marked tensors. They are kept alive, so that no other tensor gets their address.
static MARKED: Mutex<Vec<Mark>> = Mutex::new(Vec::new());

/// A tensor to be marked, or whose mark is to be removed.
#[derive(Clone)]
pub(crate) struct Mark {
    leaf: Leaf,
    place: Option<Place>,
}

/// A tracked object, and the name of a tensor below it.
type Place = (WeakNode, String);

impl Mark {
    pub(crate) fn new(leaf: Leaf) -> Mark {
        Mark { leaf, place: None }
    }

    /// Like [`new`](Mark::new), for a tensor that was found at `key` in these objects.
    pub(crate) fn at(leaf: Leaf, key: &str, objects: &[(String, Node)]) -> Mark {
        let place = place(&leaf, key, objects);
        Mark { leaf, place }
    }

    /// Returns `true` if somebody may still save the tensor.
    fn may_be_met(&self) -> bool {
        let has_handle = Arc::strong_count(&self.leaf) > 1;
        match (&self.place, is_anonymous(&self.leaf)) {
            (Some((object, _)), _) => has_handle || !object.is_dropped(),
            (None, true) => has_handle,
            (None, false) => has_handle || !self.leaf.is_alone(),
        }
    }
}

/// Returns `true` if two handles to the tensor do not show that they are the same tensor.
fn is_anonymous(leaf: &Leaf) -> bool {
    leaf.variable().is_none() && leaf.identity().is_none()
}

/// Returns where an anonymous tensor is found again, given its key in these objects.
fn place(leaf: &Leaf, key: &str, objects: &[(String, Node)]) -> Option<Place> {
    if !is_anonymous(leaf) {
        return None;
    }
    let component = name::component(key);
    let (_, node) = objects.iter().find(|(name, _)| name::key([name]) == component)?;
    Some((node.downgrade()?, key.strip_prefix(component)?.to_string()))
}

/// The list of marks, which is counted when this is dropped.
struct Marks(MutexGuard<'static, Vec<Mark>>);

impl Marks {
    fn lock() -> Marks {
        let mut marks = MARKED.lock().unwrap_or_else(PoisonError::into_inner);
        // Nobody can save what nobody else has.
        marks.retain(Mark::may_be_met);
        Marks(marks)
    }

    /// Removes the marks of tensors that were overwritten completely.
    fn remove(&mut self, whole: Vec<Mark>) {
        let whole = Torn::of(whole);
        self.0.retain(|mark| !whole.covers(mark));
    }
}

impl Drop for Marks {
    fn drop(&mut self) {
        COUNT.store(self.0.len(), Ordering::Release);
    }
}

/// Marks tensors.
pub(crate) fn mark_torn(torn: impl Iterator<Item = Mark>) {
    let torn: Vec<Mark> = torn.collect();
    let mut marks = Marks::lock();
    marks.remove(torn.clone());
    let has_elements = |mark: &Mark| mark.leaf.spec().map_or(true, |spec| spec.bytes() != Some(0));
    marks.0.extend(torn.into_iter().filter(has_elements));
}

/// Removes the marks of tensors that were overwritten completely.
pub(crate) fn mark_whole(whole: impl Iterator<Item = Mark>) {
    if COUNT.load(Ordering::Acquire) > 0 {
        Marks::lock().remove(whole.collect());
    }
}

/// Returns the keys of the tensors of these objects that are marked.
pub(crate) fn torn_keys(objects: &[(String, Node)]) -> Result<BTreeSet<String>> {
    let Some(torn) = Torn::now() else { return Ok(BTreeSet::new()) };
    let leaves = walk(objects)?.leaves.into_iter();
    let is_torn = |key: &str, object: &LeafObject| match object {
        LeafObject::Tensor(leaf) => torn.has(leaf, key, objects),
        LeafObject::Value(_) => false,
    };
    Ok(leaves.filter(|leaf| is_torn(&leaf.key, &leaf.object)).map(|leaf| leaf.key).collect())
}

/// The marked tensors at one moment.
pub(crate) struct Torn {
    /// They are kept alive, so that their addresses stay theirs.
    _marks: Vec<Mark>,
    addresses: HashSet<*const ()>,
    /// The objects, by the names of tensors below them.
    places: HashMap<String, Vec<WeakNode>>,
    identities: HashSet<Identity>,
    touched: Touched,
    /// The memory of those whose elements fill it.
    filled: Touched,
}

impl Torn {
    /// Returns `None` if no tensor is marked.
    pub(crate) fn now() -> Option<Torn> {
        if COUNT.load(Ordering::Acquire) == 0 {
            return None;
        }
        let marks = Marks::lock().0.clone();
        (!marks.is_empty()).then(|| Torn::of(marks))
    }

    fn of(marks: Vec<Mark>) -> Torn {
        let (mut touched, mut filled, mut identities) = (Touched::default(), Touched::default(), HashSet::new());
        let mut places: HashMap<String, Vec<WeakNode>> = HashMap::new();
        for Mark { leaf, place } in &marks {
            if let Some((object, name)) = place {
                places.entry(name.clone()).or_default().push(object.clone());
            }
            touched.add_variable(leaf.variable());
            let Some(identity) = leaf.identity() else { continue };
            Area::of_known(&identity).into_iter().for_each(|area| touched.add_area(area));
            Area::filled_by(&identity).into_iter().for_each(|area| filled.add_area(area));
            identities.insert(identity);
        }
        touched.order();
        filled.order();
        let addresses = marks.iter().map(|mark| address(&mark.leaf)).collect();
        Torn { addresses, _marks: marks, places, identities, touched, filled }
    }

    /// Returns `true` if the tensor, which was found at `key` in `objects`, has a part of the memory of one of these.
    pub(crate) fn has(&self, leaf: &Leaf, key: &str, objects: &[(String, Node)]) -> bool {
        self.has_object(leaf)
            || (!self.places.is_empty() && place(leaf, key, objects).is_some_and(|place| self.has_place(&place)))
            || leaf.identity().is_some_and(|identity| {
                self.identities.contains(&identity)
                    || Area::of_known(&identity).is_some_and(|area| self.touched.overlaps(&area))
            })
    }

    /// Returns `true` if all of the tensor's elements are known to be elements of these.
    fn covers(&self, Mark { leaf, place }: &Mark) -> bool {
        match leaf.identity() {
            Some(identity) => {
                self.identities.contains(&identity)
                    || Area::of_known(&identity).is_some_and(|area| self.filled.covers(&area))
            }
            None => self.has_object(leaf) || place.as_ref().is_some_and(|place| self.has_place(place)),
        }
    }

    fn has_place(&self, (object, name): &Place) -> bool {
        self.places.get(name).is_some_and(|objects| objects.iter().any(|one| one.is(object)))
    }

    fn has_object(&self, leaf: &Leaf) -> bool {
        match leaf.variable() {
            Some(variable) => self.touched.has_variable(variable),
            None => self.addresses.contains(&address(leaf)),
        }
    }
}

/// Returns what tells tensors apart that have neither a variable nor an identity.
fn address(leaf: &Leaf) -> *const () {
    Arc::as_ptr(leaf).cast()
}
