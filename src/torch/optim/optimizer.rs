//! The public optimizer.

use super::options;
use super::state::{Shared, State};
use super::track;
use crate::error::{Error, Result};
use crate::graph::{Gate, Node, Trackable};
use crate::torch::shim::{self, Algorithm, StepOptions};
use std::collections::BTreeMap;
use std::fmt;
use tch::Tensor;
use tch::nn::VarStore;

/// An optimizer whose state can be saved, with the methods of [`tch::nn::Optimizer`]. It is built by a configuration
/// such as [`Adam`](super::Adam). The [module documentation](super) lists what is saved.
///
/// Methods panic with libtorch's message if libtorch refuses an operation, like those of `tch::nn::Optimizer`; methods
/// whose names start with `f_` return it as an error.
///
/// ```no_run
/// # fn main() -> tch_checkpoint::Result<()> {
/// # let vs = tch::nn::VarStore::new(tch::Device::Cpu);
/// # let loss = tch::Tensor::new();
/// let mut optimizer = tch_checkpoint::optim::Adam::default().build(&vs, 1e-3)?;
/// optimizer.backward_step(&loss);
/// optimizer.set_lr(optimizer.lr() * 0.5);
/// # Ok(())
/// # }
/// ```
pub struct Optimizer(Shared);

/// Like tch: these methods cannot return an error, and continuing after a failed step would be worse than a panic.
#[allow(clippy::panic, reason = "the documented behaviour of the methods without `f_`")]
fn or_panic<T>(result: Result<T>) -> T {
    result.unwrap_or_else(|error| panic!("{error:#}"))
}

impl Optimizer {
    pub(super) fn new(vs: &VarStore, options: StepOptions) -> Result<Optimizer> {
        options::check(&options).map_err(|reason| {
            Error::InvalidArgument(format!(
                "the optimizer {} cannot be built: {reason}",
                options::name(options.algorithm)
            ))
        })?;
        let mut state = State::new(vs.variables_.clone(), options);
        state.sync()?;
        Ok(Optimizer(Shared::new(state)))
    }

    /// Returns the state that is shared with the nodes in the graph.
    #[cfg(test)]
    pub(super) fn shared(&self) -> &Shared {
        &self.0
    }

    /// Makes all gradients undefined, so that variables that the next backward pass does not reach are not updated.
    ///
    /// # Panics
    ///
    /// If [`f_zero_grad`](Optimizer::f_zero_grad) returns an error.
    pub fn zero_grad(&mut self) {
        or_panic(self.f_zero_grad());
    }

    /// Like [`zero_grad`](Optimizer::zero_grad), but returns the error.
    ///
    /// # Errors
    /// [`Error::Object`](crate::Error::Object), with the reason.
    pub fn f_zero_grad(&mut self) -> Result<()> {
        self.gradients(shim::zero_grad)
    }

    /// Clamps every element of every gradient to `-max ..= max`.
    ///
    /// # Panics
    ///
    /// If [`f_clip_grad_value`](Optimizer::f_clip_grad_value) returns an error.
    pub fn clip_grad_value(&self, max: f64) {
        or_panic(self.f_clip_grad_value(max));
    }

    /// Like [`clip_grad_value`](Optimizer::clip_grad_value), but returns the error.
    ///
    /// # Errors
    /// [`Error::Object`](crate::Error::Object), with the reason.
    pub fn f_clip_grad_value(&self, max: f64) -> Result<()> {
        self.gradients(|params| shim::clip_grad_value(params, max))
    }

    /// Scales all gradients so that their total L2 norm is at most `max`. Returns the norm before scaling.
    ///
    /// # Panics
    ///
    /// If [`f_clip_grad_norm`](Optimizer::f_clip_grad_norm) returns an error.
    pub fn clip_grad_norm(&self, max: f64) -> f64 {
        or_panic(self.f_clip_grad_norm(max))
    }

