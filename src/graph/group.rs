//! Many tensors, asked together: what a save asks of all of them while the training waits.

use super::leaf::TensorLeaf;
use std::any::Any;
use std::sync::Arc;

/// What a tensor says of itself at one moment.
#[doc(hidden)]
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
#[repr(C)]
pub struct Seen {
    generation: u64,
    version: u64,
    /// Which of these it says, and whether it requires a gradient; as `tcp_seen` in torch/shim.cpp.
    says: u8,
}

const SAYS_GENERATION: u8 = 1;
const SAYS_VERSION: u8 = 2;
const SAYS_REQUIRES_GRAD: u8 = 4;
const REQUIRES_GRAD: u8 = 8;

impl Seen {
    /// Asks one tensor.
    fn of(leaf: &dyn TensorLeaf) -> Seen {
        let (generation, version, requires_grad) = (leaf.generation(), leaf.version(), leaf.requires_grad());
        let says = [
            (generation.is_some(), SAYS_GENERATION),
            (version.is_some(), SAYS_VERSION),
            (requires_grad.is_some(), SAYS_REQUIRES_GRAD),
            (requires_grad == Some(true), REQUIRES_GRAD),
        ];
        let says = says.into_iter().filter(|(is_said, _)| *is_said).fold(0, |all, (_, said)| all | said);
        Seen { generation: generation.unwrap_or_default(), version: version.unwrap_or_default(), says }
    }

    /// As [`TensorLeaf::generation`].
    pub(crate) fn generation(&self) -> Option<u64> {
        (self.says & SAYS_GENERATION != 0).then_some(self.generation)
    }

    /// As [`TensorLeaf::version`].
    pub(crate) fn version(&self) -> Option<u64> {
        (self.says & SAYS_VERSION != 0).then_some(self.version)
    }

    /// As [`TensorLeaf::requires_grad`].
    pub(crate) fn requires_grad(&self) -> Option<bool> {
        (self.says & SAYS_REQUIRES_GRAD != 0).then_some(self.says & REQUIRES_GRAD != 0)
    }

    pub(crate) fn set_version(&mut self, version: Option<u64>) {
        self.version = version.unwrap_or_default();
        self.says = self.says & !SAYS_VERSION | if version.is_some() { SAYS_VERSION } else { 0 };
    }
}

/// Tensors of one library. One call for thousands of them takes a fraction of the time of one call for each.
#[doc(hidden)]
pub trait TensorGroup: Any + Send + Sync {
    /// Asks all of them; writes what each says to the place in `seen` that it [joined](TensorLeaf::join) with. Holds those
    /// that `held` names by the same places, none where it is empty: from now on whoever writes to one of them by means of
    /// its library waits before that for the saves that read its memory, as far as the library can. Called on the thread
    /// that calls the save, by one thread at a time.
    fn look(&self, held: &[bool], seen: &mut [Seen]);
}

/// Tensors that are asked together: those of one library in one call, the others one by one.
#[derive(Default)]
pub(crate) struct Survey {
    count: usize,
    group: Option<Box<dyn TensorGroup>>,
    /// Those that are not in the group, with their places.
    alone: Vec<(usize, Arc<dyn TensorLeaf>)>,
}

impl Survey {
    pub(crate) fn new(leaves: Vec<Arc<dyn TensorLeaf>>) -> Survey {
        let mut survey = Survey { count: leaves.len(), ..Survey::default() };
        let mut leaves: Vec<_> = leaves.into_iter().enumerate().collect();
        // Objects that were made one after the other are neighbours in memory, and faster to look at in this order.
        leaves.sort_by_cached_key(|(_, leaf)| leaf.variable());
        leaves.retain(|(place, leaf)| !leaf.join(*place, &mut survey.group));
        leaves.sort_unstable_by_key(|(place, _)| *place);
        survey.alone = leaves;
        survey
    }

    /// Writes what those say that are asked one by one, at their places; `seen` gets the length for all.
    pub(crate) fn look_alone(&self, seen: &mut Vec<Seen>) {
        // Filled in order, so that the processor has it at hand when the others say what they do in another order.
        seen.clear();
        seen.resize(self.count, Seen::default());
        self.alone.iter().for_each(|(place, leaf)| seen[*place] = Seen::of(&**leaf));
    }

    /// Adds what the others say; holds those of them that `held` names, as [`TensorGroup::look`] does.
    pub(crate) fn look_together(&self, held: &[bool], seen: &mut [Seen]) {
        if let Some(group) = &self.group {
            group.look(held, seen);
        }
    }

    pub(crate) fn is_alone(&self, place: usize) -> bool {
        self.alone.binary_search_by_key(&place, |(place, _)| *place).is_ok()
    }
}
