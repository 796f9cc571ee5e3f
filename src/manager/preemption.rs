//! A request to end soon: by a signal, a wall-time limit, or the program.

use super::retention::CheckpointInfo;
use super::{CheckpointManager, Next};
use crate::error::{Error, Result};
use crate::location::Location;
use crate::name::nearest_hint;
use crate::save::SaveClock;
use std::collections::{BTreeMap, BTreeSet};

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, OnceLock};
#[cfg(feature = "signals")]
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

/// A request to end soon, upon which a manager saves and the training loop stops. Clones share it, so that it can be
/// polled from anywhere, even inside a long step.
///
/// ```
/// # fn main() -> Result<(), Box<dyn std::error::Error>> {
/// # let temp = tempfile::tempdir()?;
/// # let dir = temp.path().join("run");
/// use std::time::Duration;
/// use tch_checkpoint::{Checkpoint, CheckpointManager, Counter, Preemption};
///
/// let preemption = Preemption::new().after(Duration::from_secs(12 * 3600));
/// // With the feature `signals`: .on_signals([Signal::Term, Signal::Usr1])?
/// let step = Counter::new(0);
/// let checkpoint = Checkpoint::new().track("step", &step)?;
/// let mut manager =
///     CheckpointManager::builder(checkpoint, &dir).save_every(1000).preemption(preemption.clone()).open()?;
/// while step.get() < 100 {
///     step.increment();
/// #   if step.get() == 7 { preemption.request(); }
///     manager.save_if_due(step.get())?; // saves when the end was requested
///     if manager.should_stop() {
///         break;
///     }
/// }
/// manager.close()?;
/// # assert_eq!(step.get(), 7);
/// # assert!(dir.join("ckpt-7").exists());
/// # Ok(())
/// # }
/// ```
#[derive(Debug, Clone, Default)]
pub struct Preemption {
    requested: Arc<AtomicBool>,
    signalled: Arc<AtomicBool>,
    /// The signals that have a handler of this request. With a second one, the first signal would count as two.
    #[cfg(feature = "signals")]
    handled: Arc<Mutex<BTreeSet<i32>>>,
    deadline: Option<Instant>,
    /// When the request was made, other than by the deadline.
    since: Arc<OnceLock<Instant>>,
    grace: Option<Duration>,
    /// The components to save last, if not all of them.
    only: Option<Arc<BTreeSet<String>>>,
}

/// A signal that asks a process to end.
#[cfg(feature = "signals")]
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[non_exhaustive]
pub enum Signal {
    /// `SIGTERM`: sent by batch systems and container runtimes before they kill a process.
    Term,
    /// `SIGINT`: Ctrl+C in a terminal.
    Int,
    /// `SIGHUP`: the terminal was closed.
    Hup,
    /// `SIGUSR1`: sent by `sbatch --signal=USR1@120` 120 seconds before the end.
    Usr1,
    /// `SIGUSR2`.
    Usr2,
}

#[cfg(feature = "signals")]
impl Signal {
    pub(super) fn number(self) -> i32 {
        use signal_hook::consts::{SIGHUP, SIGINT, SIGTERM, SIGUSR1, SIGUSR2};
        match self {
            Signal::Term => SIGTERM,
            Signal::Int => SIGINT,
            Signal::Hup => SIGHUP,
            Signal::Usr1 => SIGUSR1,
            Signal::Usr2 => SIGUSR2,
        }
    }
}

impl Preemption {
    /// Creates a request that has not been made.
    #[must_use]
    pub fn new() -> Preemption {
        Preemption::default()
    }

    /// Requests the end when this much time has passed from now on. Set it to the wall-time limit less the duration of
    /// the last save.
    #[must_use]
    pub fn after(mut self, limit: Duration) -> Preemption {
        self.deadline = Instant::now().checked_add(limit);
        self
    }

    /// Sets how long the process may run after the request, which [`save_only`](Preemption::save_only) takes into
    /// account. The time counts from the arrival of the signal, from the end of the wall-time limit, or from
    /// [`request`](Preemption::request), whichever is first, on a clock that is never set back.
    /// [`time_left`](Preemption::time_left) returns the rest of it.
    #[must_use]
    pub fn grace(mut self, grace: Duration) -> Preemption {
        self.grace = Some(grace);
        self
    }

