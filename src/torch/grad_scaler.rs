//! Loss scaling for training in half precision.

use super::optim::Optimizer;
use crate::error::{BoxError, Error, Result};
use crate::graph::{Counter, Node, Trackable, Value, ValueApply, ValueLeaf};
use serde::{Deserialize, Serialize};
use std::collections::HashMap;
use tch::Tensor;

/// Scales the loss so that gradients in float16 do not vanish, and adapts the scale, as PyTorch's
/// `torch.amp.GradScaler`.
///
/// A step whose gradients are not all finite is skipped, and the scale is multiplied by the back-off factor. After
/// enough consecutive steps that were not skipped, the scale grows. The scale and the number of these steps are saved
/// and restored; the options are not. bfloat16 has the range of float32 and needs no scaler.
///
/// ```no_run
/// # fn main() -> tch_checkpoint::Result<()> {
/// # let vs = tch::nn::VarStore::new(tch::Device::Cpu);
/// # let forward = || tch::Tensor::new();
/// use tch_checkpoint::{Checkpoint, GradScaler, optim};
/// let mut optimizer = optim::AdamW::default().build(&vs, 1e-3)?;
/// let mut scaler = GradScaler::new();
/// let checkpoint = Checkpoint::new().track("optimizer", &optimizer)?.track("scaler", &scaler)?;
/// for _ in 0..100 {
///     let loss = tch::autocast(true, forward);
///     optimizer.zero_grad();
///     scaler.scale(&loss).backward();
///     scaler.unscale(&optimizer)?; // only for clipping
///     optimizer.clip_grad_norm(1.0);
///     scaler.step(&mut optimizer)?;
///     scaler.update();
/// }
/// # let _ = checkpoint;
/// # Ok(())
/// # }
/// ```
///
/// Save after [`update`](GradScaler::update): a checkpoint that is made between [`unscale`](GradScaler::unscale) and
/// [`step`](GradScaler::step) does not record that its gradients are already unscaled. A restore ends the step in progress:
/// continue with new gradients.
#[derive(Debug)]
pub struct GradScaler {
    growth: f64,
    back_off: f64,
    interval: u64,
    enabled: bool,
    state: Value<State>,
    /// The number of restores of the scaler.
    restores: Counter,
    /// Those that the rest of this struct takes into account.
    seen: u64,
    /// The optimizers whose gradients are unscaled.
    unscaled: HashMap<usize, Unscaled>,
    /// Whether a step since the last update had non-finite gradients.
    is_step_skipped: bool,
    is_stepped: bool,
}

#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
struct State {
    /// Single precision, as in PyTorch.
    scale: f32,
    /// Consecutive steps that were not skipped since the scale changed.
    steps: u64,
}

/// The unscaled gradients of an optimizer.
#[derive(Debug, Clone, Copy)]
struct Unscaled {
    is_finite: bool,
    /// The number of restores of the optimizer. Another one discards the gradients.
    restores: u64,
}

/// The scaler in the graph.
struct Tracked {
    state: Value<State>,
    restores: Counter,
}

impl ValueLeaf for Tracked {
    fn save(&self) -> Result<serde_json::Value, BoxError> {
        self.state.save()
    }

    fn load(&self, saved: &serde_json::Value) -> Result<ValueApply, BoxError> {
        let (apply, restores) = (self.state.load(saved)?, self.restores.clone());
        Ok(Box::new(move || {
            apply();
            restores.increment();
        }))
    }
}

impl Default for GradScaler {
    fn default() -> GradScaler {
        GradScaler::new()
    }
}

impl GradScaler {
    /// Creates a scaler with PyTorch's defaults.
    #[must_use]
    pub fn new() -> GradScaler {
        GradScaler {
            growth: 2.0,
            back_off: 0.5,
            interval: 2000,
            enabled: true,
            state: Value::new(State { scale: 65536.0, steps: 0 }),
            restores: Counter::new(0),
            seen: 0,
            unscaled: HashMap::new(),
            is_step_skipped: false,
            is_stepped: false,
        }
    }

    /// Sets the initial scale. Defaults to 65,536. A power of two does not round gradients.
    #[must_use]
    pub fn initial_scale(self, scale: f32) -> Self {
        self.state.update(|state| state.scale = scale);
        self
    }

    /// Sets the factor by which the scale grows. Defaults to 2.
    #[must_use]
    pub fn growth_factor(mut self, factor: f64) -> Self {
        self.growth = factor;
        self
    }

    /// Sets the factor of the scale after a skipped step. Defaults to 0.5.
    #[must_use]
    pub fn back_off_factor(mut self, factor: f64) -> Self {
        self.back_off = factor;
        self
    }

    /// Sets the number of consecutive steps that were not skipped after which the scale grows. Defaults to 2,000; 0 is
    /// taken as 1.
    #[must_use]
    pub fn growth_interval(mut self, steps: u64) -> Self {
        self.interval = steps.max(1);
        self
    }

