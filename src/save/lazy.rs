//! What may be copied behind the call of a save, and what of it stays the same from one save of a plan to the next.

use super::chunk::{Source, Span};
use super::samples::{Sampled, Samples};
use crate::graph::{Seen, TensorPin, Touched};
use crate::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::ops::Range;

/// What the tensors of a plan have said of themselves, in the order of `Plan::look`.
pub(crate) type AllSeen = Arc<Vec<Seen>>;

/// The tensors of a plan that may be copied behind the call.
pub(crate) struct Lazy {
    /// By place in `Plan::tensors`.
    pub(super) is_lazy: Vec<bool>,
    /// Their places.
    pub(super) places: Vec<usize>,
    /// What the capture reads, as planned.
    pub(super) touched: Arc<Touched>,
    /// By place in `Plan::tensors`, the memory that is held from save to save.
    pub(super) kept: Vec<Option<Box<dyn TensorPin>>>,
    /// The places of those whose memory is taken hold of at every save.
    pub(super) fresh: Vec<usize>,
    pub(super) sampled: Sampled,
    /// The places of those that the survey of the plan asks alone.
    pub(super) alone: Vec<usize>,
    /// Whether there are any in a file, by place in `Plan::files`.
    pub(super) in_file: Vec<bool>,
    /// What is to be copied behind the call, in parts for the threads that come by.
    pub(super) jobs: Vec<Job>,
    /// Of every span the chunks that have something which is copied at the call.
    pub(super) at_call: Vec<Vec<usize>>,
    /// Memory for what a capture notes, used again by the next one: to touch it for the first time takes longer than to
    /// fill it.
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

    /// Returns `true` if a source of the span is copied behind the call.
    pub(super) fn is_behind(&self, span: &Span, source: Source) -> bool {
        match source {
            Source::Header => self.in_file[span.file],
            Source::Tensor(place) => self.is_lazy[place],
        }
    }

    /// Returns `true` if anything of a file is copied behind the call, by its place in `Plan::files`.
    pub(crate) fn is_in(&self, file: usize) -> bool {
        self.in_file[file]
    }

    pub(super) fn kept(&self, place: usize) -> Option<&dyn TensorPin> {
        self.kept.get(place)?.as_deref()
    }
}
