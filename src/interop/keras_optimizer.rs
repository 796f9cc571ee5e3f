//! The optimizers of Keras and TensorFlow, and their equivalents in `optim`.

use super::Slot;
use super::optimizer::{Elements, OptimizerState, number};
use crate::error::{Error, Result};
use crate::source::TensorSource;
use serde_json::{Value, json};
use std::collections::BTreeSet;

/// An optimizer of Keras or TensorFlow: which one it is, and the hyperparameters that its files do not record.
///
/// A hyperparameter that is not set here is read from the file if the file records it, and otherwise has Keras'
/// default. Files of Keras 3 record the learning rate and the number of iterations, those of Keras 2 for its legacy
/// optimizers also `beta_1`, `beta_2` and `momentum`, and those of TensorFlow 1 none.
///
/// ```
/// use tch_checkpoint::interop::KerasOptimizer;
/// let optimizer = KerasOptimizer::adam().betas(0.9, 0.98).epsilon(1e-9);
/// # let _ = optimizer;
/// ```
#[derive(Debug, Clone, PartialEq)]
#[non_exhaustive]
#[must_use]
pub struct KerasOptimizer {
    algorithm: Algorithm,
    learning_rate: Option<f64>,
    betas: Option<(f64, f64)>,
    epsilon: f64,
    weight_decay: f64,
    momentum: Option<f64>,
    nesterov: bool,
    iterations: Option<u64>,
    pub(super) key: String,
    name: String,
}

#[derive(Debug, Clone, Copy, PartialEq)]
enum Algorithm {
    Adam,
    Sgd,
}

impl KerasOptimizer {
    fn new(algorithm: Algorithm) -> KerasOptimizer {
        KerasOptimizer {
            algorithm,
            learning_rate: None,
            betas: None,
            epsilon: 1e-7,
            weight_decay: 0.0,
            momentum: None,
            nesterov: false,
            iterations: None,
            key: "optimizer".to_string(),
            name: "optimizer".to_string(),
        }
    }

    /// `Adam`, for [`optim::Adam`](https://docs.rs/tch-checkpoint/latest/tch_checkpoint/optim/struct.Adam.html). With a
    /// [`weight_decay`](KerasOptimizer::weight_decay), for `optim::AdamW`: Keras decouples the decay from the gradient.
    /// The variant `AMSGrad` is recognized by what the file holds.
    pub fn adam() -> KerasOptimizer {
        Self::new(Algorithm::Adam)
    }

    /// `AdamW`, for `optim::AdamW`, with a weight decay of 0.004.
    pub fn adamw() -> KerasOptimizer {
        KerasOptimizer { weight_decay: 0.004, ..Self::new(Algorithm::Adam) }
    }

    /// `SGD`, and TensorFlow 1's `MomentumOptimizer`, for `optim::Sgd`.
    pub fn sgd() -> KerasOptimizer {
        Self::new(Algorithm::Sgd)
    }

    /// Sets the learning rate. Needed if the file does not record it: for TensorFlow 1, HDF5 files of Keras 2, and
    /// schedules.
    pub fn learning_rate(mut self, learning_rate: f64) -> Self {
        self.learning_rate = Some(learning_rate);
        self
    }

    /// Sets `beta_1` and `beta_2`. Default to 0.9 and 0.999.
    pub fn betas(mut self, beta_1: f64, beta_2: f64) -> Self {
        self.betas = Some((beta_1, beta_2));
        self
    }

    /// Sets `epsilon`. Defaults to 1e-7; TensorFlow 1 has 1e-8.
    pub fn epsilon(mut self, epsilon: f64) -> Self {
        self.epsilon = epsilon;
        self
    }

    /// Sets `weight_decay`. Defaults to 0, for `AdamW` to 0.004.
    pub fn weight_decay(mut self, weight_decay: f64) -> Self {
        self.weight_decay = weight_decay;
        self
    }

    /// Sets the momentum of `SGD`. Needed if the file has momenta and does not record it.
    pub fn momentum(mut self, momentum: f64) -> Self {
        self.momentum = Some(momentum);
        self
    }

    /// Sets whether `SGD` uses Nesterov's momentum. Defaults to `false`.
    pub fn nesterov(mut self, nesterov: bool) -> Self {
        self.nesterov = nesterov;
        self
    }

    /// Sets the number of steps made so far. Needed if the file does not record it.
    pub fn iterations(mut self, iterations: u64) -> Self {
        self.iterations = Some(iterations);
        self
    }

    /// Sets the key of the optimizer in the file. Defaults to `optimizer`. TensorFlow 1 and HDF5 files have one
    /// optimizer, without a key.
    pub fn key(mut self, key: impl Into<String>) -> Self {
        self.key = key.into();
        self
    }

    /// Sets the key under which the state appears. Defaults to `optimizer`.
    pub fn name(mut self, name: impl Into<String>) -> Self {
        self.name = name.into();
        self
    }
}

