//! Captures a state: copies the bytes of the files into memory that is allocated once and reused.
//!
//! Tensors that anything may change are copied during the call. Tensors that only change after waiting for captures are
//! copied while training continues, from memory that was pinned during the call; a writer that arrives before that is
//! done helps to copy the rest. Version counters and sampled elements are checked to detect other writes.

use super::behind::pin;
use super::buffer::PageBuffer;
use super::chunk::Source;
use super::gather::{Gatherer, Pins};
use super::lazy::{AllSeen, Job, Lazy};
use super::plan::{Plan, PlannedTensor};
use super::samples::{Pinned, Samples};
use crate::error::{Error, Result};
use crate::format::{Digest, Hasher};
use crate::graph::{Hold, TensorPin, Touched};
use crate::name;
use crate::sync::{
    Arc, AtomicBool, AtomicUsize, Condvar, Mutex, MutexGuard, Ordering, PoisonError, RwLock, RwLockReadGuard,
    RwLockWriteGuard,
};
use std::any::Any;
use std::panic::{AssertUnwindSafe, catch_unwind};

/// The chunks of a plan's spans, in memory.
#[derive(Default)]
pub(crate) struct Image {
    spans: Vec<Vec<Mutex<PageBuffer>>>,
}

impl Image {
    /// Adapts the image to the `wanted` files of a plan. Chunks that fit are kept, since fresh memory costs ten times
    /// as much as a copy. Files for which this is not known yet are left unchanged.
    pub(crate) fn fit(&mut self, plan: &Plan, wanted: impl Fn(usize) -> Option<bool>) -> Result<()> {
        self.spans.resize_with(plan.spans.len(), Vec::new);
        for (chunks, span) in self.spans.iter_mut().zip(&plan.spans) {
            match wanted(span.file) {
                None => continue,
                Some(false) => {
                    chunks.clear();
                    continue;
                }
                Some(true) => {}
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

    /// Returns `true` if the image has these digests of a file's tensors, by place in the plan.
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

/// A capture of a state.
pub(crate) struct Capture {
    pub plan: Arc<Plan>,
    /// What may still be copied after the call.
    lazy: Arc<Lazy>,
    image: RwLock<Image>,
    seen: AllSeen,
    /// The memory that these had at the call.
    pins: Pins,
    /// Sampled elements; `None` if changes are not detected.
    samples: Option<Samples>,
    next: AtomicUsize,
    left: Mutex<usize>,
    none_left: Condvar,
    cancelled: AtomicBool,
    failure: Mutex<Option<Failure>>,
}

/// How writers that do not wait on their own are treated.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Others {
    /// Whether their library makes them wait, if it can.
    pub wait: bool,
    /// Whether their changes are detected.
    pub watched: bool,
}

/// Why a capture failed.
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
        let component = name::component(key);
        let pattern = if component == key { component.to_string() } else { name::join(component, "*") };
        let reason = format!(
            "it was changed while it was being saved, by something that does not wait for saves in the background; call \
             `Gate::pass` of the optimizer that is tracked (`Optimizer::gate`) or `CheckpointManager::wait` before such a \
             change, or set `Background::copy_at_call({pattern:?})`"
        );
        Failure { error: Error::object(key, reason), changed: Some(key.to_string()) }
    }
}

impl Capture {
    /// Starts a capture: pins what is `lazy`, and returns what it will read. Copies nothing yet: call
    /// [`Capture::copy_now`] and then, on any threads, [`Hold::finish`]. `image` fits the files with lazy tensors.
    /// `others` is how writers that do not wait on their own are treated. Returns `None` if the plan `is_checked` and
    /// no longer fits the tensors.
    pub(crate) fn begin(
        plan: Arc<Plan>,
        lazy: Arc<Lazy>,
        mut seen: AllSeen,
        is_checked: bool,
        image: &mut Image,
        others: Others,
    ) -> Result<Option<(Arc<Touched>, Arc<Capture>)>> {
        let all = Arc::make_mut(&mut seen);
        plan.survey().look_together(if others.wait { lazy.is_lazy() } else { &[] }, all);
        if is_checked && !plan.fits(all) || !plan.fits_writers(all) {
            return Ok(None);
        }
        let mut touched = lazy.touched.clone();
        let mut fresh = Vec::new();
        fresh.resize_with(if lazy.fresh.is_empty() { 0 } else { plan.tensors.len() }, || None);
        for &place in &lazy.fresh {
            let tensor = &plan.tensors[place];
            let pin = pin(tensor)?;
            let area = tensor.area_of(pin.as_deref());
            area.filter(|area| tensor.area != Some(*area))
                .into_iter()
                .for_each(|area| Arc::make_mut(&mut touched).add_area(area));
            fresh[place] = pin;
        }
        let pins = Pins { lazy: Some(lazy.clone()), fresh };
        for &place in &lazy.alone {
            all[place].set_version(version(&plan.tensors[place], pins.get(place)));
        }
        lazy.keep_seen(&seen);
        let samples = others.watched.then(|| Samples::take(lazy.spare_samples(), &lazy.sampled, &pins));
        let capture = Capture {
            image: RwLock::new(std::mem::take(image)),
            seen,
            pins,
            samples,
            next: AtomicUsize::new(0),
            left: Mutex::new(lazy.jobs.len()),
            none_left: Condvar::new(),
            cancelled: AtomicBool::new(false),
            failure: Mutex::new(None),
            lazy,
            plan,
        };
        Ok(Some((touched, Arc::new(capture))))
    }

