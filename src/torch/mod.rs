//! libtorch: tensors, variables, random state and optimizers. The only room that sees `tch`, C++ and `unsafe`.

pub mod optim;
mod rng;
mod shim;
mod tensor;
mod variables;

pub use rng::Rng;
pub use variables::Variables;
