//! Optimizers whose state can be saved: SGD, Adam, AdamW and RMSprop, with the methods of [`tch::nn::Optimizer`].
//!
//! Change the `use` line of a training loop, and its optimizer can be tracked:
//!
//! ```no_run
//! use tch::{Device, Kind, Tensor, nn};
//! use tch_checkpoint::{Trackable, optim};
//!
//! # fn main() -> tch_checkpoint::Result<()> {
//! let vs = nn::VarStore::new(Device::Cpu);
//! let layer = nn::linear(vs.root(), 4, 1, Default::default());
//! let mut optimizer = optim::Adam::default().build(&vs, 1e-3)?;
//! let x = Tensor::randn([16, 4], (Kind::Float, Device::Cpu));
//! for _ in 0..100 {
//!     let loss = x.apply(&layer).square().mean(Kind::Float);
//!     optimizer.backward_step(&loss);
//! }
//! let node = optimizer.node(); // for `Checkpoint::track`
//! # let _ = node;
//! # Ok(())
//! # }
//! ```
//!
//! # What is saved
//!
//! | key | what |
//! |---|---|
//! | `algorithm` | `SGD`, `Adam`, `AdamW` or `RMSprop`; a checkpoint of another algorithm is an error |
//! | `defaults` | the initial options of a new parameter group |
//! | `param_groups` | the options of every group, under PyTorch's names: `lr`, `betas`, `eps`, `weight_decay` … |
//! | `steps` | the number of steps |
//! | `state/<variable>/<slot>` | tensors, under PyTorch's names, for every variable that was stepped: |
//! | | SGD with momentum: `momentum_buffer` |
//! | | Adam, AdamW: `step`, `exp_avg`, `exp_avg_sq`, with amsgrad `max_exp_avg_sq` |
//! | | RMSprop: `step`, `square_avg`, with momentum `momentum_buffer`, centered `grad_avg` |
//! | | all: `grad`, the gradient, if no step has used it |
//!
//! `<variable>` is the variable's name in the `VarStore`. A tied variable has its slots under each of its names, so
//! that a model with any of these names finds them. Slots of a variable that the model lacks are kept until it is
//! added; until then the restore's report lists them as unused. Restoring is exact: options are reset, and the slots of
//! a variable that had none when the checkpoint was saved are dropped. Options are restored as saved, even if a
//! schedule has moved them out of the ranges that [`OptimizerConfig::build`] accepts. The maximum number of parameter
//! groups is 10,000.
//!
//! # Accumulated gradients
//!
//! Gradients are not saved after a step has used them. Between two steps, while gradients are accumulated over several
//! backward passes, [`CheckpointManager::save_if_due`](crate::CheckpointManager::save_if_due) waits for the step; every
//! other save includes the gradients, and a restore restores them, so that the run resumes exactly. Gradients that are
//! not going to be used (those that a generator's loss leaves in the discriminator) are gradients that no step has
//! used: call [`zero_grad`](Optimizer::zero_grad) before saving.
//!
//! # How it differs from tch
//!
//! * Steps use libtorch's fused kernels where they exist (SGD, Adam and AdamW; CPU and CUDA; float, double, half and
//!   bfloat16; except SGD in low precision on the CPU, where libtorch's kernel is wrong). They are faster and round
//!   differently in the last bit. With [`set_fused(false)`](Optimizer::set_fused), steps are bit-identical to those of
//!   tch.
//! * A variable that is in the store under two names is stepped once, as in PyTorch.
//! * Slots follow a variable that is moved to another device or type: at its next step. Until then they have the type that they
//!   had, and are saved and restored with it.

mod config;
mod optimizer;
mod options;
mod state;
mod track;

pub use config::{Adam, AdamW, OptimizerConfig, RmsProp, Sgd, adam, adamw, rms_prop, sgd};
pub use optimizer::Optimizer;

#[cfg(test)]
mod tests;
