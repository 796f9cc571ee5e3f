//! Capturing a state: the files' bytes, copied into memory that is allocated once and reused from save to save.
//!
//! What anyone may change is copied at the call. What only writers change that wait for captures is copied while the
//! training goes on, from memory that was taken hold of at the call; whoever comes to write before that is done helps with
//! the rest. That nobody has written all the same is checked, by version counters and sampled elements.

use super::buffer::PageBuffer;
use super::chunk::{Gatherer, Part, Pins, Source};
use super::plan::{Plan, PlannedTensor};
use super::samples::Samples;
use crate::error::{Error, Result};
use crate::format::{Digest, Hasher};
use crate::graph::{Hold, TensorPin, Touched};
use crate::sync::{
    Arc, AtomicBool, AtomicUsize, Condvar, Mutex, MutexGuard, Ordering, PoisonError, RwLock, RwLockReadGuard,
};
use std::ops::Range;
use std::panic::{AssertUnwindSafe, catch_unwind};

/// The memory of tensors of at most so many bytes is held from one save to the next.
const KEPT: usize = 16 << 10;

/// The chunks of a plan's spans, in memory.
#[derive(Default)]
pub(crate) struct Image {
    spans: Vec<Vec<Mutex<PageBuffer>>>,
}

impl Image {
    /// Makes the image fit the files of a plan that are not `skipped`; chunks that fit already are kept, since fresh memory costs ten times a copy.
    pub(crate) fn fit(&mut self, plan: &Plan, skipped: impl Fn(usize) -> bool) -> Result<()> {
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

    /// Whether the image has these digests of a file's tensors, by place in the plan.
    pub(super) fn has(&self, plan: &Plan, file: usize, digests: &[(usize, Digest)]) -> bool {
        let mut digests = digests.iter();
        let mut current: Option<(usize, Digest, Hasher)> = None;
        let ended = |current: Option<(usize, Digest, Hasher)>| {
            current.is_none_or(|(_, known, hasher)| hasher.finish() == known)
        };
        for (span, planned) in plan.spans.iter().enumerate().filter(|(_, planned)| planned.file == file) {
            for (i, chunk) in planned.chunks.iter().enumerate() {
                let buffer = self.chunk(span, i);
                for part in &chunk.parts {
                    let Source::Tensor(place) = part.source else { continue };
                    if current.as_ref().is_none_or(|(current, ..)| *current != place) {
                        let next = digests.next().filter(|(tensor, _)| *tensor == place);
                        let next = next.map(|(_, known)| (place, *known, Hasher::new()));
                        if next.is_none() || !ended(std::mem::replace(&mut current, next)) {
                            return false;
                        }
                    }
                    if let Some((.., hasher)) = &mut current {
                        hasher.update(&buffer.as_slice()[part.at.clone()]);
                    }
                }
            }
        }
        ended(current)
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
    /// The memory that these had at the call.
    pins: Vec<Option<Arc<dyn TensorPin>>>,
    /// Their versions then, and some of their elements; nothing where changes are not looked for.
    versions: Vec<Option<u64>>,
    samples: Samples,
    jobs: Vec<Job>,
    next: AtomicUsize,
    left: Mutex<usize>,
    none_left: Condvar,
    cancelled: AtomicBool,
    failure: Mutex<Option<Failure>>,
}

/// What is done about writers that do not wait of their own accord.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Others {
    /// They are made to wait, where their library can do that.
    pub wait: bool,
    /// What they have changed is looked for.
    pub watched: bool,
}

/// Why a capture is not whole.
pub(crate) struct Failure {
    pub error: Error,
    /// The key of a tensor that was changed by a writer that does not wait.
    pub changed: Option<String>,
}

impl From<Error> for Failure {
    fn from(error: Error) -> Failure {
        Failure { error, changed: None }
    }
}

impl Failure {
    fn changed(key: &str) -> Failure {
        let component = key.split('/').next().unwrap_or_default();
        let pattern = if component == key { component.to_string() } else { format!("{component}/*") };
        let reason = format!(
            "it was changed while it was being saved, by something that does not wait for saves in the background; call \
             `Gate::pass` of the optimizer that is tracked (`Optimizer::gate`) or `CheckpointManager::wait` before such a \
             change, or set `Background::copy_at_call({pattern:?})`"
        );
        Failure { error: Error::object(key, reason), changed: Some(key.to_string()) }
    }
}

/// Consecutive chunks of a span, copied by one thread.
struct Job {
    span: usize,
    chunks: Range<usize>,
}

impl Capture {
    /// Begins: takes hold of what is `lazy`, and tells what that is. Nothing is copied yet: [`Capture::copy_now`] must
    /// follow, and [`Hold::finish`], on whatever threads call it. `others` says what is done about writers that do not
    /// wait of their own accord.
    pub(crate) fn begin(
        plan: Arc<Plan>,
        image: Image,
        lazy: Vec<bool>,
        others: Others,
    ) -> Result<(Touched, Arc<Capture>)> {
        let mut touched = Touched::default();
        let mut pins: Vec<Option<Arc<dyn TensorPin>>> = vec![None; plan.tensors.len()];
        let mut kept = plan.kept.lock().unwrap_or_else(PoisonError::into_inner);
        kept.resize(plan.tensors.len(), None);
        let mut versions = vec![None; plan.tensors.len()];
        for (place, tensor) in plan.tensors.iter().enumerate().filter(|(place, _)| lazy[*place]) {
            touched.add_variable(tensor.leaf.variable());
            let pin = match &kept[place] {
                Some(kept) => Some(kept.clone()),
                None => pin(tensor)?,
            };
            if pin.as_ref().and_then(|pin| pin.memory()).is_some_and(|memory| memory.len() <= KEPT) {
                kept[place].clone_from(&pin);
            }
            let address = pin.as_ref().and_then(|pin| pin.address());
            let area = tensor.area.map(|area| address.map_or(area, |address| area.moved_to(address)));
            area.into_iter().for_each(|area| touched.add_area(area));
            if let (true, Some(pin)) = (others.wait, &pin) {
                pin.hold_writers().map_err(|reason| Error::object(&tensor.key, reason))?;
            }
            if others.watched {
                versions[place] = version(tensor, pin.as_deref());
            }
            pins[place] = pin;
        }
        drop(kept);
        let samples = if others.watched { Samples::take(&plan, &pins) } else { Samples::default() };
        let jobs = jobs(&plan, &lazy, &pins, &image);
        let capture = Capture {
            image: RwLock::new(image),
            lazy,
            pins,
            versions,
            samples,
            next: AtomicUsize::new(0),
            left: Mutex::new(jobs.len()),
            none_left: Condvar::new(),
            cancelled: AtomicBool::new(false),
            failure: Mutex::new(None),
            jobs,
            plan,
        };
        Ok((touched, Arc::new(capture)))
    }

