//! The gate between whoever changes tensors and a save that is still copying them.

use crate::sync::{Arc, AtomicBool, Mutex, MutexGuard, Ordering, PoisonError};
use std::collections::HashSet;
use std::fmt;

/// Held by an optimizer, which goes through it before every change it makes; closed by a background save until it
/// has copied what the optimizer would change.
///
/// ```
/// use tch_checkpoint::Gate;
/// let gate = Gate::new();
/// gate.pass();       // nothing is being copied: costs one atomic read
/// ```
#[derive(Clone, Default)]
pub struct Gate(Arc<State>);

#[derive(Default)]
struct State {
    closed: AtomicBool,
    waiting: Mutex<Vec<Arc<dyn Hold>>>,
}

/// What holds a gate closed.
pub(crate) trait Hold: Send + Sync {
    /// Returns when it no longer needs the gate closed; the caller's thread does some of the work.
    fn finish(&self);
}

impl Gate {
    /// An open gate.
    pub fn new() -> Gate {
        Gate::default()
    }

    /// Returns when tensors may be changed; helps with what is still to be copied before.
    pub fn pass(&self) {
        if !self.0.closed.load(Ordering::Acquire) {
            return;
        }
        // The lock is kept: another thread that wants to change the same tensors must not overtake.
        let mut waiting = self.waiting();
        for hold in waiting.drain(..) {
            hold.finish();
        }
        self.0.closed.store(false, Ordering::Release);
    }

    /// Holds the gate closed until `hold` is finished.
    pub(crate) fn close(&self, hold: Arc<dyn Hold>) {
        let mut waiting = self.waiting();
        waiting.push(hold);
        self.0.closed.store(true, Ordering::Release);
    }

    fn waiting(&self) -> MutexGuard<'_, Vec<Arc<dyn Hold>>> {
        self.0.waiting.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl fmt::Debug for Gate {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Gate").field("closed", &self.0.closed).finish()
    }
}

/// Which tensors change only after passing a gate.
#[derive(Debug, Clone, Default)]
pub struct Guarded {
    /// The gate.
    pub gate: Gate,
    /// The addresses of the tensors' first elements, as in [`Identity`](crate::Identity).
    pub addresses: HashSet<usize>,
}
