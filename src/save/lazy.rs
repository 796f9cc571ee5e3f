//! The tensors that may be copied after the call of a save has returned, and what stays the same between saves of a
//! plan.

use super::chunk::{Source, Span};
use super::samples::{Sampled, Samples};
use crate::graph::{Exclusive, Seen, TensorPin, Touched};
use crate::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::ops::Range;

/// What the tensors of a plan have reported, in the order of `Plan::look`.
pub(crate) type AllSeen = Arc<Vec<Seen>>;

/// The tensors of a plan that may be copied after the call.
pub(crate) struct Lazy {
    /// By place in `Plan::tensors`.
    pub(super) is_lazy: Vec<bool>,
    /// Their places.
    pub(super) places: Vec<usize>,
    /// What the capture reads, as planned.
    pub(super) touched: Arc<Touched>,
    /// Pins that are held from save to save, by place in `Plan::tensors`.
    pub(super) kept: Vec<Option<Box<dyn TensorPin>>>,
    /// The places of those that are pinned at every save.
    pub(super) fresh: Vec<usize>,
    /// Those to which code other than their writer may have a handle.
    pub(super) sampled: Sampled,
    /// The writers with exclusive access to any of them, with the place of one.
    pub(super) writers: Vec<(std::sync::Arc<Exclusive>, usize)>,
    /// The places of those that the survey asks one by one.
    pub(super) alone: Vec<usize>,
    /// Whether there are any in a file, by place in `Plan::files`.
    pub(super) in_file: Vec<bool>,
    /// What is copied after the call, in parts for threads.
    pub(super) jobs: Vec<Job>,
    /// Per span, the chunks with a part that is copied during the call.
    pub(super) at_call: Vec<Vec<usize>>,
    /// Reused memory for the records of a capture: the first access to new memory takes longer than filling it.
    pub(super) spare: Mutex<(AllSeen, Samples)>,
}

/// Consecutive chunks of a span, copied by one thread.
pub(super) struct Job {
    pub(super) span: usize,
    pub(super) chunks: Range<usize>,
}

impl Lazy {
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

    /// Returns `true` if a source of the span is copied after the call.
    pub(super) fn is_behind(&self, span: &Span, source: Source) -> bool {
        match source {
            Source::Header => self.in_file[span.file],
            Source::Tensor(place) => self.is_lazy[place],
        }
    }

    /// Returns `true` if any part of a file, given by its place in `Plan::files`, is copied after the call.
    pub(crate) fn is_in(&self, file: usize) -> bool {
        self.in_file[file]
    }

    pub(super) fn kept(&self, place: usize) -> Option<&dyn TensorPin> {
        self.kept.get(place)?.as_deref()
    }
}