    /// Sets whether the scaler is active. If it is not, losses stay unchanged and no step is skipped, so that the same
    /// program can train in full precision. Defaults to `true`.
    #[must_use]
    pub fn enabled(mut self, enabled: bool) -> Self {
        self.enabled = enabled;
        self
    }

    /// Returns the current scale.
    #[must_use]
    pub fn factor(&self) -> f32 {
        if self.enabled { self.state.get().scale } else { 1.0 }
    }

    /// Returns the loss, multiplied by the scale.
    ///
    /// # Panics
    ///
    /// If libtorch cannot multiply the tensor, like methods of `tch::Tensor`.
    pub fn scale(&self, loss: &Tensor) -> Tensor {
        match self.enabled {
            true => loss * f64::from(self.factor()),
            false => loss.shallow_clone(),
        }
    }

    /// Divides the gradients of the optimizer's variables by the scale, so that they can be clipped;
    /// [`step`](GradScaler::step) does it otherwise. Returns whether all of them are finite.
    ///
    /// # Errors
    ///
    /// [`Error::InvalidArgument`] if they are unscaled already; [`Error::Object`] when libtorch refuses them.
    pub fn unscale(&mut self, optimizer: &Optimizer) -> Result<bool> {
        if !self.enabled {
            return Ok(true);
        }
        if self.unscaled(optimizer).is_some() {
            let reason =
                "the gradients of this optimizer are unscaled already; call `GradScaler::update` after its step";
            return Err(Error::InvalidArgument(reason.to_string()));
        }
        // As PyTorch: the reciprocal in double precision, rounded once.
        let inverse = (1.0 / f64::from(self.factor())) as f32;
        let is_finite = optimizer.unscale_gradients(f64::from(inverse))?;
        self.unscaled.insert(optimizer.id(), Unscaled { is_finite, restores: optimizer.restores() });
        Ok(is_finite)
    }

    /// Forgets the step during which the scaler was restored.
    fn forget_interrupted(&mut self) {
        let restores = self.restores.get();
        if std::mem::replace(&mut self.seen, restores) != restores {
            self.unscaled.clear();
            (self.is_stepped, self.is_step_skipped) = (false, false);
        }
    }

    /// Returns whether the gradients of the optimizer are finite, if they are unscaled.
    fn unscaled(&mut self, optimizer: &Optimizer) -> Option<bool> {
        self.forget_interrupted();
        let unscaled = self.unscaled.get(&optimizer.id())?;
        (unscaled.restores == optimizer.restores()).then_some(unscaled.is_finite)
    }

    /// Steps the optimizer, unless a gradient is infinite or NaN: then the gradients are discarded. Returns whether the
    /// optimizer stepped.
    ///
    /// # Errors
    ///
    /// As for [`unscale`](GradScaler::unscale) and [`Optimizer::f_step`].
    pub fn step(&mut self, optimizer: &mut Optimizer) -> Result<bool> {
        if !self.enabled {
            optimizer.f_step()?;
            return Ok(true);
        }
        let is_finite = match self.unscaled(optimizer) {
            Some(is_finite) => is_finite,
            None => self.unscale(optimizer)?,
        };
        match is_finite {
            true => optimizer.f_step()?,
            // The gradients must not be used, and a save must not wait for their step.
            false => optimizer.f_zero_grad()?,
        }
        self.is_stepped = true;
        self.is_step_skipped |= !is_finite;
        Ok(is_finite)
    }

    /// Adapts the scale. Call it once after the steps of all optimizers. Does nothing if there was no step since the
    /// last call.
    pub fn update(&mut self) {
        self.forget_interrupted();
        self.unscaled.clear();
        let (is_stepped, is_skipped) = (self.is_stepped, self.is_step_skipped);
        (self.is_stepped, self.is_step_skipped) = (false, false);
        if !is_stepped {
            return;
        }
        // As `_amp_update_scale_`.
        self.state.update(|state| {
            if is_skipped {
                *state = State { scale: (f64::from(state.scale) * self.back_off) as f32, steps: 0 };
                return;
            }
            state.steps += 1;
            if state.steps >= self.interval {
                let grown = (f64::from(state.scale) * self.growth) as f32;
                if grown.is_finite() {
                    state.scale = grown;
                }
                state.steps = 0;
            }
        });
    }

    /// Computes new gradients of `loss` and calls [`step`](GradScaler::step) and [`update`](GradScaler::update).
    /// Returns whether the optimizer stepped.
    ///
    /// # Errors
    ///
    /// As for [`step`](GradScaler::step), and if the backward pass fails.
    pub fn backward_step(&mut self, optimizer: &mut Optimizer, loss: &Tensor) -> Result<bool> {
        optimizer.f_zero_grad()?;
        self.scale(loss).f_backward().map_err(|e| Error::torch("the backward pass", e))?;
        let is_stepped = self.step(optimizer)?;
        self.update();
        Ok(is_stepped)
    }
}

impl Trackable for GradScaler {
    fn node(&self) -> Node {
        Node::value(Tracked { state: self.state.clone(), restores: self.restores.clone() })
    }
}
