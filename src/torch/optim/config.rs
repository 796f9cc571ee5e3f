//! Configurations with the names of tch that build optimizers whose state can be saved.

use super::optimizer::Optimizer;
use crate::error::Result;
use crate::torch::shim::{Algorithm, StepOptions};
use tch::nn::VarStore;

/// The interface of all configurations, for generic code.
///
/// ```
/// use tch_checkpoint::optim::{Optimizer, OptimizerConfig};
/// fn build(config: impl OptimizerConfig, vs: &tch::nn::VarStore) -> tch_checkpoint::Result<Optimizer> {
///     config.build(vs, 1e-3)
/// }
/// ```
pub trait OptimizerConfig: Sized {
    /// Builds an optimizer for the trainable variables of `vs`, including those that are added later.
    ///
    /// # Errors
    ///
    /// [`Error::InvalidArgument`](crate::Error::InvalidArgument) for an option out of range.
    fn build(self, vs: &VarStore, lr: f64) -> Result<Optimizer>;
}

/// The methods of every configuration.
macro_rules! build {
    ($($config:ident)*) => {
        $(
            impl $config {
                /// Builds an optimizer for the trainable variables of `vs`, including those that are added later, with
                /// the learning rate `lr`.
                ///
                /// # Errors
                ///
                /// [`Error::InvalidArgument`](crate::Error::InvalidArgument) for an option out of range.
                pub fn build(self, vs: &VarStore, lr: f64) -> Result<Optimizer> {
                    Optimizer::new(vs, self.options(lr))
                }
            }

            impl OptimizerConfig for $config {
                fn build(self, vs: &VarStore, lr: f64) -> Result<Optimizer> {
                    Optimizer::new(vs, self.options(lr))
                }
            }
        )*
    };
}

build! { Sgd Adam AdamW RmsProp }

/// Stochastic gradient descent, like PyTorch's `SGD`.
///
/// ```no_run
/// # let vs = tch::nn::VarStore::new(tch::Device::Cpu);
/// use tch_checkpoint::optim::Sgd;
/// let optimizer = Sgd { momentum: 0.9, nesterov: true, ..Sgd::default() }.build(&vs, 0.1)?;
/// # let _ = optimizer;
/// # Ok::<(), tch_checkpoint::Error>(())
/// ```
#[derive(Debug, Clone, Copy, PartialEq, Default)]
pub struct Sgd {
    /// The momentum factor. 0 disables momentum.
    pub momentum: f64,
    /// The dampening of the momentum.
    pub dampening: f64,
    /// The weight decay, added to the gradient (L2 penalty).
    pub wd: f64,
    /// Whether to use Nesterov momentum, which requires `momentum` above 0 and `dampening` of 0.
    pub nesterov: bool,
}

/// Creates a configuration for SGD.
#[must_use]
pub fn sgd(momentum: f64, dampening: f64, wd: f64, nesterov: bool) -> Sgd {
    Sgd { momentum, dampening, wd, nesterov }
}

impl Sgd {
    fn options(self, lr: f64) -> StepOptions {
        StepOptions {
            momentum: self.momentum,
            dampening: self.dampening,
            weight_decay: self.wd,
            nesterov: self.nesterov,
            ..StepOptions::new(Algorithm::Sgd, lr)
        }
    }
}

