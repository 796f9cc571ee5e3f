//! Runs many independent jobs on a few threads.

use crate::error::{Error, Result};
use std::any::Any;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Mutex, OnceLock, PoisonError};

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

/// Returns the results of `work` on every job, in order, from as many threads as it is worth waking for so many small
/// files or directories.
pub(crate) fn of_each<J: Sync, R: Send>(jobs: &[J], work: impl Fn(&J) -> R + Sync) -> Vec<R> {
    const EACH: usize = 64;
    let results: Vec<Mutex<Option<R>>> = jobs.iter().map(|_| Mutex::new(None)).collect();
    let numbered: Vec<(&J, &Mutex<Option<R>>)> = jobs.iter().zip(&results).collect();
    let threads = default_threads().min(1 + jobs.len() / EACH);
    let ended = for_each(
        &numbered,
        threads,
        || (),
        |(job, result), ()| {
            *result.lock().unwrap_or_else(PoisonError::into_inner) = Some(work(job));
            Ok(())
        },
    );
    if let Err(error) = ended {
        log::debug!("once more, on one thread: {error}");
    }
    let results = jobs.iter().zip(results);
    let result = |(job, result): (&J, Mutex<Option<R>>)| {
        // After a panic in another thread, which happens again here.
        result.into_inner().unwrap_or_else(PoisonError::into_inner).unwrap_or_else(|| work(job))
    };
    results.map(result).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn results_are_in_the_order_of_the_jobs() {
        for count in [0, 1, 63, 64, 1000] {
            let jobs: Vec<usize> = (0..count).collect();
            assert_eq!(of_each(&jobs, |job| job * job), jobs.iter().map(|job| job * job).collect::<Vec<usize>>());
        }
        let jobs: Vec<usize> = (0..1000).collect();
        assert!(std::panic::catch_unwind(|| of_each(&jobs, |job| assert_ne!(*job, 999))).is_err());
    }
}