    /// Like [`clip_grad_norm`](Optimizer::clip_grad_norm), but returns the error.
    ///
    /// # Errors
    /// [`Error::Object`](crate::Error::Object), with the reason.
    pub fn f_clip_grad_norm(&self, max: f64) -> Result<f64> {
        self.gradients(|params| shim::clip_grad_norm(params, max))
    }

    /// Updates every variable that has a gradient, and its slots.
    ///
    /// # Panics
    ///
    /// If [`f_step`](Optimizer::f_step) returns an error.
    pub fn step(&mut self) {
        or_panic(self.f_step());
    }

    /// Like [`step`](Optimizer::step), but returns the error: a type or a sparse gradient that the algorithm cannot use, or
    /// restored slots that do not fit a variable that was added later. These are found before anything changes.
    ///
    /// If libtorch fails during the computation itself, for example for lack of memory on a GPU, some variables may have
    /// changed and others not. The optimizer can then neither step nor be saved, and no checkpoint saves the variables, until
    /// both are restored. Or build a new optimizer and call
    /// [`Checkpoint::reinitialized`](crate::Checkpoint::reinitialized) with the variables.
    ///
    /// # Errors
    /// [`Error::Object`](crate::Error::Object), with the reason.
    pub fn f_step(&mut self) -> Result<()> {
        self.0.lock().step()
    }

    /// Computes new gradients of `loss`, then steps.
    ///
    /// # Panics
    ///
    /// If [`f_backward_step`](Optimizer::f_backward_step) returns an error.
    pub fn backward_step(&mut self, loss: &Tensor) {
        or_panic(self.f_backward_step(loss));
    }

    /// Like [`backward_step`](Optimizer::backward_step), but returns the error.
    ///
    /// # Errors
    /// [`Error::Object`](crate::Error::Object), with the reason.
    pub fn f_backward_step(&mut self, loss: &Tensor) -> Result<()> {
        self.backward(loss)?;
        self.f_step()
    }

    /// Like [`backward_step`](Optimizer::backward_step), with gradients clamped to `-max ..= max`.
    ///
    /// # Panics
    ///
    /// If [`f_backward_step_clip`](Optimizer::f_backward_step_clip) returns an error.
    pub fn backward_step_clip(&mut self, loss: &Tensor, max: f64) {
        or_panic(self.f_backward_step_clip(loss, max));
    }

    /// Like [`backward_step_clip`](Optimizer::backward_step_clip), but returns the error.
    ///
    /// # Errors
    /// [`Error::Object`](crate::Error::Object), with the reason.
    pub fn f_backward_step_clip(&mut self, loss: &Tensor, max: f64) -> Result<()> {
        self.backward(loss)?;
        self.f_clip_grad_value(max)?;
        self.f_step()
    }

    /// Like [`backward_step`](Optimizer::backward_step), with gradients scaled to a total L2 norm of at most `max`.
    ///
    /// # Panics
    ///
    /// If [`f_backward_step_clip_norm`](Optimizer::f_backward_step_clip_norm) returns an error.
    pub fn backward_step_clip_norm(&mut self, loss: &Tensor, max: f64) {
        or_panic(self.f_backward_step_clip_norm(loss, max));
    }

    /// Like [`backward_step_clip_norm`](Optimizer::backward_step_clip_norm), but returns the error.
    ///
    /// # Errors
    /// [`Error::Object`](crate::Error::Object), with the reason.
    pub fn f_backward_step_clip_norm(&mut self, loss: &Tensor, max: f64) -> Result<()> {
        self.backward(loss)?;
        self.f_clip_grad_norm(max)?;
        self.f_step()
    }

    /// Computes new gradients. The lock is not held during the backward pass, which changes no parameter.
    fn backward(&mut self, loss: &Tensor) -> Result<()> {
        self.f_zero_grad()?;
        loss.f_backward().map_err(|e| Error::torch("the backward pass", e))
    }

    /// Multiplies all gradients by `inverse`. Returns whether all of them are finite.
    pub(in crate::torch) fn unscale_gradients(&self, inverse: f64) -> Result<bool> {
        self.gradients(|params| shim::unscale(params, inverse))
    }

