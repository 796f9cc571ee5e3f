//! The barrier between code that changes tensors and a background save that still copies them.

use crate::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::collections::HashSet;
use std::fmt;
use std::sync::atomic::AtomicU64;

/// A barrier between a writer of tensors and background saves. A writer calls [`pass`](Gate::pass) before each change
/// to the tensors in [`Guarded::addresses`], which a background save copies after its call has returned. `pass` waits
/// for the saves that are still copying, and helps to copy what is left.
///
/// The optimizers of this crate need no gate: they wait on their own.
///
/// ```
/// use tch_checkpoint::Gate;
/// let gate = Gate::new();
/// gate.pass();       // nothing is being copied: costs one atomic read
/// ```
#[derive(Clone, Default)]
pub struct Gate(Arc<Mutex<()>>);

impl Gate {
    /// Creates an open gate.
    #[must_use]
    pub fn new() -> Gate {
        Gate::default()
    }

    /// Locks all of these gates. Every thread locks them in the same order.
    pub(super) fn lock_all(gates: &[Gate]) -> Vec<MutexGuard<'_, ()>> {
        let mut gates: Vec<&Gate> = gates.iter().collect();
        gates.sort_by_key(|gate| gate.address());
        gates.dedup_by_key(|gate| gate.address());
        gates.into_iter().map(Gate::lock).collect()
    }

    pub(super) fn is(&self, other: &Gate) -> bool {
        Arc::ptr_eq(&self.0, &other.0)
    }

    fn address(&self) -> usize {
        Arc::as_ptr(&self.0) as usize
    }

    pub(super) fn lock(&self) -> MutexGuard<'_, ()> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl fmt::Debug for Gate {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Gate").finish_non_exhaustive()
    }
}

/// Tensors that are changed only after [`Gate::pass`].
#[derive(Debug, Clone, Default)]
#[non_exhaustive]
pub struct Guarded {
    /// The gate.
    pub gate: Gate,
    /// The addresses of the tensors' first elements, as in [`Identity`](crate::Identity).
    pub addresses: HashSet<usize>,
    /// If set, only these tensor objects, as in [`TensorLeaf::variable`](crate::TensorLeaf::variable): others that show
    /// the same memory are not known to have the same writers.
    pub(crate) objects: Option<HashSet<usize>>,
    /// The names of the values beside the collection, in the same object, that change together with these tensors, as
    /// all values below the collection do.
    pub(crate) values_beside: &'static [&'static str],
    /// Counts changes of these tensors, and of others that are saved with them, that no value below the collection shows.
    pub(crate) changes: Option<Arc<AtomicU64>>,
}

impl Guarded {
    /// Returns the tensors of these `addresses`, which are changed only after passing `gate`.
    pub fn new(gate: Gate, addresses: impl IntoIterator<Item = usize>) -> Guarded {
        Guarded { gate, addresses: addresses.into_iter().collect(), objects: None, values_beside: &[], changes: None }
    }

    /// Returns `true` if a tensor, by its address and object, is one of these.
    pub(crate) fn has(&self, address: usize, object: Option<usize>) -> bool {
        let is_object = |objects: &HashSet<usize>| object.is_some_and(|object| objects.contains(&object));
        self.addresses.contains(&address) && self.objects.as_ref().is_none_or(is_object)
    }
}