/// The configurations of Adam and AdamW, which have the same options.
macro_rules! adam {
    ($(#[$doc:meta])* $name:ident, $wd:literal, $function:ident) => {
        $(#[$doc])*
        #[derive(Debug, Clone, Copy, PartialEq)]
        pub struct $name {
            /// The decay rate of the running mean of gradients.
            pub beta1: f64,
            /// The decay rate of the running mean of squared gradients.
            pub beta2: f64,
            /// The weight decay.
            pub wd: f64,
            /// The term added to the denominator to avoid a division by zero.
            pub eps: f64,
            /// Whether to divide by the largest mean of squares so far.
            pub amsgrad: bool,
        }

        impl Default for $name {
            fn default() -> Self {
                $name { beta1: 0.9, beta2: 0.999, wd: $wd, eps: 1e-8, amsgrad: false }
            }
        }

        #[doc = concat!("A configuration for ", stringify!($name), ".")]
        pub fn $function(beta1: f64, beta2: f64, wd: f64) -> $name {
            $name { beta1, beta2, wd, ..$name::default() }
        }

        impl $name {
            /// Sets the decay rate of the running mean of gradients.
            #[must_use]
            pub fn beta1(mut self, b: f64) -> Self {
                self.beta1 = b;
                self
            }

            /// Sets the decay rate of the running mean of squared gradients.
            #[must_use]
            pub fn beta2(mut self, b: f64) -> Self {
                self.beta2 = b;
                self
            }

            /// Sets the weight decay.
            #[must_use]
            pub fn wd(mut self, w: f64) -> Self {
                self.wd = w;
                self
            }

            /// Sets the term added to the denominator.
            #[must_use]
            pub fn eps(mut self, e: f64) -> Self {
                self.eps = e;
                self
            }

            /// Sets whether to divide by the largest mean of squares so far.
            #[must_use]
            pub fn amsgrad(mut self, a: bool) -> Self {
                self.amsgrad = a;
                self
            }

            fn options(self, lr: f64) -> StepOptions {
                StepOptions {
                    beta1: self.beta1,
                    beta2: self.beta2,
                    weight_decay: self.wd,
                    eps: self.eps,
                    amsgrad: self.amsgrad,
                    ..StepOptions::new(Algorithm::$name, lr)
                }
            }
        }
    };
}

adam! {
    /// Adam, like PyTorch's `Adam`. Weight decay is added to the gradient.
    ///
    /// ```no_run
    /// # let vs = tch::nn::VarStore::new(tch::Device::Cpu);
    /// let optimizer = tch_checkpoint::optim::Adam::default().amsgrad(true).build(&vs, 1e-3)?;
    /// # let _ = optimizer;
    /// # Ok::<(), tch_checkpoint::Error>(())
    /// ```
    Adam, 0.0, adam
}

adam! {
    /// AdamW, like PyTorch's `AdamW`. Weight decay is decoupled from the gradient.
    ///
    /// ```no_run
    /// # let vs = tch::nn::VarStore::new(tch::Device::Cpu);
    /// let optimizer = tch_checkpoint::optim::AdamW::default().wd(0.1).build(&vs, 1e-3)?;
    /// # let _ = optimizer;
    /// # Ok::<(), tch_checkpoint::Error>(())
    /// ```
    AdamW, 0.01, adamw
}

/// RMSprop, like PyTorch's `RMSprop`.
///
/// ```no_run
/// # let vs = tch::nn::VarStore::new(tch::Device::Cpu);
/// use tch_checkpoint::optim::RmsProp;
/// let optimizer = RmsProp { centered: true, ..RmsProp::default() }.build(&vs, 1e-3)?;
/// # let _ = optimizer;
/// # Ok::<(), tch_checkpoint::Error>(())
/// ```
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct RmsProp {
    /// The decay rate of the running mean of squared gradients.
    pub alpha: f64,
    /// The term added to the denominator to avoid a division by zero.
    pub eps: f64,
    /// The weight decay, added to the gradient (L2 penalty).
    pub wd: f64,
    /// The momentum factor. 0 disables momentum.
    pub momentum: f64,
    /// Whether to divide by an estimate of the variance instead of the mean square.
    pub centered: bool,
}

impl Default for RmsProp {
    fn default() -> Self {
        RmsProp { alpha: 0.99, eps: 1e-8, wd: 0.0, momentum: 0.0, centered: false }
    }
}

/// Creates a configuration for RMSprop.
#[must_use]
pub fn rms_prop(alpha: f64, eps: f64, wd: f64, momentum: f64, centered: bool) -> RmsProp {
    RmsProp { alpha, eps, wd, momentum, centered }
}

impl RmsProp {
    fn options(self, lr: f64) -> StepOptions {
        StepOptions {
            alpha: self.alpha,
            eps: self.eps,
            weight_decay: self.wd,
            momentum: self.momentum,
            centered: self.centered,
            ..StepOptions::new(Algorithm::RmsProp, lr)
        }
    }
}
