//! Background saves: a separate thread writes one save at a time.

use super::commit::Commit;
use crate::error::{Error, Result};
use crate::format::Follows;
use crate::graph::{self, Entered, Hold, Moment, changed_meanwhile};
use crate::name::{self, matches};
use crate::save::{Capture, Failure, Image, Lazy, Others, Plan, SaveRequest};
use crate::sync::thread::{Builder, JoinHandle};
use crate::sync::{Arc, Mutex, PoisonError};
use std::any::Any;
use std::collections::BTreeMap;
use std::time::Instant;

/// Options of background saves.
///
/// The call returns as soon as a consistent snapshot is guaranteed. Tensors that only objects of this crate change
/// (variables that require a gradient and are stepped by a tracked `Optimizer`, its slots, the averages of `Ema` and
/// `Swa`) are copied after the call has returned. Everything else, such as buffers, frozen variables and values, is
/// copied during the call, or compared with the last checkpoint if its version counters are unchanged. The copy needs
/// as much memory as the state; it is allocated once and reused.
///
/// # Writers
///
/// A writer to memory that is still being copied waits and helps to copy. The optimizers, averages and restores of this
/// crate do so on their own; everything else does because libtorch calls a hook before it hands out CPU memory for
/// writing. Therefore tch's own optimizers, `copy_`, writes through `Tensor::data` or through a view, code under
/// `no_grad`, and `Tensor::data_ptr` after the call are safe on every thread, and so are calls that give a variable new
/// memory (`half`, `set_data`, `resize_`): the checkpoint has the state at the time of the call. Operations that
/// request memory as writable without writing to it wait as well, such as a forward pass of oneDNN's LSTM.
///
/// The hook does not detect:
///
/// * a write through a raw pointer that was taken before the call, or by another owner of memory from
///   `Tensor::from_blob`;
/// * a write on another thread that is in progress when the save is called (a step of a tracked optimizer on another thread is
///   detected: the save is tried again, or fails; call saves and steps on one thread, or hold a lock around each);
/// * writes to the memory of a GPU;
/// * a write to new memory of a variable, which only its version counter shows.
///
/// Before such a change to a variable that a tracked optimizer steps, call [`Gate::pass`](crate::Gate::pass) of
/// `optim::Optimizer::gate` or [`CheckpointManager::wait`](crate::CheckpointManager::wait), or set
/// [`copy_at_call`](Background::copy_at_call). Otherwise it is detected: libtorch's version counters and up to 8,192
/// elements, read during the call, are compared when the copy is complete. The save then fails with an error that names
/// the tensor, nothing is committed, and from the next save of this process on the component is copied during the call;
/// for the next process, set `copy_at_call`. A write is not detected if it changes no version counter and none of these
/// elements, and happens before the copy is complete. GPU memory is checked by version counters only.
///
/// ```
/// use tch_checkpoint::{Background, WhenBusy};
/// let background = Background::new().memory_budget(8 << 30).when_busy(WhenBusy::Skip);
/// # let _ = background;
/// ```
#[derive(Debug, Clone)]
pub struct Background {
    pub(super) budget: u64,
    pub(super) when_busy: WhenBusy,
    /// Patterns of keys that are copied during the call.
    at_call: Vec<String>,
    others: Others,
}

impl Default for Background {
    fn default() -> Self {
        Background {
            budget: u64::MAX,
            when_busy: WhenBusy::Wait,
            at_call: Vec::new(),
            others: Others { wait: true, watched: true },
        }
    }
}

impl Background {
    /// Creates options without a memory limit that wait when saves overlap.
    #[must_use]
    pub fn new() -> Background {
        Background::default()
    }

    /// Sets the maximum size of the copy in bytes. A larger state is saved before the call returns. Not limited by
    /// default.
    #[must_use]
    pub fn memory_budget(mut self, bytes: u64) -> Self {
        self.budget = bytes;
        self
    }

    /// What happens when a save becomes due while the last one is still being written.
    #[must_use]
    pub fn when_busy(mut self, when_busy: WhenBusy) -> Self {
        self.when_busy = when_busy;
        self
    }

