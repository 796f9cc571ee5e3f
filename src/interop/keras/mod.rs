//! Weights of Keras: `.weights.h5` and `.keras` of Keras 3, its sharded weights (`.weights.json`), HDF5 files of Keras
//! 2, and any HDF5 file in the form that h5py writes by default.
//!
//! # Names
//!
//! A tensor has its path in the file, such as `layers/dense_1/vars/0` or `model_weights/logits/logits/kernel:0`. Where
//! the file has the names of layers, it has the layer's name as well: `logits/kernel`,
//! `encoder/forward_gru/gru_cell/bias`. In Keras 3 the path counts layers of a class and does not contain the layer's
//! name, so this is the one to use; variables of layers that are not known by their class keep their number, as in
//! `my_layer/0`. A name that two layers have is not offered. [`first_alias`](crate::TensorSource::first_alias) returns
//! which keys are the same tensor.
//!
//! # Optimizers
//!
//! A Keras 2 file names what the optimizer keeps: see [`Weights::slots`]. Keras 3 files number it, in the order of the
//! model's trainable variables, which only the model knows: [`Weights::slots_of`] takes that order. [`optimizer_state`]
//! gives both the layout of `optim`.
//!
//! # Verified
//!
//! HDF5 files of Keras have no checksums: lengths, bounds and structure are checked. Chunks that are compressed or have
//! a Fletcher-32 sum are verified when they are read, and the CRC-32 of a `.keras` archive before the first tensor is.
//!
//! # Not read
//!
//! The newer form of HDF5 (`libver="latest"`), filters other than deflate, shuffle and Fletcher-32, and whatever leads
//! into another file. `config.json` and the model's configuration are not read, so nothing in them is executed.

mod hdf5;
mod layers;
mod optimizer;
mod sharded;
mod weights;

pub use super::optimizer::OptimizerState;
pub use optimizer::optimizer_state;
pub use weights::Weights;
pub(crate) use weights::detect;
