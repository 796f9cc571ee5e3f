//! The leaves of the graph: tensors and values that are read as bytes and restored in place.

use super::exclusive::Exclusive;
use super::group::TensorGroup;
use crate::dtype::TensorSpec;
use crate::error::BoxError;
use std::hash::{DefaultHasher, Hash, Hasher};
use std::sync::Arc;

/// A tensor that can be saved and restored in place.
///
/// The feature `torch` implements this trait for the tensors of libtorch. Implement it for tensors of another library,
/// and return [`Node::tensor`](crate::Node::tensor) in [`Trackable::node`](crate::Trackable::node):
///
/// ```
/// use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
/// use tch_checkpoint::graph::{TensorBytes, TensorLeaf, TensorTarget};
/// use tch_checkpoint::{BoxError, Checkpoint, Dtype, Node, TensorSpec, Trackable};
///
/// /// A vector. Clones share it.
/// #[derive(Clone)]
/// struct Vector(Arc<Mutex<Vec<f32>>>);
///
/// impl Vector {
///     fn numbers(&self) -> MutexGuard<'_, Vec<f32>> {
///         self.0.lock().unwrap_or_else(PoisonError::into_inner)
///     }
/// }
///
/// impl Trackable for Vector {
///     fn node(&self) -> Node {
///         Node::tensor(self.clone())
///     }
/// }
///
/// impl TensorLeaf for Vector {
///     fn spec(&self) -> Result<TensorSpec, BoxError> {
///         Ok(TensorSpec::new(Dtype::F32, &[self.numbers().len() as u64]))
///     }
///
///     fn bytes(&self) -> Result<Box<dyn TensorBytes>, BoxError> {
///         let bytes: Vec<u8> = self.numbers().iter().flat_map(|number| number.to_le_bytes()).collect();
///         Ok(Box::new(bytes))
///     }
///
///     fn target(&self) -> Result<Box<dyn TensorTarget>, BoxError> {
///         let bytes = vec![0; 4 * self.numbers().len()];
///         Ok(Box::new(Target { vector: self.clone(), bytes }))
///     }
/// }
///
/// /// What a restore writes to.
/// struct Target {
///     vector: Vector,
///     bytes: Vec<u8>,
/// }
///
/// impl TensorTarget for Target {
///     fn as_mut_slice(&mut self) -> &mut [u8] {
///         &mut self.bytes
///     }
///
///     fn finish(self: Box<Self>) -> Result<(), BoxError> {
///         let (numbers, _) = self.bytes.as_chunks::<4>();
///         *self.vector.numbers() = numbers.iter().map(|bytes| f32::from_le_bytes(*bytes)).collect();
///         Ok(())
///     }
/// }
///
/// # fn main() -> tch_checkpoint::Result<()> {
/// # let temp = tempfile::tempdir().map_err(|e| tch_checkpoint::Error::io("create", "temp", e))?;
/// # let dir = temp.path();
/// let bias = Vector(Arc::new(Mutex::new(vec![1.0, 2.0])));
/// let mut checkpoint = Checkpoint::new().track("bias", &bias)?;
/// let path = checkpoint.write(dir.join("ckpt"))?;
/// *bias.numbers() = vec![0.0, 0.0];
/// checkpoint.restore(path)?.assert_consumed()?;
/// assert_eq!(*bias.numbers(), [1.0, 2.0]);
/// # Ok(())
/// # }
/// ```
pub trait TensorLeaf: Send + Sync {
    /// Returns the current type and shape, or an error if this tensor cannot be saved.
    ///
    /// # Errors
    /// If this tensor cannot be saved.
    fn spec(&self) -> Result<TensorSpec, BoxError>;

    /// Returns the identity of the tensor's memory, if it can be shared with another leaf. Leaves of equal identity are
    /// saved once. Defaults to `None`.
    fn identity(&self) -> Option<Identity> {
        None
    }

    /// Returns the elements in row-major order, little-endian. Does not copy if the memory has this layout.
    ///
    /// # Errors
    /// If the elements cannot be read.
    fn bytes(&self) -> Result<Box<dyn TensorBytes>, BoxError>;