    /// Copies tensors whose key matches `pattern` before the call returns, for tensors that are changed by writers that
    /// do not wait. In a pattern, `*` matches any text, including `/`. Can be called several times.
    ///
    /// ```
    /// use tch_checkpoint::Background;
    /// // The head is also changed by hand, between steps.
    /// let background = Background::new().copy_at_call("head/*");
    /// # let _ = background;
    /// ```
    #[must_use]
    pub fn copy_at_call(mut self, pattern: impl Into<String>) -> Self {
        self.at_call.push(pattern.into());
        self
    }

    /// Commits without detection; for tests of the detection.
    #[doc(hidden)]
    #[must_use]
    pub fn without_detection(mut self) -> Self {
        self.others.watched = false;
        self
    }

    /// Disables the hooks; for tests of the detection.
    #[doc(hidden)]
    #[must_use]
    pub fn without_hooks(mut self) -> Self {
        self.others.wait = false;
        self
    }

    /// Returns what may be copied after the call has returned.
    fn lazy(&self, plan: &Plan) -> Result<Arc<Lazy>> {
        let at_call = |key: &str| self.at_call.iter().any(|pattern| matches(pattern, key));
        plan.lazy(|tensor| tensor.guarded && !at_call(&tensor.key))
    }

    /// Copies the component of `key` during the call from the next plan on.
    pub(super) fn do_not_trust(&mut self, key: &str) {
        let component = name::component(key);
        log::warn!(
            "{key} was changed by something that does not wait for saves in the background: from now on {component:?} is \
             copied at the call (`Background::copy_at_call`)"
        );
        self.at_call.extend([component.to_string(), name::join(component, "*")]);
    }
}

/// What happens when a save becomes due while the last one is still being written.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
#[non_exhaustive]
pub enum WhenBusy {
    /// The call waits for the last one.
    #[default]
    Wait,
    /// `save_if_due` does not save, and tries again at the next step. Other calls wait.
    Skip,
}

/// The result of a save. The inner result is that of the functions that were called when it was durable.
type Written = std::result::Result<Result<()>, Failure>;

/// A save that is being written.
pub(super) struct InFlight {
    thread: JoinHandle<Written>,
    capture: Arc<Capture>,
    entered: Arc<Mutex<Option<Entered>>>,
    /// The state to return to if this save fails.
    before: Before,
}

/// A pinned state, before it is copied.
pub(super) struct Taken {
    entered: Entered,
    pub capture: Arc<Capture>,
    /// What showed, before and after, that no writer changed what was pinned.
    pub moment: Moment,
}

/// What became of an attempt to pin a state.
pub(super) enum Attempt {
    Taken(Taken),
    /// The plan no longer fits the tensors.
    Unfit,
    /// A step on another thread has changed the value of this key meanwhile.
    Moved(String),
}

impl Taken {
    /// Pins everything that may be copied later. Checks whether the plan fits the tensors if it `is_checked`.
    pub(super) fn begin(
        plan: &Arc<Plan>,
        is_checked: bool,
        image: &mut Image,
        background: &Background,
    ) -> Result<Attempt> {
        // A step holds its optimizer's lock while it waits for captures, so values are not read behind the gates.
        let moment = plan.moment()?;
        let lazy = background.lazy(plan)?;
        image.fit(plan, |file| lazy.is_in(file).then_some(true))?;
        let mut seen = lazy.spare_seen();
        plan.survey().look_alone(Arc::make_mut(&mut seen));
        let begin = || {
            let begun = Capture::begin(plan.clone(), lazy, seen, is_checked, image, background.others);
            begun.map_err(Some)?.ok_or(None)
        };
        match graph::enter(&plan.gates, begin) {
            Ok((entered, capture)) => match plan.changed_since(&moment).transpose() {
                None => Ok(Attempt::Taken(Taken { entered, capture, moment })),
                Some(key) => {
                    *image = give_up(entered, &capture);
                    key.map(Attempt::Moved)
                }
            },
            Err(None) => Ok(Attempt::Unfit),
            Err(Some(error)) => Err(error),
        }
    }
}

