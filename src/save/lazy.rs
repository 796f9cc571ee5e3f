//! What may be copied behind the call of a save, and what of it stays the same from one save of a plan to the next.

use super::chunk::{Chunk, Source, Span};
use super::plan::{AllSeen, Plan, PlannedTensor};
use super::samples::{Sampled, Samples};
use crate::error::{Error, Result};
use crate::graph::{Area, TensorPin, Touched};
use crate::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::ops::Range;

/// The memory of tensors of at most so many bytes is held from one save to the next: while the plan is current it is the
/// same, and taking hold of the memory of thousands of tensors is most of what the call would cost.
const KEPT: u64 = 16 << 10;

/// The tensors of a plan that may be copied behind the call.
pub(crate) struct Lazy {
    /// By place in `Plan::tensors`.
    is_lazy: Vec<bool>,
    /// Their places.
    pub(super) places: Vec<usize>,
    /// What the capture reads, as planned.
    pub(super) touched: Arc<Touched>,
    /// By place in `Plan::tensors`, the memory that is held from save to save.
    kept: Vec<Option<Box<dyn TensorPin>>>,
    /// The places of those whose memory is taken hold of at every save.
    pub(super) fresh: Vec<usize>,
    pub(super) sampled: Sampled,
    /// The places of those that the survey of the plan asks alone.
    pub(super) alone: Vec<usize>,
    /// Whether there are any in a file, by place in `Plan::files`.
    in_file: Vec<bool>,
    /// What is to be copied behind the call, in parts for the threads that come by.
    pub(super) jobs: Vec<Job>,
    /// Of every span the chunks that have something which is copied at the call.
    pub(super) at_call: Vec<Vec<usize>>,
    /// Memory for what a capture notes, used again by the next one: to touch it for the first time takes longer than to
    /// fill it.
    spare: Mutex<(AllSeen, Samples)>,
}

/// Consecutive chunks of a span, copied by one thread.
pub(super) struct Job {
    pub(super) span: usize,
    pub(super) chunks: Range<usize>,
}

impl Lazy {
    /// `is_lazy` tells by place in `Plan::tensors` what may be copied behind the call; the plan is current.
    pub(super) fn new(plan: &Plan, is_lazy: Vec<bool>) -> Result<Lazy> {
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
        let sampled = Sampled::new(plan, &places);
        let touched = Arc::new(touched);
        let mut lazy = Lazy {
            is_lazy,
            places,
            touched,
            kept,
            fresh,
            sampled,
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

    /// By place in `Plan::tensors`.
    pub(crate) fn is_lazy(&self) -> &[bool] {
        &self.is_lazy
    }

    pub(crate) fn spare_seen(&self) -> AllSeen {
        std::mem::take(&mut self.spare().0)
    }

    pub(super) fn keep_seen(&self, seen: &AllSeen) {
        self.spare().0 = seen.clone();
    }

    pub(super) fn spare_samples(&self) -> Samples {
        std::mem::take(&mut self.spare().1)
    }

    pub(super) fn keep_samples(&self, samples: Samples) {
        self.spare().1 = samples;
    }

    fn spare(&self) -> MutexGuard<'_, (AllSeen, Samples)> {
        self.spare.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Whether a source of the span is copied behind the call.
    pub(super) fn is_behind(&self, span: &Span, source: Source) -> bool {
        match source {
            Source::Header => self.in_file[span.file],
            Source::Tensor(place) => self.is_lazy[place],
        }
    }

    /// Whether anything of a file is copied behind the call, by its place in `Plan::files`.
    pub(crate) fn is_in(&self, file: usize) -> bool {
        self.in_file[file]
    }

    fn add_jobs(&mut self, plan: &Plan, place: usize, span: &Span) {
        // Copying a tensor that is not laid out as in the file makes a copy of all of it: its chunks stay together.
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

    pub(super) fn kept(&self, place: usize) -> Option<&dyn TensorPin> {
        self.kept.get(place)?.as_deref()
    }
}

impl PlannedTensor {
    /// The memory that its elements are in, where it is pinned now: that may be another than was planned.
    pub(super) fn area_of(&self, pin: Option<&dyn TensorPin>) -> Option<Area> {
        let address = pin.and_then(|pin| pin.address());
        self.area.map(|area| address.map_or(area, |address| area.moved_to(address)))
    }
}

/// Takes hold of a tensor's memory.
pub(super) fn pin(tensor: &PlannedTensor) -> Result<Option<Box<dyn TensorPin>>> {
    tensor.leaf.pin(&tensor.spec).map_err(|reason| Error::object(&tensor.key, reason))
}
