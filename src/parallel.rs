//! Runs many independent jobs on a few threads.

use crate::error::{Error, Result};
use std::any::Any;
use std::sync::OnceLock;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};

/// Returns the default number of threads: one per processor, at most 8.
pub(crate) fn default_threads() -> usize {
    // Cached, because asking the system reads the files of its control groups.
    static THREADS: OnceLock<usize> = OnceLock::new();
    *THREADS.get_or_init(|| std::thread::available_parallelism().map_or(1, usize::from).min(8))
}

/// Returns how many of `threads` are worth starting for `bytes`: waking a thread can take longer than it saves while
/// libtorch's own threads are spinning on its processor.
pub(crate) fn worth(threads: usize, bytes: u64) -> usize {
    const EACH: u64 = 8 << 20;
    threads.min(usize::try_from(1 + bytes / EACH).unwrap_or(usize::MAX))
}

/// Runs `work` on every job, in order, on at most `threads` threads, each with its own `scratch`. Stops at the first
/// error. A panic of `work` in another thread is returned as an error.
pub(crate) fn for_each<J: Sync, S>(
    jobs: &[J],
    threads: usize,
    scratch: impl Fn() -> S + Sync,
    work: impl Fn(&J, &mut S) -> Result<()> + Sync,
) -> Result<()> {
    let next = AtomicUsize::new(0);
    let failed = AtomicBool::new(false);
    let run = || -> Result<()> {
        let mut scratch = scratch();
        while let Some(job) = jobs.get(next.fetch_add(1, Ordering::Relaxed)).filter(|_| !failed.load(Ordering::Relaxed))
        {
            work(job, &mut scratch).inspect_err(|_| failed.store(true, Ordering::Relaxed))?;
        }
        Ok(())
    };
    std::thread::scope(|scope| {
        let helpers: Vec<_> = (1..threads.min(jobs.len())).map(|_| scope.spawn(run)).collect();
        let own = run();
        let panicked = |panic: Box<dyn Any + Send>| Err(Error::panicked("read or write a checkpoint", &*panic));
        helpers.into_iter().map(|helper| helper.join().unwrap_or_else(panicked)).fold(own, Result::and)
    })
}
