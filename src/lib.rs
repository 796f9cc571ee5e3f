//! tch-checkpoint
#![warn(missing_docs)]

mod dtype;
mod error;
mod graph;
pub mod name;
#[cfg(feature = "torch")]
mod torch;

pub mod restore {
    //! x
    /// x
    #[derive(Debug)]
    pub struct Report;
    impl std::fmt::Display for Report {
        fn fmt(&self, _: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
            Ok(())
        }
    }
}

pub use dtype::{Dtype, TensorSpec};
pub use error::{Error, Result};
pub use graph::{
    Child, Collection, Counter, Identity, Node, Saved, TensorBytes, TensorLeaf, TensorTarget, Trackable, Value,
    ValueApply, ValueLeaf,
};
#[cfg(feature = "torch")]
pub use torch::{Rng, Variables, optim};
