//! The properties of an algorithm: its name, its slots, and its options as JSON. All names are those of PyTorch.

use crate::torch::shim::{Algorithm, SLOTS, StepOptions};
use serde_json::{Map, Value, json};

/// A tensor that an algorithm keeps for a variable. Its place in the list is its place in steps.cpp.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Slot {
    pub name: &'static str,
    /// Whether it is a count (`F32 []`) instead of a tensor like the variable.
    pub is_count: bool,
    /// Whether only some options need it.
    pub is_optional: bool,
}

const fn slot(name: &'static str) -> Slot {
    Slot { name, is_count: false, is_optional: false }
}

const fn optional(name: &'static str) -> Slot {
    Slot { name, is_count: false, is_optional: true }
}

const STEP: Slot = Slot { name: "step", is_count: true, is_optional: false };

/// The gradient of a variable. It is not a slot of the algorithm, and is saved if no step has used it.
pub(super) const GRADIENT: Slot = optional("grad");

/// The place of [`GRADIENT`], after those of all slots.
pub(super) const GRADIENT_PLACE: usize = SLOTS;

/// Returns the slot `name`, which may be [`GRADIENT`], and its place.
pub(super) fn slot_named(algorithm: Algorithm, name: &str) -> Option<(usize, Slot)> {
    let own = slots(algorithm).iter().copied().enumerate();
    own.chain([(GRADIENT_PLACE, GRADIENT)]).find(|(_, slot)| slot.name == name)
}

pub(super) fn slots(algorithm: Algorithm) -> &'static [Slot] {
    const SGD: &[Slot] = &[slot("momentum_buffer")];
    const ADAM: &[Slot] = &[STEP, slot("exp_avg"), slot("exp_avg_sq"), optional("max_exp_avg_sq")];
    const RMSPROP: &[Slot] = &[STEP, slot("square_avg"), optional("momentum_buffer"), optional("grad_avg")];
    const { assert!(SGD.len() <= SLOTS && ADAM.len() <= SLOTS && RMSPROP.len() <= SLOTS) };
    match algorithm {
        Algorithm::Sgd => SGD,
        Algorithm::Adam | Algorithm::AdamW => ADAM,
        Algorithm::RmsProp => RMSPROP,
    }
}

pub(super) fn name(algorithm: Algorithm) -> &'static str {
    match algorithm {
        Algorithm::Sgd => "SGD",
        Algorithm::Adam => "Adam",
        Algorithm::AdamW => "AdamW",
        Algorithm::RmsProp => "RMSprop",
    }
}

/// Checks every option against its range, as PyTorch does.
pub(super) fn check(o: &StepOptions) -> Result<(), String> {
    let at_least_0 = [
        ("learning rate", o.lr),
        ("weight decay", o.weight_decay),
        ("momentum", o.momentum),
        ("eps", o.eps),
        ("alpha", o.alpha),
    ];
    if let Some((what, value)) = at_least_0.iter().find(|(_, value)| !(value.is_finite() && *value >= 0.0)) {
        return Err(format!("the {what} is {value}; it must be 0 or more"));
    }
    if let Some(beta) = [o.beta1, o.beta2].iter().find(|beta| !(0.0..1.0).contains(*beta)) {
        return Err(format!("a beta is {beta}; it must be at least 0 and less than 1"));
    }
    if !o.dampening.is_finite() {
        return Err(format!("the dampening is {}; it must be a number", o.dampening));
    }
    if o.nesterov && (o.momentum == 0.0 || o.dampening != 0.0) {
        return Err("Nesterov's momentum needs a momentum above 0 and a dampening of 0".to_string());
    }
    Ok(())
}

/// Returns the options as an entry of PyTorch's `param_groups`.
pub(super) fn to_json(o: &StepOptions) -> Result<Value, String> {
    let numbers = [
        ("lr", o.lr),
        ("weight_decay", o.weight_decay),
        ("momentum", o.momentum),
        ("dampening", o.dampening),
        ("beta1", o.beta1),
        ("beta2", o.beta2),
        ("eps", o.eps),
        ("alpha", o.alpha),
    ];
    if let Some((option, value)) = numbers.iter().find(|(_, value)| !value.is_finite()) {
        return Err(format!("the option `{option}` of {} is {value}; set it to a finite number", name(o.algorithm)));
    }
    Ok(match o.algorithm {
        Algorithm::Sgd => json!({
            "lr": o.lr, "momentum": o.momentum, "dampening": o.dampening, "weight_decay": o.weight_decay,
            "nesterov": o.nesterov,
        }),
        Algorithm::Adam | Algorithm::AdamW => json!({
            "lr": o.lr, "betas": [o.beta1, o.beta2], "eps": o.eps, "weight_decay": o.weight_decay,
            "amsgrad": o.amsgrad,
        }),
        Algorithm::RmsProp => json!({
            "lr": o.lr, "momentum": o.momentum, "alpha": o.alpha, "eps": o.eps, "centered": o.centered,
            "weight_decay": o.weight_decay,
        }),
    })
}