    /// Copies the elements into `target`, whose length is that of `spec`. Returns an error if the tensor no longer has
    /// this type and shape. The default implementation calls [`bytes`](TensorLeaf::bytes); for many small tensors, a
    /// direct implementation is faster.
    ///
    /// # Errors
    /// If the elements cannot be read, or the tensor no longer has this type and shape.
    fn copy_to(&self, spec: &TensorSpec, target: &mut [u8]) -> Result<(), BoxError> {
        target.copy_from_slice(bytes_as(self, spec)?.as_slice());
        Ok(())
    }

    /// Copies a part of the elements, the bytes from `offset` on, into `target`, and returns `true`. `spec` is the
    /// expected type and shape. Implement it for a tensor that is not in memory, so that a save can write a large
    /// tensor piece by piece. Defaults to `false`: the save calls [`bytes`](TensorLeaf::bytes).
    ///
    /// # Errors
    /// If the elements cannot be read, or the tensor no longer has this type and shape.
    fn copy_range(&self, spec: &TensorSpec, offset: u64, target: &mut [u8]) -> Result<bool, BoxError> {
        let _ = (spec, offset, target);
        Ok(false)
    }

    /// Returns `true` if [`bytes`](TensorLeaf::bytes) borrows the tensor's storage without copying. Defaults to
    /// `false`.
    fn is_plain_memory(&self) -> bool {
        false
    }

    /// Returns a version counter that increases with every tracked in-place modification, or `None` if the tensor has
    /// none.
    fn version(&self) -> Option<u64> {
        None
    }

    /// Returns `true` if all changes between two [versions](TensorLeaf::version) were undone, so that the elements are the
    /// same, bit for bit. Defaults to `false`.
    #[doc(hidden)]
    fn is_undone(&self, then: u64, now: u64) -> bool {
        let _ = (then, now);
        false
    }

    /// Pins the tensor's current memory, so that a background save can read it later from any thread, whatever happens
    /// to the tensor. `spec` is the expected type and shape. Returns `None` if the tensor can only be read through this
    /// leaf, which the background save then does.
    ///
    /// # Errors
    /// If the tensor no longer has this type and shape.
    fn pin(&self, spec: &TensorSpec) -> Result<Option<Box<dyn TensorPin>>, BoxError> {
        if !self.is_plain_memory() {
            return Ok(None);
        }
        Ok(Some(Box::new(PinnedBytes(bytes_as(self, spec)?))))
    }

    /// Returns a number that changes whenever [`spec`](TensorLeaf::spec) or [`identity`](TensorLeaf::identity) would
    /// return something else, so that the save has to be planned again. `None` means unknown. The default
    /// implementation hashes both; a direct implementation is faster.
    fn generation(&self) -> Option<u64> {
        let mut hasher = DefaultHasher::new();
        self.spec().ok()?.hash(&mut hasher);
        self.identity().hash(&mut hasher);
        Some(hasher.finish())
    }

    /// Identifies the tensor object, whatever memory it has: handles to the same object return the same number.
    /// Defaults to `None`.
    ///
    /// A leaf that a [`Collection`](crate::Collection) makes anew for every list of its children should have this or an
    /// [`identity`](TensorLeaf::identity). Otherwise, what a failed restore has left in it is recognized, and not saved, only
    /// as long as the same [`Node`](crate::Node) is tracked.
    fn variable(&self) -> Option<usize> {
        None
    }

    /// Returns the leaf for a downcast.
    #[doc(hidden)]
    fn as_any(&self) -> Option<&dyn std::any::Any> {
        None
    }

    /// Joins `group`, or creates it, so that the tensor is queried together with others; `place` is its place among
    /// them. Returns `false`, the default, if the tensor must be queried alone.
    #[doc(hidden)]
    fn join(&self, place: usize, group: &mut Option<Box<dyn TensorGroup>>) -> bool {
        let _ = (place, group);
        false
    }

    /// Called when the object that has the tensor was tracked, and was dropped if it was given by value.
    #[doc(hidden)]
    fn was_tracked(&self) {}

    /// Returns `true` if the object that had the tensor when it was tracked has it no longer, so that what is saved of it is
    /// old, and what is restored into it is lost. Defaults to `false`.
    #[doc(hidden)]
    fn is_lost(&self) -> bool {
        false
    }

