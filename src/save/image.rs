//! Capturing a state: the files' bytes, copied into memory that is allocated once and reused from save to save.
//!
//! What anyone may change is copied at the call. What changes only behind an optimizer's gate is copied while the
//! training goes on; whoever comes to the gate before that is done helps with the rest.

use super::buffer::PageBuffer;
use super::chunk::{Gatherer, Source};
use super::plan::Plan;
use crate::error::{Error, Result};
use crate::graph::Hold;
use crate::sync::{
    Arc, AtomicBool, AtomicUsize, Condvar, Mutex, MutexGuard, Ordering, PoisonError, RwLock, RwLockReadGuard,
};
use std::ops::Range;

/// The chunks of a plan's spans, in memory.
#[derive(Default)]
pub(crate) struct Image {
    spans: Vec<Vec<Mutex<PageBuffer>>>,
}

impl Image {
    /// Makes the image fit the files of a plan that are not `skipped`; chunks that fit already are kept, since fresh memory costs ten times a copy.
    fn fit(&mut self, plan: &Plan, skipped: impl Fn(usize) -> bool) -> Result<()> {
        self.spans.resize_with(plan.spans.len(), Vec::new);
        for (chunks, span) in self.spans.iter_mut().zip(&plan.spans) {
            if skipped(span.file) {
                chunks.clear();
                continue;
            }
            chunks.resize_with(span.chunks.len(), Mutex::default);
            for (buffer, chunk) in chunks.iter_mut().zip(&span.chunks) {
                let buffer = buffer.get_mut().unwrap_or_else(PoisonError::into_inner);
                if buffer.as_slice().len() != chunk.length {
                    *buffer = PageBuffer::new(chunk.length)?;
                }
            }
        }
        Ok(())
    }

    pub(super) fn chunk(&self, span: usize, chunk: usize) -> MutexGuard<'_, PageBuffer> {
        self.spans[span][chunk].lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// A state being captured, or captured.
pub(crate) struct Capture {
    pub plan: Arc<Plan>,
    image: RwLock<Image>,
    /// What may still be copied after the call, by place in `Plan::tensors`.
    lazy: Vec<bool>,
    jobs: Vec<Job>,
    next: AtomicUsize,
    left: Mutex<usize>,
    none_left: Condvar,
    cancelled: AtomicBool,
    failure: Mutex<Option<Error>>,
}

/// Consecutive chunks of a span, copied by one thread.
struct Job {
    span: usize,
    chunks: Range<usize>,
}

impl Capture {
    /// Begins: copies everything that is not `lazy`, but for the files that are `skipped`. The rest is copied by [`Hold::finish`], on whatever threads call it.
    pub(crate) fn begin(
        plan: Arc<Plan>,
        mut image: Image,
        lazy: Vec<bool>,
        skipped: impl Fn(usize) -> bool,
    ) -> Result<Capture> {
        image.fit(&plan, &skipped)?;
        let is_lazy = |source: Source| matches!(source, Source::Tensor(place) if lazy[place]);
        let mut jobs = Vec::new();
        for (place, span) in plan.spans.iter().enumerate().filter(|(_, span)| !skipped(span.file)) {
            let mut gatherer = Gatherer::new(&plan);
            let mut begin = 0;
            for (i, chunk) in span.chunks.iter().enumerate() {
                if chunk.parts.iter().any(|part| !is_lazy(part.source)) {
                    let mut buffer = image.chunk(place, i);
                    gatherer.gather(span, chunk, buffer.as_mut_slice(), |source| !is_lazy(source))?;
                }
                // Copying a tensor that is not laid out as in the file makes a copy of all of it: its chunks stay together.
                let goes_on = span.chunks.get(i + 1).is_some_and(|next| {
                    let last = chunk.parts.last().map(|part| part.source);
                    let same = last.is_some() && last == next.parts.first().map(|part| part.source);
                    same && matches!(last, Some(Source::Tensor(tensor)) if lazy[tensor] && !plan.tensors[tensor].leaf.is_plain_memory())
                });
                if !goes_on {
                    if span.chunks[begin..=i].iter().flat_map(|chunk| &chunk.parts).any(|part| is_lazy(part.source)) {
                        jobs.push(Job { span: place, chunks: begin..i + 1 });
                    }
                    begin = i + 1;
                }
            }
        }
        let left = Mutex::new(jobs.len());
        Ok(Capture {
            plan,
            image: RwLock::new(image),
            lazy,
            jobs,
            next: AtomicUsize::new(0),
            left,
            none_left: Condvar::new(),
            cancelled: AtomicBool::new(false),
            failure: Mutex::new(None),
        })
    }

    /// The captured bytes.
    pub(crate) fn image(&self) -> RwLockReadGuard<'_, Image> {
        self.image.read().unwrap_or_else(PoisonError::into_inner)
    }

    /// Takes the memory back.
    pub(crate) fn take_image(&self) -> Image {
        std::mem::take(&mut *self.image.write().unwrap_or_else(PoisonError::into_inner))
    }

    /// Why the capture is not whole, if it is not.
    pub(crate) fn failure(&self) -> Option<Error> {
        self.failure.lock().unwrap_or_else(PoisonError::into_inner).take()
    }

    fn run(&self, job: &Job) -> Result<()> {
        let span = &self.plan.spans[job.span];
        let mut gatherer = Gatherer::new(&self.plan);
        let image = self.image();
        for i in job.chunks.clone() {
            let mut buffer = image.chunk(job.span, i);
            let lazy = |source: Source| matches!(source, Source::Tensor(place) if self.lazy[place]);
            gatherer.gather(span, &span.chunks[i], buffer.as_mut_slice(), lazy)?;
        }
        Ok(())
    }
}

impl Hold for Capture {
    fn finish(&self) {
        while let Some(job) = self.jobs.get(self.next.fetch_add(1, Ordering::Relaxed)) {
            // Counted even when it panics: nobody may wait at the gate for ever.
            let _done = Done(self);
            if self.cancelled.load(Ordering::Relaxed) {
                continue;
            }
            if let Err(error) = self.run(job) {
                self.cancelled.store(true, Ordering::Relaxed);
                self.failure.lock().unwrap_or_else(PoisonError::into_inner).get_or_insert(error);
            }
        }
        let left = self.left.lock().unwrap_or_else(PoisonError::into_inner);
        drop(self.none_left.wait_while(left, |left| *left > 0));
    }
}

struct Done<'a>(&'a Capture);

impl Drop for Done<'_> {
    fn drop(&mut self) {
        if std::thread::panicking() {
            let panicked = Error::object("save", "copying the state panicked");
            self.0.failure.lock().unwrap_or_else(PoisonError::into_inner).get_or_insert(panicked);
        }
        let mut left = self.0.left.lock().unwrap_or_else(PoisonError::into_inner);
        *left -= 1;
        if *left == 0 {
            self.0.none_left.notify_all();
        }
    }
}
