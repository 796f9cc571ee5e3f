//! The tensors of a plan, which a save asks together while the training waits.

use super::group::{Seen, TensorGroup};
use super::leaf::TensorLeaf;
use std::sync::Arc;

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
        self.alone.iter().for_each(|(place, leaf)| seen[*place] = see(&**leaf));
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

/// Asks one tensor.
fn see(leaf: &dyn TensorLeaf) -> Seen {
    Seen::new(leaf.generation(), leaf.version(), leaf.requires_grad())
}