    /// Returns the number of restores.
    pub(in crate::torch) fn restores(&self) -> u64 {
        self.0.lock().restores
    }

    /// Returns a number that distinguishes it from other live optimizers.
    pub(in crate::torch) fn id(&self) -> usize {
        self.0.id()
    }

    fn gradients<R>(&self, change: impl FnOnce(&[&Tensor]) -> Result<R, String>) -> Result<R> {
        let mut state = self.0.lock();
        state.sync()?;
        change(&state.tensors()).map_err(|reason| Error::object("optimizer", reason))
    }

    /// Returns the learning rate of group 0.
    #[must_use]
    pub fn lr(&self) -> f64 {
        let state = self.0.lock();
        state.groups.first().unwrap_or(&state.defaults).lr
    }

    /// Returns the learning rate of a parameter group, or `None` if there is no such group.
    #[must_use]
    pub fn lr_group(&self, group: usize) -> Option<f64> {
        self.0.lock().groups.get(group).map(|group| group.lr)
    }

    /// Returns the number of parameter groups, which [`tch::nn::Path::set_group`] creates.
    #[must_use]
    pub fn groups(&self) -> usize {
        self.0.lock().groups.len()
    }

    /// Returns the number of steps, including those before a restored checkpoint was saved.
    #[must_use]
    pub fn steps(&self) -> u64 {
        self.0.lock().steps
    }

    /// Sets the learning rate of all groups.
    pub fn set_lr(&mut self, lr: f64) {
        self.set(|group| group.lr = lr);
    }

    /// Sets the learning rate of a parameter group.
    ///
    /// # Panics
    ///
    /// If there is no such group.
    pub fn set_lr_group(&mut self, group: usize, lr: f64) {
        or_panic(self.f_set_lr_group(group, lr));
    }

    /// Like [`set_lr_group`](Optimizer::set_lr_group), but returns the error.
    ///
    /// # Errors
    /// [`Error::InvalidArgument`](crate::Error::InvalidArgument) if there is no such group.
    pub fn f_set_lr_group(&mut self, group: usize, lr: f64) -> Result<()> {
        self.set_group(group, |group| group.lr = lr)
    }

    /// Sets the momentum of all groups (`beta1` for Adam and AdamW).
    pub fn set_momentum(&mut self, m: f64) {
        self.set(|group| set_momentum(group, m));
    }

    /// Sets the momentum of a parameter group (`beta1` for Adam and AdamW).
    ///
    /// # Panics
    ///
    /// If there is no such group.
    pub fn set_momentum_group(&mut self, group: usize, m: f64) {
        or_panic(self.f_set_momentum_group(group, m));
    }

    /// Like [`set_momentum_group`](Optimizer::set_momentum_group), but returns the error.
    ///
    /// # Errors
    /// [`Error::InvalidArgument`](crate::Error::InvalidArgument) if there is no such group.
    pub fn f_set_momentum_group(&mut self, group: usize, m: f64) -> Result<()> {
        self.set_group(group, |group| set_momentum(group, m))
    }

    /// Sets the weight decay of all groups.
    pub fn set_weight_decay(&mut self, weight_decay: f64) {
        self.set(|group| group.weight_decay = weight_decay);
    }

    /// Sets the weight decay of a parameter group.
    ///
    /// # Panics
    ///
    /// If there is no such group.
    pub fn set_weight_decay_group(&mut self, group: usize, weight_decay: f64) {
        or_panic(self.f_set_weight_decay_group(group, weight_decay));
    }

    /// Like [`set_weight_decay_group`](Optimizer::set_weight_decay_group), but returns the error.
    ///
    /// # Errors
    /// [`Error::InvalidArgument`](crate::Error::InvalidArgument) if there is no such group.
    pub fn f_set_weight_decay_group(&mut self, group: usize, weight_decay: f64) -> Result<()> {
        self.set_group(group, |group| group.weight_decay = weight_decay)
    }

