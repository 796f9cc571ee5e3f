//! The tensors of a plan, which a save queries together while the training waits.

use super::exclusive::Exclusive;
use super::group::{Seen, TensorGroup};
use super::leaf::TensorLeaf;
use std::sync::Arc;

/// A tensor to be queried, or the writer that answers for it.
pub(crate) type Asked = (Arc<dyn TensorLeaf>, Option<Arc<Exclusive>>);

/// Tensors that are queried together: those of one library in one call, the others one by one. If a writer has
/// exclusive access to tensors, only the writer is queried.
#[derive(Default)]
pub(crate) struct Survey {
    count: usize,
    group: Option<Box<dyn TensorGroup>>,
    /// The tensors that are not in the group, with their places.
    alone: Vec<(usize, Arc<dyn TensorLeaf>)>,
    /// The writers, with the places of their tensors.
    writers: Vec<(Arc<Exclusive>, Vec<usize>)>,
}

impl Survey {
    pub(crate) fn new(asked: Vec<Asked>) -> Survey {
        let mut survey = Survey { count: asked.len(), ..Survey::default() };
        let mut leaves = Vec::new();
        for (place, (leaf, exclusive)) in asked.into_iter().enumerate() {
            match exclusive {
                None => leaves.push((place, leaf)),
                Some(exclusive) => match survey.writers.iter_mut().find(|(known, _)| Arc::ptr_eq(known, &exclusive)) {
                    Some((_, places)) => places.push(place),
                    None => survey.writers.push((exclusive, vec![place])),
                },
            }
        }
        // Objects that were created one after another are neighbours in memory, so this order is faster.
        leaves.sort_by_cached_key(|(_, leaf)| leaf.variable());
        leaves.retain(|(place, leaf)| !leaf.join(*place, &mut survey.group));
        leaves.sort_unstable_by_key(|(place, _)| *place);
        survey.alone = leaves;
        survey
    }

    /// Writes what the tensors outside of the group report to their places in `seen`, which is resized for all tensors.
    pub(crate) fn look_alone(&self, seen: &mut Vec<Seen>) {
        // Filled in order, so that it is in the processor's cache when the group writes to it in another order.
        seen.clear();
        seen.resize(self.count, Seen::default());
        self.alone.iter().for_each(|(place, leaf)| seen[*place] = see(&**leaf));
    }

    /// Adds what the tensors of the group and the writers report, and holds those tensors that `held` names; see
    /// [`TensorGroup::look`].
    pub(crate) fn look_together(&self, held: &[bool], seen: &mut [Seen]) {
        for (writer, places) in &self.writers {
            let now = writer.look();
            places.iter().for_each(|&place| seen[place] = now);
        }
        if let Some(group) = &self.group {
            group.look(held, seen);
        }
    }

    /// Returns the writers, each with the places of its tensors.
    pub(crate) fn writers(&self) -> &[(Arc<Exclusive>, Vec<usize>)] {
        &self.writers
    }

    pub(crate) fn is_alone(&self, place: usize) -> bool {
        self.alone.binary_search_by_key(&place, |(place, _)| *place).is_ok()
    }
}

/// Queries one tensor.
fn see(leaf: &dyn TensorLeaf) -> Seen {
    Seen::new(leaf.generation(), leaf.version(), leaf.requires_grad()).with_lost(leaf.is_lost())
}