    /// Copies everything that is not lazy.
    pub(crate) fn copy_now(&self) -> Result<()> {
        let image = self.image();
        for (place, span) in self.plan.spans.iter().enumerate() {
            let mut gatherer = Gatherer::new(&self.plan, &self.pins);
            // What is skipped has no chunks in the image.
            for (i, chunk) in span.chunks.iter().enumerate().take(image.spans[place].len()) {
                if chunk.parts.iter().any(|part| !self.is_lazy(part.source)) {
                    let mut buffer = image.chunk(place, i);
                    gatherer.gather(span, chunk, buffer.as_mut_slice(), |source| !self.is_lazy(source))?;
                }
            }
        }
        Ok(())
    }

    fn is_lazy(&self, source: Source) -> bool {
        matches!(source, Source::Tensor(place) if self.lazy[place])
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
    pub(crate) fn failure(&self) -> Option<Failure> {
        self.failure.lock().unwrap_or_else(PoisonError::into_inner).take()
    }

    fn fail(&self, failure: Failure) {
        self.cancelled.store(true, Ordering::Relaxed);
        self.failure.lock().unwrap_or_else(PoisonError::into_inner).get_or_insert(failure);
    }

    fn run(&self, job: &Job) -> std::result::Result<(), Failure> {
        let span = &self.plan.spans[job.span];
        let mut gatherer = Gatherer::new(&self.plan, &self.pins);
        let image = self.image();
        for i in job.chunks.clone() {
            let chunk = &span.chunks[i];
            let mut buffer = image.chunk(job.span, i);
            gatherer.gather(span, chunk, buffer.as_mut_slice(), |source| self.is_lazy(source))?;
            for part in chunk.parts.iter().filter(|part| self.is_lazy(part.source)) {
                if let (Source::Tensor(place), false) =
                    (part.source, self.samples.fit(&self.plan, part, &buffer.as_slice()[part.at.clone()]))
                {
                    return Err(Failure::changed(&self.plan.tensors[place].key));
                }
            }
        }
        Ok(())
    }

    /// Whether all version counters are where they were at the call; all is copied, and no writer that waits has been
    /// let go yet.
    fn check_versions(&self) -> std::result::Result<(), Failure> {
        for ((tensor, pin), version_then) in self.plan.tensors.iter().zip(&self.pins).zip(&self.versions) {
            if version_then.is_some() && version(tensor, pin.as_deref()) != *version_then {
                return Err(Failure::changed(&tensor.key));
            }
        }
        Ok(())
    }
}

/// Takes hold of a tensor's memory.
fn pin(tensor: &PlannedTensor) -> Result<Option<Arc<dyn TensorPin>>> {
    let pin = tensor.leaf.pin(&tensor.spec).map_err(|reason| Error::object(&tensor.key, reason))?;
    Ok(pin.map(Arc::from))
}

/// How often a tensor was changed by now, as far as it counts.
fn version(tensor: &PlannedTensor, pin: Option<&dyn TensorPin>) -> Option<u64> {
    pin.and_then(|pin| pin.version()).or_else(|| tensor.leaf.version())
}

/// What is to be copied behind the call, in parts for the threads that come by.
fn jobs(plan: &Plan, lazy: &[bool], pins: &Pins, image: &Image) -> Vec<Job> {
    let is_lazy = |part: &Part| matches!(part.source, Source::Tensor(place) if lazy[place]);
    // Copying a tensor that is not laid out as in the file makes a copy of all of it: its chunks stay together.
    let stays_together = |source: Option<Source>| match source {
        Some(Source::Tensor(place)) if lazy[place] => match &pins[place] {
            Some(pin) => pin.memory().is_none(),
            None => !plan.tensors[place].leaf.is_plain_memory(),
        },
        _ => false,
    };
    let mut jobs = Vec::new();
    for (place, span) in plan.spans.iter().enumerate().filter(|(place, _)| !image.spans[*place].is_empty()) {
        let mut begin = 0;
        for (i, chunk) in span.chunks.iter().enumerate() {
            let last = chunk.parts.last().map(|part| part.source);
            let goes_on = span.chunks.get(i + 1).is_some_and(|next| {
                last.is_some() && last == next.parts.first().map(|part| part.source) && stays_together(last)
            });
            if !goes_on {
                if span.chunks[begin..=i].iter().flat_map(|chunk| &chunk.parts).any(is_lazy) {
                    jobs.push(Job { span: place, chunks: begin..i + 1 });
                }
                begin = i + 1;
            }
        }
    }
    jobs
}

impl Hold for Capture {
    fn finish(&self) {
        while let Some(job) = self.jobs.get(self.next.fetch_add(1, Ordering::Relaxed)) {
            // Counted even when it panics: nobody may wait for ever.
            let _done = Done(self);
            if self.cancelled.load(Ordering::Relaxed) {
                continue;
            }
            // A panic is this save's failure, not that of the writer who helps with it.
            let panicked = |_| Err(Error::object("save", "copying the state panicked").into());
            if let Err(failure) = catch_unwind(AssertUnwindSafe(|| self.run(job))).unwrap_or_else(panicked) {
                self.fail(failure);
            }
        }
        let left = self.left.lock().unwrap_or_else(PoisonError::into_inner);
        drop(self.none_left.wait_while(left, |left| *left > 0));
    }
}

struct Done<'a>(&'a Capture);

impl Drop for Done<'_> {
    fn drop(&mut self) {
        let mut left = self.0.left.lock().unwrap_or_else(PoisonError::into_inner);
        if *left == 1
            && let Err(failure) = self.0.check_versions()
        {
            self.0.fail(failure);
        }
        *left -= 1;
        if *left == 0 {
            self.0.none_left.notify_all();
        }
    }
}
