//! The state of an optimizer, from PyTorch's layout to that of `optim`.
//!
//! `Optimizer.state_dict()` numbers its parameters and has no names, so they come from elsewhere: in the order that the
//! caller gives, or from the shapes if they have only one alignment.

mod align;
mod groups;

use crate::error::{Error, Result};
use crate::interop::optimizer::{Elements, OptimizerState, check_readable, number};
use crate::name;
use crate::source::TensorSource;
use align::align;
use groups::{Group, groups};
use serde_json::Value;
use std::collections::BTreeMap;

/// How the numbered parameters get names, and what else the file does not record.
///
/// ```
/// use tch_checkpoint::interop::pytorch::OptimizerOptions;
/// let options = OptimizerOptions::in_order(["fc.weight", "fc.bias"]).algorithm("AdamW").name("optimizer");
/// # let _ = options;
/// ```
#[derive(Debug, Clone)]
#[non_exhaustive]
pub struct OptimizerOptions {
    parameters: Parameters,
    algorithm: Option<String>,
    name: String,
}

#[derive(Debug, Clone)]
enum Parameters {
    InOrder(Vec<String>),
    Among(Vec<(String, Vec<u64>)>),
}

impl OptimizerOptions {
    /// `names` are those of the variables in the order of PyTorch's `model.parameters()` (of all groups, one after
    /// another): one for each number.
    pub fn in_order<N: Into<String>>(names: impl IntoIterator<Item = N>) -> Self {
        Self::new(Parameters::InOrder(names.into_iter().map(Into::into).collect()))
    }

    /// `variables` are names and shapes in the order of the model, buffers and tied names among them. The numbers are
    /// assigned to some of them, in that order, so that the shapes of all states fit. It is an error unless there is
    /// exactly one way.
    pub fn among<N: Into<String>, S: Into<Vec<u64>>>(variables: impl IntoIterator<Item = (N, S)>) -> Self {
        let variables = variables.into_iter().map(|(name, shape)| (name.into(), shape.into()));
        Self::new(Parameters::Among(variables.collect()))
    }

    fn new(parameters: Parameters) -> Self {
        OptimizerOptions { parameters, algorithm: None, name: "optimizer".to_string() }
    }

    /// Sets the algorithm: `SGD`, `Adam`, `AdamW` or `RMSprop`. Needed for Adam and AdamW of files before PyTorch 2.7,
    /// which do not record which of the two it is.
    #[must_use]
    pub fn algorithm(mut self, algorithm: impl Into<String>) -> Self {
        self.algorithm = Some(algorithm.into());
        self
    }

    /// Sets the key under which the state appears. Defaults to `optimizer`.
    #[must_use]
    pub fn name(mut self, name: impl Into<String>) -> Self {
        self.name = name.into();
        self
    }
}

/// What was found for one parameter.
#[derive(Debug, Default)]
struct Parameter {
    slots: BTreeMap<String, Elements>,
    shape: Option<Vec<u64>>,
}

/// Translates the state under `key` of a source: the part of a file that `Optimizer.state_dict()` gave (`""` for all of
/// it). A pure function: nothing is restored, no element of a slot is read.
///
/// # Errors
/// [`Error::Object`] if there is no such state, a part of it is [`unreadable`](TensorSource::unreadable), or its
/// algorithm or an option is not supported by `optim`;
/// [`Error::InvalidArgument`] if the names do not fit, with those that would.
///
/// ```no_run
/// # fn main() -> tch_checkpoint::Result<()> {
/// use tch_checkpoint::interop::{self, pytorch};
/// let file = interop::open("training.pt")?;
/// let model = file.order().into_iter().filter_map(|key| Some((key.strip_prefix("model/")?, &file.tensors()[key])));
/// let options = pytorch::OptimizerOptions::among(model.map(|(name, spec)| (name, spec.shape.clone())));
/// let state = pytorch::optimizer_state(&*file, "optimizer", &options)?;
/// # let _ = state;
/// # Ok(())
/// # }
/// ```
pub fn optimizer_state<'a>(
    source: &'a dyn TensorSource,
    key: &str,
    options: &OptimizerOptions,
) -> Result<OptimizerState<'a>> {
    for part in ["state", "param_groups"] {
        check_readable(source, &under(key, part))?;
    }
    let groups = groups(source, key, options.algorithm.as_deref())?;
    let ids: Vec<&str> = groups.groups.iter().flat_map(|group| group.parameters.iter().map(String::as_str)).collect();
    let mut parameters = Vec::new();
    for id in &ids {
        parameters.push(parameter(source, key, id, groups.slots)?);
    }
    let names = names(&ids, &parameters, options)
        .map_err(|reason| Error::InvalidArgument(format!("the optimizer {key:?}: {reason}")))?;

    let mut state = OptimizerState::new(source, &options.name);
    for (variable, parameter) in names.iter().zip(parameters) {
        for (slot, elements) in parameter.slots {
            state.add(variable, &slot, elements)?;
        }
    }
    let listed: Vec<Value> = groups.groups.iter().map(|Group { options, .. }| options.clone()).collect();
    state.set_options(groups.algorithm, listed, None);
    Ok(state)
}