/// Ends a capture that is not saved. Returns the memory for the next one. A writer that waits may be copying into it.
fn give_up(entered: Entered, capture: &Capture) -> Image {
    capture.cancel();
    drop(entered);
    capture.take_image()
}

/// A save for the background thread.
pub(super) struct Order {
    pub taken: Taken,
    pub request: SaveRequest,
    pub commit: Commit,
    pub before: Before,
}

/// The state of a manager before a save.
pub(super) struct Before {
    /// The identity of the checkpoint that is being saved.
    pub id: Follows,
    /// The step from which the next interval is counted.
    pub last_step: Option<u64>,
    /// Whether a restore bypassed the manager after that.
    pub restored_past: bool,
    /// The save that was due then.
    pub owed: Option<u64>,
    pub save_counter: u64,
    /// The checkpoint that the next one follows.
    pub head: Option<Follows>,
    pub begun: bool,
    /// The metadata of the save.
    pub metadata: BTreeMap<String, serde_json::Value>,
    /// When the previous save was made.
    pub last_save_at: Instant,
    /// Whether its success ends a row of failures.
    pub ends_failures: bool,
}

impl InFlight {
    /// Copies what must be copied during the call, and starts the background thread. After an error, `image` is the
    /// memory for the next save.
    pub(super) fn start(order: Order, image: &mut Image) -> Result<InFlight> {
        let Order { taken: Taken { entered, capture, moment }, request, commit, before } = order;
        let mut request = request.with_values(&moment.values);
        if let Err(error) = copy_during_call(&mut request, &capture, &commit, &moment) {
            *image = give_up(entered, &capture);
            return Err(error);
        }
        let entered = Arc::new(Mutex::new(Some(entered)));
        let (job, registered) = (capture.clone(), entered.clone());
        let work = move || write(&job, &registered, request, commit);
        let spawned = Builder::new().name("tch-checkpoint".into()).spawn(work);
        match spawned {
            Ok(thread) => Ok(InFlight { thread, capture, entered, before }),
            Err(e) => {
                capture.cancel();
                leave(&entered);
                *image = capture.take_image();
                Err(Error::Thread { task: "write the checkpoint", source: e })
            }
        }
    }

    /// The call that began it succeeded: with the save, a row of failures of such calls ends.
    pub(super) fn ends_failures(&mut self) {
        self.before.ends_failures = true;
    }

    pub(super) fn is_finished(&self) -> bool {
        self.thread.is_finished()
    }

    /// Waits for the save. Returns the memory for the next one.
    pub(super) fn wait(self) -> (Image, Before, Written) {
        let panicked = |panic: Box<dyn Any + Send>| Err(Error::panicked("write the checkpoint", &*panic).into());
        let result = self.thread.join().unwrap_or_else(panicked);
        // If the thread panicked, the registry would hold the capture and its tensors forever.
        leave(&self.entered);
        (self.capture.take_image(), self.before, result)
    }
}

/// Copies what must be copied during the call. The other tensors were captured at this `moment`.
fn copy_during_call(request: &mut SaveRequest, capture: &Capture, commit: &Commit, moment: &Moment) -> Result<()> {
    request.capture_now(capture, &commit.directory)?;
    // What was copied just now is of the same step.
    if capture.copies_now()
        && let Some(key) = capture.plan.changed_since(moment)?
    {
        return Err(changed_meanwhile(&key));
    }
    Ok(())
}

fn leave(entered: &Mutex<Option<Entered>>) {
    drop(entered.lock().unwrap_or_else(PoisonError::into_inner).take());
}

/// Writes the save on the background thread.
fn write(capture: &Capture, entered: &Mutex<Option<Entered>>, request: SaveRequest, commit: Commit) -> Written {
    capture.finish();
    leave(entered);
    if let Some(failure) = capture.failure() {
        return Err(failure);
    }
    let image = capture.image();
    commit.save(request, Some(&image)).map_err(Failure::from)
}

