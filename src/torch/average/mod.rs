//! Averages of variables: [`Ema`] and [`Swa`].

mod state;
mod track;

use crate::error::{Error, Result};
use crate::graph::{Gate, Node, Trackable};
use crate::torch::variables::Variables;
use state::{Shared, State, Swapped};
use std::collections::BTreeMap;
use std::fmt;
use tch::Tensor;

/// The exponential moving average of a model's variables: for evaluation, for publishing, and for target networks.
///
/// Every [`update`](Ema::update) sets each average to `decay * average + (1 - decay) * variable`, by libtorch's `lerp`
/// kernels, as PyTorch's `get_ema_multi_avg_fn` does. Averages start with the values of the variables when the `Ema` is
/// created. Variables that are added to the store later, or of [`Variables::trainable`] unfrozen later, are included by
/// the next update. A variable that is frozen later keeps its average. A restore creates the averages of frozen variables
/// that the checkpoint has, and removes those that it lacks. Averages of half precision, bfloat16 and floating-point types of
/// 8 bits are kept in single precision: a step of `1 - decay` is too small for these types.
///
/// Buffers (variables that the store does not list as trainable, such as the statistics of batch normalization) are
/// copied at every update, unless [`average_buffers`](Ema::average_buffers) is set. Integers are always copied.
///
/// ```no_run
/// use tch::{Device, nn};
/// use tch_checkpoint::{Checkpoint, Ema, Variables};
///
/// # fn main() -> tch_checkpoint::Result<()> {
/// # fn evaluate() -> f64 { 0.0 }
/// let vs = nn::VarStore::new(Device::Cpu);
/// let layer = nn::linear(vs.root(), 4, 1, Default::default());
/// let mut ema = Ema::new(&vs, 0.999)?.warm_up();
/// let checkpoint = Checkpoint::new().track("model", Variables::of(&vs))?.track("ema", &ema)?;
/// for _ in 0..100 {
///     // optimizer.backward_step(&loss);
///     ema.update()?;
/// }
/// let accuracy = ema.with_averaged(evaluate)?;
/// # let _ = (layer, checkpoint, accuracy);
/// # Ok(())
/// # }
/// ```
///
/// # What is saved
///
/// Averages are saved under the names of their variables, so that `VarStore::load` reads `ema.safetensors` as it reads
/// `model.safetensors`. [`export_weights`](crate::Checkpoint::export_weights) with
/// [`WeightsExport::of(["ema"])`](crate::WeightsExport::of) writes the averages alone. The value `averaging` has the
/// number of calls and of updates. Decay and the other options are not saved. A checkpoint without the `Ema` is
/// restored with [`RestoreOptions::allow_missing`](crate::RestoreOptions::allow_missing); call [`reset`](Ema::reset)
/// afterwards, so that the averages start with the restored variables.
///
/// A background save may copy the averages while training continues: an update waits for it, as the step of an
/// optimizer does. A save or restore within [`with_averaged`](Ema::with_averaged) is an error.
///
/// If libtorch fails when some averages or variables have changed and others have not, no checkpoint saves them any more,
/// until a restore or a [rollback](crate::Checkpoint::rollback) overwrites both, or they get new values and
/// [`Checkpoint::reinitialized`](crate::Checkpoint::reinitialized) is called with each.
///
/// # Target networks
///
/// The target of a reinforcement learning algorithm (Polyak averaging with `tau = 1 - decay`) is an `Ema` whose
/// averages are the variables of a second model: see [`for_target`](Ema::for_target).
pub struct Ema {
    shared: Shared,
    decay: f64,
    warm_up: bool,
    every: u64,
}

impl Ema {
    /// Creates averages of the variables of a `VarStore` (`&vs`), or of some of them
    /// (`Variables::of(&vs).under("encoder")`).
    ///
    /// # Errors
    ///
    /// [`Error::InvalidArgument`] if `decay` is not within `0.0 ..= 1.0`. [`Error::Object`] for a variable that cannot
    /// be saved.
    pub fn new(variables: impl Into<Variables>, decay: f64) -> Result<Ema> {
        Ema::with(State::new(variables.into(), None)?, decay)
    }

