//! The unfinished captures of this process: the memory, variables and gates that they still read.
//!
//! A background save registers its capture here before its call returns. A writer waits for the captures that overlap
//! what it is about to write, and helps to copy. If no capture is unfinished, this costs one atomic read.

use super::gate::Gate;
use super::leaf::{Identity, TensorLeaf};
use crate::sync::{Arc, AtomicUsize, Mutex, MutexGuard, Ordering, PoisonError};
use std::hash::{DefaultHasher, Hash, Hasher};

/// A reader of memory that must not change until the reader has finished.
pub(crate) trait Hold: Send + Sync {
    /// Returns once nothing is read anymore. The caller's thread does part of the work.
    fn finish(&self);
}

/// A range of consecutive memory of a device.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct Area {
    /// A hash of the device's name.
    device: u64,
    begin: usize,
    end: usize,
}

impl Area {
    pub(crate) fn new(device: &str, begin: usize, bytes: usize) -> Area {
        let mut hasher = DefaultHasher::new();
        device.hash(&mut hasher);
        Area { device: hasher.finish(), begin, end: begin.saturating_add(bytes) }
    }

    /// Returns an area of the same device and length at another address.
    pub(crate) fn moved_to(self, address: usize) -> Area {
        Area { begin: address, end: address.saturating_add(self.end - self.begin), ..self }
    }

    /// Returns `true` if the areas have memory in common.
    pub(crate) fn overlaps(&self, other: &Area) -> bool {
        self.device == other.device && self.begin < other.end && other.begin < self.end
    }

    /// Returns the area from the beginning of the first to the end of the last of the two.
    pub(crate) fn joined(self, other: Area) -> Area {
        Area { begin: self.begin.min(other.begin), end: self.end.max(other.end), ..self }
    }

    /// Returns the number of bytes.
    pub(crate) fn bytes(&self) -> usize {
        self.end - self.begin
    }

    /// Returns the number of bytes from the beginning of `self` to an address.
    pub(crate) fn offset(&self, address: usize) -> usize {
        address.saturating_sub(self.begin)
    }

    /// Like [`of`](Area::of), if the identity tells how the elements are placed.
    pub(crate) fn of_known(identity: &Identity) -> Option<Area> {
        (identity.strides.len() == identity.spec.shape.len()).then(|| Area::of(identity))
    }

    /// Like [`of_known`](Area::of_known), if the elements leave no gaps, and each has a place of its own.
    pub(crate) fn filled_by(identity: &Identity) -> Option<Area> {
        let steps = identity.strides.iter().zip(&identity.spec.shape);
        let mut dimensions: Vec<(u64, u64)> = steps.map(|(stride, length)| (stride.unsigned_abs(), *length)).collect();
        dimensions.retain(|(_, length)| *length != 1);
        dimensions.sort_unstable();
        let mut next = 1u64;
        let follows = |(stride, length): (u64, u64)| {
            let follows = stride == next && length > 0;
            next = next.saturating_mul(length);
            follows
        };
        let is_filled = dimensions.into_iter().all(follows);
        Area::of_known(identity).filter(|_| is_filled)
    }

    /// Returns the area from the first to the last element, including gaps.
    pub(crate) fn of(identity: &Identity) -> Area {
        let Identity { device, address, spec, strides } = identity;
        let steps = spec.shape.iter().zip(strides);
        let reach = steps.fold(0u64, |reach, (&length, &stride)| {
            reach.saturating_add(length.saturating_sub(1).saturating_mul(stride.unsigned_abs()))
        });
        let strided = reach.saturating_add(1).saturating_mul(spec.dtype.size() as u64);
        let bytes = spec.bytes().unwrap_or(u64::MAX).max(strided);
        Area::new(device, *address, usize::try_from(bytes).unwrap_or(usize::MAX))
    }
}

/// Memory that is about to be written or is being read, and the variables it belongs to. A variable may have other
/// memory than when it was captured; a write to it waits nevertheless, because it changes the version counter.
#[derive(Debug, Clone, Default)]
pub(crate) struct Touched {
    areas: Vec<Area>,
    variables: Vec<usize>,
    /// Part of it is unknown, so everything counts as touched.
    anything: bool,
    /// Both are sorted, and the areas joined, so that they can be searched.
    is_ordered: bool,
}

impl Touched {
    pub(crate) fn add_area(&mut self, area: Area) {
        self.is_ordered = false;
        self.areas.push(area);
    }

    pub(crate) fn add_variable(&mut self, variable: Option<usize>) {
        self.is_ordered = false;
        self.variables.extend(variable);
    }

    /// Adds a tensor that will be written. A tensor that does not report its memory may overlap any other.
    pub(crate) fn add_leaf(&mut self, leaf: &dyn TensorLeaf) {
        match leaf.identity() {
            Some(identity) => self.add_area(Area::of(&identity)),
            None => self.anything = true,
        }
        self.add_variable(leaf.variable());
    }