#[cfg(all(test, not(shuttle)))]
mod tests {
    use super::*;
    use crate::dtype::{Dtype, TensorSpec};
    use crate::error::BoxError;
    use crate::graph::{
        Child, Collection, Gate, Guarded, Identity, Node, TensorBytes, TensorLeaf, TensorTarget, ValueApply, ValueLeaf,
    };
    use crate::save::{SaveOptions, plan};
    use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
    use std::thread;
    use std::time::Duration;

    /// A writer, whose thread helps to copy while the save reads the number of steps a second time.
    #[derive(Clone, Default)]
    struct Stepping(Arc<State>);

    #[derive(Default)]
    struct State {
        gate: Gate,
        steps: AtomicU64,
        is_copying: AtomicBool,
        helper: Mutex<Option<thread::JoinHandle<()>>>,
    }

    type Outcome<T> = std::result::Result<T, BoxError>;

    const HELPER: &str = "helps while a save gives up";

    impl Collection for Stepping {
        fn children(&self) -> Outcome<Vec<Child>> {
            Ok(vec![Child::new("steps", Node::value(self.clone()))])
        }

        fn guarded(&self) -> Option<Guarded> {
            Some(Guarded::new(self.0.gate.clone(), [64, 128]))
        }
    }

    impl ValueLeaf for Stepping {
        fn save(&self) -> Outcome<serde_json::Value> {
            let steps = self.0.steps.fetch_add(1, Ordering::SeqCst);
            if steps == 1 {
                let gate = self.0.gate.clone();
                let helper = thread::Builder::new().name(HELPER.into()).spawn(move || gate.pass())?;
                *self.0.helper.lock().unwrap() = Some(helper);
                while !self.0.is_copying.load(Ordering::SeqCst) {
                    thread::yield_now();
                }
            }
            Ok(steps.into())
        }

        fn load(&self, _: &serde_json::Value) -> Outcome<ValueApply> {
            Err("read only".into())
        }
    }

    /// A tensor at an address, which takes a while to copy.
    struct Slow(Stepping, usize);

    impl TensorLeaf for Slow {
        fn spec(&self) -> Outcome<TensorSpec> {
            Ok(TensorSpec::new(Dtype::U8, [3]))
        }

        fn identity(&self) -> Option<Identity> {
            Some(Identity::new("slow", self.1, TensorSpec::new(Dtype::U8, [3]), vec![1]))
        }

        fn bytes(&self) -> Outcome<Box<dyn TensorBytes>> {
            self.0.0.is_copying.store(true, Ordering::SeqCst);
            thread::sleep(Duration::from_millis(100));
            Ok(Box::new(vec![1, 2, 3]))
        }

        fn target(&self) -> Outcome<Box<dyn TensorTarget>> {
            Err("read only".into())
        }
    }

    #[test]
    fn a_writer_may_still_be_copying_when_a_save_gives_up() {
        static PANICKED: AtomicBool = AtomicBool::new(false);
        let other = std::panic::take_hook();
        std::panic::set_hook(Box::new(move |info| match thread::current().name() {
            Some(HELPER) => PANICKED.store(true, Ordering::SeqCst),
            _ => other(info),
        }));
        let stepping = Stepping::default();
        let tensor = |address| Node::tensor(Slow(stepping.clone(), address));
        let objects = [
            ("steps".to_string(), Node::collection(stepping.clone())),
            ("one".to_string(), tensor(64)),
            ("two".to_string(), tensor(128)),
        ];
        let plan = Arc::new(plan(&objects, &SaveOptions::default()).unwrap());
        let attempt = Taken::begin(&plan, false, &mut Image::default(), &Background::new()).unwrap();
        assert!(matches!(attempt, Attempt::Moved(key) if key == "steps/steps"));
        let helper = stepping.0.helper.lock().unwrap().take().unwrap();
        helper.join().unwrap();
        assert!(!PANICKED.load(Ordering::SeqCst), "the memory was taken from a thread that was copying into it");
    }
}