    /// Returns the access of the tensor's writer, if only the writer has a handle to it. The writer is then queried
    /// instead of the tensor. Defaults to `None`.
    #[doc(hidden)]
    fn exclusive(&self) -> Option<Arc<Exclusive>> {
        None
    }

    /// Returns `true` if nobody else has a handle to the tensor or to its memory, so that nobody can use it any more once
    /// this leaf is dropped. Defaults to `false`. A tensor that a failed restore has left partly overwritten is kept in
    /// memory, so that it is not saved under any name; one that is alone is not.
    fn is_alone(&self) -> bool {
        false
    }

    /// Returns `true` if some bytes are no value of the tensor, such as of the state of a random number generator.
    /// [`check`](TensorLeaf::check) then gets the saved bytes before a restore changes anything. Defaults to `false`.
    fn has_rules(&self) -> bool {
        false
    }

    /// Checks that `saved`, the saved elements, are a value of the tensor. Changes nothing. Called only if
    /// [`has_rules`](TensorLeaf::has_rules) returns `true`.
    ///
    /// # Errors
    /// If they are not, with the reason.
    fn check(&self, saved: &[u8]) -> Result<(), BoxError> {
        let _ = saved;
        Ok(())
    }

    /// Returns `true` if a restore can give the tensor this type and shape, which are not those that it has; the next
    /// [`target`](TensorLeaf::target) of this leaf then has that size. Defaults to `false`.
    #[doc(hidden)]
    fn adapt_to(&self, saved: &TensorSpec) -> bool {
        let _ = saved;
        false
    }

    /// Opens the tensor to be overwritten in place. A restore opens tensors whose [identities](TensorLeaf::identity) show
    /// that they have memory in common one after the other, and other tensors on several threads at the same time.
    ///
    /// # Errors
    /// If the tensor cannot be overwritten.
    fn target(&self) -> Result<Box<dyn TensorTarget>, BoxError>;

    /// Returns `true` if a checkpoint may lack it, such as the random state of a second GPU. Defaults to `false`.
    fn is_optional(&self) -> bool {
        false
    }

    /// Returns whether it is a variable that requires a gradient, or `None` if that has no meaning. The flag is saved
    /// with the tensor, and a restore compares it with the saved one. Defaults to `None`.
    fn requires_grad(&self) -> Option<bool> {
        None
    }

    /// Sets what [`requires_grad`](TensorLeaf::requires_grad) returns. Called only if that is `Some`.
    ///
    /// # Errors
    /// If the flag cannot be set.
    fn set_requires_grad(&self, requires_grad: bool) -> Result<(), BoxError> {
        let _ = requires_grad;
        Ok(())
    }
}

/// Returns the tensor's bytes if it still has this type and shape.
pub(crate) fn bytes_as<T: TensorLeaf + ?Sized>(leaf: &T, spec: &TensorSpec) -> Result<Box<dyn TensorBytes>, BoxError> {
    let now = leaf.spec()?;
    if now != *spec {
        return Err(format!("it was {spec} and became {now} while it was being saved").into());
    }
    let bytes = leaf.bytes()?;
    match spec.bytes() == Some(bytes.as_slice().len() as u64) {
        true => Ok(bytes),
        false => Err("its size changed while it was being saved".into()),
    }
}

/// The memory that a tensor had when it was [pinned](TensorLeaf::pin), kept alive by this value.
pub trait TensorPin: Send + Sync {
    /// Returns the current elements of that memory in row-major order, little-endian.
    ///
    /// # Errors
    /// If the elements cannot be read.
    fn bytes(&self) -> Result<Box<dyn TensorBytes + '_>, BoxError>;

    /// Returns the memory itself, if it has the layout of [`bytes`](TensorPin::bytes).
    fn memory(&self) -> Option<&[u8]>;

    /// Copies the element at a place in row-major order into `target`, which has the size of an element. Returns
    /// `false` if that would be expensive, and copies nothing.
    fn sample(&self, element: u64, target: &mut [u8]) -> bool {
        let begin = usize::try_from(element).ok().and_then(|element| element.checked_mul(target.len()));
        let bytes = begin.and_then(|begin| self.memory()?.get(begin..begin + target.len()));
        bytes.map(|bytes| target.copy_from_slice(bytes)).is_some()
    }

