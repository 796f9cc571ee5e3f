//! Threads, locks and atomics of background work. With `--cfg shuttle`, they are those of a scheduler that tries
//! different orders of threads (`cargo xtask torture schedules`).

#[cfg(not(shuttle))]
use std as from;

#[cfg(shuttle)]
use shuttle as from;

#[cfg(not(shuttle))]
pub(crate) use from::thread;

pub(crate) use from::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
pub(crate) use from::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError, RwLock, RwLockReadGuard, RwLockWriteGuard};

/// Adds to the scheduler's threads a query for whether they have ended.
#[cfg(shuttle)]
pub(crate) mod thread {
    use super::{Arc, AtomicBool, Ordering};

    pub(crate) struct Builder(shuttle::thread::Builder);

    pub(crate) struct JoinHandle<T> {
        handle: shuttle::thread::JoinHandle<T>,
        ended: Arc<AtomicBool>,
    }

    impl Builder {
        pub(crate) fn new() -> Builder {
            Builder(shuttle::thread::Builder::new())
        }

        pub(crate) fn name(self, name: String) -> Builder {
            Builder(self.0.name(name))
        }

        pub(crate) fn spawn<T: Send + 'static>(
            self,
            work: impl FnOnce() -> T + Send + 'static,
        ) -> std::io::Result<JoinHandle<T>> {
            let ended = Arc::new(AtomicBool::new(false));
            let end = ended.clone();
            let handle = self.0.spawn(move || {
                let result = work();
                end.store(true, Ordering::Release);
                result
            })?;
            Ok(JoinHandle { handle, ended })
        }
    }

    impl<T> JoinHandle<T> {
        pub(crate) fn is_finished(&self) -> bool {
            self.ended.load(Ordering::Acquire)
        }

        pub(crate) fn join(self) -> std::thread::Result<T> {
            self.handle.join()
        }
    }
}