    /// Sets the components, such as the weights, that are saved if the full state would take too long. Without
    /// [`grace`](Preemption::grace), always saves only these. With it, the full state is saved if twice the duration of
    /// the last save of this process fits into the remaining time, or if it has not saved yet.
    ///
    /// Until then, a save fails if no object of one of these names is tracked. The last save leaves out names that are
    /// no longer tracked; if none is, it saves the full state.
    ///
    /// The checkpoint is marked as incomplete. [`restore_or_initialize`](CheckpointManager::restore_or_initialize)
    /// skips it, because the run could not be resumed exactly, unless
    /// [`restore_incomplete`](crate::CheckpointManagerBuilder::restore_incomplete) is set. The newest complete
    /// checkpoint is kept as well.
    ///
    /// ```
    /// use std::time::Duration;
    /// use tch_checkpoint::Preemption;
    /// let preemption = Preemption::new().grace(Duration::from_secs(30)).save_only(["model", "step"]);
    /// # let _ = preemption;
    /// ```
    #[must_use]
    pub fn save_only<N: Into<String>>(mut self, components: impl IntoIterator<Item = N>) -> Preemption {
        self.only = Some(Arc::new(components.into_iter().map(Into::into).collect()));
        self
    }

    /// Requests the end when one of these signals arrives. The handler only sets a flag and wakes a thread, which
    /// records the time of the first signal for [`grace`](Preemption::grace). A second signal ends the process
    /// immediately, with the exit code 128 plus the signal's number; durable checkpoints are not affected.
    ///
    /// Without this call, the crate installs no handler. The handlers stay until the process ends, and the thread until a
    /// signal arrives. Previously installed handlers are called as well. A signal that this request, or a clone of it,
    /// handles already is ignored.
    ///
    /// # Errors
    /// [`Error::Io`] if the system refuses a handler or the thread.
    #[cfg(feature = "signals")]
    pub fn on_signals(self, signals: impl IntoIterator<Item = Signal>) -> Result<Preemption> {
        let handled = self.handled.clone();
        let mut handled = handled.lock().unwrap_or_else(PoisonError::into_inner);
        let mut new = BTreeSet::new();
        let mut signals: Vec<Signal> = signals.into_iter().collect();
        signals.retain(|signal| !handled.contains(&signal.number()) && new.insert(signal.number()));
        if signals.is_empty() {
            return Ok(self);
        }
        self.note_time_of(&signals)
            .map_err(|e| Error::io("set a handler for", format!("the signals {signals:?}"), e))?;
        for signal in signals {
            let number = signal.number();
            let refused = |e| Error::io("set a handler for", format!("the signal {signal:?}"), e);
            // In this order, so that the second signal finds the flag set.
            signal_hook::flag::register_conditional_shutdown(number, 128 + number, self.signalled.clone())
                .map_err(refused)?;
            signal_hook::flag::register(number, self.signalled.clone()).map_err(refused)?;
            handled.insert(number);
        }
        Ok(self)
    }

    /// Starts a thread that records when the first of these signals arrives. It waits on a pipe to which the handler
    /// writes.
    #[cfg(feature = "signals")]
    fn note_time_of(&self, signals: &[Signal]) -> std::io::Result<()> {
        let mut arrivals = signal_hook::iterator::Signals::new(signals.iter().map(|signal| signal.number()))?;
        let since = self.since.clone();
        let watch = move || {
            if arrivals.forever().next().is_some() {
                since.get_or_init(Instant::now);
            }
        };
        std::thread::Builder::new().name("preemption".to_string()).spawn(watch).map(drop)
    }

    /// Requests the end.
    pub fn request(&self) {
        self.since.get_or_init(Instant::now);
        self.requested.store(true, Ordering::Relaxed);
    }

    /// Returns `true` once the end has been requested, and ever after.
    pub fn is_requested(&self) -> bool {
        let is_told = self.requested.load(Ordering::Relaxed) || self.signalled.load(Ordering::Relaxed);
        if is_told {
            // The thread may not have recorded it yet.
            self.since.get_or_init(Instant::now);
        }
        is_told || self.reached_deadline().is_some()
    }

    /// Returns how much of the [`grace`](Preemption::grace) is left. `None` if none is set, or if the end is not
    /// requested.
    ///
    /// ```
    /// use std::time::Duration;
    /// use tch_checkpoint::Preemption;
    /// let preemption = Preemption::new().grace(Duration::from_secs(30));
    /// assert_eq!(preemption.time_left(), None);
    /// preemption.request();
    /// assert!(preemption.time_left() <= Some(Duration::from_secs(30)));
    /// ```
    #[must_use]
    pub fn time_left(&self) -> Option<Duration> {
        if !self.is_requested() {
            return None;
        }
        let since = self.since.get().copied().into_iter().chain(self.reached_deadline()).min();
        Some(self.grace?.saturating_sub(since.map_or(Duration::ZERO, |since| since.elapsed())))
    }

