//! The optimizer state of a Keras file, in the layout of `optim`.

use super::Weights;
use super::layers::without_output;
use crate::error::Result;
use crate::interop::KerasOptimizer;
use crate::interop::keras_optimizer::{Found, first_number, state};
use crate::interop::optimizer::{OptimizerState, check_readable};
use crate::source::TensorSource;

/// Returns the state of the optimizer in the layout of `optim`. `variables` are the keys of all trainable variables in
/// the order of the model's `trainable_variables`, as for [`Weights::slots_of`]; files of Keras 2 name them, and the
/// list is not used. Use [`NameMap::apply_to_optimizer`](crate::map::NameMap::apply_to_optimizer) to give the variables
/// the names of a `VarStore`. No element of a slot is read.
///
/// As for
/// [`tensorflow::optimizer_state`](https://docs.rs/tch-checkpoint/latest/tch_checkpoint/interop/tensorflow/fn.optimizer_state.html),
/// the epsilon of Adam acts in another place.
///
/// # Errors
/// Those of [`Weights::slots_of`]; [`Error::Object`](crate::Error::Object) if a part of the state is
/// [`unreadable`](TensorSource::unreadable), if `optim` has no equivalent of the optimizer, or if a hyperparameter is
/// missing, which the message names; [`Error::Damaged`](crate::Error::Damaged);
/// [`Error::Io`](crate::Error::Io).
///
/// ```no_run
/// # fn main() -> tch_checkpoint::Result<()> {
/// use tch_checkpoint::interop::{KerasOptimizer, keras};
/// let weights = keras::Weights::open("tagger.keras")?;
/// let trainable = ["embed/embeddings", "logits/kernel", "logits/bias"];
/// let state = keras::optimizer_state(&weights, &trainable, &KerasOptimizer::adam())?;
/// # let _ = state;
/// # Ok(())
/// # }
/// ```
pub fn optimizer_state<'a>(
    weights: &'a Weights,
    variables: &[&str],
    options: &KerasOptimizer,
) -> Result<OptimizerState<'a>> {
    for place in ["optimizer", "optimizer_weights"] {
        check_readable(weights, place)?;
    }
    let mut found = Found { is_scaled: true, ..Found::default() };
    if weights.tensors().contains_key("optimizer/vars/0") {
        let (first, slots) = weights.numbered_slots(variables)?;
        found.slots = slots;
        found.iterations = first_number(weights, &["optimizer/vars/0"])?;
        if first == 2 {
            found.learning_rate = first_number(weights, &["optimizer/vars/1"])?;
        }
    } else {
        let iterations = weights.tensors().keys().filter(|key| {
            let last = without_output(key).rsplit('/').next();
            key.starts_with("optimizer_weights/") && matches!(last, Some("iter" | "iteration" | "iterations"))
        });
        found.slots = weights.slots().to_vec();
        found.iterations = first_number(weights, &iterations.collect::<Vec<_>>())?;
    }
    state(weights, &found, options)
}
