//! Parameter groups: which algorithm it is, and its options as `optim` has them.

use super::under;
use crate::error::{Error, Result};
use crate::interop::optimizer::number;
use crate::source::TensorSource;
use serde_json::{Map, Value, json};

/// A parameter group.
pub(super) struct Group {
    /// Numbers, or names in distributed checkpoints.
    pub parameters: Vec<String>,
    pub options: Value,
}

pub(super) struct Groups {
    pub algorithm: &'static str,
    /// The slots that the algorithm has.
    pub slots: &'static [&'static str],
    pub groups: Vec<Group>,
}

pub(super) fn groups(source: &dyn TensorSource, key: &str, wanted: Option<&str>) -> Result<Groups> {
    let place = under(key, "param_groups");
    let groups = match source.values().get(&place) {
        Some(Value::Array(groups)) => groups.clone(),
        _ => with_tensors(source, &place)?,
    };
    if groups.is_empty() {
        let reason = "there is no state of an optimizer: it has no `param_groups`";
        return Err(Error::object(place, reason));
    }
    let failed = |reason: String| Error::object(&place, reason);
    let mut found = Groups { algorithm: "", slots: &[], groups: Vec::new() };
    for group in &groups {
        let fields = group.as_object().ok_or_else(|| failed("a group is no dictionary".to_string()))?;
        let algorithm = algorithm(fields, wanted).map_err(failed)?;
        if !found.algorithm.is_empty() && found.algorithm != algorithm {
            return Err(failed(format!("its groups are of {} and of {algorithm}", found.algorithm)));
        }
        found.algorithm = algorithm;
        let parameters = fields.get("params").and_then(Value::as_array);
        let parameters = parameters.ok_or_else(|| failed("a group has no `params`".to_string()))?;
        let parameters = parameters.iter().map(|parameter| match parameter {
            Value::String(name) => name.clone(),
            other => other.to_string(),
        });
        found
            .groups
            .push(Group { parameters: parameters.collect(), options: options(algorithm, fields).map_err(failed)? });
    }
    found.slots = match found.algorithm {
        "SGD" => &["momentum_buffer"],
        "RMSprop" => &["step", "square_avg", "momentum_buffer", "grad_avg"],
        _ => &["step", "exp_avg", "exp_avg_sq", "max_exp_avg_sq"],
    };
    Ok(found)
}

/// Groups that have tensors among their options, such as a learning rate: these are keys of their own.
fn with_tensors(source: &dyn TensorSource, place: &str) -> Result<Vec<Value>> {
    let prefix = format!("{place}/");
    let mut groups: std::collections::BTreeMap<u64, Map<String, Value>> = Default::default();
    let split = |key: &str| {
        let (group, field) = key.strip_prefix(&prefix)?.split_once('/')?;
        Some((group.parse::<u64>().ok()?, field.to_string()))
    };
    for (key, value) in source.values() {
        if let Some((group, field)) = split(key) {
            groups.entry(group).or_default().insert(field, value.clone());
        }
    }
    for key in source.tensors().keys() {
        let Some((group, field)) = split(key) else { continue };
        let value = number(source, key)?.unwrap_or_default();
        groups.entry(group).or_default().insert(field, value.into());
    }
    Ok(groups.into_values().map(Value::Object).collect())
}

/// Which algorithm a group is of, by the options it has.
fn algorithm(fields: &Map<String, Value>, wanted: Option<&str>) -> Result<&'static str, String> {
    let has = |names: &[&str]| names.iter().all(|name| fields.contains_key(*name));
    let family: &[&'static str] = if has(&["betas", "eps", "amsgrad"]) {
        match fields.get("decoupled_weight_decay").and_then(Value::as_bool) {
            Some(true) => &["AdamW"],
            Some(false) => &["Adam"],
            None => &["Adam", "AdamW"],
        }
    } else if has(&["alpha", "centered"]) {
        &["RMSprop"]
    } else if has(&["momentum", "dampening", "nesterov"]) {
        &["SGD"]
    } else {
        let names: Vec<&String> = fields.keys().collect();
        return Err(format!("it is of none of SGD, Adam, AdamW and RMSprop: its options are {names:?}"));
    };
    match (wanted, family) {
        (Some(wanted), family) => family
            .iter()
            .copied()
            .find(|own| *own == wanted)
            .ok_or_else(|| format!("it is a state of {}, not of {wanted}", family.join(" or "))),
        (None, [only]) => Ok(only),
        (None, _) => {
            Err("the file does not say whether it is of Adam or of AdamW: set `OptimizerOptions::algorithm`"
                .to_string())
        }
    }
}

/// Returns the options that `optim` has, with torch's defaults for those that older files lack.
fn options(algorithm: &str, fields: &Map<String, Value>) -> Result<Value, String> {
    if fields.get("maximize").and_then(Value::as_bool) == Some(true) {
        return Err("it maximizes (`maximize`), which `optim` does not".to_string());
    }
    let number = |name: &str, default: f64| match fields.get(name) {
        None => Ok(default),
        Some(value) => value.as_f64().ok_or_else(|| format!("its option `{name}` is {value}, no number")),
    };
    let flag = |name: &str| fields.get(name).and_then(Value::as_bool).unwrap_or(false);
    let lr = fields.get("lr").and_then(Value::as_f64).ok_or("it has no learning rate `lr`")?;
    let weight_decay = number("weight_decay", 0.0)?;
    Ok(match algorithm {
        "SGD" => json!({
            "lr": lr, "momentum": number("momentum", 0.0)?, "dampening": number("dampening", 0.0)?,
            "weight_decay": weight_decay, "nesterov": flag("nesterov"),
        }),
        "RMSprop" => json!({
            "lr": lr, "momentum": number("momentum", 0.0)?, "alpha": number("alpha", 0.99)?, "eps": number("eps", 1e-8)?,
            "centered": flag("centered"), "weight_decay": weight_decay,
        }),
        _ => {
            let betas = fields.get("betas").and_then(Value::as_array).map(Vec::as_slice);
            let betas = match betas {
                Some([beta1, beta2]) => beta1.as_f64().zip(beta2.as_f64()),
                _ => None,
            };
            let (beta1, beta2) = betas.ok_or("its `betas` are no pair of numbers")?;
            json!({
                "lr": lr, "betas": [beta1, beta2], "eps": number("eps", 1e-8)?, "weight_decay": weight_decay,
                "amsgrad": flag("amsgrad"),
            })
        }
    })
}
