//! Decides which tensors of a plan are copied after the call of a save has returned, and in which parts.

use super::chunk::{Chunk, Source, Span};
use super::lazy::{Job, Lazy};
use super::plan::{Plan, PlannedTensor};
use super::samples::Sampled;
use crate::error::{Error, Result};
use crate::graph::{Area, TensorPin, Touched};
use crate::sync::{Arc, Mutex, PoisonError};

/// The memory of tensors of at most this many bytes stays pinned from one save to the next: it is the same while the
/// plan is current, and pinning thousands of tensors would take most of the time of the call.
const KEPT: u64 = 16 << 10;

impl Plan {
    /// Returns the tensors that may be copied after the call: those for which `is_lazy` returns `true`. It is called
    /// once per plan; if its answer changes, a new plan is needed.
    pub(crate) fn lazy(&self, is_lazy: impl Fn(&PlannedTensor) -> bool) -> Result<Arc<Lazy>> {
        let mut lazy = self.lazy.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(lazy) = &*lazy {
            return Ok(lazy.clone());
        }
        let new = Arc::new(Lazy::new(self, self.tensors.iter().map(is_lazy).collect())?);
        Ok(lazy.insert(new).clone())
    }
}

impl Lazy {
    /// `is_lazy` has, by place in `Plan::tensors`, whether a tensor may be copied after the call. The plan is current.
    fn new(plan: &Plan, is_lazy: Vec<bool>) -> Result<Lazy> {
        let places: Vec<usize> = (0..is_lazy.len()).filter(|&place| is_lazy[place]).collect();
        let mut touched = Touched::default();
        let mut kept: Vec<Option<Box<dyn TensorPin>>> = Vec::new();
        kept.resize_with(plan.tensors.len(), || None);
        let mut fresh = Vec::new();
        for &place in &places {
            let tensor = &plan.tensors[place];
            touched.add_variable(tensor.leaf.variable());
            if tensor.spec.bytes().is_some_and(|bytes| bytes <= KEPT) {
                kept[place] = pin(tensor)?.filter(|pin| pin.memory().is_some());
            }
            if kept[place].is_none() {
                fresh.push(place);
            }
            tensor.area_of(kept[place].as_deref()).into_iter().for_each(|area| touched.add_area(area));
        }
        touched.order();
        let alone = places.iter().copied().filter(|&place| plan.survey().is_alone(place)).collect();
        let mut in_file = vec![false; plan.files.len()];
        for (file, planned) in plan.files.iter().enumerate() {
            in_file[file] = planned.tensors.iter().any(|&place| is_lazy[place]);
        }
        let sampled =
            |&place: &usize| (place, &plan.tensors[place].spec, plan.tensors[place].address, kept[place].is_some());
        let open = places.iter().filter(|&&place| plan.tensors[place].exclusive.is_none());
        let sampled = Sampled::new(open.map(sampled), plan.tensors.len());
        let writers = plan.survey().writers().iter();
        let first = |(writer, of_writer): &(_, Vec<usize>)| {
            let place = of_writer.iter().copied().find(|&place| is_lazy.get(place) == Some(&true))?;
            Some((Arc::clone(writer), place))
        };
        let writers = writers.filter_map(first).collect();
        let touched = Arc::new(touched);
        let mut lazy = Lazy {
            is_lazy,
            places,
            touched,
            kept,
            fresh,
            sampled,
            writers,
            alone,
            in_file,
            jobs: Vec::new(),
            at_call: Vec::new(),
            spare: Mutex::default(),
        };
        for (place, span) in plan.spans.iter().enumerate() {
            let at_call = |chunk: &Chunk| chunk.parts.iter().any(|part| !lazy.is_behind(span, part.source));
            let chunks = span.chunks.iter().enumerate().filter(|(_, chunk)| at_call(chunk));
            lazy.at_call.push(chunks.map(|(i, _)| i).collect());
            lazy.add_jobs(plan, place, span);
        }
        Ok(lazy)
    }

    fn add_jobs(&mut self, plan: &Plan, place: usize, span: &Span) {
        // Copying a tensor with another layout than in the file copies the whole tensor, so its chunks stay together.
        let stays_together = |source: Option<Source>| matches!(source, Some(Source::Tensor(place)) if self.is_lazy[place] && !plan.tensors[place].leaf.is_plain_memory());
        let mut begin = 0;
        for (i, chunk) in span.chunks.iter().enumerate() {
            let last = chunk.parts.last().map(|part| part.source);
            let goes_on = span.chunks.get(i + 1).is_some_and(|next| {
                last.is_some() && last == next.parts.first().map(|part| part.source) && stays_together(last)
            });
            if !goes_on {
                let mut parts = span.chunks[begin..=i].iter().flat_map(|chunk| &chunk.parts);
                if parts.any(|part| self.is_behind(span, part.source)) {
                    self.jobs.push(Job { span: place, chunks: begin..i + 1 });
                }
                begin = i + 1;
            }
        }
    }
}

impl PlannedTensor {
    /// Returns the memory of its elements where it is pinned now, which may differ from the plan.
    pub(super) fn area_of(&self, pin: Option<&dyn TensorPin>) -> Option<Area> {
        let address = pin.and_then(|pin| pin.address());
        self.area.map(|area| address.map_or(area, |address| area.moved_to(address)))
    }
}

/// Pins a tensor's memory.
pub(super) fn pin(tensor: &PlannedTensor) -> Result<Option<Box<dyn TensorPin>>> {
    tensor.leaf.pin(&tensor.spec).map_err(|reason| Error::object(&tensor.key, reason))
}
