//! Querying many tensors in one call.

use std::any::Any;

/// What a tensor reports about itself at one moment.
#[doc(hidden)]
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
#[repr(C)]
pub struct Seen {
    generation: u64,
    version: u64,
    /// Which of these are set, whether the tensor requires a gradient, and whether the object that had it is gone; the
    /// layout is that of `tcp_seen` in torch/look.cpp.
    says: u8,
}

const SAYS_GENERATION: u8 = 1;
const SAYS_VERSION: u8 = 2;
const SAYS_REQUIRES_GRAD: u8 = 4;
const REQUIRES_GRAD: u8 = 8;
const IS_LOST: u8 = 16;

impl Seen {
    pub(super) fn new(generation: Option<u64>, version: Option<u64>, requires_grad: Option<bool>) -> Seen {
        let says = [
            (generation.is_some(), SAYS_GENERATION),
            (version.is_some(), SAYS_VERSION),
            (requires_grad.is_some(), SAYS_REQUIRES_GRAD),
            (requires_grad == Some(true), REQUIRES_GRAD),
        ];
        let says = says.into_iter().filter(|(is_said, _)| *is_said).fold(0, |all, (_, said)| all | said);
        Seen { generation: generation.unwrap_or_default(), version: version.unwrap_or_default(), says }
    }

    /// Sets whether the tensor [is lost](crate::TensorLeaf::is_lost).
    pub(super) fn with_lost(self, is_lost: bool) -> Seen {
        Seen { says: self.says & !IS_LOST | if is_lost { IS_LOST } else { 0 }, ..self }
    }

    /// Like [`TensorLeaf::generation`](crate::TensorLeaf::generation).
    pub(crate) fn generation(&self) -> Option<u64> {
        (self.says & SAYS_GENERATION != 0).then_some(self.generation)
    }

    /// Like [`TensorLeaf::version`](crate::TensorLeaf::version).
    pub(crate) fn version(&self) -> Option<u64> {
        (self.says & SAYS_VERSION != 0).then_some(self.version)
    }

    /// Like [`TensorLeaf::requires_grad`](crate::TensorLeaf::requires_grad).
    pub(crate) fn requires_grad(&self) -> Option<bool> {
        (self.says & SAYS_REQUIRES_GRAD != 0).then_some(self.says & REQUIRES_GRAD != 0)
    }

    /// Like [`TensorLeaf::is_lost`](crate::TensorLeaf::is_lost).
    pub(crate) fn is_lost(&self) -> bool {
        self.says & IS_LOST != 0
    }

    pub(crate) fn set_version(&mut self, version: Option<u64>) {
        self.version = version.unwrap_or_default();
        self.says = self.says & !SAYS_VERSION | if version.is_some() { SAYS_VERSION } else { 0 };
    }
}

/// Tensors of one library that are queried together: one call for thousands of tensors takes a fraction of the time of
/// one call per tensor.
#[doc(hidden)]
pub trait TensorGroup: Any + Send + Sync {
    /// Queries all tensors and writes what each reports to `seen`, at the place with which it
    /// [joined](crate::TensorLeaf::join). Holds the tensors at the places that `held` names (none if it is empty): from
    /// then on, writes through the library wait for the saves that read their memory, as far as the library supports
    /// that. Called on the thread that calls the save, by one thread at a time.
    fn look(&self, held: &[bool], seen: &mut [Seen]);
}