    /// Returns the end of the wall-time limit, if it has passed.
    fn reached_deadline(&self) -> Option<Instant> {
        self.deadline.filter(|deadline| Instant::now() >= *deadline)
    }

    /// Returns the components to save if a full save, judging by the duration of the last one, would not be durable in
    /// time.
    fn components(&self, last_took: Option<Duration>) -> Option<&BTreeSet<String>> {
        let only = self.only.as_deref()?;
        let Some(left) = self.time_left().or(self.grace) else { return Some(only) };
        // Before the first save, there is nothing from which the run could be resumed, so the full state is worth the
        // risk.
        let needed = last_took.map_or(Duration::ZERO, |took| took.saturating_mul(2));
        (left < needed).then_some(only)
    }
}

impl CheckpointManager {
    /// Saves as much as the remaining time allows. Returns when it is durable.
    ///
    /// # Errors
    /// Any error that prevents the save. The loop ends anyway.
    pub(super) fn save_for_end(
        &mut self,
        number: u64,
        metrics: Option<impl FnOnce() -> BTreeMap<String, f64>>,
    ) -> Result<Location> {
        self.has_to_stop = true;
        // As a run that goes on does, before the result of the save in flight is known.
        let metrics = self.metrics_for_end(number, metrics);
        let (clock, settled) = self.settle_before(SaveClock::start());
        if let Err(error) = settled {
            // The present state does not need that save.
            log::error!("the save before the last one returned an error: {error:#}");
        }
        // The call waits in any case, and a save that it makes itself reports every error.
        let background = self.background.take();
        let saved = self.save_in_time(clock, number, metrics);
        self.background = background;
        self.saved_for_end = saved.is_ok();
        saved
    }

    fn save_in_time(&mut self, clock: SaveClock, number: u64, metrics: BTreeMap<String, f64>) -> Result<Location> {
        let last_took = self.ledger().last_took;
        let only = self.preemption.as_ref().and_then(|preemption| preemption.components(last_took)).cloned();
        let only = only.map(|only| self.tracked_of(only)).filter(|only| !only.is_empty());
        // A complete checkpoint of this step is kept.
        let name = format!("{}-{number}", self.name);
        let is_there = self.ledger().known.iter().any(|found| found.entry.name == name);
        let Some(only) = only.filter(|_| !is_there) else {
            return self.save_step(clock, number, metrics);
        };
        self.settle()?;
        self.look_at_restores();
        self.look_before_a_run_begins()?;
        let (plan, seen, without) = self.checkpoint.plan_only(&only, &self.options)?;
        let next = CheckpointInfo { without: without.clone(), ..self.next_at(number, &metrics) };
        self.with_room(next, |manager| {
            let superseded = manager.superseded_by(Some(&name))?;
            let counter = manager.checkpoint.next_save()?;
            let (metrics, without) = (metrics.clone(), without.clone());
            let clock = clock.clone();
            let next = Next { metrics, superseded, without, clock, ..Next::new(number, Some(number), counter) };
            manager.save_planned(next, plan.clone(), seen.clone(), None)
        })
    }

    /// Returns an error if [`Preemption::save_only`] names an object that is not tracked, before the last save would.
    pub(super) fn check_save_only(&self) -> Result<()> {
        let only = self.preemption.as_ref().and_then(|preemption| preemption.only.as_deref());
        let mut only = only.filter(|_| !self.has_to_stop).into_iter().flatten();
        only.try_for_each(|name| self.must_be_tracked(name))
    }

    /// Removes the names that are not tracked.
    fn tracked_of(&self, mut only: BTreeSet<String>) -> BTreeSet<String> {
        only.retain(|name| self.must_be_tracked(name).inspect_err(|error| log::error!("{error:#}")).is_ok());
        only
    }

    fn must_be_tracked(&self, name: &str) -> Result<()> {
        let objects = self.checkpoint.objects();
        let mut tracked = objects.iter().map(|(name, _)| name.as_str());
        if tracked.clone().any(|tracked| tracked == name) {
            return Ok(());
        }
        let hint = nearest_hint(name, &mut tracked);
        Err(Error::object(
            name,
            format!("`Preemption::save_only` names it, and no object of this name is tracked{hint}"),
        ))
    }
}