    /// Sorts the ranges so that they can be searched. If a capture is registered unsorted, the first waiter sorts it.
    pub(crate) fn order(&mut self) {
        self.is_ordered = true;
        self.variables.sort_unstable();
        self.areas.sort_unstable();
        self.areas.dedup_by(|next, last| {
            let joins = next.device == last.device && next.begin <= last.end;
            if joins {
                last.end = last.end.max(next.end);
            }
            joins
        });
    }

    /// Returns `true` if this overlaps `other`. This is in order.
    fn meets(&self, other: &Touched) -> bool {
        other.anything
            || other.areas.iter().any(|area| self.overlaps(area))
            || other.variables.iter().any(|variable| self.has_variable(*variable))
    }

    /// Returns the last area that begins before the end of `area`.
    fn before_end_of(&self, area: &Area) -> Option<&Area> {
        let after = self.areas.partition_point(|own| (own.device, own.begin) < (area.device, area.end));
        after.checked_sub(1).map(|last| &self.areas[last])
    }

    /// Returns `true` if a part of the area is touched. This is in order.
    pub(super) fn overlaps(&self, area: &Area) -> bool {
        self.before_end_of(area).is_some_and(|own| own.overlaps(area))
    }

    /// Returns `true` if all of the area is touched. This is in order.
    pub(super) fn covers(&self, area: &Area) -> bool {
        self.before_end_of(area).is_some_and(|own| own.overlaps(area) && own.begin <= area.begin && own.end >= area.end)
    }

    /// Returns `true` if the variable is touched. This is in order.
    pub(super) fn has_variable(&self, variable: usize) -> bool {
        self.variables.binary_search(&variable).is_ok()
    }
}

struct Entry {
    number: usize,
    /// The process that copies. A forked child has the entry, but neither the threads that would finish it nor the same
    /// memory contents.
    process: u32,
    touched: Arc<Touched>,
    gates: Vec<Gate>,
    hold: Arc<dyn Hold>,
}

struct Registry {
    /// The number of unfinished captures, including those being registered.
    unfinished: AtomicUsize,
    entries: Mutex<Vec<Entry>>,
    numbers: AtomicUsize,
}

impl Registry {
    #[cfg(not(shuttle))]
    const fn new() -> Registry {
        Registry { unfinished: AtomicUsize::new(0), entries: Mutex::new(Vec::new()), numbers: AtomicUsize::new(0) }
    }

    fn entries(&self) -> MutexGuard<'_, Vec<Entry>> {
        self.entries.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(not(shuttle))]
static REGISTRY: Registry = Registry::new();

// One per tried schedule.
#[cfg(shuttle)]
shuttle::lazy_static! {
    static ref REGISTRY: Registry = Registry {
        unfinished: AtomicUsize::new(0),
        entries: Mutex::new(Vec::new()),
        numbers: AtomicUsize::new(0),
    };
}

/// A capture in the registry. Dropping this removes it.
pub(crate) struct Entered(usize);

impl Drop for Entered {
    fn drop(&mut self) {
        let removed = {
            let mut entries = REGISTRY.entries();
            let place = entries.iter().position(|entry| entry.number == self.0);
            place.map(|place| entries.swap_remove(place))
        };
        REGISTRY.unfinished.fetch_sub(1, Ordering::AcqRel);
        // What it held is dropped after the lock is released.
        drop(removed);
    }
}

/// Registers the capture that `begin` makes. Waits for writers behind `gates` first; writers that arrive during `begin`
/// wait until it returns.
pub(crate) fn enter<H: Hold + 'static, E>(
    gates: &[Gate],
    begin: impl FnOnce() -> Result<(Arc<Touched>, Arc<H>), E>,
) -> Result<(Entered, Arc<H>), E> {
    let _closed = Gate::lock_all(gates);
    let mut entries = REGISTRY.entries();
    // Before the capture asks whether a writer's access is exclusive, as `wait_at` comes after the end of that access:
    // one of the two sees the other.
    REGISTRY.unfinished.fetch_add(1, Ordering::SeqCst);
    let number = REGISTRY.numbers.fetch_add(1, Ordering::Relaxed);
    let begun = Begun;
    let (touched, hold) = begin()?;
    std::mem::forget(begun);
    entries.push(Entry { number, process: std::process::id(), touched, gates: gates.to_vec(), hold: hold.clone() });
    drop(entries);
    Ok((Entered(number), hold))
}

/// Decrements the count if a capture could not be started.
struct Begun;

impl Drop for Begun {
    fn drop(&mut self) {
        REGISTRY.unfinished.fetch_sub(1, Ordering::AcqRel);
    }
}