    /// Creates averages that are the variables of another model, the target network. They are set to the values of the
    /// variables of the same names immediately, and moved towards them by every update.
    ///
    /// Nothing else may train or modify the target. It need not be tracked: tracking the `Ema` saves its variables.
    ///
    /// ```no_run
    /// # fn main() -> tch_checkpoint::Result<()> {
    /// use tch::{Device, nn};
    /// use tch_checkpoint::Ema;
    ///
    /// let (online, mut target) = (nn::VarStore::new(Device::Cpu), nn::VarStore::new(Device::Cpu));
    /// let critic = nn::linear(online.root(), 4, 1, Default::default());
    /// let target_critic = nn::linear(target.root(), 4, 1, Default::default());
    /// target.freeze();
    /// let tau = 0.005;
    /// let mut polyak = Ema::for_target(&online, &target, 1.0 - tau)?;
    /// // after every step of the optimizer:
    /// polyak.update()?;
    /// # let _ = (critic, target_critic);
    /// # Ok(())
    /// # }
    /// ```
    ///
    /// # Errors
    ///
    /// As for [`new`](Ema::new), and [`Error::Object`] for a variable that the target lacks or has in another shape.
    pub fn for_target(variables: impl Into<Variables>, target: impl Into<Variables>, decay: f64) -> Result<Ema> {
        Ema::with(State::new(variables.into(), Some(target.into()))?, decay)
    }

    fn with(state: State, decay: f64) -> Result<Ema> {
        Ok(Ema { shared: Shared::new(state), decay: checked(decay)?, warm_up: false, every: 1 })
    }

    /// Starts with a small decay: update `n`, counted from 0, uses the smaller of the decay and `(1 + n) / (10 + n)`,
    /// as `tf.train.ExponentialMovingAverage` does with `num_updates`. The averages then forget the initial values
    /// quickly.
    #[must_use]
    pub fn warm_up(mut self) -> Ema {
        self.warm_up = true;
        self
    }

    /// Updates the averages only in every `n`-th call of [`update`](Ema::update). Defaults to 1; 0 is taken as 1.
    #[must_use]
    pub fn every(mut self, n: u64) -> Ema {
        self.every = n.max(1);
        self
    }

    /// Averages floating-point buffers like trainable variables. By default, buffers are copied.
    #[must_use]
    pub fn average_buffers(self) -> Ema {
        self.shared.lock().average_buffers = true;
        self
    }

    /// Moves the averages towards the variables. Call it after every step of the optimizer.
    ///
    /// # Errors
    ///
    /// [`Error::Object`] for a variable whose shape has changed; no average is changed then. If libtorch fails half-way, the
    /// averages are not saved any more, as described for [`Ema`].
    pub fn update(&mut self) -> Result<()> {
        let mut state = self.shared.lock();
        let calls = state.progress.calls.saturating_add(1);
        if calls.is_multiple_of(self.every) {
            let n = state.progress.updates;
            state.update(1.0 - self.decay_of(n))?;
            state.progress.updates = n.saturating_add(1);
        } else {
            state.ready()?;
        }
        state.progress.calls = calls;
        Ok(())
    }

    fn decay_of(&self, n: u64) -> f64 {
        let n = n as f64;
        if self.warm_up { self.decay.min((1.0 + n) / (10.0 + n)) } else { self.decay }
    }

    /// Returns the decay after the warm-up.
    #[must_use]
    pub fn decay(&self) -> f64 {
        self.decay
    }

    /// Sets the decay. Not saved: set it again after a restart.
    ///
    /// # Errors
    ///
    /// [`Error::InvalidArgument`] if `decay` is not within `0.0 ..= 1.0`.
    pub fn set_decay(&mut self, decay: f64) -> Result<()> {
        self.decay = checked(decay)?;
        Ok(())
    }
}

fn checked(decay: f64) -> Result<f64> {
    match (0.0..=1.0).contains(&decay) {
        true => Ok(decay),
        false => Err(Error::InvalidArgument(format!(
            "the decay of an average is {decay}; it must be within 0 and 1, such as 0.999"
        ))),
    }
}

/// The uniform average of a model's variables over several points of the training: stochastic weight averaging
/// (Izmailov et al., "Averaging Weights Leads to Wider Optima and Better Generalization", 2018).
///
/// Every [`update`](Swa::update) moves each average by `1 / (n + 1)` of its difference from the variable, `n` being the
/// number of updates before, as PyTorch's `get_swa_multi_avg_fn` does. The first update copies the variables. Buffers
/// are copied unless [`average_buffers`](Swa::average_buffers) is set: recompute the statistics of batch normalization
/// with averaged variables before relying on them.
///
/// Saving and background saves work as for [`Ema`].
///
/// ```no_run
/// # fn main() -> tch_checkpoint::Result<()> {
/// # let vs = tch::nn::VarStore::new(tch::Device::Cpu);
/// use tch_checkpoint::Swa;
/// let mut swa = Swa::new(&vs)?;
/// for epoch in 0..100 {
///     // one epoch of training
///     if epoch >= 75 {
///         swa.update()?;
///     }
/// }
/// swa.apply()?; // the variables are the averages from now on
/// # Ok(())
/// # }
/// ```
pub struct Swa {
    shared: Shared,
}