/// Reverses [`to_json`] for all numbers. Ranges are checked only when an optimizer is built, so that whatever was saved
/// can be restored. An unknown option is refused, because it would be lost.
pub(super) fn from_json(algorithm: Algorithm, saved: &Value) -> Result<StepOptions, String> {
    let fields = saved.as_object().ok_or_else(|| format!("a group's options are expected, not {saved}"))?;
    let mut o = StepOptions::new(algorithm, number(fields, "lr")?);
    o.weight_decay = number(fields, "weight_decay")?;
    match algorithm {
        Algorithm::Sgd => {
            o.momentum = number(fields, "momentum")?;
            o.dampening = number(fields, "dampening")?;
            o.nesterov = flag(fields, "nesterov")?;
        }
        Algorithm::Adam | Algorithm::AdamW => {
            let betas = fields.get("betas").and_then(Value::as_array).map(Vec::as_slice);
            let Some([beta1, beta2]) = betas else { return Err("`betas` is not a pair of numbers".to_string()) };
            (o.beta1, o.beta2) = (as_number("betas", beta1)?, as_number("betas", beta2)?);
            o.eps = number(fields, "eps")?;
            o.amsgrad = flag(fields, "amsgrad")?;
        }
        Algorithm::RmsProp => {
            o.momentum = number(fields, "momentum")?;
            o.alpha = number(fields, "alpha")?;
            o.eps = number(fields, "eps")?;
            o.centered = flag(fields, "centered")?;
        }
    }
    let known = to_json(&o)?;
    if let Some(unknown) = fields.keys().find(|field| known.get(field).is_none()) {
        return Err(format!("{} of this version has no option `{unknown}`", name(algorithm)));
    }
    Ok(o)
}

fn number(fields: &Map<String, Value>, name: &str) -> Result<f64, String> {
    as_number(name, fields.get(name).unwrap_or(&Value::Null))
}

fn as_number(name: &str, value: &Value) -> Result<f64, String> {
    value.as_f64().ok_or_else(|| format!("the option `{name}` is {value}, not a number"))
}

fn flag(fields: &Map<String, Value>, name: &str) -> Result<bool, String> {
    let value = fields.get(name).unwrap_or(&Value::Null);
    value.as_bool().ok_or_else(|| format!("the option `{name}` is {value}, not true or false"))
}

#[cfg(test)]
mod tests {
    use super::*;

    const ALL: [Algorithm; 4] = [Algorithm::Sgd, Algorithm::Adam, Algorithm::AdamW, Algorithm::RmsProp];

    #[test]
    fn options_come_back_bit_for_bit() {
        for algorithm in ALL {
            let mut o = StepOptions::new(algorithm, 0.1 + 0.2);
            o.weight_decay = 1.0 / 3.0;
            let saved = serde_json::to_string(&to_json(&o).unwrap()).unwrap();
            assert_eq!(from_json(algorithm, &serde_json::from_str(&saved).unwrap()).unwrap(), o);
        }
    }

    #[test]
    fn bad_options_are_refused() {
        for algorithm in ALL {
            let good = to_json(&StepOptions::new(algorithm, 0.1)).unwrap();
            let refusal = |field: &str, value: Value| {
                let mut bad = good.clone();
                bad[field] = value;
                from_json(algorithm, &bad).unwrap_err()
            };
            assert!(refusal("lr", json!("fast")).contains("`lr`"));
            assert!(refusal("weight_decay", Value::Null).contains("`weight_decay`"));
            assert!(refusal("maximize", json!(true)).contains("no option `maximize`"));
            assert!(from_json(algorithm, &json!({})).is_err() && from_json(algorithm, &json!(1)).is_err());
            assert!(to_json(&StepOptions::new(algorithm, f64::NAN)).is_err());
        }
        let nesterov = StepOptions { nesterov: true, ..StepOptions::new(Algorithm::Sgd, 0.1) };
        assert!(check(&nesterov).unwrap_err().contains("Nesterov"));
        let beta = StepOptions { beta1: 1.0, ..StepOptions::new(Algorithm::Adam, 0.1) };
        assert!(check(&beta).unwrap_err().contains("beta"));
    }
}
