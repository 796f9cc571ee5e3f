//! libtorch: tensors, variables, random state and optimizers, saved models. The only room that sees `tch`, C++ and
//! `unsafe`.

mod average;
mod error;
mod grad_scaler;
pub mod optim;
mod part;
mod program;
mod rng;
mod saved_model;
mod shim;
mod tensor;
mod variables;

pub use average::{Ema, Swa};
pub use grad_scaler::GradScaler;
pub use rng::Rng;
pub use saved_model::{Export, SavedModel, SignatureDef};
pub use variables::Variables;