impl Swa {
    /// Creates averages of the variables of a `VarStore` (`&vs`), or of some of them
    /// (`Variables::of(&vs).under("encoder")`).
    ///
    /// # Errors
    ///
    /// [`Error::Object`] for a variable that cannot be saved.
    pub fn new(variables: impl Into<Variables>) -> Result<Swa> {
        Ok(Swa { shared: Shared::new(State::new(variables.into(), None)?) })
    }

    /// Averages floating-point buffers like trainable variables. By default, buffers are copied.
    #[must_use]
    pub fn average_buffers(self) -> Swa {
        self.shared.lock().average_buffers = true;
        self
    }

    /// Adds the variables to the averages.
    ///
    /// # Errors
    ///
    /// [`Error::Object`] for a variable whose shape has changed; no average is changed then. If libtorch fails half-way, the
    /// averages are not saved any more, as described for [`Ema`].
    pub fn update(&mut self) -> Result<()> {
        let mut state = self.shared.lock();
        let n = state.progress.updates;
        state.update(1.0 / (n as f64 + 1.0))?;
        state.progress.updates = n.saturating_add(1);
        state.progress.calls = state.progress.calls.saturating_add(1);
        Ok(())
    }
}

/// The methods of both kinds of averages.
macro_rules! averages {
    ($($averages:ident)*) => {
        $(
            impl $averages {
                /// Calls `evaluate` while the variables have the values of the averages, and restores their own values
                /// afterwards, bit for bit, even if `evaluate` panics.
                ///
                /// The values are exchanged in the variables' own memory, so that every alias sees them. Do not train
                /// within `evaluate`, and give variables that it converts to another type their own type back before it
                /// returns. A checkpoint that tracks the averages can be neither saved there, not even in part
                /// ([`Checkpoint::get`](crate::Checkpoint::get)), nor restored; one that tracks only the variables saves
                /// the averages under the variables' names.
                ///
                /// # Errors
                ///
                /// [`Error::Object`] if libtorch refuses the exchange, for example for lack of memory. `evaluate` was
                /// not called then, unless restoring the variables' own values has failed: those variables and their
                /// averages, which have each other's values, are not saved any more (see above). After a panic, this is
                /// only logged.
                pub fn with_averaged<R>(&mut self, evaluate: impl FnOnce() -> R) -> Result<R> {
                    let swapped = Swapped::begin(&self.shared)?;
                    let result = evaluate();
                    swapped.end()?;
                    Ok(result)
                }

                /// Copies the averages into the variables permanently.
                ///
                /// # Errors
                ///
                /// [`Error::Object`] for a variable that could not be written.
                pub fn apply(&mut self) -> Result<()> {
                    self.shared.lock().apply()
                }

                /// Resets the averages to the current values of the variables, and the number of updates to 0.
                ///
                /// # Errors
                ///
                /// [`Error::Object`] for a variable whose shape has changed.
                pub fn reset(&mut self) -> Result<()> {
                    let mut state = self.shared.lock();
                    state.update(1.0)?;
                    state.progress = Default::default();
                    Ok(())
                }

                /// Returns the number of updates, including those before a restored checkpoint was saved.
                pub fn updates(&self) -> u64 {
                    self.shared.lock().progress.updates
                }

                /// Returns the average of a variable by name, or `None` if there is no such variable. The tensor is the
                /// average itself: changing it in place changes the average.
                pub fn average(&self, variable: &str) -> Option<Tensor> {
                    self.shared.lock().average(variable)
                }

                /// Returns all averages by the names of their variables. Each tensor is the average itself.
                pub fn averages(&self) -> BTreeMap<String, Tensor> {
                    let state = self.shared.lock();
                    let average = |name: &String| Some((name.clone(), state.average(name)?));
                    state.names.keys().filter_map(average).collect()
                }

                /// Returns the gate that an update passes before it changes the averages. Pass it before changing them
                /// by hand, too.
                pub fn gate(&self) -> Gate {
                    self.shared.lock().gate.clone()
                }
            }

            impl Trackable for $averages {
                fn node(&self) -> Node {
                    track::node(&self.shared)
                }
            }
        )*
    };
}

averages! { Ema Swa }

impl fmt::Debug for Ema {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let state = self.shared.lock();
        f.debug_struct("Ema")
            .field("decay", &self.decay)
            .field("warm_up", &self.warm_up)
            .field("every", &self.every)
            .field("variables", &state.entries.len())
            .field("updates", &state.progress.updates)
            .finish_non_exhaustive()
    }
}

impl fmt::Debug for Swa {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let state = self.shared.lock();
        f.debug_struct("Swa")
            .field("variables", &state.entries.len())
            .field("updates", &state.progress.updates)
            .finish_non_exhaustive()
    }
}