/// What a file contains of an optimizer.
#[derive(Debug, Default)]
pub(super) struct Found {
    pub slots: Vec<Slot>,
    pub iterations: Option<f64>,
    pub learning_rate: Option<f64>,
    pub beta_1: Option<f64>,
    pub beta_2: Option<f64>,
    pub momentum: Option<f64>,
    pub decay: Option<f64>,
    /// TensorFlow 1's product of all `beta_2`, one more than there were steps.
    pub beta_2_power: Option<f64>,
    /// Whether momenta are those of the steps, which the learning rate has scaled, as in Keras; in TensorFlow 1 they
    /// are those of the gradients, as in PyTorch.
    pub is_scaled: bool,
}

/// Reads a number if there is a tensor of one of these keys.
pub(super) fn first_number<K: AsRef<str>>(source: &dyn TensorSource, keys: &[K]) -> Result<Option<f64>> {
    let key = keys.iter().map(AsRef::as_ref).find(|key| source.tensors().contains_key(*key));
    key.map_or(Ok(None), |key| number(source, key))
}

/// Converts what was found to the layout of `optim`.
pub(super) fn state<'a>(
    source: &'a dyn TensorSource,
    found: &Found,
    options: &KerasOptimizer,
) -> Result<OptimizerState<'a>> {
    let failed = |reason: String| Error::object(&options.key, reason);
    check_slots(found, options.algorithm).map_err(failed)?;
    if found.decay.is_some_and(|decay| decay != 0.0) {
        let reason =
            "its learning rate decays (`decay`), which `optim` does not support: there is no equivalent optimizer";
        return Err(failed(reason.to_string()));
    }
    let beta_1 = options.betas.map(|betas| betas.0).or(found.beta_1).unwrap_or(0.9);
    let beta_2 = options.betas.map(|betas| betas.1).or(found.beta_2).unwrap_or(0.999);
    let lr = options.learning_rate.or(found.learning_rate);
    let lr = lr.ok_or_else(|| failed("the file does not record its learning rate: set `learning_rate`".to_string()))?;
    let iterations = match (options.iterations, found.iterations, found.beta_2_power) {
        (Some(iterations), ..) => Some(iterations),
        (None, Some(iterations), None) => {
            let is_count = iterations >= 0.0 && iterations.fract() == 0.0;
            let refused =
                || failed(format!("the file records {iterations} steps, which is no count: set `iterations`"));
            Some(is_count.then_some(iterations as u64).ok_or_else(refused)?)
        }
        (None, _, Some(power)) => steps_of(power, beta_2),
        (None, None, None) => None,
    };
    let mut state = OptimizerState::new(source, &options.name);
    let (algorithm, group): (_, Value) = match options.algorithm {
        Algorithm::Adam => {
            let iterations = iterations
                .ok_or_else(|| failed("the file does not record the number of steps: set `iterations`".to_string()))?;
            for slot in &found.slots {
                let name = slot.torch.unwrap_or(&slot.name);
                state.add(&slot.variable, name, Elements::Tensor(slot.key.clone()))?;
                state.add(&slot.variable, "step", Elements::Count(iterations as f32))?;
            }
            // Keras: m' / (sqrt(v') + epsilon), times sqrt(1 - beta_2^t) / (1 - beta_1^t). PyTorch divides each moment
            // by its correction and adds epsilon then. This epsilon makes the next step equal.
            let correction = (1.0 - beta_2.powf((iterations + 1) as f64)).sqrt();
            let eps = if correction > 0.0 { options.epsilon / correction } else { options.epsilon };
            let amsgrad = found.slots.iter().any(|slot| slot.torch == Some("max_exp_avg_sq"));
            let group = json!({
                "lr": lr, "betas": [beta_1, beta_2], "eps": eps, "weight_decay": options.weight_decay,
                "amsgrad": amsgrad,
            });
            (if options.weight_decay == 0.0 { "Adam" } else { "AdamW" }, group)
        }
        Algorithm::Sgd => {
            if options.weight_decay != 0.0 {
                let reason = "Keras' SGD decouples the weight decay from the gradient, `optim::Sgd` adds it to the \
                     gradient: there is no equal optimizer";
                return Err(failed(reason.to_string()));
            }
            let momentum = options.momentum.or(found.momentum);
            if momentum.is_none_or(|momentum| momentum == 0.0) && !found.slots.is_empty() {
                return Err(failed(
                    "it has momenta, and the file does not record the factor: set `momentum`".to_string(),
                ));
            }
            if found.is_scaled && lr == 0.0 && !found.slots.is_empty() {
                let reason =
                    "its learning rate is 0, by which its momenta would have to be divided: set `learning_rate`";
                return Err(failed(reason.to_string()));
            }
            for slot in &found.slots {
                let key = slot.key.clone();
                // Keras: m' = momentum · m - lr · g and w' = w + m'. PyTorch: b' = momentum · b + g and w' = w - lr ·
                // b'.
                let elements = if found.is_scaled { Elements::Scaled(key, -1.0 / lr) } else { Elements::Tensor(key) };
                state.add(&slot.variable, "momentum_buffer", elements)?;
            }
            let group = json!({
                "lr": lr, "momentum": momentum.unwrap_or(0.0), "dampening": 0.0, "weight_decay": 0.0,
                "nesterov": options.nesterov,
            });
            ("SGD", group)
        }
    };
    state.set_options(algorithm, vec![group], Some(iterations.unwrap_or(0)));
    Ok(state)
}