    /// Returns `true` if any part of a file, given by its place in `Plan::files`, is copied after the call.
    pub(crate) fn is_behind(&self, file: usize) -> bool {
        self.lazy.is_in(file)
    }

    /// Returns `true` if any tensor is copied by [`Capture::copy_now`].
    pub(crate) fn copies_now(&self) -> bool {
        self.lazy.places.len() < self.plan.tensors.len()
    }

    /// Returns what the tensors reported at the call, as [`Plan::look`].
    pub(crate) fn seen(&self) -> &AllSeen {
        &self.seen
    }

    /// Copies everything that is not lazy, except files that are `skipped`.
    pub(crate) fn copy_now(&self, skipped: impl Fn(usize) -> bool) -> Result<()> {
        let plan = &*self.plan;
        self.image_mut().fit(plan, |file| (!self.is_behind(file)).then(|| !skipped(file)))?;
        let image = self.image();
        for (place, (span, chunks)) in plan.spans.iter().zip(&self.lazy.at_call).enumerate() {
            let mut gatherer = Gatherer::new(plan, &self.pins);
            // Skipped files have no chunks in the image.
            for &i in chunks.iter().filter(|&&i| i < image.spans[place].len()) {
                let mut buffer = image.chunk(place, i);
                gatherer.gather(span, &span.chunks[i], buffer.as_mut_slice(), |source| {
                    !self.lazy.is_behind(span, source)
                })?;
            }
        }
        Ok(())
    }

    /// Returns the captured bytes.
    pub(crate) fn image(&self) -> RwLockReadGuard<'_, Image> {
        self.image.read().unwrap_or_else(PoisonError::into_inner)
    }

    fn image_mut(&self) -> RwLockWriteGuard<'_, Image> {
        self.image.write().unwrap_or_else(PoisonError::into_inner)
    }

    /// Reclaims the memory, once everything is copied or the capture is [cancelled](Capture::cancel).
    pub(crate) fn take_image(&self) -> Image {
        std::mem::take(&mut *self.image_mut())
    }

    /// Skips what has not been copied yet. When this returns, no thread copies into the image any more.
    pub(crate) fn cancel(&self) {
        self.cancelled.store(true, Ordering::Relaxed);
        self.finish();
    }

    /// Returns why the capture failed, if it did.
    pub(crate) fn failure(&self) -> Option<Failure> {
        self.failure.lock().unwrap_or_else(PoisonError::into_inner).take()
    }

    fn fail(&self, failure: Failure) {
        self.cancelled.store(true, Ordering::Relaxed);
        self.failure.lock().unwrap_or_else(PoisonError::into_inner).get_or_insert(failure);
    }

    fn run(&self, job: &Job) -> std::result::Result<(), Failure> {
        let plan = &*self.plan;
        let span = &plan.spans[job.span];
        let mut gatherer = Gatherer::new(plan, &self.pins);
        let image = self.image();
        for i in job.chunks.clone() {
            let chunk = &span.chunks[i];
            let mut buffer = image.chunk(job.span, i);
            gatherer.gather(span, chunk, buffer.as_mut_slice(), |source| self.lazy.is_behind(span, source))?;
            let Some(samples) = &self.samples else { continue };
            for part in chunk.parts.iter().filter(|part| self.lazy.is_behind(span, part.source)) {
                let fits = samples.fit(part, &buffer.as_slice()[part.at.clone()]);
                if let (Source::Tensor(place), false) = (part.source, fits) {
                    return Err(Failure::changed(&plan.tensors[place].key));
                }
            }
        }
        Ok(())
    }

    /// Checks that all version counters are those of the call. Everything is copied, and waiting writers are still
    /// blocked.
    fn check_versions(&self) -> std::result::Result<(), Failure> {
        if self.samples.is_none() {
            return Ok(());
        }
        for (writer, place) in &self.lazy.writers {
            let now = writer.version();
            if now.is_none() || now != self.seen[*place].version() {
                return Err(Failure::changed(&self.plan.tensors[*place].key));
            }
        }
        for &place in &self.lazy.places {
            let (tensor, then) = (&self.plan.tensors[place], self.seen[place].version());
            if tensor.exclusive.is_none() && then.is_some() && version(tensor, self.pins.get(place)) != then {
                return Err(Failure::changed(&tensor.key));
            }
        }
        Ok(())
    }
}

/// Returns the version counter of a tensor, if it has one.
fn version(tensor: &PlannedTensor, pin: Option<&dyn TensorPin>) -> Option<u64> {
    pin.and_then(|pin| pin.version()).or_else(|| tensor.leaf.version())
}

impl Hold for Capture {
    fn finish(&self) {
        while let Some(job) = self.lazy.jobs.get(self.next.fetch_add(1, Ordering::Relaxed)) {
            // Counted even if it panics, so that nothing waits forever.
            let _done = Done(self);
            if self.cancelled.load(Ordering::Relaxed) {
                continue;
            }
            // A panic fails this save, not the writer that helps.
            let panicked = |panic: Box<dyn Any + Send>| Err(Error::panicked("copy the state", &*panic).into());
            if let Err(failure) = catch_unwind(AssertUnwindSafe(|| self.run(job))).unwrap_or_else(panicked) {
                self.fail(failure);
            }
        }
        let left = self.left.lock().unwrap_or_else(PoisonError::into_inner);
        drop(self.none_left.wait_while(left, |left| *left > 0));
    }
}

impl Drop for Capture {
    fn drop(&mut self) {
        self.samples.take().into_iter().for_each(|samples| self.lazy.keep_samples(samples));
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