/// Waits until no unfinished capture reads anything that `written` returns. Every writer of this crate calls this
/// before its first write.
pub(crate) fn wait_for(written: impl FnOnce() -> Touched) {
    if REGISTRY.unfinished.load(Ordering::Acquire) == 0 {
        return;
    }
    let written = written();
    wait_for_those(|entry| {
        if !entry.touched.is_ordered {
            Arc::make_mut(&mut entry.touched).order();
        }
        entry.touched.meets(&written)
    });
}

impl Gate {
    /// Waits until the tensors behind the gate may be changed, and helps to copy what is left.
    pub fn pass(&self) {
        wait_at(self);
    }

    /// Waits until what `written` returns may be changed. No capture behind this gate starts before the result is
    /// dropped.
    #[cfg_attr(not(feature = "torch"), allow(dead_code, reason = "only libtorch's optimizers write"))]
    pub(crate) fn write(&self, written: impl FnOnce() -> Touched) -> MutexGuard<'_, ()> {
        let writing = self.lock();
        wait_for(written);
        writing
    }
}

/// Waits until no unfinished capture is behind the gate.
fn wait_at(gate: &Gate) {
    if REGISTRY.unfinished.load(Ordering::SeqCst) > 0 {
        wait_for_those(|entry| entry.gates.iter().any(|one| one.is(gate)));
    }
}

fn wait_for_those(concerned: impl Fn(&mut Entry) -> bool) {
    let holds: Vec<Arc<dyn Hold>> = {
        let process = std::process::id();
        let mut entries = REGISTRY.entries();
        let own = entries.iter_mut().filter(|entry| entry.process == process);
        own.filter_map(|entry| concerned(entry).then(|| entry.hold.clone())).collect()
    };
    holds.iter().for_each(|hold| hold.finish());
}

#[cfg(all(test, not(shuttle)))]
mod tests {
    use super::*;
    use crate::dtype::{Dtype, TensorSpec};
    use std::sync::atomic::AtomicUsize as Count;

    #[derive(Default)]
    struct Counted(Count);

    impl Hold for Counted {
        fn finish(&self) {
            self.0.fetch_add(1, Ordering::SeqCst);
        }
    }

    fn touched(areas: &[(&str, usize, usize)], variables: &[usize]) -> Touched {
        let mut touched = Touched::default();
        areas.iter().for_each(|&(device, begin, bytes)| touched.add_area(Area::new(device, begin, bytes)));
        variables.iter().for_each(|&variable| touched.add_variable(Some(variable)));
        touched
    }

    #[test]
    fn who_writes_waits_for_what_is_concerned() {
        // Devices of their own: tests of this process capture at the same time.
        let begin = || {
            Ok::<_, ()>((
                Arc::new(touched(&[("t1", 100, 10), ("t1", 105, 20), ("t2", 500, 1)], &[usize::MAX - 7])),
                Arc::new(Counted::default()),
            ))
        };
        let (entered, hold) = enter(&[], begin).unwrap();
        let waits = |areas: &[(&str, usize, usize)], variables: &[usize]| {
            let before = hold.0.load(Ordering::SeqCst);
            wait_for(|| touched(areas, variables));
            hold.0.load(Ordering::SeqCst) > before
        };
        assert!(waits(&[("t1", 100, 1)], &[]) && waits(&[("t1", 124, 1)], &[]) && waits(&[("t1", 0, 1000)], &[]));
        assert!(waits(&[("t1", 0, 1), ("t2", 500, 1)], &[]) && waits(&[], &[usize::MAX - 7]));
        assert!(!waits(&[("t1", 125, 5), ("t1", 90, 10), ("t2", 100, 10), ("t2", 501, 9)], &[3]));
        drop(entered);
        assert!(!waits(&[("t1", 100, 1)], &[]));
    }

    #[test]
    fn a_gate_waits_for_its_own_captures() {
        let (one, other) = (Gate::new(), Gate::new());
        let begin = || Ok::<_, ()>((Arc::default(), Arc::new(Counted::default())));
        let (_entered, hold) = enter(&[one.clone(), one.clone()], begin).unwrap();
        other.pass();
        assert_eq!(hold.0.load(Ordering::SeqCst), 0);
        one.pass();
        assert_eq!(hold.0.load(Ordering::SeqCst), 1);
        assert!(enter::<Counted, _>(std::slice::from_ref(&other), || Err(())).is_err());
        other.pass();
    }

    #[test]
    fn an_area_has_the_gaps_of_its_tensor() {
        let spec = TensorSpec::new(Dtype::F32, [2, 3]);
        let area = |strides: &[i64]| {
            let area =
                Area::of(&Identity { device: "d".into(), address: 1000, spec: spec.clone(), strides: strides.into() });
            area.end - area.begin
        };
        assert_eq!((area(&[3, 1]), area(&[]), area(&[100, 2]), area(&[1, 2])), (24, 24, 420, 24));
    }
}
