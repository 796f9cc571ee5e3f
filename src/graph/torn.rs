//! Marks on tensors that a restore or a step of an optimizer which stopped half-way may have left partly overwritten.
//!
//! They are the process's, by tensor and not by name: whichever object, checkpoint or manager has such a tensor next does
//! not save it. If there are none, this costs one atomic read.

use super::captures::{Area, Touched};
use super::leaf::{Identity, TensorLeaf};
use super::node::Node;
use super::walk::{LeafObject, walk};
use crate::error::Result;
use std::collections::{BTreeSet, HashSet};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

type Leaf = Arc<dyn TensorLeaf>;

/// The number of marks.
static COUNT: AtomicUsize = AtomicUsize::new(0);

/// The marked tensors. They are kept alive, so that no other tensor gets their address.
static MARKED: Mutex<Vec<Leaf>> = Mutex::new(Vec::new());

/// The list of marks, which is counted when this is dropped.
struct Marks(MutexGuard<'static, Vec<Leaf>>);

impl Marks {
    fn lock() -> Marks {
        let mut marks = MARKED.lock().unwrap_or_else(PoisonError::into_inner);
        // Nobody can save what nobody else has.
        marks.retain(|leaf| Arc::strong_count(leaf) > 1 || !leaf.is_alone());
        Marks(marks)
    }

    /// Removes the marks of tensors that were overwritten completely.
    fn remove(&mut self, whole: &[Leaf]) {
        let whole = Torn::of(whole.to_vec());
        self.0.retain(|leaf| !whole.covers(leaf));
    }
}

impl Drop for Marks {
    fn drop(&mut self) {
        COUNT.store(self.0.len(), Ordering::Release);
    }
}

/// Marks tensors.
pub(crate) fn mark_torn(leaves: &[Leaf]) {
    let mut marks = Marks::lock();
    marks.remove(leaves);
    let has_elements = |leaf: &&Leaf| leaf.spec().map_or(true, |spec| spec.bytes() != Some(0));
    marks.0.extend(leaves.iter().filter(has_elements).cloned());
}

/// Removes the marks of tensors that were overwritten completely.
pub(crate) fn mark_whole<'a>(leaves: impl Iterator<Item = &'a Leaf>) {
    if COUNT.load(Ordering::Acquire) > 0 {
        Marks::lock().remove(&leaves.cloned().collect::<Vec<_>>());
    }
}

/// Returns the keys of the tensors of these objects that are marked.
pub(crate) fn torn_keys(objects: &[(String, Node)]) -> Result<BTreeSet<String>> {
    let Some(torn) = Torn::now() else { return Ok(BTreeSet::new()) };
    let leaves = walk(objects)?.leaves.into_iter();
    let is_torn = |object: &LeafObject| match object {
        LeafObject::Tensor(leaf) => torn.has(leaf),
        LeafObject::Value(_) => false,
    };
    Ok(leaves.filter(|leaf| is_torn(&leaf.object)).map(|leaf| leaf.key).collect())
}

/// The marked tensors at one moment.
pub(crate) struct Torn {
    /// They are kept alive, so that their addresses stay theirs.
    _leaves: Vec<Leaf>,
    addresses: HashSet<*const ()>,
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
        let leaves = Marks::lock().0.clone();
        (!leaves.is_empty()).then(|| Torn::of(leaves))
    }

    fn of(leaves: Vec<Leaf>) -> Torn {
        let (mut touched, mut filled, mut identities) = (Touched::default(), Touched::default(), HashSet::new());
        for leaf in &leaves {
            touched.add_variable(leaf.variable());
            let Some(identity) = leaf.identity() else { continue };
            Area::of_known(&identity).into_iter().for_each(|area| touched.add_area(area));
            Area::filled_by(&identity).into_iter().for_each(|area| filled.add_area(area));
            identities.insert(identity);
        }
        touched.order();
        filled.order();
        Torn { addresses: leaves.iter().map(address).collect(), _leaves: leaves, identities, touched, filled }
    }

    /// Returns `true` if the tensor has a part of the memory of one of these.
    pub(crate) fn has(&self, leaf: &Leaf) -> bool {
        self.has_object(leaf)
            || leaf.identity().is_some_and(|identity| {
                self.identities.contains(&identity)
                    || Area::of_known(&identity).is_some_and(|area| self.touched.overlaps(&area))
            })
    }

    /// Returns `true` if all of the tensor's elements are known to be elements of these.
    fn covers(&self, leaf: &Leaf) -> bool {
        match leaf.identity() {
            Some(identity) => {
                self.identities.contains(&identity)
                    || Area::of_known(&identity).is_some_and(|area| self.filled.covers(&area))
            }
            None => self.has_object(leaf),
        }
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