/// `key/part`.
fn under(key: &str, part: &str) -> String {
    if key.is_empty() { part.to_string() } else { format!("{key}/{part}") }
}

/// Returns the entries `key/state/ID/…`.
fn parameter(source: &dyn TensorSource, key: &str, id: &str, known: &[&str]) -> Result<Parameter> {
    let prefix = under(key, &format!("state/{}/", name::key([id])));
    let mut parameter = Parameter::default();
    let inside = |map_key: &String| map_key.strip_prefix(&prefix).map(str::to_string);
    for (full, spec) in source.tensors().range(prefix.clone()..).take_while(|(full, _)| full.starts_with(&prefix)) {
        let slot = inside(full).unwrap_or_default();
        if !known.contains(&slot.as_str()) {
            return Err(Error::object(full, format!("it is a slot that `optim` does not have; it has {known:?}")));
        }
        let from = if slot == "step" {
            Elements::Count(number(source, full)?.unwrap_or_default() as f32)
        } else {
            parameter.shape.get_or_insert_with(|| spec.shape.clone());
            if parameter.shape.as_ref() != Some(&spec.shape) {
                return Err(Error::object(
                    full,
                    format!("it is {spec}, another slot of that parameter has another shape"),
                ));
            }
            Elements::Tensor(full.clone())
        };
        parameter.slots.insert(slot, from);
    }
    for (full, value) in source.values().range(prefix.clone()..).take_while(|(full, _)| full.starts_with(&prefix)) {
        match (inside(full).as_deref(), value.as_f64()) {
            // RMSprop and Adam before 1.12 count in Python.
            (Some("step"), Some(count)) if known.contains(&"step") => {
                parameter.slots.insert("step".to_string(), Elements::Count(count as f32));
            }
            // A slot that does not exist yet, such as SGD's momentum before the first step, and unneeded counts.
            (_, _) if value.is_null() || value.is_number() => {}
            _ => return Err(Error::object(full, "it is an entry of the state that `optim` does not have")),
        }
    }
    Ok(parameter)
}

/// Returns a name for each parameter.
fn names(ids: &[&str], parameters: &[Parameter], options: &OptimizerOptions) -> Result<Vec<String>, String> {
    if ids.iter().any(|id| id.parse::<u64>().is_err()) {
        // Distributed checkpoints have names already.
        return Ok(ids.iter().map(|id| id.to_string()).collect());
    }
    let names = match &options.parameters {
        Parameters::InOrder(names) if names.len() == ids.len() => names.clone(),
        Parameters::InOrder(names) => {
            return Err(format!("its state numbers {} parameters, {} names were given", ids.len(), names.len()));
        }
        Parameters::Among(variables) => {
            let shapes: Vec<Option<&[u64]>> = parameters.iter().map(|parameter| parameter.shape.as_deref()).collect();
            let names = align(&shapes, variables)?;
            let nameless =
                names.iter().zip(parameters).position(|(name, own)| name.is_empty() && !own.slots.is_empty());
            match nameless {
                Some(i) => {
                    return Err(format!("parameter {i} can be any of several variables: give the names in order"));
                }
                None => names,
            }
        }
    };
    let mut sorted: Vec<&String> = names.iter().collect();
    sorted.sort();
    match sorted.windows(2).find(|pair| pair[0] == pair[1] && !pair[0].is_empty()) {
        Some(pair) => Err(format!("the name {:?} was given twice", pair[0])),
        None => Ok(names),
    }
}
