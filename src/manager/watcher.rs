//! Waits for new checkpoints, in another process than the one that trains.

use super::directory::CheckpointDirectory;
use super::retention::CheckpointInfo;
use crate::catalog::Looks;
use crate::error::{Error, Result};
use crate::format::Follows;
use crate::location::Location;
use crate::repository::{Posix, Stat, Storage};
use crate::sync::Arc;
use std::collections::HashSet;
use std::fmt;
use std::time::{Duration, Instant};

/// Yields the checkpoints of a directory as they are committed, like TensorFlow's `tf.train.checkpoints_iterator`.
///
/// By default, only the newest checkpoint is yielded when it has changed; those in between are skipped. Polls once per
/// second and waits forever. The first item is the newest existing checkpoint. Checkpoints with values that are not
/// finite are yielded like any other: see [`CheckpointInfo::is_healthy`].
///
/// A checkpoint can be removed while it is evaluated: its restore then succeeds, because it reads through the open
/// directory, or fails with an error for which [`Error::is_not_found`] is `true`. Continue with the next one. Metrics and
/// pins that are given with `&checkpoint` reach that checkpoint or fail, even if the training has saved another one under
/// its name ([`CheckpointRef`](crate::CheckpointRef)).
///
/// If the directory is removed, or moved away and made anew, the new one is watched.
///
/// ```
/// # fn main() -> Result<(), Box<dyn std::error::Error>> {
/// # let temp = tempfile::tempdir()?;
/// # let dir = temp.path().join("run");
/// use std::time::Duration;
/// use tch_checkpoint::{Checkpoint, CheckpointDirectory, CheckpointWatcher, Counter};
/// # let step = Counter::new(3);
/// # Checkpoint::new().track("step", &step)?.save(dir.join("ckpt"))?;
/// let checkpoints = CheckpointDirectory::new(&dir);
/// for checkpoint in CheckpointWatcher::new(&dir).timeout(Duration::from_millis(10)) {
///     let checkpoint = checkpoint?;
///     // Restore `dir.join(&checkpoint.name)`, evaluate, and note the result:
///     checkpoints.add_metrics(&checkpoint, [("accuracy", 0.9)])?;
/// }
/// # assert_eq!(checkpoints.latest()?.map(|info| info.metrics["accuracy"]), Some(0.9));
/// # Ok(())
/// # }
/// ```
pub struct CheckpointWatcher {
    directory: CheckpointDirectory,
    path: Location,
    timeout: Option<Duration>,
    min_interval: Duration,
    poll: Duration,
    each: bool,
    stop: Option<Box<dyn FnMut() -> bool + Send>>,
    /// The yielded checkpoints: names and identities.
    yielded: HashSet<(String, Option<Follows>)>,
    looks: Looks,
    /// The directory's `stat` when there was nothing new in it, and nothing that could be filled in place.
    unchanged: Option<Stat>,
    /// When the last one was yielded.
    last: Option<Instant>,
    /// Since when there is none, over polls that failed.
    waits_since: Option<Instant>,
    /// Whether the last poll failed.
    has_failed: bool,
}

impl fmt::Debug for CheckpointWatcher {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("CheckpointWatcher")
            .field("path", &self.path)
            .field("timeout", &self.timeout)
            .field("min_interval", &self.min_interval)
            .field("poll", &self.poll)
            .finish_non_exhaustive()
    }
}

impl CheckpointWatcher {
    /// Watches the directory at `path`, which need not exist yet.
    pub fn new(path: impl Into<Location>) -> CheckpointWatcher {
        CheckpointWatcher::in_storage(Arc::new(Posix::default()), path)
    }

    /// Watches the directory at `location` in `storage`.
    ///
    /// ```
    /// # fn main() -> Result<(), Box<dyn std::error::Error>> {
    /// use std::sync::Arc;
    /// use std::time::Duration;
    /// use tch_checkpoint::repository::Memory;
    /// use tch_checkpoint::{Checkpoint, CheckpointWatcher, Counter};
    /// let memory = Arc::new(Memory::default());
    /// Checkpoint::in_storage(memory.clone()).track("step", &Counter::new(3))?.save("mem://run/ckpt")?;
    /// let mut watcher = CheckpointWatcher::in_storage(memory, "mem://run").timeout(Duration::ZERO);
    /// assert_eq!(watcher.next().ok_or("none")??.name, "ckpt-1");
    /// assert!(watcher.next().is_none());
    /// # Ok(())
    /// # }
    /// ```
    pub fn in_storage(storage: Arc<dyn Storage>, location: impl Into<Location>) -> CheckpointWatcher {
        let path = location.into();
        CheckpointWatcher {
            directory: CheckpointDirectory::in_storage(storage, &path),
            path,
            timeout: None,
            min_interval: Duration::ZERO,
            poll: Duration::from_secs(1),
            each: false,
            stop: None,
            yielded: HashSet::new(),
            looks: Looks::default(),
            unchanged: None,
            last: None,
            waits_since: None,
            has_failed: false,
        }
    }

