//! The optimizer that users hold.

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

/// An optimizer whose state can be saved, with the methods of [`tch::nn::Optimizer`]; made by a configuration such
/// as [`Adam`](super::Adam). The [module's page](super) says what is saved.
///
/// Methods that libtorch can refuse panic with its message, as those of `tch::nn::Optimizer` do; the ones whose
/// names begin with `f_` return it as an error.
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

/// As tch: these methods have no result to return an error in, and going on after a step that did not happen would
/// be worse than stopping.
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

    /// Returns what the nodes in the graph share with it.
    #[cfg(test)]
    pub(super) fn shared(&self) -> &Shared {
        &self.0
    }

    /// Makes all gradients undefined, so that variables that the next backward pass does not reach are not stepped.
    ///
    /// # Panics
    ///
    /// Where [`f_zero_grad`](Optimizer::f_zero_grad) gives an error.
    pub fn zero_grad(&mut self) {
        or_panic(self.f_zero_grad());
    }

    /// [`zero_grad`](Optimizer::zero_grad), with the error as a result.
    pub fn f_zero_grad(&mut self) -> Result<()> {
        self.gradients(shim::zero_grad)
    }

    /// Limits every element of every gradient to `-max ..= max`.
    ///
    /// # Panics
    ///
    /// Where [`f_clip_grad_value`](Optimizer::f_clip_grad_value) gives an error.
    pub fn clip_grad_value(&self, max: f64) {
        or_panic(self.f_clip_grad_value(max));
    }

    /// [`clip_grad_value`](Optimizer::clip_grad_value), with the error as a result.
    pub fn f_clip_grad_value(&self, max: f64) -> Result<()> {
        self.gradients(|params| shim::clip_grad_value(params, max))
    }

    /// Scales all gradients so that their L2 norm, as of one vector, is at most `max`. Returns the norm they had.
    ///
    /// # Panics
    ///
    /// Where [`f_clip_grad_norm`](Optimizer::f_clip_grad_norm) gives an error.
    pub fn clip_grad_norm(&self, max: f64) -> f64 {
        or_panic(self.f_clip_grad_norm(max))
    }

    /// [`clip_grad_norm`](Optimizer::clip_grad_norm), with the error as a result.
    pub fn f_clip_grad_norm(&self, max: f64) -> Result<f64> {
        self.gradients(|params| shim::clip_grad_norm(params, max))
    }

    /// Changes every variable that has a gradient, and its slots.
    ///
    /// # Panics
    ///
    /// Where [`f_step`](Optimizer::f_step) gives an error.
    pub fn step(&mut self) {
        or_panic(self.f_step());
    }

    /// [`step`](Optimizer::step), with the error as a result: a sparse gradient that the algorithm cannot use, or
    /// restored slots that do not fit a variable that was added since. These are found before anything has changed.
    pub fn f_step(&mut self) -> Result<()> {
        self.0.lock().step()
    }

    /// Computes new gradients of `loss`, then steps.
    ///
    /// # Panics
    ///
    /// Where [`f_backward_step`](Optimizer::f_backward_step) gives an error.
    pub fn backward_step(&mut self, loss: &Tensor) {
        or_panic(self.f_backward_step(loss));
    }

    /// [`backward_step`](Optimizer::backward_step), with the error as a result.
    pub fn f_backward_step(&mut self, loss: &Tensor) -> Result<()> {
        self.backward(loss)?;
        self.f_step()
    }

    /// As [`backward_step`](Optimizer::backward_step), with gradients limited to `-max ..= max`.
    ///
    /// # Panics
    ///
    /// Where [`f_backward_step_clip`](Optimizer::f_backward_step_clip) gives an error.
    pub fn backward_step_clip(&mut self, loss: &Tensor, max: f64) {
        or_panic(self.f_backward_step_clip(loss, max));
    }

    /// [`backward_step_clip`](Optimizer::backward_step_clip), with the error as a result.
    pub fn f_backward_step_clip(&mut self, loss: &Tensor, max: f64) -> Result<()> {
        self.backward(loss)?;
        self.f_clip_grad_value(max)?;
        self.f_step()
    }

    /// As [`backward_step`](Optimizer::backward_step), with gradients scaled to an L2 norm of at most `max`.
    ///
    /// # Panics
    ///
    /// Where [`f_backward_step_clip_norm`](Optimizer::f_backward_step_clip_norm) gives an error.
    pub fn backward_step_clip_norm(&mut self, loss: &Tensor, max: f64) {
        or_panic(self.f_backward_step_clip_norm(loss, max));
    }

    /// [`backward_step_clip_norm`](Optimizer::backward_step_clip_norm), with the error as a result.
    pub fn f_backward_step_clip_norm(&mut self, loss: &Tensor, max: f64) -> Result<()> {
        self.backward(loss)?;
        self.f_clip_grad_norm(max)?;
        self.f_step()
    }

    /// New gradients. The lock is free during the backward pass, which changes no parameter.
    fn backward(&mut self, loss: &Tensor) -> Result<()> {
        self.f_zero_grad()?;
        loss.f_backward().map_err(|e| Error::torch("the backward pass", e))
    }

    /// Multiplies all gradients by `inverse`; says whether all of them are finite.
    pub(in crate::torch) fn unscale_gradients(&self, inverse: f64) -> Result<bool> {
        self.gradients(|params| shim::unscale(params, inverse))
    }

    /// Returns what tells it from other optimizers that live.
    pub(in crate::torch) fn id(&self) -> usize {
        self.0.id()
    }

    fn gradients<R>(&self, change: impl FnOnce(&[&Tensor]) -> Result<R, String>) -> Result<R> {
        let mut state = self.0.lock();
        state.sync()?;
        change(&state.tensors()).map_err(|reason| Error::object("optimizer", reason))
    }

    /// Returns the learning rate of group 0.
    pub fn lr(&self) -> f64 {
        let state = self.0.lock();
        state.groups.first().unwrap_or(&state.defaults).lr
    }

    /// Returns the learning rate of a parameter group; `None` if there is no such group.
    pub fn lr_group(&self, group: usize) -> Option<f64> {
        self.0.lock().groups.get(group).map(|group| group.lr)
    }

    /// Returns how many parameter groups there are; [`tch::nn::Path::set_group`] makes them.
    pub fn groups(&self) -> usize {
        self.0.lock().groups.len()
    }

    /// Steps taken, those before a restored checkpoint was saved included.
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

    /// [`set_lr_group`](Optimizer::set_lr_group), with the error as a result.
    pub fn f_set_lr_group(&mut self, group: usize, lr: f64) -> Result<()> {
        self.set_group(group, |group| group.lr = lr)
    }

    /// Sets the momentum of all groups: for Adam and AdamW `beta1`.
    pub fn set_momentum(&mut self, m: f64) {
        self.set(|group| set_momentum(group, m));
    }

    /// Sets the momentum of a parameter group: for Adam and AdamW `beta1`.
    ///
    /// # Panics
    ///
    /// If there is no such group.
    pub fn set_momentum_group(&mut self, group: usize, m: f64) {
        or_panic(self.f_set_momentum_group(group, m));
    }

    /// [`set_momentum_group`](Optimizer::set_momentum_group), with the error as a result.
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

    /// [`set_weight_decay_group`](Optimizer::set_weight_decay_group), with the error as a result.
    pub fn f_set_weight_decay_group(&mut self, group: usize, weight_decay: f64) -> Result<()> {
        self.set_group(group, |group| group.weight_decay = weight_decay)
    }

    /// Whether steps go through libtorch's fused kernels where it has them, as they do at first. Without them every
    /// step computes exactly what `tch::nn::Optimizer` computes. Not saved: set it again before going on.
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

    /// Returns what a step passes before it changes anything. Pass it too before you change parameters or slots by hand
    /// (a moving average, a limit on weights): a save in the background may still be copying them.
    ///
    /// ```no_run
    /// # fn limit(optimizer: &tch_checkpoint::optim::Optimizer, weight: &mut tch::Tensor) {
    /// optimizer.gate().pass();
    /// tch::no_grad(|| { let _ = weight.clamp_(-1.0, 1.0); });
    /// # }
    /// ```
    pub fn gate(&self) -> Gate {
        self.0.lock().gate.clone()
    }

    /// Returns all trainable variables.
    pub fn trainable_variables(&self) -> Vec<Tensor> {
        let mut state = self.0.lock();
        // What cannot be taken in is reported by the next step.
        let _ = state.sync();
        state.parameters.iter().map(|parameter| parameter.tensor.shallow_clone()).collect()
    }

    /// Returns the slots of a variable, by PyTorch's names: `exp_avg`, `momentum_buffer` … The tensors are the
    /// optimizer's own: changing them in place changes its state. `None` for a variable that has not been stepped.
    ///
    /// ```no_run
    /// # fn look(optimizer: &tch_checkpoint::optim::Optimizer) {
    /// if let Some(state) = optimizer.state("encoder.weight") {
    ///     println!("largest mean of squares: {:?}", state["exp_avg_sq"].max());
    /// }
    /// # }
    /// ```
    pub fn state(&self, variable: &str) -> Option<BTreeMap<String, Tensor>> {
        let state = self.0.lock();
        let parameter = state.parameters.get(state.place(variable)?)?;
        let slots = options::slots(state.algorithm).iter().zip(&parameter.slots);
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
