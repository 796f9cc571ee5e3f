//! Tensors to which only one writer of this crate has access.

use super::gate::Gate;
use super::group::Seen;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering};

/// The exclusive access of a writer, such as an optimizer, to tensors to which no other code has a handle. The writer
/// counts its changes to all of them together, so that a save can query the writer instead of thousands of tensors.
#[doc(hidden)]
#[derive(Debug)]
pub struct Exclusive {
    /// The gate that the writer passes before every write.
    gate: Gate,
    /// How often tensors were added, removed, or given other memory, another type or shape.
    moves: AtomicU64,
    /// How often a write began or ended.
    writes: AtomicU64,
    /// How many writes have not ended.
    writing: AtomicUsize,
    /// Whether other code has, or had, a handle to one of the tensors.
    is_shared: AtomicBool,
    /// Whether every save that assumed exclusive access has finished copying.
    is_settled: AtomicBool,
}

impl Exclusive {
    /// Returns the exclusive access of a writer that passes `gate` before every write.
    pub(crate) fn new(gate: Gate) -> Arc<Exclusive> {
        Arc::new(Exclusive {
            gate,
            moves: AtomicU64::new(0),
            writes: AtomicU64::new(0),
            writing: AtomicUsize::new(0),
            is_shared: AtomicBool::new(false),
            is_settled: AtomicBool::new(false),
        })
    }

    /// Returns a number that changes with [`moved`](Exclusive::moved), and when the access ceases to be exclusive.
    pub(crate) fn generation(&self) -> u64 {
        self.moves.load(Ordering::SeqCst)
    }

    /// Notes that tensors were added, removed, or given other memory, another type or shape.
    pub(crate) fn moved(&self) {
        self.moves.fetch_add(1, Ordering::SeqCst);
    }

    /// Notes a write, from now until what it returns is dropped.
    pub(crate) fn write(self: &Arc<Self>) -> Writing {
        self.writing.fetch_add(1, Ordering::SeqCst);
        self.writes.fetch_add(1, Ordering::SeqCst);
        Writing(self.clone())
    }

    /// Ends the exclusive access permanently, before a handle to one of the tensors is given to other code. Waits for
    /// the saves that are still copying on the assumption that the access is exclusive.
    pub(crate) fn share(&self) {
        if self.is_settled.load(Ordering::SeqCst) {
            return;
        }
        if !self.is_shared.swap(true, Ordering::SeqCst) {
            self.moved();
        }
        // The second of two threads waits as well.
        self.gate.pass();
        self.is_settled.store(true, Ordering::SeqCst);
    }

    /// Returns `true` if other code may have a handle to one of the tensors.
    pub(crate) fn is_shared(&self) -> bool {
        self.is_shared.load(Ordering::SeqCst)
    }

    /// Returns what each of the tensors would report. The version is unknown during a write.
    pub(crate) fn look(&self) -> Seen {
        Seen::new(Some(self.generation()), self.version(), None)
    }

    /// Returns a number that changes with every write, or `None` during a write.
    pub(crate) fn version(&self) -> Option<u64> {
        let version = self.writes.load(Ordering::SeqCst);
        (self.writing.load(Ordering::SeqCst) == 0).then_some(version)
    }
}

/// A write that has not ended.
#[derive(Debug)]
pub(crate) struct Writing(Arc<Exclusive>);

impl Drop for Writing {
    fn drop(&mut self) {
        self.0.writes.fetch_add(1, Ordering::SeqCst);
        self.0.writing.fetch_sub(1, Ordering::SeqCst);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_write_changes_the_version() {
        let exclusive = Exclusive::new(Gate::new());
        let before = exclusive.look();
        let write = exclusive.write();
        assert_eq!(exclusive.version(), None);
        drop(write);
        assert_ne!(exclusive.look(), before);
        assert_eq!(exclusive.look().generation(), before.generation());
    }

    #[test]
    fn it_is_shared_for_good_and_that_changes_the_generation() {
        let exclusive = Exclusive::new(Gate::new());
        let before = exclusive.generation();
        exclusive.share();
        let after = exclusive.generation();
        exclusive.share();
        assert!(exclusive.is_shared() && before != after && after == exclusive.generation());
    }
}