    /// Sets the time without a new checkpoint after which the iterator ends. Defaults to never. It begins after the
    /// [minimum time between two items](CheckpointWatcher::min_interval), in which the directory is not read.
    #[must_use]
    pub fn timeout(mut self, timeout: Duration) -> CheckpointWatcher {
        self.timeout = Some(timeout);
        self
    }

    /// Sets the minimum time between two items. Defaults to 0.
    #[must_use]
    pub fn min_interval(mut self, interval: Duration) -> CheckpointWatcher {
        self.min_interval = interval;
        self
    }

    /// Sets the polling interval. Defaults to 1 second; at least 1 millisecond.
    #[must_use]
    pub fn poll(mut self, interval: Duration) -> CheckpointWatcher {
        self.poll = interval.max(Duration::from_millis(1));
        self
    }

    /// Yields every checkpoint that exists when it polls, oldest first, instead of only the newest.
    #[must_use]
    pub fn each(mut self) -> CheckpointWatcher {
        self.each = true;
        self
    }

    /// Ends the iterator when `stop` returns `true`. `stop` is called before every poll, and as often between two items.
    #[must_use]
    pub fn stop_when(mut self, stop: impl FnMut() -> bool + Send + 'static) -> CheckpointWatcher {
        self.stop = Some(Box::new(stop));
        self
    }

    fn has_to_stop(&mut self) -> bool {
        self.stop.as_mut().is_some_and(|stop| stop())
    }

    /// Returns the next new checkpoint. If the storage reports modification times, reads only what has changed.
    fn look(&mut self) -> Result<Option<CheckpointInfo>> {
        let settled = self.directory.settled();
        if settled.is_some() && settled == self.unchanged {
            return Ok(None);
        }
        self.unchanged = None;
        let (mut found, has_partial) = match self.directory.checkpoints_changed(&mut self.looks) {
            // It is being removed; the next poll will find out.
            Err(error) if error.is_damage() || matches!(error, Error::Removed { .. }) => return Ok(None),
            result => result?,
        };
        if !self.each {
            found.drain(..found.len().saturating_sub(1));
        }
        let is_new = |info: &CheckpointInfo| !self.yielded.contains(&(info.name.clone(), info.id.clone()));
        let new = found.into_iter().find(is_new);
        // What fills a directory that is there already, such as `cp -r`, does not change the time of this one.
        if new.is_none() && !has_partial {
            self.unchanged = settled;
        }
        Ok(new)
    }
}

/// An error means that a poll failed; the next call polls again, after the interval. Time in which polls fail counts for the
/// timeout.
impl Iterator for CheckpointWatcher {
    type Item = Result<CheckpointInfo>;

    fn next(&mut self) -> Option<Result<CheckpointInfo>> {
        while let Some(left) = self.last.and_then(|last| self.min_interval.checked_sub(last.elapsed()))
            && !left.is_zero()
        {
            if self.has_to_stop() {
                return None;
            }
            std::thread::sleep(left.min(self.poll));
        }
        let began = *self.waits_since.get_or_insert_with(Instant::now);
        let mut has_polled = std::mem::take(&mut self.has_failed);
        loop {
            if has_polled {
                let left = self.timeout.map(|timeout| timeout.saturating_sub(began.elapsed()));
                if left == Some(Duration::ZERO) {
                    self.waits_since = None;
                    return None;
                }
                std::thread::sleep(left.map_or(self.poll, |left| left.min(self.poll)));
            }
            if self.has_to_stop() {
                self.waits_since = None;
                return None;
            }
            match self.look() {
                Ok(Some(info)) => {
                    self.yielded.insert((info.name.clone(), info.id.clone()));
                    (self.last, self.waits_since) = (Some(Instant::now()), None);
                    return Some(Ok(info));
                }
                Ok(None) => has_polled = true,
                Err(error) => {
                    self.has_failed = true;
                    return Some(Err(error));
                }
            }
        }
    }
}
