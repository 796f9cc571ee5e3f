//! What the graph knows of a leaf: bytes out, bytes in, with type, shape and identity.

use super::group::TensorGroup;
use crate::dtype::TensorSpec;
use crate::error::BoxError;
use std::hash::{DefaultHasher, Hash, Hasher};

/// A tensor that can be saved and restored in place.
///
/// The `torch` feature implements it for libtorch's tensors; implement it for tensors of another library.
pub trait TensorLeaf: Send + Sync {
    /// Type and shape, as they are now; an error says why this tensor cannot be saved.
    fn spec(&self) -> Result<TensorSpec, BoxError>;

    /// Which memory it shows, if that can be shared with another leaf. Leaves of equal identity are saved once.
    fn identity(&self) -> Option<Identity> {
        None
    }

    /// The elements in row-major order, little-endian, without copying where the memory is laid out so.
    fn bytes(&self) -> Result<Box<dyn TensorBytes>, BoxError>;

    /// Copies the elements into `target`, which has the length that `spec` gives; an error when the tensor is not of
    /// this type and shape any more. For many small tensors an own implementation is faster than this one.
    fn copy_to(&self, spec: &TensorSpec, target: &mut [u8]) -> Result<(), BoxError> {
        target.copy_from_slice(bytes_as(self, spec)?.as_slice());
        Ok(())
    }

    /// Whether [`bytes`](TensorLeaf::bytes) shows the tensor's own memory, so that it costs nothing.
    fn is_plain_memory(&self) -> bool {
        false
    }

    /// A number that moves whenever the elements change in a way that the tensor knows of; `None` if it knows of none.
    fn version(&self) -> Option<u64> {
        None
    }

    /// Takes hold of the memory that the tensor has now, for a save in the background to read it later, from any thread,
    /// whatever becomes of the tensor. `spec` is what the tensor is expected to be. `None` where it can only be read
    /// through this leaf; that is then done behind the call too.
    fn pin(&self, spec: &TensorSpec) -> Result<Option<Box<dyn TensorPin>>, BoxError> {
        if !self.is_plain_memory() {
            return Ok(None);
        }
        Ok(Some(Box::new(PinnedBytes(bytes_as(self, spec)?))))
    }

    /// A number that moves whenever [`spec`](TensorLeaf::spec) or [`identity`](TensorLeaf::identity) would give
    /// something else: what a save is planned with is planned anew then. `None` if it cannot be told. For many tensors
    /// an own implementation is faster than this one.
    fn generation(&self) -> Option<u64> {
        let mut hasher = DefaultHasher::new();
        self.spec().ok()?.hash(&mut hasher);
        self.identity().hash(&mut hasher);
        Some(hasher.finish())
    }

    /// Which tensor object it is, whatever memory that has at the moment: equal for handles to one object.
    fn variable(&self) -> Option<usize> {
        None
    }

    /// The leaf itself, for who knows its type.
    #[doc(hidden)]
    fn as_any(&self) -> Option<&dyn std::any::Any> {
        None
    }

    /// Joins `group`, or begins it where there is none yet, to be asked together with others, of which `place` tells it;
    /// `false`, the default, for a tensor that is asked alone.
    #[doc(hidden)]
    fn join(&self, place: usize, group: &mut Option<Box<dyn TensorGroup>>) -> bool {
        let _ = (place, group);
        false
    }

    /// Opens the tensor for overwriting in place.
    fn target(&self) -> Result<Box<dyn TensorTarget>, BoxError>;

    /// Whether a checkpoint may lack it without that being an error (the random state of a second GPU, say).
    fn is_optional(&self) -> bool {
        false
    }

    /// Whether it is a variable that requires a gradient; `None` where that has no meaning. Saved with the tensor, and
    /// compared with the saved flag by a restore. Defaults to `None`.
    fn requires_grad(&self) -> Option<bool> {
        None
    }

    /// Sets what [`requires_grad`](TensorLeaf::requires_grad) returns; called only where that is `Some`.
    fn set_requires_grad(&self, requires_grad: bool) -> Result<(), BoxError> {
        let _ = requires_grad;
        Ok(())
    }
}

/// The tensor's bytes, if it still has this type and shape.
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

/// The memory that a tensor had when it was [pinned](TensorLeaf::pin), kept for as long as this lives.
pub trait TensorPin: Send + Sync {
    /// The elements in row-major order, little-endian, as that memory has them now.
    fn bytes(&self) -> Result<Box<dyn TensorBytes + '_>, BoxError>;

    /// The memory itself, where it is laid out as [`bytes`](TensorPin::bytes).
    fn memory(&self) -> Option<&[u8]>;

    /// Copies an element, by its place in row-major order, into `target`, which has its size; says whether that costs
    /// next to nothing, and was done.
    fn sample(&self, element: u64, target: &mut [u8]) -> bool {
        let begin = usize::try_from(element).ok().and_then(|element| element.checked_mul(target.len()));
        let bytes = begin.and_then(|begin| self.memory()?.get(begin..begin + target.len()));
        bytes.map(|bytes| target.copy_from_slice(bytes)).is_some()
    }

    /// As [`TensorLeaf::version`], of the tensor that was pinned, as it is now. Asked from any thread.
    fn version(&self) -> Option<u64> {
        None
    }

    /// The address of the first element, where that may be another than the tensor had before it was pinned.
    #[doc(hidden)]
    fn address(&self) -> Option<usize> {
        None
    }
}

/// The bytes of a tensor that is plain memory.
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

/// A tensor's bytes; holds the memory for as long as it lives.
pub trait TensorBytes: Send + Sync {
    /// All elements, row-major, little-endian.
    fn as_slice(&self) -> &[u8];
}

impl TensorBytes for Vec<u8> {
    fn as_slice(&self) -> &[u8] {
        self
    }
}

/// A tensor open for overwriting.
pub trait TensorTarget: Send {
    /// Room for all elements, row-major, little-endian. Where the tensor's memory is laid out so, this is that memory.
    fn as_mut_slice(&mut self) -> &mut [u8];

    /// Puts what was written into the tensor, where `as_mut_slice` was not its own memory.
    fn finish(self: Box<Self>) -> Result<(), BoxError>;
}

/// What tells one piece of tensor memory from another: equal identities show the same elements in the same order.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct Identity {
    /// The device, such as `cpu` or `cuda:0`.
    pub device: String,
    /// The address of the first element.
    pub address: usize,
    /// Type and shape.
    pub spec: TensorSpec,
    /// The step from one element to the next in every dimension, in elements.
    pub strides: Vec<i64>,
}

/// Puts a checked value into its object.
pub type ValueApply = Box<dyn FnOnce() + Send>;

/// A small value (a counter, a configuration, a learning rate) that is saved in the manifest itself.
pub trait ValueLeaf: Send + Sync {
    /// The value as JSON.
    fn save(&self) -> Result<serde_json::Value, BoxError>;

    /// Checks that `saved` can be restored, and returns what restores it. Nothing changes before that is called.
    fn load(&self, saved: &serde_json::Value) -> Result<ValueApply, BoxError>;

    /// Returns what restores the parts of `saved` that fit, when [`load`](ValueLeaf::load) has refused it and
    /// [`RestoreOptions::allow_mismatch`](crate::RestoreOptions::allow_mismatch) allows that. `None`, the default, keeps
    /// the whole value.
    fn load_partly(&self, saved: &serde_json::Value) -> Option<ValueApply> {
        let _ = saved;
        None
    }
}
