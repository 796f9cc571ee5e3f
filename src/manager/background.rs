//! Saving behind the training loop: one save at a time is written by a thread of its own.

use super::commit::Commit;
use crate::error::{Error, Result};
use crate::format::Follows;
use crate::graph::{Gate, Hold};
use crate::save::{self, Capture, Header, Image, Plan, SaveOptions, Unchanged};
use crate::sync::Arc;
use crate::sync::thread::{Builder, JoinHandle};

/// How a manager saves in the background.
///
/// The call returns as soon as the state can no longer be torn: what only this crate's optimizers change is copied
/// behind the call, and the optimizer's next step waits for what is not copied yet; everything else is copied at the
/// call. The copy needs as much memory as the state; it is allocated once and reused.
///
/// ```
/// use tch_checkpoint::{Background, Overlap};
/// let background = Background::new().memory_budget(8 << 30).overlap(Overlap::Skip);
/// # let _ = background;
/// ```
#[derive(Debug, Clone)]
pub struct Background {
    pub(super) budget: u64,
    pub(super) overlap: Overlap,
}

impl Default for Background {
    fn default() -> Self {
        Background { budget: u64::MAX, overlap: Overlap::Wait }
    }
}

impl Background {
    /// Without a limit of memory, waiting when saves overlap.
    pub fn new() -> Background {
        Background::default()
    }

    /// A state of more bytes than this is not copied but saved before the call returns.
    pub fn memory_budget(mut self, bytes: u64) -> Self {
        self.budget = bytes;
        self
    }

    /// What happens when a save becomes due while the last one is still being written.
    pub fn overlap(mut self, overlap: Overlap) -> Self {
        self.overlap = overlap;
        self
    }
}

/// What happens when a save becomes due while the last one is still being written.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
#[non_exhaustive]
pub enum Overlap {
    /// The call waits for the last one.
    #[default]
    Wait,
    /// `save_if_due` does not save, and tries again at the next step. Other calls wait.
    Skip,
}

/// A save that is being written.
pub(super) struct InFlight {
    thread: JoinHandle<Result<()>>,
    capture: Arc<Capture>,
    /// The step that the next interval begins with if this save fails.
    before: Before,
}

/// What is to be saved, and what the thread that does it needs.
pub(super) struct Order {
    pub plan: Arc<Plan>,
    pub image: Image,
    pub unchanged: Unchanged,
    pub header: Header,
    pub commit: Commit,
    pub options: SaveOptions,
    pub before: Before,
}

/// Where a manager stood before a save.
pub(super) struct Before {
    /// The step that the next interval begins with.
    pub last_step: Option<u64>,
    pub save_counter: i64,
    /// The checkpoint that the next one follows.
    pub head: Option<Follows>,
    pub begun: bool,
}

impl InFlight {
    /// Copies what must be copied now, closes the gates for the rest, and lets a thread go on with it.
    pub(super) fn start(order: Order) -> Result<InFlight> {
        let Order { plan, image, unchanged, header, commit, options, before } = order;
        // The training needs the processors more.
        let options = SaveOptions { threads: options.threads.div_ceil(2), ..options };
        let lazy = plan.tensors.iter().map(|tensor| tensor.guarded).collect();
        let capture = Arc::new(Capture::begin(plan, image, lazy, |file| unchanged.has(file))?);
        for gate in &capture.plan.gates {
            gate.close(capture.clone());
        }
        let job = capture.clone();
        let work = move || write(&job, unchanged, header, commit, &options);
        let spawned = Builder::new().name("tch-checkpoint".into()).spawn(work);
        match spawned {
            Ok(thread) => Ok(InFlight { thread, capture, before }),
            Err(e) => {
                capture.finish();
                Err(Error::io("start a thread for", ".", e))
            }
        }
    }

    pub(super) fn is_finished(&self) -> bool {
        self.thread.is_finished()
    }

    /// Waits, and gives the memory back for the next save.
    pub(super) fn wait(self) -> (Image, Before, Result<()>) {
        let panicked = || Err(Error::object("save", "the thread that wrote the checkpoint panicked"));
        let result = self.thread.join().unwrap_or_else(|_| panicked());
        // When no step follows, the gates would hold the capture, and that the tensors and the gates, for ever.
        self.capture.plan.gates.iter().for_each(Gate::pass);
        (self.capture.take_image(), self.before, result)
    }
}

/// Everything that happens behind the call.
fn write(capture: &Capture, unchanged: Unchanged, header: Header, commit: Commit, options: &SaveOptions) -> Result<()> {
    capture.finish();
    if let Some(error) = capture.failure() {
        return Err(error);
    }
    commit.begin()?;
    let image = capture.image();
    let (directory, name) = (&commit.directory, &commit.name);
    let saved =
        save::save(&capture.plan, Some(&image), unchanged, directory, name, header, options, || commit.ready())?;
    commit.done(saved);
    Ok(())
}
