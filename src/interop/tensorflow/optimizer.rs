//! The optimizer state of a bundle, in the layout of `optim`.

use super::Bundle;
use crate::error::{Error, Result};
use crate::interop::KerasOptimizer;
use crate::interop::keras_optimizer::{Found, first_number, state};
use crate::interop::optimizer::{OptimizerState, check_readable};
use crate::source::TensorSource;

/// Returns the state of an optimizer of Keras 3, of Keras 2 (its legacy optimizers too) or of TensorFlow 1 in the
/// layout of `optim`. The variables have the names of [`Slot::variable`](crate::interop::Slot::variable); use
/// [`NameMap::apply_to_optimizer`](crate::map::NameMap::apply_to_optimizer) to give them those of a `VarStore`. No
/// element of a slot is read.
///
/// Adam of Keras and TensorFlow adds `epsilon` before the second moment is corrected, `optim` after it: in step `t`,
/// their epsilon acts like `epsilon / sqrt(1 - beta_2^t)`. The state uses the value of the next step as `eps`, so that
/// this step is equal. Later steps differ where gradients are about as small as epsilon, until some thousand steps have
/// been made.
///
/// # Errors
/// [`Error::Object`] if there is no such optimizer, if a part of its state is [`unreadable`](TensorSource::unreadable),
/// if `optim` has no equivalent (RMSprop and Adagrad, SGD with weight decay, a decaying learning rate), or if a
/// hyperparameter is missing, which the message names; [`Error::Damaged`]; [`Error::Io`].
///
/// ```no_run
/// # fn main() -> tch_checkpoint::Result<()> {
/// use tch_checkpoint::interop::{KerasOptimizer, tensorflow};
/// let bundle = tensorflow::Bundle::open("training/ckpt-5")?;
/// let state = tensorflow::optimizer_state(&bundle, &KerasOptimizer::adam().epsilon(1e-8))?;
/// # let _ = state;
/// # Ok(())
/// # }
/// ```
pub fn optimizer_state<'a>(bundle: &'a Bundle, options: &KerasOptimizer) -> Result<OptimizerState<'a>> {
    let key = &options.key;
    if bundle.graph.is_some() {
        check_readable(bundle, key)?;
    }
    let slots = bundle.slots().iter().filter(|slot| slot.optimizer == *key).cloned().collect();
    // Without an object graph, the names of TensorFlow 1: `beta2_power`, below the scope of the optimizer.
    let by_name = |name: &str| -> Vec<String> {
        let ends = |key: &&String| key.as_str() == name || key.ends_with(&format!("/{name}"));
        bundle.tensors().keys().filter(ends).cloned().collect()
    };
    let read = |names: &[&str]| {
        let keys: Vec<String> = names.iter().map(|name| format!("{key}/{name}")).collect();
        first_number(bundle, &keys)
    };
    let iterations = read(&["_iterations", "iterations", "iter"])?;
    let found = match &bundle.graph {
        Some(_) => Found {
            slots,
            iterations,
            learning_rate: read(&["_learning_rate", "learning_rate"])?,
            beta_1: read(&["beta_1"])?,
            beta_2: read(&["beta_2"])?,
            momentum: read(&["momentum"])?,
            decay: read(&["decay"])?,
            beta_2_power: read(&["beta2_power"])?,
            // The optimizers of TensorFlow 1 count no iterations, also where they are objects.
            is_scaled: iterations.is_some(),
        },
        None => Found {
            slots,
            iterations: first_number(bundle, &by_name("global_step"))?,
            beta_2_power: first_number(bundle, &by_name("beta2_power"))?,
            ..Found::default()
        },
    };
    if found.slots.is_empty() && iterations.is_none() && bundle.graph.is_some() {
        let reason = format!("{} has no optimizer of this key: set `KerasOptimizer::key`", bundle.prefix().display());
        return Err(Error::object(key, reason));
    }
    state(bundle, &found, options)
}