    /// Sets whether steps use libtorch's fused kernels where they exist. Without them, every step computes exactly what
    /// `tch::nn::Optimizer` computes. Defaults to `true`. Not saved: set it again after a restart.
    pub fn set_fused(&mut self, fused: bool) {
        self.0.lock().fused = fused;
    }

    fn set(&mut self, change: impl Fn(&mut StepOptions)) {
        let mut state = self.0.lock();
        change(&mut state.defaults);
        state.groups.iter_mut().for_each(change);
    }

    fn set_group(&mut self, group: usize, change: impl FnOnce(&mut StepOptions)) -> Result<()> {
        let mut state = self.0.lock();
        state.sync()?;
        let count = state.groups.len();
        let options = state.groups.get_mut(group).ok_or_else(|| {
            Error::InvalidArgument(format!(
                "the optimizer has no parameter group {group}; there are {count}, counted from 0"
            ))
        })?;
        change(options);
        Ok(())
    }

    /// Returns the gate that a step passes before it changes anything. Pass it before you change parameters or slots by
    /// hand (a moving average, a limit on weights), because a background save may still be copying them.
    ///
    /// ```no_run
    /// # fn limit(optimizer: &tch_checkpoint::optim::Optimizer, weight: &mut tch::Tensor) {
    /// optimizer.gate().pass();
    /// tch::no_grad(|| { let _ = weight.clamp_(-1.0, 1.0); });
    /// # }
    /// ```
    #[must_use]
    pub fn gate(&self) -> Gate {
        self.0.lock().gate.clone()
    }

    /// Returns all trainable variables.
    #[must_use]
    pub fn trainable_variables(&self) -> Vec<Tensor> {
        let mut state = self.0.lock();
        // Variables that cannot be added are reported by the next step.
        let _ = state.sync();
        state.parameters.iter().map(|parameter| parameter.tensor.shallow_clone()).collect()
    }

    /// Returns the slots of a variable by PyTorch's names (`exp_avg`, `momentum_buffer` …), or `None` for a variable
    /// that has not been stepped. The tensors are the optimizer's own: changing them in place changes its state.
    ///
    /// Until the first call, only the optimizer can change slots, and a background save queries it instead of every
    /// slot. From the first call on, background saves watch all of its slots as they watch other tensors, which makes
    /// their calls take longer; the first call waits for a background save that is still copying them.
    ///
    /// ```no_run
    /// # fn look(optimizer: &tch_checkpoint::optim::Optimizer) {
    /// if let Some(state) = optimizer.state("encoder.weight") {
    ///     println!("largest mean of squares: {:?}", state["exp_avg_sq"].max());
    /// }
    /// # }
    /// ```
    #[must_use]
    pub fn state(&self, variable: &str) -> Option<BTreeMap<String, Tensor>> {
        let state = self.0.lock();
        let parameter = state.parameters.get(state.place(variable)?)?;
        state.exclusive.share();
        let slots = options::slots(state.algorithm).iter().zip(parameter.slots());
        let slots: BTreeMap<_, _> = slots
            .filter_map(|(slot, tensor)| Some((slot.name.to_string(), tensor.as_ref()?.shallow_clone())))
            .collect();
        Some(slots).filter(|slots| !slots.is_empty())
    }
}

fn set_momentum(group: &mut StepOptions, m: f64) {
    match group.algorithm {
        Algorithm::Adam | Algorithm::AdamW => group.beta1 = m,
        Algorithm::Sgd | Algorithm::RmsProp => group.momentum = m,
    }
}

impl Trackable for Optimizer {
    fn node(&self) -> Node {
        track::node(&self.0)
    }
}

impl fmt::Debug for Optimizer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let state = self.0.lock();
        f.debug_struct("Optimizer")
            .field("algorithm", &options::name(state.algorithm))
            .field("variables", &state.parameters.len())
            .field("groups", &state.groups)
            .field("steps", &state.steps)
            .finish_non_exhaustive()
    }
}
