//! The captures of this process that are not finished: which memory, variables and gates they still read behind.
//!
//! A save in the background enters its capture here before its call returns. Whoever is about to write waits for the
//! captures that it concerns, and does some of their copying meanwhile. Nothing being captured, that costs one atomic read.

use super::gate::Gate;
use super::leaf::{Identity, TensorLeaf};
use crate::sync::{Arc, AtomicUsize, Mutex, MutexGuard, Ordering, PoisonError};
use std::hash::{DefaultHasher, Hash, Hasher};

/// What reads memory that must not change until it has finished.
pub(crate) trait Hold: Send + Sync {
    /// Returns when it reads no more; the caller's thread does some of the work.
    fn finish(&self);
}

/// Consecutive memory of a device.
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

    /// As many bytes of the same device, at another address.
    pub(crate) fn moved_to(self, address: usize) -> Area {
        Area { begin: address, end: address.saturating_add(self.end - self.begin), ..self }
    }

    /// From the first to the last element, with the gaps between them.
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

/// What is about to be written, or is being read: memory, and the variables that it is the memory of. A variable may have
/// other memory by now than when it was captured; writing to it is waited for all the same, since its version counter
/// moves.
#[derive(Debug, Clone, Default)]
pub(crate) struct Touched {
    areas: Vec<Area>,
    variables: Vec<usize>,
    /// Some of it is not known.
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

    /// A tensor that will be written. One that does not tell its memory may have any.
    pub(crate) fn add_leaf(&mut self, leaf: &dyn TensorLeaf) {
        match leaf.identity() {
            Some(identity) => self.add_area(Area::of(&identity)),
            None => self.anything = true,
        }
        self.add_variable(leaf.variable());
    }

    /// Makes it ready for searching. A capture that is entered without this is made ready by the first who waits.
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

    /// Whether something of `other` is in this.
    fn meets(&self, other: &Touched) -> bool {
        let overlaps = |area: &Area| {
            let after = self.areas.partition_point(|own| (own.device, own.begin) < (area.device, area.end));
            let before = after.checked_sub(1).map(|last| &self.areas[last]);
            before.is_some_and(|own| own.device == area.device && own.end > area.begin)
        };
        other.anything
            || other.areas.iter().any(overlaps)
            || other.variables.iter().any(|variable| self.variables.binary_search(variable).is_ok())
    }
}

struct Entry {
    number: usize,
    /// The process that copies. A child that was forked meanwhile has the entry, but not the threads that would finish it, and
    /// memory of its own.
    process: u32,
    touched: Arc<Touched>,
    gates: Vec<Gate>,
    hold: Arc<dyn Hold>,
}

struct Registry {
    /// How many captures are not finished, those being entered included.
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

// One for every schedule that is tried.
#[cfg(shuttle)]
shuttle::lazy_static! {
    static ref REGISTRY: Registry = Registry {
        unfinished: AtomicUsize::new(0),
        entries: Mutex::new(Vec::new()),
        numbers: AtomicUsize::new(0),
    };
}

/// A capture in the registry; dropping this takes it out.
pub(crate) struct Entered(usize);

impl Drop for Entered {
    fn drop(&mut self) {
        let removed = {
            let mut entries = REGISTRY.entries();
            let place = entries.iter().position(|entry| entry.number == self.0);
            place.map(|place| entries.swap_remove(place))
        };
        REGISTRY.unfinished.fetch_sub(1, Ordering::AcqRel);
        // What it held is let go without the lock.
        drop(removed);
    }
}

/// Enters the capture that `begin` makes. Writers that come meanwhile wait until it is there, and those behind `gates`
/// that are writing are waited for before.
pub(crate) fn enter<H: Hold + 'static, E>(
    gates: &[Gate],
    begin: impl FnOnce() -> Result<(Arc<Touched>, Arc<H>), E>,
) -> Result<(Entered, Arc<H>), E> {
    let _closed = Gate::lock_all(gates);
    let mut entries = REGISTRY.entries();
    REGISTRY.unfinished.fetch_add(1, Ordering::AcqRel);
    let number = REGISTRY.numbers.fetch_add(1, Ordering::Relaxed);
    let begun = Begun;
    let (touched, hold) = begin()?;
    std::mem::forget(begun);
    entries.push(Entry { number, process: std::process::id(), touched, gates: gates.to_vec(), hold: hold.clone() });
    drop(entries);
    Ok((Entered(number), hold))
}

/// Counts back when a capture could not be begun.
struct Begun;

impl Drop for Begun {
    fn drop(&mut self) {
        REGISTRY.unfinished.fetch_sub(1, Ordering::AcqRel);
    }
}

/// Returns when no unfinished capture reads any of what `written` tells. Every writer of this crate calls this before its
/// first write.
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
    /// Returns when tensors may be changed; helps with what is still to be copied before.
    pub fn pass(&self) {
        wait_at(self);
    }

    /// Returns when what `written` tells may be changed. No capture behind this gate begins before the result is dropped.
    #[cfg_attr(not(feature = "torch"), allow(dead_code, reason = "only libtorch's optimizers write"))]
    pub(crate) fn write(&self, written: impl FnOnce() -> Touched) -> MutexGuard<'_, ()> {
        let writing = self.lock();
        wait_for(written);
        writing
    }
}

/// Returns when no unfinished capture is behind the gate.
fn wait_at(gate: &Gate) {
    if REGISTRY.unfinished.load(Ordering::Acquire) > 0 {
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
