//! Everything that needs libtorch: tensors, variables, random state, optimizers and saved models. The only layer that
//! uses `tch`, C++ and `unsafe`.

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
mod undone;
mod variables;

pub use average::{Ema, Swa};
pub use grad_scaler::GradScaler;
pub use rng::Rng;
pub use saved_model::{Export, SavedModel, SignatureDef};
pub use variables::Variables;