    /// Like [`TensorLeaf::version`], for the tensor that was pinned. Called from any thread.
    fn version(&self) -> Option<u64> {
        None
    }

    /// Returns the address of the first element, if it may differ from the address before the tensor was pinned.
    #[doc(hidden)]
    fn address(&self) -> Option<usize> {
        None
    }
}

/// The bytes of a tensor in plain memory.
struct PinnedBytes(Box<dyn TensorBytes>);

impl TensorPin for PinnedBytes {
    fn bytes(&self) -> Result<Box<dyn TensorBytes + '_>, BoxError> {
        Ok(Box::new(Borrowed(self.0.as_slice())))
    }

    fn memory(&self) -> Option<&[u8]> {
        Some(self.0.as_slice())
    }
}

struct Borrowed<'a>(&'a [u8]);

impl TensorBytes for Borrowed<'_> {
    fn as_slice(&self) -> &[u8] {
        self.0
    }
}

/// A tensor's bytes. Keeps the memory alive.
pub trait TensorBytes: Send + Sync {
    /// Returns all elements, row-major, little-endian.
    fn as_slice(&self) -> &[u8];
}

impl TensorBytes for Vec<u8> {
    fn as_slice(&self) -> &[u8] {
        self
    }
}

/// A tensor that is open to be overwritten.
pub trait TensorTarget: Send {
    /// Returns a buffer for all elements, row-major, little-endian: the tensor's own memory if it has this layout.
    fn as_mut_slice(&mut self) -> &mut [u8];

    /// Copies the buffer into the tensor, if `as_mut_slice` did not return the tensor's own memory.
    ///
    /// # Errors
    /// If the buffer cannot be copied.
    fn finish(self: Box<Self>) -> Result<(), BoxError>;
}

/// The identity of tensor memory: tensors of equal identity have the same elements in the same order.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub struct Identity {
    /// The device, such as `cpu` or `cuda:0`.
    pub device: String,
    /// The address of the first element.
    pub address: usize,
    /// Type and shape.
    pub spec: TensorSpec,
    /// The stride of each dimension, in elements. A restore writes tensors whose memory overlaps according to their addresses
    /// and strides one after the other, and only if the checkpoint has the same bytes for what they have in common. Empty
    /// if the address only tells tensors apart; such a tensor overlaps no other one.
    pub strides: Vec<i64>,
}

impl Identity {
    /// Returns the identity of memory on `device`, such as `cpu`, whose first element is at `address`. `strides` are those of
    /// each dimension, in elements, or none.
    pub fn new(device: impl Into<String>, address: usize, spec: TensorSpec, strides: Vec<i64>) -> Identity {
        Identity { device: device.into(), address, spec, strides }
    }
}

/// A function that writes a checked value into its object.
pub type ValueApply = Box<dyn FnOnce() + Send>;

/// A small value, such as a counter or a learning rate, that is saved in the manifest.
pub trait ValueLeaf: Send + Sync {
    /// Returns the value as JSON.
    ///
    /// # Errors
    /// If the value cannot be represented.
    fn save(&self) -> Result<serde_json::Value, BoxError>;

    /// Checks that `saved` can be restored and returns a function that restores it. Changes nothing by itself.
    ///
    /// # Errors
    /// If `saved` does not fit, with the reason.
    fn load(&self, saved: &serde_json::Value) -> Result<ValueApply, BoxError>;

    /// Returns a function that restores the matching parts of `saved`. Called if [`load`](ValueLeaf::load) has refused
    /// `saved` and [`RestoreOptions::allow_mismatch`](crate::RestoreOptions::allow_mismatch) allows it. `None`, the
    /// default, keeps the present value.
    fn load_partly(&self, saved: &serde_json::Value) -> Option<ValueApply> {
        let _ = saved;
        None
    }
}

/// Why a tensor is neither saved nor restored that [is lost](TensorLeaf::is_lost).
pub(crate) const LOST: &str = "nothing but the checkpoint has this tensor any more: the object that had it was dropped, or has got \
                               another tensor in its place, which would not be saved. Write new values into the tensor \
                               (`copy_`), or `untrack` and track the object again; a tensor that is meant to be nobody \
                               else's is given to `track` by value";