/// Rejects slots that the algorithm does not have.
fn check_slots(found: &Found, algorithm: Algorithm) -> std::result::Result<(), String> {
    let names: BTreeSet<&str> = found.slots.iter().map(|slot| slot.torch.unwrap_or(&slot.name)).collect();
    let (own, known): (&str, &[&str]) = match algorithm {
        Algorithm::Adam => ("Adam", &["exp_avg", "exp_avg_sq", "max_exp_avg_sq"]),
        Algorithm::Sgd => ("SGD", &["momentum_buffer"]),
    };
    if let Some(other) = names.iter().find(|name| !known.contains(name)) {
        let file: BTreeSet<&str> = found.slots.iter().map(|slot| slot.name.as_str()).collect();
        let why = match *other {
            "square_avg" | "velocity" => {
                "; RMSprop of Keras and TensorFlow adds epsilon inside of the square root, `optim::RmsProp` outside: there \
                 is no equal optimizer"
            }
            "sum" => "; `optim` has no Adagrad",
            name if name.contains("moving_average") => "; `optim` keeps averages apart: see `Ema`",
            _ => "",
        };
        return Err(format!("it is not the state of {own}: it keeps {}{why}", list(&file)));
    }
    let missing = known.iter().take(2).find(|name| algorithm == Algorithm::Adam && !names.contains(**name));
    match missing {
        Some(missing) => Err(format!("it is not the state of {own}: it has no `{missing}`")),
        None => Ok(()),
    }
}

fn list(names: &BTreeSet<&str>) -> String {
    names.iter().map(|name| format!("`{name}`")).collect::<Vec<_>>().join(", ")
}

/// Returns the number of steps after which TensorFlow 1 has this product. It begins with one `beta_2`. `None` where
/// there were so many that nothing is left of it.
fn steps_of(power: f64, beta_2: f64) -> Option<u64> {
    // TensorFlow multiplies with the nearest number of 32 bits, which after many steps makes a difference.
    let beta_2 = f64::from(beta_2 as f32);
    let is_readable = power > 1e-30 && power < 1.0 && beta_2 > 0.0 && beta_2 < 1.0;
    is_readable.then(|| ((power.ln() / beta_2.ln()).round() - 1.0).max(0.0) as u64)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn tensorflow_1_counts_by_multiplying() {
        let power = |steps: u32| f64::from((0..=steps).fold(1f32, |power, _| power * 0.999));
        for steps in [0, 1, 3, 1000, 40_000, 50_000, 60_000] {
            assert_eq!(steps_of(power(steps), 0.999), Some(u64::from(steps)));
            assert_eq!(steps_of(power(steps), f64::from(0.999f32)), Some(u64::from(steps)));
        }
        assert_eq!(steps_of(power(200_000), 0.999), None);
        assert_eq!(steps_of(1.0, 0.999), None);
        // What 32 bits hold as 1 never changes.
        assert_eq!(steps_of(0.5, 1.0 - 1e-12), None);
    }

    #[test]
    fn a_slot_that_cannot_be_read_is_an_error() {
        let pickle = b"\x80\x02}X\x01\0\0\0kc__builtin__\ncomplex\nK\0K\0\x86Rs.";
        let bytes = crate::interop::pytorch::archive_of(&[("x/data.pkl", pickle)]).unwrap();
        let source = crate::interop::pytorch::open_bytes(bytes, &crate::interop::ReadOptions::default()).unwrap();
        let reason = &source.unreadable()["k"];
        let slot = Slot {
            optimizer: "optimizer".to_string(),
            variable: "w".to_string(),
            name: "momentum".to_string(),
            torch: Some("momentum_buffer"),
            key: "k".to_string(),
        };
        let found = Found { slots: vec![slot], ..Default::default() };
        let options = KerasOptimizer::sgd().learning_rate(0.1).momentum(0.9);
        let error = state(&source, &found, &options).unwrap_err().to_string();
        assert!(error.contains(reason) && error.starts_with("k:"), "{error}");
    }

    #[test]
    fn other_optimizers_are_refused_with_the_reason() {
        let slot = |name: &str, torch| Slot {
            optimizer: "optimizer".to_string(),
            variable: "w".to_string(),
            name: name.to_string(),
            torch,
            key: "k".to_string(),
        };
        for (slots, reason) in [
            (vec![slot("rms", Some("square_avg"))], "inside of the square root"),
            (vec![slot("velocity", None)], "inside of the square root"),
            (vec![slot("accumulator", Some("sum"))], "no Adagrad"),
            (vec![slot("m", Some("exp_avg"))], "has no `exp_avg_sq`"),
            (vec![slot("linear", None)], "it keeps `linear`"),
        ] {
            let error = check_slots(&Found { slots, ..Default::default() }, Algorithm::Adam).unwrap_err();
            assert!(error.contains(reason), "{error}");
        }
    }
}
